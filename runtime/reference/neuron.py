"""Fire, Pool and Add, as their docstrings say, on whole arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import Add, Fire, Pool, words_of
from isa.word import Charge
from runtime.reference.pe import taps
from runtime.reference.spikes import bits_of, int32_at, read_words, word_indices, words_from, write_words
from runtime.state import State

Integers = NDArray[np.int64]


def fire(each: Fire, state: State) -> None:
    """Charge, compare, reset, and write the spikes, added to the residual where there is one."""
    neurons = each.pixels * each.outputs
    sums = int32_at(state.output, each.accumulators, each.steps * neurons)
    bias = int32_at(state.constant, each.constants, each.outputs)
    threshold = int32_at(state.constant, each.constants + 4 * each.outputs, each.outputs)
    currents = currents_of(each, sums.reshape(each.steps, each.pixels, each.outputs), bias)
    kept = state.output[each.membranes : each.membranes + 2 * neurons]
    held = kept.copy().view("<i2").astype(np.int64).reshape(each.pixels, each.outputs)
    membrane = np.zeros_like(held) if each.start else held
    spikes = np.zeros_like(currents)
    for step in range(each.steps):
        charged = charge(each, membrane, currents[step])
        spikes[step] = charged >= threshold
        reset = charged - threshold if each.soft else 0
        membrane = np.clip(np.where(spikes[step] == 1, reset, charged), -(1 << 15), (1 << 15) - 1)
    kept[:] = membrane.astype("<i2").reshape(-1).view(np.uint8)
    residual = _planes(each, state, each.residual, each.residual_planes)
    _write_planes(each, state, residual + spikes)


def currents_of(each: Fire, sums: Integers, bias: Integers) -> Integers:
    """The neurons' input currents: accumulators rounded to the membrane's unit, and the bias."""
    rounded = (sums + (1 << each.drop >> 1)) >> each.drop
    return (rounded << each.shift) + bias


def charge(each: Fire, membrane: Integers, current: Integers) -> Integers:
    """The membrane before the comparison with the threshold."""
    half = 1 << each.divisor >> 1
    if each.charge == Charge.LIF:
        return membrane + (((current - membrane) * each.multiplier + half) >> each.divisor)
    if each.charge == Charge.LIF_UNDECAYED:
        return membrane + current - ((membrane * each.multiplier + half) >> each.divisor)
    return membrane + current


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


def pool(each: Pool, state: State) -> None:
    """The largest spike of every window."""
    strides, counts = (each.step_stride, each.pixel_stride), (each.steps, each.input_rows * each.input_columns)
    words = read_words(state, word_indices(each.spikes, strides, counts, words_of(each.inputs)))
    pooled = taps(each, bits_of(words, each.inputs)).max(axis=3).astype(np.uint8)  # pyright: ignore
    strides, counts = (each.result_step_stride, each.pixel_stride), (each.steps, each.rows * each.columns)
    places = word_indices(each.result, strides, counts, words_of(each.inputs))
    write_words(state, places, words_from(pooled.reshape(*counts, each.inputs)))


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
