"""Every integer form that the back end takes, from text to the emulator: every current and logit is the module's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from forms import COLUMNS, FORMS, IMAGE_CHANNELS, ROWS, form
from models import BACK_END, NOWHERE, one_thread
from numpy.typing import NDArray

from compiler.check import Observed
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from compiler.pipeline import compile_network
from isa.instructions import Attend
from isa.machine import Machine, load_machine
from isa.program import Program
from runtime.interpreter import Kernels, quantise_input, run

WHOLE = load_machine("c-step")
TIGHT = WHOLE.with_changes(
    weight_buffer_bytes=5120, spike_buffer_bytes=5120, output_buffer_bytes=4096, constant_buffer_bytes=640
)
MACHINES: dict[str, tuple[Machine, Kernels]] = {"whole": (WHOLE, "fast"), "tight": (TIGHT, "reference")}


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    with one_thread():
        yield


def images(name: str, timesteps: int) -> NDArray[np.float32]:
    """Two inputs of a form."""
    shape = (2, IMAGE_CHANNELS, ROWS, COLUMNS)
    if "events" in name:
        shape = (2, timesteps, IMAGE_CHANNELS, ROWS, COLUMNS)
    return np.random.default_rng(timesteps).standard_normal(shape, np.float32)


def compare(network: Network, x: NDArray[np.float32], machine: Machine, kernels: Kernels, schedule: str) -> Program:
    """Compile; the pipeline compares every current and logit of the program with the module's."""

    def emulate(program: Program, inputs: NDArray[np.float32]) -> Observed:
        result = run(program, quantise_input(program, inputs), kernels=kernels, observe=True)
        assert result.currents is not None
        return Observed(result.logits, result.currents)

    done = compile_network(
        network,
        machine=machine,
        calibration=x,
        check=x,
        provenance=NOWHERE,
        normalisation=((0.0,) * IMAGE_CHANNELS, (1.0,) * IMAGE_CHANNELS),
        passes=BACK_END.format(schedule),
        emulate=emulate,
    )
    neurons = sum(current.size for each in x for current in Executor(network).run(each).currents.values())
    assert all(check.compared >= neurons for check in done.checks[1:])
    return done.program


def test_heads_that_are_no_whole_words_lie_apart_where_all_do_not_fit() -> None:
    name, machine = "attention that fits head by head", TIGHT.with_changes(spike_buffer_bytes=1792)
    x = images(name, 3)
    network = form(name, 3, x[0])
    for schedule in ("layers", "windows"):
        program = compare(network, x, machine, "fast", schedule)
        assert {each.heads for each in program.code if isinstance(each, Attend)} == {1}


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_computes_the_same_integers_on_the_emulator(name: str, timesteps: int) -> None:
    x = images(name, timesteps)
    network = form(name, timesteps, x[0])
    for spikes in Executor(network).run(x[0]).spikes.values():
        assert 0.01 < (spikes > 0).mean() < 0.99, "a layer that always or never fires would prove little"
    for machine, kernels in MACHINES.values():
        for schedule in ("layers", "windows") if timesteps > 2 else ("layers",):
            compare(network, x, machine, kernels, schedule)
