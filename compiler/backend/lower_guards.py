"""Guards on the machine: early spikes are counted in the channel buffer, and become masks of what is live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Place
from compiler.backend.guards import ChannelGuard
from compiler.backend.lower_end import Span
from compiler.backend.memory import TrainInfo
from compiler.backend.stages import EndedStage, Neurons, Stage
from compiler.backend.tile import spans
from isa.errors import CStepError
from isa.instructions import COUNT_BYTES, SPIKE_WORD_BYTES, SPIKES_PER_WORD, CountSpikes, Guard
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering

MOST_CHANNELS = 4080
"""Channels that one instruction counts or compares: whole words that its field holds."""


@dataclass(frozen=True)
class SpikeTile:
    """A tile of a train in the spike buffer."""

    place: Place
    tokens: int
    channels: Span
    plane_stride: int
    step_stride: int
    pixel_stride: int


class ChannelMasks:
    """Counts and masks of a program's guards, channels as in the train's words: 16 counts a word, or 16 bits.

    Counts live from the first early window to the masks that are made of them, masks to the last late window.
    """

    def __init__(self, lowering: Lowering) -> None:
        self.lowering, self.emit = lowering, lowering.emit
        self._counts: dict[tuple[SSAValue, int], SSAValue] = {}
        self._masks: dict[ChannelGuard, SSAValue] = {}
        self._begun: set[tuple[SSAValue, int, int]] = set()
        self._made: set[ChannelGuard] = set()

    def columns(self, stage: Stage, window: Span) -> ChannelGuard | None:
        """What guards a stage's neurons in a window, or None."""
        return _late(self.lowering.plan.guards.columns, stage, window)

    def rows(self, stage: Stage, window: Span) -> ChannelGuard | None:
        """What guards the inputs of a weighted stage in a window, or None."""
        return _late(self.lowering.plan.guards.rows, stage, window)

    def mask(self, guard: ChannelGuard, channels: Span) -> Place:
        """Where the mask of a tile of channels lies."""
        if guard not in self._masks:
            info = self._info(guard)
            self._masks[guard] = self._buffer(info.words * SPIKE_WORD_BYTES, f"{info.label}.mask")
        return self._masks[guard], self._word(guard, channels) * SPIKE_WORD_BYTES

    def fire(self, stage: EndedStage, window: Span, channels: Span) -> tuple[dict[str, Place], dict[str, int]]:
        """The places and fields of a `Fire` that count its spikes, or leave silent channels out."""
        places, fields = dict[str, Place](), dict[str, int]()
        own, counted = self.columns(stage, window), self._fired(stage)
        if own:
            places["mask"], fields["masked"] = self.mask(own, channels), 1
        if counted and window[0] < counted.after:
            places["counts_at"], is_fresh = self._count_place(counted, channels)
            fields |= {"counted": 1, "counts_fresh": int(is_fresh)}
        return places, fields

    def count(self, stage: Stage, window: Span, tile: SpikeTile) -> None:
        """Emit the counts of one window of a finished tile that no `Fire` makes."""
        fired = self._fired(stage)
        counted = {(fired.counted, fired.after)} if fired else set[tuple[SSAValue, int]]()
        for guard in self._counted(stage):
            if window[0] >= guard.after or (guard.counted, guard.after) in counted:
                continue
            counted.add((guard.counted, guard.after))
            first, count = tile.channels
            buffer, offset = tile.place
            for start, size in spans(count, MOST_CHANNELS):
                place, is_fresh = self._count_place(guard, (first + start, size))
                self.emit.instruction(
                    CountSpikes,
                    {"spikes": (buffer, offset + start // SPIKES_PER_WORD * SPIKE_WORD_BYTES), "counts_at": place},
                    planes=self._info(guard).planes,
                    steps=window[1],
                    tokens=tile.tokens,
                    inputs=size,
                    plane_stride=tile.plane_stride,
                    step_stride=tile.step_stride,
                    pixel_stride=tile.pixel_stride,
                    fresh=int(is_fresh),
                )

    def conclude_tile(self, stage: EndedStage, call: Call, window: Span, channels: Span) -> None:
        """Emit a tile's mask right behind its last early window, where its late windows are in the same call."""
        assert stage.result is not None
        own = self.lowering.plan.guards.columns.get(stage.result)
        if own and sum(window) == own.after < call.stop:
            self._make(own, channels)

    def conclude(self, stage: Stage, call: Call) -> None:
        """Emit the masks that are made of what a call was the last to count."""
        for guard in self._counted(stage):
            info = self._info(guard)
            if guard not in self._made and call.stop >= min(guard.after, info.steps):
                for span in spans(info.channels, info.run or MOST_CHANNELS):
                    self._make(guard, span)

    def _make(self, guard: ChannelGuard, channels: Span) -> None:
        """The mask of some channels; of a train that is the same at every timestep, one timestep was counted."""
        self._made.add(guard)
        counts, is_fresh = self._count_place(guard, channels)
        assert not is_fresh, "no stage has counted it"
        repeats = guard.after if self._info(guard).is_still else 1
        self.emit.instruction(
            Guard,
            {"counts_at": counts, "mask": self.mask(guard, channels)},
            channels=channels[1],
            threshold=guard.threshold // repeats,
        )

    def _counted(self, stage: Stage) -> list[ChannelGuard]:
        return [] if stage.result is None else self.lowering.plan.guards.counted.get(stage.result, [])

    def _fired(self, stage: Stage) -> ChannelGuard | None:
        """The guard whose spikes a stage counts as they fire: those of neurons, one bit each."""
        if not isinstance(stage, EndedStage) or not isinstance(stage.end, Neurons) or stage.end.levels > 1:
            return None
        is_sum = stage.addend is not None
        return next((guard for guard in self._counted(stage) if not (is_sum and guard.counted is stage.result)), None)

    def _count_place(self, guard: ChannelGuard, channels: Span) -> tuple[Place, bool]:
        """Where the counts of a tile of channels lie, and whether nothing is counted there yet."""
        key = (guard.counted, guard.after)
        if key not in self._counts:
            info = self._info(guard)
            self._counts[key] = self._buffer(info.words * SPIKES_PER_WORD * COUNT_BYTES, f"{info.label}.counts")
        word = self._word(guard, channels)
        is_fresh = (*key, word) not in self._begun
        self._begun.add((*key, word))
        return (self._counts[key], word * SPIKES_PER_WORD * COUNT_BYTES), is_fresh

    def _buffer(self, size: int, group: str) -> SSAValue:
        return self.emit.buffer(Region.CHANNEL, size, group)

    def _info(self, guard: ChannelGuard) -> TrainInfo:
        return self.lowering.plan.train(guard.train)

    def _word(self, guard: ChannelGuard, channels: Span) -> int:
        """The word of a tile's first channel."""
        info = self._info(guard)
        if (channels[0] % info.run if info.run else channels[0]) % SPIKES_PER_WORD:
            raise CStepError(f"{info.label}: a tile of guarded channels begins at {channels[0]}, inside a spike word")
        return info.words_at(channels)[0]


def _late(guards: dict[SSAValue, ChannelGuard], stage: Stage, window: Span) -> ChannelGuard | None:
    """A stage's guard, if a window is late enough for it."""
    guard = None if stage.result is None else guards.get(stage.result)
    return guard if guard and window[0] >= guard.after else None
