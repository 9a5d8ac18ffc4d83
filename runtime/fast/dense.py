"""Accumulate and Multiply as dense dot products, on CPUs with 8-bit dot product instructions (AVX-512 VNNI).

Where many bits are set, multiplying all of them is faster than adding a weight row for each: a spike becomes a byte,
four input channels a 32-bit lane, and one instruction adds 64 products to 16 sums. Integers, so the result is the same.

Weights are packed in blocks of outputs, [tap][inputs / 4][output][4]; the input of a step as [row][column][inputs,
padded to 4] bytes with the window's borders around it, so that the taps of a kernel row lie side by side and no border
needs a test. The instruction multiplies unsigned by signed bytes: 128 is added to the signed values of a Multiply, and
128 times the weights' sum, over all taps, taken away again. What both instructions have is in the same columns.
"""

from __future__ import annotations

from typing import Any

from numba import njit
from numba.core.registry import cpu_target

from runtime.fast.channels import step_of
from runtime.fast.dot import dot, interleave, vector_join, vector_repeat
from runtime.fast.places import ACCUMULATE, MULTIPLY
from runtime.fast.scalar import copy_bytes, load_64, load_u32
from runtime.fast.vector import choose, store_lanes, vector_load, vector_part, vector_splat, vector_store

_CODEGEN = cpu_target.target_context.codegen()  # pyright: ignore[reportAttributeAccessIssue]
HAS_DOT = "+avx512vnni" in _CODEGEN.magic_tuple()[2]
"""Whether one instruction multiplies and adds 64 pairs of bytes."""
OFFSET = 128

_load_bytes, _splat_bytes = vector_load(64, 8), vector_splat(64, 8)


def _block(lanes: int) -> Any:
    """Kernels for a block of `lanes` outputs: packing its weights, and all its sums of one step.

    Sums live in four vectors of 64 lanes: the block's outputs of one, two or four pixels each.
    """
    load, load_row = vector_load(lanes, 32), vector_load(lanes, 8)
    splat, splat_bytes, splat_all = vector_splat(lanes, 32), vector_splat(lanes, 8), vector_splat(64, 32)
    share = 64 // lanes
    repeat, values = vector_repeat(share), _values(lanes)
    parts = tuple(vector_part(lanes, lanes * number) for number in range(share))
    part_a, part_b, part_c, part_d = (parts * 4)[:4]

    @njit
    def pack(weights, taps, inputs, outputs, packed, offsets):
        """The block's weights at `weights`, [tap][input][output] int8, in the packed order; -128 x their sums."""
        sums, nothing = splat(0), splat_bytes(0)
        for tap in range(taps):
            row = weights + tap * inputs * outputs
            for k in range(0, inputs, 4):
                first, second = load_row(row), load_row(row + outputs) if k + 1 < inputs else nothing
                third = load_row(row + 2 * outputs) if k + 2 < inputs else nothing
                fourth = load_row(row + 3 * outputs) if k + 3 < inputs else nothing
                four = interleave(first, second, third, fourth)
                sums = dot(sums, splat(0x01010101), four)
                vector_store(packed, four)
                packed += 4 * lanes
                row += 4 * outputs
        vector_store(offsets, sums * splat(-OFFSET))

    @njit
    def put(place, total, fresh, kept):
        if not fresh:
            total += load(place)
        if kept >= lanes:
            vector_store(place, total)
        else:
            store_lanes(place, total, (1 << kept) - 1)

    @njit
    def put_pixels(place, totals, stride, many, fresh, kept):
        """The sums of the pixels that one vector holds, as many as there are."""
        if many > 0:
            put(place, part_a(totals), fresh, kept)
        if share > 1 and many > 1:
            put(place + stride, part_b(totals), fresh, kept)
        if share > 2 and many > 2:
            put(place + 2 * stride, part_c(totals), fresh, kept)
        if share > 2 and many > 3:
            put(place + 3 * stride, part_d(totals), fresh, kept)

    @njit
    def add_up(shape, image, packed, offsets, accumulators, kept):
        """Sums of `kept` outputs for all pixels of one step; what lies behind a row's last pixel is not stored."""
        rows, columns, kernel_rows, run, pixel, line, row_pixels, outputs, plane, fresh = shape
        shift, start, group = splat_all(plane), repeat(load(offsets)), share * pixel
        for r in range(rows):
            for c in range(0, columns, 4 * share):
                place, w = image + r * row_pixels + c * pixel, packed
                first, second, third, fourth = start, start, start, start
                for _ in range(kernel_rows):
                    for byte in range(place, place + run, 4):
                        weights = repeat(load(w))
                        first = dot(first, values(byte, pixel), weights)
                        second = dot(second, values(byte + group, pixel), weights)
                        third = dot(third, values(byte + 2 * group, pixel), weights)
                        fourth = dot(fourth, values(byte + 3 * group, pixel), weights)
                        w += 4 * lanes
                    place += line
                many, stride = columns - c, 4 * outputs
                put_pixels(accumulators, first << shift, stride, many, fresh, kept)
                put_pixels(accumulators + share * stride, second << shift, stride, many - share, fresh, kept)
                put_pixels(accumulators + 2 * share * stride, third << shift, stride, many - 2 * share, fresh, kept)
                put_pixels(accumulators + 3 * share * stride, fourth << shift, stride, many - 3 * share, fresh, kept)
                accumulators += stride * min(many, 4 * share)

    return pack, add_up


def _values(lanes: int) -> Any:
    """Four input channels of as many neighbouring pixels as 64 lanes hold, each in `lanes` lanes."""
    splat, join_pair, join_pairs = vector_splat(lanes, 32), vector_join(2 * lanes), vector_join(4 * lanes)
    if lanes == 64:

        @njit
        def one(place, pixel):
            return splat(load_u32(place))

        return one

    @njit
    def two(place, pixel):
        return join_pair(splat(load_u32(place)), splat(load_u32(place + pixel)))

    if lanes == 32:
        return two

    @njit
    def four(place, pixel):
        return join_pairs(two(place, pixel), two(place + 2 * pixel, pixel))

    return four


_pack_64, _add_up_64 = _block(64)
_pack_32, _add_up_32 = _block(32)
_pack_16, _add_up_16 = _block(16)


@njit
def pack_weights(row, weights, packed, offsets):
    """All blocks, widest first, as `add_up_step` takes them."""
    inputs, outputs = row[ACCUMULATE.inputs], row[ACCUMULATE.outputs]
    taps = row[ACCUMULATE.kernel_rows] * row[ACCUMULATE.kernel_columns]
    size = taps * ((inputs + 3) & ~3)
    for first in range(0, outputs, 64):
        left = outputs - first
        if left > 32:
            _pack_64(weights + first, taps, inputs, outputs, packed, offsets)
        elif left > 16:
            _pack_32(weights + first, taps, inputs, outputs, packed, offsets)
        else:
            _pack_16(weights + first, taps, inputs, outputs, packed, offsets)
        packed += 64 * size
        offsets += 4 * 64


@njit
def add_up_step(shape, image, packed, offsets, accumulators, offset_stride):
    """All sums of one step; `offset_stride` 0 starts every block from the same zeros."""
    kernel_rows, run, outputs = shape[2], shape[3], shape[7]
    for first in range(0, outputs, 64):
        kept = outputs - first
        if kept > 32:
            _add_up_64(shape, image, packed, offsets, accumulators + 4 * first, kept)
        elif kept > 16:
            _add_up_32(shape, image, packed, offsets, accumulators + 4 * first, kept)
        else:
            _add_up_16(shape, image, packed, offsets, accumulators + 4 * first, kept)
        packed += 64 * kernel_rows * run
        offsets += offset_stride


@njit
def shape_of(row, plane, fresh):
    """What `add_up` needs of a window: rows, columns, kernel rows, and bytes of the padded image's parts."""
    pitch = (row[ACCUMULATE.inputs] + 3) & ~3
    line = padded_columns(row) * pitch
    run, stride = row[ACCUMULATE.kernel_columns] * pitch, row[ACCUMULATE.stride]
    rows, columns, outputs = row[ACCUMULATE.rows], row[ACCUMULATE.columns], row[ACCUMULATE.outputs]
    return rows, columns, row[ACCUMULATE.kernel_rows], run, stride * pitch, line, stride * line, outputs, plane, fresh


@njit
def padded_columns(row):
    """Columns of the padded image: all that a window looks at, and all of the input."""
    looked_at = (row[ACCUMULATE.columns] - 1) * row[ACCUMULATE.stride] + row[ACCUMULATE.kernel_columns]
    return max(row[ACCUMULATE.input_columns] + row[ACCUMULATE.left], looked_at)


@njit
def padded_rows(row):
    looked_at = (row[ACCUMULATE.rows] - 1) * row[ACCUMULATE.stride] + row[ACCUMULATE.kernel_rows]
    return max(row[ACCUMULATE.input_rows] + row[ACCUMULATE.top], looked_at)


@njit
def fill(address, size, value):
    """`size` bytes, and up to 63 behind them."""
    vector = _splat_bytes(value)
    for place in range(address, address + size, 64):
        vector_store(place, vector)


@njit
def put_bytes(place, vector, count):
    """The first `count` bytes of a vector, at most 64."""
    if count >= 64:
        vector_store(place, vector)
    else:
        store_lanes(place, vector, (1 << count) - 1)


@njit
def unpack_spikes(row, spikes, plane, image):
    """One step's spikes as bytes inside the borders, 1 << plane each, added to those of the planes below."""
    inputs, pitch = row[ACCUMULATE.inputs], (row[ACCUMULATE.inputs] + 3) & ~3
    one, zero, line = _splat_bytes(1 << plane), _splat_bytes(0), padded_columns(row) * pitch
    image += row[ACCUMULATE.top] * line + row[ACCUMULATE.left] * pitch
    for _ in range(row[ACCUMULATE.input_rows]):
        place = image
        for _ in range(row[ACCUMULATE.input_columns]):
            for channel in range(0, inputs, 64):
                word = load_64(spikes + (channel >> 3))
                if inputs - channel < 64:
                    word &= (1 << (inputs - channel)) - 1
                values = choose(word, one, zero)
                if plane > 0:
                    values |= _load_bytes(place + channel)
                put_bytes(place + channel, values, pitch - channel)
            spikes += row[ACCUMULATE.pixel_stride]
            place += pitch
        image += line


@njit
def unpack_values(row, values, image):
    """One step's int8 values, 128 added, inside the borders; padding channels meet weights of 0."""
    inputs, pitch = row[MULTIPLY.inputs], (row[MULTIPLY.inputs] + 3) & ~3
    offset, line = _splat_bytes(OFFSET), padded_columns(row) * pitch
    image += row[MULTIPLY.top] * line + row[MULTIPLY.left] * pitch
    for _ in range(row[MULTIPLY.input_rows]):
        place = image
        for _ in range(row[MULTIPLY.input_columns]):
            for channel in range(0, inputs, 64):
                put_bytes(place + channel, _load_bytes(values + channel) ^ offset, pitch - channel)
            values += row[MULTIPLY.pixel_stride]
            place += pitch
        image += line


@njit
def image_bytes(row):
    return padded_rows(row) * padded_columns(row) * ((row[ACCUMULATE.inputs] + 3) & ~3)


@njit
def accumulate_dense(code, index, planes, memories, scratch):
    """All steps of the Accumulates of `planes` planes, which differ in their spikes and planes only."""
    row = code[index]
    pack_weights(row, memories.weight + row[ACCUMULATE.weights], scratch.packed, scratch.offsets)
    shape = shape_of(row, row[ACCUMULATE.plane], row[ACCUMULATE.fresh])
    fill(scratch.image, image_bytes(row), 0)
    for step in range(row[ACCUMULATE.steps]):
        for plane in range(planes):
            unpack_spikes(row, step_of(code[index + plane], memories, scratch, step), plane, scratch.image)
        place = 4 * step * row[ACCUMULATE.rows] * row[ACCUMULATE.columns] * row[ACCUMULATE.outputs]
        accumulators = memories.output + row[ACCUMULATE.accumulators] + place
        add_up_step(shape, scratch.image, scratch.packed, scratch.zeros, accumulators, 0)


@njit
def multiply_dense(row, memories, scratch):
    """All steps of a Multiply."""
    pack_weights(row, memories.weight + row[MULTIPLY.weights], scratch.packed, scratch.offsets)
    shape = shape_of(row, 0, row[MULTIPLY.fresh])
    fill(scratch.image, image_bytes(row), OFFSET)
    accumulators = memories.output + row[MULTIPLY.accumulators]
    step_bytes = 4 * row[MULTIPLY.rows] * row[MULTIPLY.columns] * row[MULTIPLY.outputs]
    for step in range(row[MULTIPLY.steps]):
        if step > 0 and row[MULTIPLY.step_stride] == 0 and row[MULTIPLY.fresh]:
            copy_bytes(accumulators + step * step_bytes, accumulators, step_bytes)  # one image at every step
            continue
        unpack_values(row, memories.spike + row[MULTIPLY.values] + step * row[MULTIPLY.step_stride], scratch.image)
        place = accumulators + step * step_bytes
        add_up_step(shape, scratch.image, scratch.packed, scratch.offsets, place, 4 * 64)
