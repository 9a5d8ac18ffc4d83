"""The four figures of motivation as csv and svg, the paper's values beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isa.files import write_whole
from runtime.report.motivation import NEIGHBOURS, Estimate, ExitPoint, LayerSpikes, mean_fraction
from runtime.report.write import make_directory

PAPER = "paper, other weights"
PAPER_EXITED = 0.9694
"""Accuracy of the half that exits after 2 timesteps, the best of its models on ImageNet-1K (fig. 1a)."""
PAPER_SILENT = (6.7, 20.0)
"""By how much less silent channels fire later than the mean, over its models (fig. 1b)."""
PAPER_COMMON = 0.827
"""Largest common fraction for K = 2 (fig. 2a)."""
PAPER_LEFT = (0.607, 0.356)
"""Operations left with exits and pruning, and with sharing, QKFormer (fig. 5)."""


def write_figures(
    folder: Path,
    title: str,
    points: Sequence[ExitPoint],
    layers: Mapping[int, LayerSpikes],
    made: Sequence[Estimate],
) -> list[Path]:
    """Write each figure's csv and svg into `folder` (made where it is missing); the paths."""
    make_directory(folder)
    figures: dict[str, tuple[str, Callable[[Axes], None]]] = {
        "silent_channels": (silent_csv(layers), lambda axes: _draw_silent(axes, layers)),
        "common_fraction": (common_csv(layers), lambda axes: _draw_common(axes, layers)),
        "reduction_estimate": (estimate_csv(made), lambda axes: _draw_estimates(axes, made)),
    }
    if points:
        figures["exited_accuracy"] = (points_csv(points), lambda axes: _draw_points(axes, points))
    written: list[Path] = []
    for name, (text, draw) in figures.items():
        write_whole(folder / f"{name}.csv", text.encode())
        write_whole(folder / f"{name}.svg", _svg(title, draw))
        written += [folder / f"{name}.csv", folder / f"{name}.svg"]
    return written


def points_csv(points: Sequence[ExitPoint]) -> str:
    """Accuracy of the inputs that leave and of the others, by threshold; measured."""
    names = [each.name for each in fields(ExitPoint)]
    rows: list[list[object]] = [["ours", *asdict(point).values()] for point in points]
    rows.append([PAPER, 2, 0.5, "", PAPER_EXITED, "", "", ""])
    return _csv(["whose", *names], rows)


def silent_csv(layers: Mapping[int, LayerSpikes]) -> str:
    """Channels silent early, and how much they fire later, by layer; measured."""
    heads = ["whose", "layer", "silent_ratio", "late_rate", "silent_late_rate", "mean_over_silent"]
    rows: list[list[object]] = []
    for each in layers.values():
        rows.append(["ours", each.name, each.silent_ratio, each.late_rate, each.silent_late_rate, _ratio(each)])
    rows.append(["ours", "all layers", *all_layers(layers)])
    for value in PAPER_SILENT:
        rows.append([PAPER, "all layers", "", "", "", value])
    return _csv(heads, rows)


def common_csv(layers: Mapping[int, LayerSpikes]) -> str:
    """Common fraction of K neighbouring tokens, by layer; measured on spikes."""
    rows: list[list[object]] = []
    for each in layers.values():
        fractions = [each.common_fraction(count) if each.bits.get(count) else "" for count in NEIGHBOURS]
        rows.append(["ours", each.name, *fractions])
    rows.append(["ours", "all layers", *(mean_fraction(dict(layers), count) for count in NEIGHBOURS)])
    rows.append([PAPER, "largest of its models", PAPER_COMMON, "", ""])
    return _csv(["whose", "layer", *(f"K={count}" for count in NEIGHBOURS)], rows)


def estimate_csv(made: Sequence[Estimate]) -> str:
    """What would be left of the operations; modelled from measured shares."""
    names = [each.name for each in fields(Estimate)]
    paper: dict[str, object] = {"neighbours": 2, "common_fraction": PAPER_COMMON, "sharing": 1 - PAPER_COMMON / 2}
    paper |= {"exit_rate": 0.4, "removed": 0.64, "exit_and_guards": PAPER_LEFT[0], "everything": PAPER_LEFT[1]}
    rows: list[list[object]] = [["ours", *asdict(each).values()] for each in made]
    rows.append([PAPER, *(paper.get(name, "") for name in names)])
    return _csv(["whose", *names], rows)


def all_layers(layers: Mapping[int, LayerSpikes]) -> tuple[float, float, float, float]:
    """Ratio and rates over all channels, each counted alike."""
    whole = LayerSpikes("all layers")
    for each in layers.values():
        whole.channels += each.channels
        whole.silent += each.silent
        whole.late_spikes += each.late_spikes
        whole.late_places += each.late_places
        whole.silent_late_spikes += each.silent_late_spikes
        whole.silent_late_places += each.silent_late_places
    return whole.silent_ratio, whole.late_rate, whole.silent_late_rate, _ratio(whole)


def _ratio(layer: LayerSpikes) -> float:
    """By how much less silent channels fire than the mean; NaN where they never do, or there are none."""
    return layer.late_rate / layer.silent_late_rate if layer.silent_late_rate else float("nan")


def _draw_points(axes: Axes, points: Sequence[ExitPoint]) -> None:
    for after in sorted({point.after for point in points}):
        mine = [point for point in points if point.after == after]
        shares = [point.share for point in mine]
        [line] = axes.plot(shares, [100 * point.exited for point in mine], "-o", label=f"exited after {after}")
        others, label = [100 * point.stayed_full for point in mine], f"the others, all timesteps ({after})"
        axes.plot(shares, others, ":", color=line.get_color(), label=label)
    axes.plot([0.5], [100 * PAPER_EXITED], "k*", label=f"exited after 2: {PAPER}")
    axes.set_xlabel("share of the inputs that exit")
    axes.set_ylabel("top-1 [%], measured")
    axes.legend(fontsize=7)


def _draw_silent(axes: Axes, layers: Mapping[int, LayerSpikes]) -> None:
    places = range(len(layers))
    axes.bar(places, [each.silent_ratio for each in layers.values()], label="silent channels")
    axes.plot(places, [each.late_rate for each in layers.values()], "k_", label="later rate, all channels")
    axes.plot(places, [each.silent_late_rate for each in layers.values()], "r_", label="later rate, silent channels")
    _name_layers(axes, layers, "share, or spikes a place; measured")


def _draw_common(axes: Axes, layers: Mapping[int, LayerSpikes]) -> None:
    for count in NEIGHBOURS:
        axes.plot([each.common_fraction(count) for each in layers.values()], "o", markersize=4, label=f"K={count}")
    axes.axhline(PAPER_COMMON, color="grey", linestyle=":", label=f"K=2, {PAPER}")
    _name_layers(axes, layers, "common fraction, measured")


def _name_layers(axes: Axes, layers: Mapping[int, LayerSpikes], what: str) -> None:
    axes.set_xticks(range(len(layers)), [each.name for each in layers.values()], rotation=90, fontsize=6)
    axes.set_ylabel(what)
    axes.legend(fontsize=7)


def _draw_estimates(axes: Axes, made: Sequence[Estimate]) -> None:
    names = [f"K={each.neighbours}" for each in made]
    axes.bar(names, [each.sharing for each in made], width=0.4, label="sharing alone")
    axes.bar(names, [each.everything for each in made], width=0.2, label="exit + guards + sharing")
    axes.axhline(PAPER_LEFT[1], color="grey", linestyle=":", label=f"exit + guards + sharing: {PAPER}")
    axes.set_ylabel("operations left, modelled from measured shares")
    axes.legend(fontsize=7)


def _svg(title: str, draw: Callable[[Axes], None]) -> bytes:
    """The same figures give the same bytes."""
    with rc_context({"svg.hashsalt": "cstep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        draw(figure.subplots())
        figure.suptitle(title)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def _csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue()
