"""Arithmetic: what sums, products and means of tensors become."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, prod
from typing import Any

from compiler.frontend.dimensions import (
    FEATURE,
    Atom,
    Constant,
    Dimension,
    Value,
    feature_axis,
    feature_size,
)
from compiler.frontend.importer import Handler, Importer
from compiler.frontend.shapes import regroup
from compiler.ir import spike
from compiler.ir.types import Element

REAL = Element.real()


def takes_constants(handler: Handler) -> Handler:
    """Mark a handler that knows what to do with parameters outside layers."""
    handler.takes_constants = True  # type: ignore[attr-defined]
    return handler


def add(importer: Importer, left: Any, right: Any) -> Any:
    """x + y of equal shapes."""
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise importer.refuse("adds a constant to a tensor; only tensors of equal shape can be added")
    if left.shape == right.shape:
        a, b = left.dimensions, right.dimensions
        left, right = _aligned(importer, left, a, b), _aligned(importer, right, b, a)
    if left.type.sizes != right.type.sizes or left.type.steps != right.type.steps:
        raise importer.refuse(f"adds {left.type} and {right.type}; only equal shapes can be added")
    kinds = left.type.element, right.type.element
    counts = all(kind.is_count for kind in kinds)
    element = Element.count(sum(kind.bounds[1] for kind in kinds)) if counts else REAL
    made = importer.make(spike.Add, left, right, result=left.type.with_element(element), hint=importer.hint("add"))
    return Value(made, left.dimensions)


def add_in_place(importer: Importer, left: Any, right: Any) -> Any:
    """x += y, where nothing looks at x (or a view of it) under another name afterwards."""
    if importer.shares_memory_with_later(0):
        raise importer.refuse("adds in place to a tensor that is used again under another name; write x = x + y")
    return add(importer, left, right)


@takes_constants
def multiply(importer: Importer, left: Any, right: Any) -> Any:
    """x * number, x * a number a channel, or x * y with sizes of 1 repeated."""
    if not isinstance(left, Value):
        left, right = right, left
    if isinstance(right, Value):
        return _product(importer, left, right)
    if isinstance(right, Constant):
        return _scaled(importer, left, right)
    if not isinstance(right, int | float) or not isinstance(left, Value):
        raise importer.refuse(f"multiplies {type(left).__name__} by {type(right).__name__}")
    made = importer.make(
        spike.Scale, left, result=left.type.with_element(REAL), hint=importer.hint("scale"), factor=float(right)
    )
    return Value(made, left.dimensions)


def _scaled(importer: Importer, x: Value, constant: Constant) -> Value:
    """x * constant of one number, or of one number a channel: layer scale."""
    sizes = list(constant.tensor.shape)
    places = [index - len(sizes) for index, size in enumerate(sizes) if size != 1]
    if not places:
        return multiply(importer, x, float(constant.tensor.detach().reshape(())))
    axis = feature_axis(x, places[0]) if len(places) == 1 and len(sizes) <= len(x.dimensions) else None
    if axis is None or x.type.sizes[axis] != constant.tensor.numel():
        raise importer.refuse(
            f"multiplies {x.shape} by {constant}; only one number, or one for each channel of a dimension, is supported"
        )
    made = importer.make(
        spike.ChannelScale,
        x,
        result=x.type.with_element(REAL),
        hint=importer.hint("channel_scale"),
        symbols={"weight": importer.constant(constant, constant.tensor.reshape(-1))},
        axis=axis,
    )
    return Value(made, x.dimensions)


def _product(importer: Importer, left: Value, right: Value) -> Value:
    """Element by element; both get the same feature dimensions first, those that one lacks of size 1."""
    if left.type.steps != right.type.steps:
        raise importer.refuse(f"multiplies {left.type} by {right.type}; both must have time, or neither")
    rank = max(len(left.dimensions), len(right.dimensions))
    a, b = (((),) * (rank - len(value.dimensions)) + value.dimensions for value in (left, right))
    left, right = _aligned(importer, left, a, b), _aligned(importer, right, b, a)
    shape = tuple(max(pair) for pair in zip(left.type.sizes, right.type.sizes, strict=True))
    result = left.type.with_sizes(shape).with_element(_element_of_product(left.type.element, right.type.element))
    made = importer.make(spike.Multiply, left, right, result=result, hint=importer.hint("multiply"))
    wider = (x if _extent(x) >= _extent(y) else y for x, y in zip(left.dimensions, right.dimensions, strict=True))
    return Value(made, tuple(wider))


def _element_of_product(left: Element, right: Element) -> Element:
    """Spikes of spikes (an AND), counts of counts."""
    if not left.is_count or not right.is_count:
        return REAL
    bound = left.bounds[1] * right.bounds[1]
    return Element.spike() if bound == 1 else Element.count(bound)


def _extent(dimension: Dimension) -> tuple[int, int]:
    """The size of a dimension; of equal ones, the one with more atoms says more."""
    return prod(atom.size for atom in dimension), len(dimension)


def _aligned(importer: Importer, value: Value, own: Sequence[Dimension], other: Sequence[Dimension]) -> Value:
    """`value` with features of size 1 where only the other operand has features."""
    dimensions = tuple(
        (*mine, Atom(FEATURE, 1)) if feature_size(mine) is None and feature_size(theirs) is not None else mine
        for mine, theirs in zip(own, other, strict=True)
    )
    return regroup(importer, value, dimensions)


@takes_constants
def divide(importer: Importer, left: Any, right: Any) -> Any:
    """x / number, a power of two: multiplying by its inverse rounds the same."""
    if not isinstance(left, Value) or not isinstance(right, int | float):
        raise importer.refuse("divides by something else than a number")
    if frexp(right)[0] != 0.5:
        raise importer.refuse(f"divides by {right}; only powers of two; write x * (1 / {right})")
    return multiply(importer, left, 1 / right)


def matmul(importer: Importer, left: Value, right: Value) -> Value:
    """x @ y over the last two dimensions."""
    if len(left.type.sizes) != len(right.type.sizes) or len(left.type.sizes) < 2:
        raise importer.refuse(f"multiplies {left.type} by {right.type}; both need the same leading dimensions")
    sizes = (*left.type.sizes[:-1], right.type.sizes[-1])
    a, b = left.type.element, right.type.element
    counted = a.is_count and b.is_count
    element = Element.count(a.bounds[1] * b.bounds[1] * left.type.sizes[-1]) if counted else REAL
    result = left.type.with_sizes(sizes).with_element(element)
    made = importer.make(spike.Matmul, left, right, result=result, hint=importer.hint("matmul"))
    return Value(made, (*left.dimensions[:-1], right.dimensions[-1]))
