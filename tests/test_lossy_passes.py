"""Lossy passes on every family: the module, and its program, compute what a plain reference does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from exact import program_of
from families import FAMILIES
from integer import STEPS, integer_module
from lossy import NEAR, exits_of, masks_of, passes_of
from numpy.typing import NDArray
from stepwise import Guard, Result, Stepwise, confidence

from compiler.ir.meaning import NEURONS, Executor
from compiler.pipeline import parse_passes
from isa.logarithms import LOG_BITS, POWER_BITS, certainty, largest_probability
from isa.machine import load_machine
from runtime.interpreter import quantise_input, run

FAMILY = pytest.mark.parametrize("name", FAMILIES)
VARIANTS = ("masked", "exited", "rows", "columns", "both", "together")
VARIANT = pytest.mark.parametrize("variant", VARIANTS)

pytestmark = pytest.mark.filterwarnings("ignore::isa.errors.CStepWarning")


class Case:
    """A family's network with a variant of lossy passes, and its reference."""

    def __init__(self, name: str, variant: str, inputs: NDArray[np.float32], criterion: str = "lightsoftmax") -> None:
        network = integer_module(name)
        together = variant == "together"
        masks = masks_of(network, len(name)) if variant == "masked" or together else {}
        mode = "both" if together else variant
        guard = Guard(mode, 2, 0 if together else 1) if mode in ("rows", "columns", "both") else None
        leaves = variant == "exited" or together
        exits = exits_of(network, inputs, criterion, guard, masks) if leaves else None
        self.reference = Stepwise(network, masks, guard, exits)
        self.network = network
        for each in parse_passes(passes_of(masks, guard, exits)):
            self.network = each.apply(self.network)
            self.network.verify()
        self.near = NEAR[criterion]

    def is_near(self, expected: Result) -> bool:
        exits = self.reference.exits
        if exits is None:
            return False
        return any(abs(c - tau) < self.near for c, tau in zip(expected.confidences, exits.tau, strict=False))


def assert_same(case: Case, inputs: NDArray[np.float32], schedules: Sequence[str] = ()) -> set[int]:
    """The integers of module and programs are the reference's; after how many timesteps inputs left."""
    machine, executor, left = load_machine("c-step"), Executor(case.network), set[int]()
    programs = [program_of(case.network, inputs.shape[-3], schedule, machine)[0] for schedule in schedules]
    emulated = [run(program, quantise_input(program, inputs)) for program in programs]
    for index, x in enumerate(inputs):
        expected = case.reference.run(x)
        if case.is_near(expected):
            continue
        seen = executor.run(x)
        assert (seen.steps or STEPS) == expected.steps
        assert np.array_equal(seen.output, expected.logits)
        for label, current in seen.currents.items():
            own = torch.stack(expected.currents[label]).numpy()
            rows = current.reshape(-1, *own.shape[1:])
            steps = min(len(rows), len(own))
            assert np.array_equal(rows[:steps], own[:steps]), label
        for result in emulated:
            assert np.array_equal(result.logits[index], expected.logits)
            assert case.reference.exits is None or result.steps[index] == expected.steps
        left.add(expected.steps)
    return left


@FAMILY
def test_module_and_program_are_the_reference(name: str) -> None:
    inputs = FAMILIES[name].inputs(8, seed=3, steps=STEPS)
    assert assert_same(Case(name, "together", inputs), inputs, ["layers"])


@VARIANT
@pytest.mark.parametrize("name", ["spikformer-cifar", "spikingformer-events", "sdt-v1"])
def test_each_lossy_pass_by_itself_is_the_reference(name: str, variant: str) -> None:
    inputs = FAMILIES[name].inputs(8, seed=3, steps=STEPS)
    left = assert_same(Case(name, variant, inputs), inputs, ["windows"])
    assert len(left) > (variant == "exited")


@pytest.mark.parametrize("criterion", ["softmax", "entropy"])
def test_the_other_criteria_decide_as_the_reference_does(criterion: str) -> None:
    inputs = FAMILIES["spikingformer"].inputs(24, seed=4, steps=STEPS)
    assert len(assert_same(Case("spikingformer", "exited", inputs, criterion), inputs, ["layers"])) > 1


@pytest.mark.slow
@FAMILY
@VARIANT
def test_module_and_programs_are_the_reference_on_200_inputs(name: str, variant: str) -> None:
    inputs = FAMILIES[name].inputs(200, seed=5, steps=STEPS)
    assert assert_same(Case(name, variant, inputs), inputs, ["layers", "windows"])


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_confidences_from_tables_are_within_about_one_percent(classes: int) -> None:
    generator = np.random.default_rng(classes)
    unit = 2.0**-16
    multiplier, divisor = round(unit * 16 / np.log(2) * 2.0**24), 24
    for spread in np.geomspace(0.1, 10, 40):
        logits = np.rint(generator.normal(0, spread, classes) / unit).astype(np.int64)
        values, real = [int(x) for x in logits], torch.from_numpy(logits * unit)
        probability = largest_probability(values, multiplier, divisor) / (1 << POWER_BITS)
        assert abs(probability - confidence("softmax", real, 0)) < 0.012
        sure = certainty(values, multiplier, divisor) / (1 << LOG_BITS) / np.log2(classes)
        assert abs(sure - confidence("entropy", real, 0)) < 0.012


def test_masks_on_all_layers_leave_the_exits_their_timesteps() -> None:
    inputs, network = FAMILIES["spikformer-cifar"].inputs(8, seed=3, steps=STEPS), integer_module("spikformer-cifar")
    masks = {op.label: "1100" for op in network.operations() if isinstance(op, NEURONS)}
    case = Case("spikformer-cifar", "", inputs)
    exits = exits_of(network, inputs, "lightsoftmax", None, masks)
    case.reference = Stepwise(network, masks, None, exits)
    for each in parse_passes(passes_of(masks, None, exits)):
        network = each.apply(network)
    case.network = network
    assert len(assert_same(case, inputs, ["layers", "windows"])) > 1
