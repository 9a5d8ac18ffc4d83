"""Add, Rescale and Mask: what the neuron unit does element by element without neurons."""

from __future__ import annotations

from numba import njit

from runtime.fast.dma import put_words, refresh_mask, refresh_pixels
from runtime.fast.held import forget
from runtime.fast.places import ADD, MASK, RESCALE
from runtime.fast.scalar import load_64, load_u8, load_u16, store_16
from runtime.fast.tokens import count_kept
from runtime.fast.vector import (
    at_least,
    choose,
    store_lanes,
    vector_load,
    vector_narrow,
    vector_splat,
    vector_store,
    vector_widen,
)
from runtime.record import RECORD

LANES = 16

_load_16s, _load_32s = vector_load(LANES, 16), vector_load(LANES, 32)
_widen, _splat = vector_widen(64), vector_splat(LANES, 64)
_to_16, _to_8 = vector_narrow(16), vector_narrow(8)


@njit
def add(row, memories, scratch):
    """Counts of two trains added bit plane by bit plane; planes beyond the result's are dropped."""
    words, stride = row[ADD.pixels] * row[ADD.words], row[ADD.plane_stride]
    forget(scratch.held, row[ADD.result], (row[ADD.planes] - 1) * stride + 2 * words)
    for word in range(words):
        left = memories.spike + row[ADD.left] + 2 * word
        right = memories.spike + row[ADD.right] + 2 * word
        carry = 0
        for plane in range(row[ADD.planes]):
            a = load_u16(left + plane * stride) if plane < row[ADD.left_planes] else 0
            b = load_u16(right + plane * stride) if plane < row[ADD.right_planes] else 0
            store_16(memories.spike + row[ADD.result] + plane * stride + 2 * word, a ^ b ^ carry)
            carry = (a & b) | (carry & (a ^ b))
    for plane in range(row[ADD.planes]):
        refresh_mask(memories, row[ADD.result] + plane * stride, 2 * words)


@njit
def rescale(row, memories, scratch, record):
    """All values, in the order in which they lie: a result that starts where an operand does never passes it."""
    if row[RESCALE.kept]:
        kept = count_kept(memories.kept_neurons, row[RESCALE.steps] * row[RESCALE.pixels])
        record[RECORD.work], record[RECORD.mac] = kept, kept * row[RESCALE.outputs]
        size = 0 if row[RESCALE.absent] else 2 if row[RESCALE.narrow] else 4
        record[RECORD.output_buffer_bytes] = kept * row[RESCALE.outputs] * size
    sums, pixels = memories.output + row[RESCALE.accumulators], row[RESCALE.pixels]
    size, outputs = 2 if row[RESCALE.narrow] else 4, row[RESCALE.outputs]
    if row[RESCALE.absent]:
        sums, size = scratch.zeros, 0
    step_sums = 0 if row[RESCALE.still] else size * pixels * outputs
    for step in range(row[RESCALE.steps]):
        rescale_pixels(row, memories, sums, size, step * pixels)
        sums += step_sums


@njit
def rescale_pixels(row, memories, sums, sum_bytes, first_pixel):
    """The values of one step, `first_pixel` in the result, from accumulators of `sum_bytes` (0: one and the same)."""
    outputs, adds, small, narrow = row[RESCALE.outputs], row[RESCALE.adds], row[RESCALE.small], row[RESCALE.narrow]
    bias = memories.constant + row[RESCALE.constants]
    multiplier = bias + 4 * outputs
    divisor = row[RESCALE.divisor]
    shift, half = _splat(divisor), _splat(1 << (divisor - 1) if divisor else 0)
    top = 1 << (7 if small else 15)
    lowest, highest = _splat(-top), _splat(top - 1)
    result_bytes = 1 if small else 2
    addend = memories.output + row[RESCALE.addend] + 2 * first_pixel * outputs
    result = memories.output + row[RESCALE.result] + result_bytes * first_pixel * outputs
    for pixel in range(row[RESCALE.pixels]):
        stays = not row[RESCALE.kept] or load_u8(memories.kept_neurons + first_pixel + pixel) != 0
        for first in range(0, outputs, LANES):
            place = sums + sum_bytes * first
            values = _widen(_load_16s(place)) if narrow else _widen(_load_32s(place))
            values = (values * _widen(_load_32s(multiplier + 4 * first)) + half) >> shift
            values = clamped(values + _widen(_load_32s(bias + 4 * first)), lowest, highest)
            values = values if stays else _splat(0)
            if adds:
                values = clamped(values + _widen(_load_16s(addend + 2 * first)), lowest, highest)
            keep = (1 << min(outputs - first, LANES)) - 1
            if small:
                store_lanes(result + first, _to_8(values), keep)
            elif outputs - first >= LANES:
                vector_store(result + 2 * first, _to_16(values))
            else:
                store_lanes(result + 2 * first, _to_16(values), keep)
        sums += sum_bytes * outputs
        addend += 2 * outputs
        result += result_bytes * outputs


@njit
def clamped(values, lowest, highest):
    """Lane by lane, no less than `lowest` and no more than `highest`."""
    values = choose(at_least(values, lowest), values, lowest)
    return choose(at_least(highest, values), values, highest)


@njit
def mask(row, memories, scratch):
    """Spikes and masks of a Mask: four words at a time by channel, word by word by head."""
    channels = row[MASK.heads] * row[MASK.width]
    size = 2 * ((channels + 15) >> 4)
    last = (row[MASK.steps] - 1) * row[MASK.step_stride] + (row[MASK.tokens] - 1) * row[MASK.pixel_stride]
    forget(scratch.held, row[MASK.result], last + size)
    for step in range(row[MASK.steps]):
        offset = step * row[MASK.step_stride]
        gates = memories.spike + row[MASK.mask] + step * row[MASK.mask_step_stride]
        for token in range(row[MASK.tokens]):
            spikes = memories.spike + row[MASK.spikes] + offset + token * row[MASK.pixel_stride]
            result = memories.spike + row[MASK.result] + offset + token * row[MASK.pixel_stride]
            if row[MASK.by_head]:
                for word in range(size >> 1):
                    bits = load_u16(spikes + 2 * word)
                    if bits != 0:
                        bits &= gate_of_word(gates, 16 * word, row[MASK.width], channels)
                    store_16(result + 2 * word, bits)
            else:
                for octet in range(0, size, 8):
                    put_words(result + octet, load_64(spikes + octet) & load_64(gates + octet), octet, size, channels)
            gates += row[MASK.mask_pixel_stride]
        refresh_pixels(memories, row[MASK.result] + offset, row[MASK.tokens], row[MASK.pixel_stride], size)


@njit
def gate_of_word(gates, first, width, channels):
    """The bits of a word whose channels, from `first` on, belong to a head whose bit is set at `gates`."""
    channel, stop, bits = first, min(first + 16, channels), 0
    while channel < stop:
        head = channel // width
        following = min((head + 1) * width, stop)
        if load_u8(gates + (head >> 3)) >> (head & 7) & 1:
            bits |= (1 << (following - first)) - (1 << (channel - first))
        channel = following
    return bits
