"""Tokens that stop in front of blocks: module and programs compute what a reference of the paper's formula does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from families import FAMILIES
from integer import STEPS, integer_module
from models import one_thread
from stepwise import Stepwise
from stopped import BLOCKS, SCORES, assert_stops, stop

from isa.errors import CStepWarning

FAMILY = pytest.mark.parametrize("name", FAMILIES)
SCORE = pytest.mark.parametrize("score", SCORES)


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CStepWarning)
        yield


def check(
    name: str, keep: list[str], score: str = "paper", kernel: int = 3, count: int = 8, both: bool = True
) -> float:
    """The share of tokens kept on the first inputs of a family."""
    network, inputs = integer_module(name), FAMILIES[name].inputs(count, seed=3, steps=STEPS)
    stopped, stops = stop(network, BLOCKS[name], keep, score, kernel)
    schedules = ["layers", "windows"] if both and score != "code" else ["layers"]
    return assert_stops(Stepwise(network, stops=stops), stopped, inputs, schedules)


def test_every_family_that_has_blocks_is_here() -> None:
    assert set(BLOCKS) == set(FAMILIES)


@FAMILY
def test_module_and_programs_are_the_reference(name: str) -> None:
    assert 0.4 < check(name, ["0.5"]) < 0.7
