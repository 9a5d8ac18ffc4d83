"""When the sums of a window are done: PEs take them from a list, each as soon as what it is made of is there."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numba import njit

from runtime.sharing.reuse import Reuse

ROW_CYCLES = 2
"""A row's own cycles beside its terms: half of the four that a pair takes (see `Accumulate`)."""
WINDOW_CYCLES = 4
"""Until a window's first sum begins and its last one is written."""


class Schedule(NamedTuple):
    """What the PEs do with the sums of a window, for as many outputs as they have lanes."""

    cycles: int
    """Until the last PE is done."""
    work: int
    """Cycles that PEs are busy, all together."""
    fetched: int
    """Partial sums read to make others."""
    merged: int
    """Partial sums added to rows: reads and writes of a row's accumulators."""


def schedule(reuse: Reuse, elements: int) -> Schedule:
    """List scheduling over `elements` PEs: one that is free takes the first sum whose terms are made."""
    found = _schedule(reuse.starts, reuse.operands, reuse.signs, reuse.channels, reuse.partial, elements)
    return Schedule(*map(int, found))


@njit(nogil=True, cache=True)
def _takes(starts, operands, signs, channels, partial):
    """[partial]: whether a sum takes the place of one of its terms, which nothing made later needs (see `Reuse`)."""
    last, takes = np.full(partial, -1, np.int64), np.zeros(partial, np.bool_)
    for made in range(partial):
        for term in range(starts[made], starts[made + 1]):
            if operands[term] >= channels:
                last[operands[term] - channels] = made
    for made in range(partial):
        for term in range(starts[made], starts[made + 1]):
            each = operands[term] - channels
            if each >= 0 and last[each] == made and signs[term] > 0:
                takes[made] = True
    return takes


@njit(nogil=True, cache=True)
def _uses(starts, operands, channels, partial):
    """Where the users of each partial sum begin in a list of them, and that list; a row uses by its number, too."""
    begins = np.zeros(partial + 1, np.int64)
    for operand in operands:
        if operand >= channels:
            begins[operand - channels + 1] += 1
    for made in range(partial):
        begins[made + 1] += begins[made]
    users, filled = np.empty(begins[partial], np.int64), begins[:-1].copy()
    for made in range(len(starts) - 1):
        for term in range(starts[made], starts[made + 1]):
            each = operands[term] - channels
            if each >= 0:
                users[filled[each]] = made
                filled[each] += 1
    return begins, users


@njit(nogil=True, cache=True)
def _durations(starts, operands, signs, channels, partial):
    """Cycles until each sum is made, and those for adding it to rows behind that; partial sums read."""
    sums = len(starts) - 1
    takes = _takes(starts, operands, signs, channels, partial)
    own, after, fetched = np.zeros(sums, np.int64), np.zeros(sums, np.int64), 0
    for made in range(sums):
        for term in range(starts[made], starts[made + 1]):
            each = operands[term] - channels
            if each < 0 or made < partial:
                own[made] += 1
            else:
                after[each] += 1  # whoever makes it adds it to the row
            fetched += each >= 0 and made < partial
        own[made] += ROW_CYCLES if made >= partial else -1 if takes[made] else 0
    return own, after, fetched


@njit(nogil=True, cache=True)
def _schedule(starts, operands, signs, channels, partial, elements):
    own, after, fetched = _durations(starts, operands, signs, channels, partial)
    begins, users = _uses(starts, operands, channels, partial)
    sums = len(own)
    missing, known = np.zeros(sums, np.int64), np.zeros(sums, np.int64)
    for user in users:
        missing[user] += user < partial
    ready = [each for each in range(sums) if missing[each] == 0]  # ascending, so it is a heap
    waiting = [(known[0], 0) for _ in range(0)]
    free = [0 for _ in range(elements)]
    started, cycles = 0, 0
    while started < sums:
        now = heappop(free)
        while len(waiting) and waiting[0][0] <= now:
            heappush(ready, heappop(waiting)[1])
        if not len(ready):
            heappush(free, waiting[0][0])
            continue
        each = heappop(ready)
        started += 1
        made = now + own[each]
        heappush(free, made + after[each])
        cycles = max(cycles, made + after[each])
        for place in range(begins[each], begins[each + 1]) if each < partial else range(0):
            user = users[place]
            if user >= partial:
                continue
            missing[user] -= 1
            known[user] = max(known[user], made)
            if missing[user] == 0:
                heappush(waiting, (known[user], user))
    return cycles, own.sum() + after.sum(), fetched, after.sum()
