"""Small networks for tests: Spikformers with random weights that fire, and the trained digits checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.check import Observed
from compiler.frontend.checkpoint import apply_checkpoint, load_checkpoint
from compiler.frontend.importer import import_model
from compiler.ir.network import Network
from compiler.pipeline import Compiled, compile_network
from compiler.zoo import LIF, Spikformer, build
from isa.machine import Machine, load_machine
from isa.program import Program, Provenance
from runtime.dataset import load_dataset
from runtime.interpreter import quantise_input, run

DIGITS_CHECKPOINT = Path(__file__).resolve().parent.parent / "examples" / "spikformer-digits.safetensors"
NOWHERE = Provenance(model="", checkpoint="", calibration="", pipeline="", schedule="", version="")
IMAGES = 8
BACK_END = "lower-to-cstep{{schedule={}}},allocate,synchronise"


@dataclass(frozen=True)
class Shape:
    """A Spikformer to build; `rate` is the share of spikes that its neurons are tuned to."""

    embed_dims: int = 16
    num_heads: int = 2
    depths: int = 1
    timesteps: int = 4
    image: tuple[int, int, int] = (1, 16, 16)
    classes: int = 4
    mlp_ratio: float = 2.0
    tau: float = 2.0
    threshold: float = 1.0
    attention_threshold: float = 0.5
    attention_scale: float = 0.125
    rate: float = 0.15
    seed: int = 0


def spikformer(shape: Shape) -> tuple[Spikformer, NDArray[np.float32]]:
    """A Spikformer with random weights that fires at about the shape's rate, and images [8, C, H, W] for it."""
    torch.manual_seed(shape.seed)
    channels, height, width = shape.image
    model = Spikformer(
        img_size_h=height,
        img_size_w=width,
        in_channels=channels,
        num_classes=shape.classes,
        embed_dims=shape.embed_dims,
        num_heads=shape.num_heads,
        mlp_ratios=shape.mlp_ratio,
        depths=shape.depths,
        T=shape.timesteps,
        tau=shape.tau,
        threshold=shape.threshold,
        attention_threshold=shape.attention_threshold,
        attention_scale=shape.attention_scale,
    )
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.head.bias)
    images = torch.randn(IMAGES, *shape.image)
    make_it_fire(model, images, shape.rate)
    return model.eval(), images.numpy()


@torch.no_grad()
def make_it_fire(model: nn.Module, images: Tensor, rate: float) -> None:
    """One pass over the images that sets every batch norm: its statistics to theirs, its bias so that neurons fire."""
    norms: list[nn.BatchNorm1d | nn.BatchNorm2d] = []

    def remember(norm: nn.Module, *_: object) -> None:
        norms.append(norm)  # type: ignore[arg-type]

    def shift(neuron: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        assert isinstance(neuron, LIF)
        if not norms:
            neuron.v_threshold *= factor_for(neuron, inputs[0], rate)  # behind attention there is no batch norm
            return None
        bias = bias_for(neuron, inputs[0], rate)
        norms.pop().bias += bias
        return (inputs[0] + bias,)

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.2)
            hooks.append(module.register_forward_hook(remember))
        elif isinstance(module, LIF):
            hooks.append(module.register_forward_pre_hook(shift))
    model.train()
    model(images)
    for hook in hooks:
        hook.remove()


def bias_for(neuron: LIF, current: Tensor, rate: float) -> float:
    """By how much currents must be moved so that the share of spikes is `rate`; bisection."""
    low, high = -20.0, 20.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if neuron.forward(current + middle).mean() > rate else (middle, high)
    return high


def factor_for(neuron: LIF, current: Tensor, rate: float) -> float:
    """The power of two that, times the threshold, brings the share of spikes nearest to `rate`; exact hits stay."""

    def distance(factor: float) -> float:
        threshold = neuron.v_threshold
        neuron.v_threshold = threshold * factor
        found = float(neuron.forward(current).mean())
        neuron.v_threshold = threshold
        return abs(found - rate)

    return min((0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), key=distance)


def digits() -> tuple[Network, NDArray[np.float32]]:
    """The digits network as imported, and images [16, 1, 16, 16]."""
    checkpoint = load_checkpoint(DIGITS_CHECKPOINT)
    model, entry = build("spikformer-2-96", checkpoint.state, checkpoint.metadata)
    apply_checkpoint(model, checkpoint.state, entry.dead_keys, "digits")
    dataset = load_dataset("digits", split="test", shape=entry.input, mean=entry.mean, std=entry.std)
    images = dataset.batch(0, 2 * IMAGES)
    return import_model(model, torch.from_numpy(images[:1])), images


def emulate(program: Program, images: NDArray[np.float32]) -> Observed:
    """What the pipeline compares: logits and currents of a program."""
    result = run(program, quantise_input(program, images), observe=True)
    assert result.currents is not None
    return Observed(result.logits, result.currents, result.steps)


def compiled(
    network: Network,
    images: NDArray[np.float32],
    *,
    machine: Machine | None = None,
    check: int = 2,
    passes: str | None = None,
    schedule: str = "layers",
    dump_to: Path | None = None,
) -> Compiled:
    """A network through the pipeline, compared on the first `check` images after every pass."""
    channels = images.shape[-3]
    return compile_network(
        network,
        machine=machine or load_machine("c-step"),
        calibration=images,
        check=images[:check] if check else None,
        provenance=NOWHERE,
        normalisation=((0.0,) * channels, (1.0,) * channels),
        passes=passes,
        schedule=schedule,
        dump_to=dump_to,
        emulate=emulate,
    )
