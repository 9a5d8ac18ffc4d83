"""Kept tokens: latched, compacted for the PEs' pairs, scored and chosen."""

from __future__ import annotations

import numpy as np
from numba import njit

from isa import scores
from runtime.fast.dma import refresh_mask
from runtime.fast.held import forget, forget_masked
from runtime.fast.places import ACCUMULATE, KEEP, KEEP_TOP, SCORE_SPIKES, SCORE_VALUES
from runtime.fast.scalar import load_64, load_i16, load_i32, load_u8, load_u16, store_8, store_16, store_32, store_64

POWERS = scores.POWERS
PARTS = scores.PARTS


@njit
def keep(row, memories, latch):
    """The lowest bit of every word, a byte each."""
    place = memories.spike + row[KEEP.kept]
    for token in range(row[KEEP.steps] * row[KEEP.tokens]):
        store_8(latch + token, load_u16(place + 2 * token) & 1)


@njit
def keep_rows(row, memories, scratch):
    """As `keep`, for the PEs; what was counted of other tokens is forgotten."""
    forget_masked(scratch.held)
    keep(row, memories, memories.kept_rows)


@njit
def count_kept(kept, count):
    """How many of `count` bytes are 1."""
    found = 0
    for token in range(count):
        found += load_u8(kept + token)
    return found


@njit
def compacted(row, spikes, kept, target):
    """The pixels of one step that are kept, moved together at `target`, zeros behind them; returns how many."""
    size, stride, found = (row[ACCUMULATE.inputs] + 7) >> 3, row[ACCUMULATE.pixel_stride], 0
    columns = row[ACCUMULATE.columns]
    for pixel in range(columns):
        if load_u8(kept + pixel) != 0:
            for octet in range(0, size, 8):
                store_64(target + found * stride + octet, load_64(spikes + pixel * stride + octet))
            found += 1
    for pixel in range(found, columns):
        for octet in range(0, size, 8):
            store_64(target + pixel * stride + octet, 0)
    return found


@njit
def kept_pairs(kept, columns, first_step, steps):
    """The most pairs that any of some steps makes of its kept pixels."""
    most = 0
    for step in range(first_step, first_step + steps):
        most = max(most, (count_kept(kept + step * columns, columns) + 1) >> 1)
    return most


@njit
def value_of_spikes(row, memories, step, pixel, channel):
    """A spike or count of a ScoreSpikes' tile."""
    words = (row[SCORE_SPIKES.inputs] + 15) >> 4
    place = memories.spike + row[SCORE_SPIKES.values] + step * row[SCORE_SPIKES.step_stride]
    place += 2 * (pixel * words + (channel >> 4))
    value = 0
    for plane in range(row[SCORE_SPIKES.planes]):
        value += (load_u16(place + plane * row[SCORE_SPIKES.plane_stride]) >> (channel & 15) & 1) << plane
    return value >> row[SCORE_SPIKES.drop]


@njit
def value_of_stream(row, memories, step, pixel, channel):
    """A value of a ScoreValues' tile."""
    place = memories.output + row[SCORE_VALUES.values] + step * row[SCORE_VALUES.step_stride]
    return load_i16(place + 2 * (pixel * row[SCORE_VALUES.inputs] + channel)) >> row[SCORE_VALUES.drop]


@njit
def unpack_spikes(row, memories, step, values):
    """values [pixel, channel] of a step of a ScoreSpikes' tile."""
    for pixel in range(values.shape[0]):
        for channel in range(values.shape[1]):
            values[pixel, channel] = value_of_spikes(row, memories, step, pixel, channel)


@njit
def unpack_stream(row, memories, step, values):
    """Likewise of a ScoreValues' tile."""
    for pixel in range(values.shape[0]):
        for channel in range(values.shape[1]):
            values[pixel, channel] = value_of_stream(row, memories, step, pixel, channel)


@njit
def score_spikes(row, memories):
    """Sums of a tile of spikes or counts."""
    pixels, inputs = row[SCORE_SPIKES.input_rows] * row[SCORE_SPIKES.columns], row[SCORE_SPIKES.inputs]
    values = np.empty((row[SCORE_SPIKES.steps], pixels, inputs), np.int64)
    for step in range(row[SCORE_SPIKES.steps]):
        unpack_spikes(row, memories, step, values[step])
    add_sums(row, memories, values)


@njit
def score_values(row, memories):
    """Sums of a tile of a stream."""
    pixels, inputs = row[SCORE_VALUES.input_rows] * row[SCORE_VALUES.columns], row[SCORE_VALUES.inputs]
    values = np.empty((row[SCORE_VALUES.steps], pixels, inputs), np.int64)
    for step in range(row[SCORE_VALUES.steps]):
        unpack_stream(row, memories, step, values[step])
    add_sums(row, memories, values)


@njit
def add_sums(row, memories, values):
    """Add the sums of a tile, token by token; both kinds of instruction have the same first columns."""
    sums, columns = memories.output + row[SCORE_SPIKES.sums], row[SCORE_SPIKES.columns]
    found = np.empty(PARTS, np.int64)
    for r in range(row[SCORE_SPIKES.rows]):
        for c in range(columns):
            pixel = (row[SCORE_SPIKES.top] + r) * columns + c
            if row[SCORE_SPIKES.pooled]:
                pooled_sums(values, pixel, found)
            else:
                window_sums(row, values, pixel, c, found)
            for part in range(PARTS):
                held = 0 if row[SCORE_SPIKES.fresh] else load_i32(sums)
                store_32(sums, held + found[part])
                sums += 4


@njit
def pooled_sums(values, pixel, found):
    """Sums of spikes over time, and of what changed of their number."""
    steps, _, inputs = values.shape
    found[:] = 0
    for channel in range(inputs):
        total = 0
        for step in range(steps):
            total += values[step, pixel, channel]
        found[0] += total
        found[1] += total * total
    found[2] = inputs
    for step in range(1, steps):
        change = 0
        for channel in range(inputs):
            change += values[step, pixel, channel] - values[step - 1, pixel, channel]
        found[3] += abs(change)


@njit
def window_sums(row, values, pixel, column, found):
    """Sums of products with the window around a pixel, and of what changed since the step before."""
    steps, pixels, inputs = values.shape
    reach, columns = row[SCORE_SPIKES.kernel] >> 1, row[SCORE_SPIKES.columns]
    line, rows = pixel // columns, pixels // columns
    found[:] = 0
    for channel in range(inputs):
        near = 0
        for y in range(max(line - reach, 0), min(line + reach + 1, rows)):
            for x in range(max(column - reach, 0), min(column + reach + 1, columns)):
                near += values[steps - 1, y * columns + x, channel]
        value = values[steps - 1, pixel, channel]
        before = values[0, pixel, channel] if steps == 2 else 0
        found[0] += value * near
        found[1] += value * value
        found[2] += near * near
        found[3] += abs(value - before)


@njit
def root(value):
    """The whole part of a square root."""
    found = int(np.sqrt(value))
    while found * found > value:
        found -= 1
    while (found + 1) * (found + 1) <= value:
        found += 1
    return found


@njit
def cosine(dot, own, other):
    """As `isa.scores.cosines`."""
    product = own * other
    if product < 1:
        return 0
    more = scores.ROOT_BITS // 2 - 1 if product < 1 << scores.ROOT_BITS else 0
    found = min((abs(dot) << (scores.COSINE_BITS + more)) // root(product << (2 * more)), 1 << scores.COSINE_BITS)
    return found if dot >= 0 else -found


@njit
def add_shares(exponents, totals):
    """Add every token's share of a softmax to its total; as `isa.scores.shares`."""
    highest = exponents.max()
    powers = np.empty(len(exponents), np.int64)
    for token in range(len(exponents)):
        below = highest - exponents[token]
        powers[token] = POWERS[below & ((1 << scores.EXPONENT_BITS) - 1)] >> min(below >> scores.EXPONENT_BITS, 63)
    whole = powers.sum()
    for token in range(len(exponents)):
        totals[token] += (powers[token] << scores.SHARE_BITS) // whole


@njit
def keep_top(row, memories, scratch):
    """The kept train of the tokens with the largest scores."""
    tokens, sums = row[KEEP_TOP.tokens], memories.output + row[KEEP_TOP.sums]
    exponents, totals = np.empty(tokens, np.int64), np.zeros(tokens, np.int64)
    if row[KEEP_TOP.spatial]:
        for token in range(tokens):
            place = sums + 16 * token
            unlike = (1 << scores.COSINE_BITS) - cosine(load_i32(place), load_i32(place + 4), load_i32(place + 8))
            exponents[token] = (unlike * scores.E_TO_TWO) >> scores.COSINE_BITS
        add_shares(exponents, totals)
    if row[KEEP_TOP.temporal]:
        for token in range(tokens):
            change = abs(load_i32(sums + 16 * token + 12))
            exponents[token] = (change * row[KEEP_TOP.multiplier]) >> row[KEEP_TOP.divisor]
        add_shares(exponents, totals)
    order = np.argsort(-totals, kind="mergesort")
    size = 2 * tokens * row[KEEP_TOP.steps]
    forget(scratch.held, row[KEEP_TOP.kept], size)
    for step in range(row[KEEP_TOP.steps]):
        place = memories.spike + row[KEEP_TOP.kept] + 2 * step * tokens
        for number in range(tokens):
            store_16(place + 2 * order[number], 1 if number < row[KEEP_TOP.keep] else 0)
    refresh_mask(memories, row[KEEP_TOP.kept], size)
