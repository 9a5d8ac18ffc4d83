"""Weights that channel masks kept in DRAM: where a guarded load left bytes as they were, nobody may use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isa.instructions import Accumulate, Depthwise, Load, Multiply, mask_bytes
from isa.word import Access, Instruction, Region

UNGUARDED, STALE = -1, -2
BITS = 8


class Guarded:
    """For each byte of the weight buffer, which bits of the channel buffer it was loaded under.

    Whoever reads a byte must be guarded by the same bits, then it uses only what travelled; masks that were written
    again since guard nothing.
    """

    def __init__(self, weight_bytes: int) -> None:
        self.row = np.full(weight_bytes, UNGUARDED, np.int32)
        """The bit of a row mask (address x 8 + bit), UNGUARDED, or STALE."""
        self.column = self.row.copy()
        self.loaded = self.row.copy()
        """The code word that loaded the byte last."""
        self.any = False
        """Whether any load was guarded so far."""
        self.masks: set[int] = set()
        """Bytes of the channel buffer that guarded loads looked at, since they were written."""

    def follow(self, index: int, instruction: Instruction, accesses: Sequence[Access]) -> str | None:
        """What is wrong with the weights that an instruction reads, as one phrase, or None; and what it writes."""
        problem = None
        for access in accesses if self.any else ():
            if access.region == Region.WEIGHT and access.reads:
                problem = self._read(instruction, access)
            elif access.region == Region.CHANNEL and access.writes:
                self._rewrite(access)
        if isinstance(instruction, Load) and instruction.region == Region.WEIGHT:
            self._load(index, instruction)
        return problem

    def _load(self, index: int, each: Load) -> None:
        if not each.is_masked and not self.any:
            return
        self.any = True
        size, counts = each.bytes, (each.blocks, each.rows)
        strides = (each.buffer_block_stride, each.buffer_row_stride)
        for guards, mask, channels in (
            (each.masks_rows, each.row_mask, each.rows),
            (each.masks_columns, each.column_mask, size),
        ):
            self.masks |= set(range(mask, mask + mask_bytes(channels))) if guards else set()
        row = _bits(each.row_mask, each.rows)[:, None] if each.masks_rows else UNGUARDED
        column = _bits(each.column_mask, size) if each.masks_columns else UNGUARDED
        for held, value in ((self.row, row), (self.column, column), (self.loaded, index)):
            place = np.ndarray(
                (*counts, size), np.int32, held, each.target * held.itemsize, (*(4 * s for s in strides), 4)
            )
            place[...] = value

    def _rewrite(self, access: Access) -> None:
        if self.masks.isdisjoint(range(access.start, access.stop)):
            return
        self.masks -= set(range(access.start, access.stop))
        for held in (self.row, self.column):
            held[(held >= BITS * access.start) & (held < BITS * access.stop)] = STALE

    def _read(self, each: Instruction, access: Access) -> str | None:
        """The reader's own bits, byte by byte, must have those that the bytes were loaded under."""
        here = slice(access.start, access.stop)
        wanted = (self.row[here], self.column[here])
        if all((bits == UNGUARDED).all() for bits in wanted):
            return None
        rows, columns = _bits_of_reader(each, access.stop - access.start)
        wrong = [(bits != UNGUARDED) & (bits != rows) & (bits != columns) for bits in wanted]
        bad = np.flatnonzero(wrong[0] | wrong[1])
        if not len(bad):
            return None
        first = int(bad[0])
        return self._said(access.start + first, self.row if wrong[0][first] else self.column)

    def _said(self, byte: int, bits: NDArray[np.int32]) -> str:
        word, bit = int(self.loaded[byte]), int(bits[byte])
        if bit == STALE:
            return f"WEIGHT[{byte}], whose channel mask was written again since word {word} loaded it; load it again"
        return (
            f"WEIGHT[{byte}], which word {word} loaded only if bit {bit % BITS} of CHANNEL[{bit // BITS}] is set; "
            "it must be guarded by the same bit"
        )


def _bits(address: int, count: int) -> NDArray[np.int32]:
    return np.arange(BITS * address, BITS * address + count, dtype=np.int32)


def _bits_of_reader(each: Instruction, size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each byte of an instruction's weights, the bits of the row mask and of the column mask that guard it."""
    rows, columns = (np.full(size, STALE - 1, np.int32) for _ in range(2))
    if isinstance(each, Accumulate | Multiply):
        shape = (-1, each.inputs, each.outputs)
        if isinstance(each, Accumulate) and each.masks_rows:
            rows.reshape(shape)[...] = _bits(each.row_mask, each.inputs)[:, None]
        if each.masks_columns:
            columns.reshape(shape)[...] = _bits(each.column_mask, each.outputs)
    elif isinstance(each, Depthwise):
        if each.masks_rows:
            rows.reshape(-1, each.inputs)[...] = _bits(each.row_mask, each.inputs)
        if each.masks_columns:
            columns.reshape(-1, each.inputs)[...] = _bits(each.column_mask, each.inputs)
    return rows, columns
