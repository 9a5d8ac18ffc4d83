"""Top-1 of the float model, of the integer model, and of the program, on the same images.

    python examples/accuracy.py                                     the bundled digits, under a minute
    python examples/accuracy.py spikformer-2-64 FILE.safetensors TRAIN.parquet TEST.parquet

The integer model is the last module of the spike dialect, executed op by op; the program runs on the emulator. The two
must agree in every logit, and the script says whether they do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track

import cstep
from compiler.frontend.model import open_model
from compiler.ir.meaning import Executor
from isa.machine import load_machine
from runtime.dataset import load_dataset

HERE = Path(__file__).parent


def main(
    model: Annotated[str, typer.Argument()] = "spikformer-2-96",
    checkpoint: Annotated[Path, typer.Argument()] = HERE / "spikformer-digits.safetensors",
    calibration: Annotated[str, typer.Argument()] = "digits",
    test: Annotated[str, typer.Argument()] = "digits",
    limit: int = 10_000,
) -> None:
    """Compile, run all three, print their accuracies."""
    opened = open_model(model, checkpoint)
    settings = {"shape": opened.input, "mean": opened.mean, "std": opened.std}
    training = load_dataset(calibration, split="train", **settings).take(1024, seed=0)
    dataset = load_dataset(test, split="test", **settings)
    images, labels = dataset.images[:limit], dataset.labels[:limit]
    compiled = cstep.compile_checked(
        opened.module,
        training.images[:1],
        training.images,
        load_machine("c-step"),
        check=training.images[:4],
        passes=None,
        schedule="layers",
        dump_to=None,
        origin=(model, opened.checkpoint, training.name),
        normalisation=(training.mean, training.std),
    )
    with torch.no_grad():
        parts = [opened.module(torch.from_numpy(images[i : i + 100])) for i in range(0, len(images), 100)]
    floats = torch.cat(parts).numpy().argmax(axis=1)
    executor = Executor(compiled.integer)
    integers = np.stack([executor.run(x).output for x in track(images, "integer model", transient=True)])
    program = cstep.run(compiled.program, images)
    scaled = (integers * compiled.program.header.output.scale).astype(np.float32)
    print(f"images   {len(images)}")
    print(f"float    {100 * np.mean(floats == labels):.2f} %   (measured)")
    print(f"integer  {100 * np.mean(integers.argmax(axis=1) == labels):.2f} %   (measured)")
    print(f"program  {100 * np.mean(program.labels == labels):.2f} %   (measured)")
    print(f"logits that differ between integer model and program: {int((scaled != program.logits).sum())}")


if __name__ == "__main__":
    typer.run(main)
