"""Running torch code for its shapes alone: tensors on the meta device, which have no values.

A trace needs values nowhere but in constants. At 224x224 the values of all layers take seconds and a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

META = torch.device("meta")


class ValueNeededError(Exception):
    """The model computes something that depends on values; it must be run on some."""


class ShapeRun(TorchFunctionMode):
    """Inside, a weight or constant that meets a tensor without values counts by its shape only, on any device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = (args, kwargs or {})
        if not lacks_values(given):
            return func(*args, **(kwargs or {}))
        positional, named = map_aggregate(given, _without_values)  # type: ignore[misc]
        return func(*positional, **named)


def lacks_values(tree: Any) -> bool:
    """Whether any tensor of a tree of tuples, lists and dicts is without values."""
    found: list[bool] = []
    map_aggregate(tree, lambda leaf: found.append(isinstance(leaf, Tensor) and leaf.is_meta))
    return any(found)


def _without_values(leaf: Any) -> Any:
    return leaf.to(META) if isinstance(leaf, Tensor) else leaf
