"""What tuning needs of both sides: the integer model, the emulator that says costs, and the journal's first line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from runtime.dataset import Dataset


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a search is run on, and what comes before it."""

    example: NDArray[np.float32]
    ranges: NDArray[np.float32]
    """Calibration images; empty where `scale` stands for them."""
    scale: float | None
    about: str
    """What the ranges came from, and how images are normalised."""
    images: NDArray[np.float32]
    """Those that only confirm what was found are the last ones."""
    labels: NDArray[np.int64]

    def digest(self, last: int) -> str:
        """Of so many of the last images and their labels; of none it is empty."""
        kept = self.images[len(self.images) - last :], self.labels[len(self.labels) - last :]
        return sha256(b"".join(each.tobytes() for each in kept)).hexdigest()[:16] if last else ""


def together(found: Dataset, unseen: Dataset | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels, the unseen ones behind."""
    parts = [each for each in (found, unseen) if each is not None]
    labels = [each.labels for each in parts if each.labels is not None]
    return np.concatenate([each.images for each in parts]), np.concatenate(labels)


def tune_model(
    module: nn.Module,
    held_out: HeldOut,
    machine: Machine,
    goal: Goal,
    base: Settings,
    *,
    energy: str,
    folder: Path | None,
    resume: bool,
    workers: int | None = None,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Import, quantise, search; with a `folder` its journal goes on. Raises CStepError."""
    import torch

    from compiler.calibrate.journal import Journal
    from compiler.calibrate.trials import Trials, front_passes, integer_network
    from compiler.calibrate.tune import check_tuning, tune
    from compiler.frontend.importer import import_model
    from runtime.energy import energy_table

    goal.require()
    energy_table(energy)
    require_sharing(base, machine)
    ranges = held_out.ranges
    front = front_passes(machine, ranges, held_out.scale, base.passes())
    network = integer_network(import_model(module, torch.from_numpy(held_out.example)), front, ranges)
    emulate = emulator(workers, energy)
    trials = Trials(network, machine, held_out.images, emulate, ranges if len(ranges) else None)
    check_tuning(trials, held_out.labels, goal)
    about = about_search(base, machine, goal, energy, held_out)
    journal = Journal() if folder is None else Journal.open(folder, about, resume)
    return tune(trials, held_out.labels, goal, base, journal, progress)


def about_search(base: Settings, machine: Machine, goal: Goal, energy: str, held_out: HeldOut) -> About:
    """What the search is of; trials of anything else cannot be taken for its own."""
    from compiler.calibrate.journal import About

    assert base.data is not None
    numbers = sha256(machine.model_dump_json().encode()).hexdigest()[:16]
    return About(
        model=base.model.name,
        checkpoint=base.model.checkpoint,
        data=base.data.digest,
        unseen=held_out.digest(goal.unseen),
        ranges=held_out.about,
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


def held_out_of(
    example: NDArray[np.float32],
    calibration: NDArray[np.float32] | None,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
) -> HeldOut:
    """Of arrays; without `calibration` ranges are those of normalised 8-bit pixels. Raises CStepError."""
    from compiler.calibrate.without_data import MadeInputs

    if labels.shape != (len(images),):
        raise CStepError(f"labels: shape {list(labels.shape)}; one for each of {len(images)} images is wanted")
    if calibration is None:
        made = MadeInputs.of(example.shape[1:], *normalisation, 1)
        return HeldOut(example, images[:0], made.image_scale, f"{made.about}; {normalisation}", images, labels)
    digest = sha256(calibration.tobytes()).hexdigest()[:16]
    about = f"{len(calibration)} images in memory, sha256:{digest}; {normalisation}"
    return HeldOut(example, calibration, None, about, images, labels)


def tune_held_out(
    module: nn.Module, held_out: HeldOut, machine: Machine, goal: Goal, settings: Any, **options: Any
) -> Tuned:
    """A module in memory; its weights stand for the checkpoint. `options` are those of `tune_model`."""
    from compiler.settings import Data, Model, Settings, settings_from
    from runtime.dataset import Dataset

    count = len(held_out.images) - goal.unseen
    digest = Dataset("in memory", held_out.images[:count], held_out.labels[:count], None, (), ()).digest
    weights = sha256()
    for name, value in module.state_dict().items():
        weights.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    name = Model(name=type(module).__name__, checkpoint=weights.hexdigest()[:16])
    data = Data(source="in memory", images=count, digest=digest)
    given = Settings(model=name) if settings is None else settings_from(settings)
    base = given.model_copy(update={"model": name, "data": data})
    return tune_model(module, held_out, machine, goal, base, **options)
