"""Chains of reshapes and transposes: the ops that a layout takes do what the layout says, and are few."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir import spike
from compiler.ir.layout import Layout

SIZES = (2, 3, 8, 1)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts as a few transposes and splits of dimensions, or joins of neighbours, make them."""
    layout = Layout(tuple(draw(st.permutations(SIZES))))
    for _ in range(draw(st.integers(0, 4))):
        sizes = layout.result_sizes
        at = draw(st.integers(0, len(sizes) - 1))
        match draw(st.sampled_from(("move", "split", "join"))):
            case "move":
                layout.transpose(tuple(draw(st.permutations(range(len(sizes))))))
            case "split":
                least = next((factor for factor in (2, 3) if sizes[at] % factor == 0), 1)
                layout.reshape((*sizes[:at], least, sizes[at] // least, *sizes[at + 1 :]))
            case _:
                layout.reshape((*sizes[:at], prod(sizes[at : at + 2]), *sizes[at + 2 :]))
    return layout


@given(layouts(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_ops_of_a_layout_move_every_element_to_its_place(layout: Layout, inverse: bool) -> None:
    positions = layout.positions()
    source = np.arange(positions.size).reshape(layout.sizes)
    begin, end = (positions, source) if inverse else (source, positions)
    for kind, numbers in layout.steps(inverse=inverse):
        begin = begin.reshape(numbers) if kind is spike.Reshape else begin.transpose(numbers)
    assert np.array_equal(begin, end)
    assert len(layout.steps(inverse=inverse)) <= 3


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize("sizes", [(3, 8, 4), (3, 1, 4), (5, 5, 5)])
def test_dimensions_that_change_places_take_one_transpose(sizes: tuple[int, ...], order: tuple[int, ...]) -> None:
    layout = Layout(sizes)
    layout.transpose(order)
    taken = [kind for kind, _ in layout.steps()]
    assert taken == [spike.Transpose] or (1 in sizes and taken == [spike.Reshape])


def test_a_split_and_a_transpose_take_two() -> None:
    layout = Layout((6, 4))
    layout.reshape((2, 3, 4))
    layout.transpose((1, 2, 0))
    assert layout.steps() == [(spike.Reshape, (2, 3, 4)), (spike.Transpose, (1, 2, 0))]
    assert layout.steps(inverse=True) == [(spike.Transpose, (2, 0, 1)), (spike.Reshape, (6, 4))]
