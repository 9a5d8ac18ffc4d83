"""The one spelling that every op of both dialects has.

    %result = dialect.op %operand, %operand, @symbol, @symbol key=value, key=value : type at "file.py:12"

Operands come first, then symbols (names into the weight store), both in the order of their declaration; every
other property is key=value (key=@symbol for one in NAMED), left out where it has its default. An op declares its
properties as fields:

    class Lif(HouseOperation):
        name = "spike.lif"
        input = operand_def(Train)
        result = result_def(Train)
        tau = prop_def(FloatData)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, cast

from xdsl.dialects.builtin import ArrayAttr, FloatData, IntAttr, StringAttr, SymbolRefAttr
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import IRDLOperation
from xdsl.irdl.operations import OptionalDef, OptOperandDef, PropertyDef
from xdsl.parser import Parser
from xdsl.printer import Printer

Plain = int | float | str | tuple[int, ...]
"""What a key=value property is in Python."""


def to_attribute(value: Plain) -> Attribute:
    """A Python value as the attribute that holds it."""
    if isinstance(value, int):
        return IntAttr(int(value))
    if isinstance(value, float):
        return FloatData(value)
    if isinstance(value, str):
        return StringAttr(value)
    return ArrayAttr([IntAttr(item) for item in value])


def to_plain(attribute: Attribute) -> Plain:
    """The Python value of a key=value property."""
    if isinstance(attribute, IntAttr | FloatData | StringAttr):
        return attribute.data
    return tuple(cast(IntAttr, item).data for item in cast(ArrayAttr[Attribute], attribute))


def _spell(attribute: Attribute) -> str:
    if isinstance(attribute, SymbolRefAttr):
        return f"@{attribute.root_reference.data}"
    value = to_plain(attribute)
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return _spell_float(value) if isinstance(value, float) else str(value)


def _spell_float(value: float) -> str:
    """The shortest digits that read back to the same float; MLIR wants a point before an exponent."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return text if not e or "." in mantissa else f"{mantissa}.0e{exponent}"


class HouseOperation(IRDLOperation):
    """Base of all ops: at most one result, properties as declared, and the Python line it came from."""

    DEFAULTS: ClassVar[Mapping[str, Plain]] = {}
    """Values of optional properties that are left out."""
    NAMED: ClassVar[tuple[str, ...]] = ()
    """Symbols that are spelled with their key, since another one before them may be missing."""

    @classmethod
    def make(
        cls,
        *operands: SSAValue,
        result: Attribute | None = None,
        symbols: Mapping[str, str | None] | None = None,
        source: str = "",
        hint: str | None = None,
        **properties: Plain,
    ) -> Any:
        """A new op. `symbols` are property names -> names in the weight store; `hint` names the result."""
        held: dict[str, Attribute | None] = {key: to_attribute(value) for key, value in properties.items()}
        for key, default in cls.DEFAULTS.items():
            if key in properties and properties[key] == default:
                del held[key]
        for key, name in (symbols or {}).items():
            if name is not None:
                held[key] = SymbolRefAttr(name)
        op = cls(
            operands=cls.grouped(operands),
            result_types=[] if result is None else [result],
            properties=held,
            attributes={"source": StringAttr(source)} if source else {},
        )
        if hint and op.results:
            op.results[0].name_hint = hint
        return op

    @classmethod
    def grouped(cls, operands: Sequence[SSAValue]) -> list[SSAValue | list[SSAValue]]:
        """Operands as xDSL takes them: the last one, where it may be left out, as a list of one or none."""
        last = list(cls.get_irdl_definition().operands)[-1:]
        if not last or not isinstance(last[0][1], OptOperandDef):
            return list(operands)
        fixed = len(cls.get_irdl_definition().operands) - 1
        return [*operands[:fixed], list(operands[fixed:])]

    @classmethod
    def declared(cls) -> dict[str, PropertyDef]:
        """Declared properties in order."""
        return dict(cls.get_irdl_definition().properties)

    @classmethod
    def is_symbol(cls, definition: PropertyDef) -> bool:
        bases = definition.constr.get_bases()
        return bases is not None and SymbolRefAttr in bases

    @classmethod
    @cache
    def symbol_keys(cls) -> tuple[str, ...]:
        """Properties that name a weight."""
        return tuple(key for key, definition in cls.declared().items() if cls.is_symbol(definition))

    def get(self, key: str) -> Any:
        """A key=value property, or its default."""
        attribute = self.properties.get(key)
        return self.DEFAULTS[key] if attribute is None else to_plain(attribute)

    def symbol(self, key: str) -> str | None:
        """The name that a symbol property holds, or None."""
        attribute = self.properties.get(key)
        return None if attribute is None else cast(SymbolRefAttr, attribute).root_reference.data

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights that the op names, by property, where it implies them."""
        return {}

    @property
    def source(self) -> str:
        """File and line of the Python code that this op came from, or an empty string."""
        attribute = self.attributes.get("source")
        return cast(StringAttr, attribute).data if attribute is not None else ""

    @property
    def label(self) -> str:
        """The op's name in reports and errors: its result's name."""
        return (self.results[0].name_hint if self.results else None) or self.name

    def print(self, printer: Printer) -> None:
        first = True
        for operand in self.operands:
            printer.print_string(" " if first else ", ")
            printer.print_ssa_value(operand)
            first = False
        pairs: list[str] = []
        for key, definition in self.declared().items():
            attribute = self.properties.get(key)
            if attribute is None:
                continue
            if self.is_symbol(definition) and key not in self.NAMED:
                printer.print_string(" " if first else ", ")
                printer.print_symbol_name(cast(SymbolRefAttr, attribute).root_reference.data)
                first = False
            else:
                pairs.append(f"{key}={_spell(attribute)}")
        if pairs:
            printer.print_string(" " + ", ".join(pairs))
        if self.results:
            printer.print_string(" : ")
            printer.print_attribute(self.results[0].type)
        if self.source:
            printer.print_string(" at ")
            printer.print_string_literal(self.source)

    @classmethod
    def parse(cls, parser: Parser) -> HouseOperation:
        operands, symbols = _parse_arguments(parser)
        declared = cls.declared()
        properties: dict[str, Attribute | None] = {}
        names = [key for key, definition in declared.items() if cls.is_symbol(definition) and key not in cls.NAMED]
        if len(symbols) > len(names):
            parser.raise_error(f"{cls.name}: {len(symbols)} symbols; it takes at most {len(names)}")
        properties.update(zip(names, symbols, strict=False))
        keys = [key for key in declared if key not in names]
        while (key := parser.parse_optional_keyword_in(keys)) is not None:
            parser.parse_punctuation("=")
            properties[key] = _parse_value(parser, declared[key])
            if parser.parse_optional_punctuation(",") is None:
                break
        refuse_unknown_key(parser, cls.name, keys)
        for key, prop in declared.items():
            if key not in properties and not isinstance(prop, OptionalDef):
                parser.raise_error(f"{cls.name}: property `{key}` is missing")
        definition = cls.get_irdl_definition()
        most = len(definition.operands)
        least = sum(not isinstance(each, OptOperandDef) for _, each in definition.operands)
        if not least <= len(operands) <= most:
            takes = str(most) if least == most else f"{least} or {most}"
            parser.raise_error(f"{cls.name}: {len(operands)} operands; it takes {takes}")
        results = [parser.parse_type()] if parser.parse_optional_punctuation(":") else []
        if len(results) != len(definition.results):
            wanted = "a type of its result after `:`" if definition.results else "no type; it has no result"
            parser.raise_error(f"{cls.name}: expected {wanted}")
        attributes: dict[str, Attribute] = {}
        if parser.parse_optional_keyword("at"):
            attributes["source"] = StringAttr(parser.parse_str_literal())
        return cls(operands=cls.grouped(operands), result_types=results, properties=properties, attributes=attributes)


def parse_defined(parser: Parser) -> SSAValue | None:
    """A value that an op above makes, if one comes next; its type stands there and is not said again."""
    operand = parser.parse_optional_unresolved_operand()
    if operand is None:
        return None
    values = parser.ssa_values.get(operand.operand_name)
    if values is None:
        parser.raise_error(f"%{operand.operand_name} is used before any op makes it", operand.span)
    return values[operand.index]


def _parse_arguments(parser: Parser) -> tuple[list[SSAValue], list[SymbolRefAttr]]:
    """Operands and symbols, up to the first key."""
    operands: list[SSAValue] = []
    symbols: list[SymbolRefAttr] = []
    while True:
        operand = parse_defined(parser)
        if operand is not None:
            operands.append(operand)
        elif (symbol := parser.parse_optional_symbol_name()) is not None:
            symbols.append(SymbolRefAttr(symbol))
        else:
            return operands, symbols
        if parser.parse_optional_punctuation(",") is None:
            return operands, symbols


def refuse_unknown_key(parser: Parser, name: str, keys: list[str]) -> None:
    """What may follow the properties is `:`, `at`, or the next op (which has a dot in its name)."""
    key = parser._current_token.text  # pyright: ignore[reportPrivateUsage]
    if key.isidentifier() and key != "at":
        parser.raise_error(f"{name}: no property `{key}`; it takes {', '.join(keys) or 'none'}")


def _parse_value(parser: Parser, definition: PropertyDef) -> Attribute:
    bases = definition.constr.get_bases() or set()
    if IntAttr in bases:
        return IntAttr(parser.parse_integer())
    if FloatData in bases:
        return FloatData(float(parser.parse_number()))
    if SymbolRefAttr in bases:
        return SymbolRefAttr(parser.parse_symbol_name())
    if StringAttr in bases:
        return StringAttr(parser.parse_identifier())
    items = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
    return ArrayAttr([IntAttr(item) for item in items])
