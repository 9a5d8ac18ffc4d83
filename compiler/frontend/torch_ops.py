"""One table from torch modules, functions and methods to spike ops."""

from __future__ import annotations

import operator
from math import prod
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from compiler.frontend.importer import TIME, Handler, Importer, Value, feature_axis, feature_size
from compiler.frontend.layers import (
    batch_norm,
    conv2d,
    linear,
    max_pool2d,
    nothing,
    passed_on,
    passes_on,
    require_plain,
)
from compiler.frontend.neurons import class_name, is_neuron
from compiler.ir import spike
from compiler.ir.types import Element
from compiler.ir.types import Tensor as StaticType

REAL = Element.real()


def _element(left: Element, right: Element) -> Element:
    """What a sum of two kinds is."""
    if left.is_count and right.is_count:
        return Element.count(left.bounds[1] + right.bounds[1])
    return REAL


def add(importer: Importer, left: Any, right: Any) -> Any:
    """x + y of equal shapes."""
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise importer.refuse("adds a constant to a tensor; only tensors of equal shape can be added")
    if left.type.sizes != right.type.sizes or left.type.steps != right.type.steps:
        raise importer.refuse(f"adds {left.type} and {right.type}; only equal shapes can be added")
    element = _element(left.type.element, right.type.element)
    made = importer.make(spike.Add, left, right, result=left.type.with_element(element), hint=importer.hint("add"))
    return Value(made, left.dimensions)


def add_in_place(importer: Importer, left: Any, right: Any) -> Any:
    """x += y, where nothing looks at x (or a view of it) under another name afterwards."""
    if importer.shares_memory_with_later(0):
        raise importer.refuse("adds in place to a tensor that is used again under another name; write x = x + y")
    return add(importer, left, right)


def multiply(importer: Importer, left: Any, right: Any) -> Any:
    """x * number."""
    if isinstance(right, Value):
        left, right = right, left
    if not isinstance(right, int | float) or not isinstance(left, Value):
        raise importer.refuse("multiplies two tensors element by element; that has no spiking meaning here")
    made = importer.make(
        spike.Scale, left, result=left.type.with_element(REAL), hint=importer.hint("scale"), factor=float(right)
    )
    return Value(made, left.dimensions)


def matmul(importer: Importer, left: Value, right: Value) -> Value:
    """x @ y over the last two dimensions."""
    if len(left.type.sizes) != len(right.type.sizes) or len(left.type.sizes) < 2:
        raise importer.refuse(f"multiplies {left.type} by {right.type}; both need the same leading dimensions")
    sizes = (*left.type.sizes[:-1], right.type.sizes[-1])
    a, b = left.type.element, right.type.element
    inner = left.type.sizes[-1]
    counted = a.is_count and b.is_count
    element = Element.count(a.bounds[1] * b.bounds[1] * inner) if counted else REAL
    made = importer.make(
        spike.Matmul,
        left,
        right,
        result=left.type.with_sizes(sizes).with_element(element),
        hint=importer.hint("matmul"),
    )
    return Value(made, (*left.dimensions[:-1], right.dimensions[-1]))


def mean(importer: Importer, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over one dimension (or several, one after another)."""
    if dim is None or keepdim:
        raise importer.refuse("mean over all dimensions, or with keepdim, is not supported")
    for one in sorted((d % len(x.dimensions) for d in ((dim,) if isinstance(dim, int) else dim)), reverse=True):
        kept = x.dimensions[:one] + x.dimensions[one + 1 :]
        if any(atom.kind == TIME for atom in x.dimensions[one]):
            made = importer.make(
                spike.MeanTime,
                x,
                result=StaticType.of(x.type.sizes, REAL),
                hint=importer.hint("mean_time"),
            )
        elif (axis := feature_axis(x, one)) is not None:
            sizes = x.type.sizes[:axis] + x.type.sizes[axis + 1 :]
            result = x.type.with_sizes(sizes).with_element(REAL)
            made = importer.make(spike.Mean, x, result=result, hint=importer.hint("mean"), axis=axis)
        else:
            made = x.ssa
        x = Value(made, kept)
    return x


def contiguous(importer: Importer, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A copy in memory order: real arithmetic may round differently without it."""
    made = importer.make(spike.Reshape, x, result=x.type, hint=importer.hint("contiguous"))
    return Value(made, x.dimensions)


def reshape(importer: Importer, x: Value, *sizes: Any, shape: Any = None) -> Value:
    """reshape, view."""
    wanted = shape if shape is not None else sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    return importer.reshape(x, list(wanted))


def flatten(importer: Importer, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Merge dimensions start_dim..end_dim."""
    start, end = start_dim % len(x.dimensions), end_dim % len(x.dimensions)
    merged = tuple(atom for dimension in x.dimensions[start : end + 1] for atom in dimension)
    return importer.regroup(x, (*x.dimensions[:start], merged, *x.dimensions[end + 1 :]))


def transpose(importer: Importer, x: Value, dim0: int, dim1: int) -> Value:
    """Swap two dimensions."""
    order = list(range(len(x.dimensions)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return importer.permute(x, order)


def permute(importer: Importer, x: Value, *order: Any, dims: Any = None) -> Value:
    """Dimensions in another order."""
    wanted = dims if dims is not None else order[0] if len(order) == 1 and not isinstance(order[0], int) else order
    return importer.permute(x, list(wanted))


def unsqueeze(importer: Importer, x: Value, dim: int) -> Value:
    """A new dimension of size 1."""
    place = dim % (len(x.dimensions) + 1)
    return Value(x.ssa, (*x.dimensions[:place], (), *x.dimensions[place:]))


def squeeze(importer: Importer, x: Value, dim: int) -> Value:
    """Drop a dimension of size 1."""
    place = dim % len(x.dimensions)
    if feature_size(x.dimensions[place]) not in (None, 1):
        return x
    return importer.regroup(x, x.dimensions[:place] + x.dimensions[place + 1 :])


def clone(importer: Importer, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A copy in the same memory order: the same value."""
    return x


def unflatten(importer: Importer, x: Value, dim: int, sizes: Any) -> Value:
    """Split one dimension into several."""
    place = dim % len(x.dimensions)
    shape = [prod(atom.size for atom in dimension) for dimension in x.dimensions]
    return importer.reshape(x, [*shape[:place], *sizes, *shape[place + 1 :]])


def repeat(importer: Importer, x: Value, *counts: Any) -> Value:
    """Repeat a static tensor along a new leading dimension: time."""
    return _repeated(importer, x, _numbers(counts))


def expand(importer: Importer, x: Value, *sizes: Any) -> Value:
    """Repeat a static tensor along a new leading dimension: time. -1 and a dimension's own size leave it."""
    wanted = _numbers(sizes)
    shape = [1] * (len(wanted) - len(x.dimensions)) + [prod(atom.size for atom in dim) for dim in x.dimensions]
    wanted = [1 if size in (-1, own) else size for size, own in zip(wanted, shape, strict=True)]
    return _repeated(importer, x, wanted)


def _numbers(given: tuple[Any, ...]) -> list[int]:
    """Numbers given one by one or as one sequence."""
    return list(given[0]) if len(given) == 1 and not isinstance(given[0], int) else list(given)


def _repeated(importer: Importer, x: Value, counts: list[int]) -> Value:
    """x `counts[i]` times along dimension i; dimensions that x lacks are new leading ones."""
    x = Value(x.ssa, ((),) * (len(counts) - len(x.dimensions)) + x.dimensions)
    for place, count in enumerate(counts):
        new = x.type.steps is None and not x.dimensions[place]
        if count != 1 and not new:
            raise importer.refuse("repeats along a dimension that is not new; only a new leading T can be repeated")
        if count != 1 or (new and place == 0):  # T = 1 is time, too
            x = importer.repeat_time(x, place, count)
    return x


def stack(importer: Importer, tensors: Any, dim: int = 0) -> Value:
    """Stack one static tensor T times: time."""
    first = tensors[0]
    if any(not isinstance(tensor, Value) or tensor.ssa is not first.ssa for tensor in tensors):
        raise importer.refuse("stacks different tensors; only the same tensor stacked T times is time")
    if first.type.steps is not None:
        raise importer.refuse("stacks a tensor that has time already")
    return importer.repeat_time(unsqueeze(importer, first, dim), dim % (len(first.dimensions) + 1), len(tensors))


def dropout(importer: Importer, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    """Dropout that is off."""
    if training and p:
        raise importer.refuse(
            "dropout with training=True (its default) is random; pass self.training, or use nn.Dropout"
        )
    return x


MODULES: dict[type[nn.Module], Handler] = {
    nn.Conv2d: conv2d,
    nn.Linear: linear,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.MaxPool2d: max_pool2d,
    nn.Dropout: nothing,
    nn.Flatten: lambda importer, x, layer, path: flatten(importer, x, layer.start_dim, layer.end_dim),
    nn.Identity: nothing,
}

FUNCTIONS: dict[Any, Handler] = {
    operator.add: add,
    operator.iadd: add_in_place,
    torch.add: add,
    operator.mul: multiply,
    torch.mul: multiply,
    operator.matmul: matmul,
    torch.matmul: matmul,
    torch.mean: mean,
    torch.reshape: reshape,
    torch.flatten: flatten,
    torch.transpose: transpose,
    torch.permute: permute,
    torch.unsqueeze: unsqueeze,
    torch.squeeze: squeeze,
    torch.stack: stack,
    torch.unflatten: unflatten,
    functional.dropout: dropout,
}

METHODS: dict[str, Handler] = {
    "add": add,
    "mul": multiply,
    "matmul": matmul,
    "mean": mean,
    "reshape": reshape,
    "view": reshape,
    "flatten": flatten,
    "transpose": transpose,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "unflatten": unflatten,
    "repeat": repeat,
    "expand": expand,
    "contiguous": contiguous,
    "clone": clone,
    "detach": clone,
}


def _of_layer(handler: Handler, module: nn.Module, path: str) -> Handler:
    """A layer's handler as that of its call."""
    return lambda importer, x: handler(importer, x, module, path)


def handler_of(importer: Importer, node: fx.Node) -> tuple[Handler | None, str]:
    """The handler of a call, and the call's name for errors."""
    if node.op == "call_module":
        path = str(node.target)
        module: nn.Module = operator.attrgetter(path)(importer.model)
        what = f"{path}: {class_name(module)}"
        if is_neuron(module):
            return (lambda importer, x: importer.neuron(module, path, x)), what
        for kind, handler in MODULES.items():
            if isinstance(module, kind):
                require_plain(importer, kind, module, what, node)
                return _of_layer(handler, module, path), what
        return (passed_on if passes_on(module, node) else None), what
    if node.op == "call_method":
        return METHODS.get(str(node.target)), f"Tensor.{node.target}"
    target = cast(Any, node.target)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"
    return FUNCTIONS.get(target), name


def supported() -> dict[str, list[str]]:
    """What the front end knows, for `cstep check --ops`. Neurons are recognised by what they compute."""
    return {
        "modules": sorted(f"torch.nn.{kind.__name__}" for kind in MODULES),
        "neurons": ["IF", "LIF", "LIF with undecayed input", "parametric LIF"],
        "functions": sorted({getattr(f, "__name__", str(f)) for f in FUNCTIONS}),
        "methods": sorted(METHODS),
    }
