"""The signed tree: which row of a tile is made from which other row by adding and subtracting what differs."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from runtime.fast.scalar import popcount
from runtime.sharing.reuse import Bits, packed


def parents(tile: Bits, saving: int) -> NDArray[np.int64]:
    """[rows]: the row that each row is made from, or -1 for one that is made from nothing.

    A minimum spanning tree over the rows and the empty row, grown from the empty one: a row costs its spikes, or the
    spikes in which it differs from another row and `saving` more.
    """
    return _grow(packed(tile), saving)


@njit(nogil=True, cache=True)
def _grow(words, saving):
    rows = len(words)
    cost, parent = np.zeros(rows, np.int64), np.full(rows, -1, np.int64)
    joined = np.zeros(rows, np.bool_)
    for row in range(rows):
        for word in words[row]:
            cost[row] += popcount(np.int64(word))
    for _ in range(rows):
        least = -1
        for row in range(rows):
            if not joined[row] and (least < 0 or cost[row] < cost[least]):
                least = row
        joined[least] = True
        for row in range(rows):
            if joined[row]:
                continue
            differs = saving
            for word in range(words.shape[1]):
                differs += popcount(np.int64(words[row, word] ^ words[least, word]))
            if differs < cost[row]:
                cost[row], parent[row] = differs, least
    return parent
