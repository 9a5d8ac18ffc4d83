"""What tuning needs of both sides: the integer model, the emulator that says costs, and the journal's first line."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import cstep
from command.trials import emulator
from isa.errors import CStepError

if TYPE_CHECKING:
    from torch import nn

    from compiler.calibrate.journal import About, Trial
    from compiler.calibrate.tune import Goal, Tuned
    from compiler.settings import Settings
    from isa.machine import Machine


def tune_model(
    module: nn.Module,
    example: NDArray[np.float32],
    ranges: NDArray[np.float32],
    scale: float | None,
    machine: Machine,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    goal: Goal,
    base: Settings,
    *,
    energy: str,
    about: About | None = None,
    folder: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Import, quantise, search; with a `folder` its journal goes on where it is `about` the same."""
    import torch

    from compiler.calibrate.journal import Journal
    from compiler.calibrate.trials import Trials, front_passes, integer_network
    from compiler.calibrate.tune import tune
    from compiler.frontend.importer import import_model
    from runtime.energy import energy_table

    goal.require()
    energy_table(energy)
    journal = Journal() if folder is None or about is None else Journal.open(folder, about, resume)
    front = front_passes(machine, ranges, scale, base.passes())
    network = integer_network(import_model(module, torch.from_numpy(example)), front, ranges)
    trials = Trials(network, machine, images, emulator(workers, energy), ranges if len(ranges) else None)
    return tune(trials, labels, goal, base, journal, progress)


def about_search(
    base: Settings, machine: Machine, goal: Goal, energy: str, ranges: str, labels: NDArray[np.int64]
) -> About:
    """What the search is of; trials of anything else cannot be taken for its own."""
    from compiler.calibrate.journal import About

    assert base.data is not None
    numbers = sha256(machine.model_dump_json().encode()).hexdigest()[:16]
    return About(
        model=base.model.name,
        checkpoint=base.model.checkpoint,
        data=base.data.digest,
        labels=sha256(labels.astype("<i8").tobytes()).hexdigest()[:16],
        ranges=ranges,
        machine=f"{machine.name} {numbers}",
        objective=f"{goal.objective}, energies of {energy}",
        max_loss=goal.max_loss,
        seed=goal.seed,
        base=base.model_copy(update={"data": None}).canonical(),
        version=cstep.__version__,
    )


def require_sharing(base: Settings, machine: Machine) -> None:
    """Raises CStepError where the settings to begin with ask for a mode of sharing that the machine lacks."""
    asked = [] if base.sharing is None else [base.sharing.mode, *base.sharing.layers.values()]
    for mode in asked:
        if mode != "none" and mode not in machine.sharing:
            raise CStepError(
                f"settings: sharing {mode}: machine {machine.name} has {', '.join(machine.sharing)}; take one of them, "
                "or another --machine"
            )
