"""Pool, PoolValues and Dilate: the largest value of every window."""

from __future__ import annotations

from numba import njit

from runtime.fast.dma import put_words, refresh_pixels
from runtime.fast.held import forget
from runtime.fast.places import DILATE, POOL, POOL_VALUES
from runtime.fast.scalar import load_64, load_u16, lowest_bit, store_16, store_64
from runtime.fast.vector import (
    at_least,
    choose,
    store_lanes,
    vector_load,
    vector_splat,
    vector_store,
)

LANES = 32

_load, _splat = vector_load(LANES, 16), vector_splat(LANES, 16)


@njit
def pool(row, memories, scratch):
    """The largest count of every window, four words at a time; of spikes that is the OR."""
    size, planes = 2 * ((row[POOL.inputs] + 15) >> 4), row[POOL.planes]
    pixels, result_stride = row[POOL.rows] * row[POOL.columns], row[POOL.result_step_stride]
    last = (planes * row[POOL.steps] - 1) * result_stride + (pixels - 1) * row[POOL.pixel_stride]
    forget(scratch.held, row[POOL.result], last + size)
    for step in range(row[POOL.steps]):
        spikes = memories.spike + row[POOL.spikes] + step * row[POOL.step_stride]
        place = row[POOL.result] + step * result_stride
        for r in range(row[POOL.rows]):
            for c in range(row[POOL.columns]):
                pixel = memories.spike + place + (r * row[POOL.columns] + c) * row[POOL.pixel_stride]
                for octet in range(0, size, 8):
                    if planes == 1:
                        word = pooled_words(row, spikes + octet, r, c)
                        put_words(pixel + octet, word, octet, size, row[POOL.inputs])
                    else:
                        find_largest(row, spikes + octet, r, c, scratch.planes)
                        for plane in range(planes):
                            target = pixel + octet + plane * row[POOL.steps] * result_stride
                            put_words(target, load_64(scratch.planes + 8 * plane), octet, size, row[POOL.inputs])
    for plane_step in range(planes * row[POOL.steps]):
        refresh_pixels(memories, row[POOL.result] + plane_step * result_stride, pixels, row[POOL.pixel_stride], size)


@njit
def pooled_words(row, spikes, r, c):
    """Four words at `spikes` of all input pixels under output pixel (r, c), ORed."""
    word = 0
    for i in range(row[POOL.kernel_rows]):
        y = r * row[POOL.stride] + i - row[POOL.top]
        if 0 <= y < row[POOL.input_rows]:
            first = c * row[POOL.stride] - row[POOL.left]
            for x in range(max(first, 0), min(first + row[POOL.kernel_columns], row[POOL.input_columns])):
                word |= load_64(spikes + (y * row[POOL.input_columns] + x) * row[POOL.pixel_stride])
    return word


@njit
def find_largest(row, spikes, r, c, largest):
    """The planes of the largest counts of 64 channels under output pixel (r, c), as int64 at `largest`."""
    planes, apart = row[POOL.planes], row[POOL.steps] * row[POOL.step_stride]
    for plane in range(planes):
        store_64(largest + 8 * plane, 0)
    for i in range(row[POOL.kernel_rows]):
        y = r * row[POOL.stride] + i - row[POOL.top]
        if 0 <= y < row[POOL.input_rows]:
            first = c * row[POOL.stride] - row[POOL.left]
            for x in range(max(first, 0), min(first + row[POOL.kernel_columns], row[POOL.input_columns])):
                pixel = spikes + (y * row[POOL.input_columns] + x) * row[POOL.pixel_stride]
                greater, equal = 0, -1
                for plane in range(planes - 1, -1, -1):
                    bits, held = load_64(pixel + plane * apart), load_64(largest + 8 * plane)
                    greater |= equal & bits & ~held
                    equal &= ~(bits ^ held)
                for plane in range(planes):
                    bits, held = load_64(pixel + plane * apart), load_64(largest + 8 * plane)
                    store_64(largest + 8 * plane, held ^ ((held ^ bits) & greater))


@njit
def pool_values(row, memories):
    """The largest value of every window, 32 channels at a time."""
    inputs, stride, pixel_stride = row[POOL_VALUES.inputs], row[POOL_VALUES.stride], row[POOL_VALUES.pixel_stride]
    input_rows, input_columns = row[POOL_VALUES.input_rows], row[POOL_VALUES.input_columns]
    kernel_rows, kernel_columns = row[POOL_VALUES.kernel_rows], row[POOL_VALUES.kernel_columns]
    result = memories.output + row[POOL_VALUES.result]
    for step in range(row[POOL_VALUES.steps]):
        values = memories.output + row[POOL_VALUES.values] + step * row[POOL_VALUES.step_stride]
        for r in range(row[POOL_VALUES.rows]):
            above = r * stride - row[POOL_VALUES.top]
            for c in range(row[POOL_VALUES.columns]):
                column = c * stride - row[POOL_VALUES.left]
                near, far = max(column, 0), min(column + kernel_columns, input_columns)
                for first in range(0, inputs, LANES):
                    largest = _splat(-(1 << 15))
                    for y in range(max(above, 0), min(above + kernel_rows, input_rows)):
                        value = values + (y * input_columns + near) * pixel_stride + 2 * first
                        for _ in range(near, far):
                            found = _load(value)
                            largest = choose(at_least(found, largest), found, largest)
                            value += pixel_stride
                    if inputs - first >= LANES:
                        vector_store(result + 2 * first, largest)
                    else:
                        store_lanes(result + 2 * first, largest, (1 << (inputs - first)) - 1)
                result += 2 * inputs


@njit
def dilate(row, memories, scratch):
    """Every spike of a window of tokens sets the channels of its head that it reaches."""
    channels, tokens, stride = row[DILATE.heads] * row[DILATE.width], row[DILATE.tokens], row[DILATE.pixel_stride]
    reach, words = row[DILATE.reach], (channels + 15) >> 4
    last = (row[DILATE.steps] - 1) * row[DILATE.step_stride] + (tokens - 1) * stride
    forget(scratch.held, row[DILATE.result], last + 2 * words)
    for step in range(row[DILATE.steps]):
        offset = step * row[DILATE.step_stride]
        spikes = memories.spike + row[DILATE.spikes] + offset
        for token in range(tokens):
            result = memories.spike + row[DILATE.result] + offset + token * stride
            for word in range(words):
                store_16(result + 2 * word, 0)
            for word in range(words):
                bits = 0
                for near in range(max(token - reach, 0), min(token + reach + 1, tokens)):
                    bits |= load_u16(spikes + near * stride + 2 * word)
                bits &= (1 << min(channels - 16 * word, 16)) - 1
                while bits != 0:
                    spread(result, 16 * word + lowest_bit(bits), row[DILATE.width], reach)
                    bits &= bits - 1
        refresh_pixels(memories, row[DILATE.result] + offset, tokens, stride, 2 * words)


@njit
def spread(result, channel, width, reach):
    """Set the channels at most `reach` away from `channel` that belong to its head."""
    head = channel - channel % width
    first, stop = max(channel - reach, head), min(channel + reach + 1, head + width)
    for word in range(first >> 4, ((stop - 1) >> 4) + 1):
        ones = (1 << min(stop - 16 * word, 16)) - (1 << max(first - 16 * word, 0))
        store_16(result + 2 * word, load_u16(result + 2 * word) | ones)
