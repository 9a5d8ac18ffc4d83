"""What a search leaves in its folder: settings for every bound, all trials, and the trade-off as a picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from isa.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compiler.calibrate.journal import Trial
    from compiler.calibrate.tune import Tuned

SETTINGS, TRIALS, CURVE = "settings.toml", "trials.csv", "curve.svg"


def write_tuned(tuned: Tuned, folder: Path) -> list[Path]:
    """Write everything, each file whole or not at all; the paths."""
    from compiler.settings import as_toml

    files = {SETTINGS: as_toml(tuned.best.settings).encode()}
    for each in sorted(tuned.points, key=lambda point: point.bound):
        files[f"settings-{each.bound:g}.toml"] = as_toml(each.settings).encode()
    files[TRIALS] = trials_csv(tuned).encode()
    files[CURVE] = curve_svg(tuned)
    for name, data in files.items():
        write_whole(folder / name, data)
    return [folder / name for name in files]


def trials_csv(tuned: Tuned) -> str:
    """Every trial in the order in which it was made; costs are means per input."""
    from runtime.report.costs import COSTS

    heads = ["trial", "images", "part", "top1", "exit_rate", "seconds", "refused"]
    heads += [f"{cost.name} [{cost.unit}, {cost.origin}]" for cost in COSTS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heads, "settings"])
    for number, each in enumerate(tuned.trials, start=1):
        costs = [f"{each.costs[cost.name]:.6g}" if each.costs else "" for cost in COSTS]
        top1 = "" if each.refused else f"{each.right / each.images:.6g}"
        row = [
            number,
            each.images,
            "unseen" if each.unseen else "search",
            top1,
            f"{each.exit_rate:.6g}",
            each.seconds,
            each.refused,
        ]
        writer.writerow([*row, *costs, json.dumps(_searched(each), separators=(",", ":"))])
    return text.getvalue()


def _searched(trial: Trial) -> dict[str, object]:
    """The tables of a trial's settings, without what all trials have."""
    return {key: value for key, value in json.loads(trial.settings).items() if key not in ("schema", "model", "curve")}


def curve_svg(tuned: Tuned) -> bytes:
    """Accuracy over cost: all trials on all images as dots, the bounds' best as a line. The same bytes each time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from runtime.report.costs import COSTS

    name, images = tuned.goal.objective, tuned.baseline.images
    cost = next(each for each in COSTS if each.name == name)
    over = "sop_bit" if name == "operations" else name
    whole = [each for each in tuned.trials if each.images == images and not each.unseen and not each.refused]
    with rc_context({"svg.hashsalt": "cstep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [each.costs[name] / tuned.baseline.costs[over] for each in whole], _percent(whole), ".", color="0.6",
            label=f"trials on all {images:,} images",
        )  # fmt: skip
        front = sorted(tuned.points, key=lambda each: each.bound)
        labels = [f"loss <= {each.bound:g}" for each in front]
        places = [(each.relative(name), 100 * each.whole.right / images) for each in front]
        axes.plot(*zip(*places, strict=True), "-o", color="C0", label="best within a bound")
        for label, place in dict(zip(labels, places, strict=True)).items():
            axes.annotate(label, place, fontsize=7, xytext=(4, 4), textcoords="offset points")
        axes.plot([1.0], [100 * tuned.baseline.right / images], "k*", label="baseline: bit-sparse, nothing lost")
        axes.set_xlabel(f"{name}, mean per input over the baseline's {over} ({cost.origin})")
        axes.set_ylabel("top-1 [%] on held-out training images, measured")
        axes.legend(fontsize=7, loc="lower right")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def _percent(trials: Iterable[Trial]) -> list[float]:
    return [100 * each.right / each.images for each in trials]
