"""Depthwise: 64 channels a vector, the weights of a tap chosen by its spikes; and what its words cost."""

from __future__ import annotations

from numba import njit

from runtime.fast.channels import clear_silent, copy_masked, live_channels
from runtime.fast.lockstep import work_in_lockstep
from runtime.fast.pairs import EMPTY_CYCLES, WORD, count_words, difference, put_tail, work_of_rounds
from runtime.fast.places import DEPTHWISE, WINDOW
from runtime.fast.scalar import load_64, store_32
from runtime.fast.vector import choose, store_lanes, vector_load, vector_splat, vector_store, vector_widen
from runtime.record import RECORD

LANES = 64

_load_weights, _load_sums = vector_load(LANES, 8), vector_load(LANES, 32)
_splat_16, _splat_32 = vector_splat(LANES, 16), vector_splat(LANES, 32)
_to_16, _to_32 = vector_widen(16), vector_widen(32)


@njit
def depthwise(row, memories, scratch, sizes, record):
    """All steps of a Depthwise and its counts."""
    put_tail(row[DEPTHWISE.inputs], scratch.tail)
    sums_a_step = row[DEPTHWISE.rows] * row[DEPTHWISE.columns] * row[DEPTHWISE.inputs]
    bits, read = 0, 0
    for step in range(row[DEPTHWISE.steps]):
        spikes = step_left(row, memories, scratch, step)
        accumulators = memories.output + row[DEPTHWISE.accumulators] + 4 * step * sums_a_step
        depthwise_step(row, spikes, memories.weight + row[DEPTHWISE.weights], accumulators)
        sum_rows(row, spikes, scratch)
        found = count_step(row, scratch, step)
        bits += found[0]
        read += found[1]
    record[RECORD.sop_bit] = record[RECORD.sop_union] = bits
    record[RECORD.sop_value] = bits << row[DEPTHWISE.plane]
    record[RECORD.words_read] = read
    record[RECORD.words_skipped] = taps_inside(row) * ((row[DEPTHWISE.inputs] + 15) >> 4) - read
    record[RECORD.weight_buffer_bytes] = 16 * read
    record[RECORD.spike_buffer_bytes] = 2 * read
    if sizes.port == WORD:
        masked = row[DEPTHWISE.masks_rows] or row[DEPTHWISE.masks_columns]
        spikes = scratch.masked if masked else memories.spike + row[DEPTHWISE.spikes]
        record[RECORD.work] = work_in_lockstep(row, spikes, False, True, sizes, 0)
    else:
        record[RECORD.work] = work_of_rounds(row, scratch, sizes)
    if row[DEPTHWISE.masks_columns]:
        mask, channels = memories.channel + row[DEPTHWISE.column_mask], row[DEPTHWISE.inputs]
        pixels = row[DEPTHWISE.steps] * row[DEPTHWISE.rows] * row[DEPTHWISE.columns]
        clear_silent(memories.output + row[DEPTHWISE.accumulators], mask, channels, pixels)
        each = 4 if row[DEPTHWISE.fresh] else 8
        record[RECORD.output_buffer_bytes] = pixels * live_channels(mask, channels) * each


@njit
def step_left(row, memories, scratch, step):
    """Address of one step's spikes, copied where channel masks leave any out."""
    offset = step * row[DEPTHWISE.step_stride]
    spikes = memories.spike + row[DEPTHWISE.spikes] + offset
    if not row[DEPTHWISE.masks_rows] and not row[DEPTHWISE.masks_columns]:
        return spikes
    row_mask, column_mask = memories.channel + row[DEPTHWISE.row_mask], memories.channel + row[DEPTHWISE.column_mask]
    first = row_mask if row[DEPTHWISE.masks_rows] else column_mask
    second = column_mask if row[DEPTHWISE.masks_columns] else row_mask
    copy_masked(row, spikes, first, second, scratch.masked + offset)
    return scratch.masked + offset


@njit
def depthwise_step(row, spikes, weights, accumulators):
    """One step: accumulators of all pixels. 225 weights of 8 bits at most fit a 16-bit sum."""
    inputs, stride, pixel_stride = row[DEPTHWISE.inputs], row[DEPTHWISE.stride], row[DEPTHWISE.pixel_stride]
    input_rows, input_columns = row[DEPTHWISE.input_rows], row[DEPTHWISE.input_columns]
    kernel_rows, kernel_columns = row[DEPTHWISE.kernel_rows], row[DEPTHWISE.kernel_columns]
    plane, fresh, zero = _splat_32(row[DEPTHWISE.plane]), row[DEPTHWISE.fresh], _splat_16(0)
    for r in range(row[DEPTHWISE.rows]):
        above = r * stride - row[DEPTHWISE.top]
        for c in range(row[DEPTHWISE.columns]):
            column = c * stride - row[DEPTHWISE.left]
            near, far = max(column, 0), min(column + kernel_columns, input_columns)
            for first in range(0, inputs, LANES):
                sums = zero
                for y in range(max(above, 0), min(above + kernel_rows, input_rows)):
                    pixel = spikes + (y * input_columns + near) * pixel_stride + (first >> 3)
                    weight = weights + ((y - above) * kernel_columns + near - column) * inputs + first
                    for _ in range(near, far):
                        word = load_64(pixel)
                        if word != 0:
                            sums += choose(word, _to_16(_load_weights(weight)), zero)
                        pixel += pixel_stride
                        weight += inputs
                total = _to_32(sums) << plane
                if not fresh:
                    total += _load_sums(accumulators + 4 * first)
                if inputs - first >= LANES:
                    vector_store(accumulators + 4 * first, total)
                else:
                    store_lanes(accumulators + 4 * first, total, (1 << (inputs - first)) - 1)
            accumulators += 4 * inputs


@njit
def sum_rows(row, spikes, scratch):
    """Running sums along every input row of one step: bits in scratch.common, non-zero words in scratch.read."""
    inputs, pixel, place = row[DEPTHWISE.inputs], spikes, 0
    for _ in range(row[DEPTHWISE.input_rows]):
        bits, words = 0, 0
        for _ in range(row[DEPTHWISE.input_columns]):
            store_32(scratch.common + place, bits)
            store_32(scratch.read + place, words)
            place += 4
            found = count_words(pixel, pixel, inputs, scratch.tail)
            bits += found[0]
            words += found[1]
            pixel += row[DEPTHWISE.pixel_stride]
        store_32(scratch.common + place, bits)
        store_32(scratch.read + place, words)
        place += 4


@njit
def count_step(row, scratch, step):
    """Bits and words under the taps of one step; leaves the cycles of its pairs in scratch.pairs."""
    columns, input_columns = row[DEPTHWISE.columns], row[DEPTHWISE.input_columns]
    kernel, stride = row[DEPTHWISE.kernel_columns], row[DEPTHWISE.stride]
    place = scratch.pairs + 4 * step * row[DEPTHWISE.rows] * ((columns + 1) >> 1)
    all_bits, all_words = 0, 0
    for r in range(row[DEPTHWISE.rows]):
        above = r * stride - row[DEPTHWISE.top]
        rows = range(max(above, 0), min(above + row[DEPTHWISE.kernel_rows], row[DEPTHWISE.input_rows]))
        for pair in range(0, columns, 2):
            words = 0
            for c in range(pair, min(pair + 2, columns)):
                column = c * stride - row[DEPTHWISE.left]
                near, far = max(column, 0), min(column + kernel, input_columns)
                for y in rows:
                    start = 4 * y * (input_columns + 1)
                    all_bits += difference(scratch.common + start, near, far)
                    words += difference(scratch.read + start, near, far)
            store_32(place, words + EMPTY_CYCLES)
            all_words += words
            place += 4
    return all_bits, all_words


@njit
def taps_inside(row):
    """Pairs of output pixels and input pixels inside the borders, of all steps and of any window."""
    stride, rows, columns = row[WINDOW.stride], 0, 0
    for r in range(row[WINDOW.rows]):
        y = r * stride - row[WINDOW.top]
        rows += min(y + row[WINDOW.kernel_rows], row[WINDOW.input_rows]) - max(y, 0)
    for c in range(row[WINDOW.columns]):
        x = c * stride - row[WINDOW.left]
        columns += min(x + row[WINDOW.kernel_columns], row[WINDOW.input_columns]) - max(x, 0)
    return row[WINDOW.steps] * rows * columns
