"""ONNX forms of neurons, and of what brings sums into their units. All of them compute in double."""

from __future__ import annotations

from typing import cast

import numpy as np

from compiler.ir import spike
from compiler.ir.onnx.graph import CURRENT, EXACT_DOUBLE, STREAM, Graph, Real, expose, greatest_of, refuse

MEMBRANE_LOW, MEMBRANE_HIGH = -(1 << 15), (1 << 15) - 1


def align(graph: Graph, op: spike.Align) -> None:
    """A power of two times x, or x over one, rounded half up; plus the bias."""
    shift, x = op.get("shift"), graph.double(graph.of(op))
    moved = graph.apply("Mul", x, graph.constant(2.0**shift)) if shift >= 0 else graph.scaled_down(x, -shift)
    bias = graph.weight(op, "bias")
    current = moved if bias is None else graph.apply("Add", moved, graph.constant(bias))
    graph.give(op, graph.narrowest(op, current))


def rescale(graph: Graph, op: spike.Rescale) -> None:
    """Multiply, shift right half up, add the bias, clamp; every stream becomes an output."""
    factors, biases = cast(Real, graph.weight(op, "multiplier")), cast(Real, graph.weight(op, "bias"))
    divisor = op.get("divisor")
    product = greatest_of(op.operand_type()) * int(np.abs(factors).max()) + (1 << divisor >> 1)
    if product >= EXACT_DOUBLE:
        raise refuse(op, f"its products could reach {product}; double carries integers exactly below 2^53")
    scaled = graph.apply("Mul", graph.double(graph.of(op)), graph.constant(factors))
    moved = graph.apply("Add", graph.scaled_down(scaled, divisor), graph.constant(biases))
    values = graph.float(clamped(graph, op, moved))
    expose(graph, f"{op.label}{STREAM}", values, op.result_type)
    graph.give(op, values)


def clamped(graph: Graph, op: spike.SpikeOperation, name: str) -> str:
    """Doubles, clamped to the bounds of the type of `op`."""
    lowest, highest = (graph.constant(float(bound)) for bound in op.result_type.element.bounds)
    return graph.apply("Clip", graph.double(name), lowest, highest)


def integer_lif(graph: Graph, op: spike.IntegerLif) -> None:
    """The neuron of `Fire`, one timestep after another; every current becomes an output."""
    expose(graph, f"{op.label}{CURRENT}", graph.of(op), op.operand_type())
    farthest = greatest_of(op.operand_type()) - MEMBRANE_LOW
    if (product := farthest * op.get("multiplier")) >= EXACT_DOUBLE:
        raise refuse(op, f"its decay could reach {product}; double carries integers exactly below 2^53")
    steps = cast(int, op.result_type.steps)
    threshold = graph.constant(cast(Real, graph.weight(op, "threshold")))
    lowest, highest, zero = (graph.constant(float(value)) for value in (MEMBRANE_LOW, MEMBRANE_HIGH, 0))
    membrane, spikes = zero, list[str]()
    for step in range(steps):
        bounds = (graph.constant([edge], np.int64) for edge in (step, step + 1, 0))
        current = graph.double(graph.apply("Slice", graph.of(op), *bounds))
        charged = _charged(graph, op, membrane, current)
        fired = graph.apply("GreaterOrEqual", charged, threshold)
        spikes.append(graph.truth(fired))
        after = zero if op.get("reset") == "hard" else graph.apply("Sub", charged, threshold)
        membrane = graph.apply("Clip", graph.apply("Where", fired, after, charged), lowest, highest)
    graph.give(op, _masked(graph, op, graph.apply("Concat", *spikes, axis=0)))


def _masked(graph: Graph, op: spike.SpikeOperation, train: str) -> str:
    """A train times its timestep mask."""
    mask = op.get("mask")
    if not mask:
        return train
    factors = np.array(mask).reshape(-1, *[1] * len(op.result_type.sizes))
    return graph.apply("Mul", train, graph.constant(factors, np.float32))


def _charged(graph: Graph, op: spike.IntegerLif, membrane: str, current: str) -> str:
    """The membrane after charging: decay by round(d * multiplier / 2^divisor), half up."""

    def decayed(difference: str) -> str:
        product = graph.apply("Mul", difference, graph.constant(float(op.get("multiplier"))))
        return graph.scaled_down(product, op.get("divisor"))

    charge = op.get("charge")
    if charge == "lif":
        return graph.apply("Add", membrane, decayed(graph.apply("Sub", current, membrane)))
    grown = graph.apply("Add", membrane, current)
    return grown if charge == "if" else graph.apply("Sub", grown, decayed(membrane))


def integer_level(graph: Graph, op: spike.IntegerLevel) -> None:
    """One comparison a level, the values that pass counted; every current becomes an output."""
    expose(graph, f"{op.label}{CURRENT}", graph.of(op), op.operand_type())
    unit = cast(Real, graph.weight(op, "threshold"))
    twice = graph.apply("Mul", graph.double(graph.of(op)), graph.constant(2.0))
    counted: list[str] = []
    for level in range(1, op.get("levels") + 1):
        down = op.get("ties") == "even" and level % 2 == 1  # half of an odd number more is even one below
        passed = graph.apply("Greater" if down else "GreaterOrEqual", twice, graph.constant((2 * level - 1) * unit))
        counted.append(graph.truth(passed))
    graph.give(op, _masked(graph, op, graph.apply("Sum", *counted)))
