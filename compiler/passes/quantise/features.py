"""Sums over tokens, channels and time, and the head that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import WEIGHT_LIMIT, Integer, product_bounds, shifted
from compiler.ir.types import Element, shaped
from compiler.passes.quantise.quantiser import Quantised, Quantiser, base_name
from compiler.passes.rewriting import refuse

WORD_LIMIT = 1 << 31
"""What 32 bits hold: sums of streams, and logits."""
EXACT = 1e-9
"""Room for rounding in a logarithm of what should be a power of two."""
LIFT, LIFTED = 4, 1 << 11
"""Where two heads are added, sums of spikes (which stay below LIFTED) are shifted left: the other head reads a stream,
and would have to drop bits until its unit is that of one spike."""


def summed(q: Quantiser, op: spike.SpikeOperation) -> None:
    """Sums; a mean is a sum with a smaller scale."""
    x = q.of(op)
    if x.current is not None:
        raise refuse(op, f"sums {x.kind.element}, whose channels have units of their own")
    kind, properties, count = _sum_of(op)
    low, high = (bound * count for bound in x.bounds)
    if max(-low, high) >= WORD_LIMIT:
        raise refuse(op, f"its sums could reach {low}..{high}; they must fit 32 bits, below {WORD_LIMIT}")
    stays = isinstance(op, spike.SumTime) and x.kind.element.is_count  # layers may read it
    result = op.result_type.with_element(Element.count(high) if stays else Element.integer(low, high))
    made = q.make(kind, x.ssa, result=result, source=op.source, hint=op.label, **properties)
    mean = isinstance(op, spike.Mean | spike.MeanTime)
    q.give(op, Quantised(made, x.scale / count if mean else x.scale))


def _sum_of(op: spike.SpikeOperation) -> tuple[type[spike.SpikeOperation], dict[str, Any], int]:
    """The integer op, its properties, and how many values it adds."""
    kind = op.operand_type()
    if isinstance(op, spike.MeanTime | spike.SumTime):
        assert kind.steps is not None
        return spike.SumTime, {}, kind.steps
    if isinstance(op, spike.HeadSum):
        return spike.HeadSum, {"heads": op.get("heads")}, kind.sizes[-1] // op.get("heads")
    return spike.Sum, {"axis": op.get("axis")}, kind.sizes[op.get("axis")]


def head(q: Quantiser, op: spike.SpikeOperation) -> None:
    """The classifier: one scale for all classes, so that comparing integers compares logits.

    Two heads whose logits are added have one scale, too; they are made together, where the last one stands. What a
    head reads of a raw stream are sums over tokens and time, too wide for 32-bit logits; they drop their last bits.
    """
    heads = [each for each in q.groups[op.results[0]].sources if isinstance(each, spike.Linear)]
    if not isinstance(op, spike.Linear) or len(heads) != len(q.groups[op.results[0]].sources):
        raise refuse(op, f"{op.name} makes the logits; only a linear head is supported")
    if all(each.operands[0] in q.values and each.results[0] not in q.values for each in heads):
        _classified(q, heads)


def _classified(q: Quantiser, heads: list[spike.Linear]) -> None:
    """Heads of one scale: the smallest at which their logits fit 32 bits."""
    spare = LIFT if len(heads) > 1 else 0
    lifts = [spare if max(np.abs(q.of(op).bounds)) < LIFTED else 0 for op in heads]
    finest = max(_unit(q, op, lift) for op, lift in zip(heads, lifts, strict=True))
    most = 0
    for coarser in range(32):
        unit = finest * 2.0**coarser
        made = [_Head.of(q, op, ceil(log2(_unit(q, op, 0) / unit) - EXACT), unit) for op in heads]
        most = sum(each.most for each in made)
        if most < WORD_LIMIT:
            for each in made:
                each.emit(q)
            return
    raise refuse(heads[0], f"logits could reach {most}; they must fit 32 bits, below {WORD_LIMIT}")


def _unit(q: Quantiser, op: spike.Linear, shift: int) -> float:
    """The scale of a head's logits, where its weights take all of their 8 bits."""
    weight = q.weight(op, "weight")
    assert weight is not None
    return (float(np.abs(weight).max()) / WEIGHT_LIMIT or 1.0) * q.of(op).scale * 2.0**-shift


@dataclass(frozen=True)
class _Head:
    """One head in integers: logits in `unit` are (features << shift) weight + biases.

    Behind a sum over T timesteps biases are multiples of T, so that each timestep has its share: the sum over the first
    n, and n shares, are the logits of these n (insert-exits). That moves a logit by T / 2 units at most.
    """

    op: spike.Linear
    shift: int
    unit: float
    weight: Integer
    biases: Integer
    bounds: tuple[Integer, Integer]

    @classmethod
    def of(cls, q: Quantiser, op: spike.Linear, shift: int, unit: float) -> _Head:
        x, weight, bias = q.of(op), q.weight(op, "weight"), q.weight(op, "bias")
        assert weight is not None
        integers = np.rint(weight * (x.scale * 2.0**-shift / unit)).astype(np.int64)
        steps = _summed_steps(op.operands[0])
        biases = np.rint((np.zeros(len(weight)) if bias is None else bias) / (unit * steps)).astype(np.int64) * steps
        least, greatest = (int(bound) for bound in shifted(np.array(x.bounds), shift))
        low, high = (bound + biases for bound in product_bounds(integers, (least, greatest)))
        return cls(op, shift, unit, integers, biases, (low, high))

    @property
    def most(self) -> int:
        return int(max(-self.bounds[0].min(), self.bounds[1].max()))

    def emit(self, q: Quantiser) -> None:
        op, (low, high) = self.op, self.bounds
        name = base_name(str(op.symbol("weight")))
        made = q.make(
            spike.Linear,
            _dropped(q, op, self.shift) if self.shift else q.of(op).ssa,
            result=op.result_type.with_element(Element.integer(int(low.min()), int(high.max()))),
            symbols={
                "weight": q.new.add_weight(f"{name}.int8", self.weight.astype(np.int8)),
                "bias": q.new.add_weight(f"{name}.bias.int32", self.biases.astype(np.int32)),
            },
            source=op.source,
            hint=op.label,
        )
        q.give(op, Quantised(made, self.unit))


def _summed_steps(value: SSAValue) -> int:
    """Over how many timesteps a value is a mean; 1 where it is none."""
    owner = value.owner
    if shaped(value.type).steps is not None or not isinstance(owner, spike.SpikeOperation) or not owner.operands:
        return 1
    return owner.operand_type().steps or _summed_steps(owner.operands[0])


def _dropped(q: Quantiser, op: spike.Linear, shift: int) -> SSAValue:
    x = q.of(op)
    low, high = (int(bound) for bound in shifted(np.array(x.bounds), shift))
    return q.make(
        spike.Align,
        x.ssa,
        result=op.operand_type().with_element(Element.integer(low, high)),
        source=op.source,
        hint=f"{op.label}.features",
        shift=shift,
    )


def output(q: Quantiser, op: spike.Output) -> None:
    x = q.of(op)
    q.make(spike.Output, x.ssa, source=op.source, scale=x.scale)
