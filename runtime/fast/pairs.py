"""What Accumulate counts: bits, bits common to the pixels of a pair, words, and the cycles of the PEs.

Bits of a pixel come from the event list. What neighbours have in common is counted once for every two input pixels
that ever are neighbours under a tap, as running sums along the input row; a pair's window is then a difference of two.
"""

from __future__ import annotations

from numba import njit

from runtime.fast.held import HELD
from runtime.fast.places import ACCUMULATE, WINDOW
from runtime.fast.scalar import load_64, load_i32, popcount, store_8, store_32, store_64
from runtime.fast.vector import count_bits, nonzero, vector_load

FREE, ROUND, WORD = 0, 1, 2
"""Weight ports, as in `runtime.decoded.PORTS`."""

EMPTY_CYCLES = 4
MERGE_CYCLES = 2
CHUNK = 512
"""Channels in one vector."""

_load_words = vector_load(32, 16)
_load_64s = vector_load(8, 64)


@njit
def put_tail(inputs, tail):
    """Ones for the channels of a pixel's last, partly filled vector."""
    left = inputs % CHUNK
    for octet in range(64):
        store_8(tail + octet, (1 << max(min(left - 8 * octet, 8), 0)) - 1)


@njit
def count_words(left, right, inputs, tail):
    """Bits common to two pixels, and words in which either has a bit."""
    common, read = 0, 0
    for _ in range(inputs // CHUNK):
        common += count_bits(_load_64s(left) & _load_64s(right))
        read += popcount(nonzero(_load_words(left) | _load_words(right)))
        left += CHUNK >> 3
        right += CHUNK >> 3
    if inputs % CHUNK:
        common += count_bits(_load_64s(left) & _load_64s(right) & _load_64s(tail))
        read += popcount(nonzero((_load_words(left) | _load_words(right)) & _load_words(tail)))
    return common, read


@njit
def sum_neighbours(row, spikes, scratch):
    """Running sums, along every input row of one step, of what pixel x and its neighbour x + stride have in common.

    x starts at -stride, where only the neighbour lies inside. Columns that no pair looks at are left out.
    """
    inputs, columns, stride = row[ACCUMULATE.inputs], row[ACCUMULATE.input_columns], row[ACCUMULATE.stride]
    pixel_stride, kernel = row[ACCUMULATE.pixel_stride], row[ACCUMULATE.kernel_columns]
    place = 0
    for y in range(row[ACCUMULATE.input_rows]):
        first = spikes + y * columns * pixel_stride
        common, read = 0, 0
        phase = (row[ACCUMULATE.left] - stride) % (2 * stride)
        for x in range(-stride, columns):
            store_32(scratch.common + place, common)
            store_32(scratch.read + place, read)
            place += 4
            if phase < kernel and (x >= 0 or x + stride < columns):
                left = first + x * pixel_stride if x >= 0 else scratch.zeros
                right = first + (x + stride) * pixel_stride if 0 <= x + stride < columns else scratch.zeros
                both, either = count_words(left, right, inputs, scratch.tail)
                common += both
                read += either
            phase = phase + 1 if phase + 1 < 2 * stride else 0
        store_32(scratch.common + place, common)
        store_32(scratch.read + place, read)
        place += 4


@njit
def difference(sums, first, stop):
    """Sum over first .. stop - 1 from running sums."""
    return load_i32(sums + 4 * stop) - load_i32(sums + 4 * first)


@njit
def count_step(row, spikes, scratch, starts_of_step, held, step):
    """Count all pairs of one step into `held`, and leave their cycles in scratch.pairs."""
    columns, input_columns = row[ACCUMULATE.columns], row[ACCUMULATE.input_columns]
    kernel, stride = row[ACCUMULATE.kernel_columns], row[ACCUMULATE.stride]
    share, pairs = held[HELD.share] != 0, row[ACCUMULATE.rows] * ((columns + 1) >> 1)
    width = stride + input_columns + 1
    place = scratch.pairs + 4 * step * pairs
    all_bits, all_common, all_read, merging = 0, 0, 0, 0
    for r in range(row[ACCUMULATE.rows]):
        for c in range(0, columns, 2):
            column, lone = c * stride - row[ACCUMULATE.left], c + 1 == columns
            near, far = max(column, 0), min(column + kernel, input_columns)
            near2, far2 = max(column + stride, 0), min(column + stride + kernel, input_columns)
            first, stop = max(column, -stride) + stride, far + stride
            bits, common, read = 0, 0, 0
            for i in range(row[ACCUMULATE.kernel_rows]):
                y = r * stride + i - row[ACCUMULATE.top]
                if y < 0 or y >= row[ACCUMULATE.input_rows]:
                    continue
                starts = starts_of_step + 4 * y * input_columns
                if near < far:
                    bits += difference(starts, near, far)
                if lone:
                    read += count_lone(row, spikes, y, near, far, scratch)
                    continue
                if near2 < far2:
                    bits += difference(starts, near2, far2)
                if first < stop:
                    common += difference(scratch.common + 4 * y * width, first, stop)
                    read += difference(scratch.read + 4 * y * width, first, stop)
            all_bits += bits
            all_common += common
            all_read += read
            merging += common > 0
            cycles = bits - common + (MERGE_CYCLES if common > 0 else 0) if share else bits
            store_32(place, cycles + EMPTY_CYCLES)
            place += 4
    held[HELD.bits] += all_bits
    held[HELD.common] += all_common
    held[HELD.merging] += merging
    held[HELD.read] += all_read


@njit
def count_lone(row, spikes, y, near, far, scratch):
    """Words with a bit in the input pixels near .. far - 1 of row y."""
    read = 0
    for x in range(near, far):
        pixel = spikes + (y * row[ACCUMULATE.input_columns] + x) * row[ACCUMULATE.pixel_stride]
        read += count_words(pixel, scratch.zeros, row[ACCUMULATE.inputs], scratch.tail)[1]
    return read


@njit
def words_inside(row):
    """Spike words under all taps of all pairs, where at least one pixel of the pair has the tap inside the borders."""
    stride, inside_rows, inside_columns = row[ACCUMULATE.stride], 0, 0
    for r in range(row[ACCUMULATE.rows]):
        for i in range(row[ACCUMULATE.kernel_rows]):
            inside_rows += 0 <= r * stride + i - row[ACCUMULATE.top] < row[ACCUMULATE.input_rows]
    for c in range(0, row[ACCUMULATE.columns], 2):
        for j in range(row[ACCUMULATE.kernel_columns]):
            x = c * stride + j - row[ACCUMULATE.left]
            right = c + 1 < row[ACCUMULATE.columns] and 0 <= x + stride < row[ACCUMULATE.input_columns]
            inside_columns += 0 <= x < row[ACCUMULATE.input_columns] or right
    return row[ACCUMULATE.steps] * inside_rows * inside_columns * ((row[ACCUMULATE.inputs] + 15) >> 4)


@njit
def work_of_rounds(row, scratch, sizes):
    """The measured work, from the cycles of every pair: PEs that meet after every round, or never."""
    pairs = row[WINDOW.rows] * ((row[WINDOW.columns] + 1) >> 1)
    steps, total = row[WINDOW.steps], 0
    for place in range(sizes.window * sizes.pairs):
        store_64(scratch.busy + 8 * place, 0)
    for first_step in range(0, steps, sizes.window):
        for first in range(0, pairs, sizes.pairs):
            longest = 0
            for step in range(first_step, min(first_step + sizes.window, steps)):
                for pair in range(first, min(first + sizes.pairs, pairs)):
                    cycles = load_i32(scratch.pairs + 4 * (step * pairs + pair))
                    longest = max(longest, cycles)
                    if sizes.port == FREE:
                        busy = scratch.busy + 8 * ((step - first_step) * sizes.pairs + pair - first)
                        store_64(busy, load_64(busy) + cycles)
            total += longest
    if sizes.port == FREE:
        total = 0
        for place in range(sizes.window * sizes.pairs):
            total = max(total, load_64(scratch.busy + 8 * place))
    return total
