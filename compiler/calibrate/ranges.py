"""The scale of the input image, from calibration images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError

LEAST_IMAGES = 8


def image_scale(images: NDArray[np.float32]) -> float:
    """Real value of the image's integer 1: max |x| / 127 over images [B, ...] as the model takes them.

    Raises CStepError for too few images, values that are not finite, and images that are all zero.
    """
    if len(images) < LEAST_IMAGES:
        plural = "" if len(images) == 1 else "s"
        raise CStepError(f"calibration: {len(images)} image{plural}; at least {LEAST_IMAGES} are needed for a range")
    if not np.isfinite(images).all():
        raise CStepError("calibration: the images hold NaN or infinite values")
    most = float(np.abs(images).max())
    if most == 0:
        raise CStepError("calibration: every pixel is 0; there is no range to quantise")
    return most / 127
