"""Powers and logarithms to the base of 2 in integers: what an exit's `softmax` and `entropy` are made of.

The tables are part of the instruction set (`Decide`): every implementation has these very integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

POWER_STEPS = 16
"""Steps of the exponent: entry i of POWERS is 2^(-i / 16)."""
POWER_BITS = 15
POWERS: tuple[int, ...] = (*(round(2.0 ** (POWER_BITS - i / POWER_STEPS)) for i in range(255)), 0)
"""round(2^15 * 2^(-i / 16)), i = 0..254; entry 255 stands for all that is farther away, and is 0."""
LOG_BITS = 8
LOGARITHMS: tuple[int, ...] = tuple(round(log2(1 + i / 256) * 256) for i in range(256))
"""round(256 * log2(1 + i / 256)), i = 0..255: a logarithm's fraction from the eight bits behind the leading one."""


def logarithm(value: int) -> int:
    """About 256 * log2(value), value >= 1: the place of the leading bit, and the table for the eight bits behind it."""
    place = value.bit_length() - 1
    behind = (value << LOG_BITS >> place) & 255 if place < LOG_BITS else (value >> place - LOG_BITS) & 255
    return (place << LOG_BITS) + LOGARITHMS[behind]


def exponents(logits: Sequence[int], multiplier: int, divisor: int) -> list[int]:
    """How many steps of 2^(-1/16) each logit lies below the largest: min(((z - x) * multiplier) >> divisor, 255)."""
    largest = max(logits)
    return [min((largest - x) * multiplier >> divisor, 255) for x in logits]


def light_softmax(logits: Sequence[int]) -> int:
    """M z - S: how far the largest logit z lies above the mean of all M, times M (C-STEP eq. 3-5, without the exp)."""
    return len(logits) * max(logits) - sum(logits)


def largest_probability(logits: Sequence[int], multiplier: int, divisor: int) -> int:
    """The largest softmax probability, in units of 2^-15, rounded down (C-STEP eq. 1, SEENN-I)."""
    total = sum(POWERS[i] for i in exponents(logits, multiplier, divisor))
    return (1 << 2 * POWER_BITS) // total


def certainty(logits: Sequence[int], multiplier: int, divisor: int) -> int:
    """log2(M) less the entropy of the softmax, in 2^-8 bits, at least 0 (DT-SNN: 1 - E, times log2 M)."""
    steps = exponents(logits, multiplier, divisor)
    powers = [POWERS[i] for i in steps]
    total = sum(powers)
    weighted = sum(power * step for power, step in zip(powers, steps, strict=True))
    entropy = logarithm(total) - (POWER_BITS << LOG_BITS) + (weighted << LOG_BITS) // (POWER_STEPS * total)
    return max(logarithm(len(logits)) - entropy, 0)
