"""The imported network as ONNX in real numbers, as anybody's tools read it.

A neuron is one node of domain c-step (compiler/ir/onnx/schema.py), or, unrolled, plain elementwise operators for
every timestep, which any runtime takes. Weights keep their names and torch's layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.onnx.real_graph import INPUT, OUTPUT, RealGraph, shape_of
from compiler.ir.onnx.real_neurons import level, lif
from compiler.ir.onnx.schema import register
from isa.errors import CStepError


def real_onnx(network: Network, *, unrolled: bool = False) -> onnx.ModelProto:
    """The module of `network`, as imported, as an ONNX model.

    Raises CStepError naming the op that has no real form, such as those of integer modules.
    """
    register()
    graph = RealGraph(network, unrolled)
    for op in network.operations():
        form = _FORMS.get(type(op))
        if form is None or not isinstance(op, spike.SpikeOperation):
            where = f" ({op.source})" if op.source else ""
            raise CStepError(f"{op.label}{where}: {op.name} has no ONNX form in real numbers; export it as imported")
        if op.results and not op.result_type.element.is_real and not op.result_type.element.is_count:
            raise CStepError(f"{op.label}: gives {op.result_type}; only a module in real numbers has this form")
        form(graph, op)
    return graph.model()


def _input(g: RealGraph, op: spike.Input) -> None:
    g.input = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, *shape_of(op.result_type)])
    g.give(op, g.apply(INPUT, "Squeeze", INPUT, g.integers([0])))


def _output(g: RealGraph, op: spike.Output) -> None:
    g.output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, *shape_of(op.operand_type())])
    g.nodes.append(helper.make_node("Unsqueeze", [g.of(op), g.integers([0])], [OUTPUT], name=OUTPUT))


def _repeat(g: RealGraph, op: spike.Repeat) -> None:
    new = g.apply(op.label, "Unsqueeze", g.of(op), g.integers([0]))
    g.give(op, g.apply(op.label, "Expand", new, g.integers(shape_of(op.result_type))))


def _with_time(g: RealGraph, op: spike.SpikeOperation) -> tuple[str, list[int]]:
    """The operand with a leading dimension, time or 1."""
    kind = op.operand_type()
    if kind.steps is not None:
        return g.of(op), shape_of(kind)
    return g.apply(op.label, "Unsqueeze", g.of(op), g.integers([0])), [1, *kind.sizes]


def _without_time(g: RealGraph, op: spike.SpikeOperation, x: str) -> None:
    """The result, its leading 1 gone where it has no time."""
    timeless = op.result_type.steps is None
    g.give(op, g.apply(op.label, "Squeeze", x, g.integers([0])) if timeless else x)


def _conv(g: RealGraph, op: spike.Conv) -> None:
    """On channels first; a convolution of rows is 1-d, the rows beside the timesteps."""
    x, (steps, height, width, channels) = _with_time(g, op)
    kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
    rank, shape = 2, None
    if op.get("rows"):
        rank, shape = 1, (op.result_type.sizes[-1], channels // op.get("groups"), kernel)
        x = g.reshaped(op.label, x, [steps * height, width, channels])
    weights = [g.weight(op, "weight", shape), g.weight(op, "bias")]
    first, last = ([0, 3, 1, 2], [0, 2, 3, 1]) if rank == 2 else ([0, 2, 1], [0, 2, 1])
    images = g.transposed(op.label, x, first)
    out = g.apply(
        op.label,
        "Conv",
        images,
        *(name for name in weights if name is not None),
        kernel_shape=[kernel] * rank,
        strides=[stride] * rank,
        pads=[padding] * (2 * rank),
        group=op.get("groups"),
    )
    out = g.transposed(op.label, out, last)
    if rank == 1:
        out = g.reshaped(op.label, out, [steps, *op.result_type.sizes])
    _without_time(g, op, out)


def _linear(g: RealGraph, op: spike.Linear) -> None:
    transposed = g.transposed(op.label, cast(str, g.weight(op, "weight")), [1, 0])
    out, bias = g.apply(op.label, "MatMul", g.of(op), transposed), g.weight(op, "bias")
    g.give(op, out if bias is None else g.apply(op.label, "Add", out, bias))


def _batch_norm(g: RealGraph, op: spike.BatchNorm) -> None:
    """With the channels in the second dimension."""
    x, shape = _with_time(g, op)
    order = list(range(len(shape)))
    order.insert(1, order.pop(op.get("axis") + 1))
    names = [cast(str, g.weight(op, key)) for key in ("weight", "bias", "mean", "variance")]
    moved = g.transposed(op.label, x, order)
    out = g.apply(op.label, "BatchNormalization", moved, *names, epsilon=float(op.get("epsilon")))
    back = [int(place) for place in np.argsort(order)]
    _without_time(g, op, g.transposed(op.label, out, back))


def _channel_scale(g: RealGraph, op: spike.ChannelScale) -> None:
    channels, after = op.operand_type().sizes[op.get("axis")], len(op.operand_type().sizes) - 1 - op.get("axis")
    weight = cast(str, g.weight(op, "weight", (channels, *[1] * after)))
    g.give(op, g.apply(op.label, "Mul", g.of(op), weight))


def _max_pool(g: RealGraph, op: spike.MaxPool) -> None:
    x, _ = _with_time(g, op)
    images = g.transposed(op.label, x, [0, 3, 1, 2])
    kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
    pooled = g.apply(op.label, "MaxPool", images, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)
    _without_time(g, op, g.transposed(op.label, pooled, [0, 2, 3, 1]))


def _pad(g: RealGraph, op: spike.Pad) -> None:
    """Zeros around the pixels, and in their place the channel's value."""
    x, _ = _with_time(g, op)
    padding, (height, width, channels) = op.get("padding"), op.result_type.sizes
    images = g.transposed(op.label, x, [0, 3, 1, 2])
    out = g.apply(op.label, "Pad", images, g.integers([0, 0, padding, padding] * 2))
    value = g.weight(op, "value", (1, channels, 1, 1))
    if value is not None:
        inside = np.zeros((1, 1, height, width))
        inside[..., padding:-padding, padding:-padding] = 1
        mask = g.hold(f"inside {height}x{width} by {padding}", inside, np.bool_)
        out = g.apply(op.label, "Where", mask, out, value)
    _without_time(g, op, g.transposed(op.label, out, [0, 2, 3, 1]))


def _reshape(g: RealGraph, op: spike.Reshape) -> None:
    same = op.result_type.sizes == op.operand_type().sizes
    g.give(op, g.of(op) if same else g.reshaped(op.label, g.of(op), shape_of(op.result_type)))


def _transpose(g: RealGraph, op: spike.Transpose) -> None:
    time = op.result_type.steps is not None
    order = [*([0] if time else []), *(dimension + time for dimension in op.get("order"))]
    g.give(op, g.transposed(op.label, g.of(op), order))


def _scale(g: RealGraph, op: spike.Scale) -> None:
    g.give(op, g.apply(op.label, "Mul", g.of(op), g.number(op.get("factor"))))


def _two(kind: str) -> Callable[[RealGraph, Any], None]:
    """An operator on two tensors."""
    return lambda g, op: g.give(op, g.apply(op.label, kind, g.of(op, 0), g.of(op, 1)))


def _reduced(kind: str) -> Callable[[RealGraph, Any], None]:
    """A mean or sum over an axis, or over time where the op has none."""

    def form(g: RealGraph, op: Any) -> None:
        over_time = isinstance(op, spike.MeanTime | spike.SumTime)
        axis = 0 if over_time else op.get("axis") + (op.result_type.steps is not None)
        g.give(op, g.apply(op.label, kind, g.of(op), g.integers([axis]), keepdims=0))

    return form


_FORMS: dict[type[Any], Callable[[RealGraph, Any], None]] = {
    spike.Input: _input,
    spike.Output: _output,
    spike.Repeat: _repeat,
    spike.Conv: _conv,
    spike.Linear: _linear,
    spike.BatchNorm: _batch_norm,
    spike.ChannelScale: _channel_scale,
    spike.Lif: lif,
    spike.Level: level,
    spike.Add: _two("Add"),
    spike.Multiply: _two("Mul"),
    spike.Matmul: _two("MatMul"),
    spike.MaxPool: _max_pool,
    spike.Pad: _pad,
    spike.Reshape: _reshape,
    spike.Transpose: _transpose,
    spike.Scale: _scale,
    spike.Mean: _reduced("ReduceMean"),
    spike.MeanTime: _reduced("ReduceMean"),
    spike.Sum: _reduced("ReduceSum"),
    spike.SumTime: _reduced("ReduceSum"),
}
