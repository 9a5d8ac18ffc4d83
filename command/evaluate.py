"""`cstep eval`: a program on a whole data set, or every step of a model's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import cstep
from command.arguments import Checkpoint, Data, Epsilon, InputShape, PerChannel, SettingsFile
from isa.errors import CStepError

if TYPE_CHECKING:
    from isa.program import Program

PROGRAM = ".cstep"


def eval_command(
    source: Annotated[
        str, typer.Argument(metavar="PROGRAM|MODEL", help="A program file; or as for `compile`, with --settings.")
    ],
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Results folder; PROGRAM-DATA.eval if not said."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the whole shards of that folder.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many inputs.")] = None,
    shard: Annotated[int | None, typer.Option(min=1, help="Inputs of a shard; some seconds' worth.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core.")] = None,
    backend: Annotated[
        Literal["loky", "dask", "ray"], typer.Option(help="Processes here, or a cluster whose workers see both paths.")
    ] = "loky",
    address: Annotated[str | None, typer.Option(help="The cluster's, e.g. tcp://10.0.0.1:8786.")] = None,
    share: Annotated[bool, typer.Option(help="Tokens share accumulations; the integers are the same.")] = True,
    kernels: Annotated[cstep.Kernels, typer.Option(help="Both give the same bytes and counts.")] = "fast",
    machine: Annotated[str | None, typer.Option(help="Refuse a program for another machine; a model's target.")] = None,
    energy: Annotated[str, typer.Option(metavar="TABLE", help="The energy table that is shown.")] = "cacti-28nm-lop",
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.json, per_layer.csv, report.html, histograms.svg."),
    ] = None,
    settings: SettingsFile = None,
    checkpoint: Checkpoint = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Of a model that was retrained for its settings: from before that."),
    ] = None,
    calibration: Annotated[str | None, typer.Option(metavar="DATA", help="Of a model: as for `compile`.")] = None,
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    epsilon: Epsilon = None,
) -> None:
    """Run a whole data set in parallel processes.

    Every finished shard is a file of the results folder; what is killed loses the shards that were running, and
    --resume goes on with the others. Says what `run` says.

    A model with --settings is compiled and run step by step: without all of it, then hoisted, with exits, guards,
    sharing, and along the trade-off of accuracy and operations. With --baseline all is relative to that checkpoint's
    program. The folder gets ladder.json, .csv and .svg.
    """
    from runtime.energy import energy_table

    energy_table(energy)
    named = Path(source.replace(":", "-")) if epsilon is None else turned_name(source, epsilon)
    folder = output if output is not None else default_folder(named, data)
    options: dict[str, Any] = {
        "resume": resume, "limit": limit, "shard": shard, "workers": workers, "backend": backend, "address": address,
        "kernels": kernels,
    }  # fmt: skip
    if source.endswith(PROGRAM):
        if any(given is not None for given in (settings, checkpoint, calibration, baseline)):
            raise CStepError(f"{source}: a program holds its settings and weights; leave out what only compiling takes")
        program = cstep.load(source, machine)
        if epsilon is not None:
            path = folder.with_name(named.name)
            save_turned(program, epsilon, path)
            source = str(path)
        evaluate_program(source, data, folder, report, energy, {**options, "share": share})
        return
    if epsilon is not None:
        raise CStepError("--epsilon: for a program file; a model has it in its settings, [halting] epsilon")
    if settings is None:
        raise CStepError(
            f"{source}: give a program file *{PROGRAM}, or --settings FILE.toml to compile the model step by step"
        )
    if report is not None:
        raise CStepError("--report: for a program file; the steps of a model have theirs in the results folder")
    images_as = (input_shape, mean, std)
    checkpoints = (checkpoint, baseline)
    evaluate_ladder(source, data, folder, settings, checkpoints, calibration, images_as, machine or "c-step", options)


def turned_name(program_file: str, epsilon: float) -> Path:
    """`net-epsilon-0.5.cstep` of `net.cstep`."""
    return Path(f"{program_file.removesuffix(PROGRAM)}-epsilon-{epsilon:g}{PROGRAM}")


def save_turned(program: Program, epsilon: float, path: Path) -> None:
    """Write the program with another epsilon."""
    from isa.epsilon import with_epsilon
    from runtime.report.console import note
    from runtime.report.write import make_directory

    changed = with_epsilon(program, epsilon, "--epsilon ")
    make_directory(path.parent)
    changed.save(path)
    note(f"{path}: the program with that epsilon")


def evaluate_program(
    program_file: str, data: str, folder: Path, report: Path | None, energy: str, options: dict[str, Any]
) -> None:
    """One program: the report on the terminal, and where `report` says."""
    from runtime.report.console import note, progress_bar, show
    from runtime.report.terminal import ReportTable
    from runtime.report.write import make_directory, write_report

    if report is not None:
        make_directory(report)
    try:
        with progress_bar("eval", None, unit="inputs") as step:
            done = cstep.evaluate(
                program_file, data, folder, progress=lambda done, total: step(done, total=total), **options
            )
    except KeyboardInterrupt:
        note(f"{folder}: holds what is finished; --resume goes on with it")
        raise
    if done.again:
        note(f"{done.again} shards ran again because a process died")
    show(ReportTable(done.report, energy))
    show(f"results in {folder}")
    if report is not None:
        from runtime.evaluate.pictures import write_histograms

        written = [*write_report(done.report, report, energy), report / "histograms.svg"]
        write_histograms(done.report, written[-1], energy)
        show(f"wrote {', '.join(map(str, written))}")


def evaluate_ladder(
    model: str,
    data: str,
    folder: Path,
    settings: Path,
    checkpoints: tuple[Path | None, Path | None],
    calibration: str | None,
    images_as: tuple[str | None, str | None, str | None],
    machine: str,
    options: dict[str, Any],
) -> None:
    """Every step of a model's settings: a table on the terminal, and files in the folder.

    `checkpoints`: the model's, and that of the baseline where it is another one.
    """
    from command.compile import inputs_for, settings_for
    from command.ladder import Climb, climb
    from compiler.frontend.model import open_model
    from isa.machine import load_machine
    from runtime.evaluate.ladder_files import write_ladder
    from runtime.evaluate.ladder_table import LadderTable
    from runtime.report.console import note, progress_bar, show
    from runtime.stored import stored

    target = load_machine(machine)
    chosen = settings_for(settings, model)
    assert chosen is not None
    stored(data, "test")

    def opened(checkpoint: Path | None) -> Climb:
        with progress_bar("load", None):
            found = open_model(model, checkpoint)
            given = inputs_for(found, calibration, *images_as, None)
        return Climb(
            found.module, given.example, given.calibration, given.compared[:1], target,
            (model, found.checkpoint, given.about), given.normalisation, given.image_scale,
        )  # fmt: skip

    compiling = opened(checkpoints[0])
    if said := chosen.checkpoint_note(compiling.origin[1]):
        note(said)
    before = opened(checkpoints[1]) if checkpoints[1] is not None else None
    try:
        with progress_bar("eval", None, unit="inputs") as step:
            ladder = climb(
                compiling, chosen, data, folder, before=before,
                progress=lambda what, done, total: step(done, what, total), **options,
            )  # fmt: skip
    except KeyboardInterrupt:
        note(f"{folder}: holds what is finished; --resume goes on with it")
        raise
    written = write_ladder(ladder, folder)
    show(LadderTable(ladder))
    show(f"wrote {', '.join(map(str, written))}")


def default_folder(program_file: Path, data: str) -> Path:
    """`net-cifar10-test.eval` of `net.cstep` and `data/cifar10-test.parquet`; `net-digits.eval`."""
    return Path(f"{program_file.stem}-{Path(data.replace(':', '-')).stem}.eval")
