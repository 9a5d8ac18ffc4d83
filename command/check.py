"""`cstep check`: what of a model maps to the machine, what does not, and where a layer's input is not binary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from command.arguments import MODEL_HELP, Checkpoint, InputShape, MachineName, numbers
from isa.errors import CStepError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from compiler.frontend.model import Model
    from compiler.ir.network import Network
    from isa.machine import Machine
    from isa.program import Program

MADE_UP = 8
"""Random inputs that stand in for calibration data."""
FIRST_OF_THE_BACK_END = "lower-to-cstep"


def check_command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = None,
    checkpoint: Checkpoint = None,
    ops: Annotated[bool, typer.Option("--ops", help="List what the compiler knows, and stop.")] = False,
    input_shape: InputShape = None,
    machine: MachineName = "c-step",
) -> None:
    """Say what of a model maps to the machine.

    And what does not, where that is, and what to do; and which layers' inputs are more than spikes.
    """
    from isa.machine import load_machine
    from runtime.report.console import show

    if ops:
        from compiler.frontend.torch_ops import supported

        for kind, names in supported().items():
            show(f"[bold]{kind}[/]: {', '.join(names)}")
        return
    if model is None:
        raise CStepError("check: name a MODEL, or ask for --ops")
    check_model(model, checkpoint, input_shape, load_machine(machine))


def check_model(name: str, checkpoint: Path | None, input_shape: str | None, target: Machine) -> None:
    """Compile with made-up inputs and show the layers, or list everything that does not map."""
    import torch

    from compiler.frontend.importer import import_model
    from compiler.frontend.mapping import unmapped
    from compiler.frontend.model import open_model
    from runtime.report.console import show
    from runtime.report.listing import layer_table

    opened = open_model(name, checkpoint)
    inputs, scale = made_up_inputs(opened, input_shape)
    example = torch.from_numpy(inputs[:1])
    problems = unmapped(opened.module, example)
    for problem in problems:
        show(f"does not map: {problem}", markup=False)
    if problems:
        raise CStepError(f"{name}: {len(problems)} of its calls do not map; replace them, see `cstep check --ops`")
    integer, rest = integer_model(import_model(opened.module, example), inputs, scale, target)
    show(kinds_table(integer))
    program = lowered(integer, rest, inputs, target, opened)
    show("")
    show(layer_table(program))
    show(f"{name} maps to {target.name}: {len(program.code):,} instructions (weights as given, input range made up)")
    if opened.needs_calibration:
        show(f"to compile it give --calibration: {opened.needs_calibration}")


def made_up_inputs(model: Model, input_shape: str | None) -> tuple[NDArray[np.float32], float]:
    """Random inputs of the model's shape, and the real value of the image's integer 1."""
    from compiler.calibrate.without_data import MadeInputs

    shape = numbers(input_shape, "--input-shape", int) if input_shape else model.input
    if shape is None or len(shape) not in (3, 4) or min(shape) < 1:
        raise CStepError(f"{model.name}: say what it takes, --input-shape 3,32,32 (or 10,2,128,128 of events: T,C,H,W)")
    normalised = model.mean and model.std and len(model.mean) == shape[-3]
    mean, std = (model.mean, model.std) if normalised else ((0.0,) * shape[-3], (1.0,) * shape[-3])
    made = MadeInputs.of(shape, mean or (), std or (), MADE_UP)
    return made.inputs, made.image_scale


def integer_model(network: Network, inputs: NDArray[np.float32], scale: float, target: Machine) -> tuple[Network, str]:
    """The integer module of an imported one, and the passes that are left: the back end's."""
    from compiler.pipeline import DEFAULT_PASSES, parse_passes

    text = DEFAULT_PASSES.replace("SCALE", repr(scale)).replace("BITS", str(target.accumulator_bits))
    front, name, rest = text.replace("SCHEDULE", "layers").partition(FIRST_OF_THE_BACK_END)
    for each in parse_passes(front.rstrip(",")):
        network = each.apply_with(network, inputs)
        network.verify()
    return network, name + rest


def lowered(integer: Network, passes: str, inputs: NDArray[np.float32], target: Machine, model: Model) -> Program:
    """The program of an integer module."""
    from compiler.pipeline import compile_network
    from isa.program import Provenance

    origin = Provenance(
        model=model.name, checkpoint=model.checkpoint, calibration="none", pipeline="", schedule="layers", version=""
    )
    return compile_network(
        integer,
        machine=target,
        calibration=inputs,
        check=None,
        provenance=origin,
        normalisation=((), ()),
        passes=passes,
    ).program


def kinds_table(integer: Network) -> Table:
    """The weighted layers whose inputs are more than spikes, and how many take spikes only."""
    from rich.markup import escape
    from rich.table import Table

    from compiler.ir.value_kinds import layer_inputs

    layers = layer_inputs(integer)
    binary = sum(each.is_binary for each in layers)
    table = Table(
        "input not {0, 1}", "operation", "takes", "source", box=None, pad_edge=False, title_justify="left",
        title=f"{binary} of {len(layers)} weighted layers take spikes only; the others:",
    )  # fmt: skip
    for each in layers:
        if not each.is_binary:
            table.add_row(escape(each.layer), each.operation, ", ".join(each.kinds), escape(each.source))
    return table
