"""Importing makes no values of large tensors, and gives what it gives with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import save_file
from torch import Tensor, nn

from compiler.frontend import layers, tracer
from compiler.frontend.alike import likeness
from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.frontend.model import open_model
from compiler.zoo import LIF, build

TINY = {"img_size_h": "8", "img_size_w": "8"}


QUICK = ("spikformer-imagenet", "sdt-v1-events", "qkformer-imagenet", "sdt-v2", "sdt-v3")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_large_example_has_a_shape_and_no_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    model, example = family.build(), family.example()
    with_values = import_model(model, example)
    monkeypatch.setattr(tracer, "LARGE", 0)
    with torch.no_grad():
        examples = [node.meta["example"] for node in tracer.trace(model, example).nodes if node.op == "call_module"]
    assert examples and all(each.is_meta for each in examples)
    assert import_model(model, example).digest() == with_values.digest()
    assert not any(value.is_meta for module in model.modules() for value in vars(module).values() if is_tensor(value))


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class Looks(nn.Module):
    """A model whose logits go through `scale`."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(12, 8), LIF(), nn.Linear(8, 5)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.fc1(x.flatten(1)).unsqueeze(0).repeat(4, 1, 1))
        return self.scale(self.fc2(x)).mean(0)


@pytest.mark.parametrize(
    "scale",
    [
        lambda x: x * torch.full((5,), 2.0, device=x.device),
        lambda x: x * torch.full_like(torch.ones(5), 2.0) if x.type() == "torch.FloatTensor" else x,
        lambda x: x * 2.0 if x.get_device() < 0 and not x.is_cuda and x.device.type == "cpu" else x,
    ],
)  # fmt: skip
def test_a_model_that_asks_for_more_than_shapes_is_run_on_values(
    scale: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "LARGE", 0)
    model = Looks(scale).eval()
    network = import_model(model, torch.zeros(1, 3, 2, 2))
    assert any("scale" in op.name for op in network.operations())
    assert compare_with_eager(model, network, torch.randn(2, 3, 2, 2).numpy()) > 0


def test_neurons_that_are_alike_are_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []
    recognise = layers.recognise
    monkeypatch.setattr(layers, "recognise", lambda module, where: probed.append(where) or recognise(module, where))
    model = build("spikformer-2-32", None, TINY)[0]
    import_model(model, torch.zeros(1, 3, 8, 8))
    kinds = {(each.tau, each.v_threshold) for each in model.modules() if isinstance(each, LIF)}
    assert len(probed) == len(kinds) == 2


def test_neurons_are_alike_by_class_settings_and_parts() -> None:
    class Own(LIF):
        pass

    plain = likeness(LIF(2.0, 1.0))
    assert plain is not None and plain == likeness(LIF(2.0, 1.0))
    others = [LIF(3.0), LIF(2.0, 0.5), LIF(v_reset=None), LIF(decay_input=False), Own(), LIF(2)]
    assert len({plain, *map(likeness, others)}) == 1 + len(others)
    odd = LIF()
    odd.__dict__["table"] = object()
    assert likeness(odd) is None, "nobody knows what it does with it"


def test_no_weights_are_drawn_for_a_model_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(dict(build("spikformer-1-32", None, TINY)[0].state_dict()), path, {key: TINY[key] for key in TINY})
    state = torch.random.get_rng_state()
    module = open_model("spikformer-1-32", path).module
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    assert module(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
