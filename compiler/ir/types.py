"""Types that tell the time and the kind of value.

`!spike.tensor<3x32x32xf32>` is the same at every timestep, `!spike.train<T=4, 64x384xi1>` is one per timestep.
The element says what a value can be:

    f32, f64          real numbers, before quantisation
    i1                a spike, 0 or 1
    count<3>          an integer 0..3, a sum of spikes
    i8                an image's integer, -127..127
    int<-812, 790>    an integer with proven bounds: currents, accumulators, logits
    fixed<16, 9>      a fixed-point number of 16 bits, 9 of them after the point: a membrane stream
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, IntAttr, StringAttr
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

BOUNDS = {"i1": (0, 1), "i8": (-127, 127)}
REALS = ("f32", "f64")


@irdl_attr_definition
class Element(ParametrizedAttribute):
    """A value kind with the bounds of its integers (0, 0 for reals), and the bits after a fixed point."""

    name = "spike.element"
    kind: StringAttr
    low: IntAttr
    high: IntAttr
    fraction: IntAttr

    @classmethod
    def _of(cls, kind: str, low: int = 0, high: int = 0, fraction: int = 0) -> Element:
        return cls(StringAttr(kind), IntAttr(low), IntAttr(high), IntAttr(fraction))

    @classmethod
    def real(cls, kind: str = "f32") -> Element:
        return cls._of(kind)

    @classmethod
    def spike(cls) -> Element:
        return cls._of("i1", 0, 1)

    @classmethod
    def image(cls) -> Element:
        return cls._of("i8", -127, 127)

    @classmethod
    def count(cls, high: int) -> Element:
        """A sum of spikes up to `high`; up to 1 it is a spike."""
        return cls.spike() if high <= 1 else cls._of("count", 0, high)

    @classmethod
    def integer(cls, low: int, high: int) -> Element:
        return cls._of("int", low, high)

    @classmethod
    def fixed(cls, bits: int, fraction: int) -> Element:
        """Integers of `bits` bits that stand for integer / 2^fraction."""
        return cls._of("fixed", -(1 << bits - 1), (1 << bits - 1) - 1, fraction)

    @property
    def is_real(self) -> bool:
        return self.kind.data in REALS

    @property
    def is_count(self) -> bool:
        """Spikes and sums of spikes: what travels as bit planes."""
        return self.kind.data in ("i1", "count")

    @property
    def is_fixed(self) -> bool:
        """Fixed-point numbers, all of one scale."""
        return self.kind.data == "fixed"

    @property
    def bits(self) -> int:
        """Bits that a signed integer of these bounds takes."""
        low, high = self.bounds
        return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length()) + 1

    @property
    def bounds(self) -> tuple[int, int]:
        return self.low.data, self.high.data

    @property
    def planes(self) -> int:
        """Bit planes that hold a count."""
        return max(1, self.high.data.bit_length())

    def __str__(self) -> str:
        kind = self.kind.data
        if kind == "count":
            return f"count<{self.high.data}>"
        if kind == "int":
            return f"int<{self.low.data}, {self.high.data}>"
        if kind == "fixed":
            return f"fixed<{self.bits}, {self.fraction.data}>"
        return kind

    @staticmethod
    def parse(parser: AttrParser) -> Element:
        kind = parser.parse_identifier()
        if kind in REALS:
            return Element.real(kind)
        if kind in BOUNDS:
            low, high = BOUNDS[kind]
            return Element._of(kind, low, high)
        if kind == "count":
            with parser.in_angle_brackets():
                return Element._of(kind, 0, parser.parse_integer())
        if kind == "fixed":
            with parser.in_angle_brackets():
                bits = parser.parse_integer()
                parser.parse_characters(",")
                return Element.fixed(bits, parser.parse_integer())
        if kind == "int":
            with parser.in_angle_brackets():
                low = parser.parse_integer()
                parser.parse_characters(",")
                return Element.integer(low, parser.parse_integer())
        return parser.raise_error(
            f"element `{kind}`: expected f32, f64, i1, count<k>, i8, int<low, high> or fixed<bits, fraction>"
        )


def _parse_shape(parser: AttrParser) -> tuple[ArrayAttr[IntAttr], Element]:
    shape: list[IntAttr] = []
    while (size := parser.parse_optional_integer(allow_boolean=False, allow_negative=False)) is not None:
        # `64x` lexes as the integer 64 and an identifier that begins with x.
        shape.append(IntAttr(size))
        parser.parse_shape_delimiter()
    return ArrayAttr(shape), Element.parse(parser)


class Shaped(ParametrizedAttribute, TypeAttribute):
    """What trains and tensors share: a shape without time and an element."""

    shape: ArrayAttr[IntAttr]
    element: Element

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size.data for size in self.shape)

    @property
    def steps(self) -> int | None:
        """Timesteps, or None for a tensor."""
        return None

    def with_sizes(self, sizes: Sequence[int]) -> Shaped:
        raise NotImplementedError

    def with_element(self, element: Element) -> Shaped:
        raise NotImplementedError

    def _spelled(self) -> str:
        return "x".join([*(str(size) for size in self.sizes), str(self.element)])

    def __str__(self) -> str:
        time = f"T={self.steps}, " if self.steps is not None else ""
        return f"!{self.name}<{time}{self._spelled()}>"


def _sizes(sizes: Sequence[int]) -> ArrayAttr[IntAttr]:
    return ArrayAttr([IntAttr(size) for size in sizes])


@irdl_attr_definition
class Tensor(Shaped):
    """The same at every timestep."""

    name: ClassVar[str] = "spike.tensor"
    shape: ArrayAttr[IntAttr]
    element: Element

    @classmethod
    def of(cls, sizes: Sequence[int], element: Element) -> Tensor:
        return cls(_sizes(sizes), element)

    def with_sizes(self, sizes: Sequence[int]) -> Tensor:
        return Tensor.of(sizes, self.element)

    def with_element(self, element: Element) -> Tensor:
        return Tensor(self.shape, element)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            return _parse_shape(parser)

    def print_parameters(self, printer: Printer) -> None:
        printer.print_string(f"<{self._spelled()}>")


@irdl_attr_definition
class Train(Shaped):
    """One value per timestep."""

    name: ClassVar[str] = "spike.train"
    shape: ArrayAttr[IntAttr]
    element: Element
    timesteps: IntAttr

    @classmethod
    def of(cls, timesteps: int, sizes: Sequence[int], element: Element) -> Train:
        return cls(_sizes(sizes), element, IntAttr(timesteps))

    @property
    def steps(self) -> int:
        return self.timesteps.data

    def with_sizes(self, sizes: Sequence[int]) -> Train:
        return Train.of(self.steps, sizes, self.element)

    def with_element(self, element: Element) -> Train:
        return Train(self.shape, element, self.timesteps)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            parser.parse_characters("T")
            parser.parse_characters("=")
            steps = parser.parse_integer(allow_boolean=False, allow_negative=False)
            parser.parse_characters(",")
            shape, element = _parse_shape(parser)
            return [shape, element, IntAttr(steps)]

    def print_parameters(self, printer: Printer) -> None:
        printer.print_string(f"<T={self.steps}, {self._spelled()}>")


def shaped(attribute: Attribute) -> Shaped:
    """`attribute` as one of this dialect's types."""
    assert isinstance(attribute, Tensor | Train), attribute
    return attribute


def like(original: Shaped, sizes: Sequence[int], element: Element) -> Shaped:
    """A type with `original`'s time, and another shape and element."""
    return original.with_sizes(sizes).with_element(element)
