"""Every family of the zoo, from its integer module to the program; to there, see test_quantise_families.py."""

from __future__ import annotations

from functools import cache

import pytest
from exact import assert_exact
from families import FAMILIES

from compiler.calibrate.ranges import LEAST_IMAGES, image_scale
from compiler.frontend.importer import import_model
from compiler.ir.network import Network
from compiler.pipeline import DEFAULT_PASSES, parse_passes

TO_INTEGERS = DEFAULT_PASSES.partition(",lower-to-cstep")[0]
FAMILY = pytest.mark.parametrize("name", FAMILIES)
SCHEDULE = pytest.mark.parametrize("schedule", ["layers", "windows"])


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


@FAMILY
@SCHEDULE
def test_the_program_of_a_family_computes_its_integers(name: str, schedule: str) -> None:
    """Three timesteps where the family has as many: a last window that is shorter."""
    steps = min(FAMILIES[name].steps, 3)
    assert_exact(integer_module(name, steps), FAMILIES[name].inputs(2, seed=7, steps=steps), schedule)


@pytest.mark.slow
@FAMILY
@SCHEDULE
def test_fifty_inputs_at_the_published_timesteps(name: str, schedule: str) -> None:
    family = FAMILIES[name]
    assert_exact(integer_module(name, family.steps), family.inputs(50, seed=8), schedule)
