"""How far a better forest could go: the fewest additions of a small window, and a bound for any window."""

from __future__ import annotations

import numpy as np
from numba import njit

from isa.errors import CStepError
from runtime.sharing.reuse import Bits, checked_bits

CHANNELS = 12
"""Widest window that is searched; a sum is two masks of channels, added and subtracted."""


def fewest_possible(bits: Bits) -> int:
    """Additions (see `Reuse.additions`) that no sharing of this window goes below.

    Every row with a spike is added to its accumulator at least once; every different row of two spikes or more has to
    be made, with at least one addition each.
    """
    rows = checked_bits(bits)
    several = rows[rows.sum(axis=1) >= 2]
    return int(rows.any(axis=1).sum()) + len(np.unique(several, axis=0))


def fewest(bits: Bits, effort: int = 2_000_000) -> tuple[int, bool]:
    """The fewest additions of a small window [rows, channels], and whether that is proven.

    A search through all sequences of sums and differences of two earlier sums, each using a channel at most once, one
    addition longer each time. After `effort` steps it ends with the longest length that it has shown to be too short,
    plus one: no sharing has fewer. Raises CStepError for more than 12 channels.
    """
    rows = checked_bits(bits)
    if rows.shape[1] > CHANNELS:
        raise CStepError(f"{rows.shape[1]} channels: at most {CHANNELS} are searched")
    masks = rows.astype(np.int64) @ (1 << np.arange(rows.shape[1], dtype=np.int64))
    wanted = np.unique(masks[rows.sum(axis=1) >= 2])
    merged = int(np.count_nonzero(masks))
    left = np.array([effort], np.int64)
    length = len(wanted)
    while not _makes(wanted, rows.shape[1], length, left):
        if left[0] <= 0:
            return merged + length, False
        length += 1
    return merged + length, True


@njit(cache=True)
def _makes(wanted, channels, length, left):
    """Whether `length` sums make all that is wanted, before the effort that is left is spent.

    A wanted sum that is one step away is made at once, as it must be made. Others are chosen in the order of their
    places (larger operand, smaller operand, sign), since what can be done in any order is done in one.
    """
    sums = np.zeros((channels + length, 2), np.int64)  # masks of the channels added and of those taken off
    for channel in range(channels):
        sums[channel, 0] = 1 << channel
    missing, start = np.full(length + 1, len(wanted)), np.zeros(length + 1, np.int64)
    depth, entered = 0, True
    while missing[depth]:
        made, spare = channels + depth, length - depth - missing[depth]
        place = -1
        if entered:
            left[0] -= 1
            if left[0] <= 0:
                return False
            place = _find(sums, made, wanted, 0, True) if spare >= 0 else -1
        forced = place >= 0
        if not forced and spare > 0:
            place = _find(sums, made, wanted, start[depth], False)
        if place < 0:
            depth, entered = depth - 1, False
            if depth < 0:
                return False
            continue
        sums[made] = _at(sums, place)
        start[depth + 1] = start[depth] if forced else place + 1
        start[depth] = made * made * 2 if forced else place + 1  # what is forced has no alternative
        missing[depth + 1] = missing[depth] - forced
        depth, entered = depth + 1, True
    return True


@njit(cache=True)
def _find(sums, made, wanted, start, only_wanted):
    """The first place from `start` on with a new sum, or -1; the sum is wanted where `only_wanted` says so."""
    for place in range(start, made * made * 2):
        plus, minus = _at(sums, place)
        if not plus or (only_wanted and (minus or not _is_in(wanted, plus))):
            continue
        if _is_new(sums, made, plus, minus):
            return place
    return -1


@njit(cache=True)
def _at(sums, place):
    """The masks of the sum or difference at a place, negated if it would only take off; (0, 0) where there is none.

    There is none where a channel would be used twice.
    Places of sum n and the ones before it are n * n * 2 and on, so they stay as more sums are made.
    """
    first = int(np.sqrt(place >> 1))
    second = (place >> 1) - first * first
    if second >= first:
        return 0, 0
    side = place & 1
    plus, minus = sums[second, side], sums[second, 1 - side]
    if sums[first, 0] & plus or sums[first, 1] & minus:
        return 0, 0
    plus, minus = plus | sums[first, 0], minus | sums[first, 1]
    plus, minus = plus & ~minus, minus & ~plus
    return (plus, minus) if plus else (minus, plus)


@njit(cache=True)
def _is_in(wanted, mask):
    at = np.searchsorted(wanted, mask)
    return at < len(wanted) and wanted[at] == mask


@njit(cache=True)
def _is_new(sums, made, plus, minus):
    """Whether there is no such sum yet, with either sign."""
    for at in range(made):
        same = sums[at, 0] == plus and sums[at, 1] == minus
        if same or (sums[at, 0] == minus and sums[at, 1] == plus):
            return False
    return True
