"""`cstep export`: a model, or what became of it, as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cstep
from command.arguments import Checkpoint, InputShape, MachineName, PerChannel, calibration_images, numbers
from command.compile import inputs_for
from isa.errors import CStepError

if TYPE_CHECKING:
    from compiler.frontend.model import Model
    from compiler.ir.network import Network
    from isa.machine import Machine
    from isa.program import Program
    from runtime.dataset import Dataset

MADE_UP = 8
"""Calibration images for a program whose pipeline holds all that calibration found."""


def export_command(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="As for `compile`; or a program file, or a dump NN-PASS.spike.")
    ],
    onnx: Annotated[Path, typer.Option(metavar="FILE.onnx", help="The file to write.")],
    checkpoint: Checkpoint = None,
    calibration: Annotated[str | None, typer.Option(metavar="DATA", help="As for `compile`.")] = None,
    real: Annotated[bool, typer.Option("--real", help="In real numbers, neurons as operators of c-step.")] = False,
    unrolled: Annotated[
        bool, typer.Option("--unrolled", help="In real numbers, neurons as plain operators, step by step.")
    ] = False,
    currents: Annotated[bool, typer.Option("--currents", help="Every neuron's current is an output, too.")] = False,
    check: Annotated[bool, typer.Option(help="Run the module after every pass and compare every current.")] = True,
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    machine: MachineName = "c-step",
) -> None:
    """Write a model as ONNX.

    The integer model that the program computes, in ONNX's plain operators; or the model in real numbers.
    """
    from compiler.ir.network import load_dump
    from compiler.ir.onnx.real import real_onnx
    from compiler.ir.onnx.save import integer_onnx, require_onnx_path, save_onnx
    from isa.machine import load_machine
    from runtime.report.console import show

    require_onnx_path(onnx)
    real = real or unrolled
    if real and currents:
        raise CStepError("--currents: the currents of the integer model; leave out --real and --unrolled")
    target = load_machine(machine)
    if source.endswith(".spike"):
        network = load_dump(Path(source))
    elif source.endswith(".cstep"):
        if real:
            raise CStepError(f"{source}: a program has integers only; export the model that it was compiled from")
        network = integer_model_of(cstep.load(source), source, checkpoint, calibration)
    elif real:
        network = imported(source, checkpoint, input_shape)
    else:
        network = integer_model(source, checkpoint, calibration, (input_shape, mean, std), target, check)
    save_onnx(real_onnx(network, unrolled=unrolled) if real else integer_onnx(network, currents=currents), onnx)
    kind = "real numbers" if real else "integers"
    show(f"{onnx}: {source} in {kind}, {onnx.stat().st_size:,} bytes")


def imported(source: str, checkpoint: Path | None, input_shape: str | None) -> Network:
    """A model as imported, compared with the eager one on a made-up input."""
    import numpy as np
    import torch

    from compiler.frontend.eager import compare_with_eager
    from compiler.frontend.importer import import_model
    from compiler.frontend.model import open_model

    opened = open_model(source, checkpoint)
    shape = numbers(input_shape, "--input-shape", int) if input_shape else opened.input
    if shape is None or len(shape) not in (3, 4) or min(shape) < 1:
        raise CStepError(f"{source}: say what it takes, --input-shape 3,32,32 (or 10,2,128,128 of events: T,C,H,W)")
    images = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    network = import_model(opened.module, torch.from_numpy(images))
    compare_with_eager(opened.module, network, images)
    return network


def integer_model(
    source: str,
    checkpoint: Path | None,
    calibration: str | None,
    images_as: tuple[str | None, str | None, str | None],
    target: Machine,
    check: bool,
) -> Network:
    """The integer model of a model. `images_as`: the options input shape, mean and standard deviation."""
    from compiler.frontend.model import open_model
    from runtime.report.console import progress_bar

    opened = open_model(source, checkpoint)
    inputs = inputs_for(opened, calibration, *images_as, None)
    with progress_bar("compile", None):
        compiled = cstep.compile_checked(
            opened.module,
            inputs.example,
            inputs.calibration,
            target,
            check=inputs.compared if check else None,
            passes=None,
            schedule="layers",
            dump_to=None,
            origin=(source, opened.checkpoint, inputs.about),
            normalisation=inputs.normalisation,
            image_scale=inputs.image_scale,
        )
    return compiled.integer


def integer_model_of(program: Program, source: str, checkpoint: Path | None, calibration: str | None) -> Network:
    """The integer model of a program file: its model is compiled again, and must give the same program."""
    import numpy as np

    from compiler.frontend.model import open_model

    provenance = program.header.provenance
    try:
        opened = open_model(provenance.model, checkpoint)
    except CStepError as error:
        raise CStepError(f"{source}: a program file does not hold its model, and {provenance.model}: {error}") from None
    dataset = _calibration_again(program, opened, calibration)
    drawn = np.random.default_rng(0).standard_normal((MADE_UP, *_shape(program))).astype(np.float32)
    images = dataset.images if dataset is not None else drawn
    compiled = cstep.compile_checked(
        opened.module,
        images[:1],
        images,
        program.header.machine,
        check=None,
        passes=provenance.pipeline,
        schedule="windows" if provenance.schedule == "windows" else "layers",
        dump_to=None,
        origin=(provenance.model, opened.checkpoint, provenance.calibration),
        normalisation=(program.header.input.mean, program.header.input.std),
    )
    again = compiled.program
    same = again.code == program.code and again.header.output == program.header.output
    if not same or not np.array_equal(again.memory, program.memory):
        raise CStepError(
            f"{source}: {provenance.model} compiles to another program now; give the --checkpoint and --calibration "
            f"that it was compiled with ({provenance.checkpoint}; {provenance.calibration})"
        )
    return compiled.integer


def _calibration_again(program: Program, opened: Model, calibration: str | None) -> Dataset | None:
    """The images that a program was calibrated with, normalised as it says."""
    if calibration is None:
        return None
    header = program.header.input
    shape, *normalisation = (",".join(map(str, values)) for values in (_shape(program), header.mean, header.std))
    return calibration_images(calibration, opened, shape, *(text or None for text in normalisation))


def _shape(program: Program) -> tuple[int, ...]:
    """The input's, timesteps first where it is events."""
    given = program.header.input
    return (given.steps, *given.shape) if given.kind == "events" else given.shape
