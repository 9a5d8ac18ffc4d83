"""Sums and means over dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.frontend.dimensions import FEATURE, TIME, Atom, Value, feature_axis, feature_size, is_time
from compiler.frontend.importer import Importer
from compiler.frontend.shapes import regroup
from compiler.ir import spike
from compiler.ir.types import Element
from compiler.ir.types import Tensor as StaticType

Kinds = tuple[type[spike.Mean | spike.Sum], type[spike.MeanTime | spike.SumTime]]
"""The op over features, and the op over time."""


def mean(importer: Importer, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over one dimension, or several."""
    return mean_over(importer, x, _places(importer, x, dim, "mean"), keepdim)


def total(importer: Importer, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Sum over one dimension, or several; of spikes and counts, a count."""
    return _reduced(importer, x, _places(importer, x, dim, "sum"), keepdim, (spike.Sum, spike.SumTime))


def mean_over(importer: Importer, x: Value, places: Sequence[int], keepdim: bool) -> Value:
    """Mean over the dimensions `places`."""
    return _reduced(importer, x, places, keepdim, (spike.Mean, spike.MeanTime))


def _places(importer: Importer, x: Value, dim: Any, what: str) -> list[int]:
    if dim is None:
        raise importer.refuse(f"{what} over all dimensions; say which")
    return sorted({place % len(x.dimensions) for place in ((dim,) if isinstance(dim, int) else dim)})


def _reduced(importer: Importer, x: Value, places: Sequence[int], keepdim: bool, kinds: Kinds) -> Value:
    """A reduction: of features first, then of time. Dimensions of size 1 are left where `keepdim`."""
    inner = [place for place in places if feature_size(x.dimensions[place]) is not None]
    if inner:
        x = _over_features(importer, x, inner, kinds[0])
    for place in places:
        if is_time(x.dimensions[place]):
            x = _over_time(importer, x, place, kinds[1])
    if keepdim:
        kept = tuple((Atom(FEATURE, 1),) if place in inner else own for place, own in enumerate(x.dimensions))
        return regroup(importer, x, kept)
    return Value(x.ssa, tuple(own for place, own in enumerate(x.dimensions) if place not in places))


def _over_features(importer: Importer, x: Value, places: list[int], kind: type[spike.Mean | spike.Sum]) -> Value:
    """Dimensions that lie side by side are reduced at once, as torch does: the order rounds. They stay, empty."""
    first, last = places[0], places[-1]
    if places != list(range(first, last + 1)):
        raise importer.refuse(f"reduces {x.shape} over {places}; dimensions must lie side by side")
    merged = tuple(atom for place in places for atom in x.dimensions[place])
    empty = ((),) * (len(places) - 1)
    if feature_size(merged) == 1 and not is_time(merged):  # one element is its own sum and mean
        return regroup(importer, x, (*x.dimensions[:first], (), *empty, *x.dimensions[last + 1 :]))
    x = regroup(importer, x, (*x.dimensions[:first], merged, *empty, *x.dimensions[last + 1 :]))
    axis = feature_axis(x, first)
    assert axis is not None
    sizes = x.type.sizes[:axis] + x.type.sizes[axis + 1 :]
    result = x.type.with_sizes(sizes).with_element(_element(kind is spike.Sum, x, x.type.sizes[axis]))
    hint = importer.hint(kind.name.removeprefix("spike."))
    made = importer.make(kind, x, result=result, hint=hint, axis=axis)
    return Value(made, (*x.dimensions[:first], (), *x.dimensions[first + 1 :]))


def _over_time(importer: Importer, x: Value, place: int, kind: type[spike.MeanTime | spike.SumTime]) -> Value:
    """Time goes; the dimension stays, with what else was in it."""
    result = StaticType.of(x.type.sizes, _element(kind is spike.SumTime, x, x.type.steps or 1))
    made = importer.make(kind, x, result=result, hint=importer.hint(kind.name.removeprefix("spike.")))
    rest = tuple(atom for atom in x.dimensions[place] if atom.kind != TIME)
    return Value(made, (*x.dimensions[:place], rest, *x.dimensions[place + 1 :]))


def _element(sums: bool, x: Value, terms: int) -> Element:
    """A sum of counts is a count."""
    element = x.type.element
    return Element.count(element.bounds[1] * terms) if sums and element.is_count else Element.real()
