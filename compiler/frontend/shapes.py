"""Shapes: what torch's reshape, permute, repeat and their kin become."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from compiler.frontend.dimensions import (
    FEATURE,
    TIME,
    Atom,
    Dimension,
    Value,
    feature_axis,
    feature_size,
    feature_sizes,
    is_time,
)
from compiler.frontend.importer import Importer
from compiler.ir import spike
from compiler.ir.types import Train


def reorder(importer: Importer, value: Value, order: Sequence[int], dimensions: tuple[Dimension, ...]) -> Value:
    """Features in another order; nothing is emitted where they keep theirs."""
    if list(order) == list(range(len(order))):
        return Value(value.ssa, dimensions)
    result = value.type.with_sizes([value.type.sizes[index] for index in order])
    made = importer.make(spike.Transpose, value, result=result, hint=importer.hint("transpose"), order=tuple(order))
    return Value(made, dimensions)


def permuted(importer: Importer, value: Value, order: Sequence[int]) -> Value:
    """torch's permute."""
    rank = len(value.dimensions)
    order = [index % rank for index in order]
    axes = [feature_axis(value, index) for index in order]
    kept = tuple(value.dimensions[index] for index in order)
    return reorder(importer, value, [axis for axis in axes if axis is not None], kept)


def regroup(importer: Importer, value: Value, dimensions: tuple[Dimension, ...]) -> Value:
    """The same atoms in other dimensions: torch's reshape, flatten, unflatten, squeeze."""
    timed = [any(atom.kind == TIME and atom.size > 1 for atom in dimension) for dimension in dimensions]
    dimensions = tuple(_without_one(own) if has else own for own, has in zip(dimensions, timed, strict=True))
    for dimension, has in zip(dimensions, timed, strict=True):
        if has and feature_size(dimension) is not None:
            raise importer.refuse("a reshape merges time with features; keep T (or T*B) a dimension of its own")
    sizes = feature_sizes(dimensions)
    if sizes == value.type.sizes:
        return Value(value.ssa, dimensions)
    made = importer.make(spike.Reshape, value, result=value.type.with_sizes(sizes), hint=importer.hint("reshape"))
    return Value(made, dimensions)


def _without_one(dimension: Dimension) -> Dimension:
    """The dimension without features whose size is 1."""
    return tuple(atom for atom in dimension if atom.kind != FEATURE) if feature_size(dimension) == 1 else dimension


def reshaped(importer: Importer, value: Value, sizes: Sequence[int]) -> Value:
    """torch's reshape to `sizes` (one may be -1)."""
    atoms = [atom for dimension in value.dimensions for atom in dimension]
    total = prod(atom.size for atom in atoms)
    known = prod(size for size in sizes if size != -1)
    wanted = [size if size != -1 else total // known for size in sizes]
    groups: list[Dimension] = []
    for size in wanted:
        taken = _take(importer, atoms, size)
        behind = bool(groups) and feature_size(groups[-1]) is not None
        groups.append((Atom(FEATURE, 1),) if behind and not taken else taken)
    if atoms and groups:
        groups[-1] = (*groups[-1], *atoms)
    return regroup(importer, value, tuple(groups))


def _take(importer: Importer, atoms: list[Atom], size: int) -> Dimension:
    """The next atoms whose product is `size`, splitting a feature where it must be."""
    if size == 1:
        return (atoms.pop(0),) if atoms and atoms[0].size == 1 else ()
    taken: list[Atom] = []
    product = 1
    while product < size:
        atom = atoms.pop(0)
        rest = size // product
        if atom.size > rest:
            if atom.kind != FEATURE or atom.size % rest:
                raise importer.refuse(f"a reshape splits {atom.kind} of size {atom.size} into parts of {rest}")
            atoms.insert(0, Atom(FEATURE, atom.size // rest))
            atom = Atom(FEATURE, rest)
        taken.append(atom)
        product *= atom.size
    return tuple(taken)


def featured(importer: Importer, value: Value, count: int) -> Value:
    """The last `count` dimensions as features, and those ahead as none, where sizes of 1 leave that open.

    A dimension of size 1 is the batch, one timestep or one channel, whatever its user needs: a reshape of [T, 1, 1, H,
    W] to [T, 1, H, W] does not say which of the two it keeps.
    """
    ahead = len(value.dimensions) - count
    dimensions: list[Dimension] = []
    for place, own in enumerate(value.dimensions):
        if place < ahead:
            own = _without_one(own)
        elif place >= ahead and feature_size(own) is None and prod(atom.size for atom in own) == 1:
            own = (Atom(FEATURE, 1),)
        dimensions.append(own)
    lost = value.type.steps is not None and not any(is_time(own) for own in dimensions)
    return value if ahead < 0 or lost else regroup(importer, value, tuple(dimensions))


def repeat_time(importer: Importer, value: Value, dimension: int, steps: int) -> Value:
    """The same tensor `steps` times along a dimension that is empty so far: time."""
    dimensions = list(value.dimensions)
    dimensions[dimension] = (Atom(TIME, steps), *dimensions[dimension])
    result = Train.of(steps, value.type.sizes, value.type.element)
    made = importer.make(spike.Repeat, value, result=result, hint=importer.hint("repeat"))
    return Value(made, tuple(dimensions))


def contiguous(importer: Importer, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A copy in memory order: real arithmetic may round differently without it."""
    made = importer.make(spike.Reshape, x, result=x.type, hint=importer.hint("contiguous"))
    return Value(made, x.dimensions)


def reshape(importer: Importer, x: Value, *sizes: Any, shape: Any = None) -> Value:
    """reshape, view."""
    wanted = shape if shape is not None else sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    return reshaped(importer, x, list(wanted))


def flatten(importer: Importer, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Merge dimensions start_dim..end_dim."""
    start, end = start_dim % len(x.dimensions), end_dim % len(x.dimensions)
    merged = tuple(atom for dimension in x.dimensions[start : end + 1] for atom in dimension)
    return regroup(importer, x, (*x.dimensions[:start], merged, *x.dimensions[end + 1 :]))


def transpose(importer: Importer, x: Value, dim0: int, dim1: int) -> Value:
    """Swap two dimensions."""
    order = list(range(len(x.dimensions)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permuted(importer, x, order)


def permute(importer: Importer, x: Value, *order: Any, dims: Any = None) -> Value:
    """Dimensions in another order."""
    wanted = dims if dims is not None else order[0] if len(order) == 1 and not isinstance(order[0], int) else order
    return permuted(importer, x, list(wanted))


def unsqueeze(importer: Importer, x: Value, dim: int) -> Value:
    """A new dimension of size 1."""
    place = dim % (len(x.dimensions) + 1)
    return Value(x.ssa, (*x.dimensions[:place], (), *x.dimensions[place:]))


def squeeze(importer: Importer, x: Value, dim: int) -> Value:
    """Drop a dimension of size 1."""
    place = dim % len(x.dimensions)
    if feature_size(x.dimensions[place]) not in (None, 1):
        return x
    return regroup(importer, x, x.dimensions[:place] + x.dimensions[place + 1 :])


def clone(importer: Importer, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A copy in the same memory order: the same value."""
    return x


def unflatten(importer: Importer, x: Value, dim: int, sizes: Any) -> Value:
    """Split one dimension into several."""
    place = dim % len(x.dimensions)
    return reshaped(importer, x, [*x.shape[:place], *sizes, *x.shape[place + 1 :]])


def repeat(importer: Importer, x: Value, *counts: Any) -> Value:
    """Repeat a static tensor along a new leading dimension: time."""
    return _repeated(importer, x, _numbers(counts))


def expand(importer: Importer, x: Value, *sizes: Any) -> Value:
    """Repeat a static tensor along a new leading dimension: time. -1 and a dimension's own size leave it."""
    wanted = _numbers(sizes)
    shape = [1] * (len(wanted) - len(x.dimensions)) + x.shape
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
            x = repeat_time(importer, x, place, count)
    return x


def stack(importer: Importer, tensors: Any, dim: int = 0) -> Value:
    """Stack one static tensor T times: time."""
    first = tensors[0]
    if any(not isinstance(tensor, Value) or tensor.ssa is not first.ssa for tensor in tensors):
        raise importer.refuse("stacks different tensors; only the same tensor stacked T times is time")
    if first.type.steps is not None:
        raise importer.refuse("stacks a tensor that has time already")
    return repeat_time(importer, unsqueeze(importer, first, dim), dim % (len(first.dimensions) + 1), len(tensors))
