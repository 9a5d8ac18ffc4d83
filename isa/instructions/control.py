"""Layer marks, conditional exits and the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.machine import Machine
from isa.word import (
    Cost,
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
class Exit(Instruction, opcode=0x41, unit=Unit.CONTROL):
    """Where the latest `decide` said so, the program ends here: nothing behind is started, loaded or counted.

    `steps` timesteps have then run, and the output holds their logits. A fence: what stands behind, on any unit, waits
    until it is decided; what stands before goes on to its end. There is no way but forward, so every program ends.
    Cycles: 1.
    """

    steps: Annotated[int, Count(8, 1)]

    def cost(self, machine: Machine) -> Cost:
        return Cost(1)


@dataclass(frozen=True, kw_only=True)
class End(Instruction, opcode=0x4F, unit=Unit.CONTROL):
    """The last instruction: wait for every unit, then stop.

    Cycles: 0.
    """
