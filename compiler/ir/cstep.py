"""The cstep dialect: a program whose addresses are still names.

Every instruction of isa/instructions/ is an op of the same name and fields, derived from its class; an address field
names a buffer and a byte offset into it. What the text looks like:

    %w = cstep.buffer region=weight, bytes=24576, group=block.0.attn.q.weights
    cstep.layer name=block.0.attn.q, operation=linear, binary=0, neurons=[1, 64, 384] at "model.py:57"
    cstep.load source=%block.0.attn.q[24576], target=%w, region=weight, traffic=weight, blocks=1, rows=1, bytes=24576
    cstep.accumulate spikes=%s, weights=%w, accumulators=%a[8192], steps=2, rows=1, columns=64, sharing=pair, fresh=1

`allocate` gives every buffer its address (`at=4096`), `synchronise` every op its tokens (`wait=dma.pe`). A fire also
says where its first neuron sits in the layer (`neuron=[step, row, column, channel]`): the program's source map.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, cast

from xdsl.dialects.builtin import ArrayAttr, FloatData, IntAttr, StringAttr, SymbolRefAttr
from xdsl.ir import Attribute, Dialect, ParametrizedAttribute, SSAValue, TypeAttribute
from xdsl.irdl import (
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

import isa.instructions as _instructions
from compiler.ir.spelling import HouseOperation, Plain, parse_defined, refuse_unknown_key
from isa.errors import CStepError
from isa.word import Address, Choice, Count, Flag, Instruction, Region, Unit, range_error


@irdl_attr_definition
class Buffer(ParametrizedAttribute, TypeAttribute):
    """Bytes in one of the machine's memories."""

    name = "cstep.bytes"


BYTES = Buffer()
REGION_WORDS = tuple(region.name.lower() for region in Region)


@irdl_op_definition
class BufferOp(HouseOperation):
    """Bytes in a region; buffers of one group (a role in a layer) share an arena. `at` is the address."""

    name = "cstep.buffer"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"group": "", "at": -1}
    result = result_def(Buffer)
    region = prop_def(StringAttr)
    bytes = prop_def(IntAttr)
    group = opt_prop_def(StringAttr)
    at = opt_prop_def(IntAttr)

    def verify_(self) -> None:
        if self.get("region") not in REGION_WORDS:
            raise VerifyException(
                f"{self.name}: region={self.get('region')}; it must be one of {', '.join(REGION_WORDS)}"
            )


@irdl_op_definition
class ConstantOp(HouseOperation):
    """Bytes in DRAM that the program file carries: weights in tile order, biases and thresholds."""

    name = "cstep.constant"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"at": -1}
    result = result_def(Buffer)
    content = prop_def(SymbolRefAttr)
    at = opt_prop_def(IntAttr)


@irdl_op_definition
class InputOp(HouseOperation):
    """Where the input lies, and what it is: see isa.program.Input."""

    name = "cstep.input"
    buffer = operand_def(Buffer)
    kind = prop_def(StringAttr)
    shape = prop_def(ArrayAttr[IntAttr])
    steps = prop_def(IntAttr)
    timesteps = prop_def(IntAttr)
    scale = prop_def(FloatData)


@irdl_op_definition
class OutputOp(HouseOperation):
    """Where the logits lie, and what they are: see isa.program.Output."""

    name = "cstep.output"
    buffer = operand_def(Buffer)
    classes = prop_def(IntAttr)
    scale = prop_def(FloatData)


@irdl_op_definition
class LayerOp(HouseOperation):
    """What follows belongs to this layer: a `Layer` mark and its row of the layer table.

    `neurons` are rows, columns and channels; `fires` is the neuron's name in the spike dialect.
    """

    name = "cstep.layer"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"neurons": (), "fires": "", "wait": "", "post": ""}
    layer = prop_def(StringAttr)
    operation = prop_def(StringAttr)
    binary = prop_def(IntAttr)
    neurons = opt_prop_def(ArrayAttr[IntAttr])
    fires = opt_prop_def(StringAttr)
    wait = opt_prop_def(StringAttr)
    post = opt_prop_def(StringAttr)

    def verify_(self) -> None:
        _verify_units(self)


class InstructionOp(HouseOperation):
    """Base of the ops that are instructions: `INSTRUCTION` is the class they become."""

    INSTRUCTION: ClassVar[type[Instruction]] = Instruction

    def verify_(self) -> None:
        for name, spec in self.INSTRUCTION.layout:
            if isinstance(spec, Address):
                continue
            problem = self._no_choice(name) or range_error(self.INSTRUCTION, name, self.field_value(name))
            if problem:
                raise VerifyException(f"{self.name}: {problem}")
        _verify_units(self)

    def _no_choice(self, name: str) -> str | None:
        """What is wrong with the word that a field holds, or None."""
        spec, attribute = self.INSTRUCTION.specs[name], self.properties.get(name)
        if attribute is None or not isinstance(spec, Choice):
            return None
        word, words = cast(StringAttr, attribute).data, [member.name.lower() for member in spec.of]
        return None if word in words else f"{name}={word}; it must be one of {', '.join(words)}"

    def field_value(self, name: str) -> int:
        """A field that is no address, as the instruction holds it."""
        spec = self.INSTRUCTION.specs[name]
        attribute = self.properties.get(name)
        if attribute is None:
            return 0
        if isinstance(spec, Choice):
            return int(spec.of[cast(StringAttr, attribute).data.upper()])
        return cast(IntAttr, attribute).data

    @property
    def addresses(self) -> dict[str, tuple[SSAValue, int]]:
        """Address field -> buffer and offset."""
        names = cast(ArrayAttr[StringAttr], self.properties["fields"])
        offsets = cast(ArrayAttr[IntAttr], self.properties["offsets"])
        return {
            name.data: (operand, offset.data)
            for name, operand, offset in zip(names, self.operands, offsets, strict=True)
        }

    @property
    def first_neuron(self) -> tuple[int, ...]:
        """Step, row, column and channel of a fire's first neuron."""
        held = cast("ArrayAttr[IntAttr] | None", self.properties.get("neuron"))
        return tuple(item.data for item in held) if held is not None else ()

    def print(self, printer: Printer) -> None:
        separator = " "  # nothing follows the name of an op without fields
        for name, (operand, offset) in self.addresses.items():
            printer.print_string(f"{separator}{name}=")
            printer.print_ssa_value(operand)
            if offset:
                printer.print_string(f"[{offset}]")
            separator = ", "
        for key, attribute in self.properties.items():
            if key in ("fields", "offsets"):
                continue
            if isinstance(attribute, ArrayAttr):
                text = "[" + ", ".join(str(cast(IntAttr, item).data) for item in attribute) + "]"
            else:
                text = str(cast(Any, attribute).data)
            printer.print_string(f"{separator}{key}={text}")
            separator = ", "

    @classmethod
    def parse(cls, parser: Parser) -> InstructionOp:
        layout = dict(cls.INSTRUCTION.layout)
        addresses: dict[str, tuple[SSAValue, int]] = {}
        values: dict[str, Plain] = {}
        known = [*layout, "wait", "post", "neuron"]
        while (key := parser.parse_optional_keyword_in(known)) is not None:
            parser.parse_punctuation("=")
            if isinstance(layout.get(key), Address):
                operand, offset = parser.expect(lambda: parse_defined(parser), f"{key}= names a buffer, %..."), 0
                if parser.parse_optional_punctuation("["):
                    offset = parser.parse_integer()
                    parser.parse_punctuation("]")
                addresses[key] = (operand, offset)
            elif key == "neuron":
                values[key] = tuple(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer))
            elif key in ("wait", "post") or isinstance(layout[key], Choice):
                values[key] = parser.parse_identifier()
            else:
                values[key] = parser.parse_integer()
            if parser.parse_optional_punctuation(",") is None:
                break
        refuse_unknown_key(parser, cls.name, known)
        return cls.of(addresses, **values)

    @classmethod
    def of(cls, addresses: Mapping[str, tuple[SSAValue, int]], **values: Plain) -> InstructionOp:
        """A new op; fields that are 0 are left out."""
        properties: dict[str, Attribute] = {
            "fields": ArrayAttr([StringAttr(name) for name in addresses]),
            "offsets": ArrayAttr([IntAttr(offset) for _, offset in addresses.values()]),
        }
        for key, value in values.items():
            if isinstance(value, IntEnum):
                properties[key] = StringAttr(value.name.lower())
            elif isinstance(value, int):
                if value:
                    properties[key] = IntAttr(int(value))
            elif isinstance(value, str):
                properties[key] = StringAttr(value)
            else:
                properties[key] = ArrayAttr([IntAttr(item) for item in cast("tuple[int, ...]", value)])
        return cls(operands=[[buffer for buffer, _ in addresses.values()]], properties=properties)

    def encoded(self, address_of: Mapping[SSAValue, int]) -> Instruction:
        """The instruction, with the addresses that its buffers have."""
        fields = {
            name: self.field_value(name) for name, spec in self.INSTRUCTION.layout if not isinstance(spec, Address)
        }
        addresses = self.addresses
        for name, spec in self.INSTRUCTION.layout:
            if isinstance(spec, Address):
                buffer, offset = addresses.get(name, (None, 0))
                fields[name] = 0 if buffer is None else address_of[buffer] + offset
        return self.INSTRUCTION(**fields, wait=units_mask(self, "wait"), post=units_mask(self, "post"))


def units_mask(op: HouseOperation, key: str) -> int:
    """The mask of the units that `wait=dma.pe` names."""
    attribute = op.properties.get(key)
    names = cast(StringAttr, attribute).data if attribute is not None else ""
    try:
        return sum(1 << Unit[name.upper()] for name in names.split(".") if name)
    except KeyError as error:
        units = ", ".join(unit.name.lower() for unit in Unit)
        wrong = error.args[0].lower()
        raise CStepError(f"{op.name}: {key}={names}: no unit {wrong}; there are {units}") from None


def _verify_units(op: HouseOperation) -> None:
    """`wait` and `post` name units."""
    for key in ("wait", "post"):
        try:
            units_mask(op, key)
        except CStepError as error:
            raise VerifyException(str(error)) from None


def units_text(mask: int) -> str:
    """`dma.pe` for a mask of units."""
    return ".".join(unit.name.lower() for unit in Unit if mask >> unit & 1)


def _derive(instruction: type[Instruction]) -> type[InstructionOp]:
    """The op of an instruction class."""
    namespace: dict[str, Any] = {
        "__doc__": instruction.__doc__,
        "__module__": __name__,
        "name": f"cstep.{instruction.mnemonic}",
        "INSTRUCTION": instruction,
        "__annotations__": {"INSTRUCTION": ClassVar[type[Instruction]]},
        "buffers": var_operand_def(Buffer),
        "fields": prop_def(ArrayAttr[StringAttr]),
        "offsets": prop_def(ArrayAttr[IntAttr]),
        "wait": opt_prop_def(StringAttr),
        "post": opt_prop_def(StringAttr),
        "neuron": opt_prop_def(ArrayAttr[IntAttr]),
    }
    for name, spec in instruction.layout:
        if isinstance(spec, Choice):
            namespace[f"{name}_field"] = opt_prop_def(StringAttr, prop_name=name)
        elif isinstance(spec, Count | Flag):
            namespace[f"{name}_field"] = opt_prop_def(IntAttr, prop_name=name)
    return irdl_op_definition(type(f"{instruction.__name__}Op", (InstructionOp,), namespace))


OPS: dict[type[Instruction], type[InstructionOp]] = {
    kind: _derive(kind) for kind in Instruction.registry.values() if kind is not _instructions.Layer
}
DECLARATIONS: tuple[type[HouseOperation], ...] = (BufferOp, ConstantOp, InputOp, OutputOp, LayerOp)

CSTEP = Dialect("cstep", [*DECLARATIONS, *OPS.values()], [Buffer])
