"""Sums as fixed-point values: membrane streams, inputs of 8 bits, and currents that a max-pool compares."""

from __future__ import annotations

from math import floor, log2

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import THRESHOLD_LIMIT, Integer, Real, multipliers
from compiler.ir.types import Element, shaped
from compiler.passes.currents import NEURONS, THROUGH, Group, Role
from compiler.passes.quantise.neurons import threshold_of
from compiler.passes.quantise.quantiser import Current, Quantised, Quantiser
from compiler.passes.rewriting import refuse

HEADROOM = 2.0
"""How far beyond what calibration saw a stream may go before it clamps."""


def stream_element(op: spike.SpikeOperation, group: Group, role: Role) -> Element:
    """The fixed-point numbers of a stream: as fine as its range allows, and its readers' thresholds below 2^13."""
    most = group.most
    if most is None:
        readers = ", ".join(sorted({reader.name for reader in group.readers})) or "nothing"
        raise refuse(
            op, f"its result goes to {readers}, a stream whose range only data can tell; put record-ranges before"
        )
    if role is Role.INPUT:
        return Element.fixed(8, floor(log2(127 / most)))
    fraction = floor(log2(32767 / (HEADROOM * most)))
    thresholds = [threshold_of(reader) for reader in group.readers if isinstance(reader, NEURONS)]
    if thresholds:
        fraction = min(fraction, floor(log2((THRESHOLD_LIMIT - 1) / max(thresholds))))
    return Element.fixed(16, fraction)


def streamed(q: Quantiser, op: spike.SpikeOperation, sums: SSAValue, scale: Real, bias: Real | None, name: str) -> None:
    """Sums with a scale for each channel as values of one scale."""
    group = q.groups[op.results[0]]
    element = stream_element(op, group, q.roles[group])
    unit = 2.0**-element.fraction.data
    factors, divisor = multipliers(scale / unit)
    biases = np.rint((np.zeros(len(scale)) if bias is None else bias) / unit)
    q.give(op, Quantised(rescaled(q, op, sums, element, factors, biases, divisor, name, f"{op.label}.stream"), unit))


def in_eight_bits(q: Quantiser, op: spike.SpikeOperation) -> Quantised:
    """The membrane stream that a weighted layer reads, as fine as 8 bits hold what calibration saw of it."""
    x, stream = q.of(op), q.of(op).kind.element
    most, element = _most(q, op.operands[0]), stream
    if most is None:
        raise refuse(op, f"reads {stream}, a stream whose range only data can tell; put record-ranges before")
    element = Element.fixed(8, min(floor(log2(127 / most)), stream.fraction.data))
    channels, coarser = x.kind.sizes[-1], stream.fraction.data - element.fraction.data
    ones, zeros = np.ones(channels, np.int64), np.zeros(channels)
    label = f"{op.label}.input"
    made = rescaled(q, op, x.ssa, element, ones, zeros, coarser, label, label)
    return Quantised(made, 2.0**-element.fraction.data)


def _most(q: Quantiser, value: SSAValue) -> float | None:
    """What calibration saw of a value at most."""
    owner = value.owner
    if isinstance(owner, spike.Range):
        return owner.get("most")
    if isinstance(owner, THROUGH):
        return max((most for operand in owner.operands if (most := _most(q, operand)) is not None), default=None)
    return None


def spikes_as_stream(q: Quantiser, op: spike.Add, x: Quantised, element: Element) -> SSAValue:
    """Spikes or counts that are added to a membrane stream: their sums over one pixel, rescaled."""
    sizes = x.kind.sizes
    pixels = (*(1,) * (3 - len(sizes)), *sizes)
    ones = q.new.add_weight(f"{op.label}.ones.int8", np.ones((sizes[-1], 1, 1, 1), np.int8))
    kind = x.kind.with_sizes(pixels)
    label = f"{op.label}.spikes"
    view = x.ssa if pixels == sizes else q.make(spike.Reshape, x.ssa, result=kind, source=op.source, hint=label)
    sums = q.make(
        spike.Conv,
        view,
        result=kind.with_element(Element.integer(*x.bounds)),
        symbols={"weight": ones},
        source=op.source,
        hint=label,
        kernel=1,
        groups=sizes[-1],
    )
    factors, divisor = multipliers(np.full(sizes[-1], x.scale * 2.0**element.fraction.data))
    made = rescaled(q, op, sums, element, factors, np.zeros(sizes[-1]), divisor, label, f"{op.label}.stream")
    kind = x.kind.with_element(element)
    return made if pixels == sizes else q.make(spike.Reshape, made, result=kind, source=op.source, hint=label)


def narrowed(q: Quantiser, op: spike.SpikeOperation, sums: SSAValue, current: Current) -> None:
    """A current in 16 bits, for a max-pool. It keeps its units: thresholds are below 2^13, what clamps is past four."""
    channels = op.result_type.sizes[-1]
    factors = np.full(channels, 1 << max(current.shift, 0), np.int64)
    biases = np.zeros(channels) if current.biases is None else current.biases.astype(np.float64)
    element = Element.integer(-(1 << 15), (1 << 15) - 1)
    divisor, label = max(-current.shift, 0), f"{op.label}.stream"
    made = rescaled(q, op, sums, element, factors, biases, divisor, current.name, label)
    bounds = np.array([element.bounds[0]]), np.array([element.bounds[1]])
    pooled = Current(current.unit, 0, None, bounds, current.name, current.label, current.source)
    q.give(op, Quantised(made, current=pooled))


def rescaled(
    q: Quantiser,
    op: spike.SpikeOperation,
    sums: SSAValue,
    element: Element,
    factors: Integer,
    biases: Real,
    divisor: int,
    name: str,
    label: str,
) -> SSAValue:
    """`spike.rescale` of sums; its constants are called after `name`."""
    if np.abs(biases).max() >= 1 << 31:
        raise refuse(op, f"its bias is {np.abs(biases).max():.0f} units of its stream; it must fit 32 bits")
    return q.make(
        spike.Rescale,
        sums,
        result=shaped(sums.type).with_element(element),
        symbols={
            "multiplier": q.new.add_weight(f"{name}.multiplier", factors.astype(np.int32)),
            "bias": q.new.add_weight(f"{name}.bias.int32", biases.astype(np.int32)),
        },
        source=op.source,
        hint=label,
        divisor=divisor,
    )
