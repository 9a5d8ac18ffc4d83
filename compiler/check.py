"""A pass is believed when it has been run: execute the module after it, and compare every neuron's current.

Up to quantisation the comparison is in float64, each neuron given the spikes that it had before the pass, so that one
rounding does not become another network; from quantisation on every integer must be the same. The module after
`quantise` is also compared with an independent oracle (its ONNX form on onnxruntime), and there every membrane stream
is compared, too: the last one may reach the logits with no neuron between.

A lossy pass gives a new reference. Of layers that lost timesteps the ones they still have are compared; behind an exit
that is taken nothing is, nor are currents of channels that a guard keeps the machine from computing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from xdsl.ir import Operation

from compiler.backend.allocate import allocate
from compiler.backend.emit import emit, neuron_labels
from compiler.comparable import Scope, the_same
from compiler.ir import spike
from compiler.ir.cstep import BufferOp, InstructionOp
from compiler.ir.meaning import NEURONS, STREAMS, Executor, Run
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.split_channels import whole_of
from compiler.passes.timesteps import average_timesteps, network_steps
from isa.errors import CStepError
from isa.program import Program, Provenance

LOGITS = "logits"
TOLERANCE = 1e-6
"""Relative difference that float64 rounding may make in a current; a wrong scale makes 1e-3."""


@dataclass(frozen=True)
class Observed:
    """What the emulator shows of a run: integer logits [B, classes]; currents [B, T, pixels, C] by layer index.

    Currents of timesteps behind an exit that was taken are 0; `steps` [B] says how many timesteps ran.
    """

    logits: NDArray[np.int64]
    currents: dict[int, NDArray[np.int32]]
    steps: NDArray[np.int64]


Emulate = Callable[[Program, NDArray[np.float32]], Observed]


@dataclass(frozen=True)
class CheckResult:
    """One line of the compile report: what was compared after a pass, and what it found."""

    name: str
    compared: int
    """Currents, values of streams and logits compared."""
    note: str
    check_seconds: float = 0.0
    seconds: float = 0.0


class Checker:
    """Holds what the module must compute, and compares each new module with it."""

    def __init__(self, inputs: NDArray[np.float32] | None, emulate: Emulate | None) -> None:
        self.inputs, self.emulate = inputs, emulate
        self._reference: list[Run] = []
        self._sources: dict[str, str] = {}
        self._live: set[str] = set()
        """Neurons and streams that reach the output, in the module before."""
        self._scope = Scope()
        self._average = inf
        self._digest, self._compared = "", 0
        """Of the module before and its weights; and how many numbers were compared there."""

    def compare(self, each: NetworkPass | None, after: Network, dump: Path | None) -> CheckResult:
        """Execute `after` and compare; raises CStepError at the first difference."""
        name = each.name if each else "import"
        if self.inputs is None:
            return CheckResult(name, 0, "not compared")
        started = time.perf_counter()
        self._sources |= {op.label: op.source for op in after.operations()}
        keeps = each.keeps if each else Keeps.NOTHING
        digest = after.digest()
        if digest == self._digest and keeps != Keeps.NOTHING and self._compared:
            return CheckResult(name, self._compared, "the same module", time.perf_counter() - started)
        try:
            result = self._compare(name, keeps, after, dump)
        except CStepError as error:
            text = str(error)
            raise CStepError(text if text.startswith(f"{name}: ") else f"{name}: the module after it: {text}") from None
        self._live, self._digest, self._compared = _live_labels(after), digest, result.compared
        return replace(result, check_seconds=time.perf_counter() - started)

    def _compare(self, name: str, keeps: Keeps, after: Network, dump: Path | None) -> CheckResult:
        inputs = self.inputs
        assert inputs is not None
        if _is_program(after):
            if self.emulate is None:
                return CheckResult(name, 0, "not compared: no emulator")
            runs = self._emulated(after, inputs)
            if not self._reference:
                self._reference = runs
                return CheckResult(name, 0, "reference")
            return self._integers(name, runs, dump, "emulator == integer model", None)
        if keeps == Keeps.INTEGERS:
            runs = self._executed(after, torch.float32)
            result = self._integers(name, runs, dump, f"== integer model{self._lowered(after)}", after)
            self._set_reference(runs, after)
            return result
        if keeps == Keeps.LOSSY:
            self._reference.clear()
            note = f"new reference: lossy{self._lowered(after)}"
            self._set_reference(self._executed(after, torch.float64 if _is_real(after) else torch.float32), after)
            return CheckResult(name, 0, note)
        if keeps == Keeps.NOTHING and self._reference:
            self._reference.clear()  # before the next one is made: each may hold a gigabyte
            self._set_reference(self._executed(after, torch.float32), after)
            self._live = _live_labels(after)
            return self._oracle(name, after, dump)
        if keeps == Keeps.NOTHING:
            self._reference = self._executed(after, torch.float64)
            return CheckResult(name, 0, "reference")
        return self._reals(name, keeps, after, dump)

    def _set_reference(self, runs: list[Run], network: Network) -> None:
        """What later modules are compared with; and what of it they can be compared in."""
        self._reference, self._scope = runs, Scope.of(network)

    def _lowered(self, network: Network) -> str:
        """Where neuron layers have fewer timesteps than before, the mean of what they have."""
        before, self._average = min(self._average, network_steps(network)), average_timesteps(network)
        return f", T_avg {self._average:.2f}" if self._average < before else ""

    def _executed(self, network: Network, dtype: torch.dtype) -> list[Run]:
        assert self.inputs is not None
        executor = Executor(network, dtype)
        return [executor.run(x) for x in self.inputs]

    def _emulated(self, network: Network, inputs: NDArray[np.float32]) -> list[Run]:
        """Run a cstep module on the emulator; buffers that have no address yet get one for the run."""
        assert self.emulate is not None
        placed = network if _is_placed(network) else allocate(network, network.target)
        program = emit(placed, network.target, NOWHERE, ((), ()))
        seen = self.emulate(program, inputs)
        labels = neuron_labels(network)
        return [
            Run(
                seen.logits[index],
                {label: seen.currents[layer][index] for layer, label in labels.items()},
                steps=int(seen.steps[index]),
            )
            for index in range(len(inputs))
        ]

    def _oracle(self, name: str, after: Network, dump: Path | None) -> CheckResult:
        from compiler.ir.onnx.integer import Oracle

        assert self.inputs is not None
        oracle, note = Oracle(after), f"onnxruntime == integer model{self._lowered(after)}"
        return self._integers(name, [oracle.run(x) for x in self.inputs], dump, note, after)

    def _integers(
        self, name: str, runs: list[Run], dump: Path | None, note: str, module: Network | None
    ) -> CheckResult:
        """Every integer the same; those of streams, too, which the emulator does not show (it has no `module`)."""
        compared, same = 0, the_same(module) if module else None
        for image, (before, after) in enumerate(zip(self._reference, runs, strict=True)):
            pairs = {label: (current, after.currents.get(label)) for label, current in before.currents.items()}
            if module:
                pairs |= {label: (stream, after.streams.get(label)) for label, stream in before.streams.items()}
            for label, (current, seen) in pairs.items():
                if seen is None:
                    self._gone(name, label)
                    continue
                current, seen = self._scope.both(label, before, current, seen, same)
                compared += current.size
                if not np.array_equal(current, seen):
                    raise self._difference(name, label, image, current, seen, dump)
            if None not in (before.steps, after.steps) and before.steps != after.steps:
                steps = f"{after.steps} timesteps after the pass and {before.steps} before it"
                raise CStepError(f"{name}: image {image} leaves after {steps}")
            compared += before.output.size
            if not np.array_equal(before.output, after.output):
                raise self._difference(name, LOGITS, image, before.output, after.output, dump)
        return CheckResult(name, compared, note)

    def _reals(self, name: str, keeps: Keeps, after: Network, dump: Path | None) -> CheckResult:
        """Every current, and the logits, the same up to rounding; in any order of neurons where layout may change."""
        assert self.inputs is not None
        executor = Executor(after, torch.float64)
        compared, most = 0, 0.0
        runs: list[Run] = []
        for image, (x, before) in enumerate(zip(self.inputs, self._reference, strict=True)):
            moved = keeps == Keeps.VALUES
            _split_neurons(before, after)
            errors = [most]

            def close(
                label: str, seen: NDArray[Any], image: int = image, before: Run = before, errors: list[float] = errors
            ) -> None:
                nonlocal compared
                current = before.currents.pop(label, None)  # as soon as it is compared: two runs take twice the memory
                if current is None:
                    return
                if keeps == Keeps.VALUES:
                    current, seen = (np.sort(a.reshape(len(a), -1), axis=1) for a in (current, seen))
                errors.append(self._close(name, label, image, current, seen, dump))
                compared += current.size

            run = executor.run(x, None if moved else before.spikes, close)
            for label in before.currents:
                self._gone(name, label)
            most = max(*errors, self._close(name, LOGITS, image, before.output, run.output, dump))
            compared += run.output.size
            if not moved:
                run.spikes = before.spikes  # what went on from each neuron
            runs.append(run)
        self._reference = runs
        return CheckResult(name, compared, f"float64, largest relative difference {most:.1e}")

    def _close(
        self, name: str, label: str, image: int, before: NDArray[Any], after: NDArray[Any], dump: Path | None
    ) -> float:
        """The largest relative difference; raises CStepError where it is more than rounding."""
        if before.shape != after.shape:
            sizes = f"{list(after.shape)} after the pass and {list(before.shape)} before it"
            raise CStepError(f"{name}: {self._place(label)}: its currents are {sizes}")
        error = np.abs(before - after) / (1 + np.abs(before))
        if not (error <= TOLERANCE).all():
            raise self._difference(name, label, image, before, np.where(error <= TOLERANCE, before, after), dump)
        return float(error.max(initial=0))

    def _gone(self, name: str, label: str) -> None:
        """A neuron may go only where nothing that reaches the output came from it."""
        if label in self._live:
            raise CStepError(f"{name}: {self._place(label)}: its currents are gone")

    def _place(self, label: str) -> str:
        source = self._sources.get(label, "")
        return f"{label} ({source})" if source else label

    def _difference(
        self, name: str, label: str, image: int, before: NDArray[Any], after: NDArray[Any], dump: Path | None
    ) -> CStepError:
        """The pass, the op, its line, the first differing element and both values."""
        first = tuple(int(i) for i in np.argwhere(before != after)[0])
        count = int((before != after).sum())
        dumps = f"; see {dump.name} and the dump before it" if dump else ""
        return CStepError(
            f"{name}: {self._place(label)}: image {image}, element {list(first)} is {after[first]} after the pass and "
            f"{before[first]} before it ({count} of {before.size} differ){dumps}"
        )


def _split_neurons(run: Run, after: Network) -> None:
    """Give each part of neurons that a pass split (split-channels) its channels of the run before."""
    widths: dict[str, dict[str, int]] = {}
    for op in after.operations():
        if isinstance(op, NEURONS) and (whole := whole_of(op.label)) in run.currents:
            widths.setdefault(whole, {})[op.label] = op.result_type.sizes[-1]
    for whole, parts in widths.items():
        if sum(parts.values()) != run.currents[whole].shape[-1]:
            continue  # not all are there: the whole is missed
        names = sorted(parts, key=lambda label: int(label.rpartition(".")[2]))
        ends = np.cumsum([parts[name] for name in names])[:-1]
        for values in (run.currents, run.spikes):
            values.update(zip(names, np.split(values.pop(whole), ends, axis=-1), strict=True))


NOWHERE = Provenance(model="", checkpoint="", calibration="", pipeline="", schedule="", version="")


def _is_program(network: Network) -> bool:
    return any(isinstance(op, InstructionOp) for op in network.operations())


def _is_real(network: Network) -> bool:
    """Whether the logits are real numbers: the module is not quantised yet."""
    outputs = [op for op in network.operations() if isinstance(op, spike.Output)]
    return any(op.operand_type().element.is_real for op in outputs)


def _live_labels(network: Network) -> set[str]:
    """Labels of the neurons and streams from which the output comes."""
    if _is_program(network):
        return set(neuron_labels(network).values())
    live: set[Operation] = set()
    for op in reversed(list(network.operations())):
        if isinstance(op, spike.Output) or op in live:
            live |= {operand.owner for operand in op.operands if isinstance(operand.owner, Operation)}
    return {op.label for op in network.operations() if op in live and isinstance(op, NEURONS + STREAMS)}


def _is_placed(network: Network) -> bool:
    return all(op.get("at") >= 0 for op in network.operations() if isinstance(op, BufferOp) and op.results[0].uses)
