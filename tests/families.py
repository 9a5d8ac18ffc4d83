"""Every family of the zoo at a size for tests, with random weights under which all its layers fire."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.zoo import Spikformer
from compiler.zoo.qkformer import QKFormer
from compiler.zoo.random_weights import randomise
from compiler.zoo.sdt_v1 import SpikeDrivenTransformer
from compiler.zoo.sdt_v2 import SDTV2
from compiler.zoo.sdt_v3 import SDTV3
from compiler.zoo.sdt_v3_large import SDTV3Large
from compiler.zoo.spikformer_convolutional import ConvolutionalSpikformer
from compiler.zoo.spikingformer import Spikingformer

CALIBRATION, CALIBRATION_STEPS = 4, 4
"""Inputs that the batch norms are set on, and timesteps of each where an input is events."""


@dataclass(frozen=True)
class SmallFamily:
    """A family's constructor, the arguments of a small version, and what its inputs are."""

    construct: Callable[..., nn.Module]
    arguments: Mapping[str, Any] = field(hash=False)
    size: tuple[int, int, int]
    """Channels, height, width of an image, or of one timestep's event counts."""
    steps: int = 4
    """The published T."""
    events: bool = False
    needs_calibration: bool = False
    """Its residuals are membranes, whose fixed point is found from data."""

    def build(self, steps: int | None = None, seed: int = 0) -> nn.Module:
        """The model with `steps` timesteps (the family's own where None), randomised, in evaluation mode."""
        return copy.deepcopy(_built(self, steps or self.steps, seed))

    def inputs(self, count: int, seed: int = 0, steps: int | None = None) -> NDArray[np.float32]:
        """Images [count, C, H, W], or event counts [count, T, C, H, W]."""
        generator = np.random.default_rng(seed)
        if self.events:
            return generator.poisson(0.5, (count, steps or self.steps, *self.size)).astype(np.float32)
        return generator.standard_normal((count, *self.size), np.float32)

    def example(self, steps: int | None = None) -> Tensor:
        """One input, as the importer takes it."""
        return torch.from_numpy(self.inputs(1, steps=steps))


@cache
def _built(family: SmallFamily, steps: int, seed: int) -> nn.Module:
    channels, height, width = family.size
    sizes = {"T": steps, "num_classes": 5, "in_channels": channels, "img_size_h": height, "img_size_w": width}
    torch.manual_seed(seed)
    model = family.construct(**{**sizes, **family.arguments})
    inputs = family.inputs(CALIBRATION, seed + 1, min(steps, CALIBRATION_STEPS))
    randomise(model, torch.from_numpy(inputs), seed)
    return model.eval()


SMALL: Mapping[str, Any] = {"embed_dims": 32, "num_heads": 2, "mlp_ratios": 2.0}
CIFAR, IMAGE, EVENTS = (3, 16, 16), (3, 32, 48), (2, 32, 32)
"""Inputs of 4x4, 2x3 and 2x2 tokens, where a layout halves them as often as published."""
PYRAMID: Mapping[str, Any] = {"embed_dims": 32, "num_heads": 2, "mlp_ratios": 2.0, "depths": 1}


def spikingformer(layout: str, cml: bool, tau: float = 2.0) -> dict[str, Any]:
    patch_size = 4 if layout == "cifar" else 16
    return {**SMALL, "depths": 1, "patch_size": patch_size, "layout": layout, "cml": cml, "tau": tau}


def sdt_v1(pooling_stat: str, **arguments: Any) -> dict[str, Any]:
    return {**SMALL, "depths": 1, "pooling_stat": pooling_stat, **arguments}


FAMILIES: dict[str, SmallFamily] = {
    "spikformer-cifar": SmallFamily(Spikformer, {"embed_dims": 32, "num_heads": 4, "depths": 1}, CIFAR),
    "spikformer-imagenet": SmallFamily(ConvolutionalSpikformer, {**SMALL, "depths": 2}, IMAGE),
    "spikformer-events": SmallFamily(
        ConvolutionalSpikformer, {**SMALL, "depths": 1, "attention_scale": 0.25, "events": True}, EVENTS, 16, True
    ),
    "spikingformer": SmallFamily(Spikingformer, spikingformer("cifar", False), CIFAR, 4, False, True),
    "spikingformer-imagenet": SmallFamily(Spikingformer, spikingformer("imagenet", False), IMAGE, 4, False, True),
    "spikingformer-events": SmallFamily(Spikingformer, spikingformer("events", False, 1.5), EVENTS, 16, True, True),
    "spikingformer-cml": SmallFamily(Spikingformer, spikingformer("cifar", True), CIFAR, 4, False, True),
    "spikingformer-cml-imagenet": SmallFamily(Spikingformer, spikingformer("imagenet", True), IMAGE, 4, False, True),
    "spikingformer-cml-events": SmallFamily(
        Spikingformer, spikingformer("events", True, 1.75), EVENTS, 16, True, True
    ),
    "sdt-v1": SmallFamily(SpikeDrivenTransformer, sdt_v1("1111"), IMAGE, 4, False, True),
    "sdt-v1-cifar": SmallFamily(SpikeDrivenTransformer, sdt_v1("0011", mlp_ratios=1.0), CIFAR, 4, False, True),
    "sdt-v1-events": SmallFamily(
        SpikeDrivenTransformer, sdt_v1("0011", dvs_mode=True), (2, 16, 16), 10, True, True
    ),
    "sdt-v1-gesture": SmallFamily(SpikeDrivenTransformer, sdt_v1("0111"), EVENTS, 16, True, True),
    "qkformer-cifar": SmallFamily(QKFormer, {**SMALL, "layout": "cifar", "depths": 4}, CIFAR),
    "qkformer-imagenet": SmallFamily(QKFormer, {**SMALL, "layout": "imagenet", "depths": 4}, IMAGE),
    "qkformer-events": SmallFamily(QKFormer, {**SMALL, "layout": "events", "depths": 2}, EVENTS, 16, True),
    "sdt-v2": SmallFamily(SDTV2, {**PYRAMID, "depths": 2, "last_depths": 1, "last_dims": 40}, IMAGE, 1, False, True),
    "sdt-v2-kd": SmallFamily(SDTV2, {**PYRAMID, "last_depths": 0, "last_dims": 40, "kd": True}, IMAGE, 4, False, True),
    "sdt-v3": SmallFamily(SDTV3, {**PYRAMID, "depths": 2, "last_depths": 1, "last_dims": 40}, IMAGE, 1, False, True),
    "sdt-v3-events": SmallFamily(
        SDTV3, {**PYRAMID, "last_depths": 0, "last_dims": 40, "norm": 8.0, "events": True}, EVENTS, 8, True, True
    ),
    "sdt-v3-large": SmallFamily(SDTV3Large, {**PYRAMID, "first_dims": 8}, IMAGE, 1, False, True),
    "sdt-v3-larger": SmallFamily(
        SDTV3Large, {**PYRAMID, "first_dims": 8, "levels": 8, "rep_conv": False, "kd": False}, IMAGE, 1, False, True
    ),
}  # fmt: skip
"""By name: every family's in the zoo, and variants of it that compute otherwise."""
