"""Run a program on a data set, and make the report of it."""

from __future__ import annotations

from isa.errors import CStepError
from isa.program import Program
from runtime.dataset import Dataset, load_dataset
from runtime.interpreter import Kernels, RunResult, run
from runtime.quantise import quantise_input
from runtime.report.console import progress_bar
from runtime.report.report import Inputs, Report, accuracy_of, make_report


def inputs_for(program: Program, source: str, limit: int | None) -> Dataset:
    """The test part of a data set, normalised as the program says; its first `limit` inputs, or all.

    Raises CStepError for what does not fit the program, labels too.
    """
    wanted = program.header.input
    shape = (wanted.steps, *wanted.shape) if wanted.kind == "events" else wanted.shape
    with progress_bar("read", None):
        dataset = load_dataset(source, split="test", shape=shape, mean=wanted.mean, std=wanted.std)
    classes = program.header.output.classes
    if dataset.labels is not None and dataset.labels.max() >= classes:
        raise CStepError(f"{source}: has label {dataset.labels.max()}; the program knows classes 0..{classes - 1}")
    return dataset.take(min(limit, len(dataset))) if limit is not None else dataset


def measure(
    program: Program, dataset: Dataset, *, share: bool, kernels: Kernels, workers: int, compare: bool
) -> Report:
    """Run, and with `compare` run again with pair sharing the other way."""

    def one(share: bool, label: str) -> RunResult:
        integers = quantise_input(program, dataset.images)
        with progress_bar(label, len(dataset)) as step:
            return run(program, integers, kernels=kernels, share=share, workers=workers, progress=step)

    done = one(share, "run")
    other = one(not share, f"run, sharing {'off' if share else 'on'}") if compare else None
    return make_report(
        program,
        Inputs(source=dataset.name, digest=dataset.digest, count=len(dataset)),
        done.counters,
        accuracy_of(done.logits.argmax(axis=1), dataset.labels),
        share=share,
        other=other.counters if other else None,
        equal_logits=other is None or bool((done.logits == other.logits).all()),
    )
