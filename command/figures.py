"""`cstep figures`: what C-STEP's motivation looks like in a model of one's own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cstep
from command.arguments import Checkpoint, Data, InputShape, MachineName, PerChannel, SettingsFile
from isa.errors import CStepError, CStepWarning

if TYPE_CHECKING:
    from rich.table import Table

    from compiler.settings import Settings
    from isa.program import Program
    from runtime.dataset import Dataset
    from runtime.depth import Depths
    from runtime.interpreter import RunResult
    from runtime.report.motivation import Estimate, ExitPoint, LayerSpikes

OBSERVED = 64
"""Inputs whose spikes are looked at, where there are as many."""
PAPER_RATE = 0.4


def figures_command(
    source: Annotated[str, typer.Argument(metavar="PROGRAM|MODEL", help="A program file, or as for `compile`.")],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where csv and svg go.")],
    checkpoint: Checkpoint = None,
    calibration: Annotated[str | None, typer.Option(metavar="DATA", help="As for `compile`.")] = None,
    settings: SettingsFile = None,
    limit: Annotated[int, typer.Option(min=1, help="Inputs for the accuracies.")] = 1000,
    observed: Annotated[int, typer.Option(min=1, help="Of them, whose spikes are looked at.")] = OBSERVED,
    machine: MachineName = "c-step",
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> None:
    """Draw C-STEP's four figures of motivation.

    Accuracy of the inputs that would exit; channels silent early and how they fire later; common spikes of neighbouring
    tokens; what that promises. A model is compiled with exits after every timestep, none of which is taken. Where
    tokens are stopped or halt, by the program or the settings, how deep they go is drawn over the images, too.
    """
    from compiler.settings import read_settings
    from runtime.depth import chooses_tokens
    from runtime.report.console import note, show
    from runtime.report.depth_files import write_depths
    from runtime.report.measure import inputs_for
    from runtime.report.motivation import exits_of
    from runtime.report.motivation_files import write_figures
    from runtime.report.write import make_directory

    make_directory(output)
    chosen = read_settings(settings) if settings is not None else None
    images_as = (input_shape, mean, std)
    if source.endswith(".cstep"):
        program = tokens = cstep.load(source)
        if "guard-channels" in program.header.provenance.pipeline:
            note(f"{source}: has guards: channels silent early have no later spikes; give the model to see them")
    else:
        program = observable(source, checkpoint, calibration, images_as, machine, chosen)
        tokens = choosing(source, checkpoint, calibration, images_as, machine, chosen)
    if not exits_of(program):
        note(f"{source}: has no exits; no figure of exited inputs, early operations are taken for their share of T")
    dataset = inputs_for(program, data)
    dataset = dataset.take(min(limit, len(dataset)))
    found = seen_in(program, dataset, observed, exit_rate(settings, source))
    title = f"{program.header.provenance.model or source}: {len(dataset):,} inputs of {dataset.name}"
    written = write_figures(output, title, found.points, found.layers, found.estimates)
    if tokens is not None and chooses_tokens(tokens):
        try:
            written += write_depths(output, title, depths_in(tokens, dataset, observed), dataset.images)
        except CStepError as error:  # blocks with maps of several sizes
            note(f"{source}: how deep tokens go is not drawn: {error}")
    show(summary(found))
    show(f"wrote {', '.join(map(str, written))}")


@dataclass(frozen=True)
class Seen:
    """The numbers of the four figures."""

    points: list[ExitPoint]
    layers: dict[int, LayerSpikes]
    estimates: list[Estimate]


def observable(
    source: str,
    checkpoint: Path | None,
    calibration: str | None,
    images_as: tuple[str | None, str | None, str | None],
    machine: str,
    trained: Settings | None,
) -> Program:
    """A model compiled with exits after every timestep that are not taken, so that all logits are seen.

    `trained` are settings; those of its patch splitting and halting belong to the model.
    """
    import torch

    from command.compile import inputs_for
    from compiler.calibrate.timesteps import longest_train
    from compiler.frontend.importer import import_model
    from compiler.frontend.model import open_model
    from compiler.settings import NEVER, Exit, Model, Settings
    from isa.machine import load_machine
    from runtime.report.console import progress_bar

    opened = open_model(source, checkpoint)
    given = inputs_for(opened, calibration, *images_as, None)
    steps = longest_train(import_model(opened.module, torch.from_numpy(given.example)))
    after = tuple(range(1, steps))
    if not after:
        raise CStepError(f"{source}: has T={steps}; there is no later timestep to look at")
    exits = Exit(after=after, tau=(NEVER,) * len(after), variance=(0.0,) * len(after))
    with progress_bar("compile", None), warnings.catch_warnings():
        warnings.simplefilter("ignore", CStepWarning)  # that they are never taken is meant
        return cstep.compile_checked(
            opened.module, given.example, given.calibration, load_machine(machine), check=None, passes=None,
            schedule="layers", settings=Settings(model=Model(name=source), exit=exits, **belonging(trained)),
            dump_to=None, origin=(source, opened.checkpoint, given.about), normalisation=given.normalisation,
            image_scale=given.image_scale,
        ).program  # fmt: skip


def belonging(trained: Settings | None) -> dict[str, Any]:
    """The tables that say how a model computes, whatever is saved of it."""
    return {} if trained is None else {"patch_splitting": trained.patch_splitting, "halting": trained.halting}


def choosing(
    source: str,
    checkpoint: Path | None,
    calibration: str | None,
    images_as: tuple[str | None, str | None, str | None],
    machine: str,
    settings: Settings | None,
) -> Program | None:
    """A model compiled with the settings' choice of tokens alone; None where they choose none."""
    from command.compile import inputs_for
    from compiler.frontend.model import open_model
    from compiler.settings import Model, Settings
    from isa.machine import load_machine
    from runtime.report.console import progress_bar

    if settings is None or not (settings.tokens or settings.halting):
        return None
    opened = open_model(source, checkpoint)
    given = inputs_for(opened, calibration, *images_as, None)
    chosen = Settings(model=Model(name=source), tokens=settings.tokens, **belonging(settings))
    with progress_bar("compile", None):
        return cstep.compile_checked(
            opened.module, given.example, given.calibration, load_machine(machine), check=None, passes=None,
            schedule="layers", settings=chosen, dump_to=None, origin=(source, opened.checkpoint, given.about),
            normalisation=given.normalisation, image_scale=given.image_scale,
        ).program  # fmt: skip


def depths_in(program: Program, dataset: Dataset, observed: int) -> Depths:
    """How deep the tokens of the first `observed` inputs go."""
    from runtime.depth import depths_of
    from runtime.quantise import quantise_input
    from runtime.report.console import progress_bar

    few = quantise_input(program, dataset.images[:observed])
    with progress_bar("depth", len(few)) as step:
        return depths_of(program, few, step)


def seen_in(program: Program, dataset: Dataset, observed: int, rate: float) -> Seen:
    """Run the program: all inputs with no exit taken, the first `observed` also neuron by neuron."""
    from runtime.interpreter import run
    from runtime.quantise import quantise_input
    from runtime.report.console import progress_bar
    from runtime.report.motivation import (
        EARLY,
        always_exiting,
        estimates,
        exit_points,
        exits_of,
        never_exiting,
        observe,
    )

    whole, after, workers = never_exiting(program), exits_of(program), cstep.cores()
    integers = quantise_input(program, dataset.images)
    few = integers[:observed]

    def ran(program: Program, label: str) -> RunResult:
        with progress_bar(label, len(integers)) as step:
            return run(program, integers, share=False, workers=workers, progress=step)

    result = ran(whole, "all timesteps")
    points: list[ExitPoint] = []
    if after and dataset.labels is not None:
        points = exit_points(result, after, program.header.output.scale, dataset.labels)
    with progress_bar("observe", len(few)) as step:
        layers = observe(whole, few, workers, step)
    early = ran(always_exiting(program, EARLY), "early timesteps") if EARLY in after else None
    return Seen(points, layers, estimates(layers, result, early, rate))


def exit_rate(settings: Path | None, source: str) -> float:
    """What calibration found on training images; without settings the paper's."""
    from compiler.settings import read_settings

    if settings is None:
        return PAPER_RATE
    found = read_settings(settings)
    exits = found.exit
    if exits is None and (found.tokens or found.halting):
        return PAPER_RATE
    if exits is None or exits.rate is None:
        raise CStepError(f"{settings}: says no exit rate for {source}; calibrate with exits")
    return exits.rate


def summary(found: Seen) -> Table:
    """Each figure's main number beside the paper's."""
    from rich.table import Table

    from runtime.report.motivation_files import PAPER_COMMON, PAPER_EXITED, PAPER_LEFT, PAPER_SILENT, all_layers

    table = Table("figure", "ours", "paper, other weights", box=None, pad_edge=False)
    for each in found.points:
        if each.share and abs(each.share - 0.5) < 0.05:
            paper = f"{PAPER_EXITED:.2%}" if each.after == 2 else ""
            table.add_row(f"top-1 of the half that exits after {each.after}", f"{each.exited:.2%}", paper)
    ratio, late, silent, times = all_layers(found.layers)
    table.add_row("channels silent early", f"{ratio:.2%}", "")
    table.add_row(
        "their later rate, the mean", f"{silent:.4f}, {late:.4f} ({times:.1f}x)", "{:g}x to {:g}x".format(*PAPER_SILENT)
    )
    for each in found.estimates:
        paper = f"{PAPER_COMMON:.3f}" if each.neighbours == 2 else ""
        table.add_row(f"common fraction, K={each.neighbours}", f"{each.common_fraction:.3f}", paper)
    first = found.estimates[0]
    table.add_row("late operations of silent columns", f"{first.removed:.3f}", "0.64 (derived)")
    table.add_row(
        f"estimate at {first.exit_rate:.0%} exits: exit + guards, + sharing",
        f"{first.exit_and_guards:.3f}x, {first.everything:.3f}x",
        "{:.3f}x, {:.3f}x".format(*PAPER_LEFT),
    )
    return table
