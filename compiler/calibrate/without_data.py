"""What is known of a model's inputs without any data: how large normalised pixels are, and what inputs look like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError

LARGEST = 127
"""Of the integers that an image is made of."""
WHITE = 255
EVENTS_A_PIXEL = 0.25
"""Mean count of drawn events, a pixel, polarity and timestep."""


def pixel_scale(mean: Sequence[float], std: Sequence[float]) -> float:
    """Real value of the image's integer 1: the most that |(p - mean) / std| can be for a pixel p of 0..1, / 127.

    Raises CStepError where mean and std are for different numbers of channels, or a std is not positive.
    """
    if not mean or len(mean) != len(std) or min(std) <= 0:
        raise CStepError(f"mean {list(mean)}, std {list(std)}: they must be for the same channels, and std positive")
    return max(max(abs(m), abs(1 - m)) / s for m, s in zip(mean, std, strict=True)) / LARGEST


def drawn_inputs(
    count: int, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> NDArray[np.float32]:
    """Random inputs [count, C, H, W] of 8-bit pixels, normalised; or event counts [count, T, C, H, W].

    They are the same for the same seed. To compare exact computations they do as well as real ones.
    """
    generator = np.random.default_rng(seed)
    if len(shape) == 4:
        return generator.poisson(EVENTS_A_PIXEL, (count, *shape)).astype(np.float32)
    pixels = generator.integers(0, WHITE + 1, (count, *shape)).astype(np.float32) / np.float32(WHITE)
    means, stds = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return (pixels - means) / stds
