"""Fire, Add, Rescale and Mask, as their docstrings say, on whole arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import CONSTANT_BYTES, MEMBRANE_BYTES, Add, Fire, Mask, Rescale, words_of
from isa.machine import Machine
from isa.word import Charge
from runtime.record import RECORD
from runtime.reference.channels import Live, add_counts, live_channels, live_groups
from runtime.reference.spikes import (
    bits_of,
    int16_at,
    int32_at,
    put_int16,
    read_words,
    word_indices,
    words_from,
    write_words,
)
from runtime.reference.tokens import Kept, kept_tokens
from runtime.state import State

Integers = NDArray[np.int64]


def fire(each: Fire, state: State, machine: Machine, record: Integers) -> None:
    """Charge, compare, reset, and write the spikes, added to the residual where there is one."""
    live, kept = _live(each, state), _kept(each, state)
    shape = (each.pixels, each.outputs)
    threshold = int32_at(state.constant, each.constants + 4 * each.outputs, each.outputs)
    currents = fire_currents(each, state)
    held = each.charge != Charge.NONE and not each.start
    membrane = int16_at(state.output, each.membranes, each.pixels * each.outputs).reshape(shape) if held else 0
    spikes = np.zeros_like(currents)
    for step in range(each.steps):
        charged = charge(each, membrane, currents[step])
        stays = live & kept[step][:, None]
        fired = np.where(stays, emitted(each, charged, threshold), 0)
        reset = charged - fired * threshold if each.soft else 0
        clamped = np.clip(np.where(fired > 0, reset, charged), -(1 << 15), (1 << 15) - 1)
        membrane = np.where(stays, clamped, membrane)
        spikes[step] = 0 if each.mute else fired
    if each.charge != Charge.NONE:
        put_int16(state.output, each.membranes, np.asarray(membrane))
    residual = _planes(each, state, each.residual, each.residual_planes)
    _write_planes(each, state, residual + spikes)
    if each.counted:
        add_counts(state, each.counts_at, spikes.sum(axis=(0, 1)), each.counts_fresh)
    if each.masked or each.kept:
        _count_left(each, live, kept, machine, record)


def _kept(each: Fire | Rescale, state: State) -> Kept:
    """[steps, pixels]: the pixels that are not left out."""
    return kept_tokens(state, each.unit, each.kept, each.steps, each.pixels)


def fire_currents(each: Fire, state: State) -> Integers:
    """The neurons' input currents [steps, pixels, outputs]: accumulators in the membrane's unit, and the bias.

    Of channels that a mask leaves out it is not computed: 0.
    """
    bias = int32_at(state.constant, each.constants, each.outputs)
    rounded = (_accumulators(each, state) + (1 << each.drop >> 1)) >> each.drop
    return np.where(_live(each, state), (rounded << each.shift) + bias, 0)


def _accumulators(each: Fire | Rescale, state: State) -> Integers:
    """[steps, pixels, outputs]; those of one step are the same at every step, those that are absent are 0."""
    shape = (each.steps, each.pixels, each.outputs)
    if each.absent:
        return np.zeros(shape, np.int64)
    values_at, steps = int16_at if each.narrow else int32_at, 1 if each.still else each.steps
    values = values_at(state.output, each.accumulators, steps * each.pixels * each.outputs)
    return np.broadcast_to(values.reshape(steps, *shape[1:]), shape)


def _live(each: Fire, state: State) -> Live:
    """[outputs]: the channels that no mask leaves out."""
    return live_channels(state, each.masked, each.mask, each.outputs)


def _count_left(each: Fire, live: Live, kept: Kept, machine: Machine, record: Integers) -> None:
    """Work, and the accumulators, membranes and constants of the channels and pixels left.

    Membranes are read and written of pixels that any step keeps; those that start are all written.
    """
    pixels, channels = int(kept.sum()), int(live.sum())
    held = each.pixels if each.start else 2 * int(kept.any(axis=0).sum())
    membranes = held * channels * MEMBRANE_BYTES if each.charge else 0
    accumulators = 0 if each.absent else pixels * channels * each.current_bytes
    record[RECORD.work] = pixels * live_groups(live, machine.neuron_lanes)
    record[RECORD.neuron_updates] = pixels * channels
    record[RECORD.output_buffer_bytes] = accumulators + membranes
    record[RECORD.constant_buffer_bytes] = channels * CONSTANT_BYTES


def charge(each: Fire, membrane: Integers | int, current: Integers) -> Integers:
    """The membrane before the comparison with the threshold."""
    half = 1 << each.divisor >> 1
    if each.charge == Charge.LIF:
        return membrane + (((current - membrane) * each.multiplier + half) >> each.divisor)
    if each.charge == Charge.LIF_UNDECAYED:
        return membrane + current - ((membrane * each.multiplier + half) >> each.divisor)
    return current if each.charge == Charge.NONE else membrane + current


def emitted(each: Fire, charged: Integers, threshold: Integers) -> Integers:
    """0 or 1, or with `levels` how many of the thresholds between two levels are reached."""
    if not each.levels:
        return (charged >= threshold).astype(np.int64)
    total = np.zeros_like(charged)
    for level in range(1, each.levels + 1):
        between = (2 * level - 1) * threshold
        above_only = each.ties_even and level % 2
        total += 2 * charged > between if above_only else 2 * charged >= between
    return total


def _places(each: Fire, address: int, plane: int) -> Integers:
    strides, counts = (each.step_stride, each.pixel_stride), (each.steps, each.pixels)
    return word_indices(address + plane * each.plane_stride, strides, counts, words_of(each.outputs))


def _planes(each: Fire, state: State, address: int, planes: int) -> Integers:
    """[steps, pixels, outputs] values of a count train."""
    total = np.zeros((each.steps, each.pixels, each.outputs), np.int64)
    for plane in range(planes):
        words = read_words(state, _places(each, address, plane))
        total += bits_of(words, each.outputs).astype(np.int64) << plane
    return total


def _write_planes(each: Fire, state: State, values: Integers) -> None:
    for plane in range(each.planes):
        bits = (values >> plane & 1).astype(np.uint8)
        write_words(state, _places(each, each.result, plane), words_from(bits))


def add(each: Add, state: State) -> None:
    """Counts of two trains added; planes beyond the result's are dropped."""
    total = np.zeros((each.pixels, each.words * 16), np.int64)
    for address, planes in ((each.left, each.left_planes), (each.right, each.right_planes)):
        for plane in range(planes):
            words = read_words(state, _add_places(each, address, plane))
            total += bits_of(words[0], each.words * 16).astype(np.int64) << plane
    for plane in range(each.planes):
        bits = (total >> plane & 1).astype(np.uint8)
        write_words(state, _add_places(each, each.result, plane), words_from(bits)[None])


def _add_places(each: Add, address: int, plane: int) -> Integers:
    start = address + plane * each.plane_stride
    return word_indices(start, (0, 2 * each.words), (1, each.pixels), each.words)


def rescale(each: Rescale, state: State, machine: Machine, record: Integers) -> None:
    """Accumulators times multipliers, shifted, plus biases and what is to be added: values of a stream."""
    kept = _kept(each, state)
    sums = _accumulators(each, state)
    bias = int32_at(state.constant, each.constants, each.outputs)
    multiplier = int32_at(state.constant, each.constants + 4 * each.outputs, each.outputs)
    top = 1 << (7 if each.small else 15)
    values = np.clip(((sums * multiplier + (1 << each.divisor >> 1)) >> each.divisor) + bias, -top, top - 1)
    values = np.where(kept[:, :, None], values, 0)
    if each.kept:
        pixels = int(kept.sum())
        record[RECORD.work], record[RECORD.mac] = pixels, pixels * each.outputs
        record[RECORD.output_buffer_bytes] = 0 if each.absent else pixels * each.outputs * each.current_bytes
    if each.adds:
        values += int16_at(state.output, each.addend, each.values).reshape(values.shape)
        values = np.clip(values, -top, top - 1)
    if each.small:
        state.output[each.result : each.result + each.values] = values.astype(np.int8).reshape(-1).view(np.uint8)
    else:
        put_int16(state.output, each.result, values)


def mask(each: Mask, state: State) -> None:
    """Spikes where the mask has one for the channel, or for its head."""
    counts, channels = (each.steps, each.tokens), each.heads * each.width
    places = word_indices(each.spikes, (each.step_stride, each.pixel_stride), counts, each.words)
    masks = each.heads if each.by_head else channels
    mask_strides = (each.mask_step_stride, each.mask_pixel_stride)
    gates = bits_of(read_words(state, word_indices(each.mask, mask_strides, counts, words_of(masks))), masks)
    gates = np.repeat(gates, channels // masks, axis=2)
    kept = bits_of(read_words(state, places), channels) & gates
    write_words(state, places + (each.result - each.spikes) // 2, words_from(kept))
