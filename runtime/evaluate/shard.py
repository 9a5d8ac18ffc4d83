"""A shard: some inputs of a data set, run by one worker, and one file of integers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.files import write_whole
from isa.program import Program, load
from runtime.counters import COUNTERS
from runtime.interpreter import Kernels, run
from runtime.quantise import quantise_input
from runtime.report.measure import inputs_for
from runtime.stored import stored

UNLABELLED = -1


@dataclass(frozen=True)
class Task:
    """What a worker is told: paths, which it must see as they are, and the digests of what it must find there."""

    number: int
    start: int
    stop: int
    program: str
    program_digest: str
    data: str
    data_digest: str
    share: bool
    kernels: Kernels


@dataclass(frozen=True, eq=False)
class Shard:
    """What the inputs start..stop-1 of a task gave."""

    logits: NDArray[np.int64]
    """[n, classes]."""
    truth: NDArray[np.int64]
    """[n]: the data set's labels, or UNLABELLED."""
    steps: NDArray[np.int64]
    """[n]: timesteps run."""
    inputs: NDArray[np.int64]
    """[n, counters], summed over the layers."""
    layers: NDArray[np.int64]
    """[layers, counters], summed over the inputs."""
    fingerprints: NDArray[np.uint8]
    """[n, 32], see `Dataset.fingerprints`."""


def run_task(task: Task) -> tuple[int, Shard]:
    """Load the program and the shard's inputs, nothing more, and run them: the task's number and what it gave.

    Raises CStepError where program or data are not those of the task.
    """
    program = program_of(task)
    found = stored(task.data, "test").digest
    if found != task.data_digest:
        raise CStepError(f"{task.data}: sha256 {found}, but the evaluation began with {task.data_digest}")
    dataset = inputs_for(program, task.data, range(task.start, task.stop))
    done = run(program, quantise_input(program, dataset.images), kernels=task.kernels, share=task.share)
    sums = done.counters.summed()
    return task.number, Shard(
        logits=done.logits,
        truth=np.full(len(dataset), UNLABELLED) if dataset.labels is None else dataset.labels,
        steps=done.steps,
        inputs=sums.inputs.values[:, 0],
        layers=sums.layers.values[0],
        fingerprints=dataset.fingerprints,
    )


_loading = Lock()


def program_of(task: Task) -> Program:
    """The task's program; the last one is kept for the next shard."""
    with _loading:
        return _program(task.program, task.program_digest)


@lru_cache(maxsize=1)
def _program(path: str, digest: str) -> Program:
    program = load(path)
    if program.digest != digest:
        raise CStepError(f"{path}: sha256 {program.digest}, but the evaluation began with {digest}")
    return program


def write_shard(shard: Shard, path: Path) -> None:
    """Write the file, whole or not at all."""
    arrays = {each.name: np.ascontiguousarray(getattr(shard, each.name)) for each in fields(Shard)}
    write_whole(path, safetensors.numpy.save(arrays))


def read_shard(path: Path, program: Program, inputs: int) -> Shard:
    """The shard of so many inputs in a file. Raises CStepError for a file that is none."""
    shapes = {
        "logits": (inputs, program.header.output.classes),
        "truth": (inputs,),
        "steps": (inputs,),
        "inputs": (inputs, len(COUNTERS)),
        "fingerprints": (inputs, 32),
    }
    try:
        arrays: dict[str, Any] = safetensors.numpy.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise CStepError(f"{path}: damaged ({error}); delete it to run it again") from None
    right = arrays.keys() == {each.name for each in fields(Shard)} and all(
        arrays[name].shape == shape and arrays[name].dtype == (np.uint8 if name == "fingerprints" else np.int64)
        for name, shape in shapes.items()
    )
    if not right:
        raise CStepError(f"{path}: not a shard of {inputs} inputs; delete it to run it again")
    return Shard(**arrays)
