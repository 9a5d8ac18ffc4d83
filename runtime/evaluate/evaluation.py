"""Evaluate a program on a data set: shards, their sums, and the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from isa.program import Program, load
from runtime.counters import COUNTERS, Counters, Summed
from runtime.dataset import digest_of
from runtime.evaluate.folder import About, Folder
from runtime.evaluate.pools import Backend, finished, require_backend
from runtime.evaluate.shard import UNLABELLED, Shard, Task
from runtime.interpreter import Kernels, layer_names, run
from runtime.quantise import quantise_input
from runtime.report.measure import calibrated_on, inputs_for
from runtime.report.report import Inputs, Report, accuracy_of, make_report
from runtime.stored import stored

SHARD_SECONDS = 4.0
"""A shard takes about as long, unless told otherwise."""
SHARD_NUMBERS = 1 << 22
"""It has no more numbers in its inputs than this."""
SHARDS_A_WORKER = 4
"""There are at least so many, so that no worker waits long for the last."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation of B inputs."""

    logits: NDArray[np.int64]
    """[B, classes]: integers; times the output's scale they are the model's."""
    counters: Summed
    steps: NDArray[np.int64]
    """[B]: timesteps run."""
    report: Report
    again: int
    """Shards that ran again because a process died."""


def evaluate(
    program_file: str | Path,
    data: str,
    folder: str | Path,
    *,
    resume: bool = False,
    limit: int | None = None,
    shard: int | None = None,
    workers: int = 1,
    backend: Backend = "loky",
    address: str | None = None,
    share: bool = True,
    kernels: Kernels = "fast",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run the test part of `data`, or its first `limit` inputs, in `workers` processes or on a cluster.

    Each finished shard of `shard` inputs becomes a file of `folder` at once. With `resume` those that are there are
    not run again. Workers read the two paths themselves. `progress` hears how many inputs are done, and of how many.

    Raises CStepError for a folder of another evaluation, and for what `run` refuses.
    """
    require_backend(backend, address)
    program_file, data = str(Path(program_file).absolute()), _absolute(data)
    program = load(program_file)
    held = stored(data, "test")

    def about(inputs_a_shard: int | None) -> About:
        count = min(limit or held.count, held.count)
        chosen = shard or inputs_a_shard or inputs_for_seconds(program, data, count, workers, share, kernels)
        return About(
            program=program.digest, data=held.digest, inputs=count, share=share, kernels=kernels,
            counters=tuple(counter.name for counter in COUNTERS), shard=chosen,
        )  # fmt: skip

    opened = Folder.open(Path(folder), about, resume)
    taken = calibrated_on(program, held.count, lambda rows: inputs_for(program, data, rows))
    shards = opened.whole(program)
    parts, total = opened.about.parts(), opened.about.inputs
    tasks = [
        Task(number, part.start, part.stop, program_file, program.digest, data, held.digest, share, kernels)
        for number, part in enumerate(parts)
        if number not in shards
    ]
    again: list[int] = []
    done = sum(len(parts[number]) for number in shards)
    if progress:
        progress(done, total)
    for number, each in finished(tasks, backend, address, workers, again.append):
        opened.add(number, each)
        shards[number] = each
        done += len(parts[number])
        if progress:
            progress(done, total)
    name = inputs_for(program, data, [0]).name
    inputs = Inputs(source=name, digest="", count=total, calibrated=int((taken < total).sum()))
    return _together(program, [shards[number] for number in range(len(parts))], inputs, share, sum(again))


def inputs_for_seconds(program: Program, data: str, count: int, workers: int, share: bool, kernels: Kernels) -> int:
    """How many inputs a shard has: some seconds' worth, measured on the first input, and not too many for `workers`.

    The first input is run twice. That also compiles what is compiled once, before all workers do it at once.
    """
    first = quantise_input(program, inputs_for(program, data, [0]).images)
    run(program, first, kernels=kernels, share=share)
    began = perf_counter()
    run(program, first, kernels=kernels, share=share)
    affordable = min(SHARD_SECONDS / (perf_counter() - began), SHARD_NUMBERS / prod(first.shape))
    return max(1, min(int(affordable), ceil(count / (SHARDS_A_WORKER * workers))))


def _absolute(data: str) -> str:
    """The source as a worker in another folder finds it."""
    return data if data.partition(":")[0] == "digits" else str(Path(data).absolute())


def _together(program: Program, shards: list[Shard], inputs: Inputs, share: bool, again: int) -> Evaluation:
    logits = np.concatenate([each.logits for each in shards])
    truth = np.concatenate([each.truth for each in shards])
    steps = np.concatenate([each.steps for each in shards])
    by_input = np.concatenate([each.inputs for each in shards])
    by_layer = np.sum([each.layers for each in shards], axis=0)
    counters = Summed(Counters(("all layers",), by_input[:, None]), Counters(layer_names(program), by_layer[None]))
    digest = digest_of(np.concatenate([each.fingerprints for each in shards]))
    labelled = truth if (truth != UNLABELLED).all() else None
    report = make_report(
        program,
        inputs.model_copy(update={"digest": digest}),
        counters,
        steps,
        accuracy_of(logits.argmax(axis=1), labelled),
        share=share,
    )
    return Evaluation(logits, counters, steps, report, again)
