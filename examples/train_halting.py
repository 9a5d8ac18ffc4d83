"""Train a small Spikformer whose tokens halt (STAS) on scikit-learn's handwritten digits: no download, a few minutes.

    python examples/train_halting.py --output halting.safetensors
    cstep compile spikformer-4-64 --checkpoint halting.safetensors --calibration digits --settings halting.toml

First the digits are learnt with integrated patch splitting: every block sees the same at each of four timesteps. Then
tokens halt, and the ponder loss asks them to do so early. Last, other thresholds are tried without training. Accuracy
is that on held-out digits (`digits:test`), which no step of the training looks at.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# So that `python examples/train_halting.py` finds the project from wherever it is started.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train import ARGUMENTS, BATCH, MEAN, STD, accuracy, digits, save_whole, shifted, tensors, train

from compiler.nn import halting_of, ponder_loss, tokens_used, with_halting, with_integrated_patch_splitting
from compiler.zoo import Spikformer
from isa.files import write_whole

MODEL = "spikformer-4-64"
SIZES = {**ARGUMENTS, "depths": 4, "embed_dims": 64, "num_heads": 4}
RATE = 2e-3
"""Learning rate at the start of the second stage."""
SWEEP = (0.01, 0.1, 0.3, 0.5, 0.7)
"""Epsilons that are tried without training for them."""


def halt(model: nn.Module, weight: float, epochs: int, seed: int, console: Console) -> None:
    """Train a model that halts: the task's loss, and the ponder loss times `weight` (STAS, eq. 10)."""
    images, labels = tensors(digits("train"))
    held_out = tensors(digits("test"))
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * steps))
    for epoch in range(1, epochs + 1):
        model.train()
        for chosen in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):
            loss = cross_entropy(model(shifted(images[chosen], generator)), labels[chosen], label_smoothing=0.1)
            loss = loss + ponder_loss(model, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        tokens, reached = measured(model, *held_out)
        console.print(f"halting, epoch {epoch}: tokens x{tokens:.3f}, held out {reached:.2%}")


@torch.no_grad()
def measured(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """The part of the tokens that blocks work on, and top-1, in evaluation mode; the model is left in training mode."""
    model.eval()
    hits, used = 0, 0.0
    for part, wanted in zip(images.split(256), labels.split(256), strict=True):
        hits += int((model(part).argmax(1) == wanted).sum())
        used += tokens_used(model) * len(part)
    model.train()
    return used / len(images), hits / len(images)


def settings(model: nn.Module) -> str:
    """The settings file that goes with the checkpoint: the plain model halts, and integrates, by what it says."""
    rules = halting_of(model)
    return (
        'schema = "cstep-settings/1"\n'
        f'[model]\nname = "{MODEL}"\n'
        f"[halting]\nalpha = {float(rules.alpha)}\nbeta = {float(rules.beta)}\nepsilon = {rules.epsilon}\n"
        f'output = "{rules.output}"\n'
        "[patch_splitting]\nintegrated = true\n"
    )


def save(model: nn.Module, path: Path, reached: float) -> None:
    """The checkpoint, with what `cstep compile` needs to know beside the tensors, and the settings file."""
    metadata = {key: str(value) for key, value in SIZES.items()}
    metadata |= {"mean": str(MEAN), "std": str(STD), "dataset": "digits", "acc": f"{reached:.4f}"}
    save_whole(model.state_dict(), metadata, path)
    write_whole(path.with_suffix(".toml"), settings(model).encode())


def sweep(model: nn.Module, before: float) -> Table:
    """Tokens and accuracy under several thresholds; the rules are left as they were."""
    held_out, rules = tensors(digits("test")), halting_of(model)
    table = Table("held-out digits", "epsilon", "tokens used", "top-1")
    table.add_row("integrated patch splitting", "", "x1.000", f"{before:.2%}")
    trained = rules.epsilon
    for epsilon in sorted({trained, *SWEEP}):
        rules.epsilon = epsilon
        tokens, reached = measured(model, *held_out)
        name = "halting, as trained" if epsilon == trained else "halting, not trained for"
        table.add_row(name, f"{epsilon:g}", f"x{tokens:.3f}", f"{reached:.2%}")
    rules.epsilon = trained
    return table


def main(
    output: Annotated[Path, typer.Option(help="The checkpoint to write, and a settings file beside it.")] = Path(
        "halting.safetensors"
    ),
    first_epochs: Annotated[int, typer.Option(min=1, help="Epochs with integrated patch splitting alone.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs with halting after that.")] = 10,
    alpha: Annotated[float, typer.Option(help="Scale of the halting score; the paper has -5.")] = -1.0,
    beta: Annotated[float, typer.Option(help="Offset of the halting score; the paper has 0.")] = -0.5,
    epsilon: Annotated[float, typer.Option(help="A token halts where its scores sum up to 1 - epsilon.")] = 0.01,
    weight: Annotated[float, typer.Option(help="Of the ponder loss.")] = 1e-1,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order and the shifts.")] = 0,
) -> None:
    """Train with integrated patch splitting, then with halting; write the checkpoint and its settings."""
    torch.set_num_threads(1)  # torch rounds otherwise with another number of threads, and layers this small gain little
    torch.manual_seed(seed)
    console = Console()
    model = with_integrated_patch_splitting(Spikformer(**SIZES))
    output.parent.mkdir(parents=True, exist_ok=True)
    before = train(model, first_epochs, seed)
    console.print(f"integrated patch splitting: tokens x1, held out {before:.2%}")

    with_halting(model, alpha=alpha, beta=beta, epsilon=epsilon)
    halt(model, weight, epochs, seed, console)
    save(model, output, accuracy(model, *tensors(digits("test"))))
    console.print(sweep(model, before))
    console.print(f"{output}: top-1 and tokens as in the row 'as trained'; {output.with_suffix('.toml')}: how it halts")


if __name__ == "__main__":
    typer.run(main)
