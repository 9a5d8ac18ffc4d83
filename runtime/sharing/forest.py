"""Our own sharing: intersections, subsets and signed differences over the tokens and timesteps of a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isa.errors import CStepError
from runtime.sharing.intersections import intersect
from runtime.sharing.reuse import Bits, Reuse, Terms, checked_bits, reuse_of, tiles_of
from runtime.sharing.tree import parents

SAVING = 3
"""Spikes that making a row from another must save: its merge, and what intersections would have saved."""
ALL = 1 << 20


def forest(bits: Bits, width: int | None = None, held: int | None = None, signed: bool = True) -> Reuse:
    """A reuse forest over the rows of a window, chosen greedily in tiles of `width` channels (None: all of them).

    First a row may be made from another by signed differences, where that saves something (`signed`); then the two
    terms that most rows have together become a partial sum, again and again, so that a subset of a row and what several
    rows share without being a row are found alike. Each tile is done with and without differences and left as it is,
    and the cheapest is taken: charged never exceeds the spikes. `held` bounds the partial sums stored at once.
    """
    rows = checked_bits(bits)
    if held is not None and held < 0:
        raise CStepError(f"held {held}: partial sums stored at once, 0 or more")
    most = ALL if held is None else held
    return reuse_of(len(rows), (_cheapest(tile, most, signed) for tile in tiles_of(rows, width)))


def signed_tree(bits: Bits, width: int | None = 16, saving: int = 0) -> Reuse:
    """The minimum spanning tree over signed differences alone, in tiles of `width` channels."""
    rows = checked_bits(bits)
    return reuse_of(
        len(rows),
        (_terms(tile, parents(tile, saving), 0, len(tile) * tile.size >> 1) for tile in tiles_of(rows, width)),
    )


def _cheapest(tile: Bits, held: int, signed: bool) -> Terms:
    """The cheapest of the tile's candidates; what all of them compared is charged."""
    alone = np.full(len(tile), -1, np.int64)
    found = [_terms(tile, alone, 0, 0), _within(tile, alone, held, 0)]
    if signed:
        made_from = parents(tile, SAVING)
        if (made_from >= 0).any():
            found.append(_within(tile, made_from, held, len(tile) * tile.size >> 1))
    costs = [_cost(tile, each, held) for each in found]
    best = min(range(len(found)), key=lambda at: (costs[at], at))
    return replace(found[best], matching=sum(each.matching for each in found))


def _cost(tile: Bits, terms: Terms, held: int) -> int:
    """Reads of sums and of weight rows: an accumulation reads both, a merge or a copy only sums."""
    reuse = reuse_of(len(tile), [terms])
    worth = reuse.charged <= np.count_nonzero(tile) and reuse.held <= held
    return reuse.charged + reuse.accumulations if worth else ALL


def _within(tile: Bits, made_from: NDArray[np.int64], held: int, compared: int) -> Terms:
    """With as many intersections as keep at most `held` partial sums stored: the first ones, the others undone."""
    found = every = _terms(tile, made_from, ALL, compared)
    low, high = 0, found.partial
    while reuse_of(len(tile), [found]).held > held and high > low:
        high = (low + high) // 2
        found = _terms(tile, made_from, high, compared)
    return replace(found, matching=every.matching)


def _terms(tile: Bits, made_from: NDArray[np.int64], most: int, compared: int) -> Terms:
    """The sums of a tile: `most` intersections of what the rows have beyond the rows that they are made from."""
    rows = tile.astype(np.int8)
    own = rows - np.where((made_from >= 0)[:, None], rows[made_from], 0).astype(np.int8)
    found = intersect(own, most)
    owner, operand, sign, partial = _listed(found.pairs, found.relation, found.members, made_from, tile.shape[1])
    touched = found.touched * len(tile).bit_length() if most else 0
    return Terms(tile.shape[1], partial, owner, operand, sign, compared + touched)


@njit(nogil=True, cache=True)
def _listed(pairs, relation, members, made_from, channels):
    """Owners, operands and signs of all terms, and how many partial sums.

    Intersections are made first, then the rows that others are made from.
    """
    rows, partial = members.shape[1], len(pairs)
    kept, depth = np.full(rows, -1, np.int64), np.zeros(rows, np.int64)
    for row in range(rows):
        if made_from[row] >= 0:
            kept[made_from[row]] = 0
        above = made_from[row]
        while above >= 0:
            depth[row] += 1
            above = made_from[above]
    room = 2 * partial + np.count_nonzero(members) + 2 * rows
    owner, operand, sign = np.empty(room, np.int32), np.empty(room, np.int32), np.ones(room, np.int8)
    filled = 0
    for made in range(partial):
        for side in range(2):
            owner[filled], operand[filled] = made, pairs[made, side]
            sign[filled] = relation[made] if side else 1
            filled += 1
    order = np.argsort(depth * rows + np.arange(rows))
    for row in order:
        if kept[row] >= 0:
            kept[row] = partial
            owner[filled], operand[filled] = ~row, channels + partial
            filled, partial = filled + 1, partial + 1
    for row in order:
        of = kept[row] if kept[row] >= 0 else ~row
        if made_from[row] >= 0:
            owner[filled], operand[filled] = of, channels + kept[made_from[row]]
            filled += 1
        for term in range(len(members)):
            if members[term, row]:
                owner[filled], operand[filled], sign[filled] = of, term, members[term, row]
                filled += 1
    return owner[:filled].copy(), operand[:filled].copy(), sign[:filled].copy(), partial
