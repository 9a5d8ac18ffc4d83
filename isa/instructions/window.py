"""What slides a window over pixels: spikes accumulated on the PEs, values multiplied on the SFU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    ACCUMULATOR_BYTES,
    SFU_FILL,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    ceil_divide,
    mask_bytes,
    words_of,
)
from isa.machine import Machine
from isa.word import (
    Choice,
    Cost,
    Count,
    Flag,
    Instruction,
    Region,
    Sharing,
    Strided,
    Unit,
    reads,
    updates,
)


@dataclass(frozen=True, kw_only=True)
class Window(Instruction):
    """The geometry that convolution and pooling share; a linear layer is a 1x1 window over one row of tokens.

    Output pixel (r, c) looks at input pixels (r*stride + i - top, c*stride + j - left) for i < kernel_rows and
    j < kernel_columns; what lies outside the input is zero. `top` is the padding above this tile of rows.
    """

    steps: Annotated[int, Count(4, 1)]
    rows: Annotated[int, Count(10, 1)]
    columns: Annotated[int, Count(12, 1)]
    input_rows: Annotated[int, Count(10, 1)]
    input_columns: Annotated[int, Count(12, 1)]
    kernel_rows: Annotated[int, Count(4, 1)]
    kernel_columns: Annotated[int, Count(4, 1)]
    stride: Annotated[int, Count(3, 1)]
    top: Annotated[int, Count(4)]
    left: Annotated[int, Count(4)]
    inputs: Annotated[int, Count(12, 1)]
    pixel_stride: Annotated[int, Count(12, 1)]
    step_stride: Annotated[int, Count(18)]

    @property
    def taps(self) -> int:
        """Pairs of (output pixel, input pixel) inside the borders, per step."""
        return _inside(self.rows, self.input_rows, self.kernel_rows, self.stride, self.top) * _inside(
            self.columns, self.input_columns, self.kernel_columns, self.stride, self.left
        )

    def check(self) -> None:
        """Every window begins inside the input or its padding, so it touches at least one input pixel."""
        for side, edge in (("rows", "top"), ("columns", "left")):
            outputs, inputs, kernel = (getattr(self, prefix + side) for prefix in ("", "input_", "kernel_"))
            padding = getattr(self, edge)
            if padding >= kernel:
                raise CStepError(f"{self.mnemonic}: {edge}={padding} must be less than kernel_{side}={kernel}")
            most = (inputs + padding - 1) // self.stride + 1
            if outputs > most:
                raise CStepError(f"{self.mnemonic}: {side}={outputs} look past input_{side}={inputs}; {most} fit")

    def input_extent(self, pixel_bytes: int) -> Strided:
        pixels = self.input_rows * self.input_columns
        return Strided(pixel_bytes, (self.steps, pixels), (self.step_stride, self.pixel_stride))


def _inside(outputs: int, inputs: int, kernel: int, stride: int, before: int) -> int:
    """Taps of one dimension that fall inside the input."""
    positions = (o * stride + k - before for o in range(outputs) for k in range(kernel))
    return sum(0 <= position < inputs for position in positions)


@dataclass(frozen=True, kw_only=True)
class Accumulate(Window, opcode=0x10, unit=Unit.PE):
    """accumulator[step, pixel, n] += sum over taps and k of spike[step, tap, k] * weight[tap, k, n] << plane.

    `fresh` starts from zero. `sharing` says which rows (output pixels at a step) share sums; the accumulators are the
    same whatever it says. Adjacent output pixels of a row form pairs, and with `none` and `pair` eight PEs take four
    pairs of two steps a round; with `pair`, what both spike at is accumulated once and merged into both.
    Cycles of `none` and `pair`: ceil(outputs / lanes) * sum over rounds of (max over PEs of union bits + 2 if anything
    is common + 4); the work measured is that sum. The machine's weight port says how PEs wait for each other.

    The other modes look for what to share in windows of rows, at the bits under all taps:
      group4, group8  a step's pixels in row-major order, by fours or eights: what all have, then each half beyond that
      match           two pixels of a step, or two steps of a pixel, as the latched pairing says (see `Pair`)
      prefix          tiles of channels: a row of two spikes or more begins with its largest subset, one of fewer spikes
                      or of as many and a smaller index
      forest          tiles of channels: again and again, the two terms that most rows have together become a sum
    Windows of groups are pixels of one step, of matched pixels whole steps, of all others pixel by pixel all steps; the
    machine file says how many rows, channels of a tile, and partial sums stored. A term of a sum is a weight row or a
    partial sum made before; a partial sum is added to the rows that need it as soon as it is made, each time a read and
    a write of their accumulators. PEs take the sums of a window as a list: whenever one is free it takes the first
    whose terms are made. A partial sum takes it a cycle a term, and then one for each row that it is added to; a row a
    cycle a weight row and 2 more, as the two rows of a pair take 4. A term whose place the sum takes over is free.
    Each PE fetches weight rows for itself, whatever the weight port. What a window shares is found while PEs work on
    the one before it, in ceil(bits compared / matching bits) cycles, once for all outputs.
    Cycles of these: those to match the first window + sum over windows of max(ceil(outputs / lanes) * (cycles until
    the last PE is done + 4), cycles to match the next window); the work measured is all of it.

    Guards: with `masks_rows` an input bit k counts as 0 where bit k of `row_mask` is 0. With `masks_columns` outputs
    whose bit of `column_mask` is 0 are not computed: their accumulators become 0, and passes over `lanes` outputs of
    which none is left are skipped; the work measured is then that sum times the passes left (of `none` and `pair`).

    Tokens: with `kept` only the pixels that the latest `keeprows` keeps are walked, and rows share with those that are
    left, in their order. The others add nothing, and no accumulators of theirs are read, or written but with `fresh`,
    which makes them 0. A window is then one pixel of one row: kernel, stride 1, no padding.
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    accumulators: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    outputs: Annotated[int, Count(9, 1)]
    plane: Annotated[int, Count(3)]
    fresh: Annotated[int, Flag()]
    sharing: Annotated[int, Choice(3, Sharing)]
    row_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_rows", align=2)] = 0
    column_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_columns", align=2)] = 0
    masks_rows: Annotated[int, Flag()] = 0
    masks_columns: Annotated[int, Flag()] = 0
    kept: Annotated[int, Flag()] = 0

    def extents(self) -> dict[str, Strided]:
        return {
            "spikes": self.input_extent(words_of(self.inputs) * SPIKE_WORD_BYTES),
            "weights": Strided(self.kernel_rows * self.kernel_columns * self.inputs * self.outputs),
            "accumulators": Strided(self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES),
            "row_mask": Strided(mask_bytes(self.inputs)),
            "column_mask": Strided(mask_bytes(self.outputs)),
        }

    @property
    def reuses(self) -> bool:
        """Whether rows share in windows, not in pairs as the paper has them."""
        return self.sharing > Sharing.PAIR

    def cost(self, machine: Machine) -> Cost:
        return Cost(0, 1 if self.masks_columns or self.reuses else ceil_divide(self.outputs, machine.lanes))

    def counts(self) -> dict[str, int]:
        """`sop_dense` once a layer's input, so in plane 0 only; everything else depends on the spikes."""
        accumulated = self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES
        return {
            "channel_buffer_bytes": mask_bytes(self.inputs) * self.masks_rows
            + mask_bytes(self.outputs) * self.masks_columns,
            "sop_dense": 0 if self.plane else self.taps * self.steps * self.inputs * self.outputs,
            "output_buffer_bytes": 0
            if self.masks_columns or self.kept
            else accumulated
            if self.fresh
            else 2 * accumulated,
        }

    def check(self) -> None:
        super().check()
        if self.step_stride % SPIKE_WORD_BYTES or self.pixel_stride % SPIKE_WORD_BYTES or self.spikes % 2:
            raise CStepError("accumulate: spike addresses and strides must be multiples of 2 bytes")
        if self.kept and (self.taps != self.columns or self.rows != 1 or self.stride != 1):
            raise CStepError("accumulate: kept is for linear layers; the window must be one pixel of one row of tokens")


@dataclass(frozen=True, kw_only=True)
class Depthwise(Window, opcode=0x11, unit=Unit.PE):
    """accumulator[step, pixel, c] += sum over taps of spike[step, tap, c] * weight[tap, c] << plane.

    Every channel by itself, so nothing is shared. `fresh` starts from zero. Pairs, steps, rounds and the weight port
    are as in `Accumulate`; for each non-zero word under a tap of either of its two pixels, a PE fetches that tap's
    sixteen weights and adds those whose bit is set.
    Cycles: ceil(16 / lanes) * sum over rounds of (max over PEs of non-zero words under the taps + 4); the work
    measured is that sum.

    Guards: an input bit c counts as 0 where bit c of `row_mask` (with `masks_rows`) or of `column_mask` (with
    `masks_columns`) is 0, words are what is left then, and accumulators that `column_mask` leaves out become 0.
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    accumulators: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    plane: Annotated[int, Count(3)]
    fresh: Annotated[int, Flag()]
    row_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_rows", align=2)] = 0
    column_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_columns", align=2)] = 0
    masks_rows: Annotated[int, Flag()] = 0
    masks_columns: Annotated[int, Flag()] = 0

    def extents(self) -> dict[str, Strided]:
        return {
            "spikes": self.input_extent(words_of(self.inputs) * SPIKE_WORD_BYTES),
            "weights": Strided(self.kernel_rows * self.kernel_columns * self.inputs),
            "accumulators": Strided(self.steps * self.rows * self.columns * self.inputs * ACCUMULATOR_BYTES),
            "row_mask": Strided(mask_bytes(self.inputs)),
            "column_mask": Strided(mask_bytes(self.inputs)),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(0, ceil_divide(SPIKES_PER_WORD, machine.lanes))

    def counts(self) -> dict[str, int]:
        """`sop_dense` once a layer's input, so in plane 0 only; everything else depends on the spikes."""
        accumulated = self.steps * self.rows * self.columns * self.inputs * ACCUMULATOR_BYTES
        return {
            "channel_buffer_bytes": mask_bytes(self.inputs) * (self.masks_rows + self.masks_columns),
            "sop_dense": 0 if self.plane else self.taps * self.steps * self.inputs,
            "output_buffer_bytes": 0 if self.masks_columns else accumulated if self.fresh else 2 * accumulated,
        }

    def check(self) -> None:
        super().check()
        if self.step_stride % SPIKE_WORD_BYTES or self.pixel_stride % SPIKE_WORD_BYTES or self.spikes % 2:
            raise CStepError("depthwise: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Multiply(Window, opcode=0x20, unit=Unit.SFU):
    """accumulator[step, pixel, n] += sum over taps and k of value[step, tap, k] * weight[tap, k, n], int8 both.

    For images, event counts and 8-bit streams, one int8 a channel in the spike buffer; `step_stride` 0 reads one
    image at every step. `fresh` starts from zero.
    Cycles: 8 + ceil(multiply-accumulates / SFU multipliers).

    Guards: with `masks_columns` outputs whose bit of `column_mask` is 0 are not computed and their accumulators become
    0; the work measured is then the multiply-accumulates left.
    """

    values: Annotated[int, reads(Region.SPIKE, 17)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    accumulators: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    outputs: Annotated[int, Count(9, 1)]
    fresh: Annotated[int, Flag()]
    column_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_columns", align=2)] = 0
    masks_columns: Annotated[int, Flag()] = 0

    def extents(self) -> dict[str, Strided]:
        return {
            "values": self.input_extent(self.inputs),
            "weights": Strided(self.kernel_rows * self.kernel_columns * self.inputs * self.outputs),
            "accumulators": Strided(self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES),
            "column_mask": Strided(mask_bytes(self.outputs)),
        }

    @property
    def multiplications(self) -> int:
        return self.taps * self.steps * self.inputs * self.outputs

    def cost(self, machine: Machine) -> Cost:
        if self.masks_columns:
            return Cost(SFU_FILL, 1, machine.sfu_multipliers)
        return Cost(SFU_FILL + ceil_divide(self.multiplications, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        """With `masks_columns` all but the reads of the input and of the mask depend on the mask."""
        if self.masks_columns:
            read = self.taps * self.steps * self.inputs
            return {"spike_buffer_bytes": read, "channel_buffer_bytes": mask_bytes(self.outputs)}
        accumulated = self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES
        return {
            "mac": self.multiplications,
            "weight_buffer_bytes": self.kernel_rows * self.kernel_columns * self.inputs * self.outputs,
            "spike_buffer_bytes": self.taps * self.steps * self.inputs,
            "output_buffer_bytes": accumulated if self.fresh else 2 * accumulated,
        }
