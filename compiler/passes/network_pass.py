"""What a pass is: a name, options as fields, one transformation, and what it promises to keep."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from xdsl.utils.arg_spec import ArgSpecConvertible

from compiler.ir.network import Network


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


@dataclass(frozen=True)
class NetworkPass(ArgSpecConvertible):
    """Base of all passes. The docstring's first line is its description; options are the fields."""

    name: ClassVar[str]
    keeps: ClassVar[Keeps]

    @abstractmethod
    def apply(self, network: Network) -> Network:
        """The transformed network. The given one is left as it is."""

    @classmethod
    def description(cls) -> str:
        return (cls.__doc__ or "").strip().splitlines()[0]
