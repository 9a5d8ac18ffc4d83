"""Attend, Sum and Classify, driven by the set bits.

Attention is computed as q (kT v) whatever the order that the instruction counts: the integers are the same, and at
spiking densities few rows of kT v are touched.
"""

from __future__ import annotations

from numba import njit

from runtime.fast.places import ATTEND, CLASSIFY, SUM
from runtime.fast.scalar import load_64, load_i8, load_i32, load_u32, lowest_bit, store_32
from runtime.fast.vector import choose, store_lanes, vector_load, vector_splat, vector_store

LANES = 16

_load_32s, _splat = vector_load(LANES, 32), vector_splat(LANES, 32)


@njit
def bits_at(address, bit, count):
    """`count` (at most 16) bits from bit `bit` behind a byte address on, in the low end of the result."""
    return (load_u32(address + (bit >> 3)) >> (bit & 7)) & ((1 << count) - 1)


@njit
def keys_times_values(row, keys, values, first, head):
    """head[c', c] = how many keys have bit c' of k and bit c of v, for the head whose bits begin at `first`."""
    width = row[ATTEND.width]
    pitch = 4 * (width + LANES)
    for channel in range(width):
        for column in range(0, width, LANES):
            vector_store(head + channel * pitch + 4 * column, _splat(0))
    for _ in range(row[ATTEND.keys]):
        for part in range(0, width, LANES):
            bits = bits_at(keys, first + part, min(width - part, LANES))
            while bits != 0:
                place = head + (part + lowest_bit(bits)) * pitch
                for column in range(0, width, LANES):
                    ones = bits_at(values, first + column, min(width - column, LANES))
                    vector_store(place, _load_32s(place) + choose(ones, _splat(1), _splat(0)))
                    place += 4 * LANES
                bits &= bits - 1
        keys += row[ATTEND.pixel_stride]
        values += row[ATTEND.pixel_stride]


@njit
def query_head(row, queries, accumulators, first, head):
    """accumulator[i, c] = sum of the rows of `head` whose bit of q is set."""
    width = row[ATTEND.width]
    pitch = 4 * (width + LANES)
    for _ in range(row[ATTEND.queries]):
        for column in range(0, width, LANES):
            total = _splat(0)
            for part in range(0, width, LANES):
                bits = bits_at(queries, first + part, min(width - part, LANES))
                while bits != 0:
                    total += _load_32s(head + (part + lowest_bit(bits)) * pitch + 4 * column)
                    bits &= bits - 1
            store_lanes(accumulators + 4 * column, total, (1 << min(width - column, LANES)) - 1)
        accumulators += 4 * row[ATTEND.heads] * width
        queries += row[ATTEND.pixel_stride]


@njit
def attend(row, memories, scratch):
    """All steps and heads of an Attend."""
    width, heads = row[ATTEND.width], row[ATTEND.heads]
    for step in range(row[ATTEND.steps]):
        keys = memories.spike + row[ATTEND.k] + step * row[ATTEND.key_step_stride]
        values = memories.spike + row[ATTEND.v] + step * row[ATTEND.key_step_stride]
        queries = memories.spike + row[ATTEND.q] + step * row[ATTEND.query_step_stride]
        place = 4 * step * row[ATTEND.queries] * heads * width
        accumulators = memories.output + row[ATTEND.accumulators] + place
        for number in range(heads):
            first = row[ATTEND.first_bit] + number * width
            keys_times_values(row, keys, values, first, scratch.head)
            query_head(row, queries, accumulators + 4 * number * width, first, scratch.head)


@njit
def add_up(row, memories):
    """Spikes of a Sum, event by event."""
    inputs, features = row[SUM.inputs], memories.output + row[SUM.features]
    if row[SUM.fresh]:
        for channel in range(inputs):
            store_32(features + 4 * channel, 0)
    for step in range(row[SUM.steps]):
        pixel = memories.spike + row[SUM.spikes] + step * row[SUM.step_stride]
        for _ in range(row[SUM.tokens]):
            for channel in range(0, inputs, 64):
                word = load_64(pixel + (channel >> 3))
                if inputs - channel < 64:
                    word &= (1 << (inputs - channel)) - 1
                while word != 0:
                    place = features + 4 * (channel + lowest_bit(word))
                    store_32(place, load_i32(place) + (1 << row[SUM.plane]))
                    word &= word - 1
            pixel += row[SUM.pixel_stride]


@njit
def classify(row, memories):
    """The logits of a Classify."""
    outputs, logits = row[CLASSIFY.outputs], memories.output + row[CLASSIFY.logits]
    if row[CLASSIFY.fresh]:
        for output in range(outputs):
            store_32(logits + 4 * output, load_i32(memories.constant + row[CLASSIFY.constants] + 4 * output))
    weight = memories.weight + row[CLASSIFY.weights]
    for channel in range(row[CLASSIFY.inputs]):
        feature = load_i32(memories.output + row[CLASSIFY.features] + 4 * channel)
        for output in range(outputs):
            place = logits + 4 * output
            store_32(place, load_i32(place) + feature * load_i8(weight + output))
        weight += outputs
