"""Old names of SpikingJelly: model files that import `spikingjelly.clock_driven` run on 2.0's `activation_based`.

Most published model files were written for SpikingJelly 0.0.0.0.12, whose package and multi-step classes have other
names: `clock_driven.neuron.MultiStepLIFNode(tau=2.0)` is `activation_based.neuron.LIFNode(tau=2.0, step_mode="m")`.
The equations are the same, bit for bit.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any

OLD, NEW = "spikingjelly.clock_driven", "spikingjelly.activation_based"
MODULES = ("base", "functional", "layer", "neuron", "surrogate")
PREFIX = "MultiStep"


class Alias(ModuleType):
    """A module of the old package: the new one's names, and those of its classes in multi-step mode."""

    def __init__(self, name: str, source: ModuleType) -> None:
        super().__init__(f"{OLD}.{name}", f"The names of {OLD}.{name}, on {NEW}.{name}.")
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (not hasattr(self.source, name) and not name.startswith(PREFIX)):
            raise AttributeError(f"{self.__name__} has no {name}")
        if hasattr(self.source, name):
            made = getattr(self.source, name)
        else:
            made = _multi_step(getattr(self.source, name.removeprefix(PREFIX), None), name, self.__name__)
        setattr(self, name, made)
        return made


def _multi_step(kind: Any, name: str, module: str) -> type:
    """The class `kind` in multi-step mode, taking arguments in the old order: those of `kind`, then the backend."""
    if not inspect.isclass(kind) or "step_mode" not in inspect.signature(kind).parameters:
        raise AttributeError(f"{module} has no {name}")
    order = list(inspect.signature(kind).parameters)
    before = order[: order.index("step_mode")]

    def construct(self: Any, *given: Any, backend: str = "torch", **named: Any) -> None:
        """All backends compute the same, and torch's runs everywhere."""
        initialise: Any = kind.__init__
        initialise(self, **dict(zip(before, given, strict=False)), **named, step_mode="m")

    return type(name, (kind,), {"__init__": construct, "__module__": module})


def is_missing(error: BaseException) -> bool:
    """Whether an import failed because only the old package has what was asked for, and the new one is there."""
    absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(OLD)
    return absent and importlib.util.find_spec(NEW) is not None


def install() -> None:
    """Make the old names importable, where there is no real package of that name."""
    if OLD in sys.modules:
        return
    package = ModuleType(OLD, f"The names of {OLD}, on {NEW}.")
    package.__path__ = []
    sys.modules[OLD] = package
    importlib.import_module("spikingjelly").clock_driven = package  # type: ignore[attr-defined]
    for name in MODULES:
        alias = Alias(name, importlib.import_module(f"{NEW}.{name}"))
        sys.modules[f"{OLD}.{name}"] = alias
        setattr(package, name, alias)
