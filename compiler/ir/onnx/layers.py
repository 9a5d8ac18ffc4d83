"""ONNX forms of layers, sums, masks and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from compiler.ir import spike
from compiler.ir.onnx.graph import EXACT_FLOAT, Graph, Real, greatest_of, refuse, shape_of
from compiler.ir.onnx.neurons import clamped


def quantise_image(graph: Graph, op: spike.QuantiseImage) -> None:
    """clip(rint(x / scale), -127, 127) in double; ONNX's Round is half to even, as rint."""
    quotient = graph.apply("Div", graph.double(graph.of(op)), graph.constant(op.get("scale")))
    rounded = graph.apply("Round", quotient)
    graph.give(op, graph.float(graph.apply("Clip", rounded, graph.constant(-127.0), graph.constant(127.0))))


def repeat(graph: Graph, op: spike.Repeat) -> None:
    graph.give(op, graph.apply("Expand", graph.of(op), graph.constant(shape_of(op.result_type), np.int64)))


def extend(graph: Graph, op: spike.Extend) -> None:
    """Zeros behind the last timestep."""
    x, more = op.operand_type(), (op.result_type.steps or 0) - (op.operand_type().steps or 0)
    pads = graph.constant([*[0] * len(shape_of(x)), more, *[0] * len(x.sizes)], np.int64)
    graph.give(op, graph.apply("Pad", graph.of(op), pads))


def truncate(graph: Graph, op: spike.Truncate) -> None:
    """The first timesteps."""
    bounds = (graph.constant([value], np.int64) for value in (0, op.result_type.steps or 0, 0))
    graph.give(op, graph.apply("Slice", graph.of(op), *bounds))


def _channels_first(graph: Graph, op: spike.SpikeOperation, images: Sequence[int] | None = None) -> str:
    """[T, H, W, C] or [H, W, C] (or in other `images` [n, H, W, C]) -> [n, C, H, W]."""
    x = graph.of(op)
    if images is not None or op.operand_type().steps is None:
        x = graph.reshaped(x, images or (1, *op.operand_type().sizes))
    return graph.apply("Transpose", x, perm=[0, 3, 1, 2])


def _channels_last(graph: Graph, op: spike.SpikeOperation, images: str) -> str:
    return graph.reshaped(graph.apply("Transpose", images, perm=[0, 2, 3, 1]), shape_of(op.result_type))


def _window(op: spike.SpikeOperation) -> dict[str, list[int]]:
    kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}


def _greatest_sum(graph: Graph, op: spike.SpikeOperation, weight: Real) -> int:
    """No sum of a part of the products, or of them and the bias, passes that of all of one sign."""
    low, high = op.operand_type().element.bounds
    rows, bias = weight.reshape(len(weight), -1), graph.weight(op, "bias")
    lowest = np.minimum(np.minimum(rows * low, rows * high), 0).sum(axis=1)
    highest = np.maximum(np.maximum(rows * low, rows * high), 0).sum(axis=1)
    if bias is not None:
        lowest, highest = lowest + np.minimum(bias, 0), highest + np.maximum(bias, 0)
    return int(max(-lowest.min(), highest.max()))


def _biased(graph: Graph, op: spike.SpikeOperation, sums: str, dtype: Any) -> str:
    """Add the bias along the last dimension."""
    bias = graph.weight(op, "bias")
    return sums if bias is None else graph.apply("Add", sums, graph.constant(bias, dtype))


def conv(graph: Graph, op: spike.Conv) -> None:
    """A convolution of every row by itself is one of images of one row."""
    weight = cast(Real, graph.weight(op, "weight"))
    held = graph.hold(weight.astype(np.float32), f"{op.label}.weight")
    window, images = _window(op), None
    if op.get("rows"):
        kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
        window = {"kernel_shape": [1, kernel], "strides": [1, stride], "pads": [0, padding, 0, padding]}
        height, width, channels = op.operand_type().sizes
        images = ((op.operand_type().steps or 1) * height, 1, width, channels)
    sums = graph.apply("Conv", _channels_first(graph, op, images), held, group=op.get("groups"), **window)
    biased = _biased(graph, op, _channels_last(graph, op, sums), np.float32)
    graph.give(op, biased, _greatest_sum(graph, op, weight))


def linear(graph: Graph, op: spike.Linear) -> None:
    """In double where the sums of many timesteps and tokens could pass float32: the head."""
    weight = cast(Real, graph.weight(op, "weight"))
    greatest = _greatest_sum(graph, op, weight)
    wide = (greatest >= EXACT_FLOAT and not op.result_type.element.is_count) or graph.of(op) in graph.doubles
    dtype = np.float64 if wide else np.float32
    held = graph.hold(weight.T.astype(dtype), f"{op.label}.weight")
    x = graph.double(graph.of(op)) if wide else graph.of(op)
    graph.give(op, _biased(graph, op, graph.apply("MatMul", x, held), dtype), greatest)


def _split(graph: Graph, op: spike.SpikeOperation, index: int, heads: int, perm: list[int]) -> str:
    """[T, N, C] as [T, N, heads, C / heads], in the order `perm`."""
    tokens, channels = op.operand_type(index).sizes
    parted = (*_time(op), tokens, heads, channels // heads)
    return graph.apply("Transpose", graph.reshaped(graph.of(op, index), parted), perm=perm)


def _time(op: spike.SpikeOperation) -> tuple[int, ...]:
    """The dimension of time; 1 for a tensor."""
    return (op.result_type.steps or 1,)


def attention(graph: Graph, op: spike.Attention) -> None:
    """Heads split off, (q kT) v, heads merged."""
    if op.get("scale") != 1.0:
        raise refuse(op, f"scale={op.get('scale')} on integers; it belongs into the threshold (quantise)")
    heads = op.get("heads")
    keys, channels = op.operand_type(1).sizes
    q, k, v = (
        _split(graph, op, index, heads, perm) for index, perm in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    )
    out = graph.apply("MatMul", graph.apply("MatMul", q, k), v)
    merged = graph.reshaped(graph.apply("Transpose", out, perm=[0, 2, 1, 3]), shape_of(op.result_type))
    scores = channels // heads * greatest_of(op.operand_type(0)) * greatest_of(op.operand_type(1))
    graph.give(op, merged, keys * scores * greatest_of(op.operand_type(2)))


def add(graph: Graph, op: spike.Add) -> None:
    """Counts add up, and logits, in double; streams are clamped to their 16 bits."""
    terms = [graph.of(op, 0), graph.of(op, 1)]
    if not graph.doubles.isdisjoint(terms) or greatest_of(op.result_type) >= EXACT_FLOAT:
        terms = [graph.double(term) for term in terms]
    total = graph.apply("Add", *terms)
    graph.give(op, graph.float(clamped(graph, op, total)) if op.result_type.element.is_fixed else total)


def multiply(graph: Graph, op: spike.Multiply) -> None:
    graph.give(op, graph.apply("Mul", graph.of(op, 0), graph.of(op, 1)))


def mask(graph: Graph, op: spike.Mask) -> None:
    """A mask of channels is one row for all tokens; a mask of heads, one column for all channels of a head."""
    tokens, channels = op.result_type.sizes
    sizes = op.operand_type(1).sizes
    groups = (1, channels, 1) if len(sizes) == 1 else (tokens, sizes[1], 1)
    spikes = (tokens, channels, 1) if len(sizes) == 1 else (tokens, sizes[1], channels // sizes[1])
    x, gate = (graph.reshaped(graph.of(op, i), (*_time(op), *form)) for i, form in enumerate((spikes, groups)))
    graph.give(op, graph.reshaped(graph.apply("Mul", x, gate), shape_of(op.result_type)))


def dilate(graph: Graph, op: spike.Dilate) -> None:
    """A max-pool over tokens and the channels of a head, every head an image of its own."""
    images = _split(graph, op, 0, op.get("heads"), [0, 2, 1, 3])
    pooled = graph.apply("MaxPool", images, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    graph.give(op, graph.reshaped(graph.apply("Transpose", pooled, perm=[0, 2, 1, 3]), shape_of(op.result_type)))


def max_pool(graph: Graph, op: spike.MaxPool) -> None:
    graph.give(op, _channels_last(graph, op, graph.apply("MaxPool", _channels_first(graph, op), **_window(op))))


def reshape(graph: Graph, op: spike.Reshape) -> None:
    graph.give(op, graph.reshaped(graph.of(op), shape_of(op.result_type)))


def transpose(graph: Graph, op: spike.Transpose) -> None:
    time = op.result_type.steps is not None
    order = [*([0] if time else []), *(dimension + time for dimension in op.get("order"))]
    graph.give(op, graph.apply("Transpose", graph.of(op), perm=order))


def _summed(graph: Graph, op: spike.SpikeOperation, x: str, axis: int, count: int) -> None:
    """In double where float32 could round."""
    greatest = count * greatest_of(op.operand_type())
    x = graph.double(x) if greatest >= EXACT_FLOAT else x
    graph.give(op, graph.apply("ReduceSum", x, graph.constant([axis], np.int64), keepdims=0), greatest)


def sum_(graph: Graph, op: spike.Sum) -> None:
    axis = op.get("axis")
    _summed(graph, op, graph.of(op), axis + (op.result_type.steps is not None), op.operand_type().sizes[axis])


def sum_time(graph: Graph, op: spike.SumTime) -> None:
    _summed(graph, op, graph.of(op), 0, cast(int, op.operand_type().steps))


def head_sum(graph: Graph, op: spike.HeadSum) -> None:
    """Sums over the last dimension of [T, N, heads, C / heads]."""
    parted = _split(graph, op, 0, op.get("heads"), [0, 1, 2, 3])
    if op.result_type.steps is None:
        parted = graph.reshaped(parted, (*op.result_type.sizes, -1))
    width = op.operand_type().sizes[-1] // op.get("heads")
    _summed(graph, op, parted, len(shape_of(op.result_type)), width)
