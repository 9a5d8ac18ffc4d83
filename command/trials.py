"""What calibrating needs of both sides: held-out images from the runtime, trials that the emulator runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import cstep
from isa.errors import CStepError

if TYPE_CHECKING:
    from torch import nn

    from compiler.calibrate.search import Findings, Wanted
    from compiler.calibrate.trials import Emulate, Outcome
    from compiler.settings import Settings
    from isa.machine import Machine
    from isa.program import Program
    from runtime.dataset import Dataset

AT_ONCE = 256
"""Inputs that are run together: their counters of every layer are held."""


def calibrate_model(
    module: nn.Module,
    example: NDArray[np.float32],
    ranges: NDArray[np.float32],
    scale: float | None,
    machine: Machine,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    wanted: Wanted,
    settings: Settings,
    progress: Callable[[str], None] = lambda what: None,
) -> Findings:
    """Import, quantise, look for settings on images [B, ...] with labels [B]; `ranges` and `scale` as for compiling."""
    import torch

    from compiler.calibrate.calibration import calibrate
    from compiler.calibrate.trials import Trials, front_passes, integer_network
    from compiler.frontend.importer import import_model

    progress("quantise")
    front = front_passes(machine, ranges, scale)
    network = integer_network(import_model(module, torch.from_numpy(example)), front, ranges)
    trials = Trials(network, machine, images, emulator())
    return calibrate(trials, labels, wanted, settings, progress)


def emulator(workers: int | None = None, energy: str | None = None) -> Emulate:
    """Runs a program on inputs [B, ...], some at a time, sharing off.

    With a table of `energy` rows share as the program says, and the outcome has what it costs.
    """

    def emulate(program: Program, inputs: NDArray[np.float32]) -> Outcome:
        from compiler.calibrate.trials import Outcome
        from runtime.interpreter import run
        from runtime.quantise import quantise_input
        from runtime.report.costs import costs_of

        done: list[Outcome] = []
        for start in range(0, len(inputs), AT_ONCE):
            integers = quantise_input(program, inputs[start : start + AT_ONCE])
            seen = run(program, integers, share=energy is not None, workers=workers or cstep.cores())
            costs = costs_of(program, seen.counters, energy) if energy is not None else {}
            done.append(Outcome(seen.logits, seen.decisions, seen.steps, seen.counters.total("sop_bit"), costs))
        costs = {name: np.concatenate([each.costs[name] for each in done]) for name in done[0].costs}
        return Outcome(
            logits=np.concatenate([each.logits for each in done]),
            decisions=np.concatenate([each.decisions for each in done]),
            steps=np.concatenate([each.steps for each in done]),
            operations=np.concatenate([each.operations for each in done]),
            costs=costs,
        )

    return emulate


def held_out(data: str, taken: int, like: Dataset, images: int, option: str, *, required: bool) -> Dataset:
    """Images of a training set, drawn at random behind the first `taken` of the draw, which are used already.

    `like` says how they are normalised. Raises CStepError where there are none, or fewer than `images` that are
    `required` by an `option`, or no labels.
    """
    from runtime.dataset import drawn, load_dataset
    from runtime.stored import stored

    total = stored(data, "train").count
    if total <= taken:
        if option != "--images":
            raise CStepError(f"{option} {images}: {data} has none left; ask for fewer --images")
        raise CStepError(f"{data}: the ranges came from all of its {total} images; give others with --calibration")
    if required and images > total - taken:
        left = f"{total - taken} that no range came from" if option == "--images" else f"{total - taken} more"
        raise CStepError(f"{option} {images}: {data} has {left}; ask for fewer")
    rows = drawn(total, total, seed=0)[taken : taken + images].tolist()
    found = load_dataset(data, split="train", shape=like.shape, mean=like.mean, std=like.std, rows=rows)
    if found.labels is None:
        raise CStepError(f"{data}: has no labels; calibrating needs them")
    return found
