"""Spikes in and out of the spike buffer, spelt out bit by bit with numpy; the word mask follows every write."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.state import State

Bits = NDArray[np.uint8]


def word_mask(state: State) -> Bits:
    """0 or 1 for every word of the spike buffer: whether it is non-zero."""
    return np.unpackbits(state.mask, bitorder="little")


def refresh_mask(state: State, first_byte: int, size: int) -> None:
    """Set the word mask bits of all words that the bytes first_byte .. first_byte + size - 1 touch."""
    first, stop = first_byte // 2, (first_byte + size + 1) // 2
    bits = word_mask(state)
    padded = np.zeros(2 * stop, np.uint8)
    held = state.spike[: 2 * stop]
    padded[: len(held)] = held
    bits[first:stop] = padded.view("<u2")[first:stop] != 0
    state.mask[:] = np.packbits(bits, bitorder="little")


def word_indices(address: int, strides: tuple[int, int], counts: tuple[int, int], words: int) -> NDArray[np.int64]:
    """Index in the spike buffer of every word of [i, j, word], loops i and j with strides in bytes."""
    start = address + strides[0] * np.arange(counts[0])[:, None, None] + strides[1] * np.arange(counts[1])[:, None]
    return start // 2 + np.arange(words)


def read_words(state: State, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The words at `indices`, only those that the word mask keeps; the others are zero."""
    spike_words = state.spike[: len(state.spike) // 2 * 2].view("<u2")
    kept = word_mask(state)[indices]
    found = np.zeros(indices.shape, np.uint16)
    found[kept == 1] = spike_words[indices[kept == 1]]
    return found


def bits_of(words: NDArray[np.uint16], channels: int) -> Bits:
    """uint8 [..., channels], 0 or 1, of words [..., word]; bits behind the last channel are dropped."""
    octets = words.astype("<u2")[..., None].view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")
    return bits.reshape(*words.shape[:-1], -1)[..., :channels]


def words_from(bits: Bits) -> NDArray[np.uint16]:
    """Words [..., word] of bits [..., channels]; the unused high bits of the last word are zero."""
    channels = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], -(-channels // 16) * 16), np.uint8)
    padded[..., :channels] = bits
    return np.ascontiguousarray(np.packbits(padded, axis=-1, bitorder="little")).view("<u2")


def write_words(state: State, indices: NDArray[np.int64], words: NDArray[np.uint16]) -> None:
    """Write words and their mask bits."""
    state.spike[: len(state.spike) // 2 * 2].view("<u2")[indices] = words
    bits = word_mask(state)
    bits[indices] = words != 0
    state.mask[:] = np.packbits(bits, bitorder="little")


def int32_at(region: NDArray[np.uint8], address: int, count: int) -> NDArray[np.int64]:
    """`count` int32 values at a byte address, as int64."""
    return region[address : address + 4 * count].copy().view("<i4").astype(np.int64)


def int16_at(region: NDArray[np.uint8], address: int, count: int) -> NDArray[np.int64]:
    """`count` int16 values at a byte address, as int64."""
    return region[address : address + 2 * count].copy().view("<i2").astype(np.int64)


def put_int16(region: NDArray[np.uint8], address: int, values: NDArray[np.int64]) -> None:
    """Write values as int16 at a byte address."""
    region[address : address + 2 * values.size] = values.astype("<i2").reshape(-1).view(np.uint8)


def put_int32(region: NDArray[np.uint8], address: int, values: NDArray[np.int64]) -> None:
    """Write values as int32 at a byte address; what does not fit wraps, as it would in the slot."""
    region[address : address + 4 * values.size] = values.astype("<i4").reshape(-1).view(np.uint8)
