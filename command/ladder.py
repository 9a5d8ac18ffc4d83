"""The ladder of `cstep eval MODEL`: compile every step of the settings, evaluate it, and put the rows side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cstep
from isa.errors import CStepError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from compiler.calibrate.steps import Step
    from compiler.ir.network import Network
    from compiler.settings import Settings
    from isa.machine import Machine
    from runtime.evaluate.ladder import Ladder, Rung


@dataclass(frozen=True, eq=False)
class Climb:
    """A model, and how its steps are compiled: arguments of `cstep.compile_checked`."""

    module: nn.Module
    example: NDArray[np.float32]
    calibration: NDArray[np.float32]
    check: NDArray[np.float32] | None
    machine: Machine
    origin: tuple[str, str, str]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    image_scale: float | None
    settings: Settings | None = None
    """What the model was trained for: it may be computed otherwise up to the integers, too."""

    @cached_property
    def front(self) -> str:
        """The passes up to the integers, which all steps share."""
        from compiler.calibrate.trials import front_passes

        parts = self.settings.passes() if self.settings else None
        return front_passes(self.machine, self.calibration, self.image_scale, parts)

    @cached_property
    def integer(self) -> Network:
        """The integer model, imported and quantised once."""
        import torch

        from compiler.calibrate.trials import integer_network
        from compiler.frontend.importer import import_model

        return integer_network(import_model(self.module, torch.from_numpy(self.example)), self.front, self.calibration)

    def rung(self, step: Step, folder: Path) -> Rung:
        """Compile a step, and write its program to `folder`: that of `cstep compile` with the step's settings."""
        from compiler.calibrate.timesteps import neuron_timesteps
        from compiler.calibrate.trials import compile_integer
        from compiler.settings import Parts
        from isa.program import Provenance
        from runtime.evaluate.ladder import Rung

        name, checkpoint, calibrated_on = self.origin
        compiled = compile_integer(
            self.integer, self.machine, step.settings.passes() if step.settings else Parts(), step.schedule,
            hoist=step.hoist, front=self.front, normalisation=self.normalisation, check=self.check,
            emulate=cstep.emulate, calibration=self.calibration, provenance=Provenance(
                model=name, checkpoint=checkpoint, calibration=calibrated_on, pipeline="", schedule=step.schedule,
                version=cstep.__version__, settings=step.settings.canonical() if step.settings else "",
            ),
        )  # fmt: skip
        path = folder / f"{step.key}.cstep"
        compiled.program.save(path)
        steps = neuron_timesteps(compiled.integer)
        average = sum(steps.values()) / len(steps) if steps else float(compiled.program.header.timesteps)
        return Rung(step.key, step.name, path, step.kind, step.share, average, step.loss_bound)


def climb(
    model: Climb,
    settings: Settings,
    data: str,
    folder: Path,
    *,
    before: Climb | None = None,
    progress: Callable[[str, int | None, int | None], None] = lambda what, done, total: None,
    **options: Any,
) -> Ladder:
    """Every step of `settings` on `data`; `options` are those of `cstep.evaluate`, whose results go to `folder`, too.

    `before` is the model with the weights that it had before it was trained for its settings: then that is the
    baseline. `progress` hears what runs, and how many inputs of how many are done. Raises CStepError.
    """
    from compiler.calibrate.steps import BEFORE, steps_of
    from runtime.evaluate.ladder import climb as climb_rungs
    from runtime.report.write import make_directory

    make_directory(folder)
    model = replace(model, settings=settings)
    steps = [(model, step) for step in steps_of(settings, retrained=before is not None, sharing=model.machine.sharing)]
    steps = steps if before is None else [(before, BEFORE), *steps]
    require_free(folder, bool(options.get("resume")))
    rungs: list[Rung] = []
    for number, (weights, step) in enumerate(steps, start=1):
        progress(f"compile {number} of {len(steps)}: {step.name}", None, None)
        rungs.append(weights.rung(step, folder))

    def evaluate(rung: Rung) -> Any:
        return cstep.evaluate(
            rung.program, data, folder / f"{rung.key}.eval", share=rung.share,
            progress=lambda done, total: progress(rung.name, done, total), **options,
        )  # fmt: skip

    return climb_rungs(rungs, evaluate, model.origin[0], settings.canonical())


def require_free(folder: Path, resume: bool) -> None:
    """Refuse before anything is compiled what `evaluate` would refuse after."""
    if not resume and any(folder.glob("*.eval/*")):
        raise CStepError(f"{folder}: is not empty; --resume goes on with what is there, or name another folder")
