"""Assembler and disassembler: one line an instruction, derived from the field declarations.

    accumulate spikes=SPIKE[0] weights=WEIGHT[32768] accumulators=OUTPUT[0] steps=2 ... sharing=pair fresh wait=dma

First the mnemonic, then in any order: addresses as REGION[byte], numbers, enumerations by lower-case name, flags by
their bare name where set, and the units waited for and posted to. A number may be left out where it is 0, an address
where it is not used. `;` begins a comment. Numbers are decimal or 0x hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from isa.errors import CStepError
from isa.instructions import Fire, Layer
from isa.word import Address, Choice, Count, Flag, Instruction, Region, Spec, Unit, range_error

if TYPE_CHECKING:
    from isa.program import Header, Program

TOKENS = ("wait", "post")
MNEMONICS = {kind.mnemonic: kind for _, kind in sorted(Instruction.registry.items())}
_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)
_ADDRESS = re.compile(r"([A-Z]+)\[(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})\]", re.ASCII)


def disassemble(instruction: Instruction) -> str:
    """The line of an instruction."""
    return " ".join((instruction.mnemonic, *_spelled(instruction)))


def _spelled(instruction: Instruction) -> Iterator[str]:
    hidden = _region_fields(type(instruction))
    # Addresses first, flags last, the rest in between as declared.
    for name, spec in sorted(instruction.layout, key=lambda field: _rank(field[1])):
        value = int(getattr(instruction, name))
        match spec:
            case Flag():
                if value:
                    yield name
            case Choice():
                if name not in hidden:
                    yield f"{name}={spec.of(value).name.lower()}"
            case Address():
                if value or not _is_unused(spec, vars(instruction)):
                    yield f"{name}={_region(instruction, spec).name}[{value}]"
            case Count():
                if value or spec.lowest or len(instruction.layout) == 1:
                    yield f"{name}={value}"
    for name in TOKENS:
        units = [unit.name.lower() for unit in Unit if getattr(instruction, name) >> unit & 1]
        if units:
            yield f"{name}={','.join(units)}"


def _rank(spec: Spec) -> int:
    return 0 if isinstance(spec, Address) else 2 if isinstance(spec, Flag) else 1


def _region(instruction: Instruction, spec: Address) -> Region:
    return spec.region if spec.region is not None else Region(getattr(instruction, spec.region_field))


def _region_fields(kind: type[Instruction]) -> set[str]:
    """Fields that an address's region says already."""
    return {spec.region_field for _, spec in kind.layout if isinstance(spec, Address) and spec.region_field}


def _is_unused(spec: Address, values: Mapping[str, int]) -> bool:
    """Whether these fields say that nothing is read or written there."""
    if spec.only_if and not values.get(spec.only_if):
        return True
    return bool(spec.unless) and spec.role != "updates" and bool(values.get(spec.unless))


def assemble(text: str, where: str = "") -> tuple[Instruction, ...]:
    """The instructions of a text; errors name `where` (a file, say), the line, the token and what would be right."""
    result: list[Instruction] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition(";")[0].split()
        if not words:
            continue
        try:
            result.append(_assemble_words(words[0], words[1:]))
        except CStepError as error:
            raise CStepError(f"{where}{': ' if where else ''}line {number}: {error}") from None
    return tuple(result)


def _assemble_words(mnemonic: str, operands: Sequence[str]) -> Instruction:
    kind = MNEMONICS.get(mnemonic)
    if kind is None:
        raise CStepError(f"{mnemonic!r} is no instruction; {_meant(mnemonic, MNEMONICS)}")
    values: dict[str, int] = {}
    said: set[str] = set()
    try:
        for operand in operands:
            name = operand.partition("=")[0]
            if name in said:
                raise CStepError(f"{operand!r} says {name} a second time")
            said.add(name)
            values |= _operand(kind, operand)
        for name in kind.specs.keys() & values.keys():
            problem = range_error(kind, name, values[name])
            if problem:
                raise CStepError(problem)
        instruction = kind(**_with_defaults(kind, values))
    except CStepError as error:
        raise CStepError(f"{mnemonic}: {error}") from None
    instruction.check()
    return instruction


def _meant(word: str, known: dict[str, type[Instruction]] | Sequence[str]) -> str:
    close = get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def _operand(kind: type[Instruction], operand: str) -> dict[str, int]:
    """The fields that one token of a line sets."""
    name, equals, text = operand.partition("=")
    if name in TOKENS:
        return {name: _units(name, text)}
    spec = kind.specs.get(name)
    if spec is None or name in _region_fields(kind):
        names = [name for name in kind.specs if name not in _region_fields(kind)]
        raise CStepError(f"{operand!r}: no field {name}; {_meant(name, [*names, *TOKENS])}")
    if isinstance(spec, Flag):
        if equals:
            raise CStepError(f"{operand!r}: {name} is a flag; write {name}, or leave it out")
        return {name: 1}
    if isinstance(spec, Choice):
        return {name: _member(spec, operand, text)}
    if isinstance(spec, Address):
        return _address(name, spec, operand, text)
    if not _NUMBER.fullmatch(text):
        raise CStepError(f"{operand!r}: write {name}=<number>, decimal or 0x hexadecimal")
    return {name: int(text, 16 if text.startswith("0x") else 10)}


def _units(name: str, text: str) -> int:
    units = {unit.name.lower(): 1 << unit for unit in Unit}
    mask = 0
    for word in text.split(","):
        if word not in units or mask & units[word]:
            raise CStepError(f"'{name}={text}': write {name}=<units>, each once, of {','.join(units)}")
        mask |= units[word]
    return mask


def _member(spec: Choice, operand: str, text: str) -> int:
    members = {member.name.lower(): int(member) for member in spec.of}
    if text not in members:
        raise CStepError(f"{operand!r} is none of {', '.join(members)}")
    return members[text]


def _address(name: str, spec: Address, operand: str, text: str) -> dict[str, int]:
    """The address, and the region field where the spelled region decides it."""
    right = spec.region.name if spec.region is not None else "REGION"
    found = _ADDRESS.fullmatch(text)
    if found is None or found[1] not in Region.__members__ or (spec.region is not None and found[1] != right):
        raise CStepError(f"{operand!r}: write {name}={right}[<byte>]")
    value = {name: int(found[2], 16 if found[2].startswith("0x") else 10)}
    return value | ({spec.region_field: int(Region[found[1]])} if spec.region_field else {})


def _with_defaults(kind: type[Instruction], values: dict[str, int]) -> dict[str, int]:
    """Adds the zeros that a line may leave out."""
    result = dict(values)
    for name, spec in kind.layout:
        optional = isinstance(spec, Flag) or (isinstance(spec, Count) and spec.lowest == 0)
        if isinstance(spec, Address):
            optional = _is_unused(spec, values)
        if optional:
            result.setdefault(name, 0)
        elif name not in result:
            raise CStepError(f"{name} is missing; write {_wanted(name, spec)}")
    return result


def _wanted(name: str, spec: Spec) -> str:
    if isinstance(spec, Choice):
        return f"{name}=<{'|'.join(member.name.lower() for member in spec.of)}>"
    if isinstance(spec, Address):
        return f"{name}={spec.region.name if spec.region is not None else 'REGION'}[<byte>]"
    return f"{name}=<number>"


def disassemble_program(program: Program) -> str:
    """A listing of a whole program that `assemble_program` reads back.

    Header and layer table are comments, and each line ends with its word's number as errors name it.
    """
    lines = [f"; {line}".rstrip() for line in _heading(program)]
    for index, instruction in enumerate(program.code):
        line = f"{disassemble(instruction)}  ; {index}"
        if isinstance(instruction, Layer) and instruction.index < len(program.header.layers):
            layer = program.header.layers[instruction.index]
            lines.append("")
            line += f": {_plain(layer.name)}, {_plain(layer.operation)}, {_plain(layer.source)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _heading(program: Program) -> Iterator[str]:
    header: Header = program.header
    image, output = header.input, header.output
    yield (
        f"{_plain(header.schema_version)} for machine {_plain(header.machine.name)}: {header.timesteps} timesteps, "
        f"{len(program.code)} words, memory image {len(program.memory)} of {header.dram_bytes} DRAM bytes"
    )
    shape = " x ".join(map(str, image.shape))
    yield f"input   {image.kind} int8 {shape}, steps {image.steps}, at DRAM[{image.address}], scale {image.scale!r}"
    yield f"output  int32 x {output.classes} at DRAM[{output.address}], scale {output.scale!r}"
    for key, value in header.provenance.model_dump().items():
        yield f"{key:<12}{_plain(str(value))}"
    yield "layers"
    for index, layer in enumerate(header.layers):
        neurons = "" if layer.neurons is None else f", neurons {' x '.join(map(str, layer.neurons))}"
        binary = ", binary input" if layer.binary else ""
        row = f"{index:>5}  {_plain(layer.name)}: {_plain(layer.operation)}, {_plain(layer.source)}"
        yield row + neurons + binary


def _plain(text: str) -> str:
    """A comment ends with its line, whatever the header says."""
    return "".join(character if character.isprintable() else "?" for character in text)


def assemble_program(text: str, template: Program, where: str = "") -> Program:
    """The program `template` with the code of a text: header and memory image stay, the source map follows the fires.

    The k-th `fire` of the text takes the source of the template's k-th, so there must be as many. The result is
    not verified here; `save` does that.
    """
    code = assemble(text, where)
    fires = [index for index, instruction in enumerate(code) if isinstance(instruction, Fire)]
    if len(fires) != len(template.source_map):
        raise CStepError(
            f"{where}{': ' if where else ''}{len(fires)} fire instructions, but the program has "
            f"{len(template.source_map)}; the source map needs as many"
        )
    source_map = template.source_map.copy()
    source_map[:, 0] = np.array(fires, np.int32)
    return replace(template, code=code, source_map=source_map, cache={})
