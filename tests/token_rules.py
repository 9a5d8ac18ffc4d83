"""What a plain reference does with tokens: which of them stop in front of a block, and when they halt.

Scores are Python's own integers; nothing here knows the ops of compiler/ir/token_ops.py, nor the tables of
isa/scores.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, e, exp, isqrt, log2, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compiler.ir import spike
from compiler.ir.spike import SpikeOperation

Array = NDArray[np.float64]
TOKENWISE = (spike.IntegerLif, spike.IntegerLevel, spike.Rescale)
Sums = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Stop:
    """Only `keep` of the tokens of the residual named `entry` go through the ops whose labels begin with `parts`.

    Of those that do not, what neurons and rescales put out is 0, and membranes stay (TP-Spikformer). They are the ones
    with the smallest `score`, of equal ones the last, or those that `given` [T, N] leaves out.
    """

    entry: str
    parts: tuple[str, ...]
    rows: int
    columns: int
    keep: int
    score: str = "paper"
    kernel: int = 3
    scale: tuple[int, int] = (0, 0)
    """A change of 1, summed over channels, is multiplier / 2^divisor in exponents of 2^(1/1024)."""
    drop: int = 0
    given: Array | None = None

    def holds(self, op: SpikeOperation) -> bool:
        """Whether what an op puts out is 0 for tokens that are not kept."""
        if not isinstance(op, TOKENWISE) or not any(op.label.startswith(part) for part in self.parts):
            return False
        sizes = op.result_type.sizes
        return len(sizes) > 1 and prod(sizes[:-1]) == self.rows * self.columns

    def sums(self, x: Tensor, before: Tensor) -> list[Sums]:
        """A timestep's dot, own, other and change of each token; `before` is the timestep before it, or 0."""
        images = [_dropped(each, self.drop).reshape(self.rows, self.columns, -1) for each in (x, before)]
        now, reach = images[0], self.kernel // 2
        was = torch.zeros_like(now) if self.score == "magnitude" else images[1]
        padded = functional.pad(now, (0, 0, reach, reach, reach, reach))
        near = torch.zeros_like(now)
        for r in range(self.kernel):
            for c in range(self.kernel):
                near += padded[r : r + self.rows, c : c + self.columns]
        parts = [(now * near).sum(-1), (now * now).sum(-1), (near * near).sum(-1), (now - was).abs().sum(-1)]
        return _by_token(parts)

    def pooled_sums(self, steps: Sequence[Tensor]) -> list[Sums]:
        """Of spikes summed over all timesteps, the neighbourhood a 1 for each channel, as the published code has it."""
        x = torch.stack([_dropped(each, self.drop).reshape(self.rows * self.columns, -1) for each in steps])
        total, number = x.sum(0), x.sum(-1)
        change = number.diff(dim=0).abs().sum(0)
        other = torch.full_like(change, x.shape[-1])
        return _by_token([total.sum(-1), (total * total).sum(-1), other, change])

    def choose(self, sums: list[Sums]) -> Tensor:
        """[N]: 1 for the tokens that are kept."""
        scores = [0] * len(sums)
        if self.score not in ("temporal", "magnitude"):
            scores = _added(scores, [_unlike(dot, own, other) for dot, own, other, _ in sums])
        if self.score != "spatial":
            scores = _added(scores, [change * self.scale[0] >> self.scale[1] for *_, change in sums])
        order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
        kept = torch.zeros(len(scores), dtype=torch.float64)
        kept[order[: self.keep]] = 1
        return kept


ONE = 1 << 14
"""A halting score, total or weight of 1."""


@dataclass(frozen=True, eq=False)
class Halting:
    """Tokens go through blocks until their scores add up to 1 - epsilon (STAS, eq. 3 to 8).

    `exits` are the residuals behind the blocks; `stops` say what belongs to each block but the first. As many bits
    count as 32-bit sums hold: of a block's weights all but the last `drops`, of features `fraction` behind a spike's.
    """

    exits: tuple[str, ...]
    stops: tuple[Stop, ...]
    scales: tuple[tuple[int, int], ...]
    """Of each block: x is multiplier / 2^divisor sixteenths of alpha x."""
    beta: float
    epsilon: str
    output: str = "weighted"
    drops: tuple[int, ...] = ()
    fraction: int = 0

    @property
    def limit(self) -> int:
        return max(1, ceil((1 - Fraction(self.epsilon)) * ONE))

    def score(self, block: int, x: int) -> int:
        """sigmoid(alpha x + beta), for sums in sixteenths from -8 to 8."""
        multiplier, divisor = self.scales[block]
        sixteenths = (2 * x * multiplier + 2**divisor) // 2 ** (divisor + 1) + round(16 * self.beta)
        return round(ONE / (1 + exp(-min(max(sixteenths, -128), 127) / 16)))


@dataclass
class Halted:
    """What tokens have so far: `scores` [block][token] over timesteps, `totals` [block][token] of the timestep."""

    scores: list[list[int]]
    totals: list[list[int]]
    features: list[Tensor]

    @classmethod
    def none(cls, halting: Halting, tokens: int) -> Halted:
        blocks = len(halting.exits)
        scores, totals = ([[0] * tokens for _ in range(blocks)] for _ in range(2))
        return cls(scores, totals, [torch.zeros(1, dtype=torch.float64)] * blocks)

    def leave(self, halting: Halting, block: int, x: Tensor) -> Tensor:
        """Account for a block's output x [N, C] at a timestep; [N], 1 for tokens that go through the next one."""
        weights = [self._weight(halting, block, token, int(of[0])) for token, of in enumerate(x)]
        rounded = half_up(torch.tensor(weights, dtype=torch.float64), halting.drops[block])
        self.features[block] = self.features[block] + rounded @ x
        return torch.tensor([float(total < halting.limit) for total in self.totals[block]], dtype=torch.float64)

    def _weight(self, halting: Halting, block: int, token: int, x: int) -> int:
        """What a token counts behind a block; the total in front of it is this timestep's."""
        before = self.totals[block - 1][token] if block else 0
        is_kept, is_last = before < halting.limit, block == len(halting.exits) - 1
        score = halting.score(block, x) if is_kept else 0
        self.scores[block][token] = min(self.scores[block][token] + score, ONE)
        total = self.totals[block][token] = min(before + self.scores[block][token], ONE)
        if not is_kept or (halting.output == "mean" and not is_last):
            return 0
        if halting.output == "mean":
            return ONE
        return ONE - before if is_last or total >= halting.limit else score


def half_up(x: Tensor, bits: int) -> Tensor:
    """x / 2^bits, rounded half up."""
    return x * 2.0**-bits if bits <= 0 else torch.floor(x * 2.0**-bits + 0.5)


def _dropped(x: Tensor, bits: int) -> Tensor:
    return torch.floor(x / 2**bits)


def _by_token(parts: list[Tensor]) -> list[Sums]:
    rows = torch.stack(parts, -1).reshape(-1, 4).tolist()
    return [(int(dot), int(own), int(other), int(change)) for dot, own, other, change in rows]


def _unlike(dot: int, own: int, other: int) -> int:
    """1 - cosine, the cosine cut to 2^-15, in exponents of 2^(1/1024)."""
    more = 15 if own * other < 1 << 32 else 0
    length = isqrt(own * other << 2 * more)
    cosine = min((abs(dot) << 15 + more) // length, 1 << 15) if length else 0
    return ((1 << 15) - (cosine if dot >= 0 else -cosine)) * round(1024 * log2(e)) >> 15


def _added(scores: list[int], exponents: list[int]) -> list[int]:
    """Scores with the shares of a softmax, in 2^-30, whose powers of two are rounded to 2^-24."""
    below = [max(exponents) - each for each in exponents]
    powers = [round(2.0 ** (24 - each % 1024 / 1024)) >> each // 1024 for each in below]
    return [score + (power << 30) // sum(powers) for score, power in zip(scores, powers, strict=True)]
