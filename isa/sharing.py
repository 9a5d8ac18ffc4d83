"""Which rows share: what the machine has, and the pairing that must be latched."""

from __future__ import annotations

from collections.abc import Sequence

from isa.errors import CStepError
from isa.instructions import Accumulate, Pair
from isa.machine import Machine
from isa.ordering import place
from isa.word import Instruction, Sharing


def lacks(machine: Machine, sharing: Sharing) -> str | None:
    """What is wrong with a mode of sharing on a machine, as one phrase, or None."""
    mode = sharing.name.lower()
    if sharing == Sharing.NONE or mode in machine.sharing:
        return None
    return f"sharing={mode}; machine {machine.name} has {', '.join(machine.sharing) or 'none'}"


def check_sharing(code: Sequence[Instruction], machine: Machine) -> None:
    """Raises CStepError for a mode that the machine has not, and for one by pairs that no table of its size says."""
    latched: Pair | None = None
    for index, each in enumerate(code):
        if isinstance(each, Pair):
            latched = each
        if not isinstance(each, Accumulate):
            continue
        if problem := lacks(machine, Sharing(each.sharing)):
            raise CStepError(f"{place(index, each)} {problem}")
        if each.sharing == Sharing.MATCH:
            _check_pairing(index, each, latched)


def _check_pairing(index: int, each: Accumulate, latched: Pair | None) -> None:
    where = f"{place(index, each)} sharing=match"
    if latched is None:
        raise CStepError(f"{where}, but no pair before it latched a table")
    wanted, what = (each.steps, "timesteps") if latched.timesteps else (each.rows * each.columns, "output pixels")
    if latched.rows != wanted:
        raise CStepError(f"{where}: the latched table has {latched.rows} {what}; this one has {wanted}")
