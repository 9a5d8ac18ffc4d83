"""`cstep eval`: a whole data set in parallel processes, resumed where it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import cstep
from command.arguments import Data, ProgramFile


def eval_command(
    program_file: ProgramFile,
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
    share: Annotated[bool, typer.Option(help="Adjacent tokens share accumulations; the integers are the same.")] = True,
    kernels: Annotated[cstep.Kernels, typer.Option(help="Both give the same bytes and counts.")] = "fast",
    machine: Annotated[str | None, typer.Option(help="Refuse a program that is made for another machine.")] = None,
    energy: Annotated[str, typer.Option(metavar="TABLE", help="The energy table that is shown.")] = "cacti-28nm-lop",
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.json, per_layer.csv, report.html, histograms.svg."),
    ] = None,
) -> None:
    """Run a whole data set in parallel processes.

    Every finished shard is a file of the results folder; what is killed loses the shards that were running, and
    --resume goes on with the others. Says what `run` says.
    """
    from runtime.energy import energy_table
    from runtime.report.console import note, progress_bar, show
    from runtime.report.terminal import ReportTable
    from runtime.report.write import make_directory, write_report

    cstep.load(program_file, machine)
    energy_table(energy)
    if report is not None:
        make_directory(report)
    folder = output if output is not None else default_folder(program_file, data)
    try:
        with progress_bar("eval", None, unit="inputs") as step:
            done = cstep.evaluate(
                program_file, data, folder, resume=resume, limit=limit, shard=shard, workers=workers, backend=backend,
                address=address, share=share, kernels=kernels,
                progress=lambda done, total: step(done, total=total),
            )  # fmt: skip
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


def default_folder(program_file: Path, data: str) -> Path:
    """`net-cifar10-test.eval` of `net.cstep` and `data/cifar10-test.parquet`; `net-digits.eval`."""
    return Path(f"{program_file.stem}-{Path(data.replace(':', '-')).stem}.eval")
