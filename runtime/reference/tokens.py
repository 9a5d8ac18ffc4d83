"""Kept tokens: latched into the units, scored and chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import Keep, KeepTop, ScoreSpikes, ScoreValues, words_of
from isa.scores import PARTS, largest, token_scores
from isa.word import Unit
from runtime.reference.spikes import bits_of, int16_at, int32_at, put_int32, read_words, word_indices, write_words
from runtime.state import State

Integers = NDArray[np.int64]
Kept = NDArray[np.bool_]


def keep(each: Keep, state: State) -> None:
    """Latch the lowest bit of every word."""
    places = word_indices(each.kept, (2 * each.tokens, 2), (each.steps, each.tokens), 1)
    kept = read_words(state, places) & 1
    latch = state.latch(each.unit)
    latch[: each.steps * each.tokens] = kept.reshape(-1)


def kept_tokens(state: State, unit: Unit, kept: int, steps: int, tokens: int) -> Kept:
    """[steps, tokens]: what a unit latched; all of them for an instruction that is not flagged `kept`."""
    if not kept:
        return np.ones((steps, tokens), np.bool_)
    return state.latch(unit)[: steps * tokens].reshape(steps, tokens).astype(np.bool_)


def score(each: ScoreSpikes | ScoreValues, state: State) -> None:
    """Add a tile's sums over channels to those of its tokens."""
    x = _values(each, state) >> each.drop
    here = slice(each.top, each.top + each.rows)
    if each.pooled:
        total, by_step = x.sum(axis=0), x.sum(axis=-1)
        change = np.abs(np.diff(by_step, axis=0)).sum(axis=0)
        found = [total.sum(axis=-1), (total * total).sum(axis=-1), np.full(change.shape, each.inputs), change]
    else:
        now, before = x[-1], x[-2] if each.steps == 2 else np.zeros_like(x[-1])
        near = _neighbourhood(now, each.kernel)
        found = [(now * near).sum(-1), (now * now).sum(-1), (near * near).sum(-1), np.abs(now - before).sum(-1)]
    sums = np.stack(found, axis=-1)[here].reshape(-1)
    held = 0 if each.fresh else int32_at(state.output, each.sums, sums.size)
    put_int32(state.output, each.sums, held + sums)


def _neighbourhood(x: Integers, kernel: int) -> Integers:
    """[rows, columns, channels]: sums over the windows around every pixel of the tile."""
    reach = kernel // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    return windows.sum(axis=(-1, -2))


def _values(each: ScoreSpikes | ScoreValues, state: State) -> Integers:
    """[steps, input rows, columns, inputs] of spikes, counts, or a stream."""
    shape = (each.steps, each.input_rows, each.columns, each.inputs)
    pixels = each.input_rows * each.columns
    if isinstance(each, ScoreValues):
        steps = [
            int16_at(state.output, each.values + step * each.step_stride, pixels * each.inputs)
            for step in range(each.steps)
        ]
        return np.stack(steps).reshape(shape)
    words, total = words_of(each.inputs), np.zeros(shape, np.int64)
    for plane in range(each.planes):
        start = each.values + plane * each.plane_stride
        places = word_indices(start, (each.step_stride, 2 * words), (each.steps, pixels), words)
        total += bits_of(read_words(state, places), each.inputs).reshape(shape).astype(np.int64) << plane
    return total


def keep_top(each: KeepTop, state: State) -> None:
    """Write the kept train of the tokens with the largest scores."""
    sums = int32_at(state.output, each.sums, each.tokens * PARTS).reshape(each.tokens, PARTS)
    scores = token_scores(sums, bool(each.spatial), bool(each.temporal), each.multiplier, each.divisor)
    kept = largest(scores, each.keep)
    places = word_indices(each.kept, (2 * each.tokens, 2), (each.steps, each.tokens), 1)
    write_words(state, places, np.broadcast_to(kept[None, :, None], places.shape).astype(np.uint16))
