"""What a pass is: a name, options as fields, one transformation, and what it promises to keep."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from enum import Enum
from math import isfinite
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from xdsl.utils.arg_spec import ArgSpec, ArgSpecConvertible, ParameterListType, ParameterType

from compiler.ir.network import Network
from isa.errors import CStepError


class Keeps(Enum):
    """What a pass promises, and so what the pipeline compares after it."""

    REALS = "reals"
    """Every neuron's current, in float64, up to rounding."""
    VALUES = "values"
    """As REALS, but neurons may change their order (layout)."""
    NOTHING = "nothing"
    """It changes the numbers on purpose (quantisation): its result is the new reference."""
    INTEGERS = "integers"
    """Every neuron's current, and the output, in every integer."""
    LOSSY = "lossy"
    """It leaves out work that may matter: its result is the new reference for the integers."""


@dataclass(frozen=True)
class NetworkPass(ArgSpecConvertible):
    """Base of all passes. The docstring's first line is its description; options are the fields."""

    name: ClassVar[str]
    keeps: ClassVar[Keeps]

    @abstractmethod
    def apply(self, network: Network) -> Network:
        """The transformed network. The given one is left as it is."""

    def apply_with(self, network: Network, calibration: NDArray[np.float32] | None) -> Network:
        """`apply`, for a pass that finds something out from data: inputs [B, ...] as the model takes them, or None."""
        return self.apply(network)

    @classmethod
    def description(cls) -> str:
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def from_spec(cls, spec: ArgSpec) -> Self:
        """The pass with the options of a pipeline string. Raises CStepError naming the option and what it takes."""
        hints = get_type_hints(cls)
        kinds = {field.name.replace("_", "-"): hints[field.name] for field in fields(cls)}
        options: dict[str, Any] = {}
        for option, given in spec.parameters.items():
            option = option.replace("_", "-")
            if option not in kinds:
                raise CStepError(f"{cls.name}: no option {option}; it takes {', '.join(kinds) or 'none'}")
            options[option.replace("-", "_")] = _value(f"{cls.name}: {option}", given, kinds[option])
        return cls(**options)


_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
_LISTS = {float: "numbers", int: "whole numbers", str: "words (quoted where they are no plain ones)"}


def _value(where: str, given: ParameterListType, kind: Any) -> Any:
    """One option's value, or all of them where the option is a tuple."""
    several = get_origin(kind) is tuple
    each = get_args(kind)[0] if several else kind
    values = [_plain(value, each) for value in given]
    if not values or None in values or (len(values) > 1 and not several):
        wanted = f"{_LISTS[each]} with commas between" if several else _KINDS[each]
        raise CStepError(f"{where}={','.join(map(str, given))}; it must be {wanted}")
    return tuple(values) if several else values[0]


def _plain(value: ParameterType, kind: type[Any]) -> Any:
    """A value of an option, None where it is of another kind; whole numbers are numbers too, and so is 5e-06."""
    try:
        if kind is float and not isinstance(value, bool) and isfinite(float(value)):
            return float(value)
    except ValueError:
        return None
    return value if kind is not float and type(value) is kind else None
