"""What runs on the neuron unit, neuron by neuron: firing, additions, rescaling, masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    ACCUMULATOR_BYTES,
    CONSTANT_BYTES,
    COUNT_BYTES,
    MEMBRANE_BYTES,
    NEURON_FILL,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    STREAM_BYTES,
    ceil_divide,
    mask_bytes,
    words_of,
)
from isa.machine import Machine
from isa.word import (
    Charge,
    Choice,
    Cost,
    Count,
    Flag,
    Instruction,
    Region,
    Strided,
    Unit,
    reads,
    updates,
    writes,
)


@dataclass(frozen=True, kw_only=True)
class Fire(Instruction, opcode=0x30, unit=Unit.NEURON):
    """Update neurons step by step, emit their spikes, and add them to the residual where there is one.

    For each step, pixel p and channel c, in 64-bit integers with >> the arithmetic shift:
        x = ((accumulator[step, p, c] + (1 << drop >> 1) >> drop) << shift) + bias[c]
        lif            h = v + (((x - v) * multiplier + half) >> divisor)      half = 1 << divisor >> 1
        lif_undecayed  h = v + x - ((v * multiplier + half) >> divisor)
        if             h = v + x
        none           h = x                                                  no membrane: none is read or written
        s = h >= threshold[c]; with `levels` D > 0, the number of j in 1..D with 2 h >= (2 j - 1) threshold[c], that
            is h / threshold rounded and clamped to 0..D; `ties_even` takes > for odd j, so that ties go to even
        v = 0 where s (or h - s * threshold[c] where `soft`), h elsewhere, then clamped to int16
        value = residual[step, p, c] + s, as `planes` planes of the result
    `start` begins with v = 0 instead of the membrane buffer; v is written back after the last step. `narrow`: the
    accumulators are int16, a tile of a fixed-point stream [step][pixel][output]. `levels` has no residual; its
    value 0..D is the result's.
    `still`: accumulators of one step, the same at every step. `absent`: no accumulators are read, x = bias[c] (a layer
    whose input is all zero). `mute`: neurons are updated and reset as ever, but emit 0, and 0 is counted (a timestep
    mask with holes).
    Guards: with `counted` counts[c] = min(counts[c] + s summed over steps and pixels, 65535), uint16, in the channel
    buffer; `counts_fresh` starts from zero. With `masked` channels whose bit of `mask` is 0 are left out: s = 0, their
    membranes stay as they were (0 with `start`), and neuron lanes' groups of which none is left take no cycles.
    Tokens: with `kept` neurons of pixels that the latest `keepneurons` leaves out at a step are left out likewise.
    The result is [plane][step][pixel][word]; `residual` has the same strides and `residual_planes` planes.
    Cycles: 8 + steps * pixels * ceil(outputs / neuron lanes); `masked` or `kept`, of what is left.
    """

    accumulators: Annotated[int, reads(Region.OUTPUT, 18, unless="absent", align=STREAM_BYTES)]
    constants: Annotated[int, reads(Region.CONSTANT, 16, align=4)]
    membranes: Annotated[
        int,
        updates(Region.OUTPUT, 18, unless="start", only_if="charge", align=MEMBRANE_BYTES, apart=("accumulators",)),
    ]
    residual: Annotated[int, reads(Region.SPIKE, 17, only_if="residual_planes")]
    result: Annotated[int, writes(Region.SPIKE, 17, in_place=("residual",))]
    residual_planes: Annotated[int, Count(3)]
    planes: Annotated[int, Count(3, 1)]
    steps: Annotated[int, Count(4, 1)]
    pixels: Annotated[int, Count(14, 1)]
    outputs: Annotated[int, Count(9, 1)]
    drop: Annotated[int, Count(4)]
    shift: Annotated[int, Count(4)]
    charge: Annotated[int, Choice(2, Charge)]
    multiplier: Annotated[int, Count(16)]
    divisor: Annotated[int, Count(5)]
    start: Annotated[int, Flag()]
    soft: Annotated[int, Flag()]
    levels: Annotated[int, Count(4)]
    ties_even: Annotated[int, Flag()]
    narrow: Annotated[int, Flag()]
    plane_stride: Annotated[int, Count(17)]
    step_stride: Annotated[int, Count(17)]
    pixel_stride: Annotated[int, Count(12, 2)]
    still: Annotated[int, Flag()] = 0
    absent: Annotated[int, Flag()] = 0
    mute: Annotated[int, Flag()] = 0
    counts_at: Annotated[
        int, updates(Region.CHANNEL, 14, unless="counts_fresh", only_if="counted", align=COUNT_BYTES)
    ] = 0
    counted: Annotated[int, Flag()] = 0
    counts_fresh: Annotated[int, Flag()] = 0
    mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masked", align=2)] = 0
    masked: Annotated[int, Flag()] = 0
    kept: Annotated[int, Flag()] = 0

    @property
    def current_bytes(self) -> int:
        """Bytes of one accumulator."""
        return STREAM_BYTES if self.narrow else ACCUMULATOR_BYTES

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.outputs) * SPIKE_WORD_BYTES
        strides = (self.plane_stride, self.step_stride, self.pixel_stride)
        neurons = self.pixels * self.outputs
        return {
            "accumulators": Strided((1 if self.still else self.steps) * neurons * self.current_bytes),
            "counts_at": Strided(self.outputs * COUNT_BYTES),
            "mask": Strided(mask_bytes(self.outputs)),
            "constants": Strided(self.outputs * CONSTANT_BYTES),
            "membranes": Strided(neurons * MEMBRANE_BYTES),
            "residual": Strided(run, (max(self.residual_planes, 1), self.steps, self.pixels), strides),
            "result": Strided(run, (self.planes, self.steps, self.pixels), strides),
        }

    def cost(self, machine: Machine) -> Cost:
        if self.masked or self.kept:
            return Cost(NEURON_FILL, 1)
        return Cost(NEURON_FILL + self.steps * self.pixels * ceil_divide(self.outputs, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        """`masked` or `kept`, what is left of updates, membranes, accumulators and constants is measured."""
        updates_made = self.steps * self.pixels * self.outputs
        row = words_of(self.outputs) * SPIKE_WORD_BYTES
        membranes = self.pixels * self.outputs * MEMBRANE_BYTES if self.charge else 0
        counted_bytes = self.outputs * COUNT_BYTES * (1 if self.counts_fresh else 2)
        counted = {"guard_counts": updates_made, "channel_buffer_bytes": counted_bytes} if self.counted else {}
        if self.masked:
            counted["channel_buffer_bytes"] = counted.get("channel_buffer_bytes", 0) + mask_bytes(self.outputs)
        if self.masked or self.kept:
            return counted | {
                "add": updates_made if self.residual_planes else 0,
                "spike_buffer_bytes": self.steps * self.pixels * row * (self.planes + self.residual_planes),
            }
        return counted | {
            "neuron_updates": updates_made,
            "add": updates_made if self.residual_planes else 0,
            "output_buffer_bytes": (0 if self.absent else updates_made * self.current_bytes)
            + membranes * (1 if self.start else 2),
            "constant_buffer_bytes": self.outputs * CONSTANT_BYTES,
            "spike_buffer_bytes": self.steps * self.pixels * row * (self.planes + self.residual_planes),
        }

    def check(self) -> None:
        strides = self.plane_stride | self.step_stride | self.pixel_stride
        if (strides | self.result | (self.residual if self.residual_planes else 0)) % 2:
            raise CStepError("fire: spike addresses and strides must be multiples of 2 bytes")
        if self.absent and (self.still or self.narrow):
            raise CStepError("fire: absent accumulators are neither still nor narrow; those flags must be 0")
        if self.counts_fresh and not self.counted:
            raise CStepError("fire: counts_fresh without counted; only counts can start from zero")
        if not self.narrow and self.accumulators % ACCUMULATOR_BYTES:
            raise CStepError(f"fire: accumulators={self.accumulators} must be a multiple of {ACCUMULATOR_BYTES}")
        if self.levels and (self.residual_planes or self.planes < self.levels.bit_length()):
            raise CStepError(
                f"fire: levels={self.levels} need {self.levels.bit_length()} planes and no residual; "
                f"planes={self.planes}, residual_planes={self.residual_planes}"
            )
        if self.planes < self.residual_planes:
            raise CStepError(f"fire: planes={self.planes} must be at least residual_planes={self.residual_planes}")


@dataclass(frozen=True, kw_only=True)
class Add(Instruction, opcode=0x32, unit=Unit.NEURON):
    """result[step, pixel, c] = left + right, as counts in planes: a residual that no neuron ends in.

    All three are [plane][step * pixel][word] with `words` words a pixel and `plane_stride` bytes between planes.
    Cycles: 8 + ceil(pixels * words * 16 / neuron lanes); `pixels` counts all steps.
    """

    left: Annotated[int, reads(Region.SPIKE, 17)]
    right: Annotated[int, reads(Region.SPIKE, 17)]
    result: Annotated[int, writes(Region.SPIKE, 17, in_place=("left", "right"))]
    left_planes: Annotated[int, Count(3, 1)]
    right_planes: Annotated[int, Count(3, 1)]
    planes: Annotated[int, Count(3, 1)]
    pixels: Annotated[int, Count(16, 1)]
    words: Annotated[int, Count(9, 1)]
    plane_stride: Annotated[int, Count(17)]

    def extents(self) -> dict[str, Strided]:
        run = self.pixels * self.words * SPIKE_WORD_BYTES
        planes = {"left": self.left_planes, "right": self.right_planes, "result": self.planes}
        return {name: Strided(run, (count,), (self.plane_stride,)) for name, count in planes.items()}

    def cost(self, machine: Machine) -> Cost:
        return Cost(NEURON_FILL + ceil_divide(self.pixels * self.words * SPIKES_PER_WORD, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        row = self.pixels * self.words * SPIKE_WORD_BYTES
        return {
            "add": self.pixels * self.words * SPIKES_PER_WORD,
            "spike_buffer_bytes": row * (self.left_planes + self.right_planes + self.planes),
        }

    def check(self) -> None:
        if (self.left | self.right | self.result | self.plane_stride) % 2:
            raise CStepError("add: spike addresses and strides must be multiples of 2 bytes")
        widest = max(self.left_planes, self.right_planes)
        if self.planes < widest:
            raise CStepError(f"add: planes={self.planes} must be at least {widest}, those of its operands")


@dataclass(frozen=True, kw_only=True)
class Rescale(Instruction, opcode=0x33, unit=Unit.NEURON):
    """value[step, p, c] = clamp(((accumulator * multiplier[c] + half) >> divisor) + bias[c]): a fixed-point stream.

    half = 1 << divisor >> 1; in 64-bit integers that wrap, clamped to int16 (int8 where `small`). With `adds`,
    value = clamp(value + addend[step, p, c]), the addend int16. Accumulators are int32, or int16 (a stream's tile)
    where `narrow`. All are [step][pixel][output]; constants are biases int32, then multipliers int32. `absent`: no
    accumulators are read, they count as 0; `still`: those of one step, the same at every step.
    Tokens: with `kept` values of pixels that the latest `keepneurons` leaves out at a step are 0, the addend is added
    all the same.
    Cycles: 8 + steps * pixels * ceil(outputs / neuron lanes); `kept`, of the pixels left, the work measured.
    """

    accumulators: Annotated[int, reads(Region.OUTPUT, 18, unless="absent", align=STREAM_BYTES)]
    constants: Annotated[int, reads(Region.CONSTANT, 16, align=4)]
    addend: Annotated[int, reads(Region.OUTPUT, 18, only_if="adds", align=STREAM_BYTES)]
    result: Annotated[int, writes(Region.OUTPUT, 18, align=STREAM_BYTES, in_place=("accumulators", "addend"))]
    steps: Annotated[int, Count(4, 1)]
    pixels: Annotated[int, Count(14, 1)]
    outputs: Annotated[int, Count(9, 1)]
    divisor: Annotated[int, Count(6)]
    adds: Annotated[int, Flag()]
    narrow: Annotated[int, Flag()]
    small: Annotated[int, Flag()]
    still: Annotated[int, Flag()] = 0
    absent: Annotated[int, Flag()] = 0
    kept: Annotated[int, Flag()] = 0

    @property
    def values(self) -> int:
        return self.steps * self.pixels * self.outputs

    @property
    def current_bytes(self) -> int:
        """Bytes of one accumulator."""
        return STREAM_BYTES if self.narrow else ACCUMULATOR_BYTES

    def extents(self) -> dict[str, Strided]:
        return {
            "accumulators": Strided(self.values // (self.steps if self.still else 1) * self.current_bytes),
            "constants": Strided(self.outputs * CONSTANT_BYTES),
            "addend": Strided(self.values * STREAM_BYTES),
            "result": Strided(self.values * (1 if self.small else STREAM_BYTES)),
        }

    def cost(self, machine: Machine) -> Cost:
        if self.kept:
            return Cost(NEURON_FILL, ceil_divide(self.outputs, machine.neuron_lanes))
        return Cost(NEURON_FILL + self.steps * self.pixels * ceil_divide(self.outputs, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        """`kept`, multiplications and the accumulators that are read are measured."""
        extents = self.extents()
        moved = sum(extents[name].run for name in ("result", *(("addend",) if self.adds else ())))
        if self.kept:
            return {
                "add": self.values if self.adds else 0,
                "output_buffer_bytes": moved,
                "constant_buffer_bytes": self.outputs * CONSTANT_BYTES,
            }
        moved += 0 if self.absent else self.values * self.current_bytes
        return {
            "mac": self.values,
            "add": self.values if self.adds else 0,
            "output_buffer_bytes": moved,
            "constant_buffer_bytes": self.outputs * CONSTANT_BYTES,
        }

    def check(self) -> None:
        if self.absent and (self.still or self.narrow):
            raise CStepError("rescale: absent accumulators are neither still nor narrow; those flags must be 0")
        if self.still and self.result == self.accumulators and self.steps > 1:
            raise CStepError(f"rescale: result={self.result} lies on still accumulators, which every step reads")
        if not self.narrow and self.accumulators % ACCUMULATOR_BYTES:
            raise CStepError(f"rescale: accumulators={self.accumulators} must be a multiple of {ACCUMULATOR_BYTES}")


@dataclass(frozen=True, kw_only=True)
class Mask(Instruction, opcode=0x34, unit=Unit.NEURON):
    """result[step, token, c] = spike[step, token, c] and mask[step, token, i], with i = c, or c's head if `by_head`.

    Channels are `heads` heads of `width`. `mask_pixel_stride` 0 gives every token the same mask.
    Cycles: 8 + ceil(steps * tokens * words * 16 / neuron lanes).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    mask: Annotated[int, reads(Region.SPIKE, 17)]
    result: Annotated[int, writes(Region.SPIKE, 17, apart=("mask",), in_place=("spikes",))]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(12, 1)]
    heads: Annotated[int, Count(9, 1)]
    width: Annotated[int, Count(10, 1)]
    by_head: Annotated[int, Flag()]
    pixel_stride: Annotated[int, Count(12, 2)]
    step_stride: Annotated[int, Count(17)]
    mask_pixel_stride: Annotated[int, Count(12)]
    mask_step_stride: Annotated[int, Count(17)]

    @property
    def words(self) -> int:
        return words_of(self.heads * self.width)

    def extents(self) -> dict[str, Strided]:
        counts = (self.steps, self.tokens)
        spikes = Strided(self.words * SPIKE_WORD_BYTES, counts, (self.step_stride, self.pixel_stride))
        masks = self.heads if self.by_head else self.heads * self.width
        mask = Strided(words_of(masks) * SPIKE_WORD_BYTES, counts, (self.mask_step_stride, self.mask_pixel_stride))
        return {"spikes": spikes, "mask": mask, "result": spikes}

    def cost(self, machine: Machine) -> Cost:
        spikes = self.steps * self.tokens * self.words * SPIKES_PER_WORD
        return Cost(NEURON_FILL + ceil_divide(spikes, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        row = self.words * SPIKE_WORD_BYTES
        return {
            "gates": self.steps * self.tokens * self.heads * self.width,
            "spike_buffer_bytes": self.steps * self.tokens * (2 * row + self.extents()["mask"].run),
        }

    def check(self) -> None:
        strides = self.pixel_stride | self.step_stride | self.mask_pixel_stride | self.mask_step_stride
        if (strides | self.spikes | self.mask | self.result) % 2:
            raise CStepError("mask: spike addresses and strides must be multiples of 2 bytes")
