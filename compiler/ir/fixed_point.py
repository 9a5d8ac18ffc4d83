"""Scales, shifts and bounds of the integer model: which unit a layer's membrane has, and what its sums can reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
Integer = NDArray[np.int64]

WEIGHT_LIMIT = 127
ORACLE_LIMIT = 1 << 24
"""Currents stay below this, so that float32 carries them exactly (the ONNX oracle)."""
THRESHOLD_LIMIT = 1 << 13
"""Thresholds stay below this: the int16 membrane then reaches down to -4 thresholds before it clamps."""
DIVISOR = 15
"""Decay by other than a power of two is a multiplication by round(2^15 / tau) and a shift by 15."""
FRACTIONS = range(8, -9, -1)
"""Fraction bits f that a layer's membrane may have; below 0, its unit is coarser than the accumulator's."""
MEMBRANE_FRACTIONS = range(8, -16, -1)
"""As FRACTIONS, for currents that come as integers of one scale: attention, sums, streams."""
MULTIPLIER_BITS = 16
"""Bits of the greatest multiplier that brings a channel's sums into a stream's unit."""
MOST_DIVISOR = 47
"""The greatest shift behind such a multiplication: half of 2^47 added to 24 + 16 bits stays far below 2^53."""
COARSE_SHARE = 0.1
"""Share of a layer's channels that may take a coarser weight scale for the sake of a finer membrane."""


def decay(tau: float) -> tuple[int, int]:
    """1 / tau as multiplier / 2^divisor: exact for powers of two."""
    power = int(tau).bit_length() - 1
    return (1, power) if tau == 1 << power else (round((1 << DIVISOR) / tau), DIVISOR)


def shifted(x: Integer, shift: int) -> Integer:
    """x << shift, or x >> -shift rounded half up."""
    return x << shift if shift >= 0 else (x + (1 << -shift >> 1)) >> -shift


def weight_scales(
    weight: Real, mode: str, threshold: float, inputs: tuple[int, int], bias: Real | None
) -> tuple[Real, int]:
    """Per channel max|w| / 127 (or one for all), and the layer's fraction bits.

    `threshold` is in units of the input's scale. See `Quantise` for the rule.
    """
    rows = weight.reshape(len(weight), -1)
    scale = largest_scales(weight, mode)
    most = np.abs(rows).sum(axis=1) * max(abs(bound) for bound in inputs) + (0 if bias is None else np.abs(bias))
    coarse, shift = scale, 0
    for shift in FRACTIONS:
        least = threshold * 2.0**shift / (THRESHOLD_LIMIT - 1)
        coarse = np.maximum(scale, least)
        if np.mean(scale < least) <= COARSE_SHARE and (most / coarse * 2.0**shift).max() < ORACLE_LIMIT // 2:
            break
    return coarse, shift


def largest_scales(weight: Real, mode: str) -> Real:
    """Per channel max|w| / 127, or one for all; 0 where a channel's weights are all 0."""
    magnitude = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    if mode == "per-tensor":
        magnitude = np.full_like(magnitude, magnitude.max())
    return magnitude / WEIGHT_LIMIT


def multipliers(ratios: Real) -> tuple[Integer, int]:
    """Factors as multiplier / 2^divisor, with the greatest multiplier of 16 bits where the divisor allows."""
    limit = (1 << MULTIPLIER_BITS) - 1
    most = max(float(ratios.max()), 2.0**-MOST_DIVISOR)
    divisor = int(np.clip(np.floor(np.log2(limit / most)), 0, MOST_DIVISOR))
    return np.minimum(np.rint(ratios * 2.0**divisor), (1 << 31) - 1).astype(np.int64), divisor


def by_channel(scale: Real, weight: Real) -> Real:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def product_bounds(weight: Integer, inputs: tuple[int, int]) -> tuple[Integer, Integer]:
    """Least and greatest sum per channel, over every order of accumulation."""
    rows = weight.reshape(len(weight), -1)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    low, high = inputs
    return positive * min(low, 0) + negative * high, positive * high + negative * min(low, 0)
