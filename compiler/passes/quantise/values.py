"""Ops that move, choose or add values: the input, views, pooling, masks, additions."""

from __future__ import annotations

from compiler.ir import spike
from compiler.ir.types import Element
from compiler.passes.currents import Role
from compiler.passes.quantise.quantiser import Quantised, Quantiser
from compiler.passes.quantise.streams import spikes_as_stream
from compiler.passes.rewriting import refuse
from isa.errors import CStepError


def image(q: Quantiser, op: spike.Input) -> None:
    """The input's integers: images scaled, events as they are."""
    made = q.make(spike.Input, result=op.result_type, source=op.source, hint=op.label)
    events = op.result_type.steps is not None
    scale = 1.0 if events else q.options.image_scale
    if scale <= 0:
        raise CStepError("quantise: image-scale is missing; it is max |x| / 127 over the calibration images")
    kind = op.result_type.with_element(Element.image())
    made = q.make(spike.QuantiseImage, made, result=kind, source=op.source, hint="image", scale=scale)
    q.give(op, Quantised(made, scale))


def same(q: Quantiser, op: spike.SpikeOperation) -> None:
    """Ops that move or choose values, and leave them as they are."""
    x = q.of(op)
    q.give(op, Quantised(q.remake(op, x.kind.element), x.scale, x.current))


def passed_on(q: Quantiser, op: spike.Range) -> None:
    """A range has done its work."""
    q.give(op, q.of(op))


def scaled(q: Quantiser, op: spike.Scale) -> None:
    """Integers stay as they are: they stand for other numbers."""
    x, factor = q.of(op), op.get("factor")
    if x.current is not None or x.kind.element.is_fixed or factor <= 0:
        raise refuse(op, f"multiplies a current by {factor}; only spikes, counts and their sums can be scaled")
    q.give(op, Quantised(x.ssa, x.scale * factor))


def added(q: Quantiser, op: spike.Add) -> None:
    """Counts add up, and logits; streams of one scale are clamped to 16 bits, spikes join them in their unit."""
    left, right = q.of(op, 0), q.of(op, 1)
    for x, other in ((left, right), (right, left)):
        if x.kind.element.is_fixed and other.kind.element.is_count:
            element = x.kind.element
            sums = spikes_as_stream(q, op, other, element)
            made = q.make(spike.Add, sums, x.ssa, result=x.kind, source=op.source, hint=op.label)
            q.give(op, Quantised(made, x.scale))
            return
    elements = left.kind.element, right.kind.element
    counts = all(element.is_count for element in elements) and left.scale == right.scale
    streams = elements[0].is_fixed and elements[0] == elements[1]
    group = q.groups.get(op.results[0])
    if group is not None and q.roles[group] is Role.HEAD and left.scale == right.scale:
        logits = Element.integer(left.bounds[0] + right.bounds[0], left.bounds[1] + right.bounds[1])
        q.give(op, Quantised(q.remake(op, logits), left.scale))
        return
    if not counts and not streams:
        raise refuse(
            op,
            f"adds {elements[0]} to {elements[1]}; spikes and counts can be added, and membrane streams of one scale",
        )
    element = elements[0] if streams else Element.count(left.bounds[1] + right.bounds[1])
    q.give(op, Quantised(q.remake(op, element), left.scale))


def multiplied(q: Quantiser, op: spike.Multiply) -> None:
    """Spikes times spikes are spikes."""
    left, right = _spikes(q, op, 0), _spikes(q, op, 1)
    q.give(op, Quantised(q.remake(op, Element.spike()), left.scale * right.scale))


def masked(q: Quantiser, op: spike.Mask) -> None:
    """Spikes that the mask lets through."""
    x, mask = _spikes(q, op, 0), _spikes(q, op, 1)
    q.give(op, Quantised(q.remake(op, Element.spike()), x.scale * mask.scale))


def _spikes(q: Quantiser, op: spike.SpikeOperation, index: int) -> Quantised:
    x = q.of(op, index)
    if x.kind.element != Element.spike() or (op.operand_type(index).sizes != op.result_type.sizes and index == 0):
        raise refuse(op, f"multiplies {x.kind}; only spikes by spikes of the same shape can be multiplied")
    return x
