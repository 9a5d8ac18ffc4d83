"""Spikes as lists of events: which bits of one step's input are set."""

from __future__ import annotations

from numba import njit
from numba.core.registry import cpu_target

from runtime.fast.places import ACCUMULATE
from runtime.fast.scalar import load_64, lowest_bit, popcount, store_32
from runtime.fast.vector import low_lanes, vector_count, vector_part, vector_splat, vector_store, vector_unsigned

_CODEGEN = cpu_target.target_context.codegen()  # pyright: ignore[reportAttributeAccessIssue]
HAS_COMPRESS = "+avx512vbmi2" in _CODEGEN.magic_tuple()[2]
"""Whether one instruction packs the set bits of a 64-bit word; elsewhere a loop over them is faster."""

_numbers = vector_count(64, 8)
_widen = vector_unsigned(32)
_splat = vector_splat(32, 32)
_low_half, _high_half = vector_part(32, 0), vector_part(32, 32)


@njit
def put_events(word, base, events):
    """Append base + i for every set bit i of `word` at the address `events`; returns the address behind them."""
    if HAS_COMPRESS:
        packed, count = low_lanes(_numbers(), word), popcount(word)
        vector_store(events, _widen(_low_half(packed)) + _splat(base))
        if count > 32:
            vector_store(events + 128, _widen(_high_half(packed)) + _splat(base))
        return events + 4 * count
    while word != 0:
        store_32(events, base + lowest_bit(word))
        word &= word - 1
        events += 4
    return events


@njit
def count_events(row, spikes, starts):
    """Where the events of every input pixel of one step start, and where the last one's end."""
    inputs, total = row[ACCUMULATE.inputs], 0
    for _ in range(row[ACCUMULATE.input_rows] * row[ACCUMULATE.input_columns]):
        store_32(starts, total)
        for channel in range(0, inputs, 64):
            word = load_64(spikes + (channel >> 3))
            if inputs - channel < 64:
                word &= (1 << (inputs - channel)) - 1
            total += popcount(word)
        spikes += row[ACCUMULATE.pixel_stride]
        starts += 4
    store_32(starts, total)


@njit
def list_events(row, spikes, events):
    """List the set bits of one step's input pixels in row-major order; `spikes` is the step's address.

    An event is column * inputs + channel, so that the events of a run of pixels in one input row, less the first
    pixel's column * inputs, number the rows of the weights under a kernel row that starts there.
    """
    inputs, pixel_stride = row[ACCUMULATE.inputs], row[ACCUMULATE.pixel_stride]
    for _ in range(row[ACCUMULATE.input_rows]):
        for column in range(row[ACCUMULATE.input_columns]):
            for channel in range(0, inputs, 64):
                word = load_64(spikes + (channel >> 3))
                if inputs - channel < 64:
                    word &= (1 << (inputs - channel)) - 1
                events = put_events(word, column * inputs + channel, events)
            spikes += pixel_stride
