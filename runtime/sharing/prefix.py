"""A row begins with the sum of its largest subset among the rows of the window: product sparsity."""

from __future__ import annotations

import numpy as np
from numba import njit

from runtime.fast.scalar import popcount
from runtime.sharing.reuse import Bits, Reuse, Terms, checked_bits, packed, reuse_of, tiles_of

WIDTH = 16
"""Channels of a tile, as published; a window has 256 rows."""


def prefix(bits: Bits, width: int | None = WIDTH) -> Reuse:
    """Product sparsity (Prosperity): in tiles of `width` channels a row reuses the sum of one other row.

    Of the rows that are subsets of it, with fewer spikes or as many and a smaller index, the one with most spikes (then
    the smallest index). Rows with less than two spikes reuse nothing. A row that others begin with is a partial sum; a
    row that begins with another pays one merge.
    """
    rows = checked_bits(bits)
    return reuse_of(len(rows), (_of_tile(tile) for tile in tiles_of(rows, width)))


def _of_tile(tile: Bits) -> Terms:
    owner, operand, partial = _prefix_terms(tile, packed(tile))
    return Terms(tile.shape[1], partial, owner, operand, np.ones(len(owner), np.int8), len(tile) * tile.size)


@njit(nogil=True, cache=True)
def _largest_subset(words, spikes, row):
    """The row that `row` begins with, or -1."""
    best, most = -1, 0
    for other in range(len(words)):
        fewer = spikes[other] < spikes[row] or (spikes[other] == spikes[row] and other < row)
        if not fewer or spikes[other] <= most:
            continue
        inside = True
        for word in range(words.shape[1]):
            inside = inside and (words[other, word] & ~words[row, word]) == 0
        if inside:
            best, most = other, spikes[other]
    return best


@njit(nogil=True, cache=True)
def _prefix_terms(tile, words):
    """Owners and operands of all terms, and how many partial sums."""
    rows, channels = tile.shape
    spikes = np.zeros(rows, np.int64)
    for row in range(rows):
        for word in words[row]:
            spikes[row] += popcount(np.int64(word))
    parent = np.full(rows, -1, np.int64)
    begins = np.zeros(rows, np.bool_)
    for row in range(rows):
        if spikes[row] >= 2:
            parent[row] = _largest_subset(words, spikes, row)
            if parent[row] >= 0:
                begins[parent[row]] = True
    room = int(tile.sum()) + 2 * rows
    owner, operand = np.empty(room, np.int32), np.empty(room, np.int32)
    sums = np.full(rows, -1, np.int64)
    filled, partial = 0, 0
    for row in np.argsort(spikes * rows + np.arange(rows)):  # subsets first
        of = ~row
        if begins[row]:
            of = sums[row] = partial
            owner[filled], operand[filled] = ~row, channels + partial
            filled, partial = filled + 1, partial + 1
        if parent[row] >= 0:
            owner[filled], operand[filled] = of, channels + sums[parent[row]]
            filled += 1
        for channel in range(channels):
            if tile[row, channel] and not (parent[row] >= 0 and tile[parent[row], channel]):
                owner[filled], operand[filled] = of, channel
                filled += 1
    return owner[:filled].copy(), operand[:filled].copy(), partial
