"""The integer module under construction: the integers of every value so far, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import Integer, Real
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import Element, Shaped, shaped
from compiler.passes.currents import Group, Role, currents
from compiler.passes.rewriting import refuse


@dataclass(frozen=True)
class Options:
    """The options of the pass."""

    image_scale: float
    weights: str
    accumulator_bits: int


@dataclass(frozen=True)
class Current:
    """Sums on their way to a neuron: x = (sum << shift) + biases is the current, in each channel's `unit`."""

    unit: Real
    shift: int
    biases: Integer | None
    bounds: tuple[Integer, Integer]
    """Least and greatest sum of each channel."""
    name: str
    """What its weights are called."""
    label: str
    source: str


@dataclass(frozen=True)
class Quantised:
    """An integer value of the new module: the real value is the integer times `scale`.

    A current has a unit for each channel instead, and `scale` says nothing.
    """

    ssa: SSAValue
    scale: float = 1.0
    current: Current | None = None

    @property
    def kind(self) -> Shaped:
        return shaped(self.ssa.type)

    @property
    def bounds(self) -> tuple[int, int]:
        return self.kind.element.bounds


@dataclass
class Quantiser:
    """Builds the integer module op by op."""

    old: Network
    options: Options
    values: dict[SSAValue, Quantised] = field(default_factory=dict[SSAValue, Quantised])

    def __post_init__(self) -> None:
        self.new = self.old.with_module(ModuleOp([]))
        self.groups: dict[SSAValue, Group] = currents(self.old)
        self.roles: dict[Group, Role] = {group: group.role for group in self.groups.values()}

    def role(self, op: spike.SpikeOperation) -> Role:
        """What the result of a weighted layer is for."""
        return self.roles[self.groups[op.results[0]]]

    def make(self, kind: type[spike.SpikeOperation], *operands: SSAValue, **named: Any) -> SSAValue:
        op = kind.make(*operands, **named)
        self.new.module.body.block.add_op(op)
        return op.results[0] if op.results else op.operands[0]

    def of(self, op: HouseOperation, index: int = 0) -> Quantised:
        return self.values[op.operands[index]]

    def give(self, op: spike.SpikeOperation, value: Quantised) -> None:
        """`value` is what `op` gives, in integers."""
        self.values[op.results[0]] = value

    def remake(self, op: spike.SpikeOperation, element: Element) -> SSAValue:
        """The same op on integers; its result."""
        new = type(op)(
            operands=[self.of(op, index).ssa for index in range(len(op.operands))],
            result_types=[op.result_type.with_element(element)],
            properties=dict(op.properties),
            attributes=dict(op.attributes),
        )
        new.results[0].name_hint = op.results[0].name_hint
        self.new.module.body.block.add_op(new)
        return new.results[0]

    def weight(self, op: HouseOperation, key: str) -> Real | None:
        name = op.symbol(key)
        return None if name is None else self.old.weights[name].astype("float64", copy=False)

    def check_accumulator(self, op: spike.SpikeOperation, low: int, high: int) -> None:
        """Sums must fit the machine's accumulators."""
        bits = self.options.accumulator_bits
        limit = 1 << (bits - 1)
        if low < -limit or high >= limit:
            raise refuse(
                op,
                f"its accumulators could reach {low}..{high}; the machine's {bits} bits hold {-limit}..{limit - 1}",
            )


FOLDED = (".folded", ".row", ".matrix", ".window", ".rows", ".chain", ".joined", ".scaled", ".wide")


def base_name(name: str) -> str:
    """A weight's name without what earlier passes put behind it."""
    stripped: Sequence[str] = [name.removesuffix(suffix) for suffix in FOLDED if name.endswith(suffix)]
    return base_name(stripped[0]) if stripped else name
