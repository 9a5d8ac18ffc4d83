"""Accumulates whose rows share beyond pairs: what they count. Their values are those of any other Accumulate.

The rows are gathered from the spike buffer, and what is found for them is kept: the output tiles of a layer read the
same spikes, as do several layers of the same input.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isa.instructions import Accumulate
from isa.machine import Machine
from isa.word import Sharing
from runtime.sharing.spent import Seen, Spent, spent, write_record
from runtime.sharing.windows import Pairing, windows_of
from runtime.state import State

KEPT = 32
"""So many windows' costs are kept; the oldest goes first."""
Key = tuple[object, ...]


class Found(OrderedDict[Key, tuple[Seen, Spent]]):
    """What was found of the latest spikes, by the spikes themselves and how they share."""

    def put(self, key: Key, found: tuple[Seen, Spent]) -> None:
        self[key] = found
        if len(self) > KEPT:
            self.popitem(last=False)


def count_reuse(each: Accumulate, state: State, machine: Machine, found: Found, record: NDArray[np.int64]) -> None:
    """Write the record of one instruction."""
    bits, kept = _gathered(each, state), None
    if each.kept:
        kept = state.kept_rows[: each.steps * each.columns].reshape(each.steps, each.columns) != 0
        bits = np.where(kept[:, None, :, None, None], bits, 0).astype(np.uint8)
    latched = state.pairing.tobytes() if each.sharing == Sharing.MATCH else b""
    shape = each.steps, each.rows, each.columns, each.inputs
    chosen = b"" if kept is None else kept.tobytes()
    key = (each.sharing, shape, latched, chosen, np.packbits(bits.reshape(-1)).tobytes())
    if key not in found:
        flat = bits.reshape(each.steps, each.rows * each.columns, -1)
        windows = windows_of(flat, Sharing(each.sharing), machine, Pairing.of(state.pairing), kept)
        seen = bits if kept is None else _moved_together(bits, kept)
        found.put(key, (Seen(*map(int, _seen(seen))), spent(windows, machine)))
    live = _bits_at(state.channel, each.column_mask, each.outputs) if each.masks_columns else None
    outputs = each.outputs if live is None else int(live.sum())
    groups = range(0, each.outputs, machine.lanes)
    passes = sum(live is None or bool(live[at : at + machine.lanes].any()) for at in groups)
    left = None if kept is None else int(kept.sum())
    write_record(each, *found[key], outputs, passes, machine, record, left)


def _moved_together(bits: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Each step's kept pixels side by side, zeros behind them."""
    moved = np.zeros_like(bits)
    for step, chosen in enumerate(kept):
        moved[step, 0, : int(chosen.sum())] = bits[step, 0, chosen]
    return moved


def _gathered(each: Accumulate, state: State) -> NDArray[np.uint8]:
    """[steps, rows, columns, taps, inputs]: bits under all taps, 0 where the row mask has a 0."""
    taps = each.kernel_rows * each.kernel_columns
    live = _bits_at(state.channel, each.row_mask, each.inputs) if each.masks_rows else np.ones(each.inputs, np.uint8)
    bits = np.zeros((each.steps, each.rows, each.columns, taps, each.inputs), np.uint8)
    window = each.stride, each.kernel_columns, each.top, each.left, each.input_rows, each.input_columns
    _gather(state.spike[each.spikes :], each.step_stride, each.pixel_stride, window, live, bits)
    return bits


def _bits_at(memory: NDArray[np.uint8], place: int, count: int) -> NDArray[np.uint8]:
    """`count` bits of a channel mask."""
    return np.unpackbits(memory[place : place + -(-count // 8)], bitorder="little")[:count]


@njit(nogil=True, cache=True)
def _gather(spikes, step_stride, pixel_stride, window, live, bits):
    stride, kernel_columns, top, left, input_rows, input_columns = window
    for step in range(bits.shape[0]):
        for r in range(bits.shape[1]):
            for c in range(bits.shape[2]):
                for tap in range(bits.shape[3]):
                    y = r * stride + tap // kernel_columns - top
                    x = c * stride + tap % kernel_columns - left
                    if 0 <= y < input_rows and 0 <= x < input_columns:
                        pixel = step * step_stride + (y * input_columns + x) * pixel_stride
                        for channel in range(bits.shape[4]):
                            bit = spikes[pixel + (channel >> 3)] >> (channel & 7) & 1
                            bits[step, r, c, tap, channel] = bit & live[channel]


@njit(nogil=True, cache=True)
def _seen(bits):
    """Bits, those common to both pixels of a pair, and words with any, row by row."""
    steps, rows, columns, taps, inputs = bits.shape
    found, common, words = 0, 0, 0
    for step in range(steps):
        for r in range(rows):
            for c in range(columns):
                paired = c & 1 == 1
                for tap in range(taps):
                    for first in range(0, inputs, 16):
                        held = 0
                        for channel in range(first, min(first + 16, inputs)):
                            bit = bits[step, r, c, tap, channel]
                            held += bit
                            if paired:
                                common += bit & bits[step, r, c - 1, tap, channel]
                        found += held
                        words += held > 0
    return found, common, words
