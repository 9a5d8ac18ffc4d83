"""`cstep figures`: the four figures of motivation, from spikes and logits whose figures are known."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import cstep
from compiler.settings import Exit, Model, Settings
from isa.program import Program
from runtime.interpreter import run
from runtime.quantise import quantise_input
from runtime.report.motivation import (
    LayerSpikes,
    add_input,
    always_exiting,
    estimates,
    exit_points,
    exits_of,
    mean_fraction,
    never_exiting,
    observe,
)
from runtime.report.motivation_files import write_figures
from tests.models import Shape, spikformer

INPUTS = 6
Integers = NDArray[np.int8]


@pytest.fixture(scope="module")
def program() -> Program:
    """A small network with exits after 1 and 2 of 4 timesteps."""
    model, images = spikformer(Shape())
    exits = Exit(after=(1, 2), tau=(0.2501, 0.3))
    settings = Settings(model=Model(name="net"), exit=exits)
    return cstep.compile(model, images[:1], calibration=images, check=False, settings=settings)


@pytest.fixture(scope="module")
def inputs(program: Program) -> Integers:
    images = np.random.default_rng(5).standard_normal((INPUTS, *program.header.input.shape)).astype(np.float32)
    return quantise_input(program, images)


def test_silent_channels_are_those_without_an_early_spike() -> None:
    """T=4, 4 tokens, channels: never, late only, early only, always."""
    spikes = np.zeros((4, 4, 4), np.uint8)
    spikes[3, 0, 1] = spikes[0, 2, 2] = 1
    spikes[:, :, 3] = 1
    found = LayerSpikes("lif")
    add_input(found, spikes)
    assert (found.channels, found.silent, found.silent_ratio) == (4, 2, 0.5)
    assert found.late_rate == (1 + 8) / (2 * 4 * 4)
    assert found.silent_late_rate == 1 / (2 * 4 * 2)


def test_common_spikes_are_those_that_all_tokens_of_a_group_have() -> None:
    """One timestep early, three late; tokens 0 and 1 share one of their three bits, 2 and 3 all of theirs."""
    spikes = np.zeros((4, 4, 3), np.uint8)
    spikes[0, 0, :2] = spikes[0, 1, 1] = 1
    spikes[0, 2:, 0] = 1
    found = LayerSpikes("lif")
    add_input(found, spikes)
    assert found.common_fraction(2) == (2 + 2) / 5
    assert found.common_fraction(4) == 0
    assert found.bits[8] == 0
    assert mean_fraction({0: found, 3: found}, 2) == found.common_fraction(2)


def test_exits_are_switched_off_or_taken_by_every_input(program: Program, inputs: Integers) -> None:
    assert exits_of(program) == (1, 2)
    plain, never = run(program, inputs), run(never_exiting(program), inputs)
    assert never.steps.tolist() == [4] * INPUTS
    assert run(always_exiting(program, 2), inputs).steps.tolist() == [2] * INPUTS
    early = run(always_exiting(program, 1), inputs)
    assert np.array_equal(early.logits, never.decisions[:, 0])
    stays = plain.steps == 4
    assert np.array_equal(plain.logits[stays], never.logits[stays])


def test_exited_inputs_are_the_surest(program: Program, inputs: Integers) -> None:
    done = run(never_exiting(program), inputs)
    truth = done.decisions[:, 1].argmax(axis=1)
    points = exit_points(done, (1, 2), program.header.output.scale, truth)
    assert [point.after for point in points] == [1] * 9 + [2] * 9
    assert all(point.exited == 1 for point in points if point.after == 2 and point.share)
    shares = [point.share for point in points if point.after == 2]
    assert shares == sorted(shares)
    taus = [point.tau for point in points if point.after == 1]
    assert taus == sorted(taus, reverse=True)


def test_the_estimate_is_the_papers_product(program: Program, inputs: Integers) -> None:
    layers = observe(program, inputs[:2], 1)
    assert layers.keys() == set(program.source_map[:, 1].tolist())
    whole = run(never_exiting(program), inputs, share=False)
    early = run(always_exiting(program, 2), inputs, share=False)
    made = estimates(layers, whole, early, 0.4)
    bits = [each.counters.total("sop_bit").sum() for each in (early, whole)]
    for each in made:
        assert each.early == pytest.approx(bits[0] / bits[1])
        left = each.early + 0.6 * (1 - each.early) * (1 - each.removed)
        assert each.exit_and_guards == pytest.approx(left)
        share = each.common_fraction * (each.neighbours - 1) / each.neighbours
        assert each.everything == pytest.approx(left * (1 - share))
    assert 0 <= made[0].removed <= 1


def test_the_command_writes_four_figures(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], refuses: Callable[..., str]
) -> None:
    program.save(tmp_path / "net.cstep")
    images = np.random.default_rng(1).standard_normal((4, *program.header.input.shape)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=images, y=np.arange(4))
    command = ["figures", str(tmp_path / "net.cstep"), str(tmp_path / "test.npz"), "-o", str(tmp_path / "out")]
    assert cstep.main(command) == 0
    assert "paper, other weights" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = ("exited_accuracy", "silent_channels", "common_fraction", "reduction_estimate")
    assert names == {f"{name}.{ending}" for name in figures for ending in ("csv", "svg")}
    for name in figures:
        rows = list(csv.DictReader((tmp_path / "out" / f"{name}.csv").read_text().splitlines()))
        assert {row["whose"] for row in rows} == {"ours", "paper, other weights"}
    assert "no such dataset" in refuses("figures", tmp_path / "net.cstep", "nowhere.npz", "-o", tmp_path / "out")


def test_figures_are_the_same_bytes_again(program: Program, inputs: Integers, tmp_path: Path) -> None:
    layers = observe(never_exiting(program), inputs[:1], 1)
    made = estimates(layers, run(never_exiting(program), inputs[:1]), None, 0.4)
    assert made[0].early == pytest.approx(0.5)
    first = [path.read_bytes() for path in write_figures(tmp_path, "net", [], layers, made)]
    assert [path.read_bytes() for path in write_figures(tmp_path, "net", [], layers, made)] == first
    assert len(first) == 6
