"""The state of a calibration: what is wanted, the trials that are run, and what has been found so far."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from compiler import settings
from compiler.calibrate.confidence import confidence, margin, margin_of, tau_of
from compiler.calibrate.exits import Policy, Right, Scores, points
from compiler.calibrate.timesteps import Sensitivity
from compiler.calibrate.trials import Outcome, Trials
from compiler.settings import NEVER, Exit, Guard, Parts, Score, Settings
from isa.errors import CStepError, CStepWarning

LEAST_IMAGES = 100
SMALLEST = 2.0**-40
"""The least tau there is; the greatest is as far below 1."""
SCORES: tuple[Score, ...] = tuple(score for score in get_args(Score) if score != "random")
"""Of tokens, that are worth a trial."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to calibrate."""

    after: tuple[int, ...] = (2,)
    """Exits after so many timesteps; empty: none."""
    criterion: settings.Criterion = "lightsoftmax"
    rate: float = 0.4
    """Of the inputs that reach an exit, the most that leave there."""
    loss: float = 0.1
    """Bound of the accuracy lost, in points, by all that is calibrated together."""
    guard: settings.GuardMode | None = "both"
    guard_after: int = 2
    timesteps: bool = False
    """Whether to look for timestep masks."""
    tokens: bool = False
    """Whether to look for the share of the tokens that each block needs."""
    score: Score = "paper"
    """Which tokens those are."""

    def require(self) -> None:
        """Raises CStepError for what no model can give."""
        if list(self.after) != sorted(set(self.after)):
            raise CStepError(f"--exit-after {','.join(map(str, self.after))}: must ascend, no exit twice")
        for key, value, allowed in (
            ("criterion", self.criterion, get_args(settings.Criterion)),
            ("guard", self.guard, (*get_args(settings.GuardMode), None)),
            ("score", self.score, SCORES),
        ):
            if value not in allowed:
                raise CStepError(f"--{key} {value}: must be one of {', '.join(map(str, allowed)).lower()}")
        if not 0 < self.rate <= 1:
            raise CStepError(f"--rate {self.rate:g}: must be more than 0 and at most 1")
        if not self.loss >= 0:
            raise CStepError(f"--loss {self.loss:g}: must be 0 or more points")
        if self.tokens and self.score == "code" and self.after:
            raise CStepError(
                "--score code: looks at all timesteps before a block, so nothing can exit; --exit-after none, or "
                "another score"
            )

    def check(self, steps: int, classes: int, images: int) -> None:
        """Raises CStepError for what this model or so many images cannot give."""
        self.require()
        if steps == 1 and (self.after or self.guard or self.timesteps or not self.tokens):
            raise CStepError(
                "calibrate: the model has T=1; there is no later timestep to exit before, to guard or mask; only "
                "tokens can stop: --tokens auto --exit-after none --guard none"
            )
        if classes < 2:
            raise CStepError("calibrate: the model has one class; a decision needs two or more")
        if wrong := [after for after in self.after if not 1 <= after < steps]:
            raise CStepError(
                f"--exit-after {wrong[0]}: the model has T={steps}; exits are after 1..{steps - 1} timesteps"
            )
        if self.guard and not 1 <= self.guard_after < steps:
            raise CStepError(f"--guard-after {self.guard_after}: the model has T={steps}; it must be in 1..{steps - 1}")
        if images < LEAST_IMAGES:
            raise CStepError(f"calibrate: {images} held-out images; at least {LEAST_IMAGES} are needed")


@dataclass
class Findings:
    """Settings, and what the search saw on the way."""

    settings: Settings
    accuracy: float
    """Of the full model on the images, a fraction."""
    sensitivity: list[Sensitivity] = field(default_factory=list[Sensitivity])
    guards: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """Thresholds tried, and their losses together with the exits, in points."""
    average: float = 0.0
    """T_avg."""
    blocks: tuple[str, ...] = ()
    """Where tokens were looked for."""
    warnings: list[str] = field(default_factory=list[str])


@dataclass
class Search:
    """The state of a calibration: trials, truth, and what has been found so far."""

    trials: Trials
    truth: NDArray[np.int64]
    wanted: Wanted
    progress: Progress
    findings: Findings
    full: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    variance: tuple[float, ...] = (0.0,)

    def run(self, what: str, parts: Parts) -> Outcome:
        """A trial; that an exit is never taken is meant here."""
        self.progress(what)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CStepWarning)
            return self.trials.run(parts)

    def right(self, logits: NDArray[np.int64]) -> Right:
        """Of logits [B, ..., classes]: whether the greatest is at the label."""
        found = logits.argmax(axis=-1)
        return found == self.truth.reshape(-1, *[1] * (found.ndim - 1))

    def loss(self, right: Right) -> float:
        """Points below the full model where [B] are right."""
        return points(int(self.full.sum()) - int(right.sum()), len(right))

    def holds(self, loss: float) -> bool:
        """Whether the bound is kept."""
        return loss <= self.wanted.loss + 1e-9

    def reals(self, decisions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cumulative integer logits [B, exits, classes] as means over the timesteps run, in the model's scale."""
        after = np.array(self.wanted.after).reshape(-1, 1)
        return decisions * (self.trials.scale * self.trials.timesteps) / after

    def scores(self, decisions: NDArray[np.int64]) -> Scores:
        """[B, exits]: what rises with the confidence. LightSoftmax's own saturates, its margin does not."""
        reals = self.reals(decisions)
        return margin(reals) if self.wanted.criterion == "lightsoftmax" else confidence(self.wanted.criterion, reals, 0)

    def score(self, number: int, tau: float) -> float | None:
        """The score at which an exit's confidence is tau; None for an exit that is not taken."""
        if tau == NEVER:
            return None
        if self.wanted.criterion != "lightsoftmax":
            return tau
        return margin_of(tau, self.variance[number], self.trials.classes)

    def tau(self, number: int, score: float | None) -> float:
        """The other way round."""
        if score is None:
            return NEVER
        if self.wanted.criterion == "lightsoftmax":
            score = tau_of(score, self.variance[number], self.trials.classes)
        return min(max(score, SMALLEST), 1 - SMALLEST)

    def exits(self, policy: Policy | None) -> Exit:
        """The settings' table of a policy; of exits that are not taken where there is none."""
        thresholds = policy.thresholds if policy else (None,) * len(self.wanted.after)
        return Exit(
            criterion=self.wanted.criterion,
            after=self.wanted.after,
            tau=tuple(self.tau(number, each) for number, each in enumerate(thresholds)),
            variance=self.variance,
            target_rate=self.wanted.rate,
            loss_bound=self.wanted.loss,
        )

    def parts(self, policy: Policy | None = None, guard: Guard | None = None) -> Parts:
        """What has been found of timesteps and tokens, with these exits and this guard."""
        tables = {"guard": guard, "exit": self.exits(policy) if self.wanted.after else None}
        return self.findings.settings.model_copy(update=tables).passes()

    def found(self, **tables: object) -> None:
        """Add tables to the settings."""
        self.findings.settings = self.findings.settings.model_copy(update=tables)
