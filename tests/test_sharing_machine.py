"""Sharing beyond pairs as the machine executes it: the same integers, both families alike, and every count in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn import accumulate_sides, channel_masks, fits, pairings, windows
from emulated import both_families, copy_of, program_of, random_state
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from programs import small_program

from isa.errors import CStepError
from isa.instructions import Accumulate, Pair
from isa.machine import Machine, load_machine, presets
from isa.verify import verify
from isa.word import Instruction, Sharing
from runtime.record import RECORD
from runtime.reference.spikes import bits_of, read_words, word_indices
from runtime.reference.pe import taps
from runtime.sharing.prefix import prefix
from runtime.sharing.reuse import Reuse
from runtime.sharing.schedule import ROW_CYCLES, schedule
from runtime.sharing.windows import Pairing, windows_of
from runtime.interpreter import quantise_input, run

REUSING = tuple(mode for mode in Sharing if mode > Sharing.PAIR)
SLOW = [HealthCheck.filter_too_much, HealthCheck.too_slow]
MANY = settings(max_examples=150, deadline=None, suppress_health_check=SLOW, derandomize=True)
DENSITIES = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])
NAMES = ("work", "sop_bit", "sop_union", "merges", "copies", "weight_buffer_bytes", "matching_bits", "partial_sums")

MACHINES = st.builds(
    lambda pairs, window, lanes, rows, sums, prefix, forest, matching: load_machine("c-step-reuse").with_changes(
        accumulator_bits=32, pairs=pairs, window=window, lanes=lanes, reuse_rows=rows, reuse_sums=max(sums, rows),
        prefix_channels=prefix, forest_channels=forest, matching_bits=matching,
    ),
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([5, 16, 512]), st.sampled_from([8, 24, 256]),
    st.sampled_from([8, 64]), st.sampled_from([0, 3, 16]), st.sampled_from([0, 7, 40]), st.sampled_from([1, 64, 4096]),
)  # fmt: skip


@st.composite
def reusing(draw: st.DrawFn) -> list[Instruction]:
    """An Accumulate of any mode beyond pairs, and a pairing of its size or of another in front of it."""
    masks, spikes = draw(channel_masks("row", "column")), 2 * draw(st.integers(0, 100))
    each = Accumulate(**draw(windows(wide=False)), **draw(accumulate_sides(REUSING)), **masks, spikes=spikes)
    latch = draw(pairings(draw(st.sampled_from([0, each.steps, each.rows * each.columns]))))
    assume(fits(each))
    planes = [replace(each, plane=each.plane + 1, fresh=0)] if draw(st.booleans()) else []
    return [latch, each, *planes]


def tables(state_constant: NDArray[np.uint8], seed: int) -> None:
    """Small partners, so that many are mutual."""
    words = state_constant.view("<u2")
    words[:] = np.random.default_rng(seed).integers(0, 12, len(words))
    words[: len(words) // 2] = np.arange(len(words) // 2) ^ 1


@MANY
@given(reusing(), MACHINES, st.integers(0, 99), DENSITIES)
def test_both_families_make_the_sums_of_no_sharing(
    code: list[Instruction], machine: Machine, seed: int, density: float
) -> None:
    program = program_of(code, machine)
    state = random_state(program, seed, density)
    tables(state.constant, seed)
    alone = copy_of(program, state)
    (plain, without), (_, again) = both_families(program, alone, share=False)
    (fast, fast_record), (reference, record) = both_families(program, state, True)
    for name, region in fast.items():
        assert np.array_equal(region, reference[name]), name
        assert np.array_equal(region, plain[name]), name
    assert np.array_equal(fast_record, record)
    assert np.array_equal(without, again)
    for kept in ("sop_bit", "sop_value", "common"):
        assert np.array_equal(record[:, getattr(RECORD, kept)], without[:, getattr(RECORD, kept)]), kept
