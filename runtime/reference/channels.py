"""Guards: channel masks read, early counts added up, and masks built of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import MOST_COUNT, CountSpikes, Guard, words_of
from runtime.reference.spikes import bits_of, read_words, word_indices, words_from
from runtime.state import State

Live = NDArray[np.bool_]


def live_channels(state: State, masked: int, mask: int, channels: int) -> Live:
    """[channels]: whose bit of the channel mask is 1, if there is one; bits behind the last channel are dropped."""
    if not masked:
        return np.ones(channels, np.bool_)
    octets = state.channel[mask : mask + 2 * words_of(channels)]
    return np.unpackbits(octets, bitorder="little")[:channels].astype(np.bool_)


def live_groups(live: Live, lanes: int) -> int:
    """Groups of `lanes` consecutive channels of which any is live."""
    return sum(bool(live[first : first + lanes].any()) for first in range(0, len(live), lanes))


def add_counts(state: State, counts_at: int, found: NDArray[np.int64], fresh: int) -> None:
    """Add what was found of every channel to its count, which stops at the most that uint16 holds."""
    held = state.channel[counts_at : counts_at + 2 * len(found)].view("<u2")
    held[:] = np.minimum(found + (0 if fresh else held.astype(np.int64)), MOST_COUNT)


def count_spikes(each: CountSpikes, state: State) -> None:
    """Set bits of every channel, whatever their plane."""
    found = np.zeros(each.inputs, np.int64)
    for plane in range(each.planes):
        start, strides = each.spikes + plane * each.plane_stride, (each.step_stride, each.pixel_stride)
        words = read_words(state, word_indices(start, strides, (each.steps, each.tokens), words_of(each.inputs)))
        found += bits_of(words, each.inputs).sum(axis=(0, 1), dtype=np.int64)
    add_counts(state, each.counts_at, found, each.fresh)


def guard(each: Guard, state: State) -> None:
    """A bit for every channel whose count is above the threshold."""
    counts = state.channel[each.counts_at : each.counts_at + 2 * each.channels].view("<u2")
    words = words_from((counts > each.threshold).astype(np.uint8))
    state.channel[each.mask : each.mask + 2 * len(words)] = words.view(np.uint8)
