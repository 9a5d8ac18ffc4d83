"""An integer module beside its program on the emulator: every current and every logit."""

from __future__ import annotations

import numpy as np
from models import NOWHERE
from numpy.typing import NDArray

from compiler.backend.allocate import allocate
from compiler.backend.emit import emit, neuron_labels
from compiler.backend.lower import lower
from compiler.backend.synchronise import Synchronise
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from isa.machine import Machine, load_machine
from isa.program import Program
from isa.verify import verify
from runtime.interpreter import Kernels, quantise_input, run


def program_of(network: Network, channels: int, schedule: str, machine: Machine) -> tuple[Program, dict[int, str]]:
    """The verified program of an integer module whose images have `channels` channels, and its layers' neurons."""
    placed = Synchronise().apply(allocate(lower(network, machine, schedule), machine))
    program = emit(placed, machine, NOWHERE, ((0.0,) * channels, (1.0,) * channels))
    verify(program)
    return program, neuron_labels(placed)


def assert_exact(
    network: Network,
    inputs: NDArray[np.float32],
    schedule: str,
    machine: Machine | None = None,
    kernels: Kernels = "fast",
) -> Program:
    """Run the module and its program, and compare all their integers; returns the program."""
    program, labels = program_of(network, inputs.shape[-3], schedule, machine or load_machine("c-step"))
    seen = run(program, quantise_input(program, inputs), kernels=kernels, observe=True)
    assert seen.currents is not None and seen.spikes is not None
    executor = Executor(network)
    for index, x in enumerate(inputs):
        expected = executor.run(x)
        assert np.array_equal(expected.output, seen.logits[index])
        assert set(expected.currents) == set(labels.values())
        for layer, label in labels.items():
            for mine, its in ((expected.currents, seen.currents), (expected.spikes, seen.spikes)):
                rows = mine[label].reshape(-1, *its[layer].shape[2:])  # one where it is the same at every timestep
                assert np.array_equal(rows, its[layer][index][: len(rows)]), label
    return program
