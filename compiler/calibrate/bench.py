"""Measuring points of the space: trials, each compiled and run once within a budget; exits chosen for a bound."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from compiler.calibrate.confidence import confidence, margin, tau_of, variance_of_others
from compiler.calibrate.exits import Policy, choose, points
from compiler.calibrate.journal import Choice, Journal, Key, Part, Trial
from compiler.calibrate.search import SMALLEST
from compiler.calibrate.trials import Outcome, Trials
from compiler.settings import NEVER, Exit, Settings, settings_of
from isa.errors import CStepError, CStepWarning

SPARE = (0, 1, 3)
"""Images that a choice of exits leaves of the bound: a criterion's integers may decide a few inputs otherwise."""
SHARES = (0.0, 0.5, 1.0)
"""Of the bound, that exits before the last may lose."""
TIGHTER = (0.75, 0.5, 0.25)
"""Of the inputs that a bound lets leave an exit: how many may where that many did not hold it on other images."""


class Exhausted(Exception):  # noqa: N818 - no error: the search ends
    """The budget is spent."""


@dataclass
class Budget:
    """How much may be tried: seconds of trials, or a number of them. What the journal holds counts like what is run."""

    seconds: float | None = None
    trials: int | None = None
    used_seconds: float = 0.0
    used_trials: int = 0
    share: float = 1.0
    """How much of it may be used now."""

    def require(self) -> None:
        """Raises Exhausted where the share is used up."""
        if self.seconds is not None and self.used_seconds >= self.share * self.seconds:
            raise Exhausted
        if self.trials is not None and self.used_trials >= self.share * self.trials:
            raise Exhausted

    @contextmanager
    def beside(self) -> Generator[None]:
        """What is tried meanwhile does not count."""
        before = self.used_seconds, self.used_trials
        try:
            yield
        finally:
            self.used_seconds, self.used_trials = before

    def use(self, trial: Trial) -> None:
        self.used_seconds += trial.seconds
        self.used_trials += 1


@dataclass
class Bench:
    """Trials on the first images of the held-out ones, or on the last, which no search sees; none is run twice."""

    trials: Trials
    truth: NDArray[np.int64]
    journal: Journal
    budget: Budget
    screen: int
    """So many images are enough to look at a candidate."""
    bounds: tuple[float, ...]
    """For which exits are chosen, in points."""
    progress: Callable[[Trial], None]
    reference: Trial | None = None
    """What losses are counted against."""
    unseen: int = 0
    """So many images, the last ones, are for confirming what was found."""
    served: dict[Key, Trial] = field(default_factory=dict[Key, Trial])
    """All trials of this search, in their order."""
    ran: int = 0
    """Trials that were not in the journal."""

    @property
    def images(self) -> int:
        """That a search sees."""
        return len(self.truth) - self.unseen

    def run(self, settings: Settings, images: int | None = None, *, must: bool = False, unseen: bool = False) -> Trial:
        """A trial; `must` runs it whatever the budget, `unseen` on all images that no search sees. Raises Exhausted."""
        images = self.unseen if unseen else self.images if images is None else min(images, self.images)
        key = settings.canonical(), images, unseen
        if key in self.served:
            return self.served[key]
        if not must:
            self.budget.require()
        found = self.journal.trials.get(key)
        if found is None:
            found = self._measure(settings, images, unseen)
            self.ran += 1
            self.journal.add(found)
        self.served[key] = found
        self.budget.use(found)
        self.progress(found)
        return found

    def tuned(
        self, settings: Settings, bound: float, images: int | None = None, spare: int = 0, *, must: bool = False
    ) -> Trial | None:
        """A trial with the exits that `bound` allows; None where the program cannot be made, or none may be taken.

        `spare` images more may be lost than the bound says.
        """
        probe = self.run(settings, images, must=must)
        if probe.refused:
            return None
        if settings.exit is None:
            return probe
        best: Trial | None = None
        for choice in probe.choices:
            if choice.bound != bound or choice.rate == 0 or choice.share < 1:
                continue
            best = self.run(_with(settings, choice), images, must=must)
            if self.within(best, bound, spare):
                break
        return best

    def tightened(self, trial: Trial, bound: float) -> Iterator[Trial]:
        """The same on all images of the search, where fewer and fewer leave at exits than `bound` would let."""
        settings = of_canonical(trial.settings)
        if settings.exit is None:
            return
        probe = self.run(settings.model_copy(update={"exit": never_taken(settings.exit)}), must=True)
        for choice in probe.choices:
            if choice.bound == bound and choice.share < 1 and choice.rate > 0:
                yield self.run(_with(settings, choice), must=True)

    def lost(self, trial: Trial, images: int | None = None) -> int:
        """Images that the reference has right less those of the trial, on all of the trial's or the first `images`."""
        on = trial.images if images is None else images
        return self._reference_right(on) - trial.on(on).right

    def loss(self, trial: Trial) -> float:
        """In points."""
        return points(self.lost(trial), trial.images)

    def within(self, trial: Trial, bound: float, spare: int = 0) -> bool:
        """Whether the trial loses no more than the bound and `spare` images."""
        return self.lost(trial) <= bound * trial.images / 100 + spare + 1e-9

    def _reference_right(self, images: int) -> int:
        assert self.reference is not None
        return self.reference.on(images).right

    def _measure(self, settings: Settings, images: int, unseen: bool) -> Trial:
        begun = perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CStepWarning)
                program = self.trials.program(settings.passes())
        except CStepError as error:
            said, seconds = " ".join(str(error).split()), round(perf_counter() - begun, 3)
            return Trial(
                settings=settings.canonical(), images=images, unseen=unseen, refused=said, seconds=seconds
            )  # fmt: skip
        first = self.images if unseen else 0
        seen = self.trials.emulate(program, self.trials.inputs[first : first + images])
        right = seen.logits.argmax(axis=1) == self.truth[first : first + images]
        choices: tuple[Choice, ...] = ()
        if settings.exit is not None and set(settings.exit.tau) == {NEVER} and not unseen:
            choices = tuple(self._choices(settings.exit, seen, right))
        whole = _part(right, seen, images)
        return Trial(
            settings=settings.canonical(),
            images=images,
            unseen=unseen,
            rights=np.packbits(right).tobytes().hex() if unseen else "",
            right=whole.right,
            costs=whole.costs,
            exit_rate=float((seen.steps < program.header.timesteps).mean()),
            screen=_part(right, seen, self.screen) if images > self.screen and not unseen else None,
            choices=choices,
            seconds=round(perf_counter() - begun, 3),
        )

    def _choices(self, exits: Exit, seen: Outcome, late: NDArray[np.bool_]) -> Iterator[Choice]:
        """For every bound the exits that let the most timesteps go, and a few that leave something of it."""
        images, steps = len(late), self.trials.timesteps
        full = np.arange(images) < self._reference_right(images)  # how many are right is all that is asked of it
        reals = seen.decisions * (self.trials.scale * steps) / np.array(exits.after).reshape(-1, 1)
        variance = tuple(variance_of_others(reals[:, number]) for number in range(len(exits.after)))
        scores = margin(reals) if exits.criterion == "lightsoftmax" else confidence(exits.criterion, reals, 0)
        early = seen.decisions.argmax(axis=2) == self.truth[:images, None]
        run = np.array([*exits.after, steps])
        for bound in self.bounds:
            kept: list[tuple[float, ...]] = []
            for spare in SPARE:
                most = bound - points(spare, images)
                if spare and most < 0 < bound:
                    continue
                several = [
                    choose(scores, early, late, full, 1.0, [*(share * most for share in shares), most])
                    for shares in _ascending(len(exits.after) - 1)
                ]
                fit = [each for each in several if each.loss <= most + 1e-9] or several[-1:]
                policy = min(fit, key=lambda each: float(run[each.taken].mean()))
                tau = self._taus(exits, policy, variance)
                if tau not in kept:
                    kept.append(tau)
                    yield Choice(bound=bound, tau=tau, variance=variance, rate=policy.rate)
                if not spare:
                    for share in TIGHTER:
                        rates = [share * rate for rate in policy.rates]
                        fewer = choose(scores, early, late, full, rates, 100.0)
                        tau = self._taus(exits, fewer, variance)
                        yield Choice(bound=bound, tau=tau, variance=variance, rate=fewer.rate, share=share)

    def _taus(self, exits: Exit, policy: Policy, variance: tuple[float, ...]) -> tuple[float, ...]:
        pairs = zip(policy.thresholds, variance, strict=True)
        return tuple(self._tau(exits, each, sigma) for each, sigma in pairs)

    def _tau(self, exits: Exit, score: float | None, variance: float) -> float:
        if score is None:
            return NEVER
        if exits.criterion == "lightsoftmax":
            score = tau_of(score, variance, self.trials.classes)
        return min(max(score, SMALLEST), 1 - SMALLEST)


def _with(settings: Settings, choice: Choice) -> Settings:
    """Settings whose exits have other confidences."""
    assert settings.exit is not None
    table = settings.exit.model_copy(update={"tau": choice.tau, "variance": choice.variance})
    return settings.model_copy(update={"exit": table})


def never_taken(exits: Exit) -> Exit:
    """The same exits, which no input takes: what they decide is recorded all the same."""
    return Exit(criterion=exits.criterion, after=exits.after, tau=(NEVER,) * len(exits.after))


def of_canonical(text: str) -> Settings:
    """Settings of their canonical JSON."""
    return settings_of(json.loads(text), "journal")


def _ascending(count: int) -> list[tuple[float, ...]]:
    return [each for each in product(SHARES, repeat=count) if list(each) == sorted(each)]


def _part(right: NDArray[np.bool_], seen: Outcome, images: int) -> Part:
    costs = {name: float(values[:images].mean()) for name, values in seen.costs.items()}
    return Part(images=images, right=int(right[:images].sum()), costs=costs)
