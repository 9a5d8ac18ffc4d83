"""`cstep tune`: from training images to the cheapest settings within a bound of the loss, and the trade-off curve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from command.arguments import Checkpoint, InputShape, MachineName, ModelName, PerChannel, SettingsFile
from isa.errors import CStepError

MINUTES = 10.0


def tune_command(
    model: ModelName,
    calibration: Annotated[
        str, typer.Option(metavar="TRAIN", help="Labelled training images; the ranges' are not used. No test data.")
    ],
    checkpoint: Checkpoint = None,
    max_loss: Annotated[float, typer.Option(help="Points of accuracy that all together may cost.")] = 0.1,
    objective: Annotated[
        Literal["operations", "cycles", "energy"], typer.Option("--for", help="What is to be least, mean per input.")
    ] = "operations",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="MODEL.tune if not said.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trials of that folder.")] = False,
    budget: Annotated[float | None, typer.Option(help="Minutes of trials; 10.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials instead of minutes: the same each time.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Held-out images; 5,000, or half of what there is.")] = None,
    confirm_images: Annotated[
        int | None, typer.Option(min=0, help="Others, on which what was found must hold too; as many. 0: none.")
    ] = None,
    sharing_images: Annotated[
        int, typer.Option(min=1, help="Of them, that sharing beyond pairs is confirmed on: forests are slow to find.")
    ] = 256,
    energy: Annotated[str, typer.Option(metavar="TABLE", help="The table of energies.")] = "cacti-28nm-lop",
    settings: SettingsFile = None,
    ranges: Annotated[
        str | None, typer.Option(metavar="DATA", help="Where ranges come from, as for `compile`; TRAIN if not said.")
    ] = None,
    machine: MachineName = "c-step",
    seed: Annotated[int, typer.Option(min=0, help="Of what the search draws.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; one a core.")] = None,
    input_shape: InputShape = None,
    mean: PerChannel = None,
    std: PerChannel = None,
) -> None:
    """Search timestep masks, exits, guards, kept tokens, halting and sharing together.

    Every trial is a program that is compiled and run on held-out training images. The folder gets the settings that
    cost least within each bound of the loss, all trials, and the trade-off as a picture; --resume goes on with a search
    that was stopped. --settings says what the model was trained for, and is where the search begins.
    """
    from command.calibrate import settings_of, training_inputs
    from command.compile import settings_for
    from command.tune_files import write_tuned
    from command.tune_table import TunedTable
    from command.tuning import HeldOut, require_sharing, together, tune_model
    from compiler.calibrate.tune import Goal
    from compiler.frontend.model import open_model
    from isa.machine import load_machine
    from runtime.energy import energy_table
    from runtime.report.console import note, progress_bar, show
    from runtime.report.write import make_directory

    target = load_machine(machine)
    energy_table(energy)
    if budget is not None and trials is not None:
        raise CStepError("--budget and --trials: give one of them")
    minutes = None if trials else budget if budget is not None else MINUTES
    goal = Goal(max_loss, objective, minutes, trials, seed, sharing_images)
    goal.require()
    given = settings_for(settings, model)
    if given is not None:
        require_sharing(given, target)
    with progress_bar("load", None):
        opened = open_model(model, checkpoint)
        inputs, found, unseen = training_inputs(
            opened, calibration, ranges, (input_shape, mean, std), images, confirm_images
        )  # fmt: skip
    said = settings_of(opened, found)
    base = said if given is None else given.model_copy(update={"model": said.model, "data": said.data})
    if given is not None and (other := given.checkpoint_note(opened.checkpoint)):
        note(other)
    assert found.labels is not None
    goal = replace(goal, unseen=0 if unseen is None else len(unseen))
    folder = output if output is not None else Path(f"{Path(model.replace(':', '-')).name}.tune")
    make_directory(folder)
    held_out = HeldOut(
        inputs.example, inputs.calibration, inputs.image_scale, f"{inputs.about}; {inputs.normalisation}",
        *together(found, unseen),
    )  # fmt: skip
    try:
        with progress_bar("tune", trials, unit="trials") as step:
            tuned = tune_model(
                opened.module, held_out, target, goal, base, energy=energy, folder=folder, resume=resume,
                workers=workers, progress=lambda trial: step(None),
            )  # fmt: skip
    except KeyboardInterrupt:
        note(f"{folder}: holds the trials that are finished; --resume goes on with them")
        raise
    for each in tuned.notes:
        note(each)
    written = write_tuned(tuned, folder)
    show(TunedTable(tuned, energy))
    show(f"wrote {', '.join(map(str, written))}")
