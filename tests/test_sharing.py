"""Sharing of spikes between rows: every mode is exact, and says what it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.errors import CStepError
from runtime.sharing import intersections
from runtime.sharing.fewest import fewest, fewest_possible
from runtime.sharing.forest import forest, signed_tree
from runtime.sharing.group import group, pair
from runtime.sharing.match import common_bits, match, pairing
from runtime.sharing.prefix import prefix
from runtime.sharing.reuse import Bits, Reuse, execute


def matched(bits: Bits) -> Reuse:
    """Paired by what the window itself has in common."""
    return match(bits, pairing(bits[None]))


MODES: dict[str, Callable[[Bits], Reuse]] = {
    "pair": pair,
    "group 4": partial(group, size=4),
    "group 8": partial(group, size=8),
    "match": matched,
    "prefix": partial(prefix, width=3),
    "signed tree": partial(signed_tree, width=None),
    "forest": forest,
    "forest of narrow tiles": partial(forest, width=3),
    "forest without differences": partial(forest, signed=False),
    "forest that holds two": partial(forest, held=2),
    "forest that holds nothing": partial(forest, held=0),
}


@st.composite
def windows(draw: st.DrawFn) -> Bits:
    """Windows with odd rows, one row or none, silent and full ones, and rows drawn from few patterns: duplicates."""
    rows, channels = draw(st.integers(0, 17)), draw(st.integers(1, 9))
    patterns = draw(st.lists(st.integers(0, (1 << channels) - 1), min_size=1, max_size=6))
    chosen = np.array(draw(st.lists(st.sampled_from(patterns), min_size=rows, max_size=rows)), np.int64)
    return (chosen[:, None] >> np.arange(channels) & 1).astype(np.uint8)


def drawn(rows: int, channels: int, density: float, seed: int = 0) -> Bits:
    """Rows near few centres, as tokens and timesteps are near each other."""
    generator = np.random.default_rng(seed)
    centres = generator.random((4, channels)) < density
    near = centres[generator.integers(0, 4, rows)] ^ (generator.random((rows, channels)) < 0.04)
    return near.astype(np.uint8)


def weights_for(bits: Bits, outputs: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    return np.random.default_rng(1).integers(-128, 128, (bits.shape[1], outputs), np.int8)


def assert_exact(reuse: Reuse, bits: Bits) -> None:
    weights = weights_for(bits)
    assert np.array_equal(execute(reuse, weights), bits.astype(np.int64) @ weights.astype(np.int64))


@pytest.mark.parametrize("mode", MODES)
@given(bits=windows())
@settings(max_examples=30, deadline=None)
def test_every_mode_is_exact(mode: str, bits: Bits) -> None:
    assert_exact(MODES[mode](bits), bits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "channels"), [(256, 16), (255, 70), (1, 130)])
def test_every_mode_is_exact_on_whole_windows(mode: str, rows: int, channels: int) -> None:
    bits = drawn(rows, channels, 0.3)
    assert_exact(MODES[mode](bits), bits)


@pytest.mark.parametrize("mode", MODES)
@given(bits=windows())
@settings(max_examples=20, deadline=None)
def test_what_is_charged_is_every_term_that_does_not_take_anothers_place(mode: str, bits: Bits) -> None:
    reuse = MODES[mode](bits)
    terms = len(reuse.operands)
    assert reuse.charged == reuse.accumulations + reuse.merges + reuse.copies
    assert terms - reuse.partial <= reuse.additions <= reuse.charged <= terms
    assert 0 <= reuse.held <= reuse.partial


@given(bits=windows())
@settings(max_examples=40, deadline=None)
def test_a_forest_never_costs_more_than_the_spikes(bits: Bits) -> None:
    for width in (1, 4, None):
        assert forest(bits, width).charged <= bits.sum()


@given(bits=windows())
@settings(max_examples=30, deadline=None)
def test_pairs_cost_the_union_and_two_merges_as_on_the_machine(bits: Bits) -> None:
    even = bits[: len(bits) & ~1]
    left, right = even[::2], even[1::2]
    union = int((left | right).sum() + (bits[-1].sum() if len(bits) % 2 else 0))
    assert pair(bits).accumulations == union
    assert pair(bits).charged == union + 2 * np.count_nonzero((left & right).any(axis=1))


def test_a_group_of_four_nests_its_halves() -> None:
    bits = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]], np.uint8)
    reuse = group(bits, 4)
    assert reuse.partial == 2  # channel 0 of all; and channel 1 of the first half, which begins with a copy
    assert (reuse.accumulations, reuse.merges, reuse.copies, reuse.held) == (4, 4, 0, 1)


def subset_rule(tile: Bits) -> tuple[int, int]:
    """Accumulations, and rows that reuse one, of product sparsity as published; row by row."""
    sets = [frozenset(np.flatnonzero(row)) for row in tile]
    spikes, reusing = 0, 0
    for i, row in enumerate(sets):
        fitting = [
            len(other)
            for j, other in enumerate(sets)
            if other and other <= row and (len(other) < len(row) or (other == row and j < i))
        ]
        best = max(fitting, default=0) if len(row) >= 2 else 0
        spikes, reusing = spikes + len(row) - best, reusing + (best > 0)
    return spikes, reusing


@given(bits=windows())
@settings(max_examples=40, deadline=None)
def test_prefix_is_the_published_rule(bits: Bits) -> None:
    reuse = prefix(bits, 4)
    rule = [subset_rule(bits[:, at : at + 4]) for at in range(0, bits.shape[1], 4)]
    assert reuse.accumulations == sum(spikes for spikes, _ in rule)
    assert reuse.additions - reuse.accumulations == sum(reusing for _, reusing in rule)


def test_a_row_that_others_begin_with_is_merged_into_its_own_sum_too() -> None:
    bits = np.array([[1, 1, 0], [1, 1, 1]], np.uint8)
    reuse = prefix(bits)
    assert (reuse.accumulations, reuse.merges, reuse.copies, reuse.held) == (3, 2, 0, 1)


def test_a_forest_finds_what_is_no_row_itself() -> None:
    bits = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 1]], np.uint8)
    assert prefix(bits).accumulations == 12
    assert (forest(bits).accumulations, forest(bits).charged) == (6, 9)


def test_a_forest_subtracts_where_that_is_shorter() -> None:
    full = np.ones(12, np.uint8)
    bits = np.stack([full, full, *(full - np.eye(12, dtype=np.uint8)[:6])])
    reuse = forest(bits)
    assert (reuse.signs < 0).any()
    assert reuse.charged < forest(bits, signed=False).charged
    assert_exact(reuse, bits)


@pytest.mark.parametrize("held", [0, 1, 5, 20])
def test_a_forest_stores_no_more_than_it_may(held: int) -> None:
    bits = (np.random.default_rng(0).random((200, 60)) < 0.2).astype(np.uint8)
    free, bounded = forest(bits), forest(bits, held=held)
    assert bounded.held <= held < free.held
    assert free.charged < bounded.charged <= bits.sum()
    assert_exact(bounded, bits)


def test_counts_of_pairs_grow_with_the_sums_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one sum at first: the forest is the same."""
    bits = (np.random.default_rng(0).random((200, 60)) < 0.2).astype(np.uint8)
    for signed in (False, True):
        whole = forest(bits, signed=signed)
        with monkeypatch.context() as patched:
            patched.setattr(intersections, "SUMS", 1)
            grown = forest(bits, signed=signed)
        assert whole.partial > 60
        assert np.array_equal(grown.operands, whole.operands)
        assert np.array_equal(grown.starts, whole.starts)


def test_a_forest_beats_prefix_where_rows_are_alike() -> None:
    bits = drawn(256, 64, 0.15)
    assert forest(bits).accumulations < prefix(bits).accumulations
    assert forest(bits).charged < 0.8 * prefix(bits).charged


def test_calibration_finds_the_pairs_that_have_most_in_common() -> None:
    bits = drawn(31, 40, 0.3)
    halves = np.concatenate([bits, bits])[np.random.default_rng(2).permutation(62)]
    pairs = pairing(np.stack([halves, halves]), candidates=61)
    assert match(halves, pairs).accumulations == bits.sum()
    adjacent = np.arange(62).reshape(-1, 2)
    assert common_bits(halves[None], pairs) > common_bits(halves[None], adjacent)
    assert match(halves, adjacent).charged == pair(halves).charged


def test_silent_rows_are_left_alone() -> None:
    assert pairing(np.zeros((2, 3, 4), np.uint8)).tolist() == [[0, -1], [1, -1], [2, -1]]


@given(bits=windows())
@settings(max_examples=30, deadline=None)
def test_no_mode_goes_below_what_is_possible(bits: Bits) -> None:
    least, _ = fewest(bits, effort=2000)
    assert fewest_possible(bits) <= least
    for mode in MODES.values():
        assert mode(bits).additions >= least


def test_the_fewest_additions_are_found() -> None:
    # a b, a b c twice, c: two sums are made, and every row is added to its accumulator
    assert fewest(np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 1]], np.uint8)) == (6, True)
    # b c, and three rows that it makes
    assert fewest(np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]], np.uint8)) == (7, True)


def test_what_is_refused() -> None:
    bits = drawn(4, 13, 0.3)
    with pytest.raises(CStepError, match="a window is zeros and ones"):
        pair(bits * 2)
    with pytest.raises(CStepError, match="power of two"):
        group(bits, 3)
    with pytest.raises(CStepError, match="at least one channel"):
        prefix(bits, 0)
    with pytest.raises(CStepError, match="held -1"):
        forest(bits, held=-1)
    with pytest.raises(CStepError, match=r"each of the rows 0\.\.3 once"):
        match(bits, np.array([[0, 1]]))
    with pytest.raises(CStepError, match=r"\[samples, rows, channels\]"):
        pairing(bits)
    with pytest.raises(CStepError, match=r"takes \[13, outputs\]"):
        execute(pair(bits), np.zeros((12, 2), np.int8))
    with pytest.raises(CStepError, match="at most 12"):
        fewest(bits)
