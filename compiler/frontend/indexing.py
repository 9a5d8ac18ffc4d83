"""Parts of tensors: what chunk, split, unbind and square brackets become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.frontend.dimensions import FEATURE, Atom, Value, feature_axis
from compiler.frontend.importer import Importer
from compiler.frontend.shapes import regroup, unsqueeze
from compiler.ir import spike


def chunk(importer: Importer, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    """`chunks` parts of equal size along a dimension of features; the last one may be smaller."""
    size = -(-x.shape[dim] // chunks)
    return split(importer, x, size, dim)


def split(importer: Importer, x: Value, split_size_or_sections: Any, dim: int = 0) -> tuple[Value, ...]:
    """Parts of a size, or of several sizes, along a dimension of features."""
    whole = x.shape[dim]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        sizes: Sequence[int] = [min(size, whole - start) for start in range(0, whole, size)]
    else:
        sizes = list(split_size_or_sections)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return tuple(_part(importer, x, dim, start, size) for start, size in zip(starts, sizes, strict=True))


def unbind(importer: Importer, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """The parts of size 1 along a dimension of features, without that dimension."""
    return tuple(_element(importer, x, dim % len(x.dimensions), place) for place in range(x.shape[dim]))


def index(importer: Importer, x: Any, key: Any) -> Any:
    """x[key]: an item of a tuple, or of a tensor by numbers, slices without a step, None and an ellipsis."""
    if not isinstance(x, Value):
        return x[key]
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(item is Ellipsis for item in keys):
        place = next(place for place, item in enumerate(keys) if item is Ellipsis)
        taken = sum(item is not None for item in keys) - 1
        keys[place : place + 1] = [slice(None)] * (len(x.dimensions) - taken)
    dimension = 0
    for item in keys:
        if item is None:
            x, dimension = unsqueeze(importer, x, dimension), dimension + 1
        elif isinstance(item, int):
            x = _element(importer, x, dimension, item % x.shape[dimension])
        elif isinstance(item, slice):
            start, stop, step = item.indices(x.shape[dimension])
            if step != 1:
                raise importer.refuse(f"takes every {step}th element; only slices without a step are supported")
            x, dimension = _part(importer, x, dimension, start, stop - start), dimension + 1
        else:
            raise importer.refuse(f"indexes a tensor by {item}; only numbers and slices are supported")
    return x


def _element(importer: Importer, x: Value, dimension: int, place: int) -> Value:
    """One element along a dimension, which is gone then."""
    taken = _part(importer, x, dimension, place, 1)
    return regroup(importer, taken, (*taken.dimensions[:dimension], *taken.dimensions[dimension + 1 :]))


def _part(importer: Importer, x: Value, dim: int, start: int, size: int) -> Value:
    """`size` elements from `start` on along a dimension; all of them are the tensor itself."""
    place = dim % len(x.dimensions)
    if (start, size) == (0, x.shape[place]):
        return x
    axis = feature_axis(x, place)
    if axis is None or size < 1:
        what = "no elements" if size < 1 else "a part of time or batch"
        raise importer.refuse(f"takes {what} of {x.shape} along dimension {place}; every timestep computes the same")
    sizes = list(x.type.sizes)
    sizes[axis] = size
    result = x.type.with_sizes(sizes)
    made = importer.make(spike.Slice, x, result=result, hint=importer.hint("slice"), axis=axis, start=start)
    return Value(made, (*x.dimensions[:place], (Atom(FEATURE, size),), *x.dimensions[place + 1 :]))
