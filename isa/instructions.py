"""Every instruction in opcode order: fields, unit, meaning, cycles, and what it counts whatever the data.

Layouts in the buffers (all little-endian):
  spikes        [plane][step][pixel][word]   16 channels a word, channel c is bit c % 16 of word c // 16; the unused
                                             high bits of the last word are zero. A count train has several planes,
                                             value = sum over planes of bit << plane.
  image, events [step][pixel][channel] int8
  weights       [kernel row][kernel column][input][output] int8
  accumulators  [step][pixel][output] int32 slots (values fit the machine's accumulator width)
  membranes     [pixel][output] int16
  constants     bias int32 [output], then threshold int32 [output]
Pixels are tokens in row-major order; a linear layer is a window of one row and as many columns as tokens.

The word mask buffer has no addresses of its own: its bit i says whether word i of the spike buffer is non-zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.machine import Machine
from isa.word import (
    Address,
    Charge,
    Choice,
    Cost,
    Count,
    Flag,
    Instruction,
    Region,
    Strided,
    Traffic,
    Unit,
    reads,
    updates,
    writes,
)

SPIKES_PER_WORD = 16
SPIKE_WORD_BYTES = 2
ACCUMULATOR_BYTES = 4
MEMBRANE_BYTES = 2
CONSTANT_BYTES = 8
"""A channel's bias and threshold, int32 each."""


def words_of(channels: int) -> int:
    """Spike words that hold `channels` channels."""
    return -(-channels // SPIKES_PER_WORD)


def _ceil(value: int, by: int) -> int:
    return -(-value // by)


@dataclass(frozen=True, kw_only=True)
class Copy(Instruction):
    """blocks x rows runs of `bytes` bytes from source to target, each side with its own strides."""

    region: Annotated[int, Choice(3, Region)]
    traffic: Annotated[int, Choice(3, Traffic)]
    blocks: Annotated[int, Count(12, 1)]
    rows: Annotated[int, Count(14, 1)]
    bytes: Annotated[int, Count(18, 1)]
    dram_block_stride: Annotated[int, Count(26)]
    dram_row_stride: Annotated[int, Count(22)]
    buffer_block_stride: Annotated[int, Count(18)]
    buffer_row_stride: Annotated[int, Count(18)]

    def _shapes(self) -> tuple[Strided, Strided]:
        counts = (self.blocks, self.rows)
        return (
            Strided(self.bytes, counts, (self.dram_block_stride, self.dram_row_stride)),
            Strided(self.bytes, counts, (self.buffer_block_stride, self.buffer_row_stride)),
        )

    @property
    def merged(self) -> int:
        """How many of the two loops are contiguous in DRAM, innermost first: bursts run on across them."""
        rows = self.rows == 1 or self.dram_row_stride == self.bytes
        blocks = self.blocks == 1 or self.dram_block_stride == self.rows * self.bytes
        return 2 if rows and blocks else 1 if rows else 0

    @property
    def is_compressed(self) -> bool:
        """Spikes travel as one mask bit a word, rounded up to bytes a run, and the non-zero words."""
        return self.traffic == Traffic.SPIKE

    def bursts(self, machine: Machine) -> int:
        """Bursts of an uncompressed copy."""
        runs, size = ((self.blocks * self.rows, 1), (self.blocks, self.rows), (1, self.blocks * self.rows))[self.merged]
        return runs * _ceil(size * self.bytes, machine.burst_bytes)

    def cost(self, machine: Machine) -> Cost:
        numerator, denominator = machine.cycles_per_burst
        if self.is_compressed:
            return Cost(machine.dram_latency, numerator, denominator)
        return Cost(machine.dram_latency + _ceil(self.bursts(machine) * numerator, denominator))

    def counts(self) -> dict[str, int]:
        if self.is_compressed:
            return {}
        moved = self.blocks * self.rows * self.bytes
        return {f"dram_{Traffic(self.traffic).name.lower()}_bytes": moved, _BUFFER_BYTES[Region(self.region)]: moved}

    def check(self) -> None:
        if self.region == Region.DRAM:
            raise CStepError(f"{self.mnemonic}: region=0 (dram); a copy goes between DRAM and a buffer")
        if self.is_compressed and (self.region != Region.SPIKE or self.bytes % SPIKE_WORD_BYTES):
            raise CStepError(f"{self.mnemonic}: spikes move in whole words between DRAM and the spike buffer")


_BUFFER_BYTES = {
    Region.DRAM: "dram_bytes",
    Region.WEIGHT: "weight_buffer_bytes",
    Region.SPIKE: "spike_buffer_bytes",
    Region.OUTPUT: "output_buffer_bytes",
    Region.CONSTANT: "constant_buffer_bytes",
}


@dataclass(frozen=True, kw_only=True)
class Load(Copy, opcode=0x01, unit=Unit.DMA):
    """buffer[target] = dram[source]: blocks x rows runs of bytes; spikes also set their word mask bits.

    Cycles: latency + ceil(bursts * cycles per burst); runs that are contiguous in DRAM share bursts; of spikes,
    only the word mask and the non-zero words travel.
    """

    source: Annotated[int, reads(Region.DRAM, 32)]
    target: Annotated[int, Address(18, "writes", region_field="region")]

    def extents(self) -> dict[str, Strided]:
        dram, buffer = self._shapes()
        return {"source": dram, "target": buffer}


@dataclass(frozen=True, kw_only=True)
class Store(Copy, opcode=0x02, unit=Unit.DMA):
    """dram[target] = buffer[source]: blocks x rows runs of bytes.

    Cycles: as `Load`.
    """

    source: Annotated[int, Address(18, "reads", region_field="region")]
    target: Annotated[int, writes(Region.DRAM, 32)]

    def extents(self) -> dict[str, Strided]:
        dram, buffer = self._shapes()
        return {"source": buffer, "target": dram}


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

    `fresh` starts from zero. Adjacent output pixels of a row form pairs; with `share`, what both spike at is
    accumulated once and merged into both. Eight PEs take four pairs of two steps a round.
    Cycles: ceil(outputs / lanes) * sum over rounds of (max over PEs of union bits + 2 if anything is common + 4);
    the work measured is that sum. The machine's weight port says how PEs wait for each other.
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    accumulators: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    outputs: Annotated[int, Count(9, 1)]
    plane: Annotated[int, Count(3)]
    fresh: Annotated[int, Flag()]
    share: Annotated[int, Flag()]

    def extents(self) -> dict[str, Strided]:
        return {
            "spikes": self.input_extent(words_of(self.inputs) * SPIKE_WORD_BYTES),
            "weights": Strided(self.kernel_rows * self.kernel_columns * self.inputs * self.outputs),
            "accumulators": Strided(self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(0, _ceil(self.outputs, machine.lanes))

    def counts(self) -> dict[str, int]:
        """`sop_dense` once a layer's input, so in plane 0 only; everything else depends on the spikes."""
        accumulated = self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES
        return {
            "sop_dense": 0 if self.plane else self.taps * self.steps * self.inputs * self.outputs,
            "output_buffer_bytes": accumulated if self.fresh else 2 * accumulated,
        }

    def check(self) -> None:
        super().check()
        if self.step_stride % SPIKE_WORD_BYTES or self.pixel_stride % SPIKE_WORD_BYTES or self.spikes % 2:
            raise CStepError("accumulate: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Multiply(Window, opcode=0x20, unit=Unit.SFU):
    """accumulator[step, pixel, n] += sum over taps and k of value[step, tap, k] * weight[tap, k, n], int8 both.

    For images and event counts, one int8 a channel in the spike buffer; `step_stride` 0 reads one image at every
    step. `fresh` starts from zero.
    Cycles: 8 + ceil(multiply-accumulates / SFU multipliers).
    """

    values: Annotated[int, reads(Region.SPIKE, 17)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    accumulators: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    outputs: Annotated[int, Count(9, 1)]
    fresh: Annotated[int, Flag()]

    def extents(self) -> dict[str, Strided]:
        return {
            "values": self.input_extent(self.inputs),
            "weights": Strided(self.kernel_rows * self.kernel_columns * self.inputs * self.outputs),
            "accumulators": Strided(self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES),
        }

    @property
    def multiplications(self) -> int:
        return self.taps * self.steps * self.inputs * self.outputs

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + _ceil(self.multiplications, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        accumulated = self.steps * self.rows * self.columns * self.outputs * ACCUMULATOR_BYTES
        return {
            "mac": self.multiplications,
            "weight_buffer_bytes": self.kernel_rows * self.kernel_columns * self.inputs * self.outputs,
            "spike_buffer_bytes": self.taps * self.steps * self.inputs,
            "output_buffer_bytes": accumulated if self.fresh else 2 * accumulated,
        }


SFU_FILL = 8
NEURON_FILL = 8


@dataclass(frozen=True, kw_only=True)
class Attend(Instruction, opcode=0x21, unit=Unit.SFU):
    """accumulator[step, i, c] = sum over keys j of (sum over c' in c's head of q[step,i,c'] k[step,j,c']) v[step,j,c].

    Softmax-free attention of `heads` heads of `width` channels, for a tile of `queries` rows. Channel 0 of each operand
    is bit `first_bit` of the word at its address. `values_first` computes q (kT v) instead of (q kT) v: the same
    integers, other work.
    Cycles: 8 + ceil(multiply-accumulates / SFU multipliers), with 2 * heads * queries * keys * width a step, or
    heads * width^2 * (keys + queries) with `values_first`.
    """

    q: Annotated[int, reads(Region.SPIKE, 17)]
    k: Annotated[int, reads(Region.SPIKE, 17)]
    v: Annotated[int, reads(Region.SPIKE, 17)]
    accumulators: Annotated[int, writes(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    queries: Annotated[int, Count(12, 1)]
    keys: Annotated[int, Count(12, 1)]
    heads: Annotated[int, Count(7, 1)]
    width: Annotated[int, Count(10, 1)]
    first_bit: Annotated[int, Count(4)]
    pixel_stride: Annotated[int, Count(12, 2)]
    query_step_stride: Annotated[int, Count(17)]
    key_step_stride: Annotated[int, Count(17)]
    values_first: Annotated[int, Flag()]

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.first_bit + self.heads * self.width) * SPIKE_WORD_BYTES
        query = Strided(run, (self.steps, self.queries), (self.query_step_stride, self.pixel_stride))
        key = Strided(run, (self.steps, self.keys), (self.key_step_stride, self.pixel_stride))
        outputs = self.steps * self.queries * self.heads * self.width
        return {"q": query, "k": key, "v": key, "accumulators": Strided(outputs * ACCUMULATOR_BYTES)}

    @property
    def multiplications(self) -> int:
        if self.values_first:
            return self.steps * self.heads * self.width * self.width * (self.keys + self.queries)
        return 2 * self.steps * self.heads * self.queries * self.keys * self.width

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + _ceil(self.multiplications, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        row = words_of(self.heads * self.width) * SPIKE_WORD_BYTES
        outputs = self.steps * self.queries * self.heads * self.width
        return {
            "mac": self.multiplications,
            "spike_buffer_bytes": self.steps * (self.queries + 2 * self.keys) * row,
            "output_buffer_bytes": outputs * ACCUMULATOR_BYTES,
        }

    def check(self) -> None:
        if (self.q | self.k | self.v | self.pixel_stride | self.query_step_stride | self.key_step_stride) % 2:
            raise CStepError("attend: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Sum(Instruction, opcode=0x22, unit=Unit.SFU):
    """feature[c] += sum over steps and tokens of spike[step, token, c] << plane, int32; `fresh` starts from zero.

    Cycles: 8 + ceil(steps * tokens * inputs / SFU multipliers).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    features: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(12, 1)]
    inputs: Annotated[int, Count(12, 1)]
    pixel_stride: Annotated[int, Count(12, 2)]
    step_stride: Annotated[int, Count(18)]
    plane: Annotated[int, Count(3)]
    fresh: Annotated[int, Flag()]

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.inputs) * SPIKE_WORD_BYTES
        return {
            "spikes": Strided(run, (self.steps, self.tokens), (self.step_stride, self.pixel_stride)),
            "features": Strided(self.inputs * ACCUMULATOR_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + _ceil(self.steps * self.tokens * self.inputs, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        return {
            "add": self.steps * self.tokens * self.inputs,
            "spike_buffer_bytes": self.steps * self.tokens * words_of(self.inputs) * SPIKE_WORD_BYTES,
            "output_buffer_bytes": self.inputs * ACCUMULATOR_BYTES * (1 if self.fresh else 2),
        }

    def check(self) -> None:
        if (self.spikes | self.pixel_stride | self.step_stride) % 2:
            raise CStepError("sum: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Classify(Instruction, opcode=0x23, unit=Unit.SFU):
    """logit[m] += sum over c of feature[c] * weight[c, m], int32; `fresh` starts from bias[m] (the constants).

    Cycles: 8 + ceil(inputs * outputs / SFU multipliers).
    """

    features: Annotated[int, reads(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    constants: Annotated[int, reads(Region.CONSTANT, 16, only_if="fresh", align=4)]
    logits: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    inputs: Annotated[int, Count(12, 1)]
    outputs: Annotated[int, Count(12, 1)]
    fresh: Annotated[int, Flag()]

    def extents(self) -> dict[str, Strided]:
        return {
            "features": Strided(self.inputs * ACCUMULATOR_BYTES),
            "weights": Strided(self.inputs * self.outputs),
            "constants": Strided(self.outputs * 4),
            "logits": Strided(self.outputs * ACCUMULATOR_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + _ceil(self.inputs * self.outputs, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        return {
            "mac": self.inputs * self.outputs,
            "weight_buffer_bytes": self.inputs * self.outputs,
            "constant_buffer_bytes": self.outputs * 4 if self.fresh else 0,
            "output_buffer_bytes": self.inputs * ACCUMULATOR_BYTES
            + self.outputs * ACCUMULATOR_BYTES * (1 if self.fresh else 2),
        }


@dataclass(frozen=True, kw_only=True)
class Fire(Instruction, opcode=0x30, unit=Unit.NEURON):
    """Update neurons step by step, emit their spikes, and add them to the residual where there is one.

    For each step, pixel p and channel c, in 64-bit integers with >> the arithmetic shift:
        x = ((accumulator[step, p, c] + (1 << drop >> 1) >> drop) << shift) + bias[c]
        lif            h = v + (((x - v) * multiplier + half) >> divisor)      half = 1 << divisor >> 1
        lif_undecayed  h = v + x - ((v * multiplier + half) >> divisor)
        if             h = v + x
        s = h >= threshold[c]
        v = 0 where s (or h - threshold[c] where `soft`), h elsewhere, then clamped to int16
        value = residual[step, p, c] + s, as `planes` planes of the result
    `start` begins with v = 0 instead of the membrane buffer; v is written back after the last step.
    The result is [plane][step][pixel][word]; `residual` has the same strides and `residual_planes` planes.
    Cycles: 8 + steps * pixels * ceil(outputs / neuron lanes).
    """

    accumulators: Annotated[int, reads(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    constants: Annotated[int, reads(Region.CONSTANT, 16, align=4)]
    membranes: Annotated[int, updates(Region.OUTPUT, 18, unless="start", align=MEMBRANE_BYTES)]
    residual: Annotated[int, reads(Region.SPIKE, 17, only_if="residual_planes")]
    result: Annotated[int, writes(Region.SPIKE, 17)]
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
    plane_stride: Annotated[int, Count(17)]
    step_stride: Annotated[int, Count(17)]
    pixel_stride: Annotated[int, Count(12, 2)]

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.outputs) * SPIKE_WORD_BYTES
        strides = (self.plane_stride, self.step_stride, self.pixel_stride)
        neurons = self.pixels * self.outputs
        return {
            "accumulators": Strided(self.steps * neurons * ACCUMULATOR_BYTES),
            "constants": Strided(self.outputs * CONSTANT_BYTES),
            "membranes": Strided(neurons * MEMBRANE_BYTES),
            "residual": Strided(run, (max(self.residual_planes, 1), self.steps, self.pixels), strides),
            "result": Strided(run, (self.planes, self.steps, self.pixels), strides),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(NEURON_FILL + self.steps * self.pixels * _ceil(self.outputs, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        updates_made = self.steps * self.pixels * self.outputs
        row = words_of(self.outputs) * SPIKE_WORD_BYTES
        membranes = self.pixels * self.outputs * MEMBRANE_BYTES
        return {
            "neuron_updates": updates_made,
            "add": updates_made if self.residual_planes else 0,
            "output_buffer_bytes": updates_made * ACCUMULATOR_BYTES + membranes * (1 if self.start else 2),
            "constant_buffer_bytes": self.outputs * CONSTANT_BYTES,
            "spike_buffer_bytes": self.steps * self.pixels * row * (self.planes + self.residual_planes),
        }

    def check(self) -> None:
        strides = self.plane_stride | self.step_stride | self.pixel_stride
        if (strides | self.result | (self.residual if self.residual_planes else 0)) % 2:
            raise CStepError("fire: spike addresses and strides must be multiples of 2 bytes")
        if self.planes < self.residual_planes:
            raise CStepError(f"fire: planes={self.planes} must be at least residual_planes={self.residual_planes}")


@dataclass(frozen=True, kw_only=True)
class Pool(Window, opcode=0x31, unit=Unit.NEURON):
    """result[step, pixel, c] = OR over taps of spike[step, tap, c]: max-pooling of spikes.

    The result has `pixel_stride` and rows * columns pixels a step, steps `result_step_stride` apart.
    Cycles: 8 + ceil(steps * taps * words * 16 / neuron lanes).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    result: Annotated[int, writes(Region.SPIKE, 17)]
    result_step_stride: Annotated[int, Count(18)]

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.inputs) * SPIKE_WORD_BYTES
        pixels = self.rows * self.columns
        return {
            "spikes": self.input_extent(run),
            "result": Strided(run, (self.steps, pixels), (self.result_step_stride, self.pixel_stride)),
        }

    def cost(self, machine: Machine) -> Cost:
        spikes = self.steps * self.taps * words_of(self.inputs) * SPIKES_PER_WORD
        return Cost(NEURON_FILL + _ceil(spikes, machine.neuron_lanes))

    def counts(self) -> dict[str, int]:
        row = words_of(self.inputs) * SPIKE_WORD_BYTES
        return {
            "pool_taps": self.steps * self.taps * self.inputs,
            "spike_buffer_bytes": self.steps * (self.taps + self.rows * self.columns) * row,
        }

    def check(self) -> None:
        super().check()
        strides = self.pixel_stride | self.step_stride | self.result_step_stride
        if (strides | self.spikes | self.result) % 2:
            raise CStepError("pool: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Add(Instruction, opcode=0x32, unit=Unit.NEURON):
    """result[step, pixel, c] = left + right, as counts in planes: a residual that no neuron ends in.

    All three are [plane][step * pixel][word] with `words` words a pixel and `plane_stride` bytes between planes.
    Cycles: 8 + ceil(pixels * words * 16 / neuron lanes); `pixels` counts all steps.
    """

    left: Annotated[int, reads(Region.SPIKE, 17)]
    right: Annotated[int, reads(Region.SPIKE, 17)]
    result: Annotated[int, writes(Region.SPIKE, 17)]
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
        return Cost(NEURON_FILL + _ceil(self.pixels * self.words * SPIKES_PER_WORD, machine.neuron_lanes))

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
class Layer(Instruction, opcode=0x40, unit=Unit.CONTROL):
    """What follows, up to the next mark, is counted for layer `index` of the program's layer table.

    Cycles: 0.
    """

    index: Annotated[int, Count(16)]


@dataclass(frozen=True, kw_only=True)
class End(Instruction, opcode=0x4F, unit=Unit.CONTROL):
    """The last instruction: wait for every unit, then stop.

    Cycles: 0.
    """
