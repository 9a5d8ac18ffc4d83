"""The `cstep` command: every subcommand reads its arguments, calls what does the work, and prints."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import cstep
from command.arguments import Data, Epsilon, MachineName, ProgramFile
from command.calibrate import calibrate_command
from command.check import check_command
from command.compile import compile_command
from command.evaluate import eval_command
from command.export import export_command
from command.figures import figures_command
from command.tune import tune_command
from isa.errors import CStepError, CStepWarning

USER_MISTAKE = 2
INTERRUPTED = 130
app = typer.Typer(
    name="cstep",
    add_completion=False,
    rich_markup_mode=None,
)
app.command("compile")(compile_command)
app.command("export")(export_command)
app.command("check")(check_command)
app.command("calibrate")(calibrate_command)
app.command("tune")(tune_command)
app.command("eval")(eval_command)
app.command("figures")(figures_command)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Compile spiking transformers to the C-STEP accelerator, and run the programs exactly."""
    if version:
        sys.stdout.write(f"cstep {cstep.__version__}\n")
        raise typer.Exit


@app.command("run")
def run_command_line(
    program_file: ProgramFile,
    data: Data,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many inputs.")] = None,
    share: Annotated[bool, typer.Option(help="Tokens share accumulations; the integers are the same.")] = True,
    kernels: Annotated[cstep.Kernels, typer.Option(help="Both give the same bytes and counts.")] = "fast",
    machine: Annotated[str | None, typer.Option(help="Refuse a program that is made for another machine.")] = None,
    energy: Annotated[str, typer.Option(metavar="TABLE", help="The energy table that is shown.")] = "cacti-28nm-lop",
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write report.json, per_layer.csv, report.html; runs twice.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; one a core.")] = None,
    epsilon: Epsilon = None,
) -> None:
    """Run a program on a data set.

    Says how good it is and what it costs: operations, bytes, cycles, energy.
    """
    from isa.epsilon import with_epsilon
    from runtime.energy import energy_table
    from runtime.report.console import show
    from runtime.report.measure import measure
    from runtime.report.terminal import ReportTable
    from runtime.report.write import make_directory, write_report

    program = cstep.load(program_file, machine)
    program = program if epsilon is None else with_epsilon(program, epsilon, "--epsilon ")
    energy_table(energy)
    if report is not None:
        make_directory(report)
    made = measure(
        program,
        data,
        limit,
        share=share,
        kernels=kernels,
        workers=workers or cstep.cores(),
        compare=report is not None,
    )
    show(ReportTable(made, energy))
    if report is not None:
        written = write_report(made, report, energy)
        show(f"wrote {', '.join(map(str, written))}")


@app.command()
def inspect(program_file: ProgramFile) -> None:
    """Show what is in a program file."""
    from runtime.report.console import show
    from runtime.report.listing import ProgramListing

    show(ProgramListing(cstep.load(program_file)))


@app.command()
def disasm(
    program_file: ProgramFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, not to the terminal.")] = None,
) -> None:
    """Write a program as text."""
    from isa.text import disassemble_program

    write_text(disassemble_program(cstep.load(program_file)), output)


@app.command()
def asm(
    listing: Annotated[Path, typer.Argument(help="Text as `cstep disasm` writes it, edited or not.")],
    program: Annotated[Path, typer.Option(help="The program that lends header and memory image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The program file to write.")],
) -> None:
    """Make a program of text and an older program.

    The text is what `cstep disasm` writes, edited; the program is verified before it is written.
    """
    from isa.files import read_text
    from isa.text import assemble_program

    assemble_program(read_text(listing, "a listing"), cstep.load(program), str(listing)).save(output)


@app.command()
def opt(
    dump: Annotated[Path, typer.Argument(help="A dump of --dump-ir, with the .safetensors beside it.")],
    passes: Annotated[str, typer.Option(help="e.g. 'canonicalise,fold-batch-norm'.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.spike", help="Write here, with new weights beside.")
    ] = None,
    machine: MachineName = "c-step",
) -> None:
    """Run passes on a dump, verifying after each."""
    from dataclasses import replace

    from compiler.ir.network import load_dump
    from compiler.pipeline import run_passes
    from isa.files import require_directory_of
    from isa.machine import load_machine

    if output is not None and output.suffix != ".spike":
        raise CStepError(f"{output}: a dump's name ends in .spike")
    network = run_passes(replace(load_dump(dump), target=load_machine(machine)), passes)
    if output is None:
        write_text(network.text(), None)
    else:
        require_directory_of(output)
        network.saved.clear()  # what stands beside another dump is not found from here
        network.dump(output.parent, output.stem)


@app.command()
def models() -> None:
    """List the zoo: names that MODEL can be."""
    from compiler import zoo
    from runtime.report.console import show

    last = None
    for family in zoo.FAMILIES:
        if (family.name, family.weights) != last:
            show(f"[bold]{family.name}[/]: weights: {family.weights}")
        last = family.name, family.weights
        for name, parameters in family.examples.items():
            image, steps = family.input_of(name)
            size = "x".join(map(str, image))
            show(f"    {name:32} {'events' if family.events else 'image':6} {size:>9}  T={steps:<3} {parameters:11,}")
    show("The numbers are inputs (channels, height, width), timesteps and parameters. Other depths and widths will do.")


@app.command()
def machines() -> None:
    """List the machines to compile for."""
    from isa.machine import load_machine, presets
    from runtime.report.console import show

    for name in presets():
        show(f"[bold]{name}[/]: {load_machine(name).description}")


def write_text(text: str, path: Path | None) -> None:
    """To a file, whole or not at all, or to the terminal."""
    from isa.files import write_whole

    if path is None:
        sys.stdout.write(text)
    else:
        write_whole(path, text.encode())


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. What a user did wrong is said in one line on stderr."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # libraries' warnings are for programmers
        warnings.simplefilter("always", CStepWarning)
        warnings.showwarning = _warn
        return _run(arguments)


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
    """One line on stderr: our own warnings as they are, a library's with its place."""
    place = "" if issubclass(category, CStepWarning) else f"{filename}:{lineno}: {category.__name__}: "
    sys.stderr.write(f"cstep: warning: {place}{' '.join(str(message).split())}\n")


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        code = app(args=given or ["--help"], prog_name="cstep", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except CStepError as error:
        return complain(str(error))
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # of the command that was given something wrong
        command = context.command_path if context is not None else "cstep"
        return complain(f"{error.format_message().rstrip('.')}; see {command} --help")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:  # `cstep disasm net.cstep | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return complain(f"{error.filename or 'cannot go on'}: {error.strerror or error}")


def complain(message: str) -> int:
    """One line on stderr; the exit code for a mistake of the user."""
    sys.stderr.write(f"cstep: {' '.join(message.split())}\n")
    return USER_MISTAKE
