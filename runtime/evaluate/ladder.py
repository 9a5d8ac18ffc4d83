"""The ladder: programs of one model, each a step further than the one before, on the same inputs in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from isa.errors import CStepError
from runtime.energy import energy_tables
from runtime.evaluate.evaluation import Evaluation
from runtime.report.figures import Distribution, Origin, Strict
from runtime.report.overheads import Overhead
from runtime.report.report import Inputs, Report

SCHEMA = "cstep-ladder/1"
SHARED = "sharing"
EVERY_INPUT_EXITS = "all-exit"
GOAL_POINTS = 0.1
Kind = Literal["exact", "lossy", "bound", "curve"]
OPERATIONS = ("sop_bit", "sop_union", "sop_hw")
"""Relative to the baseline's sop_bit; all else to its own value in the baseline."""
OTHERS = (
    "merges", "copies", "matching_bits", "partial_sum_bytes", "mac", "add", "neuron_updates", "cycles", "latency",
    "dram_bytes", "dram_weight_bytes", "dram_membrane_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Rung:
    """A program to evaluate, and what it is."""

    key: str
    name: str
    program: Path
    kind: Kind
    share: bool
    average: float
    """T_avg."""
    loss_bound: float | None = None
    """Of a point of the trade-off curve."""


class RowFigure(Strict):
    """A figure of a row: over the inputs, and its mean relative to the baseline."""

    name: str
    unit: str
    origin: Origin
    per_input: Distribution
    relative: float | None
    """None where the baseline has none of it."""


class Row(Strict):
    """A rung as it was measured."""

    key: str
    name: str
    kind: Kind
    share: bool
    program: str
    """Digest."""
    pipeline: str
    schedule: str
    average_timesteps: float
    loss_bound: float | None
    accuracy: float | None
    loss: float | None
    """Points below the baseline on these inputs."""
    exit_rate: float
    common_fraction: float
    """2 common / sop_bit: of the set bits, those that a pair of adjacent pixels has in common."""
    figures: tuple[RowFigure, ...]
    overheads: tuple[Overhead, ...]
    """What deciding costs; it is in the figures, too."""
    deciding: float
    """Operations of it, relative to the baseline's sop_bit."""

    def figure(self, name: str) -> RowFigure:
        """The figure of that name."""
        return next(each for each in self.figures if each.name == name)

    def relative(self, name: str) -> float:
        """To the baseline; NaN where that has none of it."""
        value = self.figure(name).relative
        return float("nan") if value is None else value


class Paper(Strict):
    """What C-STEP reports, of other weights: QKFormer on ImageNet-1K."""

    note: str = "paper, other weights"
    exit_and_guards: float = 0.607
    with_sharing: float = 0.356
    exit_rate: float = 0.4
    late_removed: float = 0.64
    """Derived: what 0.607 at 40 % exits needs."""
    common_fraction: float = 0.827


class Factor(Strict):
    """Something that the goal depends on."""

    name: str
    value: float
    wanted: float
    """The paper's, or what this model would need."""
    wants: Literal["wanted", "at most"] = "wanted"
    short: bool


class Goal(Strict):
    """0.607x and 0.356x the operations at a loss of 0.1 points or less, held-out."""

    row: str
    relative: float
    wanted: float
    loss: float | None
    reached: bool
    factors: tuple[Factor, ...]


class Ladder(Strict):
    """Everything that ladder.json holds."""

    schema_version: Literal["cstep-ladder/1"] = SCHEMA
    model: str
    machine: str
    timesteps: int
    settings: str
    """Canonical JSON."""
    inputs: Inputs
    rows: tuple[Row, ...]
    goals: tuple[Goal, ...]
    paper: Paper = Paper()

    def row(self, key: str) -> Row:
        """The row of that key."""
        return next(row for row in self.rows if row.key == key)


Evaluate = Callable[[Rung], Evaluation]


def climb(rungs: Sequence[Rung], evaluate: Evaluate, model: str, settings: str) -> Ladder:
    """Evaluate every rung, the baseline first, and put them side by side.

    Raises CStepError where two did not see the same inputs.
    """
    done = [(rung, evaluate(rung)) for rung in rungs]
    first = done[0][1].report
    for rung, found in done:
        if found.report.inputs.digest != first.inputs.digest:
            raise CStepError(f"ladder: {rung.name} saw other inputs than {done[0][0].name}; the data changed meanwhile")
    rows = tuple(_row(rung, found, first) for rung, found in done)
    seen = {rung.key: found for rung, found in done}
    return Ladder(
        model=model,
        machine=first.machine.name,
        timesteps=first.timesteps,
        settings=settings,
        inputs=first.inputs.model_copy(update={"calibrated": max(found.report.inputs.calibrated for _, found in done)}),
        rows=rows,
        goals=tuple(_goals({row.key: row for row in rows}, seen)),
    )


def late_removed(guarded: Evaluation, exits: Evaluation, all_exit: Evaluation) -> float:
    """Of the operations behind the exit point that inputs which stay have, the share that guards remove."""
    stay = (exits.steps == exits.report.timesteps) & (guarded.steps == guarded.report.timesteps)
    early = _per_input(all_exit, "sop_bit")[stay].sum()
    late = _per_input(exits, "sop_bit")[stay].sum() - early
    return float(1 - (_per_input(guarded, "sop_bit")[stay].sum() - early) / late) if late else 0.0


def _row(rung: Rung, found: Evaluation, first: Report) -> Row:
    report = found.report
    accuracy = report.accuracy.value if report.accuracy else None
    whole = first.accuracy.value if first.accuracy else None
    deciding = sum(each.mean for each in report.overheads if each.unit == "operations")
    bits, common = _per_input(found, "sop_bit").sum(), _per_input(found, "common").sum()
    return Row(
        key=rung.key,
        name=rung.name,
        kind=rung.kind,
        share=rung.share,
        program=report.program,
        pipeline=report.provenance.pipeline,
        schedule=report.provenance.schedule,
        average_timesteps=rung.average,
        loss_bound=rung.loss_bound,
        accuracy=accuracy,
        loss=None if accuracy is None or whole is None else 100 * (whole - accuracy),
        exit_rate=report.exit_rate,
        common_fraction=float(2 * common / bits) if bits else 0.0,
        figures=tuple(_figures(report, first)),
        overheads=report.overheads,
        deciding=deciding / first.figure("sop_bit").per_input.mean,
    )


def _figures(report: Report, first: Report) -> Iterable[RowFigure]:
    bits = first.figure("sop_bit").per_input.mean
    for name in (*OPERATIONS, *OTHERS, *(f"energy {table}" for table in energy_tables())):
        figure = report.figure(name)
        whole = bits if name in OPERATIONS else first.figure(name).per_input.mean
        yield RowFigure(
            name=name,
            unit=figure.unit,
            origin=figure.origin,
            per_input=figure.per_input,
            relative=figure.per_input.mean / whole if whole else None,
        )


def _goals(rows: dict[str, Row], seen: dict[str, Evaluation]) -> Iterable[Goal]:
    """Of the best row with exits, guards or not, and of the best with sharing; points of the curve are rows, too."""
    paper = Paper()
    curve = [row for row in rows.values() if row.kind == "curve"]
    if "exit" not in rows:
        return
    exits = _best([rows[key] for key in ("exit", "rows", "columns", "both") if key in rows] + curve, "sop_bit")
    yield _goal(exits, "sop_bit", paper.exit_and_guards, _factors(exits, rows, seen))
    if SHARED in rows:
        shared = _best([rows[SHARED], *curve], "sop_union")
        common = _factor("common fraction", shared.common_fraction, paper.common_fraction)
        yield _goal(shared, "sop_union", paper.with_sharing, [*_factors(shared, rows, seen), common])


def _factors(row: Row, rows: dict[str, Row], seen: dict[str, Evaluation]) -> list[Factor]:
    """How many inputs leave, and what guards remove of the rest; wanted is what 0.607 needs at these exits."""
    paper = Paper()
    factors = [_factor("exit rate", row.exit_rate, paper.exit_rate)]
    if EVERY_INPUT_EXITS in seen:
        early = rows[EVERY_INPUT_EXITS].relative("sop_bit")
        whole = rows["windows"].relative("sop_bit") if "windows" in rows else 1.0
        removed = late_removed(seen[row.key], seen["exit"], seen[EVERY_INPUT_EXITS])
        needed = 1 - (paper.exit_and_guards - early) / max((1 - row.exit_rate) * (whole - early), 1e-9)
        factors.append(_factor("share of late operations removed", removed, min(max(needed, 0.0), 1.0)))
    return factors


def _best(rows: Sequence[Row], name: str) -> Row:
    """Of the rows that lose no more than the goal allows the one with the fewest operations, or else the least loss."""
    within = [row for row in rows if row.loss is None or row.loss <= GOAL_POINTS + 1e-9]
    if within:
        return min(within, key=lambda row: row.relative(name))
    return min(rows, key=lambda row: row.loss or 0.0)


def _goal(row: Row, name: str, wanted: float, factors: Sequence[Factor]) -> Goal:
    relative = row.relative(name)
    held = row.loss is None or row.loss <= GOAL_POINTS + 1e-9
    if not held and row.loss is not None:
        lost = Factor(name="loss in points", value=row.loss, wanted=GOAL_POINTS, wants="at most", short=True)
        factors = [*factors, lost]
    return Goal(
        row=row.name,
        relative=relative,
        wanted=wanted,
        loss=row.loss,
        reached=relative <= wanted and held,
        factors=tuple(factors),
    )


def _factor(name: str, value: float, wanted: float) -> Factor:
    return Factor(name=name, value=value, wanted=wanted, short=value < wanted)


def _per_input(found: Evaluation, counter: str) -> NDArray[Any]:
    return found.counters.inputs.total(counter)
