"""Timesteps that are trained: masks and their gradients, the mask loss, and what the compiler makes of them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from safetensors.torch import save_file
from torch import Tensor, nn

from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.frontend.model import open_model
from compiler.frontend.neurons import NeuronEquation, neurons_of, recognise
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.nn import (
    TIME_SCORE,
    DynamicTimeSteps,
    ThresholdLIF,
    average_timesteps,
    first_score,
    group_of,
    keep_prefixes,
    time_mask,
    timestep_loss,
    timesteps,
    with_timesteps,
)
from compiler.zoo import LIF, Spikformer, build
from isa.errors import CStepError, CStepWarning

FAMILY = FAMILIES["spikformer-cifar"]
WITH_HOLE, FIRST_TWO = (0.5, -1.0, 0.5, 1.0), (0.0, 1.0, 0.5, 0.4)
"""Scores whose masks are 1011 and 1100."""


@torch.no_grad()
def set_score(module: nn.Module, score: tuple[float, ...]) -> None:
    module.get_parameter(TIME_SCORE).copy_(torch.tensor(score))


def masks(network: Network) -> dict[str, tuple[int, ...]]:
    return {op.label: tuple(op.get("mask")) for op in network.operations() if isinstance(op, NEURONS)}


class Tiny(nn.Module):
    """Two linear layers with whatever stands behind the first."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.lif = nn.Sequential(*layers)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unsqueeze(0).repeat(4, 1, 1)
        return self.head(self.lif(self.first(x)).mean(0))


def tiny(*layers: nn.Module) -> tuple[Tiny, Tensor]:
    torch.manual_seed(3)
    return Tiny(*layers), torch.randn(6, 1, 4, 4) * 3


def test_a_mask_is_one_where_the_sum_of_what_follows_is() -> None:
    generator = torch.Generator().manual_seed(0)
    for steps in (1, 2, 4, 6, 16):
        for _ in range(50):
            score = torch.randint(-8, 17, (steps,), generator=generator) / 8  # eighths: all sums are exact
            coefficients = torch.ones(steps, steps).tril()
            expected = (score @ coefficients >= 1).float()
            assert torch.equal(time_mask(score), expected), score


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 16])
def test_half_of_the_timesteps_count_at_the_start_unless_told_otherwise(steps: int) -> None:
    assert time_mask(first_score(steps)).sum() == max(1, steps // 2)
    for start in range(1, steps + 1):
        score = first_score(steps, start)
        assert time_mask(score).tolist() == [1.0] * start + [0.0] * (steps - start)
        assert (score > 0).all() and score.sum() < 2, "every timestep must have a gradient"
    with pytest.raises(CStepError, match="expected 1 <= start <= T"):
        first_score(steps, steps + 1)


def test_the_gradient_passes_where_the_score_is_between_0_and_2() -> None:
    layer = DynamicTimeSteps(4)
    set_score(layer, (1.0, 1.0, 1.0, -0.5))  # TS = 2.5, 1.5, 0.5, -0.5
    x = torch.rand(4, 3, 5, requires_grad=True)
    weight = torch.rand(4, 3, 5)
    (layer(x) * weight).sum().backward()
    kept = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1)
    assert x.grad is not None and torch.equal(x.grad, weight * kept)
    of_mask = (x.detach() * weight).sum((1, 2)) * torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert layer.time_score.grad is not None
    torch.testing.assert_close(layer.time_score.grad, of_mask.cumsum(0))


def test_the_mask_loss_counts_the_timesteps_of_its_groups() -> None:
    model = with_timesteps(FAMILY.build(), 4, start=3)
    set_score(model.get_submodule("block.0.mlp.fc1_lif"), (0.0, 0.0, 0.0, 1.5))
    assert len(timesteps(model)) == 12
    assert average_timesteps(model) == (11 * 3 + 4) / 12
    assert timestep_loss(model, 0.5, ("mlp",)).item() == 0.5 * (4 + 3)
    loss = timestep_loss(model)
    assert loss.item() == pytest.approx(1e-6 * (3 * 3 + 4 + 3))
    loss.backward()
    moved = {group_of(name) for name, module in neurons_of(model) if module.get_parameter(TIME_SCORE).grad is not None}
    assert moved == {"qkv", "mlp"}
    with pytest.raises(CStepError, match="no group is called mpl; there are sps, qkv, attn, mlp"):
        timestep_loss(model, groups=("mlp", "mpl"))
    with pytest.raises(CStepError, match=r"call with_timesteps\(model, T\) first"):
        timestep_loss(FAMILY.build())


def test_every_family_has_all_groups() -> None:
    for name in ("spikformer-4-384", "spikingformer-4-384", "sdt-v1-8-512", "qkformer-4-384", "sdt-v2-31m"):
        with torch.device("meta"):
            model, _ = build(name, None, {})
        assert {group_of(path) for path, _ in neurons_of(model)} == {"sps", "qkv", "attn", "mlp"}, name


def test_scores_are_added_and_no_key_changes() -> None:
    model = FAMILY.build()
    before, logits = list(model.state_dict()), model(FAMILY.example())
    with_timesteps(model, 4, start=4)
    neurons = [path for path, _ in neurons_of(model)]
    assert set(model.state_dict()) == {*before, *(f"{path}.time_score" for path in neurons)}
    assert torch.equal(model(FAMILY.example()), logits)
    keys = list(model.state_dict())
    assert list(with_timesteps(model, 4, start=1).state_dict()) == keys
    assert average_timesteps(model) == 4, "a score that is there stays"
    with pytest.raises(CStepError, match=r"patch_embed\.proj_lif\.time_score has 4 timesteps already, not 3"):
        with_timesteps(model, 3)
    with pytest.raises(CStepError, match=r"block\.7\.lif has no neuron; its neurons: patch_embed"):
        with_timesteps(model, 4, layers=["block.7.lif"])
    with pytest.raises(CStepError, match="Linear: it has no neuron"):
        with_timesteps(nn.Linear(2, 2), 4)


def test_kept_scores_have_masks_without_holes() -> None:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(*(DynamicTimeSteps(4) for _ in range(50)))
    for least in range(5):
        for layer in model:
            set_score(layer, tuple((torch.rand(4, generator=generator) * 2 - 0.8).tolist()))
        keep_prefixes(model, least)
        found = timesteps(model).values()
        assert all(mask == (1,) * sum(mask) + (0,) * (4 - sum(mask)) and sum(mask) >= least for mask in found)


def test_masks_are_constants_of_the_imported_neurons() -> None:
    model = with_timesteps(FAMILY.build(), 4, layers=["block.0.attn.q_lif", "block.0.mlp.fc1_lif"], start=4)
    set_score(model.get_submodule("block.0.mlp.fc1_lif"), FIRST_TWO)
    found = masks(import_model(model, FAMILY.example()))
    assert found.pop("block.0.mlp.fc1_lif") == (1, 1, 0, 0)
    assert set(found.values()) == {()}, "a mask that keeps everything is none"


def test_a_mask_with_holes_is_taken_with_a_warning() -> None:
    model, images = tiny(LIF())
    set_score(with_timesteps(model, 4).lif[0], WITH_HOLE)
    with pytest.warns(CStepWarning, match=r"lif\.0\.time_score: the mask 1011 has holes"):
        network = import_model(model, images[:1])
    assert masks(network) == {"lif.0": (1, 0, 1, 1)}
    assert compare_with_eager(model, network, images.numpy()) > 0


@pytest.mark.parametrize("behind", [False, True])
def test_a_score_of_another_length_or_not_finite_is_refused(behind: bool) -> None:
    layers = (LIF(), DynamicTimeSteps(3)) if behind else (LIF(),)
    model, images = tiny(*layers)
    if not behind:
        with_timesteps(model, 3)
    key = f"lif.{int(behind)}.time_score"
    with pytest.raises(CStepError, match=rf"{key} has the shape \[3\]; the neuron has T=4, so it must be \[4\]"):
        import_model(model, images[:1])
    with pytest.raises(CStepError, match=r"time_score of 3 timesteps on a train \[4, 6, 8\]; its T must be 3"):
        model(images)
    model.lif[int(behind)].time_score = nn.Parameter(torch.tensor([1.0, 1.0, float("nan"), 1.0]))
    with pytest.raises(CStepError, match=f"{key} holds NaN"):
        import_model(model, images[:1])


def test_a_layer_behind_a_neuron_masks_it() -> None:
    model, images = tiny(LIF(), DynamicTimeSteps(4))
    network = import_model(model, images[:1])
    assert masks(network) == {"lif.0": (1, 1, 0, 0)} == {"lif.0": timesteps(model)["lif.1"]}
    assert compare_with_eager(model, network, images.numpy()) > 0
    model, images = tiny(DynamicTimeSteps(4), LIF())
    with pytest.raises(CStepError, match=r"lif\.0: DynamicTimeSteps must stand right behind a neuron"):
        import_model(model, images[:1])


@pytest.mark.parametrize(("leak", "threshold"), [(0.5, 1.0), (0.5, 0.75), (0.9, 1.3), (1.0, 0.4), (0.0, 1.0)])
def test_the_paper_s_own_neuron_is_recognised(leak: float, threshold: float) -> None:
    charge = {0.0: "lif", 1.0: "if"}.get(leak, "lif_undecayed")  # without memory, the input decays by 1
    tau = 1.0 if leak == 1 else 1 / (1 - leak)
    emits = float(np.float32(threshold))
    assert recognise(ThresholdLIF(leak, threshold), "x") == NeuronEquation(
        tau, threshold, charge, "soft", "gt", emits=emits
    )
    model, images = tiny(ThresholdLIF(leak, threshold))
    network = import_model(with_timesteps(model, 4), images[:1])
    assert compare_with_eager(model, network, images.numpy()) == 6 * (4 * 8 + 3)


def test_the_paper_s_own_neuron_computes_its_equations() -> None:
    x = torch.randn(6, 2, 40, generator=torch.Generator().manual_seed(2))
    u, expected = torch.zeros(2, 40), list[Tensor]()
    for current in x:
        h = 0.5 * u + current
        expected.append(0.75 * (h > 0.75))
        u = h - expected[-1]
    assert torch.equal(ThresholdLIF(0.5, 0.75)(x), torch.stack(expected))
    currents = torch.linspace(-2, 4, 61).reshape(1, 61).requires_grad_()
    ThresholdLIF(0.5, 2.0, gamma=0.3)(currents).sum().backward()
    triangle = 2.0 * 0.3 / 2.0 * (1 - (currents.detach() / 2.0 - 1).abs()).clamp(min=0)
    assert currents.grad is not None
    torch.testing.assert_close(currents.grad, triangle)
    with pytest.raises(CStepError, match=r"leak=1\.5"):
        ThresholdLIF(1.5)


def test_spikingjelly_neurons_are_masked_too() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    for layer in (neuron.LIFNode(step_mode="m"), neuron.ParametricLIFNode(step_mode="m"), neuron.IFNode(step_mode="m")):
        model, images = tiny(layer)
        set_score(with_timesteps(model, 4).lif[0], FIRST_TWO)
        network = import_model(model, images[:1])
        assert masks(network) == {"lif.0": (1, 1, 0, 0)}
        assert compare_with_eager(model, network, images.numpy()) > 0
    with pytest.raises(CStepError, match="single-step mode"):
        with_timesteps(tiny(neuron.LIFNode())[0], 4)


@pytest.mark.parametrize("name", ["spikformer-cifar", "sdt-v1", "qkformer-imagenet", "sdt-v3-events"])
def test_families_with_random_masks_are_bit_equal(name: str) -> None:
    family = FAMILIES[name]
    model = with_timesteps(family.build(), family.steps)
    generator = torch.Generator().manual_seed(5)
    for path in timesteps(model):
        score = torch.rand(family.steps, generator=generator) * 4 / family.steps - 0.2
        set_score(model.get_submodule(path), tuple(score.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CStepWarning)
        network = import_model(model, family.example())
    found = masks(network)
    assert sum(map(sum, timesteps(model).values())) == sum(
        sum(mask) if mask else family.steps for mask in found.values()
    )
    assert any(first < second for mask in found.values() for first, second in pairwise(mask)), "no mask has a hole"
    assert compare_with_eager(model, network, family.inputs(2, seed=5)) > 1000


def digits_model() -> Spikformer:
    arguments = {"img_size_h": 16, "img_size_w": 16, "in_channels": 1, "embed_dims": 32, "num_heads": 2, "depths": 1}
    return Spikformer(**arguments, T=3)


def test_a_checkpoint_with_scores_gives_the_zoo_s_model_its_masks(tmp_path: Path) -> None:
    scores = {"block.0.attn.q_lif": (1, 0, 0), "patch_embed.rpe_lif": (1, 1, 0)}
    model = with_timesteps(digits_model(), 3, layers=scores, start=1)
    set_score(model.get_submodule("patch_embed.rpe_lif"), (0.0, 1.2, 0.3))
    file = tmp_path / "masked.safetensors"
    metadata = {"T": "3", "img_size_h": "16", "img_size_w": "16", "num_heads": "2"}
    save_file(model.state_dict(), file, metadata)
    opened = open_model("spikformer-1-32", file)
    assert timesteps(opened.module) == scores
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(opened.module(images), model.eval()(images))
    assert masks(import_model(opened.module, images[:1]))["patch_embed.rpe_lif"] == (1, 1, 0)
    for state, complaint in (
        (
            {"block.0.attn.q_lif.time_score": torch.ones(4)},
            r"q_lif.time_score has the shape \[4\]; .* the model has T=3",
        ),
        ({"block.0.attn.time_score": torch.ones(3)}, r"1 unknown \(block.0.attn.time_score\)"),
        ({"block.0.attn.q_lif.time_score": torch.full((3,), torch.nan)}, "1 not finite"),
    ):
        save_file({**model.state_dict(), **state}, file, metadata)
        with pytest.raises(CStepError, match=complaint):
            open_model("spikformer-1-32", file)


def test_model_code_can_import_the_layers_alone() -> None:
    code = "import sys, compiler.nn; print({'xdsl', 'onnx', 'networkx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
