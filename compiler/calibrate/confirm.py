"""Whether settings hold a bound on images that no search chose them by."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from compiler.calibrate.bench import Bench, of_canonical
from compiler.calibrate.exits import points
from compiler.calibrate.journal import Trial


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


def confirm(bench: Bench, settings: str) -> Confirmed:
    """Run settings (as canonical JSON) and the reference on the bench's unseen images, whatever the budget."""
    assert bench.reference is not None
    before, after = (
        _right(bench.run(of_canonical(each), must=True, unseen=True)) for each in (bench.reference.settings, settings)
    )
    lost = before.astype(np.int64) - after
    images = len(lost)
    return Confirmed(images, points(int(lost.sum()), images), 100 * float(lost.std()) / sqrt(images))


def _right(trial: Trial) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """[images] of 0 and 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(trial.rights), np.uint8), count=trial.images)
