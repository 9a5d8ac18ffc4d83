"""`cstep calibrate`: from training images to a settings file."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from command.arguments import Checkpoint, InputShape, MachineName, ModelName, PerChannel, calibration_images, numbers

if TYPE_CHECKING:
    from rich.table import Table

    from command.compile import CompileInputs
    from compiler.calibrate.search import Findings, Wanted
    from compiler.frontend.model import Model
    from compiler.settings import Settings
    from runtime.dataset import Dataset

IMAGES = 5000
"""Held-out images that are used where there are as many."""
NUMBERS = 1 << 26
"""Fewer where they hold more numbers than this: 445 of 224x224."""


def calibrate_command(
    model: ModelName,
    data: Annotated[str, typer.Option(metavar="TRAIN", help="Labelled training images; no test data.")],
    checkpoint: Checkpoint = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.toml", help="The settings file to write.")
    ] = Path("settings.toml"),
    exit_after: Annotated[str, typer.Option(metavar="N,N", help="Exits after so many timesteps; or none.")] = "2",
    criterion: Annotated[
        Literal["lightsoftmax", "softmax", "entropy"], typer.Option(help="How sure an exit must be of its logits.")
    ] = "lightsoftmax",
    rate: Annotated[float, typer.Option(help="Of the inputs that reach an exit, the most that leave there.")] = 0.4,
    loss: Annotated[float, typer.Option(help="Points of accuracy that all together may cost.")] = 0.1,
    guard: Annotated[
        Literal["rows", "columns", "both", "none"], typer.Option(help="What silent channels spare.")
    ] = "both",
    guard_after: Annotated[int, typer.Option(min=1, help="Timesteps that are counted for it.")] = 2,
    timesteps: Annotated[
        Literal["auto", "none"], typer.Option(help="Masks of neuron layers, by group, least sensitive first.")
    ] = "none",
    tokens: Annotated[
        Literal["auto", "none"], typer.Option(help="The share of the tokens that goes through each block.")
    ] = "none",
    score: Annotated[
        Literal["paper", "spatial", "temporal", "magnitude", "code"],
        typer.Option(help="By which score they are chosen."),
    ] = "paper",
    images: Annotated[int | None, typer.Option(min=1, help="Held-out images; 5,000 or all.")] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="As for `compile`: where ranges come from; TRAIN if not said.")
    ] = None,
    machine: MachineName = "c-step",
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> None:
    """Find exits, guards, timestep masks and kept tokens for `compile --settings`.

    On training images only, and on others than the ranges came from. Accuracy lost is that of all together, against the
    integer model without them.
    """
    from command.trials import calibrate_model
    from compiler.calibrate.search import Wanted
    from compiler.frontend.model import open_model
    from compiler.settings import write_settings
    from isa.files import require_directory_of
    from isa.machine import load_machine
    from runtime.report.console import note, progress_bar, show

    target = load_machine(machine)
    require_directory_of(output)
    after = () if exit_after == "none" else numbers(exit_after, "--exit-after", int)
    wanted = Wanted(
        after, criterion, rate, loss, None if guard == "none" else guard, guard_after, timesteps == "auto",
        tokens == "auto", score,
    )  # fmt: skip
    wanted.require()
    with progress_bar("load", None):
        opened = open_model(model, checkpoint)
        given, found, _ = training_inputs(opened, data, calibration, (input_shape, mean, std), images, 0)
    assert found.labels is not None
    with progress_bar("calibrate", None) as step:
        findings = calibrate_model(
            opened.module, given.example, given.calibration, given.image_scale, target, found.images, found.labels,
            wanted, settings_of(opened, found), lambda what: step(None, what),
        )  # fmt: skip
    for warning in findings.warnings:
        note(warning)
    write_settings(findings.settings, output)
    show(findings_table(findings, wanted))
    show(f"{output}: settings for {model}, found on {len(found):,} held-out training images of {found.name}")


def training_inputs(
    opened: Model, data: str, calibration: str | None, images_as: tuple[str | None, str | None, str | None],
    images: int | None, unseen: int | None,
) -> tuple[CompileInputs, Dataset, Dataset | None]:  # fmt: skip
    """What `compile` takes; images to calibrate on; and more to confirm it. The ranges come from none of them.

    None of `images`: 5,000 or all that there are, but for those unseen; none of `unseen`: as many, or what is left.
    """
    from command.compile import inputs_for
    from command.trials import held_out
    from compiler.calibrate.search import LEAST_IMAGES
    from runtime.stored import stored

    ranges = calibration_images(calibration or data, opened, *images_as)
    given = inputs_for(opened, calibration or data, *images_as, None)
    same = calibration is None or stored(calibration, "train").digest == stored(data, "train").digest
    taken = len(ranges) if same else 0
    left, most = stored(data, "train").count - taken, min(IMAGES, max(1, NUMBERS // prod(ranges.shape)))
    count = images or max(1, min(most, left // 2 if unseen is None else left - unseen))
    found = held_out(data, taken, ranges, count, "--images", required=images is not None)
    taken, more = taken + len(found), count if unseen is None else unseen
    if more == 0 or (unseen is None and left - len(found) < LEAST_IMAGES):
        return given, found, None
    return given, found, held_out(data, taken, ranges, more, "--confirm-images", required=unseen is not None)


def settings_of(opened: Model, found: Dataset) -> Settings:
    """Settings that only say for which model they are, and on what they were found."""
    from compiler.settings import Data, Settings, checkpoint_digest
    from compiler.settings import Model as ModelTable

    return Settings(
        model=ModelTable(name=opened.name, checkpoint=checkpoint_digest(opened.checkpoint)),
        data=Data(source=found.name, images=len(found), digest=found.digest),
    )


def findings_table(findings: Findings, wanted: Wanted) -> Table:
    """What was found, and on what."""
    from rich.table import Table

    settings = findings.settings
    table = Table("on held-out training images", "", box=None, pad_edge=False)
    table.add_row("integer model, top-1", f"{findings.accuracy:.2%} (measured on training images)")
    for each in findings.sensitivity:
        table.add_row(f"similarity of timesteps, {each.group}", f"{each.similarity:.4f} ({len(each.layers)} layers)")
    loss = f" at a loss of {settings.timesteps.loss:.2f} points" if settings.timesteps else ""
    table.add_row("T_avg", f"{findings.average:.2f}{loss}")
    if settings.tokens:
        for name, keep in zip(findings.blocks, settings.tokens.keep, strict=True):
            table.add_row(f"tokens kept in {name}", f"{keep:.1%}")
        table.add_row(
            f"loss with tokens by score {settings.tokens.score}",
            f"{settings.tokens.loss:.2f} points (bound {wanted.loss:g})",
        )
    if settings.exit:
        taus = ", ".join(f"{tau:.6g}" for tau in settings.exit.tau)
        table.add_row(
            f"exits after {', '.join(map(str, settings.exit.after))}", f"{settings.exit.criterion}, tau {taus}"
        )
        table.add_row("exit rate", f"{settings.exit.rate:.1%} (wanted {wanted.rate:.0%})")
        table.add_row("loss with exits", f"{settings.exit.loss:.2f} points (bound {wanted.loss:g})")
    for threshold, lost in findings.guards:
        chosen = ", chosen" if settings.guard and settings.guard.threshold == threshold else ""
        table.add_row(f"guard {wanted.guard}, threshold {threshold}", f"{lost:.2f} points with the exits{chosen}")
    for point in settings.curve:
        guard = "no guard" if point.guard_threshold < 0 else f"guard {point.guard_threshold}"
        taus = ", ".join(f"{tau:.6g}" for tau in point.tau)
        table.add_row(
            f"curve: loss <= {point.loss_bound:g}",
            f"exits {point.rate:.1%}, tau {taus}, {guard}: {point.loss:.2f} points",
        )
    return table
