"""Footprints: which bytes hold something, followed exactly through strides, and what an instruction overwrites."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.word import Address, Instruction, Strided


def simplified(shape: Strided) -> Strided:
    """The same bytes in as few loops as possible, strides ascending: runs that touch or overlap become one."""
    run = shape.run
    loops: list[tuple[int, int]] = []
    for stride, count in sorted(zip(shape.strides, shape.counts, strict=True)):
        if stride == 0 or count == 1:
            continue
        if not loops and stride <= run:
            run += (count - 1) * stride
        elif loops and stride % loops[-1][0] == 0 and stride // loops[-1][0] <= loops[-1][1]:
            inner, inner_count = loops[-1]
            loops[-1] = (inner, inner_count + (count - 1) * (stride // inner))
        else:
            loops.append((stride, count))
    return Strided(run, tuple(count for _, count in loops), tuple(stride for stride, _ in loops))


def overlaps_itself(shape: Strided) -> bool:
    """Whether runs of a footprint can meet, so that what is written depends on the order of the runs."""
    extent = shape.run
    for stride, count in sorted(zip(shape.strides, shape.counts, strict=True)):
        if count > 1:
            if stride < extent:
                return True
            extent += (count - 1) * stride
    return False


def overwritten(instruction: Instruction) -> str | None:
    """Which operand an instruction overwrites before it has read all of it, as one phrase, or None."""
    places = {access.field: access for access in instruction.accesses()}
    for name, spec in instruction.layout:
        if not isinstance(spec, Address) or name not in places:
            continue
        mine = places[name]
        for other in (places[operand] for operand in (*spec.apart, *spec.in_place) if operand in places):
            same = other.field in spec.in_place and mine.start == other.start
            if mine.start < other.stop and other.start < mine.stop and not same:
                starts = f", or start at {other.start}" if other.field in spec.in_place else ""
                return (
                    f"writes {name} {mine.start}..{mine.stop - 1} over {other.field} {other.start}..{other.stop - 1}; "
                    f"it must lie apart{starts}"
                )
    return None


class Written:
    """A bool for each byte of one region: whether it holds something."""

    def __init__(self, size: int) -> None:
        self.bytes: NDArray[np.bool_] = np.zeros(size, np.bool_)

    def _view(self, start: int, shape: Strided) -> NDArray[np.bool_]:
        if not shape.counts:
            return self.bytes[start : start + shape.run]
        return np.ndarray(
            (*shape.counts, shape.run), np.bool_, buffer=self.bytes, offset=start, strides=(*shape.strides, 1)
        )

    def set(self, start: int, shape: Strided, value: bool = True) -> None:
        """Marks a simplified footprint."""
        self._view(start, shape)[...] = value

    def missing(self, start: int, shape: Strided) -> tuple[int, int] | None:
        """First and last byte of the first stretch of a simplified footprint that holds nothing, or None."""
        view = self._view(start, shape)
        if view.all():
            return None
        where = np.unravel_index(int(np.argmin(view)), view.shape)
        first = start + sum(int(i) * stride for i, stride in zip(where, (*shape.strides, 1), strict=True))
        held = np.flatnonzero(self.bytes[first : start + shape.span])
        return first, (first + int(held[0]) if len(held) else start + shape.span) - 1
