"""The integer module as a list of stages: what one layer of the machine does from DRAM to DRAM.

A stage is a weighted layer, attention or a sum with the neurons (or the fixed-point stream) it ends in and what is
added to them, a pooling, a mask, an addition, a sum over time, or the head. Between stages lie trains,
[plane][step][pixel][word], and streams, [step][pixel][channel]; a reshape of HxWxC to NxC moves nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.guards import Guards
from compiler.backend.memory import ImageInfo, StreamInfo, TrainInfo
from compiler.backend.timing import Timing
from compiler.backend.views import Views
from isa.word import Criterion, Gives


@dataclass(frozen=True)
class Neurons:
    """A neuron layer's constants: bias and threshold int32 per channel, and the fields of `Fire`."""

    label: str
    bias: NDArray[np.int32]
    threshold: NDArray[np.int32]
    drop: int
    shift: int
    charge: str
    multiplier: int = 0
    divisor: int = 0
    soft: bool = False
    levels: int = 0
    ties_even: bool = False
    mask: tuple[int, ...] = ()
    """0 or 1 a timestep, by which spikes are multiplied; empty where they are as they are."""

    @property
    def has_membrane(self) -> bool:
        return self.charge != "none"

    @property
    def constants(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self.bias, self.threshold


@dataclass(frozen=True)
class Rescaling:
    """How accumulators become a stream: bias and multiplier int32 per channel, and the divisor of `Rescale`."""

    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    divisor: int

    @classmethod
    def identity(cls, channels: int) -> Rescaling:
        """Values as they are."""
        return cls(np.zeros(channels, np.int32), np.ones(channels, np.int32), 0)

    @property
    def constants(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self.bias, self.multiplier


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
    is_flat: bool = False
    """A window one row high, over every row by itself; `kernel`, `stride` and `padding` are those of the columns."""

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def kernel_rows(self) -> int:
        return 1 if self.is_flat else self.kernel

    @property
    def taps(self) -> int:
        return self.kernel_rows * self.kernel

    @property
    def extent(self) -> int:
        """What tiles of pixels divide: tokens, or image rows."""
        return self.columns if self.is_row_of_tokens else self.rows

    @property
    def is_row_of_tokens(self) -> bool:
        """Whether tiles are runs of tokens rather than of image rows."""
        return self.input_rows == 1 and self.rows == 1 and self.kernel == 1 and self.stride == 1 and not self.padding


@dataclass(frozen=True)
class Stage:
    """Base of the stages: the layer it is in reports, and what it reads and makes."""

    label: str
    source: str
    inputs: tuple[SSAValue, ...]
    result: SSAValue | None
    timing: Timing = field(default=Timing(), kw_only=True)

    @property
    def reads(self) -> tuple[SSAValue, ...]:
        """Every train and stream it needs."""
        return self.inputs

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"{self.label} ({self.source})"


@dataclass(frozen=True)
class EndedStage(Stage):
    """A stage that makes currents: they fire neurons, or become a stream."""

    end: Neurons | Rescaling
    addend: SSAValue | None
    """The count train that is added to the spikes, or the stream that is added to the stream."""
    kept: SSAValue | None = field(default=None, kw_only=True)
    """The kept train of its tokens, where not all of them are computed."""

    @property
    def reads(self) -> tuple[SSAValue, ...]:
        return (*self.inputs, *(value for value in (self.addend, self.kept) if value is not None))

    @property
    def channels(self) -> int:
        """Channels that it makes."""
        return len(self.end.bias)


@dataclass(frozen=True)
class RowSharing:
    """How the rows of a weighted layer share what they have in common (`isa.word.Sharing`)."""

    mode: str = ""
    """By name; empty: pairs, where the machine has them."""
    partners: NDArray[np.uint16] | None = None
    """Of `match`, the partner of each pixel or timestep; itself where it has none."""
    timesteps: bool = False
    """Whether `partners` are timesteps of every pixel, not pixels of every timestep."""


@dataclass(frozen=True)
class WeightedStage(EndedStage):
    """Convolution or linear layer on a train, an 8-bit stream or the image."""

    operation: str
    """conv, linear, or depthwise: every channel by itself."""
    geometry: Geometry
    weight: NDArray[np.int8]
    """[kernel rows, kernel, in of a group, out]; [kernel rows, kernel, 1, channels] of a depthwise layer."""
    groups: int
    """Runs of output channels that read only their run of input channels; 1 for a depthwise layer."""
    sharing: RowSharing = RowSharing()


@dataclass(frozen=True)
class AttentionStage(EndedStage):
    """Attention of q, k, v: trains of spikes or counts."""

    heads: int
    tokens: int
    keys: int
    width: int
    """Channels of a head of q and k."""
    value_width: int
    """Channels of a head of v."""
    values_first: bool
    skips: bool = field(default=False, kw_only=True)
    """Whether q, k and v are 0 for the tokens that it does not keep, so that they need not be multiplied."""


@dataclass(frozen=True)
class StreamStage(EndedStage):
    """A stream whose values are currents of neurons, or to which another stream is added."""

    pixels: int
    columns: int
    """Pixels of a row, as the neurons' place in their layer is told."""


@dataclass(frozen=True)
class SumStage(EndedStage):
    """Per timestep, the sum over tokens: of a train, of a stream, or of the product of two spike trains."""


@dataclass(frozen=True)
class HeadSumStage(EndedStage):
    """Every token's sums over the channels of its heads."""

    tokens: int
    heads: int
    width: int


@dataclass(frozen=True)
class MaskStage(Stage):
    """Spikes where a mask spikes: one for all tokens, one a head and token, or another train of the same shape."""

    kind: str
    """tokens, heads, or equal."""
    heads: int
    width: int


@dataclass(frozen=True)
class DilateStage(Stage):
    """Spikes spread to neighbouring tokens and channels of their head."""

    heads: int
    width: int


@dataclass(frozen=True)
class PoolStage(Stage):
    """Max-pooling of spikes, counts or a stream."""

    geometry: Geometry
    channels: int


@dataclass(frozen=True)
class AddStage(Stage):
    """Sum of two trains that no neuron ends in."""


@dataclass(frozen=True)
class KeepStage(Stage):
    """The tokens with the largest scores: the fields of `spike.keep_tokens`."""

    keep: int
    rows: int
    columns: int
    kernel: int
    score: str
    multiplier: int
    divisor: int
    drop: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def is_pooled(self) -> bool:
        """Whether one set of tokens is chosen for all timesteps."""
        return self.score == "code"

    @property
    def looks_back(self) -> bool:
        """Whether a timestep is compared with the one before it."""
        return self.score not in ("spatial", "magnitude")


@dataclass(frozen=True)
class HaltStage(Stage):
    """Halting totals and weights behind a block, of what it makes and the state in front of it, if there is one."""

    tokens: int
    multiplier: int
    divisor: int
    bias: int
    limit: int
    gives: Gives


@dataclass(frozen=True)
class BelowStage(Stage):
    """The kept train of a halting state."""

    tokens: int
    limit: int


@dataclass(frozen=True)
class TimeSumStage(Stage):
    """Sum over its timesteps of a train of spikes or counts: a train that is the same at every timestep."""


@dataclass(frozen=True)
class HeadPart:
    """A train or stream summed over tokens and timesteps, and its weights; the features are shifted in between."""

    weight: NDArray[np.int8]
    """[in, out]."""
    shift: int
    """To the left for counts, which are summed so much higher; to the right, rounding half up, where negative."""
    steps: int
    """Timesteps that are summed; behind them the train or stream is zero."""
    state: SSAValue | None = None
    """The halting state whose weights multiply what is summed."""
    drop: int = 0
    """Bits by which these weights are shifted right, rounding half up."""

    @property
    def channels(self) -> int:
        return len(self.weight)


@dataclass(frozen=True)
class HeadBias:
    """A bias [classes] that counts once for each of the first `steps` timesteps."""

    each: NDArray[np.int64]
    steps: int


@dataclass(frozen=True)
class ExitPoints:
    """After how many timesteps the program may end, and by which measure of the logits (see `Decide`), one each."""

    after: tuple[int, ...]
    thresholds: tuple[int, ...]
    criterion: Criterion
    multipliers: tuple[int, ...]
    divisors: tuple[int, ...]


@dataclass(frozen=True)
class HeadStage(Stage):
    """The classifier: logits = bias + the sum over parts, one an input, of shifted features times weights."""

    parts: tuple[HeadPart, ...]
    biases: tuple[HeadBias, ...]
    classes: int
    scale: float
    exits: ExitPoints | None

    @property
    def reads(self) -> tuple[SSAValue, ...]:
        return (*self.inputs, *(part.state for part in self.parts if part.state is not None))

    def is_exit(self, steps: int) -> bool:
        """Whether the program may end after some timesteps."""
        return self.exits is not None and steps in self.exits.after

    def bias_after(self, steps: int) -> NDArray[np.int32]:
        """The bias of the logits of the first timesteps."""
        total = np.zeros(self.classes, np.int64)
        for bias in self.biases:
            total += bias.each * min(steps, bias.steps)
        return total.astype(np.int32)


@dataclass
class Plan:
    """The stages in dependence order, and what lies in DRAM between them."""

    stages: list[Stage]
    values: Mapping[SSAValue, TrainInfo | StreamInfo]
    image: ImageInfo
    image_value: SSAValue
    timesteps: int
    views: Views = field(default_factory=lambda: Views({}))
    guards: Guards = field(default_factory=Guards)
    given: Mapping[SSAValue, NDArray[np.uint8]] = field(default_factory=dict[SSAValue, NDArray[np.uint8]])
    """Kept trains that no input changes, [T, tokens]."""

    def memory(self, value: SSAValue) -> SSAValue:
        """The value whose bytes `value` is."""
        return self.views.memory(value)

    def live(self, value: SSAValue) -> int:
        """Timesteps of a train or stream, from the first on, that lie in DRAM; it is zero behind them."""
        return self.views.live(value) or self.timesteps

    def info(self, value: SSAValue) -> TrainInfo | StreamInfo:
        """What lies in DRAM for a value; the input's int8 values are a stream."""
        value = self.memory(value)
        return self.image.values if value is self.image_value else self.values[value]

    def train(self, value: SSAValue) -> TrainInfo:
        info = self.info(value)
        assert isinstance(info, TrainInfo), info.label
        return info

    def stream(self, value: SSAValue) -> StreamInfo:
        info = self.info(value)
        assert isinstance(info, StreamInfo), info.label
        return info
