"""ONNX's elementwise operators in float32, one tensor in the same shape out: what an unrolled neuron is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from compiler.frontend.onnx.graph import Node

Operator = Callable[..., Tensor]

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
}
COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sign")
"""What fires: a graph of layers has none of these outside its neurons."""
RESHAPES = ("Squeeze", "Unsqueeze", "Reshape", "Expand", "Identity")
"""Shape only, where the dimensions other than 1 stay."""


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least, most = node.attributes.get("min"), node.attributes.get("max")
    return x.clamp(
        low if low is not None else torch.tensor(-torch.inf if least is None else least),
        high if high is not None else torch.tensor(torch.inf if most is None else most),
    )


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(_TYPES[node.attributes["to"]])


def _plain(function: Callable[..., Any]) -> Operator:
    return lambda node, *operands: function(*operands)


ELEMENTWISE: Mapping[str, Operator] = {
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(torch.div),
    "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs),
    "Reciprocal": _plain(torch.reciprocal),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Equal": _plain(torch.eq),
    "Not": _plain(torch.logical_not),
    "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or),
    "Where": _plain(torch.where),
    "Sign": _plain(torch.sign),
    "Relu": _plain(torch.relu),
    "Floor": _plain(torch.floor),
    "Ceil": _plain(torch.ceil),
    "Round": _plain(torch.round),
    "Min": _plain(lambda *operands: reduce(torch.minimum, operands)),
    "Max": _plain(lambda *operands: reduce(torch.maximum, operands)),
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _plain(lambda x, like: x.to(like.dtype)),
}
