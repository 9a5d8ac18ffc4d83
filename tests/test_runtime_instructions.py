"""What each instruction means, said again in a few lines of numpy beside a run of it by both kernel families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ran import RESULT, STEPS, Integers, Ran, put, under_taps, window

from isa.instructions import (
    Attend,
    Classify,
    Depthwise,
    Dilate,
    Fire,
    Load,
    Mask,
    Pool,
    PoolValues,
    Rescale,
    Sum,
    SumHeads,
    SumValues,
)
from isa.word import Charge, Region, Traffic
from runtime.record import RECORD
from runtime.state import State


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolves_every_channel_by_itself(stride: int) -> None:
    ran = Ran(Depthwise(**window(70, 10, stride=stride), spikes=100, weights=7, accumulators=40, plane=1, fresh=0))
    taps = under_taps(ran.spikes(100, 70, STEPS, 6, 6), 3, stride, 1)
    sums = (taps * ran.values("weight", "i1", 7, 9, 70)).sum(axis=3) << 1
    added = ran.values("output", "<i4", 40, *sums.shape) + sums
    assert np.array_equal(ran.values("output", "<i4", 40, *sums.shape, after=True), added)


def test_depthwise_counts_words_of_pixels_and_pairs_of_cycles() -> None:
    """16 channels: a word a pixel. Pairs of 2 of 6 columns; 4 pairs of 2 steps a round."""
    ran = Ran(Depthwise(**window(16, 2), spikes=0, weights=0, accumulators=0, plane=2, fresh=1))
    taps = under_taps(ran.spikes(0, 16, STEPS, 6, 6), 3, 1, 1)
    words = taps.any(axis=4).sum(axis=3)
    inside = under_taps(np.ones((STEPS, 6, 6, 1), np.int64), 3, 1, 1).sum()
    by_pair = words.reshape(STEPS, -1, 2).sum(axis=2)
    rounds = [by_pair[:, first : first + 4].max() + 4 for first in range(0, by_pair.shape[1], 4)]
    bits, read = taps.sum(), words.sum()
    assert ran.record == dict.fromkeys(RECORD._asdict(), 0) | {
        "work": sum(rounds), "sop_bit": bits, "sop_union": bits, "sop_value": 4 * bits, "words_read": read,
        "words_skipped": inside - read,
        "weight_buffer_bytes": 16 * read, "spike_buffer_bytes": 2 * read,
    }  # fmt: skip


@pytest.mark.parametrize(("narrow", "adds", "small"), [(0, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_rescale_multiplies_shifts_adds_and_clamps(narrow: int, adds: int, small: int) -> None:
    flags = {"narrow": narrow, "adds": adds, "small": small}
    places = {"accumulators": 0, "constants": 8, "addend": 12000, "result": RESULT}
    random, most = np.random.default_rng(1), 60 if small else 9000

    def prepare(state: State) -> None:
        constants = np.concatenate([random.integers(-99, 99, 37), random.integers(-1 << 12, 1 << 12, 37)])
        put(state.constant, 8, constants, "<i4")
        put(state.output, 0, random.integers(-most, most, 600), "<i2" if narrow else "<i4")
        put(state.output, 12000, random.integers(-most, most, 600), "<i2")

    ran = Ran(Rescale(**places, **flags, steps=STEPS, pixels=5, outputs=37, divisor=10), prepare)
    sums = ran.values("output", "<i2" if narrow else "<i4", 0, STEPS, 5, 37)
    bias, multiplier = ran.values("constant", "<i4", 8, 2, 37)
    top = 127 if small else 32767
    values = np.clip(np.floor_divide(sums * multiplier + (1 << 9), 1 << 10) + bias, -top - 1, top)
    if adds:
        values = np.clip(values + ran.values("output", "<i2", 12000, *values.shape), -top - 1, top)
    assert np.array_equal(ran.values("output", "i1" if small else "<i2", RESULT, *values.shape, after=True), values)
    assert len(np.unique(values)) > 50 and values.max() == top


HEADS = {"steps": STEPS, "tokens": 7, "heads": 3, "width": 20, "pixel_stride": 8, "step_stride": 56}


def test_a_mask_gates_channels_or_heads() -> None:
    places = {"spikes": 0, "mask": 1000, "result": RESULT}
    spikes = Ran(Mask(**HEADS, **places, by_head=0, mask_pixel_stride=0, mask_step_stride=8))
    kept = spikes.spikes(0, 60, STEPS, 7) & spikes.spikes(1000, 60, STEPS, 1)
    assert np.array_equal(spikes.spikes(RESULT, 60, STEPS, 7, after=True), kept) and kept.any()
    heads = Ran(Mask(**HEADS, **places, by_head=1, mask_pixel_stride=2, mask_step_stride=14))
    kept = heads.spikes(0, 60, STEPS, 7).reshape(STEPS, 7, 3, 20) & heads.spikes(1000, 3, STEPS, 7)[..., None]
    assert np.array_equal(heads.spikes(RESULT, 60, STEPS, 7, after=True), kept.reshape(STEPS, 7, 60)) and kept.any()


def test_pooling_takes_the_largest_value_of_a_stream() -> None:
    ran = Ran(PoolValues(**window(45, 90, stride=2), values=0, result=60000))
    pooled = under_taps(ran.values("output", "<i2", 0, STEPS, 6, 6, 45), 3, 2, 1, outside=-32768).max(axis=3)
    assert np.array_equal(ran.values("output", "<i2", 60000, *pooled.shape, after=True), pooled) and pooled.min() < 0


def test_pooling_takes_the_largest_count() -> None:
    tile = window(37, 6, stride=2)
    ran = Ran(Pool(**tile, spikes=0, result=RESULT, result_step_stride=54, planes=3))
    weights = np.array([1, 2, 4])[:, None, None, None, None]
    counts = (ran.spikes(0, 37, 3, STEPS, 6, 6) * weights).sum(axis=0)
    found = (ran.spikes(RESULT, 37, 3, STEPS, 3, 3, after=True) * weights).sum(axis=0)
    assert np.array_equal(found, under_taps(counts, 3, 2, 1).max(axis=3)) and found.max() == 7


def test_dilation_reaches_tokens_and_channels_of_the_same_head() -> None:
    ran = Ran(Dilate(**HEADS, spikes=0, result=RESULT, reach=2))
    bits = ran.spikes(0, 60, STEPS, 7).reshape(STEPS, 7, 3, 20)
    expected = np.zeros_like(bits)
    for step, token, head, channel in zip(*np.nonzero(bits), strict=True):
        expected[step, max(token - 2, 0) : token + 3, head, max(channel - 2, 0) : channel + 3] = 1
    assert np.array_equal(ran.spikes(RESULT, 60, STEPS, 7, after=True), expected.reshape(STEPS, 7, 60))
    assert 0 < expected.mean() < 1


def test_spikes_are_summed_by_head() -> None:
    ran = Ran(SumHeads(**HEADS, spikes=0, accumulators=400))
    sums = ran.spikes(0, 60, STEPS, 7).reshape(STEPS, 7, 3, 20).sum(axis=3)
    assert np.array_equal(ran.values("output", "<i4", 400, STEPS, 7, 3, after=True), sums)


@pytest.mark.parametrize("per_step", [0, 1])
def test_values_of_a_stream_are_summed(per_step: int) -> None:
    shape = {"steps": STEPS, "tokens": 9, "inputs": 37}
    ran = Ran(SumValues(**shape, values=10, features=RESULT, fresh=0, per_step=per_step))
    sums = ran.values("output", "<i2", 10, STEPS, 9, 37).sum(axis=1 if per_step else (0, 1))
    before = ran.values("output", "<i4", RESULT, *sums.shape)
    assert np.array_equal(ran.values("output", "<i4", RESULT, *sums.shape, after=True), before + sums)


@pytest.mark.parametrize("per_step", [0, 1])
def test_a_sum_over_spikes_that_both_trains_have(per_step: int) -> None:
    places = {"spikes": 0, "other": 1000, "features": RESULT}
    shape = {"steps": STEPS, "tokens": 9, "inputs": 37, "pixel_stride": 6, "step_stride": 54}
    ran = Ran(Sum(**places, **shape, plane=2, fresh=1, per_step=per_step, both=1))
    both = ran.spikes(0, 37, STEPS, 9) & ran.spikes(1000, 37, STEPS, 9)
    sums = 4 * both.sum(axis=1 if per_step else (0, 1))
    assert np.array_equal(ran.values("output", "<i4", RESULT, *sums.shape, after=True), sums) and sums.any()


def test_features_are_rounded_before_they_are_classified() -> None:
    ran = Ran(Classify(features=0, weights=3, constants=4, logits=9000, inputs=30, outputs=11, fresh=1, drop=3))
    features = np.floor(ran.values("output", "<i4", 0, 30) / 8 + 0.5).astype(np.int64)
    logits = features @ ran.values("weight", "i1", 3, 30, 11) + ran.values("constant", "<i4", 4, 11)
    assert np.array_equal(ran.values("output", "<i4", 9000, 11, after=True), logits)


def test_attention_of_counts_weighs_their_planes_and_may_have_wider_values() -> None:
    tokens = {"queries": 5, "keys": 6, "heads": 2, "width": 24, "value_width": 40, "first_bit": 0, "steps": STEPS}
    strides = {"pixel_stride": 6, "query_step_stride": 30, "key_step_stride": 36}
    strides |= {"value_pixel_stride": 10, "value_step_stride": 60}
    planes = {"q_planes": 2, "k_planes": 3, "v_planes": 2}
    ran = Ran(Attend(**tokens, **strides, **planes, q=0, k=1000, v=2000, accumulators=64, values_first=0))

    def counts(address: int, many: int, number: int, width: int) -> Integers:
        bits = ran.spikes(address, 2 * width, many, STEPS, number).reshape(many, STEPS, number, 2, width)
        return np.tensordot(1 << np.arange(many), bits, axes=1)

    scores = np.einsum("sihc,sjhc->shij", counts(0, 2, 5, 24), counts(1000, 3, 6, 24))
    mixed = np.einsum("shij,sjhc->sihc", scores, counts(2000, 2, 6, 40))
    assert np.array_equal(ran.values("output", "<i4", 64, *mixed.shape, after=True), mixed)


def neurons(**changes: int) -> Fire:
    fields: dict[str, Any] = {
        "accumulators": 0, "constants": 4, "membranes": 60000, "residual": 0, "result": RESULT, "residual_planes": 0,
        "planes": 4, "steps": STEPS, "pixels": 5, "outputs": 37, "drop": 2, "shift": 1, "charge": Charge.NONE,
        "multiplier": 1, "divisor": 0, "start": 0, "soft": 0, "levels": 8, "ties_even": 1, "narrow": 1,
        "plane_stride": 60, "step_stride": 30, "pixel_stride": 6,
    }  # fmt: skip
    return Fire(**fields | changes)


def moderate(narrow: int) -> Callable[[State], None]:
    """Accumulators of a few hundred, biases 0 and thresholds 40."""

    def prepare(state: State) -> None:
        put(state.constant, 4, np.repeat([0, 40], 37), "<i4")
        put(state.output, 0, np.random.default_rng(2).integers(-200, 800, 370), "<i2" if narrow else "<i4")

    return prepare


@pytest.mark.parametrize("ties_even", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
def test_levels_are_rounded_quotients(ties_even: int, narrow: int) -> None:
    """Thresholds of 40 divide many of the currents, which are even, exactly in half."""
    ran = Ran(neurons(ties_even=ties_even, narrow=narrow), moderate(narrow))
    sums = ran.values("output", "<i2" if narrow else "<i4", 0, STEPS, 5, 37)
    currents = 2 * ((sums + 2) >> 2)
    quotients = currents / 40
    rounded = np.round(quotients) if ties_even else np.floor(quotients + 0.5)
    found = (ran.spikes(RESULT, 37, 4, STEPS, 5, after=True) * (1 << np.arange(4))[:, None, None, None]).sum(axis=0)
    assert np.array_equal(found, np.clip(rounded, 0, 8)) and len(np.unique(found)) == 9
    assert (quotients % 1 == 0.5).any()
    assert np.array_equal(ran.after["output"], ran.before["output"])


@pytest.mark.parametrize("soft", [0, 1])
def test_levels_with_a_membrane_reset_by_as_many_thresholds(soft: int) -> None:
    ran = Ran(neurons(charge=Charge.IF, start=1, soft=soft, levels=4, drop=0), moderate(narrow=1))
    currents = 2 * ran.values("output", "<i2", 0, STEPS, 5, 37)
    v = np.zeros((5, 37), np.int64)
    for step in range(STEPS):
        h = v + currents[step]
        level = np.clip(np.round(h / 40), 0, 4).astype(np.int64)
        v = np.where(level > 0, h - 40 * level if soft else 0, h)
        found = ran.spikes(RESULT, 37, 4, STEPS, 5, after=True)[:, step]
        assert np.array_equal((found * (1 << np.arange(4))[:, None, None]).sum(axis=0), level)
    assert np.array_equal(ran.values("output", "<i2", 60000, 5, 37, after=True), v)


def test_streams_travel_as_they_are() -> None:
    fields = {"blocks": 1, "rows": 4, "bytes": 64, "dram_block_stride": 0, "dram_row_stride": 64}
    strides = {"buffer_block_stride": 0, "buffer_row_stride": 128}
    each = Load(**fields, **strides, region=Region.OUTPUT, traffic=Traffic.STREAM, source=2048, target=0)
    assert each.counts() == {"dram_stream_bytes": 256, "output_buffer_bytes": 256}
    ran = Ran(each)
    rows = ran.values("output", "u1", 0, 4, 128, after=True)[:, :64]
    assert np.array_equal(rows.reshape(-1), ran.values("private", "u1", 2048 - 1500, 256))
