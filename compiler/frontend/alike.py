"""Modules that compute the same: neurons are probed once for all that are alike."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable
from typing import Any, cast

from torch import Tensor, nn

FEW = 16
"""Values of a tensor that are worth comparing; neurons have one."""


def likeness(module: nn.Module) -> Hashable | None:
    """What modules that compute the same have in common: class, settings and parts. None where that is unclear."""
    settings = _of_items(vars(module).items())
    return None if settings is None else (type(module), settings)


def _of_items(items: Iterable[tuple[Any, Any]]) -> Hashable | None:
    found = [(name, _of_value(value)) for name, value in items]
    return None if any(value is None for _, value in found) else tuple(found)


def _of_value(value: Any) -> Hashable | None:
    """A setting with its type (1 is not 1.0 or True); None where it is of a kind that nobody can compare."""
    found: Hashable | None = None
    if isinstance(value, nn.Module):
        return likeness(value)
    if isinstance(value, Tensor):
        found = (value.dtype, tuple(value.shape), *value.flatten().tolist()) if value.numel() <= FEW else None
    elif isinstance(value, dict):
        found = _of_items(cast(dict[Any, Any], value).items())
    elif isinstance(value, list | tuple):
        found = _of_items(enumerate(cast(list[Any], value)))
    elif isinstance(value, set):
        found = frozenset(cast(set[Hashable], value))
    elif isinstance(value, int | float | str | type | None) or inspect.isroutine(value):
        found = (value,)
    return None if found is None else (type(value), found)
