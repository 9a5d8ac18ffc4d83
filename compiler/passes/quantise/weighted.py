"""Layers that sum products: convolutions, linear layers, attention. What sums become depends on who reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import (
    Integer,
    Real,
    by_channel,
    largest_scales,
    product_bounds,
    weight_scales,
)
from compiler.ir.types import Element
from compiler.passes.currents import Role
from compiler.passes.quantise.features import head
from compiler.passes.quantise.neurons import threshold_of, uniform_shift
from compiler.passes.quantise.quantiser import Current, Quantised, Quantiser, base_name
from compiler.passes.quantise.streams import in_eight_bits, narrowed, streamed
from compiler.passes.rewriting import layer_properties, refuse

Layer = spike.Conv | spike.Linear


def weighted(q: Quantiser, op: Layer) -> None:
    """Conv and linear: to a neuron in membrane units, into a stream, to the output with one scale."""
    role, x = q.role(op), q.of(op)
    if x.current is not None:
        raise refuse(op, f"reads {x.kind.element}, whose channels have units of their own; it must read one scale")
    if role is Role.HEAD:
        head(q, op)
        return
    if x.kind.element.is_fixed and x.kind.element.bits > 8:
        x = in_eight_bits(q, op)
    weight, bias = q.weight(op, "weight"), q.weight(op, "bias")
    assert weight is not None
    name = base_name(str(op.symbol("weight")))
    if role in (Role.STREAM, Role.INPUT):
        scale = largest_scales(weight, q.options.weights)
        sums, _ = _summed(q, op, x, _integers(weight, scale), name)
        streamed(q, op, sums, scale * x.scale, bias, name)
        return
    reader = q.groups[op.results[0]].readers[0]
    scale, shift = weight_scales(weight, q.options.weights, threshold_of(reader) / x.scale, x.bounds, bias)
    sums, bounds = _summed(q, op, x, _integers(weight, scale), name)
    unit = scale * x.scale / 2.0**shift
    biases = np.rint((np.zeros(len(unit)) if bias is None else bias) / unit).astype(np.int64)
    current = Current(unit, shift, biases, bounds, name, op.label, op.source)
    if role is Role.POOLED:
        narrowed(q, op, sums, current)
    else:
        q.give(op, Quantised(sums, current=current))


def _integers(weight: Real, scale: Real) -> Integer:
    divisor = by_channel(np.where(scale > 0, scale, 1.0), weight)
    return np.rint(weight / divisor).astype(np.int64)


def _summed(
    q: Quantiser, op: Layer, x: Quantised, integers: Integer, name: str
) -> tuple[SSAValue, tuple[Integer, Integer]]:
    """The layer on integers, and the bounds of each channel's sums."""
    low, high = product_bounds(integers, x.bounds)
    q.check_accumulator(op, int(low.min()), int(high.max()))
    properties: dict[str, Any] = layer_properties(op)
    made = q.make(
        type(op),
        x.ssa,
        result=op.result_type.with_element(Element.integer(int(low.min()), int(high.max()))),
        symbols={"weight": q.new.add_weight(f"{name}.int8", integers.astype(np.int8))},
        source=op.source,
        hint=op.label,
        **properties,
    )
    return made, (low, high)


def attention(q: Quantiser, op: spike.Attention) -> None:
    """Exact: the products are integers, and the scale goes into the threshold, or into the stream's multiplier."""
    operands = [q.of(op, index) for index in range(3)]
    if not all(operand.kind.element.is_count for operand in operands):
        found = ", ".join(str(operand.kind.element) for operand in operands)
        raise refuse(op, f"its operands are {found}; attention is of spikes and counts")
    q_most, k_most, v_most = (operand.bounds[1] for operand in operands)
    keys, channels = operands[1].kind.sizes
    high = q_most * k_most * v_most * keys * (channels // op.get("heads"))
    q.check_accumulator(op, 0, high)
    scale = op.get("scale") * operands[0].scale * operands[1].scale * operands[2].scale
    sums = q.make(
        spike.Attention,
        *(operand.ssa for operand in operands),
        result=op.result_type.with_element(Element.integer(0, high)),
        source=op.source,
        hint=op.label,
        heads=op.get("heads"),
    )
    role = q.role(op)
    if role in (Role.STREAM, Role.INPUT):
        streamed(q, op, sums, np.full(op.result_type.sizes[-1], scale), None, op.label)
        return
    if role is Role.HEAD:
        raise refuse(op, f"{op.name} makes the logits; only a linear head is supported")
    reader = q.groups[op.results[0]].readers[0]
    shift = uniform_shift(threshold_of(reader) / scale, (0, high))
    bounds = np.array([0]), np.array([high])
    unit = np.array([scale * 2.0**-shift])
    current = Current(unit, shift, None, bounds, op.label, op.label, op.source)
    if role is Role.POOLED:
        narrowed(q, op, sums, current)
    else:
        q.give(op, Quantised(sums, current=current))
