"""Every family of the zoo, from its integer module to the program; to there, see test_quantise_families.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from families import FAMILIES
from models import BACK_END, compiled, one_thread
from numpy.typing import NDArray

from compiler.calibrate.ranges import LEAST_IMAGES, image_scale
from compiler.frontend.importer import import_model
from compiler.ir.network import Network
from compiler.pipeline import DEFAULT_PASSES, Compiled, parse_passes

TO_INTEGERS = DEFAULT_PASSES.partition(",lower-to-cstep")[0]
EXACT = ("lower-to-cstep", "allocate", "synchronise")
"""What each of these passes makes runs on the emulator, and is compared with the integer model."""
FAMILY = pytest.mark.parametrize("name", FAMILIES)
SCHEDULE = pytest.mark.parametrize("schedule", ["layers", "windows"])


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    with one_thread():
        yield


@cache
def integer_module(name: str, steps: int) -> Network:
    """A small model of a family with T = `steps`, quantised."""
    family = FAMILIES[name]
    calibration = family.inputs(LEAST_IMAGES, steps=steps)
    network = import_model(family.build(steps), family.example(steps))
    text = TO_INTEGERS.replace("SCALE", repr(image_scale(calibration))).replace("BITS", "24")
    for each in parse_passes(text):
        network = each.apply_with(network, calibration)
    return network


def compiled_exactly(network: Network, inputs: NDArray[np.float32], schedule: str) -> Compiled:
    """The program of an integer module, every current and logit compared on all inputs after every pass."""
    done = compiled(network, inputs, check=len(inputs), passes=BACK_END.format(schedule))
    counts = {check.compared for check in done.checks if check.name in EXACT}
    assert len(counts) == 1 and min(counts) > 500 * len(inputs), counts
    return done


@FAMILY
@SCHEDULE
def test_the_program_of_a_family_computes_its_integers(name: str, schedule: str) -> None:
    """Three timesteps where the family has as many: a last window that is shorter."""
    steps = min(FAMILIES[name].steps, 3)
    compiled_exactly(integer_module(name, steps), FAMILIES[name].inputs(2, seed=7, steps=steps), schedule)


@pytest.mark.slow
@FAMILY
@SCHEDULE
def test_fifty_inputs_at_the_published_timesteps(name: str, schedule: str) -> None:
    family = FAMILIES[name]
    compiled_exactly(integer_module(name, family.steps), family.inputs(50, seed=8), schedule)
