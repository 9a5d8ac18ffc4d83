"""Instructions that leave tokens out: what each means and counts, said again in a few lines beside both families."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from ran import RESULT, STEPS, Integers, Ran, put

from isa.instructions import (
    Accumulate,
    Attend,
    Fire,
    Keep,
    KeepNeurons,
    KeepRows,
    KeepTokens,
    KeepTop,
    Rescale,
    ScoreSpikes,
    ScoreValues,
)
from isa.machine import load_machine
from isa.word import Charge, Sharing
from runtime.record import RECORD
from runtime.state import State

KEPT_AT = 3000
MACHINE = load_machine("c-step")
NOTHING = dict.fromkeys(RECORD._asdict(), 0)


def latch(kind: type[Keep], tokens: int) -> list[Keep]:
    return [kind(kept=KEPT_AT, steps=STEPS, tokens=tokens)]


def kept_of(ran: Ran, tokens: int) -> Integers:
    """[steps, tokens] of what a test latches; some of it, else it says nothing."""
    kept = ran.spikes(KEPT_AT, 1, STEPS, tokens)[..., 0]
    assert 0 < kept.sum() < kept.size
    return kept


@pytest.mark.parametrize("kind", Keep.__subclasses__())
def test_a_latch_takes_the_lowest_bit_of_every_word(kind: type[Keep]) -> None:
    each = kind(kept=KEPT_AT, steps=STEPS, tokens=19)
    ran = Ran(each)
    held = {KeepRows: "kept_rows", KeepNeurons: "kept_neurons", KeepTokens: "kept_tokens"}
    words = ran.values("spike", "<u2", KEPT_AT, STEPS * 19)
    assert (words > 1).any()
    assert np.array_equal(ran.after[held[kind]], words & 1)
    for name in set(ran.after) - {held[kind]}:
        assert np.array_equal(ran.after[name], ran.before[name])
    assert ran.record == NOTHING
    assert each.counts() == {"spike_buffer_bytes": 2 * STEPS * 19} and each.cost(MACHINE).cycles(0) == 1 + 3


TOKENS, INPUTS, OUTPUTS = 13, 37, 20


def accumulate(**changes: int) -> Accumulate:
    fields: dict[str, int] = {
        "steps": STEPS, "rows": 1, "columns": TOKENS, "input_rows": 1, "input_columns": TOKENS, "kernel_rows": 1,
        "kernel_columns": 1, "stride": 1, "top": 0, "left": 0, "inputs": INPUTS, "pixel_stride": 6,
        "step_stride": 6 * TOKENS, "spikes": 100, "weights": 7, "accumulators": 40, "outputs": OUTPUTS, "plane": 1,
        "fresh": 0, "sharing": Sharing.PAIR, "kept": 1,
    }  # fmt: skip
    return Accumulate(**fields | changes)


@pytest.mark.parametrize("fresh", [0, 1])
def test_only_kept_tokens_are_accumulated(fresh: int) -> None:
    """Of the others nothing is added; accumulators that start from zero are zero there."""
    ran = Ran(accumulate(fresh=fresh), behind=latch(KeepRows, TOKENS))
    spikes = ran.spikes(100, INPUTS, STEPS, TOKENS) * kept_of(ran, TOKENS)[..., None]
    sums = spikes @ ran.values("weight", "i1", 7, INPUTS, OUTPUTS) << 1
    before = 0 if fresh else ran.values("output", "<i4", 40, *sums.shape)
    assert np.array_equal(ran.values("output", "<i4", 40, *sums.shape, after=True), before + sums)


@pytest.mark.parametrize("fresh", [0, 1])
@pytest.mark.parametrize("sharing", [Sharing.NONE, Sharing.PAIR])
def test_pairs_are_made_of_kept_tokens(sharing: Sharing, fresh: int) -> None:
    """Kept tokens of a step move together: fewer pairs, rounds of four pairs of two steps, words only of those."""
    ran = Ran(accumulate(sharing=sharing, fresh=fresh), behind=latch(KeepRows, TOKENS))
    kept, spikes = kept_of(ran, TOKENS), ran.spikes(100, INPUTS, STEPS, TOKENS)
    assert not np.array_equal(kept[0], kept[1])
    shares = sharing == Sharing.PAIR
    expected, busy = dict(NOTHING), np.zeros((STEPS, 8), np.int64)
    for step in range(STEPS):
        left = [set(np.flatnonzero(row)) for row in spikes[step][kept[step] == 1]]
        for number, first in enumerate(range(0, len(left), 2)):
            one, two = left[first], left[first + 1] if first + 1 < len(left) else set[int]()
            bits, common, union = len(one) + len(two), len(one & two), len(one | two)
            read = len({channel // 16 for channel in one | two})
            expected["sop_bit"] += bits * OUTPUTS
            expected["common"] += common * OUTPUTS
            expected["sop_union"] += union * OUTPUTS
            expected["merges"] += 2 * OUTPUTS * (common > 0) * shares
            expected["words_read"] += read
            expected["words_skipped"] += 3 - read
            expected["weight_buffer_bytes"] += (union if shares else bits) * OUTPUTS
            busy[step, number] = (union + 2 * (common > 0) if shares else bits) + 4
    expected["sop_value"] = 2 * expected["sop_bit"]
    expected["spike_buffer_bytes"] = 2 * expected["words_read"]
    expected["output_buffer_bytes"] = 4 * int(kept.sum()) * OUTPUTS * (1 if fresh else 2)
    expected["work"] = busy[:, :4].max() + busy[:, 4:].max()
    assert ran.record == expected
    all_of_them = Ran(accumulate(sharing=sharing, fresh=fresh, kept=0))
    assert ran.record["work"] < all_of_them.record["work"]


def test_one_token_kept_is_one_round_of_one_pair() -> None:
    """Without any, nothing is walked at all."""

    def prepare(many: int) -> Any:
        def only(state: State) -> None:
            put(state.spike, KEPT_AT, (np.arange(STEPS * TOKENS) % TOKENS < many).astype(np.int64), "<u2")
            mask = np.packbits(state.spike.view("<u2") != 0, bitorder="little")
            state.mask[: len(mask)] = mask

        return only

    one = Ran(accumulate(), prepare(1), latch(KeepRows, TOKENS))
    bits = one.spikes(100, INPUTS, STEPS, TOKENS)[:, 0].sum(axis=1)
    assert one.record["work"] == bits.max() + 4 and one.record["sop_bit"] == bits.sum() * OUTPUTS
    assert one.record["common"] == one.record["merges"] == 0
    none = Ran(accumulate(), prepare(0), latch(KeepRows, TOKENS))
    assert none.record == NOTHING


PIXELS, NEURONS = 9, 37


def fire(**changes: int) -> Fire:
    """37 integrate-and-fire neurons at each of 9 pixels."""
    fields: dict[str, Any] = {
        "accumulators": 0, "constants": 4, "membranes": 60000, "residual": 0, "result": RESULT, "residual_planes": 0,
        "planes": 1, "steps": STEPS, "pixels": PIXELS, "outputs": NEURONS, "drop": 0, "shift": 0, "charge": Charge.IF,
        "multiplier": 1, "divisor": 0, "start": 0, "soft": 1, "levels": 0, "ties_even": 0, "narrow": 0,
        "plane_stride": 108, "step_stride": 54, "pixel_stride": 6, "kept": 1,
    }  # fmt: skip
    return Fire(**fields | changes)


def moderate(state: State) -> None:
    """Accumulators and membranes of a few hundred, biases of 7, thresholds of 300."""
    random = np.random.default_rng(2)
    put(state.constant, 4, np.repeat([7, 300], NEURONS), "<i4")
    put(state.output, 0, random.integers(-200, 500, STEPS * PIXELS * NEURONS), "<i4")
    put(state.output, 60000, random.integers(-99, 299, PIXELS * NEURONS), "<i2")


@pytest.mark.parametrize("start", [0, 1])
def test_neurons_that_are_left_out_keep_their_membranes(start: int) -> None:
    """They fire nothing, whatever their currents; those that start are 0."""
    ran = Ran(fire(start=start), moderate, latch(KeepNeurons, PIXELS))
    kept, currents = kept_of(ran, PIXELS), ran.values("output", "<i4", 0, STEPS, PIXELS, NEURONS) + 7
    v = ran.values("output", "<i2", 60000, PIXELS, NEURONS) * (1 - start)
    first, spikes = v, np.zeros_like(currents)
    for step in range(STEPS):
        h = v + currents[step]
        spikes[step] = (h >= 300) & (kept[step] == 1)[:, None]
        v = np.where(kept[step][:, None] == 1, h - 300 * spikes[step], v)
    assert np.array_equal(ran.spikes(RESULT, NEURONS, STEPS, PIXELS, after=True), spikes) and spikes.any()
    after = ran.values("output", "<i2", 60000, PIXELS, NEURONS, after=True)
    never = ~kept.any(axis=0)
    assert never.any() and np.array_equal(after[never], first[never])
    assert np.array_equal(after, v)
    neurons = int(kept.sum()) * NEURONS
    touched = PIXELS if start else 2 * int(kept.any(axis=0).sum())
    assert ran.record == NOTHING | {
        "work": int(kept.sum()) * -(-NEURONS // MACHINE.neuron_lanes), "neuron_updates": neurons,
        "output_buffer_bytes": 4 * neurons + 2 * touched * NEURONS, "constant_buffer_bytes": 8 * NEURONS,
    }  # fmt: skip


def test_the_residual_of_a_token_that_is_left_out_stays() -> None:
    ran = Ran(fire(residual_planes=1, planes=2, start=1), moderate, latch(KeepNeurons, PIXELS))
    kept, residual = kept_of(ran, PIXELS), ran.spikes(0, NEURONS, STEPS, PIXELS)
    planes = ran.spikes(RESULT, NEURONS, 2, STEPS, PIXELS, after=True)
    sums = planes[0] + 2 * planes[1]
    assert np.array_equal(sums[kept == 0], residual[kept == 0])
    assert (sums - residual)[kept == 1].any()
    assert set(np.unique(sums - residual)) == {0, 1}


def test_levels_of_a_token_that_is_left_out_are_none() -> None:
    code = fire(levels=3, planes=2, charge=Charge.NONE)
    ran = Ran(code, moderate, latch(KeepNeurons, PIXELS))
    kept, planes = kept_of(ran, PIXELS), ran.spikes(RESULT, NEURONS, 2, STEPS, PIXELS, after=True)
    currents = ran.values("output", "<i4", 0, STEPS, PIXELS, NEURONS) + 7
    levels = np.clip(np.floor(currents / 300 + 0.5), 0, 3) * kept[..., None]
    assert np.array_equal(planes[0] + 2 * planes[1], levels) and levels.max() == 2


@pytest.mark.parametrize("adds", [0, 1])
def test_rescaled_values_of_tokens_that_are_left_out_are_0_and_what_is_added_stays(adds: int) -> None:
    def prepare(state: State) -> None:
        put(state.constant, 8, np.repeat([300, 512], NEURONS), "<i4")
        put(state.output, 0, np.random.default_rng(1).integers(-9000, 9000, STEPS * PIXELS * NEURONS), "<i4")

    fields = {"accumulators": 0, "constants": 8, "addend": 12000, "result": 60000, "divisor": 10, "adds": adds}
    each = Rescale(**fields, steps=STEPS, pixels=PIXELS, outputs=NEURONS, narrow=0, small=0, kept=1)
    ran = Ran(each, prepare, latch(KeepNeurons, PIXELS))
    kept, sums = kept_of(ran, PIXELS), ran.values("output", "<i4", 0, STEPS, PIXELS, NEURONS)
    values = (((sums * 512 + 512) >> 10) + 300) * kept[..., None]
    if adds:
        values = np.clip(values + ran.values("output", "<i2", 12000, *values.shape), -32768, 32767)
    assert np.array_equal(ran.values("output", "<i2", 60000, *values.shape, after=True), values)
    made = int(kept.sum()) * NEURONS
    assert ran.record == NOTHING | {"work": int(kept.sum()), "mac": made, "output_buffer_bytes": 4 * made}
    assert each.cost(MACHINE).cycles(ran.record["work"]) == 8 + int(kept.sum()) * -(-NEURONS // MACHINE.neuron_lanes)
    moved = 2 * STEPS * PIXELS * NEURONS
    assert each.counts()["output_buffer_bytes"] == moved * (1 + adds)


HEADS, WIDTH, VALUES = 2, 24, 40


@pytest.mark.parametrize("values_first", [0, 1])
def test_attention_is_that_of_the_kept_tokens(values_first: int) -> None:
    """5 of 9 tokens ask, from the third on; multiply-accumulates are those of what is left."""
    tokens = {"queries": 5, "keys": 9, "first_query": 3, "heads": HEADS, "width": WIDTH, "value_width": VALUES}
    strides = {"pixel_stride": 6, "query_step_stride": 30, "key_step_stride": 54}
    strides |= {"value_pixel_stride": 10, "value_step_stride": 90}
    places = {"q": 0, "k": 1000, "v": 2000, "accumulators": 64, "first_bit": 0}
    planes = {"q_planes": 1, "k_planes": 1, "v_planes": 1, "steps": STEPS}
    each = Attend(**tokens, **strides, **places, **planes, values_first=values_first, kept=1)
    ran = Ran(each, behind=latch(KeepTokens, 9))
    kept = kept_of(ran, 9)
    asked = kept[:, 3:8]
    q = ran.spikes(0, HEADS * WIDTH, STEPS, 5) * asked[..., None]
    k = ran.spikes(1000, HEADS * WIDTH, STEPS, 9) * kept[..., None]
    v = ran.spikes(2000, HEADS * VALUES, STEPS, 9) * kept[..., None]
    heads = [x.reshape(*x.shape[:2], HEADS, -1) for x in (q, k, v)]
    mixed = np.einsum("sihc,sjhc,sjhd->sihd", *heads)
    assert np.array_equal(ran.values("output", "<i4", 64, *mixed.shape, after=True), mixed) and mixed.any()
    work = 0
    for queries, keys in zip(asked.sum(axis=1), kept.sum(axis=1), strict=True):
        each_head = WIDTH * VALUES * (keys + queries) if values_first else queries * keys * (WIDTH + VALUES)
        work += HEADS * int(each_head)
    assert ran.record == NOTHING | {"work": work, "mac": work} and each.counts()["mac"] == 0
    assert each.cost(MACHINE).cycles(work) == 8 + -(-work // MACHINE.sfu_multipliers)


ROWS, COLUMNS, CHANNELS = 4, 5, 20


def window_sums(x: Integers, before: Integers, kernel: int) -> Integers:
    """[rows, columns, 4] of values [rows, columns, channels] and those a timestep before, token by token."""
    sums, reach = np.zeros((*x.shape[:2], 4), np.int64), kernel // 2
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            near = x[max(r - reach, 0) : r + reach + 1, max(c - reach, 0) : c + reach + 1].sum(axis=(0, 1))
            own, change = x[r, c], np.abs(x[r, c] - before[r, c])
            sums[r, c] = own @ near, own @ own, near @ near, change.sum()
    return sums


def pooled_sums(x: Integers) -> Integers:
    """Likewise of values of all steps together."""
    total, number = x.sum(axis=0), x.sum(axis=-1)
    change = sum(abs(after - before) for before, after in pairwise(number))
    return np.stack([total.sum(-1), (total**2).sum(-1), np.full(change.shape, x.shape[-1]), change], axis=-1)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("steps", [1, 2])
def test_scores_of_counts_compare_a_token_with_its_neighbours_and_with_itself(steps: int, kernel: int) -> None:
    """Rows 1 and 2 of a tile of 4 rows; what the sums held before is added to."""
    row = 2 * 2 * COLUMNS
    each = ScoreSpikes(
        sums=400, values=200, steps=steps, rows=2, columns=COLUMNS, input_rows=ROWS, top=1, kernel=kernel,
        inputs=CHANNELS, step_stride=ROWS * row, drop=1, pooled=0, fresh=0, planes=3, plane_stride=steps * ROWS * row,
    )  # fmt: skip
    ran = Ran(each)
    bits = ran.spikes(200, CHANNELS, 3, steps, ROWS, COLUMNS)
    counts = np.tensordot([1, 2, 4], bits, axes=1) >> 1
    before = counts[0] if steps == 2 else np.zeros_like(counts[0])
    sums = ran.values("output", "<i4", 400, 2, COLUMNS, 4) + window_sums(counts[-1], before, kernel)[1:3]
    assert np.array_equal(ran.values("output", "<i4", 400, *sums.shape, after=True), sums)
    operations = 2 * COLUMNS * CHANNELS * (kernel**2 + 4)
    assert each.counts() == {
        "token_scores": operations, "output_buffer_bytes": 2 * 16 * 2 * COLUMNS,
        "spike_buffer_bytes": 3 * steps * ROWS * row,
    }  # fmt: skip
    assert each.cost(MACHINE).cycles(0) == 8 + -(-operations // MACHINE.sfu_multipliers)
    assert ran.record == NOTHING


@pytest.mark.parametrize("pooled", [0, 1])
def test_scores_of_a_stream(pooled: int) -> None:
    steps = 4 if pooled else 2
    each = ScoreValues(
        sums=60000, values=10, steps=steps, rows=ROWS, columns=COLUMNS, input_rows=ROWS, top=0, kernel=3,
        inputs=CHANNELS, step_stride=2 * ROWS * COLUMNS * CHANNELS, drop=4, pooled=pooled, fresh=1,
    )  # fmt: skip
    ran = Ran(each, lambda state: put(state.output, 10, np.random.default_rng(3).integers(-9000, 9000, 1600), "<i2"))
    values = ran.values("output", "<i2", 10, steps, ROWS, COLUMNS, CHANNELS) >> 4
    sums = pooled_sums(values) if pooled else window_sums(values[1], values[0], 3)
    assert np.array_equal(ran.values("output", "<i4", 60000, *sums.shape, after=True), sums)
    operations = ROWS * COLUMNS * CHANNELS * (3 + steps if pooled else 13)
    moved = 16 * ROWS * COLUMNS + 2 * steps * ROWS * COLUMNS * CHANNELS
    assert each.counts() == {"token_scores": operations, "output_buffer_bytes": moved}


def choice(keep: int, spatial: int, temporal: int, tokens: int = 20) -> KeepTop:
    scale = {"multiplier": 23637, "divisor": 12}
    return KeepTop(
        sums=400, kept=RESULT, steps=3, tokens=tokens, keep=keep, spatial=spatial, temporal=temporal, **scale
    )


def sums_of_20(state: State) -> None:
    """Sums as spikes of 64 channels have them, the last ten tokens' those of the first."""
    random = np.random.default_rng(5)
    spikes = random.integers(0, 2, (10, 64)) * random.integers(0, 2, (10, 1))
    near = spikes + random.integers(0, 9, (10, 64))
    change = random.integers(0, 64, 10)
    sums = np.stack([(spikes * near).sum(1), (spikes**2).sum(1), (near**2).sum(1), change], axis=-1)
    put(state.output, 400, np.concatenate([sums, sums]).reshape(-1), "<i4")


@pytest.mark.parametrize("keep", [0, 1, 7, 10, 19, 20])
@pytest.mark.parametrize(("spatial", "temporal"), [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_the_best_are_kept_and_of_equal_ones_the_first(spatial: int, temporal: int, keep: int) -> None:
    """Scores in float64; two that differ by less than a thousandth of the largest may be either way round."""
    ran = Ran(choice(keep, spatial, temporal), sums_of_20)
    words = ran.values("spike", "<u2", RESULT, 3, 20, after=True)
    assert np.array_equal(words, np.broadcast_to(words[0], words.shape)) and set(np.unique(words)) <= {0, 1}
    kept, sums = words[0] == 1, ran.values("output", "<i4", 400, 20, 4).astype(np.float64)
    assert kept.sum() == keep
    cosine = sums[:, 0] / np.maximum(np.sqrt(sums[:, 1] * sums[:, 2]), 1e-9)
    score = np.zeros(20)
    for flag, exponents in ((spatial, 1 - cosine), (temporal, sums[:, 3] * 23637 / 2**12 / 1024 * np.log(2))):
        score += flag * np.exp(exponents) / np.exp(exponents).sum()
    if 0 < keep < 20:
        assert score[kept].min() >= score[~kept].max() - 1e-3 * score.max()
    copies = kept.reshape(2, 10)
    assert (copies[0] >= copies[1]).all(), "the first of two equal ones goes first"
    mask = np.unpackbits(ran.after["mask"], bitorder="little")[RESULT // 2 : RESULT // 2 + 60]
    assert np.array_equal(mask, words.reshape(-1)), "the word mask follows"


def test_what_a_choice_counts() -> None:
    each = choice(7, 1, 1)
    assert Ran(each, sums_of_20).record == NOTHING
    assert each.counts() == {"token_scores": 800, "output_buffer_bytes": 320, "spike_buffer_bytes": 120}
    assert each.cost(MACHINE).cycles(0) == 8 + 800 // MACHINE.sfu_multipliers


def test_sums_that_no_values_have_still_give_a_choice() -> None:
    """A program may leave anything where sums are read: the root of a negative number counts as 0."""

    def wild(state: State) -> None:
        least = -(1 << 31)
        sums = [[5, -3, 7, 0], [least, least, least, least], [5, 3, -7, 0], [-5, 9, 9, 1], [0, 0, 0, least]]
        put(state.output, 400, np.array(sums).reshape(-1), "<i4")

    ran = Ran(choice(1, 1, 0, 5), wild)
    kept = ran.values("spike", "<u2", RESULT, 5, after=True)
    assert kept.tolist() == [0, 1, 0, 0, 0], "a cosine of -1 is the largest score"
