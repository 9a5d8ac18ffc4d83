"""Search all that `cstep compile --settings` takes at once, for one objective, under bounds of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compiler.calibrate.beam import Beam, Found
from compiler.calibrate.bench import Bench, Budget, Exhausted, of_canonical
from compiler.calibrate.confirm import Confirmed, Unseen
from compiler.calibrate.journal import Journal, Part, Trial
from compiler.calibrate.search import LEAST_IMAGES
from compiler.calibrate.space import Space
from compiler.calibrate.trials import Trials
from compiler.settings import RowSharing, Settings
from isa.errors import CStepError

Objective = Literal["operations", "cycles", "energy"]
BOUNDS = (0.0, 0.1, 0.5, 1.0)
"""Of the trade-off curve, in points, beside the one that is asked for."""
SCREENED = 1000
"""Images that candidates are looked at on."""
FEW = 16
"""Images that modes of sharing are compared on: a forest takes a hundred times as long as a pair."""
SHARED = 256
"""Images that the best settings are confirmed on with a mode beyond pairs."""
FINALISTS = 3
MAIN, CURVE = 0.6, 0.8
"""Shares of the budget behind which the search for the bound asked for ends, and that for the curve."""


@dataclass(frozen=True)
class Goal:
    """What to look for, and for how long."""

    max_loss: float = 0.1
    objective: Objective = "operations"
    minutes: float | None = 10.0
    trials: int | None = None
    """Instead of minutes."""
    seed: int = 0
    shared: int = SHARED
    """Images that modes beyond pairs are confirmed on."""
    unseen: int = 0
    """Images, the last of those given, that only confirm what was found."""

    def require(self) -> None:
        """Raises CStepError for what no search can be asked for."""
        if not 0 <= self.max_loss <= 100:
            raise CStepError(f"--max-loss {self.max_loss:g}: must be 0..100 points")
        if self.objective not in get_args(Objective):
            raise CStepError(f"--for {self.objective}: must be one of {', '.join(get_args(Objective))}")
        if self.minutes is not None and not self.minutes > 0:
            raise CStepError(f"--budget {self.minutes:g}: must be more than 0 minutes")
        if self.trials is not None and self.trials < 1:
            raise CStepError(f"--trials {self.trials}: must be 1 or more")
        if self.unseen < 0:
            raise CStepError(f"--confirm-images {self.unseen}: must be 0 or more")
        if self.shared < FEW:
            raise CStepError(f"--sharing-images {self.shared}: must be {FEW} or more")

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bound asked for first, then the curve's others."""
        return (self.max_loss, *(bound for bound in BOUNDS if bound != self.max_loss))

    @property
    def budget(self) -> Budget:
        seconds = None if self.minutes is None or self.trials is not None else 60 * self.minutes
        return Budget(seconds, self.trials)


@dataclass(frozen=True)
class Best:
    """The cheapest settings that were found within a bound."""

    bound: float
    settings: Settings
    loss: float
    """In points, on all images."""
    whole: Trial
    """On all images, with pairs where sharing is beyond them: the answers are the same."""
    costed: Part
    """What it costs, as the settings say, on the images of that part."""
    baseline: Part
    """What the model without any of it costs on the same images."""
    confirmed: Confirmed | None = None
    """On images that the search did not see, where there are any."""

    def holds(self, bound: float) -> bool:
        """Whether it loses no more, on whatever images it was run on."""
        return self.loss <= bound + 1e-9 and (self.confirmed is None or self.confirmed.holds(bound))

    def relative(self, name: str) -> float:
        """A cost over the baseline's; operations and accumulations over the baseline's sop_bit."""
        over = "sop_bit" if name in ("operations", "accumulations") else name
        return self.costed.costs[name] / self.baseline.costs[over]


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    goal: Goal
    points: tuple[Best, ...]
    """One a bound, that asked for first."""
    baseline: Trial
    reference: Trial
    trials: tuple[Trial, ...]
    ran: int
    """Of the trials, that the journal did not hold."""
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Best:
        return self.points[0]

    @property
    def seconds(self) -> float:
        """Of all trials, compiling included."""
        return sum(each.seconds for each in self.trials)


def tune(
    trials: Trials,
    truth: NDArray[np.int64],
    goal: Goal,
    base: Settings,
    journal: Journal | None = None,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """The best settings for every bound, from trials on held-out images with labels `truth`.

    `base` names model and data, and has what the model was trained for. What `journal` holds is not run again. Raises
    CStepError for what the model or its data cannot give.
    """
    check_tuning(trials, truth, goal)
    screen = min(SCREENED, len(truth) - goal.unseen)
    bench = Bench(
        trials, truth, journal or Journal(), goal.budget, screen, goal.bounds, progress, unseen=goal.unseen
    )  # fmt: skip
    return Tuner(bench, Space.of(trials.integer, trials.machine, base), goal, base).run()


def check_tuning(trials: Trials, truth: NDArray[np.int64], goal: Goal) -> None:
    """Raises CStepError for what the model or its data cannot give."""
    goal.require()
    if trials.classes < 2:
        raise CStepError("tune: the model has one class; a loss needs two or more")
    if len(truth) - goal.unseen < LEAST_IMAGES:
        beside = f" beside {goal.unseen} to confirm on" if goal.unseen else ""
        raise CStepError(
            f"tune: {len(truth) - goal.unseen} held-out images{beside}; at least {LEAST_IMAGES} are needed"
        )
    if not 0 <= truth.min() <= truth.max() < trials.classes:
        wrong = next(label for label in truth if not 0 <= label < trials.classes)
        raise CStepError(f"tune: label {wrong}; the model's {trials.classes} classes are 0..{trials.classes - 1}")


@dataclass
class Tuner:
    """One search, bound by bound, and then sharing."""

    bench: Bench
    space: Space
    goal: Goal
    base: Settings
    notes: list[str] = field(default_factory=list[str])
    modes: list[RowSharing] = field(default_factory=list[RowSharing])
    """Of sharing, the best first."""
    ratios: dict[str, float] = field(default_factory=dict[str, float])
    """What the best mode costs over pairs on a few images, by settings."""
    unshared: list[str] = field(default_factory=list[str])
    """Bounds for whose settings no modes of sharing could be compared."""
    unseen: Unseen = field(init=False)

    def __post_init__(self) -> None:
        self.unseen = Unseen(self.bench, self.goal.objective, self._trained)

    def run(self) -> Tuned:
        bench, goal = self.bench, self.goal
        self.notes += self.space.notes
        if 100 / bench.images > goal.max_loss > 0:
            self.notes.append(
                f"one image of {bench.images:,} is {100 / bench.images:.2g} points, more than the bound of "
                f"{goal.max_loss:g}: none may be lost"
            )
        bench.reference = baseline = bench.run(self.space.plain(), must=True)
        trained = bench.run(self._trained, must=True)
        if trained.right > baseline.right:
            bench.reference = trained
            self.notes.append("losses are against the model as it was trained, which has more right than without")
        self._sort_modes()
        beams = self._search(baseline)
        points = [self._final(beam, beams) for beam in beams]
        if self.unseen.passed_over:
            self.notes.append(
                f"{self.unseen.passed_over} settings that held their bound in the search do not on {goal.unseen:,} "
                "images that it did not see, and were passed over"
            )
        if self.unshared:
            self.notes.append(
                f"the budget was spent before modes of sharing could be compared for a loss of "
                f"{', '.join(dict.fromkeys(self.unshared))}: {self._quick.mode} there; give a larger one and --resume"
            )
        return Tuned(
            goal=goal,
            points=tuple(_monotone(points, goal.objective)),
            baseline=baseline,
            reference=bench.reference,
            trials=tuple(bench.served.values()),
            ran=bench.ran,
            notes=tuple(self.notes),
        )

    @property
    def _quick(self) -> RowSharing:
        """The sharing that trials have: that of pairs, which takes no time to find."""
        pairs = RowSharing(mode="pair")
        return pairs if pairs in self.space.sharing else RowSharing(mode="none")

    @property
    def _trained(self) -> Settings:
        return self.space.settings(self.space.trained, self._quick)

    def _search(self, baseline: Trial) -> list[Beam]:
        """A beam a bound: each begins with the best of those before it that it allows."""
        beams: list[Beam] = []
        random, gains = np.random.default_rng(self.goal.seed), dict[str, float]()
        for number, bound in enumerate(self.goal.bounds):
            self.bench.budget.share = MAIN + (CURVE - MAIN) * number / max(1, len(self.goal.bounds) - 1)
            known = [each for other in beams for each in other.found.values() if self.bench.within(each.trial, bound)]
            beam = Beam(
                self.bench, self.space, lambda trial: self._cost(trial, baseline), self.goal.objective, self._quick,
                bound, random, gains, {each.point: each for each in sorted(known, key=lambda each: each.order)[::-1]},
            )  # fmt: skip
            beams.append(beam)
            with suppress(Exhausted):
                for point in dict.fromkeys((self.space.trained, self.space.given)):
                    beam.confirm(point)
                for each in beam.top(FINALISTS) if number else ():
                    beam.retune(each.point)
                beam.search(beam.top(2))
        return beams

    def _cost(self, trial: Trial, baseline: Trial) -> float:
        """Over the baseline: with the best mode of sharing, by what it makes of a few images."""
        name, best = self.goal.objective, self.modes[0]
        relative = trial.costs[name] / baseline.costs[name]
        if best == self._quick:
            return relative
        if trial.settings not in self.ratios:
            quick, slow = (self._shared(trial, mode, FEW) for mode in (self._quick, best))
            self.ratios[trial.settings] = 1.0 if slow.refused else slow.costs[name] / quick.costs[name]
        return relative * self.ratios[trial.settings]

    def _shared(self, trial: Trial, mode: RowSharing, images: int, *, must: bool = False) -> Trial:
        """The same settings with another mode of sharing."""
        settings = of_canonical(trial.settings).model_copy(update={"sharing": mode})
        return self.bench.run(settings, images, must=must)

    def _sort_modes(self) -> None:
        """Modes of sharing by what they cost the model as it was trained, on a few images."""
        trained = self.bench.run(self._trained, must=True)
        found = [(self._shared(trained, mode, FEW, must=True), mode) for mode in self.space.sharing]
        self.notes += [f"sharing {mode.mode}: {trial.refused}" for trial, mode in found if trial.refused]
        fit = [(trial.costs[self.goal.objective], mode) for trial, mode in found if not trial.refused]
        self.modes = [mode for _, mode in sorted(fit, key=lambda each: each[0])]

    def _final(self, beam: Beam, beams: Sequence[Beam]) -> Best:
        """The cheapest of a bound's finalists, each with the mode of sharing that suits it, all on the same images.

        For the bound asked for that is some finalists with all modes, for the curve the best with the two best modes.
        """
        self.bench.budget.share = 1.0
        asked = beam.bound == self.goal.max_loss
        found = [each for other in beams for each in other.found.values()]
        finalists = self.unseen.holding(found, beam.bound, FINALISTS if asked else 1)
        chosen = [
            (each.trial, self._mode_of(beam.bound, each, self.modes if asked else self.modes[:2])) for each in finalists
        ]
        for settings in (self.space.plain(), self._trained):
            whole = self.bench.run(settings, must=True)
            if self.unseen.holds(whole, beam.bound) and settings.sharing is not None:
                chosen.append((whole, settings.sharing))
        beyond = any(mode.mode not in ("pair", "none") for _, mode in chosen)
        images = min(self.goal.shared, self.bench.images) if beyond else self.bench.images
        best = [self._best(beam.bound, whole, mode, images) for whole, mode in chosen]
        return min(best, key=lambda each: each.costed.costs[self.goal.objective])

    def _mode_of(self, bound: float, found: Found, modes: Sequence[RowSharing]) -> RowSharing:
        """The mode that costs least on a few images; as far as the budget goes."""
        tried: list[tuple[float, RowSharing]] = []
        with suppress(Exhausted):
            for mode in modes:
                trial = self._shared(found.trial, mode, FEW)
                if not trial.refused:
                    tried.append((trial.costs[self.goal.objective], mode))
        if not tried:
            self.unshared.append(f"{bound:g}")
        return min(tried, key=lambda each: each[0])[1] if tried else self._quick

    def _best(self, bound: float, whole: Trial, mode: RowSharing, images: int) -> Best:
        costed = self._shared(whole, mode, images, must=True)
        plain = self.bench.run(self.space.plain(), images, must=True)
        confirmed = self.unseen.confirmed(whole)
        settings = self._written(of_canonical(costed.settings), whole, confirmed)
        return Best(bound, settings, self.bench.loss(whole), whole, costed.on(images), plain.on(images), confirmed)

    def _written(self, settings: Settings, whole: Trial, confirmed: Confirmed | None) -> Settings:
        """With what was measured, and on what: the loss is that of unseen images, where there are any."""
        loss = self.bench.loss(whole) if confirmed is None else confirmed.loss
        tables: dict[str, object] = {"data": self.base.data}
        for name in ("timesteps", "exit", "guard", "tokens", "halting"):
            if (table := getattr(settings, name)) is not None:
                rate = {"rate": whole.exit_rate} if name == "exit" else {}
                tables[name] = table.model_copy(update={"loss": loss, **rate})
        return settings.model_copy(update=tables)


def _monotone(points: Sequence[Best], objective: Objective) -> list[Best]:
    """No bound has worse than a smaller one, where they were measured on the same images."""
    found: list[Best] = []
    for each in points:
        same = [other for other in points if other.costed.images == each.costed.images]
        allowed = [other for other in same if other.holds(each.bound)]
        better = min([each, *allowed], key=lambda other: other.costed.costs[objective])
        found.append(replace(better, bound=each.bound))
    return found
