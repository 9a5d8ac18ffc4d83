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

CALIBRATION = 4
"""Inputs that the batch norms are set on."""


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
    randomise(model, torch.from_numpy(family.inputs(CALIBRATION, seed + 1, steps)), seed)
    return model.eval()


def qkformer(layout: str, **arguments: Any) -> dict[str, Any]:
    return {"layout": layout, "embed_dims": 32, "num_heads": 2, "mlp_ratios": 2.0, "depths": 4, **arguments}


FAMILIES: dict[str, SmallFamily] = {
    "spikformer-cifar": SmallFamily(Spikformer, {"embed_dims": 32, "num_heads": 4, "depths": 1}, (3, 16, 16)),
    "qkformer-cifar": SmallFamily(QKFormer, qkformer("cifar"), (3, 16, 16)),
    "qkformer-imagenet": SmallFamily(QKFormer, qkformer("imagenet"), (3, 32, 32)),
    "qkformer-events": SmallFamily(
        QKFormer, qkformer("events", depths=2), (2, 32, 32), steps=16, events=True
    ),
}  # fmt: skip
"""By name: the family's in the zoo, without what its pattern leaves to a checkpoint."""
