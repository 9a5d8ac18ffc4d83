"""A ladder as files: ladder.json, ladder.csv, ladder.svg. Each appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isa.files import write_whole
from runtime.evaluate.ladder import Ladder, Row
from runtime.report.write import make_directory

PLAIN = ("key", "name", "kind", "share", "schedule", "average_timesteps", "loss_bound", "accuracy", "loss", "exit_rate")


def write_ladder(ladder: Ladder, folder: Path) -> list[Path]:
    """Write the three files into `folder` (made where it is missing) and return their paths."""
    make_directory(folder)
    contents = {"ladder.json": as_json(ladder), "ladder.csv": as_csv(ladder)}
    for name, text in contents.items():
        write_whole(folder / name, text.encode())
    write_whole(folder / "ladder.svg", as_svg(ladder))
    return [folder / name for name in (*contents, "ladder.svg")]


def as_json(ladder: Ladder) -> str:
    """All of it; the keys are those of `Ladder`."""
    return json.dumps(ladder.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def as_csv(ladder: Ladder) -> str:
    """A row each; of every figure the mean, and its ratio to the baseline. The paper's ratios come last."""
    names = [(figure.name, figure.unit, figure.origin) for figure in ladder.rows[0].figures]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [head for name, unit, how in names for head in (f"{name} [{unit}, {how}]", f"{name} / baseline")]
    deciding = [f"{each.name} [{each.unit}, {each.origin}]" for each in ladder.rows[0].overheads]
    writer.writerow([*PLAIN, "common_fraction", *heads, *deciding])
    for row in ladder.rows:
        plain = [getattr(row, key) for key in (*PLAIN, "common_fraction")]
        figures = [cell for figure in row.figures for cell in (figure.per_input.mean, figure.relative)]
        writer.writerow([_cell(cell) for cell in (*plain, *figures, *(each.mean for each in row.overheads))])
    for name, value in (
        ("exit + guards", ladder.paper.exit_and_guards),
        ("exit + guards + sharing", ladder.paper.with_sharing),
    ):
        plain = {"key": "paper", "name": f"{name} ({ladder.paper.note})", "exit_rate": ladder.paper.exit_rate}
        shown = {"sop_union": value} if "sharing" in name else {"sop_bit": value}
        cells = [cell for figure, _, _ in names for cell in ("", _cell(shown.get(figure)))]
        writer.writerow([*(_cell(plain.get(key)) for key in PLAIN), "", *cells])
    return text.getvalue()


def as_svg(ladder: Ladder) -> bytes:
    """Accuracy against operations, relative to the baseline's; the same ladder gives the same bytes."""
    with rc_context({"svg.hashsalt": "cstep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        _draw(axes, ladder)
        figure.suptitle(f"{ladder.model}: {ladder.inputs.count:,} inputs of {ladder.inputs.source}")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def _draw(axes: Axes, ladder: Ladder) -> None:
    curve = [row for row in ladder.rows if row.kind == "curve"]
    steps = [row for row in ladder.rows if row.kind in ("exact", "lossy")]
    for name, mark in (("sop_bit", "o"), ("sop_hw", "s")):
        if curve:
            label = "trade-off, " + ("without sharing (sop_bit)" if name == "sop_bit" else "with sharing (sop_hw)")
            axes.plot([row.relative(name) for row in curve], [_percent(row) for row in curve], f"-{mark}", label=label)
    axes.plot([row.relative("sop_hw") for row in steps], [_percent(row) for row in steps], "k+", label="steps (sop_hw)")
    together: dict[tuple[float, float], list[str]] = {}
    for row in steps:  # those in one place share a label
        together.setdefault((round(row.relative("sop_hw"), 2), round(_percent(row), 2)), []).append(row.name)
    for place, names in together.items():
        offset, side = ((6, -2), "left") if place[0] < 0.85 else ((-6, -2), "right")
        axes.annotate("\n".join(names), place, offset, textcoords="offset points", ha=side, va="top", fontsize=7)
    for value, what in (
        (ladder.paper.exit_and_guards, "0.607"),
        (ladder.paper.with_sharing, "0.356"),
    ):
        axes.axvline(value, color="grey", linestyle=":", label=f"{what}x: {ladder.paper.note}")
    axes.set_xlabel("accumulations relative to the baseline's sop_bit, measured")
    axes.set_ylabel("top-1 [%], measured" if _percent(ladder.rows[0]) else "no labels")
    axes.legend(fontsize=7)


def _percent(row: Row) -> float:
    return 100 * (row.accuracy or 0.0)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)
