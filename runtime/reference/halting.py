"""Halting totals and weights, the tokens that go on, and sums by the weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import BIAS_ZERO, HaltSpikes, HaltValues, KeepBelow, WeighSpikes, WeighValues, words_of
from isa.scores import SIGMOID, WEIGHT_BITS
from isa.word import Gives
from runtime.reference.spikes import (
    bits_of,
    int16_at,
    int32_at,
    put_int16,
    put_int32,
    read_words,
    word_indices,
    write_words,
)
from runtime.state import State

Integers = NDArray[np.int64]
ONE = 1 << WEIGHT_BITS


def halt(each: HaltSpikes | HaltValues, state: State) -> None:
    """One step after another: scores, what they have added up to, totals and weights."""
    x = _channel_0(each, state)
    shape = (each.steps, each.tokens, 2)
    before = (
        int16_at(state.output, each.before, 2 * each.values).reshape(shape)
        if each.follows
        else np.zeros(shape, np.int64)
    )
    sums = np.zeros(each.tokens, np.int64) if each.start else int16_at(state.output, each.sums, each.tokens)
    multiplier = -each.multiplier if each.negative else each.multiplier
    made = np.zeros(shape, np.int64)
    for step in range(each.steps):
        entered = before[step, :, 0]
        kept = entered < each.limit
        place = ((x[step] * multiplier + (1 << each.divisor >> 1)) >> each.divisor) + each.bias - BIAS_ZERO
        score = np.where(kept, SIGMOID[np.clip(place, 0, len(SIGMOID) - 1)], 0)
        sums = np.minimum(sums + score, ONE)
        total = np.minimum(entered + sums, ONE)
        weight = {
            Gives.SCORE: np.where(total >= each.limit, ONE - entered, score),
            Gives.REST: ONE - entered,
            Gives.WHOLE: np.full_like(entered, ONE),
        }[Gives(each.gives)]
        made[step] = np.stack([total, np.where(kept, weight, 0)], axis=-1)
    put_int16(state.output, each.sums, sums)
    put_int16(state.output, each.state, made)


def _channel_0(each: HaltSpikes | HaltValues, state: State) -> Integers:
    """[steps, tokens]."""
    shape = (each.steps, each.tokens)
    if isinstance(each, HaltValues):
        return int16_at(state.output, each.values_at, each.values).reshape(shape)
    total = np.zeros(shape, np.int64)
    for plane in range(each.planes):
        start = each.values_at + 2 * plane * each.values
        words = read_words(state, word_indices(start, (2 * each.tokens, 2), shape, 1))
        total += (words[..., 0] & 1).astype(np.int64) << plane
    return total


def keep_below(each: KeepBelow, state: State) -> None:
    """1 where the total is below the limit."""
    totals = int16_at(state.output, each.state, 2 * each.steps * each.tokens).reshape(-1, 2)[:, 0]
    places = word_indices(each.kept, (2 * each.tokens, 2), (each.steps, each.tokens), 1)
    write_words(state, places, (totals < each.limit).reshape(places.shape).astype(np.uint16))


def weigh(each: WeighSpikes | WeighValues, state: State) -> None:
    """Values times rounded weights, summed over steps and tokens."""
    shape = (each.steps, each.tokens, each.inputs)
    weights = int16_at(state.output, each.state, 2 * each.steps * each.tokens).reshape(*shape[:2], 2)[..., 1:]
    rounded = (weights + (1 << each.drop >> 1)) >> each.drop
    if isinstance(each, WeighValues):
        x = int16_at(state.output, each.values, each.multiplications).reshape(shape)
    else:
        words = words_of(each.inputs)
        places = word_indices(each.spikes, (2 * words * each.tokens, 2 * words), shape[:2], words)
        x = bits_of(read_words(state, places), each.inputs).astype(np.int64) << each.plane
    before = 0 if each.fresh else int32_at(state.output, each.features, each.inputs)
    put_int32(state.output, each.features, before + (x * rounded).sum(axis=(0, 1)))
