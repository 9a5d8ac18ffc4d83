"""What every mode of sharing gives: which sums a window of spike rows is made of, and what they cost.

A *row* is the spikes of one token at one timestep (of one bit plane, where a layer reads counts); its sum over the
layer's weights is what the layer needs of it. A *partial sum* is made for what several rows have in common and kept
while others are made of it. Every sum, of either kind, is a list of terms: weight rows, and partial sums made before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isa.errors import CStepError

Bits = NDArray[np.uint8]
"""[rows, channels], 0 or 1."""
Indices = NDArray[np.int32]


@dataclass(frozen=True)
class Terms:
    """Terms of the sums of one tile of channels, and what finding them took; `owner` says whose each term is.

    `owner` is a partial sum of the tile, 0.., in the order in which they are made, or ~row. `operand` is a channel of
    the tile, or `channels` + a partial sum of the tile that is made before the owner. `sign` is 1 or -1.
    """

    channels: int
    partial: int
    owner: Indices
    operand: Indices
    sign: NDArray[np.int8]
    matching: int


@dataclass(frozen=True)
class Reuse:
    """The sums of a window, as arrays that can be executed.

    Sums 0 .. partial - 1 are partial sums in the order in which they are made, then comes one for each row. Terms
    `starts[i] .. starts[i + 1] - 1` are those of sum i: `operands` below `channels` are weight rows, others `channels`
    + a partial sum with a smaller number.
    """

    rows: int
    channels: int
    starts: NDArray[np.int64]
    operands: Indices
    signs: NDArray[np.int8]
    matching: int
    """Bit comparisons (or the bits of the counters touched) that found the sums; once for all output channels."""

    @property
    def partial(self) -> int:
        """Partial sums made."""
        return len(self.starts) - 1 - self.rows

    @property
    def accumulations(self) -> int:
        """Weight rows added to a sum, for one output channel; what the papers count."""
        return int(np.count_nonzero(self.operands < self.channels))

    @property
    def merges(self) -> int:
        """Partial sums added to a sum, for one output channel: reading what was kept and adding it."""
        return len(self.operands) - self.accumulations - self.copies - self._kept[0]

    @property
    def copies(self) -> int:
        """Partial sums that begin as a copy of another which is still needed, for one output channel.

        The last partial sum that is made of another one takes its place: that costs nothing. It can, because rows take
        what they need of a partial sum when it is made.
        """
        return self._kept[1]

    @property
    def charged(self) -> int:
        """Accumulations, merges and copies; each is one read and one write of a sum."""
        return self.accumulations + self.merges + self.copies

    @property
    def additions(self) -> int:
        """What adders do: all terms, less the first of every partial sum, which is loaded and not added to anything."""
        return len(self.operands) - self.partial

    @property
    def held(self) -> int:
        """Most partial sums stored at once. Rows' own sums are the layer's accumulators and not among them."""
        return self._kept[2]

    @cached_property
    def _kept(self) -> tuple[int, int, int]:
        return _keep(self.starts, self.operands, self.signs, self.channels, self.partial)


@njit(nogil=True, cache=True)
def _keep(starts, operands, signs, channels, partial):
    """How many partial sums take another's place, how many begin as a copy, and how many are stored at most."""
    last = np.full(partial, -1, np.int64)
    for made in range(partial):
        for term in range(starts[made], starts[made + 1]):
            if operands[term] >= channels:
                last[operands[term] - channels] = made
    taken, copies, stored, most = 0, 0, 0, 0
    for made in range(partial):
        takes, ends, first_is_kept = False, 0, False
        for term in range(starts[made], starts[made + 1]):
            each = operands[term] - channels
            if each < 0:
                continue
            if last[each] == made:
                last[each] = -1  # a sum that has a term twice ends it once
                ends += 1
                takes = takes or signs[term] > 0
            first_is_kept = first_is_kept or term == starts[made]
        taken += takes
        copies += first_is_kept and not takes
        most = max(most, stored + (0 if takes else 1))
        stored += (1 if last[made] >= 0 else 0) - ends
    return taken, copies, most


def reuse_of(rows: int, tiles: Iterable[Terms]) -> Reuse:
    """The sums of a window from those of its tiles of channels, which are made one after another."""
    parts = list(tiles)
    channels, partial = sum(part.channels for part in parts), sum(part.partial for part in parts)
    owners, operands, signs = list[Indices](), list[Indices](), list[NDArray[np.int8]]()
    channel, made = 0, 0
    for part in parts:
        owners.append(np.where(part.owner < 0, partial + ~part.owner, part.owner + made))
        of_weights = part.operand < part.channels
        operands.append(part.operand + np.where(of_weights, channel, channels + made - part.channels))
        signs.append(part.sign)
        channel, made = channel + part.channels, made + part.partial
    owner = np.concatenate([np.zeros(0, np.int32), *owners])
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(partial + rows + 1))
    return Reuse(
        rows,
        channels,
        starts.astype(np.int64),
        np.concatenate([np.zeros(0, np.int32), *operands])[order].astype(np.int32),
        np.concatenate([np.zeros(0, np.int8), *signs])[order].astype(np.int8),
        sum(part.matching for part in parts),
    )


def execute(reuse: Reuse, weights: NDArray[np.integer]) -> NDArray[np.int64]:
    """The sums of the rows [rows, outputs], made as `reuse` says; weights [channels, outputs].

    Equal to bits @ weights in every integer. Raises CStepError where the weights are not the window's.
    """
    if weights.ndim != 2 or len(weights) != reuse.channels:
        given = ", ".join(map(str, weights.shape))
        raise CStepError(f"weights: shape [{given}]; the window takes [{reuse.channels}, outputs]")
    sums = _execute(reuse.starts, reuse.operands, reuse.signs, np.ascontiguousarray(weights, np.int64))
    return sums[reuse.partial :]


@njit(nogil=True, cache=True)
def _execute(starts, operands, signs, weights):
    channels = len(weights)
    sums = np.zeros((len(starts) - 1, weights.shape[1]), np.int64)
    for made in range(len(sums)):
        for term in range(starts[made], starts[made + 1]):
            each = operands[term]
            sums[made] += signs[term] * (weights[each] if each < channels else sums[each - channels])
    return sums


def checked_bits(bits: NDArray[np.generic]) -> Bits:
    """Raise CStepError for anything but zeros and ones [rows, channels]."""
    binary = bits.max(initial=0) <= 1 if bits.dtype == np.uint8 else np.isin(bits, (0, 1)).all()
    if bits.ndim != 2 or not binary:
        raise CStepError(f"spikes: {bits.dtype} {list(bits.shape)}; a window is zeros and ones [rows, channels]")
    return np.ascontiguousarray(bits, np.uint8)


def tiles_of(bits: Bits, width: int | None) -> list[Bits]:
    """The window cut into tiles of `width` channels; None: one tile."""
    if width is not None and width < 1:
        raise CStepError(f"width {width}: a tile has at least one channel")
    step = width or max(bits.shape[1], 1)
    return [np.ascontiguousarray(bits[:, at : at + step]) for at in range(0, bits.shape[1], step)]


@njit(nogil=True, cache=True)
def packed(bits):
    """Rows of bits as words of 64: [rows, words]."""
    words = np.zeros((len(bits), (bits.shape[1] + 63) >> 6), np.uint64)
    for row in range(len(bits)):
        for channel in range(bits.shape[1]):
            if bits[row, channel]:
                words[row, channel >> 6] |= np.uint64(1) << np.uint64(channel & 63)
    return words
