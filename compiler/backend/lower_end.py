"""How a tile of currents ends: the constants that neurons and streams share, and which of the two it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Place, Step
from compiler.backend.memory import TrainInfo
from compiler.backend.stages import EndedStage, Neurons, Rescaling, Stage
from compiler.backend.tile import EndDemand
from isa.instructions import CONSTANT_BYTES, SPIKE_WORD_BYTES, Keep, Load, words_of
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering

Span = tuple[int, int]
"""First and count."""


@dataclass(frozen=True)
class Tile:
    """A tile of what a layer makes: runs of pixels and of channels, as (first, count)."""

    pixels: Span
    channels: Span
    place: Span
    """Row and column of the first pixel in the layer."""


@dataclass(frozen=True)
class Part:
    """The channels of a stage that are computed on their own: all of them, or a group's."""

    name: str
    """The prefix of its constants and of what survives in DRAM from one call to the next."""
    end: Neurons | Rescaling
    channel_tile: int
    """Channels of a tile: the order in which constants lie in DRAM."""
    first: int = 0
    """Its first channel in what the stage makes."""


class EndTile(ABC):
    """Loads what the end of a tile needs, ends its currents window by window, and stores what they become."""

    def __init__(
        self, lowering: Lowering, stage: EndedStage, part: Part, call: Call, tile: Tile, narrow: bool = False
    ) -> None:
        assert stage.result is not None
        self.lowering, self.emit, self.stage, self.part = lowering, lowering.emit, stage, part
        self.call, self.tile, self.narrow = call, tile, narrow
        self.label, self.result = stage.label, stage.result
        self.addend = stage.addend
        self.kept: SSAValue | None = None
        """The tile's kept tokens, [step][pixel], once they are loaded."""
        self.channels = (part.first + tile.channels[0], tile.channels[1])
        """The tile's channels in what the stage makes."""

    @property
    def ends(self) -> bool:
        """Whether currents end in this call; otherwise what is added to them goes on alone."""
        return self.call.first < self.stage.timing.ends

    def load_kept(self, step: Step) -> None:
        """Load the kept tokens of the tile with `step`, the first that needs them."""
        kept, (first, pixels) = self.stage.kept, self.tile.pixels
        if kept is None or not self.ends:
            return
        steps = min(self.call.stop, self.stage.timing.ends) - self.call.first
        target = self.emit.buffer(Region.SPIKE, steps * pixels * SPIKE_WORD_BYTES, f"{self.label}.kept")
        self.kept = target
        info, dram = self.lowering.plan.train(kept), self.lowering.dram_of(kept)
        window = (self.call.first, steps)
        step.loads.append(lambda: self.emit.copy_kept(Load, info, dram, target, window, (first, pixels)))

    def latch(self, kind: type[Keep], window: Span) -> dict[str, int]:
        """Latch the kept tokens of a window into a unit; the field that its instruction gets."""
        if self.kept is None or window[0] >= self.stage.timing.ends:
            return {}
        offset = (window[0] - self.call.first) * self.tile.pixels[1] * SPIKE_WORD_BYTES
        self.lowering.latch(kind, (self.kept, offset), window[1], self.tile.pixels[1])
        return {"kept": 1}

    def prepare(self, step: Step, constants: SSAValue | None) -> SSAValue | None:
        """Load what is needed once with `step`: constants, unless they are given. Returns the constants."""
        if constants is None and self.ends:
            constants = self._load_constants(step)
        self.constants = constants
        return constants

    def is_still(self, window: Span, accumulators: Place | None) -> bool:
        """Whether the timesteps of a window all have the currents of one."""
        return self.stage.timing.is_still and window[1] > 1 and accumulators is not None

    @abstractmethod
    def begin(self, window: Span) -> None:
        """Emit the loads of one window of timesteps, before its currents are computed."""

    @abstractmethod
    def finish(self, window: Span, accumulators: Place | None) -> None:
        """Emit the end of one window of timesteps; without accumulators, sums of nothing end."""

    @abstractmethod
    def conclude(self, step: Step) -> None:
        """Store what is stored once after `step`."""

    def _load_constants(self, step: Step) -> SSAValue:
        part, emit = self.part, self.emit
        source = emit.constant(
            f"{part.name}.constants", lambda: constant_tiles(*part.end.constants, tile=part.channel_tile)
        )
        first, count = self.tile.channels
        target = emit.buffer(Region.CONSTANT, count * CONSTANT_BYTES, f"{self.label}.constants_tile")
        step.loads.append(
            lambda: emit.copy(
                Load,
                (source, first * CONSTANT_BYTES),
                (target, 0),
                Region.CONSTANT,
                Traffic.CONSTANT,
                count * CONSTANT_BYTES,
            )
        )
        return target


@dataclass(frozen=True)
class Share:
    """Timesteps that are summed, and the windows whose currents these are."""

    sums: Span | None
    """None where nothing is summed. Where the stage's sums are the same at every timestep, those of one."""
    ends: tuple[Span, ...]


def shares(stage: Stage, call: Call) -> list[Share]:
    """What a call sums, window by window, and then windows without sums."""
    timing = stage.timing
    live = tuple(window for window in call.windows if window[0] < timing.sums)
    rest = [Share(None, (window,)) for window in call.windows if window[0] >= timing.sums]
    if timing.is_still and live:
        return [Share((0, 1), live), *rest]
    return [*(Share(window, (window,)) for window in live), *rest]


def summed_steps(stage: Stage, call: Call) -> int:
    """Timesteps that a call sums."""
    return sum(share.sums[1] for share in shares(stage, call) if share.sums is not None)


def without_sums(end: EndTile, share: Share) -> Step:
    """The step of windows whose currents are biases alone."""
    step = Step()
    for window in share.ends:
        step.works += [lambda w=window: end.begin(w), lambda w=window: end.finish(w, None)]
    return step


def end_tile(
    lowering: Lowering, stage: EndedStage, part: Part, call: Call, tile: Tile, narrow: bool = False
) -> EndTile:
    """The end of a tile of currents; `narrow`: they are int16, a tile of a stream."""
    from compiler.backend.lower_neurons import NeuronTile
    from compiler.backend.lower_streams import StreamTile

    kind = NeuronTile if isinstance(stage.end, Neurons) else StreamTile
    return kind(lowering, stage, part, call, tile, narrow)


def end_demand(lowering: Lowering, stage: EndedStage) -> EndDemand:
    """What the end of a stage takes up, for the longest call."""
    assert stage.result is not None
    made = lowering.plan.info(stage.result)
    has_membrane = isinstance(stage.end, Neurons) and stage.end.has_membrane
    return EndDemand(
        planes=made.planes if isinstance(made, TrainInfo) else 0,
        adds=stage.addend is not None or (isinstance(stage.end, Rescaling) and stage.timing.sums < stage.timing.ends),
        has_membrane=has_membrane,
        spill=has_membrane and len(lowering.calls_of(stage)) > 1,
        steps=lowering.longest(stage),
        window=lowering.window,
        copies=_end_copies(lowering, stage),
        keeps=stage.kept is not None,
    )


def _end_copies(lowering: Lowering, stage: EndedStage) -> int:
    """Copies of a tile over all calls: trains call by call, streams window by window."""
    moved = [lowering.plan.info(value) for value in (stage.result, stage.addend) if value is not None]
    calls = lowering.calls_of(stage)
    kept = len(calls) if stage.kept is not None else 0
    if isinstance(stage.end, Rescaling):
        return len(moved) * sum(len(call.windows) for call in calls) + kept
    planes = [1 if len(calls) == 1 else info.planes for info in moved if isinstance(info, TrainInfo)]
    spilled = 2 * (len(calls) - 1) if stage.end.has_membrane else 0
    return len(calls) * sum(planes) + spilled + kept


def step_bytes(pixels: int, channels: int) -> int:
    """Bytes of a tile of spikes at one timestep, one plane."""
    return pixels * words_of(channels) * SPIKE_WORD_BYTES


def constant_tiles(bias: NDArray[np.int32], second: NDArray[np.int32], tile: int) -> NDArray[np.uint8]:
    """Biases and thresholds (multipliers) in tile order: each tile's int32 biases, then its int32 thresholds."""
    parts = [
        part[start : start + tile].astype("<i4").view(np.uint8)
        for start in range(0, len(bias), tile)
        for part in (bias, second)
    ]
    return np.concatenate(parts)
