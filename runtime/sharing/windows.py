"""Rows of an `Accumulate` cut into windows, and the sums of each, as the machine shares them (see the instruction)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.machine import Machine
from isa.word import Sharing
from runtime.sharing.forest import forest
from runtime.sharing.group import group, share_within
from runtime.sharing.prefix import prefix
from runtime.sharing.reuse import Bits, Reuse

Rows = NDArray[np.int64]
"""Numbers of rows: step * pixels + pixel."""


@dataclass(frozen=True)
class Pairing:
    """The latched partners [rows]: of the output pixels of each step, or of the steps of each pixel (`timesteps`)."""

    partners: NDArray[np.uint16]
    timesteps: bool

    @classmethod
    def of(cls, latched: NDArray[np.uint8]) -> Pairing:
        """What `Pair` left in the machine's state: rows and kind, then the table; all zeros before the first."""
        words = latched.view("<u2")
        return cls(words[2 : 2 + int(words[0])].copy(), bool(words[1]))

    def mates(self, steps: int, pixels: int) -> Rows:
        """[steps * pixels]: the row that each row is paired with; itself where it is alone, or the size is another."""
        rows = np.arange(steps * pixels)
        size = steps if self.timesteps else pixels
        if len(self.partners) != size:
            return rows
        own = np.arange(size)
        partners = np.where(self.partners < size, self.partners, own).astype(np.int64)
        partners = np.where(partners[partners] == own, partners, own)
        step, pixel = np.divmod(rows, pixels)
        return partners[step] * pixels + pixel if self.timesteps else step * pixels + partners[pixel]


@dataclass(frozen=True)
class Window:
    """Rows that share, and their sums in the same order."""

    rows: Rows
    reuse: Reuse


def windows_of(
    bits: Bits, sharing: Sharing, machine: Machine, pairing: Pairing, kept: NDArray[np.bool_] | None = None
) -> Iterator[Window]:
    """The windows of an instruction's rows, bits [steps, pixels, channels] under all taps.

    `kept` [steps, pixels] says which rows there are at all; None: every one. The others are left out before anything
    is looked for, so that neighbours are those that are left.
    """
    steps, pixels, channels = bits.shape
    every = np.ones((steps, pixels), np.bool_) if kept is None else kept
    flat = bits.reshape(-1, channels)
    mates = pairing.mates(steps, pixels) if sharing == Sharing.MATCH else np.zeros(0, np.int64)
    most = machine.shared_rows(sharing.name.lower())
    for rows in _cut(every, sharing, most, pairing.timesteps):
        if len(rows):
            yield Window(rows, _shared(np.ascontiguousarray(flat[rows]), sharing, machine, rows, mates))


def _cut(kept: NDArray[np.bool_], sharing: Sharing, most: int, timesteps: bool) -> Iterator[Rows]:
    """The rows of each window: groups and matched pixels step by step, all else pixel by pixel."""
    steps, pixels = kept.shape
    numbers = np.arange(steps * pixels).reshape(steps, pixels)
    if sharing == Sharing.MATCH:
        whole = max(most // steps, 1) if timesteps else pixels
        for step in [slice(None)] if timesteps else [slice(at, at + 1) for at in range(steps)]:
            for at in range(0, pixels, whole):
                part = (step, slice(at, at + whole))
                yield numbers[part].T[kept[part].T]
        return
    parts = [numbers[at][kept[at]] for at in range(steps)]
    if sharing in (Sharing.PREFIX, Sharing.FOREST):
        parts = [numbers.T[kept.T]]
    for rows in parts:
        yield from (rows[at : at + most] for at in range(0, len(rows), most))


def _shared(bits: Bits, sharing: Sharing, machine: Machine, rows: Rows, mates: Rows) -> Reuse:
    match sharing:
        case Sharing.GROUP4:
            return group(bits, 4)
        case Sharing.GROUP8:
            return group(bits, 8)
        case Sharing.MATCH:
            return share_within(bits, _pairs(rows, mates))
        case Sharing.PREFIX:
            return prefix(bits, machine.prefix_channels or None)
        case _:
            return forest(bits, machine.forest_channels or None, machine.reuse_sums, signed=False)


def _pairs(rows: Rows, mates: Rows) -> Rows:
    """[pairs, 2]: places in `rows` of the rows and their mates, -1 for none; each row once."""
    place = np.full(len(mates), -1, np.int64)
    place[rows] = np.arange(len(rows))
    own, other = place[rows], place[mates[rows]]
    alone = (other < 0) | (other == own)
    first = alone | (own < other)
    return np.stack([own, np.where(alone, -1, other)], axis=1)[first]
