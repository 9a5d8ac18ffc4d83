"""What ONNX's operators become: torch's layers and functions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from compiler.frontend.onnx.elementwise import ELEMENTWISE
from compiler.frontend.onnx.frames import FRAME, frame
from compiler.frontend.onnx.graph import Graph, Node, slice_numbers, written
from compiler.frontend.onnx.layers import affine, batch_norm, conv, gemm, matmul, max_pool, pool
from compiler.frontend.onnx.model import Ref, Translation
from compiler.frontend.onnx.neuron import Neuron
from compiler.ir.onnx.schema import DOMAIN, LEVEL, NEURON, defaults, required
from compiler.zoo.level import Level

Operator = Callable[[Translation, Node], None]


def _constant_side(t: Translation, node: Node) -> int | None:
    """Which of two operands is a constant, or None."""
    return next((index for index in (0, 1) if node.input(index) in t.graph.constants), None)


def add(t: Translation, node: Node) -> None:
    """x + y, or x + a constant per channel."""
    if node.outputs[0] in t.module.values:
        return  # the bias of a linear layer, already added
    side = _constant_side(t, node)
    if side is None:
        t.give(node, t.apply(node, torch.add, t.value(node, 0), t.value(node, 1)))
    else:
        affine(t, node, 1 - side, bias=t.constant(node, side), name=side)


def subtract(t: Translation, node: Node) -> None:
    """x - a constant per channel."""
    if _constant_side(t, node) != 1:
        raise t.graph.refuse(node, "subtracts a tensor; only constants are subtracted outside a neuron")
    affine(t, node, 0, bias=-t.constant(node, 1), name=1)


def multiply(t: Translation, node: Node) -> None:
    """x * y, x * number, or x * a constant per channel."""
    side = _constant_side(t, node)
    if side is None:
        t.give(node, t.apply(node, torch.mul, t.value(node, 0), t.value(node, 1)))
    else:
        _scaled(t, node, 1 - side, t.constant(node, side), side)


def divide(t: Translation, node: Node) -> None:
    """x / a constant, as a product with 1 / constant: the same but for one rounding."""
    if _constant_side(t, node) != 1:
        raise t.graph.refuse(node, "divides by a tensor; only constants divide outside a neuron")
    _scaled(t, node, 0, 1.0 / np.asarray(t.constant(node, 1), np.float64), 1)


def _scaled(t: Translation, node: Node, index: int, factor: Any, name: int) -> None:
    factor = np.asarray(factor)
    if factor.size == 1 and factor.ndim <= len(t.shape(node, index)):
        t.give(node, t.apply(node, torch.mul, t.value(node, index), float(factor.reshape(-1)[0])))
    else:
        affine(t, node, index, scale=factor, name=name)


def same(t: Translation, node: Node) -> None:
    """What leaves x as it is when a trained model runs."""
    if node.operator == "Cast" and node.attributes["to"] != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(node.attributes["to"]).lower()
        raise t.graph.refuse(node, f"turns the input's values into {kind}; values must stay float32")
    if node.operator == "Dropout" and node.input(2) and bool(t.constant(node, 2)):
        raise t.graph.refuse(node, "is in training mode; export the model after model.eval()")
    t.give(node, t.value(node))


def reshape(t: Translation, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: to the shape that the file gives for this input."""
    before, after = t.shape(node), t.graph.shapes[node.outputs[0]]
    x = t.value(node)
    if node.operator == "Squeeze":
        for axis in sorted(_dropped(t, node, before), reverse=True):
            x = t.apply(node, torch.squeeze, x, axis)
    elif node.operator == "Unsqueeze":
        for axis in sorted(axis % len(after) for axis in _axes(t, node) or ()):
            x = t.apply(node, torch.unsqueeze, x, axis)
    elif before != after:
        x = _regrouped(t, node, x, before, after)
    t.give(node, x)


def _regrouped(t: Translation, node: Node, x: Ref, before: Sequence[int], after: Sequence[int]) -> Ref:
    """Some neighbouring dimensions as one, or one as some: said so, where sizes of 1 would leave open which is meant.

    The leading dimensions are taken first, for they are time and batch.
    """
    most = min(len(before), len(after)) - 1
    behind = next((n for n in range(most) if before[-1 - n] != after[-1 - n]), most)
    most -= behind
    ahead = next((n for n in range(most) if before[n] != after[n]), most)
    old, new = (list(sizes[ahead : len(sizes) - behind]) for sizes in (before, after))
    if len(new) == 1 and len(old) > 1:
        return t.apply(node, torch.flatten, x, ahead, ahead + len(old) - 1)
    if len(old) == 1 and len(new) > 1:
        return t.apply(node, torch.unflatten, x, ahead, tuple(new))
    return t.apply(node, torch.reshape, x, list(after))


def _dropped(t: Translation, node: Node, shape: Sequence[int]) -> list[int]:
    axes = _axes(t, node)
    return [axis for axis, size in enumerate(shape) if size == 1] if axes is None else [a % len(shape) for a in axes]


def _axes(t: Translation, node: Node) -> list[int] | None:
    """An operator's axes: an input, in old files an attribute; None where it has none."""
    given = t.constant(node, 1)
    if given is not None:
        return [int(axis) for axis in given.reshape(-1)]
    axes = node.attributes.get("axes")
    return None if axes is None else list(axes)


def transpose(t: Translation, node: Node) -> None:
    """Dimensions in another order; without `perm`, reversed."""
    rank = len(t.shape(node))
    order = list(node.attributes.get("perm", range(rank - 1, -1, -1)))
    t.give(node, t.apply(node, torch.permute, t.value(node), order))


def repeat(t: Translation, node: Node) -> None:
    """Expand and Tile: x again and again along dimensions, the first of them new ones."""
    before, after = t.shape(node), t.graph.shapes[node.outputs[0]]
    padded = (1,) * (len(after) - len(before)) + before
    counts = [size // own for size, own in zip(after, padded, strict=True)]
    if before == after and all(user.operator in ("Expand", "Tile") for user in t.graph.users(node.outputs[0])):
        t.give(node, t.value(node))  # the next one says what is new; the last one may say one timestep
        return
    t.give(node, t.apply(node, operator.methodcaller("repeat", *counts), t.value(node)))


def reduce(t: Translation, node: Node) -> None:
    """Mean or sum over dimensions."""
    rank = len(t.shape(node))
    axes = _axes(t, node)
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        t.give(node, t.value(node))
        return
    dims = sorted(axis % rank for axis in axes or range(rank))
    method = "mean" if node.operator == "ReduceMean" else "sum"
    x = t.apply(node, operator.methodcaller(method, dims if len(dims) > 1 else dims[0]), t.value(node))
    for axis in dims if node.attributes.get("keepdims", 1) else ():
        x = t.apply(node, torch.unsqueeze, x, axis)
    t.give(node, x)


def concat(t: Translation, node: Node) -> None:
    """Several tensors along a dimension; the same one T times is T timesteps of it."""
    axis = node.attributes["axis"] % len(t.graph.shapes[node.outputs[0]])
    parts = [t.value(node, index) for index in range(len(node.inputs))]
    producers = [t.graph.producer(name) for name in node.inputs]
    first = producers[0]
    alike = first is not None and all(
        producer is not None
        and producer.operator == first.operator
        and producer.inputs[:1] == first.inputs[:1]
        and producer.operator in ("Unsqueeze", "Reshape")
        and t.shape(node, index) == t.shape(node, 0)
        for index, producer in enumerate(producers)
    )
    if len(set(parts)) == 1 or alike:
        counts = [len(parts) if place == axis else 1 for place in range(len(t.graph.shapes[node.outputs[0]]))]
        t.give(node, t.apply(node, operator.methodcaller("repeat", *counts), parts[0]))
    else:
        t.give(node, t.apply(node, torch.cat, parts, axis))


def split(t: Translation, node: Node) -> None:
    """Parts of a dimension, one after the other."""
    rank = len(t.shape(node))
    axis, start = node.attributes.get("axis", 0) % rank, 0
    for index, name in enumerate(node.outputs):
        stop = start + (t.graph.shapes[name][axis] if name else 0)
        if name:
            t.give(node, _cut(t, node, axis, slice(start, stop)), index)
        start = stop


def cut(t: Translation, node: Node) -> None:
    """Slice: a range of each of some dimensions."""
    shape = t.shape(node)
    starts, ends, axes, steps = (
        slice_numbers(t.graph, node, index, name) for index, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    assert starts is not None and ends is not None
    places = axes if axes is not None else list(range(len(starts)))
    slices = [slice(None)] * len(shape)
    for number, axis in enumerate(places):
        step = steps[number] if steps else 1
        if step < 1:
            raise t.graph.refuse(node, f"steps backwards ({step}); a slice goes forwards")
        slices[axis % len(shape)] = slice(starts[number], min(ends[number], shape[axis]), step)
    t.give(node, t.apply(node, operator.getitem, t.value(node), tuple(slices)))


def _cut(t: Translation, node: Node, axis: int, part: slice | int) -> Any:
    return t.apply(node, operator.getitem, t.value(node), (*[slice(None)] * axis, part))


def gather(t: Translation, node: Node) -> None:
    """One place of a dimension."""
    index, axis = t.constant(node, 1), node.attributes.get("axis", 0) % len(t.shape(node))
    if index is None or index.size != 1:
        raise t.graph.refuse(node, "gathers several places; only one place of a dimension can be taken")
    place = int(index.reshape(-1)[0])
    t.give(node, _cut(t, node, axis, place if index.ndim == 0 else slice(place, place + 1 or None)))


def neuron(t: Translation, node: Node) -> None:
    """c-step.Neuron; one that was rolled up may have time in another dimension than the first."""
    axis, x = node.attributes.get("axis", 0), t.value(node)
    module = Neuron(**_attributes(t.graph, node, NEURON))
    if axis:
        x = t.apply(node, torch.transpose, x, 0, axis)
    spikes = t.layer(node, t.scope(node) or "neuron", module, x)
    if axis:
        spikes = t.apply(node, torch.transpose, spikes, 0, axis)
    if t.shape(node) != (after := t.graph.shapes[node.outputs[0]]):
        spikes = t.apply(node, torch.reshape, spikes, list(after))
    t.give(node, spikes)


def level(t: Translation, node: Node) -> None:
    """c-step.Level."""
    t.give(node, t.layer(node, t.scope(node) or "level", Level(**_attributes(t.graph, node, LEVEL)), t.value(node)))


def _attributes(graph: Graph, node: Node, kind: str) -> dict[str, Any]:
    """What a neuron's attributes say, in words that are known, and float32 numbers as they were meant."""
    given = {name: value for name, value in node.attributes.items() if name != "axis"}
    filled = defaults(kind) | given
    for name in required(kind):
        if name not in filled:
            raise graph.refuse(node, f"has no attribute {name}; see docs/onnx.md")
    for name, words in WORDS.items():
        if filled.get(name, words[0]) not in words:
            raise graph.refuse(node, f"{name}={filled[name]}; it must be one of {', '.join(words)}")
    numbers = {name: written(value) for name, value in filled.items() if isinstance(value, float)}
    if wrong := next((name for name, value in numbers.items() if not 0 < value < float("inf")), None):
        raise graph.refuse(node, f"{wrong}={numbers[wrong]}; it must be positive")
    return filled | numbers


WORDS = {
    "charge": ("lif", "lif_undecayed", "if"),
    "reset": ("hard", "soft"),
    "fires": ("ge", "gt"),
    "decay": ("divide", "multiply"),
    "ties": ("even", "up"),
}

OPERATORS: dict[str, Operator] = {
    "Add": add,
    "AveragePool": pool,
    "BatchNormalization": batch_norm,
    "Cast": same,
    "Concat": concat,
    "Conv": conv,
    "Div": divide,
    "Dropout": same,
    "Expand": repeat,
    "Flatten": reshape,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": pool,
    "Identity": same,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": multiply,
    "Pad": frame,
    FRAME: frame,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    "Reshape": reshape,
    "Slice": cut,
    "Split": split,
    "Squeeze": reshape,
    "Sub": subtract,
    "Tile": repeat,
    "Transpose": transpose,
    "Unsqueeze": reshape,
    f"{DOMAIN}.{NEURON}": neuron,
    f"{DOMAIN}.{LEVEL}": level,
}

KNOWN = (*OPERATORS, *ELEMENTWISE)
"""Operators that may stand in a file: those above, and what neurons are made of."""
