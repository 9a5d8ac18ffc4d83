"""Train a small spiking transformer on scikit-learn's handwritten digits: no download, a few minutes on two cores.

    python examples/train.py --output spikformer-digits.safetensors
    cstep compile spikformer-2-96 --checkpoint spikformer-digits.safetensors --calibration digits

The digits are enlarged to 16x16, four timesteps, two blocks of 96 channels. Accuracy is that of the last epoch on the
held-out fifth (`digits:test`), which no step of the training looks at. `--family` trains another architecture of the
zoo, and says the name that it compiles under; Spike-Driven Transformer V3 has digits of 64x64, since it halves an image
four times, and one timestep, as published.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

# So that `python examples/train.py` finds the project from wherever it is started.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compiler.zoo import Spikformer
from compiler.zoo.sdt_v1 import SpikeDrivenTransformer
from compiler.zoo.sdt_v3 import SDTV3
from compiler.zoo.spikingformer import Spikingformer
from runtime.dataset import Dataset, load_dataset

SIDE = 16
MEAN = 0.305  # of the training part, pixels scaled to 0..1
STD = 0.376
BATCH = 48
LARGEST_SHIFT = 1  # pixels of 16: the digits are centred, so a little is enough
ARGUMENTS = {
    "img_size_h": SIDE,
    "img_size_w": SIDE,
    "patch_size": 4,
    "in_channels": 1,
    "num_classes": 10,
    "embed_dims": 96,
    "num_heads": 6,
    "mlp_ratios": 4,
    "depths": 2,
    "T": 4,
}


@dataclass(frozen=True)
class Family:
    """An architecture of the zoo at a size that learns in minutes."""

    name: str
    """That the checkpoint compiles under."""
    construct: Callable[..., nn.Module]
    arguments: Mapping[str, Any]


def _sized(side: int = SIDE, **others: Any) -> dict[str, Any]:
    """Arguments of a model of two blocks for digits of `side` x `side`."""
    return {"img_size_h": side, "img_size_w": side, "in_channels": 1, "num_classes": 10, "depths": 2, **others}


NAMES = Literal["spikformer", "spikingformer", "sdt-v1", "sdt-v3"]
FAMILIES: Mapping[str, Family] = {
    "spikformer": Family("spikformer-2-96", Spikformer, ARGUMENTS),
    "spikingformer": Family(
        "spikingformer-2-64", Spikingformer, _sized(patch_size=4, embed_dims=64, num_heads=4, mlp_ratios=4.0, T=4)
    ),
    "sdt-v1": Family(
        "sdt-v1-cifar-2-64",
        SpikeDrivenTransformer,
        _sized(pooling_stat="0011", embed_dims=64, num_heads=4, mlp_ratios=4.0, T=4),
    ),
    "sdt-v3": Family(
        "sdt-v3-2-32",
        SDTV3,
        _sized(64, embed_dims=32, last_dims=40, last_depths=1, num_heads=4, mlp_ratios=4.0, T=1),
    ),
}


def digits(split: str, side: int = SIDE) -> Dataset:
    """One part of the digits as the model takes them: [B, 1, side, side]."""
    return load_dataset("digits", split=split, shape=(1, side, side), mean=(MEAN,), std=(STD,))


def tensors(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Images float32 [B, C, H, W] and labels int64 [B]."""
    assert dataset.labels is not None
    return torch.from_numpy(dataset.images), torch.from_numpy(np.asarray(dataset.labels))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by its own small offset, black moving in."""
    height, width = images.shape[-2:]
    most = LARGEST_SHIFT * height // SIDE
    padded = pad(images, (most,) * 4, value=-MEAN / STD)
    offsets = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    crops = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(crops)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1, between 0 and 1, in evaluation mode; the model is left in training mode."""
    model.eval()
    guesses = torch.cat([model(part).argmax(1) for part in images.split(256)])
    model.train()
    return (guesses == labels).float().mean().item()


def train(model: nn.Module, epochs: int, seed: int, side: int = SIDE) -> float:
    """AdamW, one cycle; returns the held-out accuracy after the last epoch."""
    images, labels = tensors(digits("train", side))
    held_out = tensors(digits("test", side))
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps, pct_start=0.2)
    reached, loss = 0.0, torch.zeros(())
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.fields[news]}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("train", total=epochs * steps, epoch=0, news="")
        for epoch in range(1, epochs + 1):
            model.train()
            # The rest of a batch is left out: it comes up in another epoch.
            for chosen in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):
                loss = cross_entropy(model(shifted(images[chosen], generator)), labels[chosen], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, epoch=epoch)
            reached = accuracy(model, *held_out)
            progress.update(task, news=f"loss {loss.item():.3f}, held out {reached:.4f}")
    return reached


def save_whole(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write beside the goal, then rename: a run that is interrupted leaves no half file, and the old one as it was."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(state, beside, metadata)
        os.chmod(beside, 0o644)  # mkstemp's files are for their owner only
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def main(
    output: Annotated[Path | None, typer.Option(help="The checkpoint to write; FAMILY-digits.safetensors.")] = None,
    family: Annotated[NAMES, typer.Option(help="The architecture.")] = "spikformer",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,442 training images.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order and the shifts.")] = 0,
) -> None:
    """Train a small spiking transformer on handwritten digits and write it as a checkpoint."""
    torch.manual_seed(seed)
    chosen = FAMILIES[family]
    model = chosen.construct(**chosen.arguments)
    reached = train(model, epochs, seed, chosen.arguments["img_size_h"])
    metadata = {key: str(value) for key, value in chosen.arguments.items()}
    metadata |= {"mean": str(MEAN), "std": str(STD), "dataset": "digits", "acc": f"{reached:.4f}"}
    metadata |= {"epochs": str(epochs), "seed": str(seed)}
    output = output or Path(f"{family}-digits.safetensors")
    output.parent.mkdir(parents=True, exist_ok=True)
    save_whole(model.state_dict(), metadata, output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{output}: {chosen.name}, {parameters / 1e6:.2f} M parameters, {reached:.2%} of the held-out digits")


if __name__ == "__main__":
    typer.run(main)
