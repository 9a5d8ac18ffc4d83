"""Arithmetic: what sums, products and means of tensors become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.frontend.dimensions import (
    FEATURE,
    TIME,
    Atom,
    Constant,
    Dimension,
    Value,
    feature_axis,
    feature_size,
    is_time,
)
from compiler.frontend.importer import Handler, Importer
from compiler.frontend.shapes import regroup
from compiler.ir import spike
from compiler.ir.types import Element
from compiler.ir.types import Tensor as StaticType

REAL = Element.real()


def takes_constants(handler: Handler) -> Handler:
    """Mark a handler that knows what to do with parameters outside layers."""
    handler.takes_constants = True  # type: ignore[attr-defined]
    return handler


def _counted(bound: int, *elements: Element) -> Element:
    """Counts up to `bound` where all operands are counts."""
    return Element.count(bound) if all(element.is_count for element in elements) else REAL


def add(importer: Importer, left: Any, right: Any) -> Any:
    """x + y of equal shapes."""
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise importer.refuse("adds a constant to a tensor; only tensors of equal shape can be added")
    if left.type.sizes != right.type.sizes or left.type.steps != right.type.steps:
        raise importer.refuse(f"adds {left.type} and {right.type}; only equal shapes can be added")
    a, b = left.type.element, right.type.element
    element = _counted(a.bounds[1] + b.bounds[1], a, b) if a.is_count and b.is_count else REAL
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
    kinds = left.type.element, right.type.element
    counted = all(kind.is_count for kind in kinds)
    bound = kinds[0].bounds[1] * kinds[1].bounds[1] if counted else 0
    element = Element.spike() if counted and bound == 1 else _counted(bound, *kinds)
    result = left.type.with_sizes(shape).with_element(element)
    made = importer.make(spike.Multiply, left, right, result=result, hint=importer.hint("multiply"))
    return Value(
        made,
        tuple(x if _extent(x) >= _extent(y) else y for x, y in zip(left.dimensions, right.dimensions, strict=True)),
    )


def _extent(dimension: Dimension) -> tuple[int, int]:
    size = 1
    for atom in dimension:
        size *= atom.size
    return size, len(dimension)


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
    if not isinstance(left, Value) or not isinstance(right, int | float) or right <= 0 or 1 / (1 / right) != right:
        raise importer.refuse("divides by something else than a number")
    mantissa = float(right).hex().split("p")[0]
    if mantissa not in ("0x1.0000000000000", "0x1"):
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


def mean(importer: Importer, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over one dimension, or several."""
    return mean_over(importer, x, _places(importer, x, dim, "mean"), keepdim)


def total(importer: Importer, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Sum over one dimension, or several."""
    places = _places(importer, x, dim, "sum")
    return _reduced(importer, x, places, keepdim, spike.Sum, spike.SumTime)


def mean_over(importer: Importer, x: Value, places: Sequence[int], keepdim: bool) -> Value:
    """Mean over the dimensions `places`."""
    return _reduced(importer, x, places, keepdim, spike.Mean, spike.MeanTime)


def _places(importer: Importer, x: Value, dim: Any, what: str) -> list[int]:
    if dim is None:
        raise importer.refuse(f"{what} over all dimensions; say which")
    return sorted({place % len(x.dimensions) for place in ((dim,) if isinstance(dim, int) else dim)})


def _reduced(
    importer: Importer,
    x: Value,
    places: Sequence[int],
    keepdim: bool,
    over_features: type[spike.Mean | spike.Sum],
    over_time: type[spike.MeanTime | spike.SumTime],
) -> Value:
    """A reduction. Features that lie side by side are reduced at once, as torch does, because the order rounds."""
    had = tuple(feature_size(dimension) is not None for dimension in x.dimensions)
    inner = [place for place in places if had[place]]
    if len(inner) > 1:
        if inner != list(range(inner[0], inner[-1] + 1)):
            raise importer.refuse(f"reduces {x.shape} over {list(places)}; dimensions must lie side by side")
        merged = tuple(atom for place in inner for atom in x.dimensions[place])
        between: tuple[Dimension, ...] = ((),) * (len(inner) - 1)
        x = regroup(importer, x, (*x.dimensions[: inner[0]], merged, *between, *x.dimensions[inner[-1] + 1 :]))
    for place in inner[:1]:
        axis = feature_axis(x, place)
        assert axis is not None
        sizes = x.type.sizes[:axis] + x.type.sizes[axis + 1 :]
        element = REAL
        if over_features is spike.Sum and x.type.element.is_count:
            element = Element.count(x.type.element.bounds[1] * x.type.sizes[axis])
        hint = importer.hint(over_features.name.removeprefix("spike."))
        made = importer.make(
            over_features, x, result=x.type.with_sizes(sizes).with_element(element), hint=hint, axis=axis
        )
        x = Value(made, (*x.dimensions[:place], (), *x.dimensions[place + 1 :]))
    for place in places:
        if is_time(x.dimensions[place]):
            element = REAL
            if over_time is spike.SumTime and x.type.element.is_count:
                element = Element.count(x.type.element.bounds[1] * (x.type.steps or 1))
            hint = importer.hint(over_time.name.removeprefix("spike."))
            made = importer.make(over_time, x, result=StaticType.of(x.type.sizes, element), hint=hint)
            rest = tuple(atom for atom in x.dimensions[place] if atom.kind != TIME)
            x = Value(made, (*x.dimensions[:place], rest, *x.dimensions[place + 1 :]))
    if keepdim:
        kept = tuple((Atom(FEATURE, 1),) if place in inner else own for place, own in enumerate(x.dimensions))
        return regroup(importer, x, kept)
    return Value(x.ssa, tuple(own for place, own in enumerate(x.dimensions) if place not in places))
