"""Compiling without calibration data: how large normalised pixels can be, and inputs drawn at random to compare on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError

LARGEST = 127
"""Of the integers that an image is made of."""
WHITE = 255
EVENTS_A_PIXEL = 0.25
"""Mean count of drawn events, a pixel, polarity and timestep."""


@dataclass(frozen=True)
class MadeInputs:
    """What stands in for calibration data: the range that pixels cannot leave, and random inputs to compare on."""

    image_scale: float
    """Real value of the image's integer 1; 1 for event counts."""
    inputs: NDArray[np.float32]
    """[count, C, H, W], or event counts [count, T, C, H, W]."""
    about: str
    """As the provenance says it."""

    @staticmethod
    def of(shape: Sequence[int], mean: Sequence[float], std: Sequence[float], count: int) -> MadeInputs:
        """For inputs of `shape` [C, H, W] or [T, C, H, W]. Raises CStepError where nothing tells an image's range."""
        if len(shape) == 4:
            return MadeInputs(1.0, drawn_inputs(count, shape), "none: event counts have no range to find")
        if not mean or not std:
            raise CStepError("calibration: none given; give 8 inputs or more, or the mean and std of 8-bit pixels")
        if not len(mean) == len(std) == shape[0]:
            raise CStepError(f"mean {list(mean)}, std {list(std)}: the model takes {shape[0]} channels")
        return MadeInputs(
            pixel_scale(mean, std), drawn_inputs(count, shape, mean, std), "none: the range of normalised 8-bit pixels"
        )


def pixel_scale(mean: Sequence[float], std: Sequence[float]) -> float:
    """Real value of the image's integer 1: the most that |(p - mean) / std| can be for a pixel p of 0..1, / 127.

    Raises CStepError for a std that is not positive.
    """
    if min(std) <= 0:
        raise CStepError(f"std {list(std)}: must be positive in every channel")
    return max(max(abs(m), abs(1 - m)) / s for m, s in zip(mean, std, strict=True)) / LARGEST


def drawn_inputs(
    count: int, shape: Sequence[int], mean: Sequence[float] = (), std: Sequence[float] = (), seed: int = 0
) -> NDArray[np.float32]:
    """Random 8-bit pixels [count, C, H, W], normalised; or event counts [count, T, C, H, W]. The same for a seed."""
    generator = np.random.default_rng(seed)
    if len(shape) == 4:
        return generator.poisson(EVENTS_A_PIXEL, (count, *shape)).astype(np.float32)
    pixels = generator.integers(0, WHITE + 1, (count, *shape)).astype(np.float32) / np.float32(WHITE)
    means, stds = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return (pixels - means) / stds
