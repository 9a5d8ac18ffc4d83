"""Counts, masks, decisions and exits: what each means, said again in a few lines beside both kernel families."""

from __future__ import annotations

from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pytest
from emulated import both_families, program_of, random_state
from ran import RESULT, STEPS, Integers, Ran, put, under_taps, window

from isa.errors import CStepError
from isa.instructions import (
    Accumulate,
    CountSpikes,
    Decide,
    Depthwise,
    End,
    Exit,
    Fire,
    Guard,
    Load,
    Multiply,
    Rescale,
)
from isa.logarithms import certainty, largest_probability, light_softmax
from isa.machine import load_machine
from isa.word import Charge, Criterion, Region, Sharing, Traffic
from runtime.decoded import decoded
from runtime.fast.walk import Workspace
from runtime.fast.walk import walk as fast_walk
from runtime.record import RECORD
from runtime.reference.walk import walk as reference_walk
from runtime.state import State

COUNTS = 9000
MASK = 8


def fire(**changes: int) -> Fire:
    """37 integrate-and-fire neurons at each of 5 pixels, fresh, planes of 1."""
    fields: dict[str, Any] = {
        "accumulators": 0, "constants": 4, "membranes": 60000, "residual": 0, "result": RESULT, "residual_planes": 0,
        "planes": 1, "steps": STEPS, "pixels": 5, "outputs": 37, "drop": 0, "shift": 0, "charge": Charge.IF,
        "multiplier": 1, "divisor": 0, "start": 1, "soft": 1, "levels": 0, "ties_even": 0, "narrow": 0,
        "plane_stride": 60, "step_stride": 30, "pixel_stride": 6,
    }  # fmt: skip
    return Fire(**fields | changes)


def moderate(state: State) -> None:
    """Accumulators of a few hundred, biases of 7, thresholds of 300; counts that are small."""
    put(state.constant, 4, np.repeat([7, 300], 37), "<i4")
    put(state.output, 0, np.random.default_rng(2).integers(-200, 500, 370), "<i4")
    put(state.channel, COUNTS, np.arange(64), "<u2")


def half_live(state: State) -> None:
    """Channel masks of which every second bit or so is 1."""
    put(state.channel, 0, np.random.default_rng(3).integers(0, 1 << 16, 50), "<u2")


def integrated(currents: Integers, v: Integers | int = 0) -> tuple[Integers, Integers]:
    """Spikes and last membranes of neurons that integrate, thresholds of 300, reset by subtraction."""
    spikes = np.zeros_like(currents)
    for step, current in enumerate(currents):
        h = v + current
        spikes[step] = h >= 300
        v = h - 300 * spikes[step]
    return spikes, np.asarray(v)


def spikes_and_membranes(ran: Ran, each: Fire) -> tuple[Integers, Integers]:
    return ran.spikes(RESULT, 37, STEPS, 5, after=True), ran.values("output", "<i2", 60000, 5, 37, after=True)


def test_still_accumulators_are_those_of_every_step() -> None:
    ran = Ran(fire(still=1), moderate)
    currents = np.repeat(ran.values("output", "<i4", 0, 1, 5, 37) + 7, STEPS, axis=0)
    for found, wanted in zip(spikes_and_membranes(ran, fire()), integrated(currents), strict=True):
        assert np.array_equal(found, wanted) and wanted.any()


def test_absent_accumulators_leave_the_bias() -> None:
    """Their address may be any: it is not looked at."""

    def biased(state: State) -> None:
        put(state.constant, 4, np.concatenate([np.arange(100, 470, 10), np.repeat(300, 37)]), "<i4")

    ran = Ran(fire(absent=1, accumulators=(1 << 18) - 4, shift=3, drop=2), biased)
    wanted = integrated(np.broadcast_to(np.arange(100, 470, 10), (STEPS, 5, 37)))
    for found, expected in zip(spikes_and_membranes(ran, fire()), wanted, strict=True):
        assert np.array_equal(found, expected) and 0 < wanted[0].mean() < 1


def test_mute_neurons_go_on_and_emit_nothing() -> None:
    ran = Ran(fire(mute=1, counted=1, counts_at=COUNTS), moderate)
    spikes, membranes = integrated(ran.values("output", "<i4", 0, STEPS, 5, 37) + 7)
    found = spikes_and_membranes(ran, fire())
    assert spikes.any() and not found[0].any() and np.array_equal(found[1], membranes)
    assert np.array_equal(ran.after["channel"], ran.before["channel"])


@pytest.mark.parametrize("counts_fresh", [0, 1])
def test_fire_counts_the_spikes_of_every_channel(counts_fresh: int) -> None:
    """Channel 20 stands at 65534 before, and fires at every step."""

    def prepare(state: State) -> None:
        moderate(state)
        put(state.channel, COUNTS + 2 * 20, np.array([65534]), "<u2")
        put(state.output, 80, np.array([900]), "<i4")

    each = fire(counted=1, counts_fresh=counts_fresh, counts_at=COUNTS, residual_planes=1, planes=2)
    ran = Ran(each, prepare)
    spikes, _ = integrated(ran.values("output", "<i4", 0, STEPS, 5, 37) + 7)
    before = 0 if counts_fresh else ran.values("channel", "<u2", COUNTS, 37)
    counts = np.minimum(before + spikes.sum(axis=(0, 1)), 65535)
    assert np.array_equal(ran.values("channel", "<u2", COUNTS, 37, after=True), counts)
    assert spikes[:, :, 20].sum() > 1
    assert each.counts()["guard_counts"] == STEPS * 5 * 37


def test_levels_are_counted_by_their_value() -> None:
    each = fire(levels=3, planes=2, charge=Charge.NONE, counted=1, counts_fresh=1, counts_at=COUNTS)
    ran = Ran(each, moderate)
    levels = np.clip(np.floor((ran.values("output", "<i4", 0, STEPS, 5, 37) + 7) / 300 + 0.5), 0, 3)
    assert np.array_equal(ran.values("channel", "<u2", COUNTS, 37, after=True), levels.sum(axis=(0, 1)))
    assert levels.max() == 2


@pytest.mark.parametrize("start", [0, 1])
def test_masked_channels_do_not_fire_and_keep_their_membranes(start: int) -> None:
    changes = {"start": start, "residual_planes": 1, "planes": 2}
    free, ran = Ran(fire(**changes), moderate), Ran(fire(**changes, masked=1, mask=MASK), moderate)
    live = ran.mask(MASK, 37)
    assert 0 < live.sum() < 37
    before = ran.values("output", "<i2", 60000, 5, 37)
    currents = ran.values("output", "<i4", 0, STEPS, 5, 37) + 7
    spikes, _ = integrated(currents, 0 if start else before)
    residual = ran.spikes(0, 37, STEPS, 5)
    weights = np.array([1, 2])[:, None, None, None]
    values = (ran.spikes(RESULT, 37, 2, STEPS, 5, after=True) * weights).sum(axis=0)
    assert np.array_equal(values, residual + np.where(live, spikes, 0)) and (spikes * (1 - live)).any()
    after = ran.values("output", "<i2", 60000, 5, 37, after=True)
    kept = np.zeros_like(before) if start else before
    assert np.array_equal(after, np.where(live, free.values("output", "<i2", 60000, 5, 37, after=True), kept))


@pytest.mark.parametrize("changes", [{}, {"start": 0}, {"absent": 1}, {"narrow": 1}, {"charge": Charge.NONE}])
def test_masked_neurons_cost_what_is_left_of_them(changes: dict[str, int]) -> None:
    """Groups of neuron lanes with any live one, and live channels' accumulators, membranes and constants."""
    machine = load_machine("c-step").with_changes(neuron_lanes=8)
    each = fire(masked=1, mask=MASK, **changes)
    state = random_state(program := program_of([each], machine), 5, 0.4)
    put(state.channel, MASK, np.array([0b11, 0xF, 0]), "<u2")
    (_, record), _ = both_families(program, state, True)
    found = {name: int(record[0, column]) for name, column in RECORD._asdict().items()}
    accumulators = {"absent": 0, "narrow": 2}.get(next(iter(changes), ""), 4) * STEPS * 5 * 6
    membranes = 0 if "charge" in changes else 2 * 5 * 6 * (1 if each.start else 2)
    assert found == dict.fromkeys(found, 0) | {
        "work": STEPS * 5 * 2, "neuron_updates": STEPS * 5 * 6, "constant_buffer_bytes": 8 * 6,
        "output_buffer_bytes": accumulators + membranes,
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["still", "absent"])
def test_rescale_of_one_step_or_of_nothing(flag: str) -> None:
    random = np.random.default_rng(1)

    def prepare(state: State) -> None:
        constants = np.concatenate([random.integers(-99, 99, 37), random.integers(-1 << 12, 1 << 12, 37)])
        put(state.constant, 8, constants, "<i4")
        put(state.output, 0, random.integers(-9000, 9000, 600), "<i4")

    flags = {"adds": 1, "narrow": 0, "small": 0, flag: 1}
    places = {"accumulators": 0, "constants": 8, "addend": 12000, "result": RESULT}
    ran = Ran(Rescale(**places, **flags, steps=STEPS, pixels=5, outputs=37, divisor=10), prepare)
    bias, multiplier = ran.values("constant", "<i4", 8, 2, 37)
    sums = ran.values("output", "<i4", 0, 1, 5, 37) * (flag == "still")
    scaled = np.clip(((sums * multiplier + 512) >> 10) + bias, -32768, 32767)
    values = np.clip(scaled + ran.values("output", "<i2", 12000, STEPS, 5, 37), -32768, 32767)
    assert np.array_equal(ran.values("output", "<i2", RESULT, STEPS, 5, 37, after=True), values)


@pytest.mark.parametrize("fresh", [0, 1])
def test_spikes_are_counted_whatever_their_plane(fresh: int) -> None:
    shape = {"planes": 3, "steps": STEPS, "tokens": 9, "inputs": 37}
    strides = {"plane_stride": 108, "step_stride": 54, "pixel_stride": 6}
    ran = Ran(CountSpikes(**shape, **strides, spikes=100, counts_at=COUNTS, fresh=fresh), moderate)
    found = ran.spikes(100, 37, 3, STEPS, 9).sum(axis=(0, 1, 2))
    before = 0 if fresh else ran.values("channel", "<u2", COUNTS, 37)
    assert np.array_equal(ran.values("channel", "<u2", COUNTS, 37, after=True), before + found) and found.all()


@pytest.mark.parametrize("threshold", [0, 17, 65535])
def test_a_guard_is_live_above_its_threshold(threshold: int) -> None:
    ran = Ran(Guard(counts_at=COUNTS, mask=MASK, channels=37, threshold=threshold), moderate)
    counts = ran.values("channel", "<u2", COUNTS, 37)
    whole = ran.mask(MASK, 48, after=True)
    assert np.array_equal(whole, np.concatenate([counts > threshold, np.zeros(11, np.int64)]))


LOGITS = np.array([-40, 900, 31, 500, -700, 880, 12, 3, 90, -5])


@pytest.mark.parametrize("criterion", Criterion)
def test_a_decision_is_a_comparison(criterion: Criterion) -> None:
    """Of the measure as declared, at the threshold where it turns."""
    fields = {"logits": 400, "outputs": 10, "criterion": criterion, "multiplier": 3, "divisor": 4}
    measured = Decide(**fields, threshold=0).measure(LOGITS.tolist())
    assert measured > 0
    for threshold, taken in ((0, 1), (measured, 1), (measured + 1, 0), ((1 << 48) - 1, 0)):
        ran = Ran(Decide(**fields, threshold=threshold), lambda state: put(state.output, 400, LOGITS, "<i4"))
        assert ran.after["flags"].tolist() == [taken]


def test_measures_are_near_the_real_ones() -> None:
    """Logits in steps of 2^(1/16)."""
    for logits in (LOGITS // 8, LOGITS // 30, LOGITS * 0):
        probabilities = np.exp2(logits / 16) / np.exp2(logits / 16).sum()
        assert light_softmax(logits.tolist()) == 10 * logits.max() - logits.sum()
        assert abs(largest_probability(logits.tolist(), 1, 0) / (1 << 15) - probabilities.max()) < 1e-3
        entropy = -(probabilities * np.log2(probabilities)).sum()
        assert abs(certainty(logits.tolist(), 1, 0) / 256 - (log2(10) - entropy)) < 0.02


def test_a_taken_exit_ends_the_walk() -> None:
    decide = Decide(logits=400, outputs=10, criterion=Criterion.LIGHTSOFTMAX, multiplier=0, divisor=0, threshold=7000)
    late = CountSpikes(
        spikes=0, counts_at=COUNTS, planes=1, steps=1, tokens=1, inputs=16, plane_stride=0, step_stride=0,
        pixel_stride=2, fresh=1,
    )  # fmt: skip
    program = program_of([Exit(steps=1), decide, Exit(steps=2), late, End()], load_machine("c-step"))
    shared = decoded(program)
    for logits, ran in ((LOGITS, 3), (LOGITS // 2, 5)):
        state, other = random_state(program, 1, 0.5), random_state(program, 1, 0.5)
        records = np.zeros((2, 5, len(RECORD)), np.int64)
        for each in (state, other):
            put(each.output, 400, logits, "<i4")
        before = state.channel.copy()
        assert fast_walk(shared, state, Workspace(shared), records[0], True) == ran
        assert reference_walk(shared, other, records[1], True) == ran
        assert np.array_equal(state.channel, other.channel)
        assert np.array_equal(state.channel, before) == (ran == 3)


def load(**masks: int) -> Load:
    """3 blocks (taps) of 20 rows (inputs) of 150 bytes (outputs), side by side in DRAM."""
    strides = {"dram_block_stride": 3000, "dram_row_stride": 150}
    apart = {"buffer_block_stride": 3200, "buffer_row_stride": 160}
    where = {"region": Region.WEIGHT, "traffic": Traffic.WEIGHT, "source": 1500, "target": 0}
    return Load(**strides, **apart, **where, blocks=3, rows=20, bytes=150, **masks)


def test_weights_of_silent_channels_do_not_travel() -> None:
    """Rows 4..6 and 9..15; of columns, 64..127 are silent, which is the second of three bursts of a run."""

    def prepare(state: State) -> None:
        put(state.channel, 8, np.array([0b0000000110001111, 0xF]), "<u2")
        put(state.channel, 32, np.array([1, 0, 0, 1 << 15, 0, 0, 0, 0, 0xFFFF, 1]), "<u2")

    machine = load_machine("c-step").with_changes(accumulator_bits=32)
    for rows, columns in ((1, 0), (0, 1), (1, 1)):
        each = load(masks_rows=rows, row_mask=8, masks_columns=columns, column_mask=32)
        big = replace(program := program_of([each], machine), header=replace_dram(program.header, 16384))
        state = random_state(big, 3, 0.1)
        prepare(state)
        weights, dram = state.weight.copy(), state.private[:9000].reshape(3, 20, 150).copy()
        (regions, record), (other, _) = both_families(big, state, True)
        travels = np.ones((3, 20, 150), np.bool_)
        travels[:, [4, 5, 6, *range(9, 16)]] &= not rows
        travels[:, :, 64:128] &= not columns
        before = weights[:9600].reshape(3, 20, 160)
        for found in (regions["weight"], other["weight"]):
            now = found[:9600].reshape(3, 20, 160)
            assert np.array_equal(now[:, :, :150], np.where(travels, dram, before[:, :, :150]))
            assert np.array_equal(now[:, :, 150:], before[:, :, 150:]) and np.array_equal(found[9600:], weights[9600:])
        edges = np.flatnonzero(np.diff(np.concatenate([[0], travels.reshape(-1), [0]])))
        bursts = sum(-(-int(size) // 64) for size in edges[1::2] - edges[::2])
        assert record[0, RECORD.work] == bursts
        assert record[0, RECORD.dram_weight_bytes] == record[0, RECORD.weight_buffer_bytes] == travels.sum()


def replace_dram(header: Any, size: int) -> Any:
    return header.model_copy(update={"dram_bytes": size})


MASKS = {"row_mask": 8, "column_mask": 64}


@pytest.mark.parametrize("density", [0.05, 0.6])
@pytest.mark.parametrize("masks", [{"masks_rows": 1}, {"masks_columns": 1}, {"masks_rows": 1, "masks_columns": 1}])
def test_accumulate_computes_live_outputs_of_live_inputs(masks: dict[str, int], density: float) -> None:
    each = Accumulate(
        **window(40, 6),
        **MASKS,
        **masks,
        spikes=0,
        weights=7,
        accumulators=40,
        outputs=90,
        plane=1,
        fresh=0,
        sharing=Sharing.PAIR,
    )

    def prepare(state: State) -> None:
        bits = np.random.default_rng(4).random((len(state.spike), 8)) < density
        state.spike[:] = np.packbits(bits)
        state.mask[:] = 255
        half_live(state)

    ran = Ran(each, prepare)
    rows = ran.mask(8, 40) if "masks_rows" in masks else np.ones(40, np.int64)
    columns = ran.mask(64, 90) if "masks_columns" in masks else np.ones(90, np.int64)
    taps = under_taps(ran.spikes(0, 40, STEPS, 6, 6) * rows, 3, 1, 1)
    sums = np.tensordot(taps, ran.values("weight", "i1", 7, 9, 40, 90), axes=2) << 1
    added = (ran.values("output", "<i4", 40, *sums.shape) + sums) * columns
    assert np.array_equal(ran.values("output", "<i4", 40, *sums.shape, after=True), added)
    assert ran.record["sop_bit"] == taps.sum() * columns.sum()
    words = 2 * STEPS * 36 * columns.sum() * 4
    assert ran.record["output_buffer_bytes"] == (words if "masks_columns" in masks else 0)


def test_a_new_mask_is_seen_by_what_was_listed_under_the_old_one() -> None:
    """The same Accumulate before and after a guard that changes its row mask, once under another, once without."""
    first = Accumulate(
        **window(40, 6), row_mask=8, masks_rows=1, spikes=0, weights=7, accumulators=40, outputs=20, plane=0, fresh=1,
        sharing=0,
    )  # fmt: skip
    guard = Guard(counts_at=COUNTS, mask=8, channels=40, threshold=20)
    others = [replace(first, accumulators=30000), replace(first, row_mask=20), replace(first, masks_rows=0, row_mask=0)]
    program = program_of([first, guard, *others], load_machine("c-step").with_changes(accumulator_bits=32))
    state = random_state(program, 6, 0.1)
    moderate(state)
    half_live(state)
    (fast, records), (reference, _) = both_families(program, state, True)
    assert np.array_equal(fast["output"], reference["output"])
    assert len({int(records[index, RECORD.sop_bit]) for index in (0, 2, 3, 4)}) == 4


@pytest.mark.parametrize("masks", [{"masks_rows": 1}, {"masks_columns": 1}, {"masks_rows": 1, "masks_columns": 1}])
def test_depthwise_convolves_live_channels(masks: dict[str, int]) -> None:
    ran = Ran(
        Depthwise(**window(70, 10), **MASKS, **masks, spikes=100, weights=7, accumulators=40, plane=1, fresh=0),
        half_live,
    )
    rows = ran.mask(8, 70) if "masks_rows" in masks else np.ones(70, np.int64)
    columns = ran.mask(64, 70) if "masks_columns" in masks else np.ones(70, np.int64)
    taps = under_taps(ran.spikes(100, 70, STEPS, 6, 6) * rows * columns, 3, 1, 1)
    sums = (taps * ran.values("weight", "i1", 7, 9, 70)).sum(axis=3) << 1
    added = (ran.values("output", "<i4", 40, *sums.shape) + sums) * columns
    assert np.array_equal(ran.values("output", "<i4", 40, *sums.shape, after=True), added)
    assert ran.record["sop_bit"] == taps.sum() and taps.any()


def test_multiply_computes_live_outputs() -> None:
    each = Multiply(
        **window(9, 9), values=0, weights=7, accumulators=40, outputs=90, fresh=1, masks_columns=1, column_mask=64
    )
    ran = Ran(each, half_live)
    columns = ran.mask(64, 90)
    taps = under_taps(ran.values("spike", "i1", 0, STEPS, 6, 6, 9), 3, 1, 1)
    sums = np.tensordot(taps, ran.values("weight", "i1", 7, 9, 9, 90), axes=2) * columns
    assert np.array_equal(ran.values("output", "<i4", 40, *sums.shape, after=True), sums)
    live, inside = int(columns.sum()), int(under_taps(np.ones((STEPS, 6, 6, 1), np.int64), 3, 1, 1).sum())
    assert ran.record == dict.fromkeys(ran.record, 0) | {
        "work": inside * 9 * live, "mac": inside * 9 * live, "weight_buffer_bytes": 81 * live,
        "output_buffer_bytes": 4 * STEPS * 36 * live,
    }  # fmt: skip


def test_masked_pixels_have_bytes_of_their_own() -> None:
    each = Accumulate(
        **window(40, 4), row_mask=8, masks_rows=1, spikes=0, weights=7, accumulators=40, outputs=20, plane=0, fresh=1,
        sharing=0,
    )  # fmt: skip
    with pytest.raises(CStepError, match="pixels overlap"):
        decoded(program_of([each], load_machine("c-step")))
