"""When stages run: the timesteps of a network in segments, a stage's part of each in calls, a call in windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from compiler.backend.timing import Timing

Span = tuple[int, int]
"""First and count."""


@dataclass(frozen=True)
class Call:
    """The timesteps that a stage computes in one go: windows of (first timestep, timesteps)."""

    windows: tuple[Span, ...]

    @property
    def first(self) -> int:
        return self.windows[0][0]

    @property
    def steps(self) -> int:
        return self.stop - self.first

    @property
    def stop(self) -> int:
        """The timestep behind its last."""
        return sum(self.windows[-1])

    @property
    def is_first(self) -> bool:
        return self.first == 0


def segments(timesteps: int, window: int, schedule: str, exits: Iterable[int] = ()) -> tuple[Span, ...]:
    """What all stages compute before any goes on: all timesteps, cut where the program may end, or at every window."""
    ends = sorted({0, timesteps, *exits})
    parts = [(first, stop - first) for first, stop in pairwise(ends)]
    if schedule == "layers":
        return tuple(parts)
    return tuple(window_ for first, count in parts for window_ in windows(first, first + count, window))


def windows(first: int, stop: int, size: int, cuts: Iterable[int] = ()) -> tuple[Span, ...]:
    """Timesteps first..stop-1 in runs of at most `size`, a new one at every cut."""
    ends = sorted({first, stop, *(cut for cut in cuts if first < cut < stop)})
    return tuple(
        (start, min(size, last - start)) for begin, last in pairwise(ends) for start in range(begin, last, size)
    )


def calls_of(timing: Timing, parts: Iterable[Span], size: int) -> tuple[tuple[Call, ...], ...]:
    """A stage's calls in each segment: none where it has no timesteps there.

    A stage whose sums are the same at every timestep, or that is summed over time, computes all its timesteps in the
    first segment.
    """
    made: list[tuple[Call, ...]] = []
    is_first = timing.is_still or timing.is_ahead
    for first, count in parts:
        first, stop = (0, timing.steps if first == 0 else 0) if is_first else (first, first + count)
        stop = min(stop, timing.steps)
        ends = sorted({first, stop, *(cut for cut in timing.breaks if first < cut < stop)}) if first < stop else []
        made.append(tuple(Call(windows(begin, end, size, timing.cuts)) for begin, end in pairwise(ends)))
    return tuple(made)
