"""The neurons of the spike dialect as ONNX operators: domain `c-step`, version 1 (docs/onnx.md).

The attributes and their defaults are those of `spike.lif` and `spike.level`, so that they are said once. A timestep
mask is none of them: it is a multiplication behind the neuron.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper
from onnx.defs import OpSchema

from compiler.ir import spike

DOMAIN, VERSION = "c-step", 1
NEURON, LEVEL = "Neuron", "Level"

_KINDS = {
    float: OpSchema.AttrType.FLOAT,
    int: OpSchema.AttrType.INT,
    str: OpSchema.AttrType.STRING,
}
_REQUIRED: dict[str, tuple[type[spike.Lif] | type[spike.Level], dict[str, type[Any]]]] = {
    NEURON: (spike.Lif, {"tau": float, "threshold": float}),
    LEVEL: (spike.Level, {"levels": int, "norm": float}),
}


def required(operator: str) -> tuple[str, ...]:
    """Attributes of `Neuron` or `Level` that have no default."""
    return tuple(_REQUIRED[operator][1])


def defaults(operator: str) -> dict[str, Any]:
    """Attributes of `Neuron` or `Level` that have a default, and which."""
    return {name: value for name, value in _REQUIRED[operator][0].DEFAULTS.items() if name != "mask"}


def register() -> None:
    """Make the operators known to the ONNX library of this process, whose checker then checks their attributes."""
    for operator in _REQUIRED:
        if not onnx.defs.has(operator, DOMAIN):
            onnx.defs.register_schema(_schema(operator))


def _schema(operator: str) -> OpSchema:
    op, kinds = _REQUIRED[operator]
    attributes = [OpSchema.Attribute(name, _KINDS[kind], required=True) for name, kind in kinds.items()]
    for name, value in defaults(operator).items():
        attributes.append(OpSchema.Attribute(name, default_value=helper.make_attribute(name, value)))
    return OpSchema(
        operator,
        DOMAIN,
        VERSION,
        doc=op.__doc__ or "",
        inputs=[OpSchema.FormalParameter("currents", "T", "input currents [T, ...], time first")],
        outputs=[OpSchema.FormalParameter("spikes", "T", "what the neurons emit, of the same shape")],
        type_constraints=[("T", ["tensor(float)"], "float32")],
        attributes=attributes,
    )
