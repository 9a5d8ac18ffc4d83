"""Max-pooling on the neuron unit: of spikes, counts and fixed-point streams over pixels, of spikes over channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    NEURON_FILL,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    STREAM_BYTES,
    ceil_divide,
    words_of,
)
from isa.instructions.window import Window
from isa.machine import Machine
from isa.word import (
    Cost,
    Count,
    Instruction,
    Region,
    Strided,
    Unit,
    reads,
    writes,
)


@dataclass(frozen=True, kw_only=True)
class Pool(Window, opcode=0x31, unit=Unit.NEURON):
    """result[step, pixel, c] = max over taps of spike[step, tap, c]: max-pooling of spikes (an OR), or of counts.

    The result has `pixel_stride` and rows * columns pixels a step, steps `result_step_stride` apart. Counts have
    several `planes`, each `steps` steps apart, on both sides.
    Cycles: 8 + ceil(planes * steps * taps * words * 16 / neuron lanes).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    result: Annotated[int, writes(Region.SPIKE, 17, apart=("spikes",))]
    result_step_stride: Annotated[int, Count(18)]
    planes: Annotated[int, Count(3, 1)]

    def extents(self) -> dict[str, Strided]:
        run, steps = words_of(self.inputs) * SPIKE_WORD_BYTES, self.planes * self.steps
        inputs, pixels = self.input_rows * self.input_columns, self.rows * self.columns
        return {
            "spikes": Strided(run, (steps, inputs), (self.step_stride, self.pixel_stride)),
            "result": Strided(run, (steps, pixels), (self.result_step_stride, self.pixel_stride)),
        }

    def cost(self, machine: Machine) -> Cost:
        spikes = self.planes * self.steps * self.taps * words_of(self.inputs) * SPIKES_PER_WORD
        return Cost(NEURON_FILL + ceil_divide(spikes, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        row = words_of(self.inputs) * SPIKE_WORD_BYTES
        return {
            "pool_taps": self.steps * self.taps * self.inputs,
            "spike_buffer_bytes": self.planes * self.steps * (self.taps + self.rows * self.columns) * row,
        }

    def check(self) -> None:
        super().check()
        strides = self.pixel_stride | self.step_stride | self.result_step_stride
        if (strides | self.spikes | self.result) % 2:
            raise CStepError("pool: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class PoolValues(Window, opcode=0x35, unit=Unit.NEURON):
    """result[step, pixel, c] = max over taps of value[step, tap, c]: max-pooling of a fixed-point stream, int16.

    What lies outside the input does not count. Values are [step][input pixel][channel] with the window's strides;
    the result is packed, [step][rows * columns][inputs].
    Cycles: 8 + ceil(steps * taps * inputs / neuron lanes).
    """

    values: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]
    result: Annotated[int, writes(Region.OUTPUT, 18, align=STREAM_BYTES, apart=("values",))]

    def extents(self) -> dict[str, Strided]:
        made = self.steps * self.rows * self.columns * self.inputs
        return {"values": self.input_extent(self.inputs * STREAM_BYTES), "result": Strided(made * STREAM_BYTES)}

    def cost(self, machine: Machine) -> Cost:
        return Cost(NEURON_FILL + ceil_divide(self.steps * self.taps * self.inputs, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        made = self.steps * self.rows * self.columns * self.inputs
        read = self.steps * self.taps * self.inputs
        return {"pool_taps": read, "output_buffer_bytes": (read + made) * STREAM_BYTES}

    def check(self) -> None:
        super().check()
        if (self.pixel_stride | self.step_stride) % STREAM_BYTES:
            raise CStepError("poolvalues: strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Dilate(Instruction, opcode=0x36, unit=Unit.NEURON):
    """result[step, i, h*width + c] = OR of spike[step, i + a, h*width + c + b] for |a|, |b| <= reach.

    Max-pooling of spikes over tokens and channels (SDT-V1 on event streams): a window of 2*reach + 1 tokens by as many
    channels of the same head; what lies outside the tokens or the head is zero. Both sides have the same strides.
    Cycles: 8 + ceil(steps * tokens * words * 16 * (2*reach + 1) / neuron lanes): one pass a token of the window.
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    result: Annotated[int, writes(Region.SPIKE, 17, apart=("spikes",))]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(12, 1)]
    heads: Annotated[int, Count(9, 1)]
    width: Annotated[int, Count(10, 1)]
    reach: Annotated[int, Count(3, 1)]
    pixel_stride: Annotated[int, Count(12, 2)]
    step_stride: Annotated[int, Count(17)]

    @property
    def words(self) -> int:
        return words_of(self.heads * self.width)

    @property
    def taps(self) -> int:
        """Pairs of (token, token of its window) inside the tokens, per step."""
        return _inside(self.tokens, self.reach)

    def extents(self) -> dict[str, Strided]:
        run, strides = self.words * SPIKE_WORD_BYTES, (self.step_stride, self.pixel_stride)
        return dict.fromkeys(("spikes", "result"), Strided(run, (self.steps, self.tokens), strides))

    def cost(self, machine: Machine) -> Cost:
        spikes = self.steps * self.tokens * self.words * SPIKES_PER_WORD * (2 * self.reach + 1)
        return Cost(NEURON_FILL + ceil_divide(spikes, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        row = self.words * SPIKE_WORD_BYTES
        return {
            "pool_taps": self.steps * self.taps * self.heads * _inside(self.width, self.reach),
            "spike_buffer_bytes": self.steps * (self.taps + self.tokens) * row,
        }

    def check(self) -> None:
        if (self.spikes | self.result | self.pixel_stride | self.step_stride) % 2:
            raise CStepError("dilate: spike addresses and strides must be multiples of 2 bytes")


def _inside(places: int, reach: int) -> int:
    """Pairs of places at most `reach` apart."""
    return sum(min(place + reach, places - 1) - max(place - reach, 0) + 1 for place in range(places))
