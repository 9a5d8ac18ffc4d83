"""Event lists and counts kept from one Accumulate to the next.

The output tiles of a layer read the same spikes. An Accumulate that looks at the same window of the same addresses as
an earlier one, through the same channel mask, with nothing written there since, finds the same bits set, so it takes
that one's lists and counts. Every instruction that writes the spike buffer forgets what it overlaps; one that writes
the channel buffer forgets all that was masked.
"""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

from numba import njit

from isa.instructions import Window
from isa.word import Instruction
from runtime.fast.places import ACCUMULATE

SLOTS = 8
"""So many inputs are kept; the oldest goes first."""

_HEADER = {header.name for header in fields(Instruction)}
KEY = (
    *(getattr(ACCUMULATE, field.name) for field in fields(Window) if field.name not in _HEADER),
    ACCUMULATE.masks_rows,
    ACCUMULATE.row_mask,
    ACCUMULATE.kept,
)
"""Columns of an Accumulate that say, beside their address, which spikes it sees, and how they pair."""


class Held(NamedTuple):
    """Columns of a slot: what it belongs to, and the counts, before they are multiplied by outputs."""

    valid: int
    first: int
    stop: int
    """Bytes first .. stop - 1 of the spike buffer are what the lists were made of."""
    share: int
    masked: int
    """Whether a channel mask was applied to the bits, or tokens were left out."""
    listed: int
    """Whether the events are listed, not only counted."""
    bits: int
    common: int
    merging: int
    """Pairs and steps with anything in common."""
    read: int
    skipped: int
    work: int
    key: int
    """The first of the columns that hold the key."""


HELD = Held(*range(len(Held._fields)))
COLUMNS = len(HELD) + len(KEY)


@njit
def find(row, share, held):
    """The slot of this Accumulate's spikes, or -1."""
    for slot in range(SLOTS):
        if held[slot, HELD.first] != row[ACCUMULATE.spikes]:
            continue
        found = held[slot, HELD.valid] != 0 and held[slot, HELD.share] == share
        place = HELD.key
        for column in KEY:
            found = found and held[slot, place] == row[column]
            place += 1
        if found:
            return slot
    return -1


@njit
def take(row, share, held):
    """A slot for this Accumulate's spikes, its counts 0."""
    slot = held[SLOTS, 0]
    held[SLOTS, 0] = (slot + 1) % SLOTS
    held[slot, :] = 0
    place = HELD.key
    for column in KEY:
        held[slot, place] = row[column]
        place += 1
    pixels = row[ACCUMULATE.input_rows] * row[ACCUMULATE.input_columns]
    last = (row[ACCUMULATE.steps] - 1) * row[ACCUMULATE.step_stride] + (pixels - 1) * row[ACCUMULATE.pixel_stride]
    held[slot, HELD.valid], held[slot, HELD.share] = 1, share
    held[slot, HELD.masked] = row[ACCUMULATE.masks_rows] | row[ACCUMULATE.kept]
    held[slot, HELD.first] = row[ACCUMULATE.spikes]
    held[slot, HELD.stop] = row[ACCUMULATE.spikes] + last + 2 * ((row[ACCUMULATE.inputs] + 15) >> 4)
    return slot


@njit
def forget(held, first, size):
    """Bytes first .. first + size - 1 of the spike buffer are being written."""
    for slot in range(SLOTS):
        if held[slot, HELD.first] < first + size and first < held[slot, HELD.stop]:
            held[slot, HELD.valid] = 0


@njit
def forget_masked(held):
    """Channel masks or counts are being written, or other tokens latched."""
    for slot in range(SLOTS):
        if held[slot, HELD.masked] != 0:
            held[slot, HELD.valid] = 0


@njit
def forget_all(held):
    """The spike buffer may have changed in any way."""
    held[:SLOTS, HELD.valid] = 0
