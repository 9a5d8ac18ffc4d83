"""Fire: sixteen neurons a vector, and sixteen comparisons are one spike word."""

from __future__ import annotations

from typing import Any

from numba import njit

from isa.instructions import CONSTANT_BYTES, MEMBRANE_BYTES
from isa.word import Charge
from runtime.fast.channels import live_channels, live_groups, mask_bits, put_counts
from runtime.fast.dma import refresh_pixels
from runtime.fast.held import forget, forget_masked
from runtime.fast.places import FIRE
from runtime.fast.scalar import load_u8, load_u16, store_16
from runtime.fast.tokens import count_kept
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
from runtime.record import RECORD

NONE, LIF, UNDECAYED = int(Charge.NONE), int(Charge.LIF), int(Charge.LIF_UNDECAYED)
LANES = 16

_load_16s, _load_32s, _narrow = vector_load(LANES, 16), vector_load(LANES, 32), vector_narrow(16)
_splat_32 = vector_splat(LANES, 32)


def _fire_lanes(bits: int, guarded: bool) -> Any:
    """Fire with `bits`-bit arithmetic: 64 is always enough, 32 where `fits_32_bits` says so.

    `guarded`: with counts, masks, kept tokens and muting. Without, the loop is nearly twice as fast.
    """
    widen, splat = vector_widen(bits), vector_splat(LANES, bits)

    @njit
    def fire_lanes(row, memories, scratch, first, lanes):
        """Channels first .. first + lanes - 1 of all pixels and steps; `lanes` is at most 16.

        `keep`: the lanes that exist; `live`: those that no channel mask leaves out; `heard`: those whose spikes count.
        """
        outputs, pixels, steps = row[FIRE.outputs], row[FIRE.pixels], row[FIRE.steps]
        constants = memories.constant + row[FIRE.constants] + 4 * first
        bias, threshold = widen(_load_32s(constants)), widen(_load_32s(constants + 4 * outputs))
        charge, soft, scaled = row[FIRE.charge], row[FIRE.soft], row[FIRE.multiplier] != 1
        start, keeps = row[FIRE.start] or charge == NONE, charge != NONE
        shift, multiplier = splat(row[FIRE.shift]), splat(row[FIRE.multiplier])
        drop, dropped = splat(row[FIRE.drop]), splat(1 << row[FIRE.drop] >> 1)
        half, divisor = splat(1 << row[FIRE.divisor] >> 1), splat(row[FIRE.divisor])
        zero, lowest, highest, keep = splat(0), splat(-(1 << 15)), splat((1 << 15) - 1), (1 << lanes) - 1
        membranes = memories.output + row[FIRE.membranes] + 2 * first
        result, residual = memories.spike + row[FIRE.result], memories.spike + row[FIRE.residual]
        planes, residual_planes, plane_stride = row[FIRE.planes], row[FIRE.residual_planes], row[FIRE.plane_stride]
        step_stride, pixel_stride = row[FIRE.step_stride], row[FIRE.pixel_stride]
        levels, ties_even, narrow = row[FIRE.levels], row[FIRE.ties_even], row[FIRE.narrow]
        counted, counts, one = guarded and row[FIRE.counted] != 0, _splat_32(0), _splat_32(1)
        live = heard = keep
        if guarded and row[FIRE.masked]:
            live &= mask_bits(memories.channel + row[FIRE.mask], first, LANES)
        if guarded:
            heard = 0 if row[FIRE.mute] else live
        size = 2 if narrow else 4
        step_sums, pixel_offset = size * pixels * outputs, first >> 3
        pixel_sums, pixel_stride_of_sums = memories.output + row[FIRE.accumulators] + size * first, size * outputs
        if guarded and row[FIRE.still]:
            step_sums = 0
        if guarded and row[FIRE.absent]:
            pixel_sums, pixel_stride_of_sums, step_sums = scratch.zeros, 0, 0
        tokens, stays, heard_of_all = guarded and row[FIRE.kept] != 0, keep, heard
        for pixel in range(pixels):
            v = zero if start else widen(_load_16s(membranes))
            sums, offset = pixel_sums, pixel_offset
            for step in range(steps):
                before = v
                if tokens:
                    stays = keep if load_u8(memories.kept_neurons + step * pixels + pixel) != 0 else 0
                    heard = heard_of_all & stays
                summed = widen(_load_16s(sums)) if narrow else widen(_load_32s(sums))
                x = (((summed + dropped) >> drop) << shift) + bias
                if charge == LIF:
                    h = v + ((((x - v) * multiplier if scaled else x - v) + half) >> divisor)
                elif charge == UNDECAYED:
                    h = v + x - (((v * multiplier if scaled else v) + half) >> divisor)
                elif charge == NONE:
                    h = x
                else:
                    h = v + x
                if levels:
                    spikes, reduced = put_levels(
                        h, threshold, result + offset, plane_stride, planes, levels, ties_even, heard
                    )
                    v = reduced if soft else choose(spikes, zero, h)
                    if counted:
                        counts += levels_at(result + offset, plane_stride, planes)
                else:
                    spikes = at_least(h, threshold)
                    v = choose(spikes, h - threshold if soft else zero, h)
                    if planes == 1 and residual_planes == 0:
                        store_16(result + offset, spikes & heard)
                    else:
                        fired = spikes & heard
                        emit(result + offset, residual + offset, planes, residual_planes, plane_stride, fired, keep)
                    if counted:
                        counts += choose(spikes & heard, one, _splat_32(0))
                v = choose(at_least(v, lowest), v, lowest)
                v = choose(at_least(highest, v), v, highest)
                if tokens:
                    v = choose(stays, v, before)
                sums += step_sums
                offset += step_stride
            if keeps:
                if guarded:
                    v = choose(live, v, zero)
                store_lanes(membranes, _narrow(v), keep if start else live)
            membranes += 2 * outputs
            pixel_sums += pixel_stride_of_sums
            pixel_offset += pixel_stride
        if counted:
            put_counts(memories.channel + row[FIRE.counts_at] + 2 * first, counts, row[FIRE.counts_fresh] != 0, keep)

    return fire_lanes


@njit
def levels_at(result, plane_stride, planes):
    """Sixteen levels, as they were written."""
    total, none = _splat_32(0), _splat_32(0)
    for plane in range(planes):
        total += choose(load_u16(result + plane * plane_stride), _splat_32(1 << plane), none)
    return total


@njit
def put_levels(h, threshold, result, plane_stride, planes, levels, ties_even, keep):
    """Write the planes of sixteen levels; returns which are not 0, and h less level times threshold.

    The level counts the comparisons that hold, added up bit plane by bit plane.
    """
    double, between, step = h + h, threshold, threshold + threshold
    ones, twos, fours, eights = 0, 0, 0, 0
    for level in range(1, levels + 1):
        reached = ~at_least(between, double) if ties_even and level & 1 else at_least(double, between)
        h = choose(reached, h - threshold, h)
        carry = ones & reached
        ones ^= reached
        eights ^= fours & twos & carry
        fours ^= twos & carry
        twos ^= carry
        between += step
    spikes = ones | twos | fours | eights
    for _ in range(planes):
        store_16(result, ones & keep)
        ones, twos, fours, eights = twos, fours, eights, 0
        result += plane_stride
    return spikes, h


@njit
def emit(result, residual, planes, residual_planes, plane_stride, spikes, keep):
    """Write one word of spikes, added to the residual's planes bit by bit; only the bits in `keep` exist."""
    for plane in range(planes):
        held = load_u16(residual) & keep if plane < residual_planes else 0
        store_16(result, held ^ spikes)
        spikes &= held
        result += plane_stride
        residual += plane_stride


_fire_32, _fire_64 = _fire_lanes(32, False), _fire_lanes(64, False)
_fire_32_guarded, _fire_64_guarded = _fire_lanes(32, True), _fire_lanes(64, True)


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
    sums = 1 << 15
    if not row[FIRE.narrow] and not row[FIRE.absent]:
        steps = 1 if row[FIRE.still] else row[FIRE.steps]
        sums = magnitude(memories.output + row[FIRE.accumulators], steps * row[FIRE.pixels] * outputs)
    sums += 1 << row[FIRE.drop]
    current = (((sums >> row[FIRE.drop]) + 1) << row[FIRE.shift]) + magnitude(
        memories.constant + row[FIRE.constants], outputs
    )
    product = (current + (1 << 15)) * max(row[FIRE.multiplier], 1) + half
    levels, thresholds = row[FIRE.levels], 0
    if row[FIRE.soft] or levels:
        thresholds = magnitude(memories.constant + row[FIRE.constants] + 4 * outputs, outputs)
    charged = sums + product + current + thresholds + (1 << 17)
    if charged >= 1 << 31 or row[FIRE.divisor] >= 31:
        return False
    return 2 * charged + (2 * levels + 1) * thresholds < 1 << 31 if levels else True


@njit
def fire_plain(row, memories, scratch, fits):
    """All neurons of a Fire without any flag that needs the other kernels."""
    outputs = row[FIRE.outputs]
    for first in range(0, outputs, LANES):
        if fits:
            _fire_32(row, memories, scratch, first, min(outputs - first, LANES))
        else:
            _fire_64(row, memories, scratch, first, min(outputs - first, LANES))


@njit
def fire_guarded(row, memories, scratch, fits):
    """All neurons of any Fire."""
    outputs = row[FIRE.outputs]
    for first in range(0, outputs, LANES):
        if fits:
            _fire_32_guarded(row, memories, scratch, first, min(outputs - first, LANES))
        else:
            _fire_64_guarded(row, memories, scratch, first, min(outputs - first, LANES))


@njit
def count_left(row, memories, sizes, record):
    """Work, and the accumulators, membranes and constants of the channels and pixels left."""
    mask, outputs, pixels = memories.channel + row[FIRE.mask], row[FIRE.outputs], row[FIRE.pixels]
    live, groups = outputs, (outputs + sizes.neuron_lanes - 1) // sizes.neuron_lanes
    if row[FIRE.masked]:
        live, groups = live_channels(mask, outputs), live_groups(mask, outputs, sizes.neuron_lanes)
    fired, touched, size = row[FIRE.steps] * pixels, pixels, 2 if row[FIRE.narrow] else 4
    if row[FIRE.kept]:
        fired, touched = count_kept(memories.kept_neurons, fired), 0
        for pixel in range(pixels):
            touched += kept_at_all(memories.kept_neurons + pixel, row[FIRE.steps], pixels)
    held = pixels if row[FIRE.start] else 2 * touched
    membranes = held * live * MEMBRANE_BYTES if row[FIRE.charge] != NONE else 0
    accumulators = 0 if row[FIRE.absent] else fired * live * size
    record[RECORD.work] = fired * groups
    record[RECORD.neuron_updates] = fired * live
    record[RECORD.output_buffer_bytes] = accumulators + membranes
    record[RECORD.constant_buffer_bytes] = live * CONSTANT_BYTES


@njit
def kept_at_all(kept, steps, pixels):
    """1 for a pixel that is kept at any step, else 0."""
    found = 0
    for step in range(steps):
        found |= load_u8(kept + step * pixels)
    return found


@njit
def fire(row, memories, scratch, sizes, record):
    """All neurons of a Fire, and what a channel mask leaves of its counts."""
    outputs = row[FIRE.outputs]
    fits = fits_32_bits(row, memories)
    size = 2 * ((outputs + 15) >> 4)
    last = (row[FIRE.planes] - 1) * row[FIRE.plane_stride] + (row[FIRE.steps] - 1) * row[FIRE.step_stride]
    last += (row[FIRE.pixels] - 1) * row[FIRE.pixel_stride]
    forget(scratch.held, row[FIRE.result], last + size)
    if row[FIRE.masked] or row[FIRE.kept]:
        count_left(row, memories, sizes, record)
    if row[FIRE.counted]:
        forget_masked(scratch.held)
    special = row[FIRE.masked] or row[FIRE.counted] or row[FIRE.mute] or row[FIRE.still] or row[FIRE.absent]
    if special or row[FIRE.kept]:
        fire_guarded(row, memories, scratch, fits)
    else:
        fire_plain(row, memories, scratch, fits)
    for plane in range(row[FIRE.planes]):
        for step in range(row[FIRE.steps]):
            place = row[FIRE.result] + plane * row[FIRE.plane_stride] + step * row[FIRE.step_stride]
            refresh_pixels(memories, place, row[FIRE.pixels], row[FIRE.pixel_stride], size)
