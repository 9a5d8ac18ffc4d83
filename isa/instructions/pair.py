"""Which rows share with which: a pairing that the compiler found on calibration spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.instructions.sizes import ceil_divide
from isa.machine import Machine
from isa.word import Cost, Count, Flag, Instruction, Region, Strided, Unit, reads

PARTNER_BYTES = 2
"""A partner's number, uint16."""
PARTNERS_A_CYCLE = 8


@dataclass(frozen=True, kw_only=True)
class Pair(Instruction, opcode=0x12, unit=Unit.PE):
    """partner[i] = table[i] for i < rows, uint16: what `Accumulate`s with sharing=match pair by, until the next `pair`.

    Rows i and j form a pair where partner[i] = j and partner[j] = i; all others are alone. They are the output pixels
    of every step, rows * columns of them, or with `timesteps` the steps of every output pixel. Such an `Accumulate`
    without a table of its size is refused.
    Cycles: ceil(rows / 8).
    """

    table: Annotated[int, reads(Region.CONSTANT, 16, align=PARTNER_BYTES)]
    rows: Annotated[int, Count(13, 1)]
    timesteps: Annotated[int, Flag()]

    def extents(self) -> dict[str, Strided]:
        return {"table": Strided(self.rows * PARTNER_BYTES)}

    def cost(self, machine: Machine) -> Cost:
        return Cost(ceil_divide(self.rows, PARTNERS_A_CYCLE))

    def counts(self) -> dict[str, int]:
        return {"constant_buffer_bytes": self.rows * PARTNER_BYTES}
