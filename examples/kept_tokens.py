"""Which tokens the scores of `stop-tokens` keep, and what keeping others would have given: why accuracy falls.

    python examples/kept_tokens.py                                   the bundled digits, under a minute
    python examples/kept_tokens.py spikformer-2-64 --checkpoint net.safetensors \\
           --calibration cifar10-train.parquet --data cifar10-test.parquet --keep 0.3

Two tables, both measured. The first looks at what enters the blocks of the untouched model. Of the tokens that a score
would keep: how many are all zero; how much they hold, as sums of magnitudes over channels, relative to all tokens; how
much of the change that the block makes to the residual falls on them (random: the share kept); how many of them are
among those with the largest changes, and among those that the paper's score keeps; how many were kept at the timestep
before; and how many of all tokens are kept at one timestep at least.

The second runs the integer model, which programs equal in every logit, with other choices in place of the score's:

    paper in reals   the paper's formula in float64, where programs have integers and a table
    one set          the scores added up over time, so that a token is kept at all timesteps or at none
    zeros last       the paper's score, but what is all zero comes last
    most, fewest     of magnitudes summed over channels
    largest change   that the untouched model's block makes to the residual at that token, known only afterwards
    random           drawn anew for every image
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import typer
from keep_curve import BUNDLED, opened
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.nn.functional import avg_pool2d, cosine_similarity

from command.arguments import Checkpoint, InputShape, MachineName, PerChannel
from compiler.ir import spike
from compiler.ir.meaning import MEANINGS
from compiler.ir.network import Network
from compiler.ir.spike import SpikeOperation
from compiler.ir.token_meaning import scores_of
from compiler.ir.token_ops import SCORES
from compiler.ir.types import shaped
from compiler.passes.blocks import blocks_of
from compiler.passes.stop_tokens import StopTokens
from isa.errors import CStepError
from isa.machine import load_machine
from isa.scores import largest
from runtime.dataset import load_dataset
from runtime.report.console import progress_bar, show

Values = dict[Any, Tensor]
Numbers = NDArray[np.float64]
ONE_SET = ", one set"
LARGEST, RANDOM, ZEROS_LAST, REALS = "largest change", "random", "paper, zeros last", "paper in reals"
CHOICES = (
    *SCORES, REALS, RANDOM, RANDOM + ONE_SET, "paper" + ONE_SET, ZEROS_LAST, "most", "most" + ONE_SET, "fewest",
    LARGEST, LARGEST + ONE_SET,
)  # fmt: skip


@dataclass
class Kept:
    """Of one block and choice: what the kept tokens are, a number an image."""

    zero: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    stayed: list[float] = field(default_factory=list)
    ever: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """What the untouched model does in one block to one image, [T, tokens]."""

    x: Tensor
    """[T, tokens, channels], integers."""
    size: Numbers
    change: Numbers


class Chooser:
    """Scores [T or 1, tokens] by choice; the ops of the passes that make the scores are by score and label."""

    def __init__(self, ops: Mapping[str, Mapping[str, spike.KeepTokens]]) -> None:
        self.ops = ops
        self.draw = np.random.default_rng(0)

    def scores(self, choice: str, label: str, x: Tensor, change: Numbers) -> Numbers:
        """Of what enters a block, x [T, tokens, channels]."""
        kind, one_set, _ = choice.partition(ONE_SET)
        found = self._scores(kind, label, x, change)
        if one_set and kind == RANDOM:
            return found[:1]
        return found.sum(axis=0, keepdims=True) if one_set else found

    def _scores(self, kind: str, label: str, x: Tensor, change: Numbers) -> Numbers:
        if kind in self.ops:
            return scores_of(self.ops[kind][label], x).astype(np.float64)
        if kind == REALS:
            return real_scores(self.ops["paper"][label], x)
        if kind == RANDOM:
            return self.draw.random(change.shape)
        if kind == LARGEST:
            return change
        size = sizes(x)
        if kind == ZEROS_LAST:
            return np.where(size > 0, scores_of(self.ops["paper"][label], x), -1.0)
        return size if kind == "most" else -size


def real_scores(op: spike.KeepTokens, x: Tensor) -> Numbers:
    """[T, tokens]: the paper's formula, of the mean of the neighbours that there are."""
    values = x.to(torch.float64) * 2.0 ** -op.operand_type().element.fraction.data
    maps = values.reshape(len(x), op.get("rows"), op.get("columns"), -1).permute(0, 3, 1, 2)
    near = avg_pool2d(maps, op.get("kernel"), 1, op.get("kernel") // 2, count_include_pad=False)
    spatial = 1 - cosine_similarity(maps, near, dim=1).flatten(1)
    temporal = (values - torch.cat([torch.zeros_like(values[:1]), values[:-1]])).abs().mean(-1)
    return (spatial.softmax(1) + temporal.softmax(1)).numpy()


def sizes(x: Tensor) -> Numbers:
    """[T, tokens]: magnitudes summed over channels."""
    return x.abs().sum(-1).to(torch.float64).numpy()


def evaluate(network: Network, ops: list[SpikeOperation], values: Values, keep: Callable[..., Tensor]) -> None:
    """Add the ops' results to the values; kept trains are what `keep` makes of an op and its operand."""

    def weight(name: str) -> Tensor:
        return torch.from_numpy(network.weights[name]).to(torch.int64)

    for op in ops:
        operands = [values[operand] for operand in op.operands]
        function = keep if isinstance(op, spike.KeepTokens) else MEANINGS[type(op)]
        values[op.results[0]] = function(op, weight, *operands)


def as_tokens(x: Tensor) -> Tensor:
    return x.flatten(1, -2)


def untouched(network: Network, values: Values) -> list[Block]:
    """What the blocks of a network that was evaluated do."""
    found: list[Block] = []
    for block in blocks_of(network):
        ends = [as_tokens(values[value]) for value in (block.entry, block.exit)]
        scales = [2.0 ** -shaped(value.type).element.fraction.data for value in (block.entry, block.exit)]
        steps = min(len(end) for end in ends)
        change = (ends[1][:steps] * scales[1] - ends[0][:steps] * scales[0]).abs().sum(-1)
        found.append(Block(ends[0][:steps], sizes(ends[0][:steps]), change.to(torch.float64).numpy()))
    return found


def look(kept: NDArray[np.bool_], paper: NDArray[np.bool_], block: Block, into: Kept) -> None:
    """Describe the kept tokens [T, tokens] of an image, beside those that the paper's score keeps."""
    count = int(kept[0].sum())
    if not count:
        return
    into.zero.append(float((block.size == 0)[kept].mean()))
    into.held.append(float(block.size[kept].mean() / max(block.size.mean(), 1e-9)))
    into.changed.append(float(block.change[kept].sum() / max(block.change.sum(), 1e-9)))
    into.overlap.append(float((largest(block.change, count) > 0)[kept].mean()))
    into.same.append(float(paper[kept].mean()))
    into.ever.append(float(kept.any(axis=0).mean()))
    if len(kept) > 1:
        into.stayed.append(float((kept[1:] & kept[:-1]).sum() / kept[1:].sum()))


def ops_of(network: Network) -> list[SpikeOperation]:
    """All but the input and the output."""
    return [
        op
        for op in network.operations()
        if isinstance(op, SpikeOperation) and not isinstance(op, spike.Input | spike.Output)
    ]


def only(network: Network, kind: type[SpikeOperation]) -> SpikeOperation:
    return next(op for op in network.operations() if isinstance(op, kind))


def kept_table(kept: Mapping[tuple[str, str], Kept], zeros: Mapping[str, float], keep: float) -> Table:
    heads = ("zero (%)", "of all (%)", "size / mean", "of the change (%)", "largest changes (%)", "paper's (%)",
             "kept before (%)", "ever kept (%)")  # fmt: skip
    title = f"the tokens that would be kept at keep={keep:g}, of the untouched model; measured"
    table = Table("block", "choice", *heads, title=title, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"

    def percent(values: list[float]) -> str:
        return f"{100 * np.mean(values):.1f}" if values else ""

    for (block, choice), each in kept.items():
        held = f"{np.mean(each.held):.2f}" if each.held else ""
        rest = (percent(values) for values in (each.changed, each.overlap, each.same, each.stayed, each.ever))
        table.add_row(block, choice, percent(each.zero), f"{100 * zeros[block]:.1f}", held, *rest)
    return table


def choice_table(hits: Mapping[str, list[bool]], whole: list[bool], keep: float) -> Table:
    table = Table("choice", "top-1 (%)", "over random", title=f"integer model at keep={keep:g}, {len(whole):,} images; "
                  f"measured; all tokens: {100 * np.mean(whole):.2f} %", box=None, pad_edge=False)  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    drawn = np.array(hits[RANDOM], np.float64)
    for choice, each in hits.items():
        ahead = np.array(each, np.float64) - drawn
        error = ahead.std(ddof=1) / np.sqrt(len(ahead)) if len(ahead) > 1 else 0.0
        versus = "" if choice == RANDOM else f"{100 * ahead.mean():+.2f} ± {100 * error:.2f}"
        table.add_row(choice, f"{100 * np.mean(each):.2f}", versus)
    return table


def main(
    model: Annotated[str, typer.Argument(help="As for `cstep compile`.")] = "spikformer-2-96",
    checkpoint: Checkpoint = None,
    calibration: Annotated[str, typer.Option(metavar="DATA", help="As for `cstep compile`.")] = "digits",
    data: Annotated[str, typer.Option(metavar="DATA", help="What is looked at.")] = "digits",
    images: Annotated[int, typer.Option(min=1, help="The first so many of the data.")] = 200,
    keep: Annotated[float, typer.Option(min=0, max=1, help="The share of the tokens.")] = 0.3,
    kernel: Annotated[int, typer.Option(help="Side of the neighbourhood that a token is compared with.")] = 3,
    machine: MachineName = "c-step",
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> None:
    """Describe the kept tokens, and measure what other choices would have given."""
    try:
        if checkpoint is None and model == "spikformer-2-96":
            checkpoint = BUNDLED
        with progress_bar("quantise", None):
            network, ranges = opened(model, checkpoint, calibration, load_machine(machine), (input_shape, mean, std))
        held = load_dataset(data, split="test", shape=ranges.shape, mean=ranges.mean, std=ranges.std)
        held = held.take(min(images, len(held)))
        if held.labels is None:
            raise CStepError(f"{data}: has no labels; give a labelled data set")
        stopped = {score: StopTokens(keep=(keep,), score=score, kernel=kernel).apply(network) for score in SCORES}
        found = {
            score: {op.label: op for op in each.operations() if isinstance(op, spike.KeepTokens)}
            for score, each in stopped.items()
        }
        if not found["paper"]:
            raise CStepError(f"--keep {keep:g}: keeps all tokens; ask for fewer")
        chooser, trial = Chooser(found), stopped["paper"]
        labels = [f"{block.name}.kept" for block in blocks_of(network)]
        counts = {label: op.get("keep") for label, op in found["paper"].items()}
        ops = ops_of(trial)
        first = next(index for index, op in enumerate(ops) if isinstance(op, spike.KeepTokens))
        kept: dict[tuple[str, str], Kept] = {
            (label.removesuffix(".kept"), choice): Kept() for label in labels for choice in CHOICES
        }
        zeros: dict[str, list[float]] = {label.removesuffix(".kept"): [] for label in labels}
        hits: dict[str, list[bool]] = {choice: [] for choice in CHOICES}
        whole: list[bool] = []
        with progress_bar("images", len(held), unit="images") as step, torch.no_grad():
            for number, (image, label) in enumerate(zip(held.images, held.labels, strict=True)):
                values: Values = {only(network, spike.Input).results[0]: torch.from_numpy(image)}
                evaluate(network, ops_of(network), values, scores_of)
                whole.append(int(values[only(network, spike.Output).operands[0]].argmax()) == label)
                blocks = dict(zip(labels, untouched(network, values), strict=True))
                for name, block in blocks.items():
                    zeros[name.removesuffix(".kept")].append(float((block.size == 0).mean()))
                    chosen = {
                        choice: largest(chooser.scores(choice, name, block.x, block.change), counts[name]) > 0
                        for choice in CHOICES
                    }
                    for choice, each in chosen.items():
                        whole_train = np.broadcast_to(each, block.size.shape)
                        look(whole_train, chosen["paper"], block, kept[name.removesuffix(".kept"), choice])
                start: Values = {only(trial, spike.Input).results[0]: torch.from_numpy(image)}
                evaluate(trial, ops[:first], start, scores_of)
                for choice in CHOICES:

                    def keeping(op, _weights, x, choice=choice, blocks=blocks):
                        change = blocks[op.label].change
                        chosen = largest(chooser.scores(choice, op.label, as_tokens(x), change), op.get("keep"))
                        return torch.from_numpy(chosen).to(torch.int64).expand(len(x), -1).unsqueeze(-1)

                    values = dict(start)
                    evaluate(trial, ops[first:], values, keeping)
                    hits[choice].append(int(values[only(trial, spike.Output).operands[0]].argmax()) == label)
                step(number + 1)
        show(kept_table(kept, {block: float(np.mean(each)) for block, each in zeros.items()}, keep))
        show(choice_table(hits, whole, keep))
    except CStepError as error:
        sys.exit(f"cstep: {error}")


if __name__ == "__main__":
    typer.run(main)
