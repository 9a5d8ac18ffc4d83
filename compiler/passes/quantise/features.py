"""Sums over tokens, channels and time, and the head that reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import WEIGHT_LIMIT, Integer, Real, product_bounds, shifted
from compiler.ir.types import Element
from compiler.passes.quantise.quantiser import Quantised, Quantiser, base_name
from compiler.passes.rewriting import refuse

WORD_LIMIT = 1 << 31
"""What 32 bits hold: sums of streams, and logits."""
DROPPED = range(0, -32, -1)
"""Shifts that the head may drop bits of what it reads by."""


def summed(q: Quantiser, op: spike.SpikeOperation) -> None:
    """Sums; a mean is a sum with a smaller scale."""
    x = q.of(op)
    if x.current is not None:
        raise refuse(op, f"sums {x.kind.element}, whose channels have units of their own")
    kind, properties, count = _sum_of(op)
    low, high = (bound * count for bound in x.bounds)
    if max(-low, high) >= WORD_LIMIT:
        raise refuse(op, f"its sums could reach {low}..{high}; they must fit 32 bits, below {WORD_LIMIT}")
    result = op.result_type.with_element(Element.integer(low, high))
    made = q.make(kind, x.ssa, result=result, source=op.source, hint=op.label, **properties)
    mean = isinstance(op, spike.Mean | spike.MeanTime)
    q.give(op, Quantised(made, x.scale / count if mean else x.scale))


def _sum_of(op: spike.SpikeOperation) -> tuple[type[spike.SpikeOperation], dict[str, Any], int]:
    """The integer op, its properties, and how many values it adds."""
    kind = op.operand_type()
    if isinstance(op, spike.MeanTime):
        assert kind.steps is not None
        return spike.SumTime, {}, kind.steps
    if isinstance(op, spike.HeadSum):
        return spike.HeadSum, {"heads": op.get("heads")}, kind.sizes[-1] // op.get("heads")
    return spike.Sum, {"axis": op.get("axis")}, kind.sizes[op.get("axis")]


def head(q: Quantiser, op: spike.SpikeOperation) -> None:
    """The classifier: one scale for all classes, so that comparing integers compares logits.

    What it reads of a raw stream are sums over tokens and time, too wide for 32-bit logits; they drop their last bits.
    """
    if not isinstance(op, spike.Linear):
        raise refuse(op, f"{op.name} makes the logits; only a linear head is supported")
    x, weight, bias = q.of(op), q.weight(op, "weight"), q.weight(op, "bias")
    assert weight is not None
    scale = float(np.abs(weight).max()) / WEIGHT_LIMIT or 1.0
    integers = np.rint(weight / scale).astype(np.int64)
    shift, biases, (low, high) = _fitting(op, integers, bias, scale * x.scale, x.bounds)
    unit = scale * x.scale * 2.0**-shift
    sums = x.ssa if shift == 0 else _dropped(q, op, x, shift)
    name = base_name(str(op.symbol("weight")))
    made = q.make(
        spike.Linear,
        sums,
        result=op.result_type.with_element(Element.integer(int(low.min()), int(high.max()))),
        symbols={
            "weight": q.new.add_weight(f"{name}.int8", integers.astype(np.int8)),
            "bias": q.new.add_weight(f"{name}.bias.int32", biases.astype(np.int32)),
        },
        source=op.source,
        hint=op.label,
    )
    q.give(op, Quantised(made, unit))


def _fitting(
    op: spike.Linear, weight: Integer, bias: Real | None, unit: float, inputs: tuple[int, int]
) -> tuple[int, Integer, tuple[Integer, Integer]]:
    """The shift of the inputs, the biases and the bounds of logits that fit 32 bits."""
    most = 0
    for shift in DROPPED:
        biases = np.rint((np.zeros(len(weight)) if bias is None else bias) / (unit * 2.0**-shift)).astype(np.int64)
        least, greatest = (int(bound) for bound in shifted(np.array(inputs), shift))
        low, high = (bound + biases for bound in product_bounds(weight, (least, greatest)))
        most = int(max(-low.min(), high.max()))
        if most < WORD_LIMIT:
            return shift, biases, (low, high)
    raise refuse(op, f"logits could reach {most}; they must fit 32 bits, below {WORD_LIMIT}")


def _dropped(q: Quantiser, op: spike.Linear, x: Quantised, shift: int) -> SSAValue:
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
