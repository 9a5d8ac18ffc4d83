"""Layer marks and the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.word import (
    Count,
    Instruction,
    Unit,
)


@dataclass(frozen=True, kw_only=True)
class Layer(Instruction, opcode=0x40, unit=Unit.CONTROL):
    """What follows, up to the next mark, is counted for layer `index` of the program's layer table.

    Cycles: 0.
    """

    index: Annotated[int, Count(16)]


@dataclass(frozen=True, kw_only=True)
class End(Instruction, opcode=0x4F, unit=Unit.CONTROL):
    """The last instruction: wait for every unit, then stop.

    Cycles: 0.
    """
