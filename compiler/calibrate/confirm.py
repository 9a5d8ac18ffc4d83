"""What a search found, on images that no search chose it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from compiler.calibrate.beam import Found
from compiler.calibrate.bench import Bench, never_taken, of_canonical
from compiler.calibrate.exits import points
from compiler.calibrate.journal import Trial
from compiler.settings import Settings


@dataclass(frozen=True)
class Confirmed:
    """The loss of settings against the reference, on the same images that the search did not see."""

    images: int
    loss: float
    """In points."""
    error: float
    """The loss' standard error, of the images: what is right with the one and wrong with the other varies."""

    def holds(self, bound: float) -> bool:
        return self.loss <= bound + 1e-9


@dataclass
class Unseen:
    """The bench's unseen images, on which what was found must hold its bound; where there are none, it does."""

    bench: Bench
    objective: str
    trained: Settings
    """What the model was trained for: settings without anything that was found."""
    passed_over: int = 0
    """Settings that did not hold their bound."""

    def confirmed(self, whole: Trial) -> Confirmed | None:
        """The loss of what a trial ran, and of the reference, whatever the budget."""
        if not self.bench.unseen:
            return None
        assert self.bench.reference is not None
        both = (self.bench.reference.settings, whole.settings)
        before, after = (_right(self.bench.run(of_canonical(each), must=True, unseen=True)) for each in both)
        lost = before.astype(np.int64) - after
        images = len(lost)
        return Confirmed(images, points(int(lost.sum()), images), 100 * float(lost.std()) / sqrt(images))

    def holds(self, whole: Trial, bound: float) -> bool:
        """Whether settings lose no more than the bound, on the search's images and on unseen ones."""
        if not self.bench.within(whole, bound):
            return False
        confirmed = self.confirmed(whole)
        return confirmed is None or confirmed.holds(bound)

    def holding(self, found: Sequence[Found], bound: float, count: int) -> list[Found]:
        """The cheapest `count` of what was found that hold the bound; one more than that is tried.

        Where one does not, fewer inputs leave at its exits until it does, or the exits are taken alone. What differs in
        exits only from one that did not hold is not looked at any more. None of it is in the budget.
        """
        pool = {each.trial.settings: each for each in found if self.bench.within(each.trial, bound)}
        holding: list[Found] = []
        tried, spoiled = 0, set[str]()
        with self.bench.budget.beside():
            for each in sorted(pool.values(), key=lambda found: found.order):
                rest = of_canonical(each.trial.settings).model_copy(update={"exit": None}).canonical()
                if tried > count or len(holding) == count or rest in spoiled:
                    continue
                tried += 1
                versions = self._versions(each.trial, bound)
                holds = next((trial for trial in versions if self.holds(trial, bound)), None)
                if holds is not None:
                    holding.append(replace(each, trial=holds))
                if holds is not each.trial:
                    spoiled.add(rest)
                    self.passed_over += 1
        return holding

    def _versions(self, whole: Trial, bound: float) -> Iterator[Trial]:
        """A trial; then it where fewer leave, its exits alone, and these where fewer leave: the cheapest first."""
        yield whole
        exits = of_canonical(whole.settings).exit
        if exits is None:
            return
        others = list(self.bench.tightened(whole, bound))
        alone = self.trained.model_copy(update={"exit": never_taken(exits)})
        trial = self.bench.tuned(alone, bound, must=True)
        if trial is not None and trial.settings != whole.settings:
            others += [trial, *self.bench.tightened(trial, bound)]
        yield from sorted(others, key=lambda each: each.costs[self.objective])


def _right(trial: Trial) -> NDArray[np.uint8]:
    """[images] of 0 and 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(trial.rights), np.uint8), count=trial.images)
