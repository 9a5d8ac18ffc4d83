"""Find the settings of the lossy passes on held-out training images, under a bound of the accuracy that they cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.calibrate.confidence import variance_of_others
from compiler.calibrate.exits import Policy, apply, choose
from compiler.calibrate.search import Findings, Progress, Search, Wanted
from compiler.calibrate.timesteps import average_timesteps, prefix, sensitivities
from compiler.calibrate.tokens import lower_tokens, require_blocks
from compiler.calibrate.trials import Outcome, Trials
from compiler.settings import CurvePoint, Guard, Settings, Timesteps
from isa.errors import CStepError

SENSITIVITY_IMAGES = 32
CURVE_BOUNDS = (0.0, 0.1, 0.5, 1.0)
GUARD_THRESHOLDS = (0, *(1 << power for power in range(16)))
NO_GUARD = -1
Tried = tuple[int, Outcome]
"""A guard's threshold, and what it gave where nothing exited."""


def calibrate(
    trials: Trials,
    truth: NDArray[np.int64],
    wanted: Wanted,
    settings: Settings,
    progress: Progress = lambda what: None,
) -> Findings:
    """Timestep masks, tokens, exits, guards, in this order, and the curve; `settings` gives model and data.

    `truth` [B] are the labels of the trials' inputs. Every loss is that of all found so far, in points below the full
    integer model on the same images. Raises CStepError for what `wanted` asks of a model that cannot give it.
    """
    wanted.check(trials.timesteps, trials.classes, len(truth))
    if not 0 <= truth.min() <= truth.max() < trials.classes:
        wrong = next(label for label in truth if not 0 <= label < trials.classes)
        raise CStepError(f"calibrate: label {wrong}; the model's {trials.classes} classes are 0..{trials.classes - 1}")
    if wanted.tokens:
        require_blocks(trials.integer, wanted.score)
    search = Search(trials, truth, wanted, progress, Findings(settings, 0.0))
    search.variance = (0.0,) * max(1, len(wanted.after))
    outcome = search.run("full model", search.parts())
    search.full = search.right(outcome.logits)
    search.findings.accuracy = float(search.full.mean())
    if 100 / len(truth) > wanted.loss > 0:
        search.findings.warnings.append(
            f"one image of {len(truth):,} is {100 / len(truth):.2g} points, more than the bound of {wanted.loss:g}: "
            f"none may be lost"
        )
    if wanted.timesteps:
        outcome = _lower_timesteps(search, outcome)
    if wanted.tokens:
        outcome = lower_tokens(search, outcome)
    found = search.findings.settings.timesteps
    search.findings.average = average_timesteps(trials.integer, found.masks if found else {})
    if wanted.after:
        _find_exits(search, outcome)
    tried = _find_guard(search) if wanted.guard else []
    if wanted.after:
        _find_curve(search, [(NO_GUARD, outcome), *tried])
    return search.findings


def _lower_timesteps(search: Search, outcome: Outcome) -> Outcome:
    """Fewer timesteps group by group, least sensitive first, as long as the loss stays within the bound."""
    search.progress("sensitivity")
    trials, findings = search.trials, search.findings
    findings.sensitivity = sensitivities(trials.integer, trials.inputs[:SENSITIVITY_IMAGES])
    masks: dict[str, str] = {}
    for each in findings.sensitivity:
        for kept in range(trials.timesteps - 1, 0, -1):
            before = findings.settings.timesteps
            tried = masks | dict.fromkeys(each.layers, prefix(trials.timesteps, kept))
            search.found(timesteps=Timesteps(masks=tried, average=average_timesteps(trials.integer, tried)))
            try:
                seen = search.run(f"T={kept} in {each.group}", search.parts())
            except CStepError as error:  # too few timesteps are left for the exits that are asked for
                findings.warnings.append(f"timesteps: no T={kept} in {each.group}: {error}")
                search.found(timesteps=before)
                break
            loss = search.loss(search.right(seen.logits))
            if not search.holds(loss):
                search.found(timesteps=before)
                break
            masks, outcome = tried, seen
            assert findings.settings.timesteps is not None
            search.found(timesteps=findings.settings.timesteps.model_copy(update={"loss": loss}))
    if not masks:
        findings.warnings.append(f"timesteps: no group loses at most {search.wanted.loss:g} points with one fewer")
    return outcome


def _find_exits(search: Search, outcome: Outcome) -> None:
    """tau at the (1 - rate) quantile, or as far above it as the bound asks; rate and loss as the program then has."""
    wanted, bound = search.wanted, search.wanted.loss
    reals = search.reals(outcome.decisions)
    search.variance = tuple(variance_of_others(reals[:, number]) for number in range(len(wanted.after)))
    while True:
        policy = _policy(search, outcome, wanted.rate, bound)
        seen = search.run("exits", search.parts(policy))
        loss = search.loss(search.right(seen.logits))
        if search.holds(loss) or policy.rate == 0:
            break
        bound -= 100 / len(search.truth)  # a criterion's integers may decide a few inputs otherwise
    rate = float((seen.steps < search.trials.timesteps).mean())
    search.found(exit=search.exits(policy).model_copy(update={"rate": rate, "loss": loss}))
    if policy.rate == 0:
        search.findings.warnings.append(f"exits: none loses at most {wanted.loss:g} points; tau is 1, no input exits")


def _find_guard(search: Search) -> list[Tried]:
    """Thresholds from 0 up, until one loses more than any bound, or silences no more; returns what each gave."""
    wanted, findings = search.wanted, search.findings
    assert wanted.guard is not None
    tried: list[Tried] = []
    for threshold in GUARD_THRESHOLDS:
        guard = Guard(mode=wanted.guard, after=wanted.guard_after, threshold=threshold)
        try:
            seen = search.run(f"guard {wanted.guard}, threshold {threshold}", search.parts(None, guard))
        except CStepError as error:  # masks may have left too few timesteps for it
            findings.warnings.append(f"guard: none after {wanted.guard_after} timesteps: {error}")
            return tried
        if tried and np.array_equal(seen.operations, tried[-1][1].operations):
            break
        tried.append((threshold, seen))
        loss = _with_exits(search, seen).loss
        findings.guards.append((threshold, loss))
        if all(search.holds(each) for _, each in findings.guards):
            search.found(guard=guard.model_copy(update={"loss": loss}))
        if loss > max(wanted.loss, *CURVE_BOUNDS):
            break
    if findings.settings.guard is None:
        findings.warnings.append(
            f"guard: threshold 0 loses {findings.guards[0][1]:.2f} points together with the exits, more than "
            f"{wanted.loss:g}; no guard is in the settings"
        )
    return tried


def _find_curve(search: Search, candidates: Sequence[Tried]) -> None:
    """For each bound the exits and the guard that leave the fewest operations, whatever the target rate."""
    search.progress("curve")
    whole = candidates[0][1].operations
    early = [whole * (after / search.trials.timesteps) for after in search.wanted.after]
    curve: list[CurvePoint] = []
    for bound in sorted({*CURVE_BOUNDS, search.wanted.loss}):
        found: list[tuple[float, CurvePoint]] = []
        for threshold, seen in candidates:
            policy = _policy(search, seen, 1.0, bound)
            if policy.loss <= bound + 1e-9:
                point = CurvePoint(
                    loss_bound=bound,
                    tau=search.exits(policy).tau,
                    guard_threshold=threshold,
                    rate=policy.rate,
                    loss=policy.loss,
                )
                cost = np.choose(policy.taken, [*early, seen.operations])
                found.append((float(cost.mean()), point))
        if found:
            curve.append(min(found, key=lambda each: each[0])[1])
    search.found(curve=tuple(curve))


def _policy(search: Search, seen: Outcome, rate: float, bound: float) -> Policy:
    """Exits chosen for a program in which none was taken."""
    late, early = search.right(seen.logits), search.right(seen.decisions)
    return choose(search.scores(seen.decisions), early, late, search.full, rate, bound)


def _with_exits(search: Search, seen: Outcome) -> Policy:
    """What the exits found make of a program in which none was taken."""
    late, exits = search.right(seen.logits), search.findings.settings.exit
    if exits is None:
        return Policy((), np.zeros(len(late), np.int64), int(search.full.sum()) - int(late.sum()))
    thresholds = [search.score(number, tau) for number, tau in enumerate(exits.tau)]
    return apply(thresholds, search.scores(seen.decisions), search.right(seen.decisions), late, search.full)
