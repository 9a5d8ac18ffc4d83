"""Arguments that several subcommands of `cstep` share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from isa.errors import CStepError

if TYPE_CHECKING:
    from compiler.frontend.model import Model
    from runtime.dataset import Dataset

N = TypeVar("N", int, float)

CALIBRATION_IMAGES = 1024
"""As many images of a larger calibration set are used, drawn at random with a fixed seed."""
CALIBRATION_NUMBERS = 1 << 22
"""Fewer where they hold more numbers than this: 27 of 224x224, 8 of event data."""
LEAST_IMAGES = 8

MODEL_HELP = "FILE.py:FACTORY, MODULE:FACTORY, a zoo name, or FILE.onnx."
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Data = Annotated[str, typer.Argument(help="A .parquet, an .npz (x, y), a folder of class folders, or digits.")]
ProgramFile = Annotated[Path, typer.Argument(metavar="PROGRAM", help="A program file.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pth, .pt or .pth.tar.")]
InputShape = Annotated[str | None, typer.Option(metavar="C,H,W", help="Of a factory's model; else the data's own.")]
MachineName = Annotated[str, typer.Option("--machine", help="A machine's name or TOML file; see `cstep machines`.")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE.toml", help="Exits, guards, masks: of `cstep calibrate`.")
]
Epsilon = Annotated[
    float | None, typer.Option(metavar="E", help="Tokens halt at a total of 1 - E, whatever it was compiled with.")
]
PerChannel = Annotated[str | None, typer.Option(metavar="R,G,B", help="Of pixels scaled to 0..1; else the model's.")]


def calibration_images(
    source: str, model: Model, input_shape: str | None, mean: str | None, std: str | None
) -> Dataset:
    """The images to calibrate with, normalised as the options, else the model, say."""
    from runtime.dataset import load_dataset

    shape = numbers(input_shape, "--input-shape", int) if input_shape else model.input
    if shape is not None and (len(shape) not in (3, 4) or min(shape) < 1):
        raise CStepError(f"--input-shape {input_shape}: it must be channels, height, width (of events, T before them)")
    means = numbers(mean, "--mean", float) if mean else model.mean
    stds = numbers(std, "--std", float) if std else model.std
    if stds is not None and min(stds) <= 0:
        raise CStepError(f"--std {std}: must be positive in every channel")
    found = load_dataset(source, split="train", shape=shape, mean=means, std=stds)
    most = max(LEAST_IMAGES, min(CALIBRATION_IMAGES, CALIBRATION_NUMBERS // prod(found.shape)))
    return found.take(most, seed=0) if len(found) > most else found


def numbers(text: str, option: str, kind: Callable[[str], N]) -> tuple[N, ...]:
    """`0.49,0.48,0.45` as numbers."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise CStepError(f"{option} {text}: it must be numbers with commas between") from None
