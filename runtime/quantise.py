"""The integers that a program takes as input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.program import Program


def quantise_input(program: Program, x: NDArray[Any]) -> NDArray[np.int8]:
    """int8 [inputs, steps, height, width, channels] of float32 [inputs, (steps,) channels, height, width].

    An image's integers are clip(rint(x / scale), -127, 127) in float64, one step; events are counts, scale 1.
    Raises CStepError, in one line, for a wrong shape or type and for values that are not finite.
    """
    wanted = program.header.input
    array = np.asarray(x)
    if array.dtype != np.float32:
        raise CStepError(f"input: {array.dtype} values; the program takes float32")
    shape = (wanted.steps, *wanted.shape) if wanted.kind == "events" else wanted.shape
    given = array[:, 0] if wanted.kind == "image" and array.ndim == 5 and array.shape[1] == 1 else array
    if given.ndim != len(shape) + 1 or given.shape[1:] != shape:
        names = "steps, channels, height, width" if wanted.kind == "events" else "channels, height, width"
        sizes = " x ".join(map(str, shape))
        raise CStepError(f"input: shape {_text(array.shape)}; the program takes inputs x {sizes} ({names})")
    if not np.isfinite(array).all():
        raise CStepError("input: NaN or infinite values; all must be finite")
    integers = np.clip(np.rint(given.astype(np.float64) / wanted.scale), -127, 127).astype(np.int8)
    with_steps = integers.reshape(len(integers), wanted.steps, *wanted.shape)
    return np.ascontiguousarray(with_steps.transpose(0, 1, 3, 4, 2))


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of one number"
