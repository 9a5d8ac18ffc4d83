"""Neurons in real ONNX models: operators of domain c-step, or plain ones."""

from __future__ import annotations

from typing import cast

import numpy as np
from onnx import TensorProto

from compiler.ir import spike
from compiler.ir.onnx.real_graph import RealGraph
from compiler.ir.onnx.schema import LEVEL, NEURON, defaults, required


def lif(g: RealGraph, op: spike.Lif) -> None:
    """One node, or a few for every timestep between a Split and a Concat."""
    words = {key: op.get(key) for key in (*required(NEURON), *defaults(NEURON))}
    if not g.unrolled:
        g.give(op, _masked(g, op, g.apply(op.label, NEURON, g.of(op), **words)))
        return
    steps = cast(int, op.result_type.steps)
    label, threshold, membrane = op.label, g.number(op.get("threshold")), g.number(0.0)
    first = g.apply(label, "Split", g.of(op), g.integers([1] * steps), outputs=steps, axis=0)
    currents = [f"{first.removesuffix('.0')}.{step}" for step in range(steps)] if steps > 1 else [first]
    spikes: list[str] = []
    for current in currents:
        charged = _charged(g, op, membrane, current)
        fired = g.apply(label, "Greater" if op.get("fires") == "gt" else "GreaterOrEqual", charged, threshold)
        spike_ = g.apply(label, "Cast", fired, to=TensorProto.FLOAT)
        after = g.number(0.0)
        if op.get("reset") == "soft":
            after = g.apply(label, "Sub", charged, g.apply(label, "Mul", spike_, threshold))
        membrane = g.apply(label, "Where", fired, after, charged)
        spikes.append(spike_ if op.get("emits") == 1.0 else g.apply(label, "Mul", spike_, g.number(op.get("emits"))))
    g.give(op, _masked(g, op, g.apply(label, "Concat", *spikes, axis=0)))


def _masked(g: RealGraph, op: spike.SpikeOperation, train: str) -> str:
    """A train times its timestep mask, 1 or 0 for each timestep."""
    mask = op.get("mask")
    if not mask:
        return train
    shape = [len(mask), *[1] * len(op.result_type.sizes)]
    held = g.hold(f"mask {list(mask)} of {len(shape)}", np.reshape(mask, shape), np.float32)
    return g.apply(op.label, "Mul", train, held)


def _charged(g: RealGraph, op: spike.Lif, membrane: str, current: str) -> str:
    """The membrane after a current; v + (x - v) / tau in this order, for float32 sums have one."""

    def decayed(difference: str) -> str:
        divides = op.get("decay") == "divide"
        factor = g.number(op.get("tau") if divides else 1 / op.get("tau"))
        return g.apply(op.label, "Div" if divides else "Mul", difference, factor)

    if op.get("charge") == "lif":
        return g.apply(op.label, "Add", membrane, decayed(g.apply(op.label, "Sub", current, membrane)))
    if op.get("charge") == "lif_undecayed":
        kept = g.apply(op.label, "Sub", membrane, decayed(membrane))
        return g.apply(op.label, "Add", kept, current)
    return g.apply(op.label, "Add", membrane, current)


def level(g: RealGraph, op: spike.Level) -> None:
    """One node, or Clip, Round (or + 0.5, Floor) and Div."""
    levels, norm, ties = op.get("levels"), op.get("norm"), op.get("ties")
    if not g.unrolled:
        g.give(op, _masked(g, op, g.apply(op.label, LEVEL, g.of(op), levels=levels, norm=norm, ties=ties)))
        return
    clipped = g.apply(op.label, "Clip", g.of(op), g.number(0.0), g.number(float(levels)))
    if ties == "up":
        rounded = g.apply(op.label, "Floor", g.apply(op.label, "Add", clipped, g.number(0.5)))
    else:
        rounded = g.apply(op.label, "Round", clipped)
    g.give(op, _masked(g, op, g.apply(op.label, "Div", rounded, g.number(norm))))
