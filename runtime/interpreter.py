"""Run a program on many inputs: exact integers, and what every input cost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import local
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Fire
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
    """[inputs]: timesteps run."""
    currents: dict[int, NDArray[np.int32]] | None = None
    """By layer index, [inputs, timesteps, rows * columns, channels]: every neuron's input current, when observed."""
    spikes: dict[int, NDArray[np.uint8]] | None = None
    """Likewise every neuron's spikes."""


class Machinery:
    """One machine to run inputs on, one after the other: a state, a record, and scratch space. One a thread."""

    def __init__(self, program: Program, kernels: Kernels, share: bool) -> None:
        self.program, self.decoded, self.kernels, self.share = program, decoded(program), kernels, share
        self.state = State.of(program)
        self.workspace = Workspace(self.decoded)
        self.record = np.zeros((len(self.decoded.code), len(RECORD)), np.int64)

    def run(self, integers: NDArray[np.int8], seen: Observation | None) -> NDArray[np.int64]:
        """One input from a cleared state on; returns its logits and leaves its record."""
        self.state.clear()
        self.record[:] = 0
        flat = integers.reshape(-1).view(np.uint8)
        dram, place = self.state.dram(self.program.header.input.address)
        dram[place : place + flat.size] = flat
        if seen is None:
            self._walk(0, len(self.decoded.code))
        else:
            self._walk_and_observe(seen)
        output = self.program.header.output
        dram, place = self.state.dram(output.address)
        return dram[place : place + 4 * output.classes].copy().view("<i4").astype(np.int64)

    def _walk(self, start: int, stop: int) -> None:
        if self.kernels == "fast":
            fast_walk(self.decoded, self.state, self.workspace, self.record, self.share, start, stop)
        else:
            reference_walk(self.decoded, self.state, self.record, self.share, start, stop)

    def _walk_and_observe(self, seen: Observation) -> None:
        done = 0
        for at in self.program.source_map[np.argsort(self.program.source_map[:, 0], kind="stable")]:
            index, layer = int(at[0]), int(at[1])
            each = self.decoded.instructions[index]
            neurons = self.program.header.layers[layer].neurons
            if not isinstance(each, Fire) or neurons is None:
                raise CStepError(f"source map: code word {index} is {each.mnemonic}; only neurons are mapped")
            self._walk(done, index)
            before = before_fire(each, self.state)
            self._walk(index, index + 1)
            after_fire(each, self.state, before, seen, at, neurons[1])
            done = index + 1
        self._walk(done, len(self.decoded.code))


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

    `share` off runs every Accumulate as if its flag were 0: the same integers, other counts. `workers` threads take
    one input each; `progress` hears how many inputs are done. Both kernel families give the same bytes and counts.
    """
    _check_integers(program, integers)
    shared = decoded(program)
    static = static_counts(program)
    padded_memory(program)
    logits = np.zeros((len(integers), program.header.output.classes), np.int64)
    values = np.zeros((len(integers), *static.shape), np.int64)
    seen = empty_observation(program, len(integers)) if observe else None
    threads = local()

    def one(number: int) -> None:
        if not hasattr(threads, "machinery"):
            threads.machinery = Machinery(program, kernels, share)
        machinery = cast(Machinery, threads.machinery)
        logits[number] = machinery.run(integers[number], seen.of_input(number) if seen else None)
        times = timeline(shared, machinery.record[:, RECORD.work])
        values[number] = count(shared, static, share, machinery.record, times)

    _each_input(one, len(integers), workers, progress)
    counters = Counters(layer_names(program), values)
    steps = np.full(len(integers), program.header.timesteps, np.int64)
    if seen is None:
        return RunResult(logits, counters, steps)
    return RunResult(logits, counters, steps, seen.currents, seen.spikes)


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
