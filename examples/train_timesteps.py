"""Train a small Spikformer whose layers need fewer timesteps (DTS-SNN), and compile it: no download, a few minutes.

    python examples/train_timesteps.py --output masked.safetensors
    cstep compile spikformer-2-96 --checkpoint masked.safetensors --calibration digits --output masked.cstep

First the digits are learnt with all four timesteps, as in examples/train.py. Then every layer of neurons gets a
trainable time score, and the mask loss grows from stage to stage; in the last stage the masks stay and the weights
settle. Both networks are compiled and run on held-out digits (`digits:test`), which no step of the training looks at.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

# So that `python examples/train_timesteps.py` finds the project from wherever it is started.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import ARGUMENTS, BATCH, MEAN, STD, accuracy, digits, save_whole, shifted, tensors, train

import cstep
from compiler.frontend.model import open_model
from compiler.nn import (
    GROUPS,
    PENALISED,
    TIME_SCORE,
    average_timesteps,
    keep_prefixes,
    timestep_loss,
    timesteps,
    with_timesteps,
)
from compiler.zoo import Spikformer
from runtime.report.figures import dram_bytes

T = 4
WEIGHTS = (1e-4, 1e-3, 1e-2)
"""Of the mask loss, a stage each. The paper's 1e-6 acts over hundreds of epochs of many more steps."""
WEIGHT_RATE, SCORE_RATE = 1e-3, 1e-2
"""Learning rates at the start of fine-tuning, and of the time scores."""
CALIBRATION = 256


def fine_tune(model: nn.Module, weights: list[float], groups: list[str], epochs: int, seed: int) -> Table:
    """Stages of `epochs` under each weight of the mask loss, then one with fixed masks; what each of them reached."""
    images, labels = tensors(digits("train"))
    held_out = tensors(digits("test"))
    generator = torch.Generator().manual_seed(seed)
    scores = [score for name, score in model.named_parameters() if name.endswith(TIME_SCORE)]
    others = [weight for name, weight in model.named_parameters() if not name.endswith(TIME_SCORE)]
    # Weight decay would lower the scores by itself.
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": WEIGHT_RATE}, {"params": scores, "lr": SCORE_RATE, "weight_decay": 0.0}],
        weight_decay=0.05,
    )
    steps = len(images) // BATCH
    total = (len(weights) + 1) * epochs * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1 - step / total, lambda step: 1.0])
    table = Table("mask loss", "epochs", "T_avg", "held out")
    console = Console()
    table.add_row("before", "", f"{average_timesteps(model):.2f}", f"{accuracy(model, *held_out):.2%}")
    for weight in (*weights, None):
        for score in scores:
            score.requires_grad_(weight is not None)
        for epoch in range(1, epochs + 1):
            model.train()
            for chosen in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):
                loss = cross_entropy(model(shifted(images[chosen], generator)), labels[chosen], label_smoothing=0.1)
                if weight is not None:
                    loss = loss + timestep_loss(model, weight, groups)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                keep_prefixes(model, least=1)
            stage = "masks fixed" if weight is None else f"{weight:g}"
            row = stage, str(epoch), f"{average_timesteps(model):.2f}", f"{accuracy(model, *held_out):.2%}"
            console.print(f"mask loss {row[0]}, epoch {row[1]}: T_avg {row[2]}, held out {row[3]}")
            if epoch == epochs:
                table.add_row(*row)
    return table


def save(model: nn.Module, path: Path, reached: float) -> None:
    """The checkpoint, with what `cstep compile` needs to know beside the tensors."""
    metadata = {key: str(value) for key, value in ARGUMENTS.items()}
    metadata |= {"mean": str(MEAN), "std": str(STD), "dataset": "digits", "acc": f"{reached:.4f}"}
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    save_whole(state, metadata, path)


def measured(checkpoint: Path, limit: int) -> list[float]:
    """A checkpoint, compiled and run on the first `limit` held-out digits: top-1, operations, cycles, DRAM bytes."""
    opened = open_model("spikformer-2-96", checkpoint)
    calibration = digits("train").take(CALIBRATION, seed=0).images
    program = cstep.compile(opened.module, calibration[:1], calibration=calibration, mean=(MEAN,), std=(STD,))
    held_out = digits("test")
    assert held_out.labels is not None
    result = cstep.run(program, held_out.images[:limit])
    hits = float((result.labels == held_out.labels[:limit]).mean())
    counts = [result.counters.total(name) for name in ("sop_hw", "cycles")]
    return [hits, *(float(count.mean()) for count in (*counts, dram_bytes(result.counters).sum(axis=1)))]


def compare(before: list[float], after: list[float]) -> Table:
    """Two programs beside each other."""
    table = Table("program (measured on the emulator, mean per digit)", "T = 4", "masked", "masked / T = 4")
    table.add_row("top-1", f"{before[0]:.2%}", f"{after[0]:.2%}", "")
    names = ("accumulations (sop_hw)", "cycles", "DRAM bytes")
    for name, whole, less in zip(names, before[1:], after[1:], strict=True):
        table.add_row(name, f"{whole:,.0f}", f"{less:,.0f}", f"{less / whole:.3f}")
    return table


def main(
    output: Annotated[Path, typer.Option(help="The masked checkpoint to write.")] = Path("masked.safetensors"),
    first_epochs: Annotated[int, typer.Option(min=1, help="Epochs at all timesteps, without a mask loss.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each stage after that.")] = 3,
    weight: Annotated[list[float] | None, typer.Option(help="Of the mask loss, one a stage.")] = None,
    group: Annotated[list[str] | None, typer.Option(help=f"Layers that it is for: {', '.join(GROUPS)}.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Held-out digits that the programs are run on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order and the shifts.")] = 0,
) -> None:
    """Train with fewer and fewer timesteps, write the checkpoint, compare the programs."""
    torch.manual_seed(seed)
    model = Spikformer(**ARGUMENTS)
    output.parent.mkdir(parents=True, exist_ok=True)
    unmasked = output.with_suffix(".unmasked.safetensors")
    reached = train(model, first_epochs, seed)
    save(model, unmasked, reached)
    print(f"{unmasked}: T_avg {T:.2f}, held out {reached:.2%}", flush=True)

    with_timesteps(model, T, start=T)
    table = fine_tune(model, weight or list(WEIGHTS), group or list(PENALISED), epochs, seed)
    save(model, output, accuracy(model, *tensors(digits("test"))))
    console = Console()
    console.print(table)
    console.print(f"T_l, of {T}: " + ", ".join(f"{name} {sum(mask)}" for name, mask in timesteps(model).items()))
    console.print(f"{output}: T_avg {average_timesteps(model):.2f}")
    console.print(compare(measured(unmasked, limit), measured(output, limit)))


if __name__ == "__main__":
    typer.run(main)
