"""Run a program on a data set, and make the report of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.program import Program
from runtime.dataset import Dataset, drawn, load_dataset
from runtime.interpreter import Kernels, RunResult, run
from runtime.quantise import quantise_input
from runtime.report.console import progress_bar
from runtime.report.report import Inputs, Report, accuracy_of, make_report


def inputs_for(program: Program, source: str, rows: Sequence[int] | None = None) -> Dataset:
    """The test part of a data set, normalised as the program says; all of it, or some rows.

    Raises CStepError for what does not fit the program, labels too.
    """
    wanted = program.header.input
    shape = (wanted.steps, *wanted.shape) if wanted.kind == "events" else wanted.shape
    dataset = load_dataset(source, split="test", shape=shape, mean=wanted.mean, std=wanted.std, rows=rows)
    classes = program.header.output.classes
    if dataset.labels is not None and dataset.labels.max() >= classes:
        raise CStepError(f"{source}: has label {dataset.labels.max()}; the program knows classes 0..{classes - 1}")
    return dataset


def calibrated_on(program: Program, total: int, read: Callable[[Sequence[int]], Dataset]) -> NDArray[np.int64]:
    """Which of a data set's `total` inputs the program was calibrated on, as far as its provenance tells.

    That is a number of images and their digest, of the ranges and of the settings: they are found here where they are
    all of the data set, or as many as `cstep compile` and `cstep calibrate` draw from it. `read` gives the rows asked
    for.
    """
    said = re.search(r", (\d+) images, sha256:([0-9a-f]+)$", program.header.provenance.calibration)
    ranges, digest = (int(said[1]), said[2]) if said else (0, "")
    found = np.zeros(0, np.int64)
    if 1 <= ranges <= total:
        rows = np.arange(total) if ranges == total else drawn(total, ranges, seed=0)
        found = rows if read(rows.tolist()).digest.startswith(digest) else rows[:0]
    return np.union1d(found, _settled_on(program, total, ranges, read))


def _settled_on(
    program: Program, total: int, ranges: int, read: Callable[[Sequence[int]], Dataset]
) -> NDArray[np.int64]:
    """The rows that the settings were calibrated on: drawn from the first on, or from behind those of the ranges."""
    settings: dict[str, Any] = json.loads(program.header.provenance.settings or "{}")
    images, digest = (settings.get("data", {}).get(key) for key in ("images", "digest"))
    order = drawn(total, total, seed=0)
    for start in {0, ranges}:
        rows = order[start : start + (images or 0)]
        if images and len(rows) == images and read(rows.tolist()).digest == digest:
            return rows
    return order[:0]


def measure(
    program: Program, source: str, limit: int | None, *, share: bool, kernels: Kernels, workers: int, compare: bool
) -> Report:
    """Run the first `limit` inputs, or all; and with `compare` run them again with sharing the other way."""
    with progress_bar("read", None):
        dataset = inputs_for(program, source)
    taken = calibrated_on(program, len(dataset), dataset.rows)
    dataset = dataset.take(min(limit, len(dataset))) if limit is not None else dataset

    def one(share: bool, label: str) -> RunResult:
        integers = quantise_input(program, dataset.images)
        with progress_bar(label, len(dataset)) as step:
            return run(program, integers, kernels=kernels, share=share, workers=workers, progress=step)

    done = one(share, "run")
    other = one(not share, f"run, sharing {'off' if share else 'on'}") if compare else None
    return make_report(
        program,
        Inputs(
            source=dataset.name,
            digest=dataset.digest,
            count=len(dataset),
            calibrated=int((taken < len(dataset)).sum()),
        ),
        done.counters.summed(),
        done.steps,
        accuracy_of(done.logits.argmax(axis=1), dataset.labels),
        share=share,
        other=other.counters.summed() if other else None,
        equal_logits=other is None or bool((done.logits == other.logits).all()),
    )
