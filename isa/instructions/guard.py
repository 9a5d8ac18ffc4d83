"""Guards: early spike counts per channel, and the masks that they become (C-STEP's early-guided channel pruning).

Both lie in the channel buffer: counts uint16 [channel], masks one bit a channel, channel c bit c % 16 of word c // 16;
1 is live, 0 is silent, and the unused high bits of the last word are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    COUNT_BYTES,
    NEURON_FILL,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    ceil_divide,
    mask_bytes,
    words_of,
)
from isa.machine import Machine
from isa.word import Cost, Count, Flag, Instruction, Region, Strided, Unit, reads, updates, writes


@dataclass(frozen=True, kw_only=True)
class CountSpikes(Instruction, opcode=0x37, unit=Unit.NEURON):
    """counts[c] = min(counts[c] + sum over planes, steps and tokens of spike[plane, step, token, c], 65535).

    A set bit counts once, whatever its plane; `fresh` starts from zero. For trains that no `fire` counts: residual
    sums, pooled and gated spikes.
    Cycles: 8 + ceil(planes * steps * tokens * words * 16 / neuron lanes).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    counts_at: Annotated[int, updates(Region.CHANNEL, 14, unless="fresh", align=COUNT_BYTES)]
    planes: Annotated[int, Count(3, 1)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]
    inputs: Annotated[int, Count(12, 1)]
    plane_stride: Annotated[int, Count(17)]
    step_stride: Annotated[int, Count(17)]
    pixel_stride: Annotated[int, Count(12, 2)]
    fresh: Annotated[int, Flag()]

    @property
    def spikes_seen(self) -> int:
        """Spikes looked at, whole words."""
        return self.planes * self.steps * self.tokens * words_of(self.inputs) * SPIKES_PER_WORD

    def extents(self) -> dict[str, Strided]:
        counts = (self.planes, self.steps, self.tokens)
        strides = (self.plane_stride, self.step_stride, self.pixel_stride)
        return {
            "spikes": Strided(words_of(self.inputs) * SPIKE_WORD_BYTES, counts, strides),
            "counts_at": Strided(self.inputs * COUNT_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(NEURON_FILL + ceil_divide(self.spikes_seen, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        return {
            "guard_counts": self.planes * self.steps * self.tokens * self.inputs,
            "spike_buffer_bytes": self.spikes_seen // SPIKES_PER_WORD * SPIKE_WORD_BYTES,
            "channel_buffer_bytes": self.inputs * COUNT_BYTES * (1 if self.fresh else 2),
        }

    def check(self) -> None:
        if (self.spikes | self.plane_stride | self.step_stride | self.pixel_stride) % 2:
            raise CStepError("countspikes: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Guard(Instruction, opcode=0x38, unit=Unit.NEURON):
    """mask[c] = counts[c] > threshold, one bit a channel; the unused high bits of the last word become 0.

    Cycles: 8 + ceil(channels / neuron lanes).
    """

    counts_at: Annotated[int, reads(Region.CHANNEL, 14, align=COUNT_BYTES)]
    mask: Annotated[int, writes(Region.CHANNEL, 14, align=2, apart=("counts_at",))]
    channels: Annotated[int, Count(13, 1)]
    threshold: Annotated[int, Count(16)]

    def extents(self) -> dict[str, Strided]:
        return {"counts_at": Strided(self.channels * COUNT_BYTES), "mask": Strided(mask_bytes(self.channels))}

    def cost(self, machine: Machine) -> Cost:
        return Cost(NEURON_FILL + ceil_divide(self.channels, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        return {
            "guard_compares": self.channels,
            "channel_buffer_bytes": self.channels * COUNT_BYTES + mask_bytes(self.channels),
        }
