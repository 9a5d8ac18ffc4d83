"""The report as files: report.json, per_layer.csv, report.html. Each appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from isa.errors import CStepError
from isa.files import write_whole
from isa.word import Unit
from runtime.report.numbers import scale_for
from runtime.report.report import Report, layer_units

PARTS = {
    "cycles": tuple(f"busy_{unit.name.lower()}" for unit in Unit if unit != Unit.CONTROL),
    "operations": ("sop_hw", "mac", "add", "neuron_updates"),
}
"""What the bar pictures of the page divide each layer into; the units overlap, so their cycles add up to more."""


def write_report(report: Report, directory: Path, energy_table: str) -> list[Path]:
    """Write the three files into `directory` (made where it is missing) and return their paths."""
    contents = {
        "report.json": as_json(report),
        "per_layer.csv": as_csv(report),
        "report.html": as_html(report, energy_table),
    }
    make_directory(directory)
    for name, text in contents.items():
        write_whole(directory / name, text.encode())
    return [directory / name for name in contents]


def make_directory(directory: Path) -> None:
    """Make a directory and its parents. Raises CStepError where that is impossible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CStepError(f"{directory}: cannot be made ({error.strerror}); give a directory to write into") from None


def as_json(report: Report) -> str:
    """All of it; the keys are those of `Report`."""
    return json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def as_csv(report: Report) -> str:
    """A row for each layer, means over the inputs; a column's head says name, unit and origin."""
    units = layer_units()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["layer", "name", "operation", "source", *(f"{name} [{unit}, {how}]" for name, (unit, how) in units.items())]
    )
    for layer in report.layers:
        figures = [f"{layer.figures[name]:.10g}" for name in units]
        writer.writerow([layer.index, layer.name, layer.operation, layer.source, *figures])
    return text.getvalue()


@dataclass(frozen=True)
class Bar:
    """A layer's bar: its label, its value as text, and its parts as (name, start, width) in percent of the longest."""

    label: str
    text: str
    parts: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Picture:
    """Bars of all layers, and what their parts are."""

    title: str
    parts: tuple[str, ...]
    bars: tuple[Bar, ...]


def as_html(report: Report, energy_table: str) -> str:
    """One page without any other file: the table, and where cycles, operations and energy go."""
    folder = Path(__file__).parent
    pages = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    energy = next(table for table in report.energy if table.name == energy_table)
    pictures = (
        _picture(report, "Cycles by layer (modelled)", ("cycles",), "cycles"),
        _picture(report, "Cycles of the units by layer (modelled; the units overlap)", PARTS["cycles"], "cycles"),
        _picture(report, "Operations by layer (measured)", PARTS["operations"], "operations"),
        _picture(report, f"Energy by layer (modelled, table {energy_table})", (f"energy {energy_table}",), "pJ"),
    )
    return pages.get_template("page.html").render(
        report=report, energy=energy, energy_table=energy_table, pictures=pictures, rows=_rows(report)
    )


def _rows(report: Report) -> list[tuple[str, ...]]:
    """Every figure as text: name, mean, p50, p95, worst, unit, origin, definition."""
    rows: list[tuple[str, ...]] = []
    for figure in report.figures:
        values = figure.per_input
        scale = scale_for(values.worst, figure.unit)
        texts = (scale.text(value) for value in (values.mean, values.p50, values.p95, values.worst))
        rows.append((figure.name, *texts, scale.unit, figure.origin, figure.definition))
    return rows


def _picture(report: Report, title: str, parts: tuple[str, ...], unit: str) -> Picture:
    totals = [sum(layer.figures[part] for part in parts) for layer in report.layers]
    longest = max(totals, default=0.0) or 1.0
    scale = scale_for(longest, unit)
    bars: list[Bar] = []
    for layer, total in zip(report.layers, totals, strict=True):
        start, drawn = 0.0, list[tuple[str, float, float]]()
        for part in parts:
            width = 100 * layer.figures[part] / longest
            drawn.append((part, start, width))
            start += width
        bars.append(Bar(layer.name, f"{scale.text(total)} {scale.unit}", tuple(drawn)))
    return Picture(title, parts, tuple(bars))
