"""Guards: channel masks as bits, early counts added up, and masks built of them."""

from __future__ import annotations

from numba import njit

from isa.instructions import MOST_COUNT
from runtime.fast.held import forget_masked
from runtime.fast.places import ACCUMULATE, COUNT_SPIKES, GUARD, WINDOW
from runtime.fast.scalar import copy_bytes, load_64, load_u8, load_u16, popcount, store_16, store_64
from runtime.fast.vector import at_least, choose, store_lanes, vector_load, vector_narrow, vector_splat, vector_unsigned

LANES = 16
CHUNK = 56
"""Bits that one load of 64 has behind any bit of its first byte."""

_load_16s, _widen, _narrow = vector_load(LANES, 16), vector_unsigned(32), vector_narrow(16)
_splat = vector_splat(LANES, 32)


@njit
def mask_bits(mask, first, count):
    """`count` (at most 56) bits of a channel mask from channel `first` on, in the low end of the result."""
    return load_64(mask + (first >> 3)) >> (first & 7) & ((1 << count) - 1)


@njit
def live_channels(mask, channels):
    """How many of the first `channels` channels are live."""
    found = 0
    for first in range(0, channels, CHUNK):
        found += popcount(mask_bits(mask, first, min(channels - first, CHUNK)))
    return found


@njit
def any_live(mask, first, count):
    """Whether any of `count` channels from `first` on is live."""
    found = 0
    for part in range(first, first + count, CHUNK):
        found |= mask_bits(mask, part, min(first + count - part, CHUNK))
    return found != 0


@njit
def live_groups(mask, channels, lanes):
    """Groups of `lanes` consecutive channels of which any is live."""
    groups = 0
    for first in range(0, channels, lanes):
        groups += any_live(mask, first, min(lanes, channels - first))
    return groups


@njit
def step_of(row, memories, scratch, step):
    """Address of one step's spikes of an Accumulate, copied where a row mask or kept tokens leave any out."""
    offset = step * row[ACCUMULATE.step_stride]
    spikes = memories.spike + row[ACCUMULATE.spikes] + offset
    if row[ACCUMULATE.masks_rows]:
        mask = memories.channel + row[ACCUMULATE.row_mask]
        copy_masked(row, spikes, mask, mask, scratch.masked + offset)
        spikes = scratch.masked + offset
    if row[ACCUMULATE.kept]:
        copy_kept(row, spikes, memories.kept_rows + step * row[ACCUMULATE.columns], scratch.masked + offset)
        spikes = scratch.masked + offset
    return spikes


@njit
def copy_kept(row, spikes, kept, target):
    """One step's spikes, zeros for pixels that are not kept; `target` may be where the spikes are."""
    words, stride = (row[ACCUMULATE.inputs] + 15) >> 4, row[ACCUMULATE.pixel_stride]
    for pixel in range(row[ACCUMULATE.columns]):
        if load_u8(kept + pixel) == 0:
            for word in range(words):
                store_16(target + 2 * word, 0)
        elif target != spikes:
            copy_bytes(target, spikes, 2 * words)
        spikes += stride
        target += stride


@njit
def copy_masked(row, spikes, first_mask, second_mask, target):
    """One step's spikes of channels that both masks have, and up to six bytes behind every pixel."""
    size, stride = (row[WINDOW.inputs] + 7) >> 3, row[WINDOW.pixel_stride]
    for _ in range(row[WINDOW.input_rows] * row[WINDOW.input_columns]):
        for octet in range(0, size, 8):
            both = load_64(first_mask + octet) & load_64(second_mask + octet)
            store_64(target + octet, load_64(spikes + octet) & both)
        spikes += stride
        target += stride


@njit
def clear_silent(accumulators, mask, channels, pixels):
    """Zero for accumulators [pixels, channels] of channels that the mask leaves out."""
    for first in range(0, channels, LANES):
        count = min(channels - first, LANES)
        silent = ~mask_bits(mask, first, count) & ((1 << count) - 1)
        place = accumulators + 4 * first
        for _ in range(pixels if silent else 0):
            store_lanes(place, _splat(0), silent)
            place += 4 * channels


@njit
def put_counts(place, found, fresh, keep):
    """Add sixteen counts to those at `place`, which stop at the most that uint16 holds; lanes in `keep` only."""
    most = _splat(MOST_COUNT)
    if not fresh:
        found += _widen(_load_16s(place))
    store_lanes(place, _narrow(choose(at_least(most, found), found, most)), keep)


@njit
def count_spikes(row, memories, scratch):
    """Set bits of every channel, sixteen channels at a time."""
    forget_masked(scratch.held)
    inputs, one, none = row[COUNT_SPIKES.inputs], _splat(1), _splat(0)
    for first in range(0, inputs, LANES):
        found = none
        for plane in range(row[COUNT_SPIKES.planes]):
            for step in range(row[COUNT_SPIKES.steps]):
                word = memories.spike + row[COUNT_SPIKES.spikes] + (first >> 3)
                word += plane * row[COUNT_SPIKES.plane_stride] + step * row[COUNT_SPIKES.step_stride]
                for _ in range(row[COUNT_SPIKES.tokens]):
                    found += choose(load_u16(word), one, none)
                    word += row[COUNT_SPIKES.pixel_stride]
        place = memories.channel + row[COUNT_SPIKES.counts_at] + 2 * first
        put_counts(place, found, row[COUNT_SPIKES.fresh] != 0, (1 << min(inputs - first, LANES)) - 1)


@njit
def guard(row, memories, scratch):
    """A bit for every channel whose count is above the threshold, word by word."""
    forget_masked(scratch.held)
    channels, least = row[GUARD.channels], _splat(row[GUARD.threshold] + 1)
    for first in range(0, channels, LANES):
        counts = _widen(_load_16s(memories.channel + row[GUARD.counts_at] + 2 * first))
        bits = at_least(counts, least) & ((1 << min(channels - first, LANES)) - 1)
        store_16(memories.channel + row[GUARD.mask] + (first >> 3), bits)
