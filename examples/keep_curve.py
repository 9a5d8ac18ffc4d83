"""Accuracy and cost of a program over the share of its tokens that go through each block (TP-Spikformer), by score.

    python examples/keep_curve.py                                    the bundled digits, under a minute
    python examples/keep_curve.py spikformer-2-64 --checkpoint net.safetensors \\
           --calibration cifar10-train.parquet --data cifar10-test.parquet --output curve

The model is quantised once. Every share and score, and every seed of the random one, is a program of its own; all of
them run on the emulator on the same images, sharing off. The last lines say where a score loses to random: where random
is ahead by more than the standard error of the difference, which is that of the images (the same ones, so each image's
difference counts) and of the seeds.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

import cstep
from command.arguments import Checkpoint, InputShape, MachineName, PerChannel, calibration_images, numbers
from compiler.calibrate.trials import compile_integer, front_passes, integer_network
from compiler.frontend.importer import import_model
from compiler.frontend.model import open_model
from compiler.ir.network import Network
from compiler.passes.blocks import blocks_of
from compiler.passes.stop_tokens import RANDOM
from compiler.settings import Model, Parts, Settings, Tokens
from isa.errors import CStepError
from isa.files import write_whole
from isa.machine import Machine, load_machine
from runtime.dataset import Dataset, load_dataset
from runtime.interpreter import run
from runtime.quantise import quantise_input
from runtime.report.console import progress_bar, show
from runtime.report.numbers import Scale
from runtime.report.write import make_directory

HERE = Path(__file__).resolve().parent
BUNDLED = HERE / "spikformer-digits.safetensors"
SHARES = "1,0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2,0.1,0"
SCORES = "paper,spatial,temporal,magnitude,code,random"
COSTS = ("sop_bit", "mac", "token_scores", "cycles")
AT_ONCE = 256
"""Inputs whose counters are held together."""
ALL = "all"
"""The score's name where every token is kept."""


@dataclass(frozen=True, eq=False)
class Point:
    """One program on all images."""

    keep: float
    score: str
    seed: int
    hits: NDArray[np.bool_]
    """[images]: whether the greatest logit is the label's."""
    costs: dict[str, float]
    """Mean of an image, by counter."""

    @property
    def top1(self) -> float:
        return float(self.hits.mean())


@dataclass(frozen=True)
class Duel:
    """A score against random at one share: points of top-1 that it is ahead, and their standard error."""

    keep: float
    score: str
    ahead: float
    error: float

    @property
    def is_lost(self) -> bool:
        return self.ahead < -self.error


def opened(
    model: str,
    checkpoint: Path | None,
    calibration: str,
    machine: Machine,
    images_as: tuple[str | None, str | None, str | None],
) -> tuple[Network, Dataset]:
    """The integer network, and the images that its ranges came from."""
    found = open_model(model, checkpoint)
    ranges = calibration_images(calibration, found, *images_as)
    images = ranges.images
    front = front_passes(machine, images, None)
    return integer_network(import_model(found.module, torch.from_numpy(images[:1])), front, images), ranges


def parts_of(keep: float, score: str, kernel: int, seed: int) -> Parts:
    """The pipeline's parts that keep this share of the tokens in every block."""
    tokens = Tokens.model_validate({"keep": (keep,), "score": score, "kernel": kernel, "seed": seed})
    return Settings(model=Model(name=""), tokens=tokens).passes()


def measured(
    network: Network,
    machine: Machine,
    data: Dataset,
    point: tuple[float, str, int],
    kernel: int,
    workers: int,
    progress: Callable[[int], None],
) -> Point:
    """Compile the program of (share, score, seed), and run it on every image."""
    keep, score, seed = point
    parts = parts_of(keep, score, kernel, seed) if score != ALL else Parts()
    program = compile_integer(network, machine, parts).program
    hits: list[NDArray[np.bool_]] = []
    totals = dict.fromkeys(COSTS, 0)
    assert data.labels is not None
    for start in range(0, len(data), AT_ONCE):
        integers = quantise_input(program, data.batch(start, start + AT_ONCE))
        seen = run(program, integers, share=False, workers=workers)
        hits.append(seen.logits.argmax(axis=1) == data.labels[start : start + AT_ONCE])
        for name in COSTS:
            totals[name] += int(seen.counters.total(name).sum())
        progress(start + len(integers))
    return Point(keep, score, seed, np.concatenate(hits), {name: total / len(data) for name, total in totals.items()})


def trials(shares: Sequence[float], scores: Sequence[str], seeds: int) -> list[tuple[float, str, int]]:
    """What is measured; where all tokens are kept, or none, one program stands for all scores, or for all seeds."""
    found: list[tuple[float, str, int]] = []
    for keep in shares:
        for score in scores if keep < 1 else (ALL,):
            found += [(keep, score, seed) for seed in range(seeds if score == RANDOM and keep > 0 else 1)]
    return found


def grouped(points: Iterable[Point]) -> dict[tuple[float, str], list[Point]]:
    """Points by share and score: one, or one a seed."""
    groups: dict[tuple[float, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.keep, point.score), []).append(point)
    return groups


def duels(points: Sequence[Point]) -> list[Duel]:
    """Every other score against random, at every share between all and nothing."""
    groups = grouped(points)
    found: list[Duel] = []
    for (keep, score), [first, *_] in groups.items():
        drawn = groups.get((keep, RANDOM))
        if score == RANDOM or drawn is None or keep <= 0:
            continue
        each = first.hits - np.mean([point.hits for point in drawn], axis=0)
        images = each.var(ddof=1) / len(each) if len(each) > 1 else 0.0
        seeds = np.var([point.top1 for point in drawn], ddof=1) / len(drawn) if len(drawn) > 1 else 0.0
        found.append(Duel(keep, score, 100 * float(each.mean()), 100 * float(np.sqrt(images + seeds))))
    return found


def verdicts(points: Sequence[Point]) -> list[str]:
    """A sentence a score: where it loses to random, if anywhere."""
    found: list[str] = []
    all_duels = duels(points)
    for score in dict.fromkeys(duel.score for duel in all_duels):
        mine = [duel for duel in all_duels if duel.score == score]
        name = f"the {score} score" if score not in ("paper", "code") else f"the {score}'s score"
        lost = [f"{duel.keep:g} ({duel.ahead:+.2f} ± {duel.error:.2f} points)" for duel in mine if duel.is_lost]
        if lost:
            found.append(f"{name} loses to random at keep={', '.join(lost)}")
        else:
            least = min(mine, key=lambda duel: duel.ahead)
            where = f"{least.ahead:+.2f} ± {least.error:.2f} points at keep={least.keep:g}"
            found.append(f"{name} loses to random nowhere; the least that it is ahead is {where}")
    return found


def table_of(points: Sequence[Point], kernel: int) -> Table:
    """A row a share and score; operations relative to all tokens where that was measured."""
    whole = next((point for point in points if point.score == ALL), None)
    table = Table("keep", "score", "measured on", "top-1 (%)", "±", "over random", "sop_bit (M)", "of all", "mac (k)",
                  "token_scores (k)", "cycles (k), modelled", "of all", title=f"kernel {kernel}, mean of an image",
                  box=None, pad_edge=False)  # fmt: skip
    for column in table.columns[2:]:
        column.justify = "right"
    ahead = {(duel.keep, duel.score): f"{duel.ahead:+.2f} ± {duel.error:.2f}" for duel in duels(points)}
    for (keep, score), group in grouped(points).items():
        cost = {name: float(np.mean([point.costs[name] for point in group])) for name in COSTS}
        top1 = [100 * point.top1 for point in group]
        share = np.mean(top1) / 100
        spread = np.std(top1, ddof=1) if len(top1) > 1 else 100 * np.sqrt(share * (1 - share) / len(group[0].hits))
        parts = [f"{cost[name] / whole.costs[name]:.3f}" if whole else "" for name in ("sop_bit", "cycles")]
        name = f"{score}, {len(group)} seeds" if len(group) > 1 else score
        texts = [Scale(1e6, "").text(cost["sop_bit"]), parts[0]]
        texts += [Scale(1e3, "").text(cost[each]) for each in COSTS[1:]] + [parts[1]]
        table.add_row(
            f"{keep:g}", name, f"{len(group[0].hits):,} images", f"{np.mean(top1):.2f}", f"{spread:.2f}",
            ahead.get((keep, score), ""), *texts,
        )  # fmt: skip
    table.caption = "±: standard error of the images; of random the standard deviation of its seeds"
    return table


def csv_of(points: Sequence[Point], kernel: int) -> str:
    """A row a program."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["keep", "score", "kernel", "seed", "images", "right", "top1", *COSTS, "origin"])
    for point in points:
        costs = [f"{point.costs[name]:.10g}" for name in COSTS]
        right, images = int(point.hits.sum()), len(point.hits)
        writer.writerow(
            [f"{point.keep:g}", point.score, kernel, point.seed, images, right, f"{point.top1:.6g}", *costs, "measured"]
        )
    return text.getvalue()


def svg_of(points: Sequence[Point], title: str) -> bytes:
    """Top-1 over the share kept, a line a score, of random with its spread; the same points give the same bytes."""
    groups = grouped(points)
    with rc_context({"svg.hashsalt": "cstep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for score in dict.fromkeys(point.score for point in points if point.score != ALL):
            line = [(keep, group) for (keep, name), group in groups.items() if name in (score, ALL)]
            line.sort(key=lambda each: each[0])
            shares = [keep for keep, _ in line]
            tops = [100 * float(np.mean([point.top1 for point in group])) for _, group in line]
            spread = [100 * float(np.std([point.top1 for point in group])) for _, group in line]
            style = "k:" if score == RANDOM else "-o"
            axes.errorbar(shares, tops, spread if score == RANDOM else None, fmt=style, markersize=4, label=score)
        axes.set_xlabel("share of the tokens that go through each block")
        axes.set_ylabel("top-1 [%], measured")
        axes.legend()
        figure.suptitle(title)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def main(
    model: Annotated[str, typer.Argument(help="As for `cstep compile`.")] = "spikformer-2-96",
    checkpoint: Checkpoint = None,
    calibration: Annotated[str, typer.Option(metavar="DATA", help="As for `cstep compile`.")] = "digits",
    data: Annotated[str, typer.Option(metavar="DATA", help="What accuracy is measured on.")] = "digits",
    images: Annotated[int, typer.Option(min=1, help="The first so many of the data.")] = 1000,
    keep: Annotated[str, typer.Option(metavar="SHARE,SHARE", help="Shares of the tokens, 0..1.")] = SHARES,
    score: Annotated[str, typer.Option(metavar="NAME,NAME", help="Scores.")] = SCORES,
    seeds: Annotated[int, typer.Option(min=1, help="Of the random score.")] = 3,
    kernel: Annotated[int, typer.Option(help="Side of the neighbourhood that a token is compared with.")] = 3,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="For the csv and svg.")] = None,
    machine: MachineName = "c-step",
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; one a core.")] = None,
) -> None:
    """Measure top-1, operations and cycles over the share of tokens kept."""
    try:
        if checkpoint is None and model == "spikformer-2-96":
            checkpoint = BUNDLED
        target = load_machine(machine)
        wanted = trials(numbers(keep, "--keep", float), score.split(","), seeds)
        for each in wanted:
            parts_of(each[0], SCORES.split(",")[0] if each[1] == ALL else each[1], kernel, each[2])
        with progress_bar("quantise", None):
            network, ranges = opened(model, checkpoint, calibration, target, (input_shape, mean, std))
        held = load_dataset(data, split="test", shape=ranges.shape, mean=ranges.mean, std=ranges.std)
        held = held.take(min(images, len(held)))
        if held.labels is None:
            raise CStepError(f"{data}: has no labels; give a labelled data set")
        points: list[Point] = []
        with progress_bar("keep", len(wanted) * len(held), unit="images") as step:
            for number, each in enumerate(wanted):
                what = f"keep={each[0]:g} {each[1]}"
                points.append(
                    measured(
                        network, target, held, each, kernel, workers or cstep.cores(),
                        lambda done, number=number, what=what: step(number * len(held) + done, what),
                    )
                )  # fmt: skip
        blocks = ", ".join(f"{block.name} {block.rows}x{block.columns}" for block in blocks_of(network))
        show(table_of(points, kernel))
        show(f"tokens of the blocks: {blocks}")
        for line in verdicts(points):
            show(line)
        if output is not None:
            make_directory(output)
            title = f"{model}: {len(held):,} images of {held.name}, kernel {kernel}"
            write_whole(output / "keep_curve.csv", csv_of(points, kernel).encode())
            write_whole(output / "keep_curve.svg", svg_of(points, title))
            show(f"wrote {output / 'keep_curve.csv'}, {output / 'keep_curve.svg'}")
    except CStepError as error:
        sys.exit(f"cstep: {error}")


if __name__ == "__main__":
    typer.run(main)
