"""Attend, the sums and Classify, driven by the set bits.

Attention is computed as q (kT v) whatever the order that the instruction counts: the integers are the same, and at
spiking densities few rows of kT v are touched.
"""

from __future__ import annotations

from numba import njit

from runtime.fast.places import ATTEND, CLASSIFY, SUM, SUM_HEADS, SUM_VALUES
from runtime.fast.scalar import load_64, load_i8, load_i32, load_u8, load_u32, lowest_bit, popcount, store_32
from runtime.fast.tokens import count_kept
from runtime.fast.vector import choose, store_lanes, vector_load, vector_splat, vector_store, vector_widen
from runtime.record import RECORD

LANES = 16

_load_32s, _splat = vector_load(LANES, 32), vector_splat(LANES, 32)
_load_16s, _widen = vector_load(LANES, 16), vector_widen(32)


@njit
def bits_at(address, bit, count):
    """`count` (at most 16) bits from bit `bit` behind a byte address on, in the low end of the result."""
    return (load_u32(address + (bit >> 3)) >> (bit & 7)) & ((1 << count) - 1)


@njit
def clear_head(row, head):
    """head[c', c] = 0."""
    values = row[ATTEND.value_width]
    for channel in range(row[ATTEND.width]):
        for column in range(0, values, LANES):
            vector_store(head + 4 * (channel * (values + LANES) + column), _splat(0))


@njit
def keys_times_values(row, keys, values, number, head, plane, kept):
    """head[c', c] += 1 << plane for every key with bit c' of k and bit c of v, in head `number`.

    `kept`, unless 0, is where it says which keys there are.
    """
    width, values_width, one, none = row[ATTEND.width], row[ATTEND.value_width], _splat(1 << plane), _splat(0)
    first, first_value = row[ATTEND.first_bit] + number * width, row[ATTEND.first_bit] + number * values_width
    pitch = 4 * (values_width + LANES)
    for key in range(row[ATTEND.keys]):
        for part in range(0, width if kept == 0 or load_u8(kept + key) != 0 else 0, LANES):
            bits = bits_at(keys, first + part, min(width - part, LANES))
            while bits != 0:
                place = head + (part + lowest_bit(bits)) * pitch
                for column in range(0, values_width, LANES):
                    ones = bits_at(values, first_value + column, min(values_width - column, LANES))
                    vector_store(place, _load_32s(place) + choose(ones, one, none))
                    place += 4 * LANES
                bits &= bits - 1
        keys += row[ATTEND.pixel_stride]
        values += row[ATTEND.value_pixel_stride]


@njit
def query_head(row, queries, accumulators, first, head, plane, kept):
    """accumulator[i, c] = sum of the rows of `head` whose bit of q is set; planes after the first add to it."""
    width, values_width, shift = row[ATTEND.width], row[ATTEND.value_width], _splat(plane)
    pitch = 4 * (values_width + LANES)
    for query in range(row[ATTEND.queries]):
        looked_at = width if kept == 0 or load_u8(kept + query) != 0 else 0
        for column in range(0, values_width, LANES):
            total = _splat(0)
            for part in range(0, looked_at, LANES):
                bits = bits_at(queries, first + part, min(width - part, LANES))
                while bits != 0:
                    total += _load_32s(head + (part + lowest_bit(bits)) * pitch + 4 * column)
                    bits &= bits - 1
            if plane > 0:
                total = (total << shift) + _load_32s(accumulators + 4 * column)
            store_lanes(accumulators + 4 * column, total, (1 << min(values_width - column, LANES)) - 1)
        accumulators += 4 * row[ATTEND.heads] * values_width
        queries += row[ATTEND.pixel_stride]


@njit
def attend(row, memories, scratch, record):
    """All steps and heads of an Attend, every plane of an operand with every plane of the others."""
    kept, asked = 0, 0
    width, heads = row[ATTEND.value_width], row[ATTEND.heads]
    value_plane = row[ATTEND.steps] * row[ATTEND.value_step_stride]
    key_plane = row[ATTEND.steps] * row[ATTEND.key_step_stride]
    query_plane = row[ATTEND.steps] * row[ATTEND.query_step_stride]
    for step in range(row[ATTEND.steps]):
        keys = memories.spike + row[ATTEND.k] + step * row[ATTEND.key_step_stride]
        values = memories.spike + row[ATTEND.v] + step * row[ATTEND.value_step_stride]
        queries = memories.spike + row[ATTEND.q] + step * row[ATTEND.query_step_stride]
        place = 4 * step * row[ATTEND.queries] * heads * width
        accumulators = memories.output + row[ATTEND.accumulators] + place
        if row[ATTEND.kept]:
            kept = memories.kept_tokens + step * row[ATTEND.keys]
            asked = kept + row[ATTEND.first_query]
            record[RECORD.mac] += kept_products(row, kept, asked)
        for number in range(heads):
            first = row[ATTEND.first_bit] + number * row[ATTEND.width]
            clear_head(row, scratch.head)
            for k in range(row[ATTEND.k_planes]):
                for v in range(row[ATTEND.v_planes]):
                    keys_times_values(
                        row, keys + k * key_plane, values + v * value_plane, number, scratch.head, k + v, kept
                    )
            for q in range(row[ATTEND.q_planes]):
                place = accumulators + 4 * number * width
                query_head(row, queries + q * query_plane, place, first, scratch.head, q, asked)
    record[RECORD.work] = record[RECORD.mac]


@njit
def kept_products(row, kept, asked):
    """Multiply-accumulates of one step of the kept tokens."""
    keys, queries = count_kept(kept, row[ATTEND.keys]), count_kept(asked, row[ATTEND.queries])
    if row[ATTEND.values_first]:
        return row[ATTEND.heads] * row[ATTEND.width] * row[ATTEND.value_width] * (keys + queries)
    return row[ATTEND.heads] * (row[ATTEND.width] + row[ATTEND.value_width]) * keys * queries


@njit
def add_up(row, memories):
    """Spikes of a Sum, event by event."""
    inputs, features = row[SUM.inputs], memories.output + row[SUM.features]
    other, both = row[SUM.other] - row[SUM.spikes], row[SUM.both]
    if row[SUM.fresh]:
        for channel in range(inputs * (row[SUM.steps] if row[SUM.per_step] else 1)):
            store_32(features + 4 * channel, 0)
    for step in range(row[SUM.steps]):
        pixel = memories.spike + row[SUM.spikes] + step * row[SUM.step_stride]
        for _ in range(row[SUM.tokens]):
            for channel in range(0, inputs, 64):
                word = load_64(pixel + (channel >> 3))
                if both:
                    word &= load_64(pixel + other + (channel >> 3))
                if inputs - channel < 64:
                    word &= (1 << (inputs - channel)) - 1
                while word != 0:
                    place = features + 4 * (channel + lowest_bit(word))
                    store_32(place, load_i32(place) + (1 << row[SUM.plane]))
                    word &= word - 1
            pixel += row[SUM.pixel_stride]
        if row[SUM.per_step]:
            features += 4 * inputs


@njit
def sum_values(row, memories):
    """Values of a SumValues, sixteen channels at a time."""
    inputs, tokens = row[SUM_VALUES.inputs], row[SUM_VALUES.tokens]
    features, per_step = memories.output + row[SUM_VALUES.features], row[SUM_VALUES.per_step]
    for step in range(row[SUM_VALUES.steps]):
        values = memories.output + row[SUM_VALUES.values] + 2 * step * tokens * inputs
        fresh = row[SUM_VALUES.fresh] and (per_step or step == 0)
        for first in range(0, inputs, LANES):
            total = _splat(0) if fresh else _load_32s(features + 4 * first)
            value = values + 2 * first
            for _ in range(tokens):
                total += _widen(_load_16s(value))
                value += 2 * inputs
            store_lanes(features + 4 * first, total, (1 << min(inputs - first, LANES)) - 1)
        if per_step:
            features += 4 * inputs


@njit
def sum_heads(row, memories):
    """Spikes of every head of a SumHeads, up to 56 at a time."""
    width, accumulators = row[SUM_HEADS.width], memories.output + row[SUM_HEADS.accumulators]
    for step in range(row[SUM_HEADS.steps]):
        pixel = memories.spike + row[SUM_HEADS.spikes] + step * row[SUM_HEADS.step_stride]
        for _ in range(row[SUM_HEADS.tokens]):
            for head in range(row[SUM_HEADS.heads]):
                found = 0
                for part in range(0, width, 56):
                    bit = head * width + part
                    word = load_64(pixel + (bit >> 3)) >> (bit & 7)
                    found += popcount(word & ((1 << min(width - part, 56)) - 1))
                store_32(accumulators, found)
                accumulators += 4
            pixel += row[SUM_HEADS.pixel_stride]


@njit
def classify(row, memories):
    """The logits of a Classify."""
    outputs, logits = row[CLASSIFY.outputs], memories.output + row[CLASSIFY.logits]
    if row[CLASSIFY.fresh]:
        for output in range(outputs):
            store_32(logits + 4 * output, load_i32(memories.constant + row[CLASSIFY.constants] + 4 * output))
    weight, dropped = memories.weight + row[CLASSIFY.weights], 1 << row[CLASSIFY.drop] >> 1
    for channel in range(row[CLASSIFY.inputs]):
        feature = (load_i32(memories.output + row[CLASSIFY.features] + 4 * channel) + dropped) >> row[CLASSIFY.drop]
        for output in range(outputs):
            place = logits + 4 * output
            store_32(place, load_i32(place) + feature * load_i8(weight + output))
        weight += outputs
