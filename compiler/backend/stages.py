"""The integer module as a list of stages: what one layer of the machine does from DRAM to DRAM.

A stage is a weighted layer (or attention) with its neuron and the residual it adds, a pooling, an addition of two
trains, or the head. Trains lie in DRAM as [plane][step][pixel][word]; a reshape of HxWxC to NxC moves nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from isa.instructions import SPIKE_WORD_BYTES, words_of


@dataclass(frozen=True)
class TrainInfo:
    """A spike or count train in DRAM."""

    label: str
    steps: int
    pixels: int
    channels: int
    planes: int

    @property
    def words(self) -> int:
        """Spike words a pixel."""
        return words_of(self.channels)

    @property
    def pixel_bytes(self) -> int:
        return self.words * SPIKE_WORD_BYTES

    @property
    def step_bytes(self) -> int:
        return self.pixels * self.pixel_bytes

    @property
    def plane_bytes(self) -> int:
        return self.steps * self.step_bytes

    @property
    def bytes(self) -> int:
        return self.planes * self.plane_bytes


@dataclass(frozen=True)
class ImageInfo:
    """The input in DRAM: int8 [steps][pixel][channel]; one step for an image."""

    kind: str
    steps: int
    shape: tuple[int, int, int]
    """Channels, height, width."""
    scale: float

    @property
    def bytes(self) -> int:
        return self.steps * prod(self.shape)


@dataclass(frozen=True)
class Neurons:
    """A neuron layer's constants: bias and threshold int32 per channel, and the fields of `Fire`."""

    label: str
    bias: NDArray[np.int32]
    threshold: NDArray[np.int32]
    drop: int
    shift: int
    charge: str
    multiplier: int
    divisor: int
    soft: bool


@dataclass(frozen=True)
class Geometry:
    """A window over an image of pixels; a linear layer is a 1x1 window over one row of tokens."""

    rows: int
    columns: int
    input_rows: int
    input_columns: int
    kernel: int
    stride: int
    padding: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Stage:
    """Base of the stages: the layer it is in reports, and what it reads and makes."""

    label: str
    source: str
    inputs: tuple[SSAValue, ...]
    result: SSAValue | None


@dataclass(frozen=True)
class WeightedStage(Stage):
    """Convolution or linear layer on a train or on the image, neurons, and a residual train."""

    operation: str
    geometry: Geometry
    weight: NDArray[np.int8]
    """[kernel, kernel, in, out]."""
    neurons: Neurons
    residual: SSAValue | None


@dataclass(frozen=True)
class AttentionStage(Stage):
    """Attention of q, k, v, and its neurons."""

    heads: int
    tokens: int
    keys: int
    channels: int
    values_first: bool
    neurons: Neurons
    residual: SSAValue | None


@dataclass(frozen=True)
class PoolStage(Stage):
    """Max-pooling of spikes."""

    geometry: Geometry
    channels: int


@dataclass(frozen=True)
class AddStage(Stage):
    """Sum of two trains that no neuron ends in."""


@dataclass(frozen=True)
class HeadStage(Stage):
    """Sum over tokens and timesteps, and the classifier: logits = features weight + bias."""

    channels: int
    weight: NDArray[np.int8]
    """[in, out]."""
    bias: NDArray[np.int32]
    scale: float


@dataclass
class Plan:
    """The stages in dependence order, and what lies in DRAM between them."""

    stages: list[Stage]
    trains: dict[SSAValue, TrainInfo]
    image: ImageInfo
    image_value: SSAValue
    timesteps: int
    aliases: dict[SSAValue, SSAValue] = field(default_factory=dict[SSAValue, SSAValue])

    def memory(self, value: SSAValue) -> SSAValue:
        """The value whose bytes `value` is."""
        while value in self.aliases:
            value = self.aliases[value]
        return value
