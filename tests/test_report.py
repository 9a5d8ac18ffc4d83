"""The report: its figures are those of the counters, and its files hold all of them."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from isa.errors import CStepError
from runtime.counters import COUNTERS, Counters
from runtime.energy import energy, energy_table, energy_tables
from runtime.interpreter import RunResult, quantise_input, run
from runtime.report.figures import distribution
from runtime.report.listing import ProgramListing
from runtime.report.numbers import scale_for
from runtime.report.report import Inputs, Report, accuracy_of, layer_units, make_report
from runtime.report.terminal import ReportTable
from runtime.report.write import as_csv, as_html, as_json, write_report
from tests.programs import exit_program, small_program

PROGRAM = small_program()
TABLE = "cacti-28nm-lop"
INPUTS = 5


def ran(share: bool) -> RunResult:
    x = np.random.default_rng(3).standard_normal((INPUTS, 2, 4, 4)).astype(np.float32)
    return run(PROGRAM, quantise_input(PROGRAM, x), share=share)


def report_of(share: bool = True) -> Report:
    done, other = ran(share), ran(not share)
    labels = np.array([0, 1, 2, 0, 1])
    return make_report(
        PROGRAM,
        Inputs(source="random", digest="0", count=INPUTS),
        done.counters.summed(),
        done.steps,
        accuracy_of(done.logits.argmax(axis=1), labels),
        share=share,
        other=other.counters.summed(),
        equal_logits=bool((done.logits == other.logits).all()),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of()


@pytest.fixture(scope="module")
def counters() -> Counters:
    return ran(True).counters


def test_every_counter_is_a_figure_with_unit_origin_and_definition(report: Report, counters: Counters) -> None:
    for counter in COUNTERS:
        figure = report.figure(counter.name)
        assert (figure.unit, figure.definition) == (counter.unit, counter.definition)
        assert figure.per_input == distribution(counters.total(counter.name))
    assert {figure.origin for figure in report.figures} == {"measured", "modelled"}
    assert report.figure("cycles").origin == report.figure("stall_pe_dram").origin == "modelled"
    with pytest.raises(CStepError, match="no figure speed"):
        report.figure("speed")


def test_distributions_are_values_of_inputs() -> None:
    found = distribution(np.arange(1, 101))
    assert (found.mean, found.p50, found.p95, found.worst) == (50.5, 50, 95, 100)
    alone = distribution(np.array([7]))
    assert (alone.p50, alone.p95, alone.worst) == (7, 7, 7)


def test_layers_add_up_to_the_whole(report: Report) -> None:
    for name in layer_units():
        total = sum(layer.figures[name] for layer in report.layers)
        assert total == pytest.approx(report.figure(name).per_input.mean)


def test_latency_is_cycles_over_the_clock(report: Report) -> None:
    cycles = report.figure("cycles").per_input.mean
    assert report.figure("latency").per_input.mean == pytest.approx(cycles / 500e6 * 1e3)


def test_energy_of_every_table_with_its_entries(report: Report, counters: Counters) -> None:
    assert [table.name for table in report.energy] == energy_tables()
    for table in report.energy:
        spent = energy(counters.summed().inputs, energy_table(table.name)).sum(axis=1)
        assert spent == pytest.approx(energy(counters, energy_table(table.name)).sum(axis=1))
        assert report.figure(f"energy {table.name}").per_input == distribution(spent)
        assert sum(entry.mean for entry in table.entries) == pytest.approx(spent.mean())
        assert {entry.origin for entry in table.entries} == {"paper"}


def test_sharing_is_compared_on_the_same_inputs() -> None:
    on, off = report_of(share=True), report_of(share=False)
    assert on.sharing is not None
    assert on.sharing == off.sharing
    assert on.sharing.equal_logits
    rows = {row.name: row for row in on.sharing.rows}
    assert rows["sop_hw"].on == on.figure("sop_hw").per_input
    assert rows["sop_hw"].off == off.figure("sop_hw").per_input == off.figure("sop_bit").per_input
    assert rows["merges"].off.worst == 0


def test_accuracy_only_with_labels() -> None:
    assert accuracy_of(np.array([1, 2]), None) is None
    found = accuracy_of(np.array([1, 2, 3]), np.array([1, 0, 3]))
    assert found is not None
    assert (found.correct, found.inputs) == (2, 3)


def test_json_reads_back(report: Report) -> None:
    values = json.loads(as_json(report))
    assert values["schema_version"] == "cstep-report/3"
    assert values["program"] == PROGRAM.digest
    assert values["machine"]["sources"]["lanes"]
    assert Report.model_validate_json(as_json(report)) == report


def test_csv_has_a_row_for_each_layer_and_units_in_its_head(report: Report) -> None:
    head, *rows = csv.reader(io.StringIO(as_csv(report)))
    assert head[:4] == ["layer", "name", "operation", "source"]
    assert "sop_hw [operations, measured]" in head
    assert "energy cacti-28nm-lop [pJ, modelled]" in head
    assert [row[1] for row in rows] == ["stem", "block.0.fc", "head"]
    column = head.index("cycles [cycles, modelled]")
    assert [float(row[column]) for row in rows] == [layer.figures["cycles"] for layer in report.layers]


def test_the_page_is_one_file_with_every_layer_and_figure(report: Report) -> None:
    page = as_html(report, TABLE)
    assert not re.search(r"(src|href)=", page)
    assert page.count("<svg") == 4
    for figure in report.figures:
        assert f"<td>{figure.name}</td>" in page
    for layer in report.layers:
        assert page.count(f">{layer.name}</text>") == 4
    widths = [float(text) for text in re.findall(r'width="([0-9.]+)" height="14"', page)]
    assert max(widths) == pytest.approx(560)
    assert min(widths) >= 0


def test_a_page_escapes_names(report: Report) -> None:
    changed = report.model_copy(update={"provenance": report.provenance.model_copy(update={"model": "<script>"})})
    assert "<script>" not in as_html(changed, TABLE)


def test_files_are_written_whole(report: Report, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path / "new/folder", TABLE)
    assert [path.name for path in paths] == ["report.json", "per_layer.csv", "report.html"]
    assert {path.name for path in (tmp_path / "new/folder").iterdir()} == {path.name for path in paths}
    assert paths[0].read_text() == as_json(report)


def test_the_table_fits_a_terminal(report: Report) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ReportTable(report, TABLE))
    text = console.export_text()
    lines = text.splitlines()
    names = [line.split()[0] for line in lines[4:8]]
    assert names == ["sop_dense", "sop_bit", "sop_union", "sop_hw"]
    assert "same logits" in text
    assert "top-1" in text
    assert "…" not in text


@pytest.fixture(scope="module")
def decided() -> Report:
    """Of a program with an exit that some inputs take, and with a guard."""
    program = exit_program(5500, guarded=True)
    x = np.random.default_rng(3).standard_normal((INPUTS, 2, 4, 4)).astype(np.float32)
    done = run(program, quantise_input(program, x))
    inputs = Inputs(source="random", digest="0", count=INPUTS)
    return make_report(program, inputs, done.counters.summed(), done.steps, None, share=True)


def test_what_deciding_costs_has_lines_of_its_own(decided: Report) -> None:
    lines = {each.name: each for each in decided.overheads}
    for name, counter in (("exit decisions", "exit_decisions"), ("early counts", "guard_counts")):
        assert lines[name].mean == decided.figure(counter).per_input.mean > 0
    assert lines["mask building"].mean == 8 and lines["membrane spill"].mean == 0
    assert lines["heads at exit points"].mean == decided.layers[3].figures["mac"] == 8 * 3
    for table in energy_tables():
        at_exit = decided.layers[3].figures[f"energy {table}"]
        both = lines["heads at exit points"].energy[table] + lines["exit decisions"].energy[table]
        assert both == pytest.approx(at_exit) and lines["exit decisions"].energy[table] > 0


def test_exit_rate_and_timesteps_are_shown(decided: Report) -> None:
    assert decided.exits and 0 < decided.exit_rate < 1
    assert sum(decided.steps_taken.values()) == pytest.approx(1)
    assert decided.steps_taken[1] == pytest.approx(decided.exit_rate)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(ReportTable(decided, TABLE))
    text = console.export_text()
    assert f"exit rate {decided.exit_rate:.2%} (measured): {decided.steps_taken[1]:.2%} after 1, " in text
    assert "heads at exit points" in text and "membrane spill" not in text
    page = as_html(decided, TABLE)
    assert all(f"<td>{each.name}</td>" in page for each in decided.overheads)
    assert "after 1, " in page


def test_the_listing_counts_every_word() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(ProgramListing(PROGRAM))
    text = console.export_text()
    assert PROGRAM.digest in text
    assert f"{len(PROGRAM.code)} words" in text
    assert "block.0.fc" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "operations", "0 operations"),
        (999, "operations", "999 operations"),
        (39_000_000, "operations", "39.0 M operations"),
        (1_234, "cycles", "1.23 k cycles"),
        (44e6, "pJ", "44.0 µJ"),
        (0.5, "pJ", "0.500 pJ"),
        (424_000, "bytes", "424 kB"),
        (12, "bytes", "12.0 B"),
        (0.206, "ms", "0.206 ms"),
    ],
)
def test_numbers_as_people_read_them(value: float, unit: str, text: str) -> None:
    scale = scale_for(value, unit)
    assert f"{scale.text(value)} {scale.unit}" == text
