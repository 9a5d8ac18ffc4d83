"""Random members of every family of the zoo: the whole pipeline, all its comparisons, and not one integer differs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from families import FAMILIES, SmallFamily
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import cstep
from compiler.calibrate.ranges import LEAST_IMAGES
from isa.machine import load_machine

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
SHORT = settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
LONG = settings(SHORT, max_examples=100, phases=[Phase.explicit, Phase.generate])
EXACT = "emulator == integer model"


@dataclass(frozen=True)
class Member:
    """A family at drawn sizes."""

    name: str
    family: SmallFamily
    steps: int
    schedule: str


@st.composite
def members(draw: st.DrawFn) -> Member:
    """Widths, heads, depth, timesteps and images of any shape that the layout divides: odd numbers of tokens too."""
    name = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[name]
    channels, height, width = family.size
    patch = 16 if max(height, width) > 16 else 4
    size = (channels, patch * draw(st.integers(1, 3)), patch * draw(st.integers(1, 4)))
    heads = draw(st.sampled_from([1, 2]))
    sizes = {"embed_dims": 16 * heads * draw(st.integers(1, 2)), "num_heads": heads}
    if name.startswith(("spik", "sdt-v1")):
        sizes["depths"] = draw(st.integers(1, 2))
    drawn = replace(family, size=size, arguments={**family.arguments, **sizes})
    return Member(name, drawn, draw(st.integers(1, min(family.steps, 5))), draw(st.sampled_from(["layers", "windows"])))


def assert_every_pass_agrees(member: Member) -> None:
    """`cstep.compile_checked` stops at the first difference; here, too, that it compared."""
    family, steps = member.family, member.steps
    inputs = family.inputs(LEAST_IMAGES, seed=5, steps=steps)
    done = cstep.compile_checked(
        family.build(steps),
        family.example(steps).numpy(),
        inputs,
        load_machine("c-step"),
        check=inputs[:2],
        passes=None,
        schedule="layers" if member.schedule == "layers" else "windows",
        dump_to=None,
        origin=(member.name, "", ""),
        normalisation=((0.0,) * family.size[0], (1.0,) * family.size[0]),
    )
    notes = {each.name: each for each in done.checks}
    assert notes["synchronise"].note == EXACT
    assert notes["synchronise"].compared > 0


@SHORT
@given(members())
def test_no_integer_differs(member: Member) -> None:
    torch.manual_seed(0)
    assert_every_pass_agrees(member)


@pytest.mark.slow
@LONG
@given(members())
def test_no_integer_differs_in_a_hundred(member: Member) -> None:
    torch.manual_seed(0)
    assert_every_pass_agrees(member)
