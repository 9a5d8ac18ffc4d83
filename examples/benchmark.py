"""The project's benchmark; `make bench` runs all of it.

    python examples/benchmark.py                                        everything
    python examples/benchmark.py emulator --model sdt-v1-8-512          against SpikingJelly and onnxruntime
    python examples/benchmark.py compile --model spikformer-8-768       seconds and memory of `cstep compile`
    python examples/benchmark.py depth --pattern "qkformer-{}-64"       what one more block costs

Weights are random, with batch norms set so that neurons fire at 10 to 25 %; they are kept in out/benchmark, since
drawing them takes longer than measuring. A network that something refuses is named, and the others go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from benchmarks.figures import Figures

app = typer.Typer(add_completion=False, rich_markup_mode=None)
FOLDER = Path("out/benchmark")

Models = Annotated[list[str] | None, typer.Option("--model", help="A name of the zoo; again for more.")]
Output = Annotated[Path | None, typer.Option(help="Write all figures here, as JSON.")]
Folder = Annotated[Path, typer.Option(help="Where checkpoints are kept.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Of the emulator and its rivals; else as many as fit 30 s.")]
Pattern = Annotated[str, typer.Option(help="A name of the zoo with {} for the number of blocks.")]


@app.callback(invoke_without_command=True)
def everything(context: typer.Context, output: Output = None, folder: Folder = FOLDER) -> None:
    """Without a command: all parts."""
    if context.invoked_subcommand is None:
        figures = Figures()
        run_emulator(None, None, folder, figures)
        run_compile(None, folder, figures)
        run_depth(None, folder, figures)
        finish(figures, output)


@app.command()
def emulator(models: Models = None, rounds: Rounds = None, output: Output = None, folder: Folder = FOLDER) -> None:
    """The emulator against SpikingJelly and onnxruntime, CPU time of one input on one thread."""
    run_emulator(models, rounds, folder, figures := Figures())
    finish(figures, output)


@app.command("compile")
def compiling(models: Models = None, output: Output = None, folder: Folder = FOLDER) -> None:
    """Wall seconds and peak memory of `cstep compile` from a checkpoint file."""
    run_compile(models, folder, figures := Figures())
    finish(figures, output)


@app.command()
def depth(pattern: Pattern = "", output: Output = None, folder: Folder = FOLDER) -> None:
    """How compile time, cycles and operations grow with the number of blocks."""
    run_depth(pattern or None, folder, figures := Figures())
    finish(figures, output)


def run_emulator(models: list[str] | None, rounds: int | None, folder: Path, figures: Figures) -> None:
    from benchmarks.emulator import MODELS, measure

    for name in models or MODELS:
        measure(name, folder, figures, rounds)


def run_compile(models: list[str] | None, folder: Path, figures: Figures) -> None:
    from benchmarks.compiling import MODELS, measure

    for name in models or MODELS:
        measure(name, folder, figures)


def run_depth(pattern: str | None, folder: Path, figures: Figures) -> None:
    from benchmarks.depth import PATTERNS, measure

    for each in [pattern] if pattern else PATTERNS:
        measure(each, folder, figures)


def finish(figures: Figures, output: Path | None) -> None:
    if output is not None:
        figures.save(output)
    for each in figures.refused:
        print(f"not measured: {each['part']} {each['network']}: {each['reason']}")


if __name__ == "__main__":
    app()
