"""`cstep compile`: from a model to a program file, and what that needs to know of the model's inputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cstep
from command.arguments import (
    Checkpoint,
    InputShape,
    MachineName,
    ModelName,
    PerChannel,
    SettingsFile,
    calibration_images,
    numbers,
)
from isa.errors import CStepError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table
    from torch import nn

    from compiler.check import CheckResult
    from compiler.frontend.model import Model
    from compiler.settings import Settings
    from isa.program import Program
    from runtime.dataset import Dataset


def compile_command(
    model: ModelName,
    checkpoint: Checkpoint = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="Inputs as for `run`, 8 or more; some models need none.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The program file to write; MODEL.cstep if not said.")
    ] = None,
    dump_ir: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the IR after every pass here.")] = None,
    machine: MachineName = "c-step",
    schedule: Annotated[
        cstep.Schedule, typer.Option(help="All layers for all timesteps, or window by window.")
    ] = "layers",
    settings: SettingsFile = None,
    hoist: Annotated[bool, typer.Option(help="Compute once what is the same at every timestep.")] = True,
    passes: Annotated[str | None, typer.Option(help="Another pipeline, e.g. from the program's provenance.")] = None,
    check: Annotated[bool, typer.Option(help="Run the module after every pass and compare every current.")] = True,
    check_images: Annotated[
        int | None, typer.Option(min=1, help="On how many inputs; 4, or 1 where they are large.")
    ] = None,
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    test: Annotated[str | None, typer.Option(metavar="DATA", help="Compare top-1 of the float model, program.")] = None,
) -> None:
    """Compile a trained model to a program file.

    After every pass the module is run, and every neuron's current is compared. Where the weights alone say all
    integers, calibration is not needed: the range of an image is that of normalised pixels.
    """
    from compiler.calibrate.timesteps import neuron_timesteps
    from compiler.frontend.model import open_model
    from compiler.settings import Parts
    from isa.files import require_directory_of
    from isa.machine import load_machine
    from runtime.report.console import note, progress_bar, show

    target = load_machine(machine)
    chosen = settings_for(settings, model)
    output = output if output is not None else default_output(model)
    require_directory_of(output)
    with progress_bar("load", None):
        opened = open_model(model, checkpoint)
        given = inputs_for(opened, calibration, input_shape, mean, std, check_images)
    if chosen is not None and (said := chosen.checkpoint_note(opened.checkpoint)):
        note(said)
    if checkpoint is None and not model.endswith(".onnx"):
        note(f"{model}: no --checkpoint: {opened.checkpoint}")
    pipeline = passes or (chosen.passes() if chosen else Parts()).pipeline(hoist)
    with progress_bar("compile", 1 + pipeline.count(",")) as step:
        compiled = cstep.compile_checked(
            opened.module,
            given.example,
            given.calibration,
            target,
            check=given.compared if check else None,
            passes=passes,
            schedule=schedule,
            settings=chosen,
            hoist=hoist,
            dump_to=dump_ir,
            origin=(model, opened.checkpoint, given.about),
            normalisation=given.normalisation,
            image_scale=given.image_scale,
            consume=test is None,
            progress=lambda name: step(None, name),
        )
    compiled.program.save(output)
    show(checks_table(compiled.checks))
    if check:
        show(f"compared after every pass: {given.compared_on}")
    steps = neuron_timesteps(compiled.integer)
    if len(set(steps.values())) > 1:
        show(timesteps_line(steps))
    code, weights = len(compiled.program.code), len(compiled.program.memory)
    show(f"{output}: {code:,} instructions, {weights:,} bytes of weights and constants, machine {target.name}")
    if test is not None:
        name, module = as_trained(opened.module, chosen)
        show(compare_accuracy(name, module, compiled.program, labelled(test, compiled.program)))


def settings_for(path: Path | None, model: str) -> Settings | None:
    """The settings of a file. Raises CStepError for those of another model."""
    from compiler.settings import read_settings

    if path is None:
        return None
    found = read_settings(path)
    found.require_model(model, str(path))
    return found


def timesteps_line(steps: Mapping[str, int]) -> str:
    """T_l of every neuron layer, and T_avg."""
    each = ", ".join(f"{label} {count}" for label, count in steps.items())
    return f"timesteps of neuron layers: {each}; T_avg {sum(steps.values()) / len(steps):.2f}"


def default_output(model: str) -> Path:
    """`spikformer-4-384.cstep`, `build.cstep` of `model.py:build`, `net.cstep` of `exports/net.onnx`."""
    last = re.split(r"[:/\\]", model)[-1]
    return Path(f"{last.removesuffix('.onnx')}.cstep")


@dataclass(frozen=True)
class CompileInputs:
    """What compiling takes of inputs, from data or made up."""

    example: NDArray[np.float32]
    calibration: NDArray[np.float32]
    """Empty where there is none."""
    compared: NDArray[np.float32]
    """What every pass is compared on."""
    compared_on: str
    about: str
    """What calibrated, as the provenance says it."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    image_scale: float | None
    """Where calibration does not find it."""


def inputs_for(
    model: Model,
    calibration: str | None,
    input_shape: str | None,
    mean: str | None,
    std: str | None,
    check_images: int | None,
) -> CompileInputs:
    """Calibration data as the model takes them; without, what is known of its inputs all the same.

    Raises CStepError where that is not enough, with the reason.
    """
    from compiler.calibrate.without_data import MadeInputs

    if calibration is not None:
        dataset = calibration_images(calibration, model, input_shape, mean, std)
        images = dataset.images
        compared = images[: check_images or cstep.check_images(images.shape[1:])]
        return CompileInputs(
            images[:1],
            images,
            compared,
            f"{len(compared)} of the calibration inputs",
            f"{dataset.name}, {len(images)} images, sha256:{dataset.digest[:16]}",
            (dataset.mean, dataset.std),
            None,
        )
    if model.needs_calibration:
        raise CStepError(f"{model.name}: give --calibration DATA, 8 inputs or more: {model.needs_calibration}")
    shape = numbers(input_shape, "--input-shape", int) if input_shape else model.input
    means = numbers(mean, "--mean", float) if mean else model.mean or ()
    stds = numbers(std, "--std", float) if std else model.std or ()
    if shape is None or len(shape) not in (3, 4) or min(shape) < 1:
        raise CStepError(f"{model.name}: give --calibration DATA, 8 inputs or more; or --input-shape, --mean and --std")
    made = MadeInputs.of(shape, means, stds, check_images or cstep.check_images(shape))
    kind = "event counts" if len(shape) == 4 else "8-bit pixels, normalised"
    plural = "" if len(made.inputs) == 1 else "s"
    return CompileInputs(
        made.inputs[:1],
        made.inputs[:0],
        made.inputs,
        f"{len(made.inputs)} random input{plural} ({kind}); no calibration data were needed",
        made.about,
        (means, stds),
        made.image_scale,
    )


def labelled(source: str, program: Program) -> Dataset:
    """A data set with labels to test the program on."""
    from runtime.report.measure import inputs_for

    dataset = inputs_for(program, source)
    if dataset.labels is None:
        raise CStepError(f"{source}: has no labels; --test needs them")
    return dataset


def as_trained(module: nn.Module, settings: Settings | None) -> tuple[str, nn.Module]:
    """The float model with what settings say of its training, which is not in its checkpoint; and what to call it."""
    from compiler.nn import with_halting, with_integrated_patch_splitting

    if settings is None or not (settings.patch_splitting or settings.halting):
        return "float model", module
    trained = copy.deepcopy(module)
    try:
        if settings.patch_splitting:
            with_integrated_patch_splitting(trained)
        if rules := settings.halting:
            with_halting(trained, alpha=rules.alpha, beta=rules.beta, epsilon=rules.epsilon, output=rules.output)
    except CStepError:  # an architecture of the user's own
        tables = ("patch_splitting", "halting")
        return f"float model without {' and '.join(f'[{key}]' for key in tables if getattr(settings, key))}", module
    return "float model", trained


def compare_accuracy(name: str, module: nn.Module, program: Program, dataset: Dataset) -> str:
    """Top-1 of a float model and of the program on the same inputs."""
    import numpy as np

    from compiler.frontend.eager import eager_labels
    from runtime.report.console import progress_bar

    assert dataset.labels is not None
    with progress_bar("float model", len(dataset)) as step:
        labels = eager_labels(module, dataset.images, step)
    with progress_bar("program", len(dataset)) as step:
        result = cstep.run(program, dataset.images, progress=step)
    right = [int(np.equal(found, dataset.labels).sum()) for found in (labels, result.labels)]
    texts = [f"{count / len(dataset):.2%} ({count} of {len(dataset)})" for count in right]
    return f"top-1 on {dataset.name}: {name} {texts[0]}, program {texts[1]}"


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
