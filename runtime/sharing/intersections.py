"""Intersections that are no row themselves: the two terms that most rows have together become a partial sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

SUMS = 1024
"""So many sums have room for their counts at first; a triangle of pairs grows behind its end."""


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
    first = min(room, rows.shape[1] + SUMS)
    counts = np.zeros((2 if signed else 1, first * (first - 1) // 2), np.int16 if len(rows) < 1 << 15 else np.int32)
    channels = rows.shape[1]
    pairs, relation, touched = _intersect(members, counts, channels)
    order = _depth_first(pairs, channels)
    place = np.concatenate([np.arange(channels), channels + np.argsort(order)])  # where each term has gone
    terms = np.concatenate([np.arange(channels), channels + order])
    return Intersections(place[pairs[order]].astype(np.int32), relation[order], members[terms], touched)


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def _count(counts, first, second, product, change):
    """Change the count of a pair; its place is [relation, that of the pair among those of smaller terms]."""
    larger, smaller = max(first, second), min(first, second)
    counts[0 if product > 0 else 1, (larger * (larger - 1) >> 1) + smaller] += change


@njit(nogil=True, cache=True)
def _queue(queue, heads, filled, count, kind, first, second):
    """Put a pair into the list of its count: a row (kind, larger term, smaller term, next row)."""
    queue[filled, 0], queue[filled, 1], queue[filled, 2], queue[filled, 3] = kind, first, second, heads[count]
    heads[count] = filled
    return filled + 1


@njit(nogil=True, cache=True)
def _count_all(members, counts, used, size):
    """Count every pair of terms of every row, and list the terms of each row; returns the counters changed."""
    touched = 0
    for row in range(members.shape[1]):
        for term in range(used.shape[1]):
            if members[term, row]:
                for at in range(size[row]):
                    _count(counts, term, used[row, at], members[term, row] * members[used[row, at], row], 1)
                touched += size[row]
                used[row, size[row]] = term
                size[row] += 1
    return touched


@njit(nogil=True, cache=True)
def _intersect(members, counts, channels):
    """Pairs, relations and counters touched.

    Pairs wait in a list for each count. Counts only fall, but for those of a new sum, so a pair is moved to another
    list when its turn comes and not before.
    """
    room, rows = members.shape
    used, size = np.zeros((rows, channels), np.int32), np.zeros(rows, np.int64)
    touched = _count_all(members, counts, used, size)
    heads = np.full(rows + 1, -1, np.int64)
    queue, filled = np.empty((len(counts) * (channels * channels + room), 4), np.int64), 0
    pairs, relations = np.zeros((room - channels, 2), np.int32), np.ones(room - channels, np.int8)
    terms, fresh, most = channels, 0, rows
    while True:
        for term in range(fresh, terms):
            if filled + len(counts) * term > len(queue):
                queue = np.concatenate((queue, np.empty_like(queue)))
            for kind in range(len(counts)):
                for other in range(term):
                    count = counts[kind, (term * (term - 1) >> 1) + other]
                    touched += count > 0
                    if count >= 2:
                        filled = _queue(queue, heads, filled, count, kind, term, other)
        fresh = terms
        while most >= 2 and heads[most] < 0:
            most -= 1
        if most < 2 or terms == room:
            return pairs[: terms - channels].copy(), relations[: terms - channels].copy(), touched
        place = heads[most]
        kind, first, second, heads[most] = queue[place]
        count = counts[kind, (first * (first - 1) >> 1) + second]
        touched += 1
        if count < most:
            if count >= 2:
                _queue(queue, heads, place, count, kind, first, second)
            continue
        while terms * (terms + 1) >> 1 > counts.shape[1]:
            counts = np.concatenate((counts, np.zeros_like(counts)), axis=1)
        pairs[terms - channels] = first, second
        relations[terms - channels] = 1 - 2 * kind
        for row in range(rows):
            if members[first, row] * members[second, row] == 1 - 2 * kind:
                touched += _replace(members, counts, used[row], size, row, first, second, terms)
        terms += 1


@njit(nogil=True, cache=True)
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
