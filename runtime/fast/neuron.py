"""Fire, Pool and Add: sixteen neurons a vector, and sixteen comparisons are one spike word."""

from __future__ import annotations

from typing import Any

from numba import njit

from isa.word import Charge
from runtime.fast.dma import refresh_mask
from runtime.fast.held import forget
from runtime.fast.places import ADD, FIRE, POOL
from runtime.fast.scalar import load_64, load_u16, store_16, store_64
from runtime.fast.vector import (
    any_bits,
    at_least,
    choose,
    store_lanes,
    vector_load,
    vector_narrow,
    vector_splat,
    vector_widen,
)

LIF, UNDECAYED = int(Charge.LIF), int(Charge.LIF_UNDECAYED)
LANES = 16

_load_16s, _load_32s, _narrow = vector_load(LANES, 16), vector_load(LANES, 32), vector_narrow(16)
_splat_32 = vector_splat(LANES, 32)


def _fire_lanes(bits: int) -> Any:
    """Fire with `bits`-bit arithmetic: 64 is always enough, 32 where `fits_32_bits` says so."""
    widen, splat = vector_widen(bits), vector_splat(LANES, bits)

    @njit
    def fire_lanes(row, memories, first, lanes):
        """Channels first .. first + lanes - 1 of all pixels and steps; `lanes` is at most 16."""
        outputs, pixels, steps = row[FIRE.outputs], row[FIRE.pixels], row[FIRE.steps]
        constants = memories.constant + row[FIRE.constants] + 4 * first
        bias, threshold = widen(_load_32s(constants)), widen(_load_32s(constants + 4 * outputs))
        charge, soft, start, scaled = row[FIRE.charge], row[FIRE.soft], row[FIRE.start], row[FIRE.multiplier] != 1
        shift, multiplier = splat(row[FIRE.shift]), splat(row[FIRE.multiplier])
        drop, dropped = splat(row[FIRE.drop]), splat(1 << row[FIRE.drop] >> 1)
        half, divisor = splat(1 << row[FIRE.divisor] >> 1), splat(row[FIRE.divisor])
        zero, lowest, highest, keep = splat(0), splat(-(1 << 15)), splat((1 << 15) - 1), (1 << lanes) - 1
        membranes = memories.output + row[FIRE.membranes] + 2 * first
        result, residual = memories.spike + row[FIRE.result], memories.spike + row[FIRE.residual]
        planes, residual_planes, plane_stride = row[FIRE.planes], row[FIRE.residual_planes], row[FIRE.plane_stride]
        step_stride, pixel_stride = row[FIRE.step_stride], row[FIRE.pixel_stride]
        step_sums, pixel_offset = 4 * pixels * outputs, first >> 3
        pixel_sums = memories.output + row[FIRE.accumulators] + 4 * first
        for _ in range(pixels):
            v = zero if start else widen(_load_16s(membranes))
            sums, offset = pixel_sums, pixel_offset
            for _ in range(steps):
                x = (((widen(_load_32s(sums)) + dropped) >> drop) << shift) + bias
                if charge == LIF:
                    h = v + ((((x - v) * multiplier if scaled else x - v) + half) >> divisor)
                elif charge == UNDECAYED:
                    h = v + x - (((v * multiplier if scaled else v) + half) >> divisor)
                else:
                    h = v + x
                spikes = at_least(h, threshold)
                v = choose(spikes, h - threshold if soft else zero, h)
                v = choose(at_least(v, lowest), v, lowest)
                v = choose(at_least(highest, v), v, highest)
                if planes == 1 and residual_planes == 0:
                    store_16(result + offset, spikes & keep)
                else:
                    emit(result + offset, residual + offset, planes, residual_planes, plane_stride, spikes & keep, keep)
                sums += step_sums
                offset += step_stride
            store_lanes(membranes, _narrow(v), keep)
            membranes += 2 * outputs
            pixel_sums += 4 * outputs
            pixel_offset += pixel_stride

    return fire_lanes


@njit
def emit(result, residual, planes, residual_planes, plane_stride, spikes, keep):
    """Write one word of spikes, added to the residual's planes bit by bit; only the bits in `keep` exist."""
    for plane in range(planes):
        held = load_u16(residual) & keep if plane < residual_planes else 0
        store_16(result, held ^ spikes)
        spikes &= held
        result += plane_stride
        residual += plane_stride


_fire_32, _fire_64 = _fire_lanes(32), _fire_lanes(64)


@njit
def magnitude(address, count):
    """A number that no |value| of `count` int32 values exceeds."""
    found, address_of_last = _splat_32(0), address + 4 * count
    while address + 4 * LANES <= address_of_last:
        values = _load_32s(address)
        found |= values ^ (values >> _splat_32(31))
        address += 4 * LANES
    if address < address_of_last:
        values = _load_32s(address)
        values = choose((1 << ((address_of_last - address) >> 2)) - 1, values, _splat_32(0))
        found |= values ^ (values >> _splat_32(31))
    return any_bits(found) + 1


@njit
def fits_32_bits(row, memories):
    """Whether no step of the neurons' arithmetic can leave 32 bits, seen from the accumulators as they are."""
    outputs, half = row[FIRE.outputs], 1 << row[FIRE.divisor] >> 1
    sums = magnitude(memories.output + row[FIRE.accumulators], row[FIRE.steps] * row[FIRE.pixels] * outputs)
    sums += 1 << row[FIRE.drop]
    current = (((sums >> row[FIRE.drop]) + 1) << row[FIRE.shift]) + magnitude(
        memories.constant + row[FIRE.constants], outputs
    )
    product = (current + (1 << 15)) * max(row[FIRE.multiplier], 1) + half
    reset = magnitude(memories.constant + row[FIRE.constants] + 4 * outputs, outputs) if row[FIRE.soft] else 0
    return sums + product + current + reset + (1 << 17) < 1 << 31 and row[FIRE.divisor] < 31


@njit
def fire(row, memories, scratch):
    """All neurons of a Fire."""
    outputs = row[FIRE.outputs]
    narrow = fits_32_bits(row, memories)
    last = (row[FIRE.planes] - 1) * row[FIRE.plane_stride] + (row[FIRE.steps] - 1) * row[FIRE.step_stride]
    last += (row[FIRE.pixels] - 1) * row[FIRE.pixel_stride]
    forget(scratch.held, row[FIRE.result], last + 2 * ((outputs + 15) >> 4))
    for first in range(0, outputs, LANES):
        if narrow:
            _fire_32(row, memories, first, min(outputs - first, LANES))
        else:
            _fire_64(row, memories, first, min(outputs - first, LANES))
    size = 2 * ((outputs + 15) >> 4)
    for plane in range(row[FIRE.planes]):
        for step in range(row[FIRE.steps]):
            place = row[FIRE.result] + plane * row[FIRE.plane_stride] + step * row[FIRE.step_stride]
            refresh_pixels(memories, place, row[FIRE.pixels], row[FIRE.pixel_stride], size)


@njit
def refresh_pixels(memories, place, pixels, stride, size):
    """Word mask bits of `pixels` runs of `size` bytes, at once where they lie side by side."""
    if stride == size:
        refresh_mask(memories, place, pixels * size)
        return
    for pixel in range(pixels):
        refresh_mask(memories, place + pixel * stride, size)


@njit
def pool(row, memories, scratch):
    """The OR of the words under every window, four words at a time."""
    size = 2 * ((row[POOL.inputs] + 15) >> 4)
    last = (row[POOL.rows] * row[POOL.columns] - 1) * row[POOL.pixel_stride]
    forget(scratch.held, row[POOL.result], (row[POOL.steps] - 1) * row[POOL.result_step_stride] + last + size)
    for step in range(row[POOL.steps]):
        spikes = memories.spike + row[POOL.spikes] + step * row[POOL.step_stride]
        place = row[POOL.result] + step * row[POOL.result_step_stride]
        for r in range(row[POOL.rows]):
            for c in range(row[POOL.columns]):
                pixel = memories.spike + place + (r * row[POOL.columns] + c) * row[POOL.pixel_stride]
                for octet in range(0, size, 8):
                    put_words(pixel + octet, pooled_words(row, spikes + octet, r, c), octet, size, row[POOL.inputs])
        refresh_pixels(memories, place, row[POOL.rows] * row[POOL.columns], row[POOL.pixel_stride], size)


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
def put_words(address, word, octet, size, channels):
    """Write the words of a 64-bit word that belong to the pixel, bits behind its last channel cleared."""
    left = channels - 8 * octet
    if left >= 64:
        store_64(address, word)
        return
    word &= (1 << left) - 1
    for offset in range(0, size - octet, 2):
        store_16(address + offset, word >> (8 * offset))


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
