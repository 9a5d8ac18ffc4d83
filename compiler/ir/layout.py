"""Chains of `reshape` and `transpose`, as one permutation of the factors of the source's dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, count
from math import prod

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.types import Shaped, shaped

Emit = Callable[[spike.SpikeOperation], SSAValue]
LAYOUT_OPS = (spike.Reshape, spike.Transpose)


@dataclass(eq=False)
class Factor:
    """A factor of a dimension's size."""

    size: int


class Layout:
    """How the result of a chain of layout ops holds the elements of its source.

    `source` and `result` hold the same factors: `source` in the row-major order of the source, grouped by its
    dimensions; `result` likewise. Factors of size 1 are left out: they move nothing.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.source = [[Factor(size)] if size != 1 else [] for size in sizes]
        self.result = [list(group) for group in self.source]
        self.result_sizes = sizes

    def transpose(self, order: tuple[int, ...]) -> None:
        self.result = [self.result[index] for index in order]
        self.result_sizes = tuple(self.result_sizes[index] for index in order)

    def reshape(self, sizes: tuple[int, ...]) -> bool:
        """Regroup; False where a dimension's size does not divide (the layout is then unusable)."""
        factors = [factor for group in self.result for factor in group]
        groups: list[list[Factor]] = []
        for size in sizes:
            group: list[Factor] = []
            rest = size
            while rest > 1:
                factor = factors.pop(0)
                if factor.size > rest:
                    if factor.size % rest:
                        return False
                    first, second = Factor(rest), Factor(factor.size // rest)
                    self._split(factor, first, second)
                    factors.insert(0, second)
                    factor = first
                if rest % factor.size:
                    return False
                group.append(factor)
                rest //= factor.size
            groups.append(group)
        self.result, self.result_sizes = groups, sizes
        return True

    def _split(self, factor: Factor, first: Factor, second: Factor) -> None:
        for group in self.source:
            for index, member in enumerate(group):
                if member is factor:
                    group[index : index + 1] = [first, second]

    @property
    def permutation(self) -> list[int]:
        """For each factor of the result, its place in the source."""
        place = {id(f): i for i, f in enumerate(f for group in self.source for f in group)}
        return [place[id(f)] for group in self.result for f in group]

    def places(self, dimension: int) -> list[int]:
        """The places in the source of the factors of a result dimension."""
        before = sum(len(group) for group in self.result[:dimension])
        return self.permutation[before : before + len(self.result[dimension])]

    @property
    def keeps_order(self) -> bool:
        """Whether elements stay in row-major order: at most a reshape."""
        permutation = self.permutation
        return permutation == sorted(permutation)

    def same_as(self, other: Layout) -> bool:
        """Whether both put every element into the same place."""
        return self.sizes == other.sizes and self.same_order(other)

    def same_order(self, other: Layout) -> bool:
        """As `same_as`, whatever sizes the sources' elements come in."""
        return self.result_sizes == other.result_sizes and self._element_order() == other._element_order()

    def positions(self) -> NDArray[np.int64]:
        """For every element of the result, in the result's shape, its place in the source's row-major order."""
        sizes = [factor.size for group in self.source for factor in group]
        places = np.arange(prod(sizes), dtype=np.int64).reshape(sizes)
        return places.transpose(self.permutation).reshape(self.result_sizes)

    def reduced(self, dimension: int) -> tuple[list[int], int, Layout] | None:
        """A reduction over a dimension of the result, as one of the source: sizes of the source, the axis there, and
        the layout of what is left. None where the dimension's elements do not lie side by side in the source.
        """
        places = self.places(dimension)
        if not places or places != list(range(places[0], places[-1] + 1)):
            return None
        kept: list[list[Factor]] = []
        axis, place = 0, 0
        for group in self.source:
            numbered = list(enumerate(group, place))
            place += len(group)
            before = [factor for at, factor in numbered if at < places[0]]
            after = [factor for at, factor in numbered if at > places[-1]]
            axis += bool(before)
            kept += [factors for factors in (before, after) if factors]
        rest = Layout(tuple(prod(factor.size for factor in factors) for factors in kept))
        rest.source = kept
        rest.result = [list(group) for index, group in enumerate(self.result) if index != dimension]
        rest.result_sizes = tuple(size for index, size in enumerate(self.result_sizes) if index != dimension)
        return [*rest.sizes[:axis], self.result_sizes[dimension], *rest.sizes[axis:]], axis, rest

    def _element_order(self) -> list[tuple[int, int]]:
        """The result's factors as (stride in the source, size), adjacent ones that run on merged."""
        sizes = [f.size for group in self.source for f in group]
        merged: list[tuple[int, int]] = []
        for place in self.permutation:
            stride, size = prod(sizes[place + 1 :]), sizes[place]
            if merged and merged[-1][0] == stride * size:
                merged[-1] = (stride, merged[-1][1] * size)
            else:
                merged.append((stride, size))
        return merged

    def source_dimension(self, dimension: int) -> int | None:
        """The source dimension that is exactly result dimension `dimension`, or None."""
        wanted = [id(f) for f in self.result[dimension]]
        for index, group in enumerate(self.source):
            if [id(f) for f in group] == wanted and self.sizes[index] == self.result_sizes[dimension]:
                return index
        return None

    def runs(self) -> list[list[int]]:
        """Maximal runs of consecutive source factors in the result, as lists of source places."""
        runs: list[list[int]] = []
        for place in self.permutation:
            if runs and runs[-1][-1] + 1 == place:
                runs[-1].append(place)
            else:
                runs.append([place])
        return runs

    def steps(self, *, inverse: bool = False) -> list[tuple[type[spike.SpikeOperation], tuple[int, ...]]]:
        """The fewest ops that make the result from the source (or the source from the result).

        Each is a reshape to sizes or a transpose to an order: at most reshape, transpose, reshape; one transpose where
        dimensions only change places.
        """
        return min(map(self._by_way_of, self._cuts(), [inverse] * 3), key=len)

    @property
    def length(self) -> int:
        """How many ops it takes."""
        return len(self.steps())

    def _cuts(self) -> tuple[list[list[int]], ...]:
        """Three ways to cut the result into pieces that move as one: where neighbours part, and there and wherever a
        dimension of the source, or of the result, ends. Places of source factors, in the order of the result.
        """
        ends = [set(accumulate(map(len, groups))) for groups in (self.source, self.result)]
        runs = self.runs()
        by_source = [piece for run in runs for piece in _cut(run, [place in ends[0] for place in run])]
        after = accumulate(map(len, runs), initial=0)
        by_result = [
            piece
            for run, first in zip(runs, after, strict=False)
            for piece in _cut(run, [first + index in ends[1] for index in range(len(run))])
        ]
        return runs, by_source, by_result

    def _by_way_of(
        self, pieces: list[list[int]], inverse: bool
    ) -> list[tuple[type[spike.SpikeOperation], tuple[int, ...]]]:
        """The ops of a way that moves these pieces; dimensions of size 1 are taken along where they need no reshape."""
        sizes = [f.size for group in self.source for f in group]
        before = [(prod(sizes[place] for place in piece), piece[0]) for piece in sorted(pieces)]
        after = [(prod(sizes[place] for place in piece), piece[0]) for piece in pieces]
        first, last = _with_ones(before, self.sizes), _with_ones(after, self.result_sizes)
        if len(first) != len(last):
            first, last = before, after
        begin, end = (self.result_sizes, self.sizes) if inverse else (self.sizes, self.result_sizes)
        first, last = (last, first) if inverse else (first, last)
        order = tuple(first.index(dimension) for dimension in last)
        ops: list[tuple[type[spike.SpikeOperation], tuple[int, ...]]] = []
        if list(order) != sorted(order):
            if (widths := tuple(size for size, _ in first)) != begin:
                ops.append((spike.Reshape, widths))
            ops.append((spike.Transpose, order))
            begin = tuple(size for size, _ in last)
        return ops + ([(spike.Reshape, end)] if begin != end else [])

    def emit(self, value: SSAValue, emit: Emit, source: str, hint: str, *, inverse: bool = False) -> SSAValue:
        """Emit this layout (or its inverse) on `value`, in the fewest ops."""
        for kind, numbers in self.steps(inverse=inverse):
            sizes = shaped(value.type).sizes
            if kind is spike.Reshape:
                value = _reshaped(value, numbers, emit, source, hint)
                continue
            result = shaped(value.type).with_sizes([sizes[index] for index in numbers])
            value = emit(spike.Transpose.make(value, result=result, source=source, hint=hint, order=numbers))
        return value


def _cut(run: list[int], parts_from: list[bool]) -> list[list[int]]:
    """A run in pieces: a new one wherever `parts_from` says so."""
    pieces: list[list[int]] = []
    for place, parts in zip(run, parts_from, strict=True):
        if parts or not pieces:
            pieces.append([])
        pieces[-1].append(place)
    return pieces


def _with_ones(dimensions: list[tuple[int, int]], sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """`dimensions` with the sizes of 1 that `sizes` has, numbered from behind; as they are where others differ."""
    if tuple(size for size, _ in dimensions) != tuple(size for size in sizes if size != 1):
        return dimensions
    rest, ones = iter(dimensions), count(-1, -1)
    return [(1, next(ones)) if size == 1 else next(rest) for size in sizes]


def _reshaped(value: SSAValue, sizes: tuple[int, ...], emit: Emit, source: str, hint: str) -> SSAValue:
    kind: Shaped = shaped(value.type)
    if kind.sizes == sizes:
        return value
    return emit(spike.Reshape.make(value, result=kind.with_sizes(sizes), source=source, hint=hint))


def chain_to(value: SSAValue) -> tuple[SSAValue, Layout]:
    """The first value above `value` that no layout op makes, and the layout from it to `value`."""
    ops: list[spike.SpikeOperation] = []
    source = value
    while isinstance(source.owner, LAYOUT_OPS):
        ops.append(source.owner)
        source = source.owner.operands[0]
    layout = Layout(shaped(source.type).sizes)
    for op in reversed(ops):
        if isinstance(op, spike.Transpose):
            layout.transpose(op.get("order"))
        elif not layout.reshape(op.result_type.sizes):
            return op.results[0], _through(ops, op)
    return source, layout


def _through(ops: list[spike.SpikeOperation], stop: spike.SpikeOperation) -> Layout:
    """The layout of the ops below `stop` (`ops` runs from the result upwards)."""
    layout = Layout(stop.result_type.sizes)
    for op in reversed(ops[: ops.index(stop)]):
        if isinstance(op, spike.Transpose):
            layout.transpose(op.get("order"))
        elif not layout.reshape(op.result_type.sizes):  # two sizes that share no factors: start again below
            return Layout(op.result_type.sizes)
    return layout
