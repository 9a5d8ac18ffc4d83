"""Tokens that halt when their scores add up (STAS): totals and weights, kept trains, and sums by these weights.

A halting state is [step][token][total | weight] int16 in the output buffer, a stream of two channels; 1 is 2^14.
"""

from __future__ import annotations

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
from isa.machine import Machine
from isa.scores import WEIGHT_BITS
from isa.word import Choice, Cost, Count, Flag, Gives, Instruction, Region, Strided, Unit, reads, updates, writes

STATE_BYTES = 2 * STREAM_BYTES
"""A token's total and weight."""
BIAS_ZERO = 1 << 15
"""The field of a bias of 0: biases are signed."""
HALT_LOOKS = 8
"""Operations of a token's halting: a product, a look-up, three additions, two compares, a subtraction."""


@dataclass(frozen=True, kw_only=True)
class Halt(Instruction):
    """Base of what adds up halting scores; x is channel 0 of a block's output."""

    before: Annotated[int, reads(Region.OUTPUT, 18, only_if="follows", align=STREAM_BYTES)]
    sums: Annotated[int, updates(Region.OUTPUT, 18, unless="start", align=STREAM_BYTES, apart=("before",))]
    state: Annotated[int, writes(Region.OUTPUT, 18, align=STREAM_BYTES, apart=("sums",), in_place=("before",))]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]
    multiplier: Annotated[int, Count(16)]
    negative: Annotated[int, Flag()]
    divisor: Annotated[int, Count(6)]
    bias: Annotated[int, Count(16)]
    limit: Annotated[int, Count(15, 1)]
    gives: Annotated[int, Choice(2, Gives)]
    follows: Annotated[int, Flag()]
    start: Annotated[int, Flag()]

    @property
    def values(self) -> int:
        return self.steps * self.tokens

    def states(self) -> dict[str, Strided]:
        """What all kinds touch beside x."""
        state = Strided(self.values * STATE_BYTES)
        return {"before": state, "sums": Strided(self.tokens * STREAM_BYTES), "state": state}

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.values * HALT_LOOKS, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        states = self.values * STATE_BYTES * (2 if self.follows else 1)
        sums = self.tokens * STREAM_BYTES * (1 if self.start else 2)
        return {"token_scores": self.values * HALT_LOOKS, "output_buffer_bytes": states + sums}

    def check(self) -> None:
        if self.limit > 1 << WEIGHT_BITS:
            raise CStepError(f"{self.mnemonic}: limit={self.limit}; totals stop at {1 << WEIGHT_BITS}")


@dataclass(frozen=True, kw_only=True)
class HaltSpikes(Halt, opcode=0x2B, unit=Unit.SFU):
    """Halting totals and weights of tokens behind a block, from channel 0 of its spikes or counts.

    For each step and token, H the total before the block (0 unless it `follows`), kept where H < limit:
        h = sigmoid[clamp((x * multiplier + half >> divisor) + bias - 2^15, 0, 255)] where kept, else 0
        A = min(A + h, 2^14), A the token's entry of `sums`, which begin at 0 with `start`
        total = min(H + A, 2^14)
        weight = score: 2^14 - H where total >= limit, else h; rest: 2^14 - H; whole: 2^14. 0 where not kept
    half = 1 << divisor >> 1; `negative` takes -multiplier. The table is that of isa/scores.py.
    x is [plane][step][token], one spike word each.
    Cycles: 8 + ceil(steps * tokens * 8 / SFU multipliers).
    """

    values_at: Annotated[int, reads(Region.SPIKE, 17, align=SPIKE_WORD_BYTES)]
    planes: Annotated[int, Count(3, 1)]

    def extents(self) -> dict[str, Strided]:
        return self.states() | {"values_at": Strided(self.planes * self.values * SPIKE_WORD_BYTES)}

    def counts(self) -> dict[str, int]:
        return super().counts() | {"spike_buffer_bytes": self.planes * self.values * SPIKE_WORD_BYTES}


@dataclass(frozen=True, kw_only=True)
class HaltValues(Halt, opcode=0x2C, unit=Unit.SFU):
    """As `haltspikes`, x int16 [step][token] of a fixed-point stream in the output buffer.

    Cycles: as `haltspikes`.
    """

    sums: Annotated[int, updates(Region.OUTPUT, 18, unless="start", align=STREAM_BYTES, apart=("before", "values_at"))]
    state: Annotated[
        int, writes(Region.OUTPUT, 18, align=STREAM_BYTES, apart=("sums", "values_at"), in_place=("before",))
    ]
    values_at: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]

    def extents(self) -> dict[str, Strided]:
        return self.states() | {"values_at": Strided(self.values * STREAM_BYTES)}

    def counts(self) -> dict[str, int]:
        counted = super().counts()
        return counted | {"output_buffer_bytes": counted["output_buffer_bytes"] + self.values * STREAM_BYTES}


@dataclass(frozen=True, kw_only=True)
class KeepBelow(Instruction, opcode=0x2D, unit=Unit.SFU):
    """kept[step, token] = 1 where the total of the halting state is below `limit`, else 0.

    Cycles: 8 + ceil(steps * tokens / SFU multipliers).
    """

    state: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]
    kept: Annotated[int, writes(Region.SPIKE, 17, align=SPIKE_WORD_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]
    limit: Annotated[int, Count(15, 1)]

    def extents(self) -> dict[str, Strided]:
        values = self.steps * self.tokens
        return {"state": Strided(values * STATE_BYTES), "kept": Strided(values * SPIKE_WORD_BYTES)}

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.steps * self.tokens, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        values = self.steps * self.tokens
        return {
            "token_scores": values,
            "output_buffer_bytes": values * STATE_BYTES,
            "spike_buffer_bytes": values * SPIKE_WORD_BYTES,
        }

    def check(self) -> None:
        if self.limit > 1 << WEIGHT_BITS:
            raise CStepError(f"keepbelow: limit={self.limit}; totals stop at {1 << WEIGHT_BITS}")


@dataclass(frozen=True, kw_only=True)
class Weigh(Instruction):
    """Base of the sums by halting weights."""

    features: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES, apart=("state",))]
    state: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]
    inputs: Annotated[int, Count(12, 1)]
    drop: Annotated[int, Count(4)]
    fresh: Annotated[int, Flag()]

    @property
    def multiplications(self) -> int:
        return self.steps * self.tokens * self.inputs

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.multiplications, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        features = self.inputs * ACCUMULATOR_BYTES * (1 if self.fresh else 2)
        return {
            "mac": self.multiplications,
            "output_buffer_bytes": self.steps * self.tokens * STATE_BYTES + features,
        }

    def check(self) -> None:
        if self.drop > WEIGHT_BITS:
            raise CStepError(f"{self.mnemonic}: drop={self.drop}; weights have {WEIGHT_BITS} bits")


@dataclass(frozen=True, kw_only=True)
class WeighSpikes(Weigh, opcode=0x2E, unit=Unit.SFU):
    """feature[c] += sum over steps and tokens of w * spike[step, token, c] << plane, int32; `fresh` starts from zero.

    w is the token's weight of the halting state, rounded half up to a multiple of 2^drop and shifted right by `drop`.
    Cycles: 8 + ceil(steps * tokens * inputs / SFU multipliers).
    """

    spikes: Annotated[int, reads(Region.SPIKE, 17, align=SPIKE_WORD_BYTES)]
    plane: Annotated[int, Count(3)]

    def extents(self) -> dict[str, Strided]:
        run = words_of(self.inputs) * SPIKE_WORD_BYTES
        return {
            "features": Strided(self.inputs * ACCUMULATOR_BYTES),
            "state": Strided(self.steps * self.tokens * STATE_BYTES),
            "spikes": Strided(self.steps * self.tokens * run),
        }

    def counts(self) -> dict[str, int]:
        row = words_of(self.inputs) * SPIKE_WORD_BYTES
        return super().counts() | {"spike_buffer_bytes": self.steps * self.tokens * row}


@dataclass(frozen=True, kw_only=True)
class WeighValues(Weigh, opcode=0x2F, unit=Unit.SFU):
    """As `weighspikes`, of a tile of a stream: int16 [step][token][channel] in the output buffer.

    Cycles: as `weighspikes`.
    """

    features: Annotated[
        int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES, apart=("state", "values"))
    ]
    values: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]

    def extents(self) -> dict[str, Strided]:
        return {
            "features": Strided(self.inputs * ACCUMULATOR_BYTES),
            "state": Strided(self.steps * self.tokens * STATE_BYTES),
            "values": Strided(self.multiplications * STREAM_BYTES),
        }

    def counts(self) -> dict[str, int]:
        counted = super().counts()
        return counted | {"output_buffer_bytes": counted["output_buffer_bytes"] + self.multiplications * STREAM_BYTES}
