"""Tokens that are left out: which ones the units skip, and how they are chosen (TP-Spikformer).

A kept train says it, [step][token] one spike word of one channel each: bit 0 is 1 for a token that is kept. It lies in
DRAM as any other train. A unit latches a tile of it; those of its instructions that are flagged `kept` then work on
these tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    ACCUMULATOR_BYTES,
    SFU_FILL,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    STREAM_BYTES,
    ceil_divide,
    words_of,
)
from isa.machine import Machine
from isa.scores import PARTS
from isa.word import Cost, Count, Flag, Instruction, Region, Strided, Unit, reads, updates, writes

PART_BYTES = PARTS * ACCUMULATOR_BYTES
"""Bytes of a token's sums."""
SELECT_PASSES = 32
"""Passes of `KeepTop` over the scores: one a bit of the threshold that just `keep` of them reach."""
SCORE_LOOKS = 8
"""Operations of a token's score: a root, two divisions, two look-ups, three additions."""


@dataclass(frozen=True, kw_only=True)
class Keep(Instruction):
    """Base of what latches kept tokens into a unit."""

    kept: Annotated[int, reads(Region.SPIKE, 17, align=SPIKE_WORD_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]

    def extents(self) -> dict[str, Strided]:
        return {"kept": Strided(self.steps * self.tokens * SPIKE_WORD_BYTES)}

    def cost(self, machine: Machine) -> Cost:
        return Cost(1 + ceil_divide(self.steps * self.tokens, SPIKES_PER_WORD))

    def counts(self) -> dict[str, int]:
        return {"spike_buffer_bytes": self.steps * self.tokens * SPIKE_WORD_BYTES}


@dataclass(frozen=True, kw_only=True)
class KeepRows(Keep, opcode=0x13, unit=Unit.PE):
    """The PE unit latches which of `tokens` pixels are kept at each of `steps` steps, for `accumulate` with `kept`.

    Cycles: 1 + ceil(steps * tokens / 16).
    """


@dataclass(frozen=True, kw_only=True)
class KeepNeurons(Keep, opcode=0x39, unit=Unit.NEURON):
    """The neuron unit latches which of `tokens` pixels are kept, for `fire` and `rescale` with `kept`.

    Cycles: 1 + ceil(steps * tokens / 16).
    """


@dataclass(frozen=True, kw_only=True)
class KeepTokens(Keep, opcode=0x27, unit=Unit.SFU):
    """The SFU latches which of `tokens` tokens are kept, for `attend` with `kept`.

    Cycles: 1 + ceil(steps * tokens / 16).
    """


@dataclass(frozen=True, kw_only=True)
class Score(Instruction):
    """Base of the sums that a token's score is made of; the values of a pixel are `inputs` channels."""

    sums: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    rows: Annotated[int, Count(10, 1)]
    columns: Annotated[int, Count(12, 1)]
    input_rows: Annotated[int, Count(10, 1)]
    top: Annotated[int, Count(3)]
    kernel: Annotated[int, Count(3, 1)]
    inputs: Annotated[int, Count(12, 1)]
    step_stride: Annotated[int, Count(18)]
    drop: Annotated[int, Count(4)]
    pooled: Annotated[int, Flag()]
    fresh: Annotated[int, Flag()]

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def operations(self) -> int:
        """Of a token and channel: the window's sum, three products, and what changed; pooled, no window."""
        each = 3 + self.steps if self.pooled else self.kernel * self.kernel + 4
        return self.tokens * self.inputs * each

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.operations, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        sums = self.tokens * PART_BYTES * (1 if self.fresh else 2)
        return {"token_scores": self.operations, "output_buffer_bytes": sums}

    def check(self) -> None:
        if self.kernel % 2 == 0:
            raise CStepError(f"{self.mnemonic}: kernel={self.kernel}; a neighbourhood has an odd side")
        if not self.pooled and self.steps > 2:
            raise CStepError(f"{self.mnemonic}: steps={self.steps}; a timestep and the one before it are 2 at most")
        if self.top + self.rows > self.input_rows:
            raise CStepError(
                f"{self.mnemonic}: rows={self.rows} below top={self.top} pass input_rows={self.input_rows}"
            )


@dataclass(frozen=True, kw_only=True)
class ScoreSpikes(Score, opcode=0x28, unit=Unit.SFU):
    """sums[token, dot | own | other | change] += the sums over channels that a token's score is made of, int32.

    With x the spike or count of token (r, c) at the last of `steps` steps, p the one at the step before it (0 where
    `steps` is 1), and n the sum of x over the kernel x kernel window around the token, zero outside the image:
        dot x n        own x x        other n n        change |x - p|
    The tile holds `input_rows` rows of `columns` tokens; token row r is input row top + r. `fresh` starts from zero.
    `pooled` (the published code): with s the sum of x over all steps
        dot s          own s s        other 1          change |x - p| of the sums over channels, added up over steps
    Values are shifted right by `drop` first. [plane][step][pixel][word] in the spike buffer.
    Cycles: 8 + ceil(operations / SFU multipliers), operations a token and channel kernel^2 + 4; pooled 3 + steps.
    """

    values: Annotated[int, reads(Region.SPIKE, 17, align=SPIKE_WORD_BYTES)]
    planes: Annotated[int, Count(3, 1)]
    plane_stride: Annotated[int, Count(17)]

    def extents(self) -> dict[str, Strided]:
        run = self.input_rows * self.columns * words_of(self.inputs) * SPIKE_WORD_BYTES
        values = Strided(run, (self.planes, self.steps), (self.plane_stride, self.step_stride))
        return {"sums": Strided(self.tokens * PART_BYTES), "values": values}

    def counts(self) -> dict[str, int]:
        row = words_of(self.inputs) * SPIKE_WORD_BYTES
        return super().counts() | {
            "spike_buffer_bytes": self.planes * self.steps * self.input_rows * self.columns * row
        }

    def check(self) -> None:
        super().check()
        if (self.plane_stride | self.step_stride) % 2:
            raise CStepError("scorespikes: strides must be multiples of 2 bytes")


@dataclass(frozen=True, kw_only=True)
class ScoreValues(Score, opcode=0x29, unit=Unit.SFU):
    """As `scorespikes`, of a tile of a fixed-point stream: int16 [step][pixel][channel] in the output buffer.

    Cycles: as `scorespikes`.
    """

    sums: Annotated[int, updates(Region.OUTPUT, 18, unless="fresh", align=ACCUMULATOR_BYTES, apart=("values",))]
    values: Annotated[int, reads(Region.OUTPUT, 18, align=STREAM_BYTES)]

    def extents(self) -> dict[str, Strided]:
        run = self.input_rows * self.columns * self.inputs * STREAM_BYTES
        return {"sums": Strided(self.tokens * PART_BYTES), "values": Strided(run, (self.steps,), (self.step_stride,))}

    def counts(self) -> dict[str, int]:
        counted = super().counts()
        values = self.steps * self.input_rows * self.columns * self.inputs * STREAM_BYTES
        return counted | {"output_buffer_bytes": counted["output_buffer_bytes"] + values}

    def check(self) -> None:
        super().check()
        if self.step_stride % STREAM_BYTES:
            raise CStepError(f"scorevalues: step_stride={self.step_stride} must be a multiple of {STREAM_BYTES}")


@dataclass(frozen=True, kw_only=True)
class KeepTop(Instruction, opcode=0x2A, unit=Unit.SFU):
    """kept[step, token] = 1 for the `keep` tokens with the largest scores, of equal ones the first; else 0.

    score = spatial share + temporal share, whichever of the two flags are set; functions and tables of isa/scores.py:
        spatial   softmax over the tokens of 1 - cosine, the cosine dot / sqrt(own * other) in 2^-15
        temporal  softmax over the tokens of |change|, the exponent of two change * multiplier >> divisor in 2^-10
    Sums are those of one step (see `scorespikes`); the kept train gets `steps` equal steps.
    Cycles: 8 + ceil(tokens * (32 + 8) / SFU multipliers): a pass a bit of the threshold, and 8 operations a score.
    """

    sums: Annotated[int, reads(Region.OUTPUT, 18, align=ACCUMULATOR_BYTES)]
    kept: Annotated[int, writes(Region.SPIKE, 17, align=SPIKE_WORD_BYTES)]
    steps: Annotated[int, Count(4, 1)]
    tokens: Annotated[int, Count(14, 1)]
    keep: Annotated[int, Count(14)]
    spatial: Annotated[int, Flag()]
    temporal: Annotated[int, Flag()]
    multiplier: Annotated[int, Count(16)]
    divisor: Annotated[int, Count(6)]

    @property
    def operations(self) -> int:
        return self.tokens * (SELECT_PASSES + SCORE_LOOKS)

    def extents(self) -> dict[str, Strided]:
        return {
            "sums": Strided(self.tokens * PART_BYTES),
            "kept": Strided(self.steps * self.tokens * SPIKE_WORD_BYTES),
        }

    def cost(self, machine: Machine) -> Cost:
        return Cost(SFU_FILL + ceil_divide(self.operations, machine.sfu_multipliers))

    def counts(self) -> dict[str, int]:
        return {
            "token_scores": self.operations,
            "output_buffer_bytes": self.tokens * PART_BYTES,
            "spike_buffer_bytes": self.steps * self.tokens * SPIKE_WORD_BYTES,
        }

    def check(self) -> None:
        if self.keep > self.tokens:
            raise CStepError(f"keeptop: keep={self.keep} of tokens={self.tokens}; no more can be kept")
