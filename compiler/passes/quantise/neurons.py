"""Neurons: a current in units of the membrane, and thresholds in the same units."""

from __future__ import annotations

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import (
    MEMBRANE_FRACTIONS,
    ORACLE_LIMIT,
    THRESHOLD_LIMIT,
    Integer,
    Real,
    decay,
    shifted,
)
from compiler.ir.types import Element
from compiler.passes.quantise.quantiser import Current, Quantised, Quantiser
from compiler.passes.rewriting import refuse

Neuron = spike.Lif | spike.Level


def threshold_of(neuron: spike.SpikeOperation) -> float:
    """The current that makes a neuron fire from rest; the 1 that a level neuron counts."""
    return neuron.get("threshold") if isinstance(neuron, spike.Lif) else 1.0


def uniform_shift(threshold: float, bounds: tuple[int, int]) -> int:
    """The fraction bits of a membrane whose currents are integers of one scale, within `bounds`.

    The most that keep the threshold, given in that scale, below 2^13, and every current below 2^24.
    """
    most = max(-bounds[0], bounds[1])
    for shift in MEMBRANE_FRACTIONS:
        if threshold * 2.0**shift < THRESHOLD_LIMIT and most * 2.0**shift < ORACLE_LIMIT // 2:
            return shift
    return MEMBRANE_FRACTIONS[-1]


def neuron(q: Quantiser, op: Neuron) -> None:
    """Align what it reads with its membrane, and give it thresholds."""
    x = q.of(op)
    if x.current is not None:
        aligned, unit = _aligned(q, op, x.ssa, x.current), x.current.unit
    elif x.kind.element.kind.data == "i8":
        raise refuse(op, "its current comes from no conv, linear or attention; there is nothing to quantise it by")
    else:
        shift = uniform_shift(threshold_of(op) / x.scale, x.bounds)
        unit = np.array([x.scale * 2.0**-shift])
        bounds = np.array([x.bounds[0]]), np.array([x.bounds[1]])
        aligned = _aligned(q, op, x.ssa, Current(unit, shift, None, bounds, op.label, op.label, op.source))
    if isinstance(op, spike.Lif):
        made = _fired(q, op, aligned, unit)
        q.give(op, Quantised(made, op.get("emits")))
    else:
        made = _counted(q, op, aligned, unit)
        q.give(op, Quantised(made, 1 / op.get("norm")))


def _aligned(q: Quantiser, op: Neuron, sums: SSAValue, current: Current) -> SSAValue:
    """Align sums with the membrane."""
    offset = np.int64(0) if current.biases is None else current.biases
    low, high = (shifted(bound, current.shift) + offset for bound in current.bounds)
    most = int(max(-low.min(), high.max()))
    if most >= ORACLE_LIMIT:
        raise refuse(op, f"currents could reach {most}; they must stay below 2^24 = {ORACLE_LIMIT}")
    biases = None if current.biases is None else current.biases.astype(np.int32)
    return q.make(
        spike.Align,
        sums,
        result=op.operand_type().with_element(Element.integer(int(low.min()), int(high.max()))),
        symbols={"bias": None if biases is None else q.new.add_weight(f"{current.name}.bias.int32", biases)},
        source=current.source,
        hint=f"{current.label}.current",
        shift=current.shift,
    )


def _thresholds(q: Quantiser, op: Neuron, thresholds: Integer) -> str:
    """A threshold for each channel, in the store."""
    spread = np.broadcast_to(thresholds, op.result_type.sizes[-1:]).astype(np.int32)
    if spread.max() >= 1 << 15:
        raise refuse(op, f"its threshold is {spread.max()} units; it must fit the 16-bit membrane")
    return q.new.add_weight(f"{op.label}.threshold", spread)


def _fired(q: Quantiser, op: spike.Lif, aligned: SSAValue, unit: Real) -> SSAValue:
    real = op.get("threshold") / unit
    strict = op.get("fires") == "gt"
    thresholds = (np.floor(real) + 1 if strict else np.ceil(real)).astype(np.int64)
    multiplier, divisor = _decay(op)
    return q.make(
        spike.IntegerLif,
        aligned,
        result=op.result_type.with_element(Element.spike()),
        symbols={"threshold": _thresholds(q, op, thresholds)},
        source=op.source,
        hint=op.label,
        multiplier=multiplier,
        divisor=divisor,
        reset=op.get("reset"),
        charge=op.get("charge"),
        mask=op.get("mask"),
    )


def _counted(q: Quantiser, op: spike.Level, aligned: SSAValue, unit: Real) -> SSAValue:
    return q.make(
        spike.IntegerLevel,
        aligned,
        result=op.result_type.with_element(Element.count(op.get("levels"))),
        symbols={"threshold": _thresholds(q, op, np.maximum(np.rint(1 / unit), 1).astype(np.int64))},
        source=op.source,
        hint=op.label,
        levels=op.get("levels"),
        ties=op.get("ties"),
        mask=op.get("mask"),
    )


def _decay(op: spike.Lif) -> tuple[int, int]:
    """The fields of `spike.integer_lif` for a neuron's time constant."""
    tau = op.get("tau")
    if op.get("charge") == "if":
        return 1, 0
    if tau < 1:
        raise refuse(op, f"tau={tau}; it must be at least 1")
    return decay(tau)
