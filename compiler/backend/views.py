"""Values that are other values' bytes in DRAM: regrouped pixels, the same at every timestep, fewer timesteps, more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import shaped

ZERO_WHERE_AN_INPUT_IS = (spike.MaxPool, spike.Mask, spike.Multiply, spike.Dilate)


class Views:
    """Which value's bytes a value is, and at which timesteps it may be other than zero."""

    def __init__(self, aliases: Mapping[SSAValue, SSAValue]) -> None:
        self.aliases = aliases
        self._live: dict[SSAValue, int | None] = {}

    @classmethod
    def of(cls, network: Network) -> Views:
        """The views of an integer module."""
        return cls({op.results[0]: op.operands[0] for op in network.operations() if _moves_nothing(op)})

    def chain(self, value: SSAValue) -> Iterator[SSAValue]:
        """A value, the one whose bytes it is, and so on, to the one that an op makes."""
        yield value
        while value in self.aliases:
            value = self.aliases[value]
            yield value

    def memory(self, value: SSAValue) -> SSAValue:
        """The value whose bytes `value` is."""
        *_, made = self.chain(value)
        return made

    def is_still(self, value: SSAValue) -> bool:
        """Whether its bytes are the same at every timestep: those of a tensor."""
        return shaped(self.memory(value).type).steps is None

    def live(self, value: SSAValue) -> int | None:
        """How many timesteps from the first on may be other than zero; None for a tensor, which has no time."""
        if value in self._live:
            return self._live[value]
        made = self.memory(value)
        found = [shaped(each.type).steps for each in self.chain(value)]
        if isinstance(made.owner, ZERO_WHERE_AN_INPUT_IS):
            found += [self.live(operand) for operand in made.owner.operands]
        elif isinstance(made.owner, spike.Add) and shaped(made.type).element.is_count:
            found.append(_most(self.live(operand) for operand in made.owner.operands))
        self._live[value] = least(found)
        return self._live[value]


def least(found: Iterator[int | None] | list[int | None]) -> int | None:
    """The least number of timesteps; None, no time at all, limits nothing."""
    return min((each for each in found if each is not None), default=None)


def _most(found: Iterator[int | None]) -> int | None:
    """The most timesteps of two operands: of a tensor, all there are."""
    each = list(found)
    return None if None in each else max(steps for steps in each if steps is not None)


def _moves_nothing(op: HouseOperation) -> bool:
    """Whether an op's result is its operand's bytes: channels stay the last dimension, or the image gets them there."""
    match op:
        case spike.Reshape():
            return op.result_type.sizes[-1] == op.operand_type().sizes[-1]
        case spike.Transpose():
            return isinstance(op.operands[0].owner, spike.QuantiseImage | spike.Repeat) and op.get("order") == (1, 2, 0)
        case spike.Repeat() | spike.Extend() | spike.Truncate() | spike.Guard():
            return True
        case _:
            return False
