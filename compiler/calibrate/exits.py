"""Which inputs may exit: thresholds of confidences under a bound of the accuracy that they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Right = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Policy:
    """Thresholds of E exits, one after the other, and what they do to B inputs."""

    thresholds: tuple[float | None, ...]
    """An input leaves where its score is greater; None: no input does."""
    taken: NDArray[np.int64]
    """[B]: the exit that is taken, E for none."""
    lost: int
    """Inputs that the full network has right less those that are right now."""

    @property
    def rate(self) -> float:
        """Of the inputs, that exit at all."""
        return float((self.taken < len(self.thresholds)).mean())

    @property
    def rates(self) -> list[float]:
        """Of the inputs that reach each exit, that leave there."""
        reach = [(self.taken >= number).sum() for number in range(len(self.thresholds))]
        return [float((self.taken == number).sum() / max(1, each)) for number, each in enumerate(reach)]

    @property
    def loss(self) -> float:
        """In points."""
        return points(self.lost, len(self.taken))


def points(lost: int, inputs: int) -> float:
    """So many of the inputs lost, in points of accuracy."""
    return 100 * lost / inputs


def choose(
    scores: Scores,
    early: Right,
    late: Right,
    full: Right,
    rate: float | Sequence[float],
    bound: float | Sequence[float],
) -> Policy:
    """The lowest thresholds that let at most `rate` of the inputs that reach an exit leave, and lose at most `bound`.

    `scores` [B, E] and `early` [B, E] (whether the logits there are right) of exits in their order; `late` [B] is
    whether inputs that never exit are right, `full` [B] whether the full network has them right. Each exit's threshold
    starts at the (1 - rate) quantile and is raised until full - mixed accuracy is at most `bound` points: one rate and
    bound, or one an exit, the bound of what it and those before it lose.
    """
    count, exits = scores.shape
    bounds = [bound] * exits if isinstance(bound, int | float) else bound
    rates = [rate] * exits if isinstance(rate, int | float) else rate
    taken = np.full(count, exits)
    thresholds: list[float | None] = []
    lost = int(full.sum()) - int(late.sum())
    for number in range(exits):
        here = np.flatnonzero(taken == exits)
        order = here[np.argsort(-scores[here, number], kind="stable")]
        ranked = scores[order, number]
        after = lost + np.concatenate([[0], np.cumsum(late[order].astype(int) - early[order, number])])
        leave = _most(ranked, after, int(rates[number] * len(here)), bounds[number] * count / 100)
        thresholds.append(_between(ranked, leave))
        taken[order[:leave]] = number
        lost = int(after[leave])
    return Policy(tuple(thresholds), taken, lost)


def apply(thresholds: Sequence[float | None], scores: Scores, early: Right, late: Right, full: Right) -> Policy:
    """What given thresholds do; arrays as for `choose`."""
    count = len(scores)
    cuts = np.array([np.inf if each is None else each for each in thresholds])
    leaves = np.column_stack([scores > cuts, np.ones(count, bool)])
    taken = leaves.argmax(axis=1)
    right = np.column_stack([early, late])[np.arange(count), taken]
    return Policy(tuple(thresholds), taken, int(full.sum()) - int(right.sum()))


def _most(ranked: Scores, lost: NDArray[np.int64], most: int, affordable: float) -> int:
    """How many of the surest leave: the most up to `most` that lose no more, where no threshold cuts equal scores."""
    for leave in range(most, 0, -1):
        apart = leave == len(ranked) or ranked[leave] < ranked[leave - 1]
        if apart and lost[leave] <= affordable + 1e-9:
            return leave
    return 0


def _between(ranked: Scores, leave: int) -> float | None:
    """A threshold below the score of the last that leaves, not below that of the first that stays."""
    if leave == 0:
        return None
    if leave == len(ranked):
        return float(ranked[-1]) - 1.0
    middle = (float(ranked[leave - 1]) + float(ranked[leave])) / 2
    return middle if middle < ranked[leave - 1] else float(ranked[leave])
