"""Pool, PoolValues and Dilate: every window gathered, and its largest value."""

from __future__ import annotations

import numpy as np

from isa.instructions import Dilate, Pool, PoolValues, words_of
from runtime.reference.pe import taps
from runtime.reference.spikes import bits_of, put_int16, read_words, word_indices, words_from, write_words
from runtime.state import State


def pool(each: Pool, state: State) -> None:
    """The largest count of every window; a spike is a count of one plane."""
    words, pixels = words_of(each.inputs), each.input_rows * each.input_columns
    counts = np.zeros((each.steps, pixels, each.inputs), np.uint8)
    for plane in range(each.planes):
        start = each.spikes + plane * each.steps * each.step_stride
        places = word_indices(start, (each.step_stride, each.pixel_stride), (each.steps, pixels), words)
        counts |= bits_of(read_words(state, places), each.inputs) << plane
    pooled = taps(each, counts).max(axis=3).reshape(each.steps, -1, each.inputs)
    for plane in range(each.planes):
        start = each.result + plane * each.steps * each.result_step_stride
        places = word_indices(start, (each.result_step_stride, each.pixel_stride), pooled.shape[:2], words)
        write_words(state, places, words_from(pooled >> plane & 1))


def pool_values(each: PoolValues, state: State) -> None:
    """The largest value of every window."""
    steps = each.values + each.step_stride * np.arange(each.steps)[:, None, None]
    pixels = each.pixel_stride * np.arange(each.input_rows * each.input_columns)[:, None]
    octets = steps + pixels + 2 * np.arange(each.inputs)
    values = state.output[octets[..., None] + np.arange(2)].view("<i2")[..., 0]
    pooled = taps(each, values, outside=-(1 << 15)).max(axis=3)
    put_int16(state.output, each.result, pooled.astype(np.int64))


def dilate(each: Dilate, state: State) -> None:
    """The OR over a window of tokens and of the channels of a head."""
    places = word_indices(each.spikes, (each.step_stride, each.pixel_stride), (each.steps, each.tokens), each.words)
    bits = bits_of(read_words(state, places), each.heads * each.width)
    around = np.pad(
        bits.reshape(each.steps, each.tokens, each.heads, each.width),
        ((0, 0), (each.reach, each.reach), (0, 0), (each.reach, each.reach)),
    )
    size = 2 * each.reach + 1
    found = np.lib.stride_tricks.sliding_window_view(around, (size, size), axis=(1, 3)).max(axis=(4, 5))
    write_words(state, places + (each.result - each.spikes) // 2, words_from(found.reshape(bits.shape)))
