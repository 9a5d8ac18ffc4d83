"""The `cstep` command: every subcommand reads its arguments, calls what does the work, and prints."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cstep
from cstep_arguments import (
    MODEL_HELP,
    Checkpoint,
    Data,
    InputShape,
    MachineName,
    ModelName,
    PerChannel,
    ProgramFile,
    calibration_images,
    numbers,
)
from cstep_export import export_command
from isa.errors import CStepError

if TYPE_CHECKING:
    from rich.table import Table

    from compiler.check import CheckResult
    from compiler.frontend.model import Model
    from isa.program import Program
    from runtime.dataset import Dataset

USER_MISTAKE = 2
INTERRUPTED = 130
app = typer.Typer(
    name="cstep",
    add_completion=False,
    rich_markup_mode=None,
)
app.command("export")(export_command)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Compile spiking transformers to the C-STEP accelerator, and run the programs exactly."""
    if version:
        sys.stdout.write(f"cstep {cstep.__version__}\n")
        raise typer.Exit


@app.command("compile")
def compile_command(
    model: ModelName,
    calibration: Annotated[str, typer.Option(metavar="DATA", help="Inputs as for `run`, 8 images or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The program file to write.")],
    checkpoint: Checkpoint = None,
    dump_ir: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the IR after every pass here.")] = None,
    machine: MachineName = "c-step",
    schedule: Annotated[
        cstep.Schedule, typer.Option(help="All layers for all timesteps, or window by window.")
    ] = "layers",
    passes: Annotated[str | None, typer.Option(help="Another pipeline, e.g. from the program's provenance.")] = None,
    check: Annotated[bool, typer.Option(help="Run the module after every pass and compare every current.")] = True,
    check_images: Annotated[int, typer.Option(min=1, help="How many calibration images that is.")] = cstep.CHECK_IMAGES,
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    test: Annotated[str | None, typer.Option(metavar="DATA", help="Compare top-1 of the float model, program.")] = None,
) -> None:
    """Compile a trained model to a program file.

    After every pass the module is run, and every neuron's current is compared.
    """
    from compiler.frontend.model import open_model
    from compiler.pipeline import DEFAULT_PASSES
    from isa.files import require_directory_of
    from isa.machine import load_machine
    from runtime.report.console import note, progress_bar, show

    target = load_machine(machine)
    require_directory_of(output)
    with progress_bar("load", None):
        opened = open_model(model, checkpoint)
        dataset = calibration_images(calibration, opened, input_shape, mean, std)
        images = dataset.images
    if checkpoint is None and not model.endswith(".onnx"):
        note(f"{model}: no --checkpoint: {opened.checkpoint}")
    with progress_bar("compile", 1 + len((passes or DEFAULT_PASSES).split(","))) as step:
        compiled = cstep.compile_checked(
            opened.module,
            images[:1],
            images,
            target,
            check=images[:check_images] if check else None,
            passes=passes,
            schedule=schedule,
            dump_to=dump_ir,
            origin=(model, opened.checkpoint, f"{dataset.name}, {len(images)} images, sha256:{dataset.digest[:16]}"),
            normalisation=(dataset.mean, dataset.std),
            progress=lambda name: step(None, name),
        )
    compiled.program.save(output)
    show(checks_table(compiled.checks))
    code, weights = len(compiled.program.code), len(compiled.program.memory)
    show(f"{output}: {code:,} instructions, {weights:,} bytes of weights and constants, machine {target.name}")
    if test is not None:
        show(compare_accuracy(opened, compiled.program, labelled(test, compiled.program)))


@app.command("run")
def run_command_line(
    program_file: ProgramFile,
    data: Data,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many inputs.")] = None,
    share: Annotated[bool, typer.Option(help="Adjacent tokens share accumulations; the integers are the same.")] = True,
    kernels: Annotated[cstep.Kernels, typer.Option(help="Both give the same bytes and counts.")] = "fast",
    machine: Annotated[str | None, typer.Option(help="Refuse a program that is made for another machine.")] = None,
    energy: Annotated[str, typer.Option(metavar="TABLE", help="The energy table that is shown.")] = "cacti-28nm-lop",
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write report.json, per_layer.csv, report.html; runs twice.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; one a core.")] = None,
) -> None:
    """Run a program on a data set.

    Says how good it is and what it costs: operations, bytes, cycles, energy.
    """
    from runtime.energy import energy_table
    from runtime.report.console import show
    from runtime.report.measure import inputs_for, measure
    from runtime.report.terminal import ReportTable
    from runtime.report.write import make_directory, write_report

    program = cstep.load(program_file, machine)
    energy_table(energy)
    if report is not None:
        make_directory(report)
    made = measure(
        program,
        inputs_for(program, data, limit),
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
def check(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = None,
    checkpoint: Checkpoint = None,
    ops: Annotated[bool, typer.Option("--ops", help="List what the compiler knows, and stop.")] = False,
    input_shape: InputShape = None,
    machine: MachineName = "c-step",
) -> None:
    """Say what of a model maps to the machine.

    And what does not, where that is, and what to do.
    """
    from runtime.report.console import show

    if ops:
        from compiler.frontend.torch_ops import supported

        for kind, names in supported().items():
            show(f"[bold]{kind}[/]: {', '.join(names)}")
        return
    if model is None:
        raise CStepError("check: name a MODEL, or ask for --ops")
    check_model(model, checkpoint, input_shape, machine)


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


def check_model(name: str, checkpoint: Path | None, input_shape: str | None, machine: str) -> None:
    """Compile with made-up calibration and show the layers, or list everything that does not map."""
    import numpy as np
    import torch

    from compiler.frontend.mapping import unmapped
    from compiler.frontend.model import open_model
    from isa.machine import load_machine
    from runtime.report.console import show
    from runtime.report.listing import layer_table

    target = load_machine(machine)
    opened = open_model(name, checkpoint)
    shape = numbers(input_shape, "--input-shape", int) if input_shape else opened.input
    if shape is None or len(shape) not in (3, 4) or min(shape) < 1:
        raise CStepError(f"{name}: say what it takes, --input-shape 3,32,32 (or 10,2,128,128 of events: T,C,H,W)")
    images = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    problems = unmapped(opened.module, torch.from_numpy(images[:1]))
    if problems:
        for problem in problems:
            show(f"does not map: {problem}", markup=False)
        raise CStepError(f"{name}: {len(problems)} of its calls do not map; replace them, see `cstep check --ops`")
    program = cstep.compile(opened.module, images[:1], calibration=images, machine=target, check=False)
    show(layer_table(program))
    show(f"{name} maps to {target.name}: {len(program.code):,} instructions (weights as given, input range made up)")


def labelled(source: str, program: Program) -> Dataset:
    """A data set with labels to test the program on."""
    from runtime.report.measure import inputs_for

    dataset = inputs_for(program, source, None)
    if dataset.labels is None:
        raise CStepError(f"{source}: has no labels; --test needs them")
    return dataset


def compare_accuracy(model: Model, program: Program, dataset: Dataset) -> str:
    """Top-1 of the float model and of the program on the same inputs."""
    import numpy as np

    from compiler.frontend.eager import eager_labels
    from runtime.report.console import progress_bar

    assert dataset.labels is not None
    with progress_bar("float model", len(dataset)) as step:
        labels = eager_labels(model.module, dataset.images, step)
    with progress_bar("program", len(dataset)) as step:
        result = cstep.run(program, dataset.images, progress=step)
    right = [int(np.equal(found, dataset.labels).sum()) for found in (labels, result.labels)]
    texts = [f"{count / len(dataset):.2%} ({count} of {len(dataset)})" for count in right]
    return f"top-1 on {dataset.name}: float model {texts[0]}, program {texts[1]}"


def checks_table(checks: Sequence[CheckResult]) -> Table:
    """What was compared after every pass."""
    from rich.table import Table

    table = Table("pass", "compared", "differing", "seconds", "check", "how", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    for each in checks:
        compared = (f"{each.compared:,}", "0") if each.compared else ("", "")
        table.add_row(each.name, *compared, f"{each.seconds:.1f}", f"{each.check_seconds:.1f}", each.note)
    return table


def write_text(text: str, path: Path | None) -> None:
    """To a file, whole or not at all, or to the terminal."""
    from isa.files import write_whole

    if path is None:
        sys.stdout.write(text)
    else:
        write_whole(path, text.encode())


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. What a user did wrong is said in one line on stderr."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' warnings are for programmers
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        code = app(args=given or ["--help"], prog_name="cstep", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except CStepError as error:
        return complain(str(error))
    except typer.TyperException as error:
        return complain(f"{error.format_message().rstrip('.')}; see cstep --help")
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
