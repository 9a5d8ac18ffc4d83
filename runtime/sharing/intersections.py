"""Intersections that are no row themselves: the two terms that most rows have together become a partial sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray


@dataclass(frozen=True)
class Intersections:
    """Partial sums of two terms each, and what is left of the rows.

    `pairs` [sums, 2]: terms, a channel or `channels` + an earlier sum; `relation` [sums]: 1 for a sum of the two, -1
    for the first less the second. `members` [terms, rows]: -1, 0 or 1, how each row uses each channel and each sum.
    """

    pairs: NDArray[np.int32]
    relation: NDArray[np.int8]
    members: NDArray[np.int8]
    touched: int
    """Counters that were changed or compared."""


def intersect(rows: NDArray[np.int8], most: int) -> Intersections:
    """Greedily replace the pair of terms that most rows of [rows, channels] (-1, 0, 1) have together by their sum.

    Ends where no two rows have a pair in common, or with `most` sums. A row that has the pair with the other sign uses
    the sum negated. How often each pair occurs is counted once and then kept up to date.
    """
    signed = bool((rows < 0).any())
    room = rows.shape[1] + min(most, int(np.count_nonzero(rows)))
    members = np.zeros((room, len(rows)), np.int8)
    members[: rows.shape[1]] = rows.T
    counts = np.zeros((2 if signed else 1, room, room), np.int16 if len(rows) < 1 << 15 else np.int32)
    channels = rows.shape[1]
    pairs, relation, touched = _intersect(members, counts, channels)
    order = _depth_first(pairs, channels)
    place = np.concatenate([np.arange(channels), channels + np.argsort(order)])  # where each term has gone
    terms = np.concatenate([np.arange(channels), channels + order])
    return Intersections(place[pairs[order]].astype(np.int32), relation[order], members[terms], touched)


@njit(cache=True)
def _depth_first(pairs, channels):
    """An order of making in which few sums wait to be used, and most are used up by the sum made next."""
    sums = len(pairs)
    ends, made = np.ones(sums, np.bool_), np.zeros(sums, np.bool_)
    for each in range(sums):
        for term in pairs[each]:
            if term >= channels:
                ends[term - channels] = False
    order, stack = np.empty(sums, np.int64), np.empty(3 * sums, np.int64)
    filled = 0
    for end in range(sums - 1, -1, -1):
        if not ends[end]:
            continue
        stack[0], height = end, 1
        while height:
            each, waits = stack[height - 1], False
            for term in pairs[each]:
                if term >= channels and not made[term - channels]:
                    stack[height] = term - channels
                    height, waits = height + 1, True
            if waits:
                continue
            height -= 1
            if not made[each]:
                made[each] = True
                order[filled] = each
                filled += 1
    return order


@njit(cache=True)
def _count(counts, first, second, product, change):
    """Change the count of a pair; its place is [relation, larger term, smaller term]."""
    counts[0 if product > 0 else 1, max(first, second), min(first, second)] += change


@njit(cache=True)
def _find_best(counts, term, best, partner, relation):
    """The pair of `term` and an earlier one that occurs most often."""
    best[term] = 0
    for kind in range(len(counts)):
        for other in range(term):
            if counts[kind, term, other] > best[term]:
                best[term], partner[term], relation[term] = counts[kind, term, other], other, 1 - 2 * kind
    return term * len(counts)


@njit(cache=True)
def _intersect(members, counts, channels):
    room, rows = members.shape
    used, size = np.zeros((rows, channels), np.int32), np.zeros(rows, np.int64)  # the terms of every row
    touched = 0
    for row in range(rows):
        for term in range(channels):
            if members[term, row]:
                for at in range(size[row]):
                    other = used[row, at]
                    _count(counts, term, other, members[term, row] * members[other, row], 1)
                touched += size[row]
                used[row, size[row]] = term
                size[row] += 1
    best, partner = np.zeros(room, np.int64), np.zeros(room, np.int64)
    relation = np.ones(room, np.int8)
    for term in range(channels):
        touched += _find_best(counts, term, best, partner, relation)
    pairs, relations = np.zeros((room - channels, 2), np.int32), np.ones(room - channels, np.int8)
    terms = channels
    while terms < room:
        first = np.argmax(best[:terms])
        touched += terms
        if best[first] < 2:
            break
        second, kind = partner[first], relation[first]
        pairs[terms - channels] = first, second
        relations[terms - channels] = kind
        for row in range(rows):
            if members[first, row] * members[second, row] == kind:
                touched += _replace(members, counts, used[row], size, row, first, second, terms)
        terms += 1
        for term in range(terms):
            changed = term in (first, second, terms - 1) or partner[term] in (first, second)
            if changed and (best[term] or term == terms - 1):
                touched += _find_best(counts, term, best, partner, relation)
    return pairs[: terms - channels].copy(), relations[: terms - channels].copy(), touched


@njit(cache=True)
def _replace(members, counts, used, size, row, first, second, made):
    """In one row, the sum `made` for its two terms."""
    _count(counts, first, second, members[first, row] * members[second, row], -1)
    kept, sign = 0, members[first, row]
    for at in range(size[row]):
        other = used[at]
        if other in (first, second):
            continue
        value = members[other, row]
        _count(counts, first, other, members[first, row] * value, -1)
        _count(counts, second, other, members[second, row] * value, -1)
        _count(counts, made, other, sign * value, 1)
        used[kept] = other
        kept += 1
    used[kept] = made
    size[row] = kept + 1
    members[first, row], members[second, row], members[made, row] = 0, 0, sign
    return 3 * kept + 1
