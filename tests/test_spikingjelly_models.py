"""Models that nobody here wrote: SpikingJelly's own are imported bit for bit and compiled, or refused by line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from models import compiled
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.calibrate.ranges import LEAST_IMAGES
from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.frontend.model import open_model
from compiler.ir.meaning import NEURONS, execute
from compiler.ir.network import Network
from isa.errors import CStepError

pytest.importorskip("spikingjelly.activation_based.model", reason="spikingjelly is not installed")

Build = Callable[[], nn.Module]


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the models ask torchvision for one function, which is torch's own."""
    for name in ("torchvision", "torchvision.models", "torchvision.models.utils"):
        module = ModuleType(name)
        module.__dict__.update(__path__=[], load_state_dict_from_url=torch.hub.load_state_dict_from_url)
        monkeypatch.setitem(sys.modules, name, module)


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Random weights under which every layer fires."""
    generator = torch.Generator().manual_seed(4)

    def normal(size: Any) -> Tensor:
        return torch.randn(size, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(normal(module.num_features) * 0.3)
            module.running_var.copy_(normal(module.num_features).abs() + 0.3)
            module.weight.copy_(normal(module.num_features).abs() + 0.5)
            module.bias.copy_(normal(module.num_features) * 0.5 + 0.7)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.weight.copy_(normal(module.weight.shape) * 2 / module.weight[0].numel() ** 0.5)
    return model.eval()


class Repeated(nn.Module):
    """An image at every timestep of a model that takes [T, B, C, H, W]."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.model, self.steps = multi_step(model), steps

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))


class TimeFirst(nn.Module):
    """Events [B, T, C, H, W] for a model that takes [T, B, C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = multi_step(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.transpose(0, 1))


def multi_step(model: nn.Module) -> nn.Module:
    from spikingjelly.activation_based import functional

    functional.set_step_mode(model, "m")
    return model


def neurons() -> dict[str, Any]:
    """What their constructors want to know of neurons."""
    from spikingjelly.activation_based import neuron, surrogate

    return {"spiking_neuron": neuron.IFNode, "surrogate_function": surrogate.ATan(), "detach_reset": True}


def transformer(name: str, **arguments: Any) -> Build:
    def build() -> nn.Module:
        from spikingjelly.activation_based import model

        return getattr(model, name)(T=3, num_classes=5, mlp_ratio=2.0, **arguments)

    return build


def residual(name: str) -> Build:
    def build() -> nn.Module:
        from spikingjelly.activation_based import model

        return getattr(model, name)(T=2, num_classes=5, base_channels=8)

    return build


def sew_resnet18(function: str) -> Build:
    def build() -> nn.Module:
        from spikingjelly.activation_based.model.sew_resnet import sew_resnet18

        return Repeated(sew_resnet18(cnf=function, num_classes=5, **neurons()), 2)

    return build


def vgg() -> nn.Module:
    """Their VGG with fewer channels: a third of the stages, and a classifier as narrow."""
    from spikingjelly.activation_based import layer
    from spikingjelly.activation_based.model.spiking_vgg import SpikingVGG

    with torch.device("meta"):  # the classifier that goes has a hundred million weights
        model = SpikingVGG([8, "M", 16, "M", 24, "M"], True, layer.BatchNorm2d, 5, False, **neurons())
    for place, sizes in {0: (24 * 49, 20), 3: (20, 12), 6: (12, 5)}.items():
        model.classifier[place] = layer.Linear(*sizes)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return Repeated(model, 3)


def convolutional(name: str, wrapper: Callable[[nn.Module], nn.Module]) -> Build:
    def build() -> nn.Module:
        from spikingjelly.activation_based.model import parametric_lif_net

        return wrapper(getattr(parametric_lif_net, name)(channels=8, **neurons()))

    return build


def repeated(model: nn.Module) -> nn.Module:
    return Repeated(model, 3)


IMAGE, EVENTS = (3, 32, 32), (3, 2, 128, 128)
MODELS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "Spikformer": (
        transformer("Spikformer", img_size_h=32, img_size_w=32, embed_dims=32, num_heads=2, depths=1),
        IMAGE,
    ),
    "SpikeDrivenTransformer": (transformer("SpikeDrivenTransformer", embed_dims=32, num_heads=2, depths=1), IMAGE),
    "QKFormer": (transformer("QKFormer", embed_dims=64, num_heads=(2, 4, 4), depths=(1, 1, 1)), IMAGE),
    "QKFormer, channels": (
        transformer("QKFormer", embed_dims=64, num_heads=(2, 4, 4), depths=(1, 1, 1), qka_type="channel"),
        IMAGE,
    ),
    "MaxFormer": (transformer("MaxFormer", embed_dims=64, depths=(1, 1, 1)), IMAGE),
    "MSResNet": (residual("MSResNet"), IMAGE),
    "MaxResNet": (residual("MaxResNet"), IMAGE),
    "SEWResNet18, ADD": (sew_resnet18("ADD"), IMAGE),
    "SEWResNet18, AND": (sew_resnet18("AND"), IMAGE),
    "SpikingVGG": (vgg, (3, 56, 56)),
    "CIFAR10Net": (convolutional("CIFAR10Net", repeated), IMAGE),
    "DVSGestureNet": (convolutional("DVSGestureNet", TimeFirst), EVENTS),
}


def inputs_of(count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    generator = np.random.default_rng(0)
    events = len(shape) == 4
    drawn = generator.poisson(0.7, (count, *shape)) if events else generator.standard_normal((count, *shape))
    return drawn.astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_spikingjelly_is_bit_equal(name: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, inputs = lively(build()), inputs_of(2, shape)
    network = import_model(model, torch.from_numpy(inputs[:1]))
    assert compare_with_eager(model, network, inputs) > 10_000
    assert len(fired(network, inputs)) == sum(isinstance(op, NEURONS) for op in network.operations()) >= 5


QUICK = ("Spikformer", "QKFormer, channels", "MaxFormer", "MSResNet", "CIFAR10Net")
"""Slices of a fused layer, masks, spikes added to streams, layers that read streams, votes."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_model_of_spikingjelly_runs_on_the_emulator(name: str) -> None:
    """The pipeline compares currents after every pass, the integers with onnxruntime's and the emulator's."""
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, inputs = lively(build()), inputs_of(LEAST_IMAGES, shape)
    network = import_model(model, torch.from_numpy(inputs[:1]))
    result = compiled(network, inputs)
    found = {check.name: (check.compared, check.note) for check in result.checks}
    assert found["quantise"][0] > 10_000 and found["quantise"][1] == "onnxruntime == integer model"
    assert found["synchronise"][0] > 10_000 and found["synchronise"][1] == "emulator == integer model"
    assert len(fired(result.integer, inputs[:2])) >= 5


def fired(network: Network, inputs: NDArray[np.float32]) -> set[str]:
    return {label for run in execute(network, inputs) for label, spikes in run.spikes.items() if spikes.any()}


def test_what_has_no_meaning_is_refused_with_the_line_of_their_model() -> None:
    with pytest.raises(CStepError, match=r"^sew_resnet\.py:\d+: _operator\.sub has no spiking meaning here"):
        import_model(sew_resnet18("IAND")(), torch.zeros(1, *IMAGE))


OLD = """
from torch import nn
from spikingjelly.clock_driven import functional, layer, neuron, surrogate
from spikingjelly.clock_driven.neuron import MultiStepLIFNode, MultiStepParametricLIFNode

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = layer.SeqToANNContainer(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.first = MultiStepLIFNode(2.0, True, 0.7, 0.0, surrogate.ATan(), True, "cupy")
        self.second = MultiStepParametricLIFNode(init_tau=1.5, v_threshold=0.5, backend="cupy")
        self.third = neuron.MultiStepIFNode(v_threshold=0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x, hook=None):
        x = self.stem(x.unsqueeze(0).repeat(4, 1, 1, 1, 1))
        x = self.third(self.second(self.first(x)))
        return self.head(x.flatten(3).mean(3)).mean(0), hook

def build():
    model = Model()
    functional.reset_net(model)
    return model
"""


def test_a_model_file_with_the_old_names_is_opened(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("spikingjelly.clock_driven")]:
        del sys.modules[name]
    file = tmp_path / "old_names.py"
    file.write_text(OLD)
    model = lively(open_model(f"{file}:build", None).module)
    assert "imports spikingjelly.clock_driven; it gets spikingjelly.activation_based" in capsys.readouterr().err
    inputs = inputs_of(2, (3, 8, 8))
    network = import_model(model, torch.from_numpy(inputs[:1]))
    compare_with_eager(model, network, inputs)
    assert fired(network, inputs) == {"first", "second", "third"}
    assert "%first = spike.lif %stem.1 tau=2.0, threshold=0.7 : " in network.text()


def test_a_name_that_the_old_package_never_had_is_said(tmp_path: Any) -> None:
    file = tmp_path / "no_such_name.py"
    file.write_text("from spikingjelly.clock_driven.neuron import MultiStepNonsenseNode\n")
    with pytest.raises(
        CStepError, match=r"ImportError: cannot import name 'MultiStepNonsenseNode' from 'spikingjelly\."
    ):
        open_model(f"{file}:build", None)
