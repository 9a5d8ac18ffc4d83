"""What a traced tensor is: its value in the IR, and the atoms that its torch dimensions are products of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor
from xdsl.ir import SSAValue

from compiler.ir.types import Shaped, shaped

TIME, BATCH, FEATURE = "time", "batch", "feature"


@dataclass(frozen=True)
class Atom:
    """A factor of a tensor's dimension."""

    kind: str
    size: int


Dimension = tuple[Atom, ...]


@dataclass(frozen=True)
class Value:
    """A traced tensor: its value in the IR, and what each of its torch dimensions is made of."""

    ssa: SSAValue
    dimensions: tuple[Dimension, ...]

    @property
    def type(self) -> Shaped:
        return shaped(self.ssa.type)

    @property
    def shape(self) -> list[int]:
        """The sizes that torch sees."""
        return [prod(atom.size for atom in dimension) for dimension in self.dimensions]


@dataclass(frozen=True)
class Constant:
    """A tensor that no input changes: a parameter or buffer used outside a layer, or what the model computes of one."""

    tensor: Tensor
    name: str
    """Its name in the state dict; empty where it is none of the state dict's."""

    def __str__(self) -> str:
        return f"{self.name or 'a constant'} {list(self.tensor.shape)}"


def feature_size(dimension: Dimension) -> int | None:
    """The size of a dimension's features, or None where it has none."""
    sizes = [atom.size for atom in dimension if atom.kind == FEATURE]
    if not sizes:
        return None
    return prod(sizes)


def feature_sizes(dimensions: Iterable[Dimension]) -> tuple[int, ...]:
    return tuple(size for size in map(feature_size, dimensions) if size is not None)


def feature_axis(value: Value, dimension: int) -> int | None:
    """The IR dimension that torch dimension `dimension` is, or None for time and batch."""
    dimension %= len(value.dimensions)
    if feature_size(value.dimensions[dimension]) is None:
        return None
    return len(feature_sizes(value.dimensions[:dimension]))


def is_time(dimension: Dimension) -> bool:
    return any(atom.kind == TIME for atom in dimension)


def features(sizes: Sequence[int]) -> tuple[Dimension, ...]:
    """Dimensions of features, one a size."""
    return tuple((Atom(FEATURE, size),) for size in sizes)
