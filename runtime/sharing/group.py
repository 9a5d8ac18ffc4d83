"""Rows that are grouped beforehand share what they have in common: pairs as the C-STEP machine has them, and more."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isa.errors import CStepError
from runtime.sharing.reuse import Bits, Reuse, Terms, checked_bits, reuse_of


def pair(bits: Bits) -> Reuse:
    """Rows 2 i and 2 i + 1 of [rows, channels] make the sum of what both have once (C-STEP, locally common spikes).

    A last row without a partner shares nothing. Charged are two merges where anything is common: the machine's
    `sop_hw`, as the accumulations are its `sop_union`.
    """
    return group(bits, 2)


def group(bits: Bits, size: int) -> Reuse:
    """Every `size` adjacent rows share, in nested halves: all, then each half what it has beyond that, then each row.

    Of rows a, b, c, d the sum of a & b & c & d is made first; that of a & b begins with it. Where a half has nothing
    beyond the whole it makes no sum of its own. Raises CStepError where `size` is no power of two from 2 on.
    """
    if size < 2 or size & (size - 1):
        raise CStepError(f"groups of {size} rows: it must be a power of two, 2 or more")
    rows = checked_bits(bits)
    places = np.arange(-(-len(rows) // size) * size).reshape(-1, size)
    return share_within(rows, np.where(places < len(rows), places, -1))


def share_within(rows: Bits, groups: NDArray[np.integer]) -> Reuse:
    """Sums of rows that share in nested halves of `groups` [groups, size], -1 for a place without a row."""
    owner, operand, partial = _nested(rows, np.ascontiguousarray(groups, np.int64))
    signs = np.ones(len(owner), np.int8)
    compared = len(groups) * (groups.shape[1] - 1) * rows.shape[1]
    return reuse_of(len(rows), [Terms(rows.shape[1], partial, owner, operand, signs, compared)])


@njit(nogil=True, cache=True)
def _nested(rows, groups):
    """Owners and operands of all terms, and how many partial sums; see `Terms`."""
    channels, size, bits = rows.shape[1], groups.shape[1], int(rows.sum())
    room = bits + 2 * size * len(groups)
    owner, operand = np.empty(room, np.int32), np.empty(room, np.int32)
    filled, partial = 0, 0
    both = np.empty((2 * size, channels), np.uint8)  # a heap: 1 is the whole group, 2 n and 2 n + 1 are halves of n
    sums = np.empty(2 * size, np.int64)
    for places in groups:
        for at in range(2 * size - 1, 0, -1):
            if at >= size and places[at - size] >= 0:
                both[at] = rows[places[at - size]]
            elif at < size and not _lone(places, at, size):
                both[at] = both[2 * at] & both[2 * at + 1]
            else:
                both[at] = 0  # nothing to share with a place that has no row
        for at in range(1, 2 * size):
            above = sums[at >> 1] if at > 1 else -1
            place = places[at - size] if at >= size else -1
            if at >= size and place < 0:
                continue
            first = filled
            for channel in range(channels):
                if both[at, channel] and not (at > 1 and both[at >> 1, channel]):
                    operand[filled] = channel
                    filled += 1
            if at < size and filled == first:
                sums[at] = above
                continue
            if above >= 0:
                operand[filled] = channels + above
                filled += 1
            owner[first:filled] = ~place if at >= size else partial
            if at < size:
                sums[at] = partial
                partial += 1
    return owner[:filled].copy(), operand[:filled].copy(), partial


@njit(nogil=True, cache=True)
def _lone(places, at, size):
    """Whether the rows under place `at` of the heap are not all there."""
    while at < size:
        at = 2 * at + 1  # places without a row are the last ones
    return places[at - size] < 0
