"""Lossy passes on every family: the module, and its program, compute what a plain reference does."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from exact import program_of
from families import FAMILIES
from integer import STEPS, integer_module
from models import one_thread
from numpy.typing import NDArray
from stepwise import Exits, Guard, Result, Stepwise, confidence

from compiler.ir.meaning import NEURONS, Executor
from compiler.ir.network import Network
from compiler.pipeline import parse_passes
from isa.errors import CStepWarning
from isa.logarithms import LOG_BITS, POWER_BITS, certainty, largest_probability
from isa.machine import load_machine
from runtime.interpreter import quantise_input, run

FAMILY = pytest.mark.parametrize("name", FAMILIES)
VARIANTS = ("masked", "exited", "rows", "columns", "both", "together")
VARIANT = pytest.mark.parametrize("variant", VARIANTS)
NEAR = {"lightsoftmax": 1e-9, "softmax": 0.02, "entropy": 0.02}
"""How near a confidence may come to tau before rounding, or the coarse tables, may decide the other way."""


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CStepWarning)
        yield


def masks_of(network: Network, seed: int) -> dict[str, str]:
    """A mask for two layers in three, the last one left alone: logits are sums over all timesteps."""
    draw = random.Random(seed)
    labels = [op.label for op in network.operations() if isinstance(op, NEURONS)]
    return {
        label: draw.choice(["1110", "1110", "1100", "1100", "1000", "1010", "0110", "0000"])
        for label in labels[:-1]
        if draw.random() < 2 / 3
    }


def exits_of(
    network: Network, inputs: NDArray[np.float32], criterion: str, guard: Guard | None, masks: Mapping[str, str]
) -> Exits:
    """Exits after 1 and 3 timesteps, at which some of the inputs leave and some stay, where they differ at all."""
    undecided = Stepwise(network, masks, guard, Exits((1, 3), (1.0, 1.0), criterion, 0.5))
    seen = np.sort(np.array([undecided.run(x).confidences for x in inputs[:8]]), axis=0)
    widest = np.diff(seen, axis=0).argmax(axis=0)
    low, high = (np.take_along_axis(seen, (widest + each)[None], axis=0)[0] for each in (0, 1))
    between = np.where(high - low > 4 * NEAR[criterion], (low + high) / 2, 0.9 * low)
    first, second = np.clip(between, 0.001, 0.999)
    return Exits((1, 3), (float(first), float(second)), criterion, 0.5)


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
        for each in parse_passes(_passes(masks, guard, exits)):
            self.network = each.apply(self.network)
            self.network.verify()
        self.near = NEAR[criterion]

    def is_near(self, expected: Result) -> bool:
        exits = self.reference.exits
        if exits is None:
            return False
        return any(abs(c - tau) < self.near for c, tau in zip(expected.confidences, exits.tau, strict=False))


def _passes(masks: Mapping[str, str], guard: Guard | None, exits: Exits | None) -> str:
    """The pipeline of what a reference was asked for."""
    given = ",".join(f'"{label}={mask}"' for label, mask in masks.items())
    parts = [f"set-timesteps{{masks={given}}}"] if masks else []
    parts += ["mask-timesteps", "hoist-invariant"]
    if guard:
        parts.append(f"guard-channels{{mode={guard.mode} after={guard.after} threshold={guard.threshold}}}")
    if exits:
        after, tau = (",".join(map(repr, each)) for each in (exits.after, exits.tau))
        parts.append(f"insert-exits{{after={after} criterion={exits.criterion} tau={tau} variance={exits.variance}}}")
    return ",".join(parts)


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
    for each in parse_passes(_passes(masks, None, exits)):
        network = each.apply(network)
    case.network = network
    assert len(assert_same(case, inputs, ["layers", "windows"])) > 1
