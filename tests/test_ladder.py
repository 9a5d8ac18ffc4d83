"""`cstep calibrate` and `cstep eval MODEL --settings`: settings from training images, and what every step saves."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import cstep
from compiler.calibrate.steps import steps_of
from compiler.settings import (
    SCHEMA,
    CurvePoint,
    Exit,
    Guard,
    Halting,
    Model,
    PatchSplitting,
    Settings,
    Timesteps,
    Tokens,
    settings_of,
)
from isa.errors import CStepError
from isa.machine import load_machine
from isa.program import load
from runtime.evaluate.ladder import Ladder
from runtime.evaluate.ladder_files import write_ladder
from runtime.evaluate.ladder_table import LadderTable
from runtime.interpreter import run
from runtime.quantise import quantise_input
from tests.models import Shape, spikformer

INPUTS, WIDTH = 12, 120


@dataclass(frozen=True)
class Case:
    """A small network whose labels are what it says itself."""

    model: nn.Module
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def save(self, path: Path, first: int, last: int) -> str:
        np.savez(path, x=self.images[first:last], y=self.labels[first:last])
        return str(path)


@pytest.fixture(scope="module")
def case() -> Case:
    model, _ = spikformer(Shape(classes=5))
    images = np.random.default_rng(3).standard_normal((200, 1, 16, 16)).astype(np.float32)
    program = cstep.compile(model, images[:1], calibration=images[:16], check=False)
    return Case(model, images, cstep.run(program, images).labels)


@pytest.fixture(scope="module")
def settings(case: Case) -> Settings:
    return cstep.calibrate(
        case.model, case.images[:1], case.images[16:136], case.labels[16:136], calibration=case.images[:16], loss=5.0
    )


@pytest.fixture(scope="module")
def ladder(case: Case, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    folder = tmp_path_factory.mktemp("ladder")
    data = case.save(folder / "test.npz", 136, 136 + INPUTS)
    return cstep.ladder(
        case.model, case.images[:1], data, folder / "out", settings=settings, calibration=case.images[:16], workers=1
    )


def test_settings_keep_what_was_asked_and_say_what_was_measured(case: Case, settings: Settings) -> None:
    assert settings.exit is not None and settings.exit.rate is not None and settings.exit.loss is not None
    assert settings.exit.after == (2,)
    assert settings.exit.rate <= 0.4
    assert settings.exit.loss <= 5
    assert settings.data is not None and settings.data.images == 120
    program = cstep.compile(
        case.model, case.images[:1], calibration=case.images[:16], check=False,
        settings=settings.model_copy(update={"guard": None}),
    )  # fmt: skip
    done = run(program, quantise_input(program, case.images[16:136]))
    assert float((done.steps == 2).mean()) == settings.exit.rate
    right = (done.logits.argmax(axis=1) == case.labels[16:136]).mean()
    assert 100 * (1 - right) == pytest.approx(settings.exit.loss)
    assert json.loads(program.header.provenance.settings)["exit"]["tau"] == list(settings.exit.tau)


def test_the_curve_gives_more_for_a_looser_bound(settings: Settings) -> None:
    bounds = [point.loss_bound for point in settings.curve]
    assert {0.0, 0.1, 0.5, 1.0, 5.0} == set(bounds)
    assert all(point.loss <= point.loss_bound + 1e-9 for point in settings.curve)
    rates = [point.rate for point in settings.curve if point.guard_threshold < 0]
    assert rates == sorted(rates)


def test_every_step_is_run_on_the_same_inputs(ladder: Ladder, settings: Settings) -> None:
    assert [row.key for row in ladder.rows] == [step.key for step in steps_of(settings)]
    assert ladder.inputs.count == INPUTS
    first, exits, sharing = ladder.row("baseline"), ladder.row("exit"), ladder.row("sharing")
    assert first.relative("sop_bit") == 1
    assert first.accuracy == 1
    assert first.exit_rate == 0
    assert ladder.row("hoist").figure("mac").per_input.mean < first.figure("mac").per_input.mean
    assert ladder.row("hoist").relative("sop_bit") == 1
    assert ladder.row("windows").figure("dram_membrane_bytes").per_input.mean > 0
    assert ladder.row("all-exit").exit_rate == 1
    assert ladder.row("all-exit").relative("sop_bit") < exits.relative("sop_bit") <= 1
    assert sharing.share
    assert sharing.relative("sop_hw") <= sharing.relative("sop_bit")
    assert exits.deciding > first.deciding == 0


def test_the_goal_names_what_falls_short(ladder: Ladder) -> None:
    for goal in ladder.goals:
        if not goal.reached:
            assert any(factor.short for factor in goal.factors) or goal.relative > goal.wanted
    assert [goal.wanted for goal in ladder.goals] == [0.607, 0.356]


def test_a_step_is_the_program_that_compile_gives(case: Case, settings: Settings, tmp_path: Path) -> None:
    from command.ladder import Climb

    climb = Climb(
        case.model, case.images[:1], case.images[:16], None, load_machine("c-step"),
        (type(case.model).__name__, "in memory", "16 images in memory"), ((), ()), None,
    )  # fmt: skip
    step = next(step for step in steps_of(settings) if step.key == "exit")
    rung = climb.rung(step, tmp_path)
    compiled = cstep.compile(
        case.model, case.images[:1], calibration=case.images[:16], settings=step.settings, check=False
    )
    assert load(rung.program).digest == compiled.digest


def test_a_ladder_is_a_table_of_120_columns_and_three_files(ladder: Ladder, tmp_path: Path) -> None:
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=WIDTH).print(LadderTable(ladder))
    lines = text.getvalue().splitlines()
    starts = ["baseline", "+ hoist", "windows, no exits", "+ exit ", "paper, other weights", "cost of windows"]
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert "..." not in text.getvalue() and "…" not in text.getvalue()
    written = write_ladder(ladder, tmp_path)
    assert [path.name for path in written] == ["ladder.json", "ladder.csv", "ladder.svg"]
    assert Ladder.model_validate_json(written[0].read_bytes()) == ladder
    rows = list(csv.DictReader(io.StringIO(written[1].read_text())))
    assert [row["key"] for row in rows] == [*(row.key for row in ladder.rows), "paper", "paper"]
    assert rows[0]["sop_bit / baseline"] == "1"
    before = written[2].read_bytes()
    assert write_ladder(ladder, tmp_path)[2].read_bytes() == before


def test_a_machine_with_more_modes_has_a_row_for_each(case: Case, tmp_path: Path) -> None:
    """Uncharged and charged, on the same spikes; nothing but the counts differs."""
    data, machine = case.save(tmp_path / "test.npz", 136, 136 + 3), load_machine("c-step-reuse")
    plain = Settings(model=Model(name=type(case.model).__name__))
    found = cstep.ladder(
        case.model, case.images[:1], data, tmp_path / "out", settings=plain, calibration=case.images[:16],
        machine=machine, workers=1,
    )  # fmt: skip
    keys = ["sharing", *(f"sharing-{mode}" for mode in machine.sharing[1:])]
    assert [row.key for row in found.rows] == ["baseline", "hoist", "windows", *keys]
    rows = {key: found.row(key) for key in keys}
    for key, row in rows.items():
        assert row.kind == "exact"
        assert row.relative("sop_bit") == 1
        assert row.accuracy == found.rows[0].accuracy
        assert row.relative("sop_union") <= row.relative("sop_hw")
        assert row.common_fraction == rows["sharing"].common_fraction
        assert (row.figure("matching_bits").per_input.mean > 0) == (key != "sharing")
    assert rows["sharing-forest"].relative("sop_hw") < rows["sharing"].relative("sop_hw")
    for mode in machine.sharing[1:]:
        told = load(tmp_path / "out" / f"sharing-{mode}.cstep").header.provenance
        assert f"factor-common-spikes{{mode={mode}}},lower-to-cstep" in told.pipeline


def test_steps_are_those_that_the_settings_have() -> None:
    plain = Settings(model=Model(name="net"))
    assert [step.key for step in steps_of(plain)] == ["baseline", "hoist", "windows", "sharing"]
    whole = plain.model_copy(
        update={
            "tokens": Tokens(keep=(0.5,)), "timesteps": Timesteps(masks={"lif": "10"}), "guard": Guard(threshold=4),
            "exit": Exit(after=(2,), tau=(0.9,)),
            "curve": (CurvePoint(loss_bound=0.5, tau=(0.7,), guard_threshold=8, rate=0.5, loss=0.4),),
        }
    )  # fmt: skip
    steps = {step.key: step for step in steps_of(whole)}
    assert list(steps) == [
        "baseline", "hoist", "windows", "masks", "tokens", "exit", "all-exit", "rows", "columns", "both", "sharing",
        "alone-tokens", "alone-exit", "alone-guard", "alone-sharing", "curve-0.5",
    ]  # fmt: skip
    alone = steps["alone-exit"].settings
    assert alone is not None and alone.exit == whole.exit and alone.timesteps is None is alone.guard
    curve, last = steps["curve-0.5"].settings, steps["sharing"].settings
    assert curve is not None and curve.guard is not None and curve.exit is not None
    assert (curve.guard.threshold, curve.exit.tau) == (8, (0.7,))
    assert (curve.timesteps, curve.tokens) == (whole.timesteps, whole.tokens)
    assert last is not None and last.guard == whole.guard
    assert all(step.share == (key in ("sharing", "alone-sharing", "curve-0.5")) for key, step in steps.items())


def test_a_retrained_model_is_measured_against_what_it_was_before(
    case: Case, settings: Settings, tmp_path: Path
) -> None:
    before, _ = spikformer(Shape(classes=5, seed=9))
    data = case.save(tmp_path / "test.npz", 136, 136 + INPUTS)
    asked = settings.model_copy(update={"guard": None, "curve": ()})
    found = cstep.ladder(
        case.model, case.images[:1], data, tmp_path / "out", settings=asked, before=before,
        calibration=case.images[:16], workers=1,
    )  # fmt: skip
    first, own = found.rows[:2]
    assert (first.name, own.name, own.kind) == ("baseline", "retrained", "lossy")
    assert first.relative("sop_bit") == 1.0
    alone = cstep.compile(before, case.images[:1], calibration=case.images[:16], check=False, hoist=False)
    assert load(tmp_path / "out" / "before.cstep").code == alone.code
    bits = [row.figure("sop_bit").per_input.mean for row in (first, own)]
    assert own.relative("sop_bit") == bits[1] / bits[0] != 1.0
    assert first.accuracy is not None and own.loss == pytest.approx(100 * (first.accuracy - 1.0))


def test_tokens_and_halting_have_steps_and_what_a_model_was_trained_for_is_in_all() -> None:
    whole = Settings(
        model=Model(name="net"), patch_splitting=PatchSplitting(), halting=Halting(alpha=-5.0, beta=0.0),
        exit=Exit(after=(2,), tau=(0.9,)),
    )  # fmt: skip
    steps = {step.key: step for step in steps_of(whole, sharing=("pair", "forest"))}
    assert list(steps) == [
        "baseline", "hoist", "windows", "halting", "exit", "all-exit", "rows", "columns", "both", "sharing",
        "sharing-forest", "alone-exit", "alone-sharing", "alone-sharing-forest",
    ]  # fmt: skip
    assert all(step.settings and step.settings.patch_splitting for step in steps.values())
    assert steps["sharing-forest"].name == "+ halting + exit + sharing, forest"
    both = {"tokens": {"keep": 0.5}, "halting": {"alpha": 1.0, "beta": 0.0}}
    with pytest.raises(CStepError, match=r"\[tokens\] and \[halting\]: both leave tokens out"):
        settings_of({"schema": SCHEMA, "model": {"name": "n"}, **both}, "s")
