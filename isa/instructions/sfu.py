"""Attention, sums and the classifier: what runs on the special function unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    ACCUMULATOR_BYTES,
    SFU_FILL,
    SPIKE_WORD_BYTES,
    STREAM_BYTES,
    ceil_divide,
    words_of,
)
from isa.logarithms import certainty, largest_probability, light_softmax
from isa.machine import Machine
from isa.word import (
    Choice,
    Cost,
    Count,
    Criterion,
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
class Attend(Instruction, opcode=0x21, unit=Unit.SFU):
    """accumulator[step, i, c] = sum over keys j of (sum over c' in c's head of q[step,i,c'] k[step,j,c']) v[step,j,c].

    Softmax-free attention of `heads` heads of `width` channels, `value_width` in v and the result, for a tile of
    `queries` rows. Channel 0 of each operand is bit `first_bit` of the word at its address; an operand of several
    planes is a count train, its planes `steps` steps apart. `values_first` computes q (kT v) instead of (q kT) v: the
    same integers, other work.
    Cycles: 8 + ceil(multiply-accumulates / SFU multipliers), with heads * queries * keys * (width + value_width) a
    step, or heads * width * value_width * (keys + queries) with `values_first`.

    Tokens: with `kept` only tokens that the latest `keeptokens`, of all keys, keeps are multiplied; query i is token
    first_query + i. The others count as 0. The work measured is the multiply-accumulates left.
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
    value_width: Annotated[int, Count(10, 1)]
    first_bit: Annotated[int, Count(4)]
    pixel_stride: Annotated[int, Count(12, 2)]
    value_pixel_stride: Annotated[int, Count(12, 2)]
    query_step_stride: Annotated[int, Count(17)]
    key_step_stride: Annotated[int, Count(17)]
    value_step_stride: Annotated[int, Count(17)]
    values_first: Annotated[int, Flag()]
    q_planes: Annotated[int, Count(3, 1)]
    k_planes: Annotated[int, Count(3, 1)]
    v_planes: Annotated[int, Count(3, 1)]
    first_query: Annotated[int, Count(12)] = 0
    kept: Annotated[int, Flag()] = 0

    def extents(self) -> dict[str, Strided]:
        def operand(width: int, planes: int, tokens: int, strides: tuple[int, int]) -> Strided:
            run = words_of(self.first_bit + self.heads * width) * SPIKE_WORD_BYTES
            return Strided(run, (planes * self.steps, tokens), strides)

        query, key = (self.query_step_stride, self.pixel_stride), (self.key_step_stride, self.pixel_stride)
        value = (self.value_step_stride, self.value_pixel_stride)
        return {
            "q": operand(self.width, self.q_planes, self.queries, query),
            "k": operand(self.width, self.k_planes, self.keys, key),
            "v": operand(self.value_width, self.v_planes, self.keys, value),
            "accumulators": Strided(self.outputs * ACCUMULATOR_BYTES),
        }

    @property
    def outputs(self) -> int:
        """Accumulators of all steps."""
        return self.steps * self.queries * self.heads * self.value_width

    @property
    def multiplications(self) -> int:
        if self.values_first:
            return self.steps * self.heads * self.width * self.value_width * (self.keys + self.queries)
        return self.steps * self.heads * self.queries * self.keys * (self.width + self.value_width)

    def cost(self, machine: Machine) -> Cost:
        if self.kept:
            return Cost(SFU_FILL, 1, machine.sfu_multipliers)
        return Cost(SFU_FILL + ceil_divide(self.multiplications, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        """`kept`, multiply-accumulates are measured; spikes are read, and sums written, of all tokens."""
        row, value_row = (words_of(self.heads * width) * SPIKE_WORD_BYTES for width in (self.width, self.value_width))
        queries_and_keys = (self.q_planes * self.queries + self.k_planes * self.keys) * row
        return {
            "mac": 0 if self.kept else self.multiplications,
            "spike_buffer_bytes": self.steps * (queries_and_keys + self.v_planes * self.keys * value_row),
            "output_buffer_bytes": self.outputs * ACCUMULATOR_BYTES,
        }

    def check(self) -> None:
        if (self.q | self.k | self.v | self.pixel_stride | self.query_step_stride | self.key_step_stride) % 2:
            raise CStepError("attend: spike addresses and strides must be multiples of 2 bytes")
        if self.first_query + self.queries > self.keys and self.kept:
            raise CStepError(
                f"attend: queries {self.first_query}..{self.first_query + self.queries - 1} of {self.keys} kept"
            )


@dataclass(frozen=True, kw_only=True)
class Sum(Instruction, opcode=0x22, unit=Unit.SFU):
    """feature[c] += sum over steps and tokens of spike[step, token, c] << plane, int32; `fresh` starts from zero.

    `per_step` sums over tokens only: feature[step, c]. With `both` a spike is one that `spikes` and `other` both have
    (a Hadamard product; same strides).
    Cycles: 8 + ceil(steps * tokens * inputs / SFU multipliers).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    other: Annotated[int, reads(Region.SPIKE, 17, only_if="both")]
    features: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(12, 1)]
    inputs: Annotated[int, Count(12, 1)]
    pixel_stride: Annotated[int, Count(12, 2)]
    step_stride: Annotated[int, Count(18)]
    plane: Annotated[int, Count(3)]
    fresh: Annotated[int, Flag()]
    per_step: Annotated[int, Flag()]
    both: Annotated[int, Flag()]

    @property
    def features_made(self) -> int:
        return self.inputs * (self.steps if self.per_step else 1)

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.inputs) * SPIKE_WORD_BYTES
        spikes = Strided(run, (self.steps, self.tokens), (self.step_stride, self.pixel_stride))
        return {"spikes": spikes, "other": spikes, "features": Strided(self.features_made * ACCUMULATOR_BYTES)}

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.steps * self.tokens * self.inputs, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        row = words_of(self.inputs) * SPIKE_WORD_BYTES
        spikes = self.steps * self.tokens * self.inputs
        return {
            "add": spikes,
            "gates": spikes if self.both else 0,
            "spike_buffer_bytes": self.steps * self.tokens * row * (2 if self.both else 1),
            "output_buffer_bytes": self.features_made * ACCUMULATOR_BYTES * (1 if self.fresh else 2),
        }

    def check(self) -> None:
        if (self.spikes | self.pixel_stride | self.step_stride | (self.other if self.both else 0)) % 2:
            raise CStepError("sum: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class Classify(Instruction, opcode=0x23, unit=Unit.SFU):
    """logit[m] += sum over c of feature[c] * weight[c, m], int32; `fresh` starts from bias[m] (the constants).

    Features are first rounded half up to a multiple of 2^drop and shifted right by `drop` bits.
    Cycles: 8 + ceil(inputs * outputs / SFU multipliers).
    """

    features: Annotated[int, reads(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    weights: Annotated[int, reads(Region.WEIGHT, 18)]
    constants: Annotated[int, reads(Region.CONSTANT, 16, only_if="fresh", align=4)]
    logits: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES, apart=("features",))]
    inputs: Annotated[int, Count(12, 1)]
    outputs: Annotated[int, Count(12, 1)]
    fresh: Annotated[int, Flag()]
    drop: Annotated[int, Count(5)]

    def extents(self) -> dict[str, Strided]:
        return {
            "features": Strided(self.inputs * ACCUMULATOR_BYTES),
            "weights": Strided(self.inputs * self.outputs),
            "constants": Strided(self.outputs * 4),
            "logits": Strided(self.outputs * ACCUMULATOR_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.inputs * self.outputs, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        return {
            "mac": self.inputs * self.outputs,
            "weight_buffer_bytes": self.inputs * self.outputs,
            "constant_buffer_bytes": self.outputs * 4 if self.fresh else 0,
            "output_buffer_bytes": self.inputs * ACCUMULATOR_BYTES
            + self.outputs * ACCUMULATOR_BYTES * (1 if self.fresh else 2),
        }


@dataclass(frozen=True, kw_only=True)
class Decide(Instruction, opcode=0x26, unit=Unit.SFU):
    """Whether the next `exit` is taken: measure(logit[0..outputs-1]) >= threshold.

    `criterion` says what is measured, in 64-bit integers, functions and tables of isa/logarithms.py:
        lightsoftmax  M z - S, z the largest of the M logits and S their sum: no exponential (C-STEP)
        softmax       the largest probability, in 2^-15
        entropy       log2(M) less the entropy, in 2^-8 bits
    The last two take a logit x for 2^(-i / 16), i = min((z - x) * multiplier >> divisor, 255).
    Cycles: 8 + ceil(outputs / SFU multipliers), three times as long where there are exponentials.
    """

    logits: Annotated[int, reads(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    outputs: Annotated[int, Count(12, 2)]
    criterion: Annotated[int, Choice(2, Criterion)]
    multiplier: Annotated[int, Count(16)]
    divisor: Annotated[int, Count(6)]
    threshold: Annotated[int, Count(48)]

    def extents(self) -> dict[str, Strided]:
        return {"logits": Strided(self.outputs * ACCUMULATOR_BYTES)}

    def measure(self, logits: Sequence[int]) -> int:
        """What is compared with the threshold."""
        if self.criterion == Criterion.LIGHTSOFTMAX:
            return light_softmax(logits)
        measured = largest_probability if self.criterion == Criterion.SOFTMAX else certainty
        return measured(logits, self.multiplier, self.divisor)

    def cost(self, machine: Machine) -> Cost:
        passes = 1 if self.criterion == Criterion.LIGHTSOFTMAX else 3
        return Cost(SFU_FILL + passes * ceil_divide(self.outputs, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        """A compare and an addition a logit, and the last compare; with exponentials, twice two look-ups more."""
        each = 2 if self.criterion == Criterion.LIGHTSOFTMAX else 6
        return {
            "exit_decisions": each * self.outputs + 1,
            "output_buffer_bytes": self.outputs * ACCUMULATOR_BYTES,
        }


@dataclass(frozen=True, kw_only=True)
class SumHeads(Instruction, opcode=0x24, unit=Unit.SFU):
    """accumulator[step, token, h] = sum over the `width` channels c of head h of spike[step, token, c] (QKFormer).

    Cycles: 8 + ceil(steps * tokens * heads * width / SFU multipliers).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17)]
    accumulators: Annotated[int, writes(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(12, 1)]
    heads: Annotated[int, Count(9, 1)]
    width: Annotated[int, Count(10, 1)]
    pixel_stride: Annotated[int, Count(12, 2)]
    step_stride: Annotated[int, Count(18)]

    @property
    def added(self) -> int:
        return self.steps * self.tokens * self.heads * self.width

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.heads * self.width) * SPIKE_WORD_BYTES
        return {
            "spikes": Strided(run, (self.steps, self.tokens), (self.step_stride, self.pixel_stride)),
            "accumulators": Strided(self.steps * self.tokens * self.heads * ACCUMULATOR_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.added, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        row = words_of(self.heads * self.width) * SPIKE_WORD_BYTES
        return {
            "add": self.added,
            "spike_buffer_bytes": self.steps * self.tokens * row,
            "output_buffer_bytes": self.steps * self.tokens * self.heads * ACCUMULATOR_BYTES,
        }

    def check(self) -> None:
        if (self.spikes | self.pixel_stride | self.step_stride) % 2:
            raise CStepError("sumheads: spike addresses and strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class SumValues(Instruction, opcode=0x25, unit=Unit.SFU):
    """feature[c] += sum over steps and tokens of value[step, token, c], int16 to int32; `fresh` starts from zero.

    The values are a tile of a fixed-point stream, [step][token][channel]. `per_step`: feature[step, c].
    Cycles: 8 + ceil(steps * tokens * inputs / SFU multipliers).
    """

    values: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]
    features: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES, apart=("values",))]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]
    inputs: Annotated[int, Count(12, 1)]
    fresh: Annotated[int, Flag()]
    per_step: Annotated[int, Flag()]

    @property
    def features_made(self) -> int:
        return self.inputs * (self.steps if self.per_step else 1)

    def extents(self) -> dict[str, Strided]:
        return {
            "values": Strided(self.steps * self.tokens * self.inputs * STREAM_BYTES),
            "features": Strided(self.features_made * ACCUMULATOR_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.steps * self.tokens * self.inputs, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        added = self.steps * self.tokens * self.inputs
        features = self.features_made * ACCUMULATOR_BYTES * (1 if self.fresh else 2)
        return {"add": added, "output_buffer_bytes": added * STREAM_BYTES + features}
