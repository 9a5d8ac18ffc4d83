"""Scores of tokens in integers: cosines, shares of a softmax with powers of two from a table, and the K largest.

The table and its roundings are part of the instruction set (see `KeepTop`), so compiler and emulator agree to the bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

COSINE_BITS = 15
"""A cosine of 1 is 2^15."""
ROOT_BITS = 32
"""Products below 2^32 are shifted left by 30 before their root is taken."""
EXPONENT_BITS = 10
"""Exponents of two come in steps of 2^-10."""
POWER_BITS = 24
SHARE_BITS = 30
"""All tokens' shares add up to at most 2^30."""
E_TO_TWO = round((1 << EXPONENT_BITS) * 1.4426950408889634)
"""log2(e) in steps of an exponent: exp(x) is 2^(x * log2(e))."""
POWERS: Integers = np.array(
    [round((1 << POWER_BITS) * 2.0 ** (-step / (1 << EXPONENT_BITS))) for step in range(1 << EXPONENT_BITS)], np.int64
)
"""2^(-i / 1024), in 2^-24."""
PARTS = 4
"""Sums that a score is made of: dot, own, other, change."""


def cosines(dot: Integers, own: Integers, other: Integers) -> Integers:
    """floor(|dot| * 2^15 / sqrt(own * other)) with the sign of dot, at most 2^15; 0 where own * other < 1.

    The root is cut to 2^-15 where the product is below 2^32, else to whole numbers: 16 bits and more of it count.
    """
    product = np.maximum(own * other, 0)
    more = np.where(product < 1 << ROOT_BITS, ROOT_BITS // 2 - 1, 0).astype(np.int64)
    length = roots(product << 2 * more)
    found = np.minimum((np.abs(dot) << COSINE_BITS + more) // np.maximum(length, 1), 1 << COSINE_BITS)
    return np.where(length > 0, np.sign(dot) * found, 0)


def roots(values: Integers) -> Integers:
    """The whole part of the square root of integers 0..2^62."""
    found = np.sqrt(values.astype(np.float64)).astype(np.int64)
    found -= found * found > values
    return found + ((found + 1) * (found + 1) <= values)


def shares(exponents: Integers) -> Integers:
    """Softmax over the last axis, in 2^-30, of exponents of two in 2^-10."""
    below = exponents.max(axis=-1, keepdims=True) - exponents
    powers = POWERS[below & ((1 << EXPONENT_BITS) - 1)] >> np.minimum(below >> EXPONENT_BITS, 63)
    return (powers << SHARE_BITS) // powers.sum(axis=-1, keepdims=True)


def token_scores(sums: NDArray[np.integer], spatial: bool, temporal: bool, multiplier: int, divisor: int) -> Integers:
    """[..., tokens] of sums [..., tokens, 4]: 1 - cosine, and |change| * multiplier >> divisor, each as shares."""
    dot, own, other, change = np.moveaxis(sums.astype(np.int64), -1, 0)
    total = np.zeros(dot.shape, np.int64)
    if spatial:
        total += shares((((1 << COSINE_BITS) - cosines(dot, own, other)) * E_TO_TWO) >> COSINE_BITS)
    if temporal:
        total += shares((np.abs(change) * multiplier) >> divisor)
    return total


def largest(scores: Integers, keep: int) -> NDArray[np.uint8]:
    """[..., tokens]: 1 for the `keep` tokens with the largest scores; of equal ones, for those that come first."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    kept = np.zeros(scores.shape, np.uint8)
    np.put_along_axis(kept, order[..., :keep], 1, axis=-1)
    return kept


WEIGHT_BITS = 14
"""A halting score or weight of 1 is 2^14."""
SIGMOID: Integers = np.array(
    [round((1 << WEIGHT_BITS) / (1 + np.exp(-(step - 128) / 16))) for step in range(256)], np.int64
)
"""The logistic function at -8, -7 15/16, ..., 7 15/16, in 2^-14."""
