"""Run a program on many inputs: exact integers, and what every input cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import local
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Decide, Exit, Fire
from isa.program import Program
from runtime.counters import Counters, count, static_counts
from runtime.decoded import decoded
from runtime.fast.walk import Workspace
from runtime.fast.walk import walk as fast_walk
from runtime.observe import Observation, after_fire, before_fire, empty_observation
from runtime.quantise import quantise_input
from runtime.record import RECORD
from runtime.reference.walk import walk as reference_walk
from runtime.state import State, padded_memory
from runtime.timeline import timeline

__all__ = ["Kernels", "Machinery", "RunResult", "layer_names", "quantise_input", "run"]

Kernels = Literal["fast", "reference"]


@dataclass(frozen=True)
class RunResult:
    """What came out of a run."""

    logits: NDArray[np.int64]
    """[inputs, classes], integers; times the output's scale they are the model's logits."""
    counters: Counters
    steps: NDArray[np.int64]
    """[inputs]: timesteps run; the logits are integers of so many, sums over them."""
    decisions: NDArray[np.int64]
    """[inputs, exits, classes]: the logits that each exit decided on, 0 where it was not reached."""
    partial_sums: NDArray[np.int64]
    """[inputs]: the most partial sums stored at once, where rows share beyond pairs."""
    currents: dict[int, NDArray[np.int32]] | None = None
    """By layer index, [inputs, timesteps, rows * columns, channels]: every neuron's input current, when observed.

    0 where a timestep did not run."""
    spikes: dict[int, NDArray[np.uint8]] | None = None
    """Likewise every neuron's spikes."""


class Machinery:
    """One machine to run inputs on, one after the other: a state, a record, and scratch space. One a thread."""

    def __init__(self, program: Program, kernels: Kernels, share: bool) -> None:
        self.program, self.decoded, self.kernels, self.share = program, decoded(program), kernels, share
        self.state = State.of(program)
        self.workspace = Workspace(self.decoded)
        self.record = np.zeros((len(self.decoded.code), len(RECORD)), np.int64)
        self.decides = self.decoded.decides

    def run(
        self,
        integers: NDArray[np.int8],
        seen: Observation | None,
        decisions: NDArray[np.int64],
        watch: Mapping[int, Callable[[State], None]] | None = None,
    ) -> int:
        """One input from a cleared state on; returns the number of the instruction that it stopped before.

        Leaves its record, and in `decisions` [exits, classes] what the exits that it reached decided on. `watch` has
        by the number of an instruction what looks at the state behind it.
        """
        watch = watch or {}
        self.state.clear()
        self.record[:] = 0
        flat = integers.reshape(-1).view(np.uint8)
        dram, place = self.state.dram(self.program.header.input.address)
        dram[place : place + flat.size] = flat
        fires = self._fires() if seen is not None else {}
        done = 0
        for index in sorted({*fires, *self.decides, *watch}):
            done = self._walk(done, index)
            if self._left(done):
                return done
            if seen is not None and index in fires:
                done = self._fire(index, fires[index], seen)
            else:
                done = self._walk(done, index + 1)
            if index in self.decides:
                decisions[self.decides.index(index)] = self._decided_on(index)
            if index in watch:
                watch[index](self.state)
        return self._walk(done, len(self.decoded.code))

    def logits(self) -> NDArray[np.int64]:
        """[classes]: the output of the latest run."""
        output = self.program.header.output
        dram, place = self.state.dram(output.address)
        return dram[place : place + 4 * output.classes].copy().view("<i4").astype(np.int64)

    def _walk(self, start: int, stop: int) -> int:
        if self.kernels == "fast":
            return fast_walk(self.decoded, self.state, self.workspace, self.record, self.share, start, stop)
        return reference_walk(self.decoded, self.state, self.record, self.share, start, stop)

    def _left(self, done: int) -> bool:
        """Whether the last instruction that ran is an exit, and was taken."""
        return done > 0 and isinstance(self.decoded.instructions[done - 1], Exit) and bool(self.state.flags[0])

    def _decided_on(self, index: int) -> NDArray[np.int64]:
        each = self.decoded.instructions[index]
        assert isinstance(each, Decide)
        return self.state.output[each.logits : each.logits + 4 * each.outputs].copy().view("<i4").astype(np.int64)

    def _fires(self) -> dict[int, NDArray[np.int32]]:
        """The source map's row of every neuron instruction, by its number."""
        return {int(row[0]): row for row in self.program.source_map}

    def _fire(self, index: int, at: NDArray[np.int32], seen: Observation) -> int:
        each = self.decoded.instructions[index]
        neurons = self.program.header.layers[int(at[1])].neurons
        if not isinstance(each, Fire) or neurons is None:
            raise CStepError(f"source map: code word {index} is {each.mnemonic}; only neurons are mapped")
        before = before_fire(each, self.state)
        done = self._walk(index, index + 1)
        after_fire(each, self.state, before, seen, at, neurons[1])
        return done


def run(
    program: Program,
    integers: NDArray[np.int8],
    *,
    kernels: Kernels = "fast",
    share: bool = True,
    observe: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> RunResult:
    """Run the program on int8 inputs [inputs, steps, height, width, channels] (see `quantise_input`).

    `share` off runs every Accumulate as if its sharing were none: the same integers, other counts. `workers` threads
    take one input each; `progress` hears how many inputs are done. Both kernel families give the same bytes and counts.
    """
    _check_integers(program, integers)
    shared = decoded(program)
    padded_memory(program)
    classes = program.header.output.classes
    logits = np.zeros((len(integers), classes), np.int64)
    decisions = np.zeros((len(integers), len(shared.decides), classes), np.int64)
    steps = np.full(len(integers), program.header.timesteps, np.int64)
    stored = np.zeros(len(integers), np.int64)
    values = np.zeros((len(integers), *static_counts(program).shape), np.int64)
    seen = empty_observation(program, len(integers)) if observe else None
    threads = local()

    def one(number: int) -> None:
        if not hasattr(threads, "machinery"):
            threads.machinery = Machinery(program, kernels, share)
        machinery = cast(Machinery, threads.machinery)
        stop = machinery.run(integers[number], seen.of_input(number) if seen else None, decisions[number])
        logits[number] = machinery.logits()
        last = shared.instructions[stop - 1]
        if isinstance(last, Exit):
            steps[number] = last.steps
        record = machinery.record[:stop]
        stored[number] = record[:, RECORD.partial_sums].max()
        times = timeline(shared, record[:, RECORD.work])
        values[number] = count(shared, static_counts(program, stop), share, record, times)

    _each_input(one, len(integers), workers, progress)
    counters = Counters(layer_names(program), values)
    if seen is None:
        return RunResult(logits, counters, steps, decisions, stored)
    return RunResult(logits, counters, steps, decisions, stored, seen.currents, seen.spikes)


def _each_input(one: Callable[[int], None], inputs: int, workers: int, progress: Callable[[int], None] | None) -> None:
    if workers <= 1:
        for number in range(inputs):
            one(number)
            if progress:
                progress(number + 1)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(one, number) for number in range(inputs)]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if progress:
                    progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_integers(program: Program, integers: NDArray[np.int8]) -> None:
    wanted = program.header.input
    channels, height, width = wanted.shape
    shape = (wanted.steps, height, width, channels)
    if integers.dtype != np.int8 or integers.shape[1:] != shape:
        given = f"{integers.dtype} [{', '.join(map(str, integers.shape))}]"
        raise CStepError(f"input: {given}; the program takes int8 [inputs, {', '.join(map(str, shape))}]")
    memory, areas = len(program.memory), program.header.dram_bytes
    output = program.header.output
    ends = {"input": (wanted.address, integers[:1].size), "output": (output.address, 4 * output.classes)}
    for name, (address, size) in ends.items():
        if address < memory or address + size > areas:
            raise CStepError(f"{name}: bytes {address}..{address + size - 1} are not in DRAM {memory}..{areas - 1}")


def layer_names(program: Program) -> tuple[str, ...]:
    """The names of the layers that counters have."""
    named = [layer.name for layer in program.header.layers]
    return tuple(named + [f"layer {index}" for index in range(len(named), decoded(program).layers)])
