"""Halting totals and weights token by token, the tokens that go on, and sums by the weights."""

from __future__ import annotations

from numba import njit

from isa import scores
from isa.instructions import BIAS_ZERO
from isa.word import Gives
from runtime.fast.dma import refresh_mask
from runtime.fast.held import forget
from runtime.fast.places import HALT_SPIKES, HALT_VALUES, KEEP_BELOW, WEIGH_SPIKES, WEIGH_VALUES
from runtime.fast.scalar import load_64, load_i16, load_i32, load_u16, lowest_bit, store_16, store_32

SIGMOID = scores.SIGMOID
ONE = 1 << scores.WEIGHT_BITS
REST, WHOLE = int(Gives.REST), int(Gives.WHOLE)


@njit
def halt_spikes(row, memories):
    """Of spikes and counts; both kinds of instruction have the same first columns."""
    count = row[HALT_SPIKES.steps] * row[HALT_SPIKES.tokens]
    for value in range(count):
        x = 0
        for plane in range(row[HALT_SPIKES.planes]):
            word = load_u16(memories.spike + row[HALT_SPIKES.values_at] + 2 * (plane * count + value))
            x += (word & 1) << plane
        halt_token(row, memories, value, x)


@njit
def halt_values(row, memories):
    """Of a stream."""
    for value in range(row[HALT_VALUES.steps] * row[HALT_VALUES.tokens]):
        halt_token(row, memories, value, load_i16(memories.output + row[HALT_VALUES.values_at] + 2 * value))


@njit
def halt_token(row, memories, value, x):
    """Total and weight of one token at one step."""
    step, token = value // row[HALT_SPIKES.tokens], value % row[HALT_SPIKES.tokens]
    sums = memories.output + row[HALT_SPIKES.sums] + 2 * token
    added = 0 if row[HALT_SPIKES.start] and step == 0 else load_i16(sums)
    entered = load_i16(memories.output + row[HALT_SPIKES.before] + 4 * value) if row[HALT_SPIKES.follows] else 0
    kept = entered < row[HALT_SPIKES.limit]
    multiplier = -row[HALT_SPIKES.multiplier] if row[HALT_SPIKES.negative] else row[HALT_SPIKES.multiplier]
    half = 1 << (row[HALT_SPIKES.divisor] - 1) if row[HALT_SPIKES.divisor] else 0
    place = ((x * multiplier + half) >> row[HALT_SPIKES.divisor]) + row[HALT_SPIKES.bias] - BIAS_ZERO
    score = SIGMOID[min(max(place, 0), len(SIGMOID) - 1)] if kept else 0
    added = min(added + score, ONE)
    total = min(entered + added, ONE)
    weight = ONE - entered if total >= row[HALT_SPIKES.limit] or row[HALT_SPIKES.gives] == REST else score
    if row[HALT_SPIKES.gives] == WHOLE:
        weight = ONE
    store_16(sums, added)
    store_16(memories.output + row[HALT_SPIKES.state] + 4 * value, total)
    store_16(memories.output + row[HALT_SPIKES.state] + 4 * value + 2, weight if kept else 0)


@njit
def keep_below(row, memories, scratch):
    """1 where the total is below the limit."""
    count = row[KEEP_BELOW.steps] * row[KEEP_BELOW.tokens]
    forget(scratch.held, row[KEEP_BELOW.kept], 2 * count)
    for value in range(count):
        total = load_i16(memories.output + row[KEEP_BELOW.state] + 4 * value)
        store_16(memories.spike + row[KEEP_BELOW.kept] + 2 * value, 1 if total < row[KEEP_BELOW.limit] else 0)
    refresh_mask(memories, row[KEEP_BELOW.kept], 2 * count)


@njit
def rounded_weight(row, memories, value):
    """The weight of a token at a step; both kinds of instruction have the same first columns."""
    weight = load_i16(memories.output + row[WEIGH_SPIKES.state] + 4 * value + 2)
    return (weight + (1 << row[WEIGH_SPIKES.drop] >> 1)) >> row[WEIGH_SPIKES.drop]


@njit
def clear_features(row, memories):
    """Features that start from zero."""
    for channel in range(row[WEIGH_SPIKES.inputs] if row[WEIGH_SPIKES.fresh] else 0):
        store_32(memories.output + row[WEIGH_SPIKES.features] + 4 * channel, 0)


@njit
def weigh_spikes(row, memories):
    """Spikes times weights, event by event."""
    clear_features(row, memories)
    inputs, features = row[WEIGH_SPIKES.inputs], memories.output + row[WEIGH_SPIKES.features]
    for value in range(row[WEIGH_SPIKES.steps] * row[WEIGH_SPIKES.tokens]):
        added = rounded_weight(row, memories, value) << row[WEIGH_SPIKES.plane]
        pixel = memories.spike + row[WEIGH_SPIKES.spikes] + 2 * ((inputs + 15) >> 4) * value
        for channel in range(0, inputs, 64):
            word = load_64(pixel + (channel >> 3))
            if inputs - channel < 64:
                word &= (1 << (inputs - channel)) - 1
            while word != 0:
                place = features + 4 * (channel + lowest_bit(word))
                store_32(place, load_i32(place) + added)
                word &= word - 1


@njit
def weigh_values(row, memories):
    """Values of a stream times weights."""
    clear_features(row, memories)
    inputs, features = row[WEIGH_VALUES.inputs], memories.output + row[WEIGH_VALUES.features]
    values = memories.output + row[WEIGH_VALUES.values]
    for value in range(row[WEIGH_VALUES.steps] * row[WEIGH_VALUES.tokens]):
        weight = rounded_weight(row, memories, value)
        for channel in range(inputs):
            place = features + 4 * channel
            store_32(place, load_i32(place) + weight * load_i16(values))
            values += 2
