"""The manual of the instruction set, docs/isa.md, written from the declarations: python -m isa.manual > docs/isa.md."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator

from isa import instructions, text
from isa.machine import load_machine
from isa.word import (
    HEADER,
    WORD_BYTES,
    Address,
    Charge,
    Choice,
    Count,
    Criterion,
    Flag,
    Gives,
    Instruction,
    Region,
    Sharing,
    Spec,
    Traffic,
    Unit,
    width_of,
)

MACHINE = "c-step"
"""The preset whose buffer sizes the region table shows."""


def manual() -> str:
    """The whole page, Markdown."""
    sections = [_introduction(), _words(), _units(), _regions(), _layouts(), _text(), _enumerations()]
    kinds = sorted(Instruction.registry.values(), key=lambda kind: kind.opcode)
    sections.extend(_instruction(kind) for kind in kinds)
    return "\n\n".join(sections) + "\n"


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0])]
    lines += [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _introduction() -> str:
    return (
        "# Instruction set\n\n"
        "<!-- written by `python -m isa.manual > docs/isa.md` from isa/instructions/; a test keeps them equal -->\n\n"
        "One instruction is one layer x a window of timesteps x an output tile x an input tile, over a tile of pixels\n"
        "or tokens. A program is a list of instructions in program order, ended by one `end`; `isa/verify.py` says\n"
        "what a program must satisfy before anything runs, and `cstep disasm` writes one as text."
    )


def _words() -> str:
    rows: list[tuple[object, ...]] = []
    shift = 0
    meanings = {
        "opcode": "which instruction",
        "wait": "units to take a token from before it starts, bit u for unit u",
        "post": "units to give a token to when it ends, bit u for unit u",
    }
    for name, bits in HEADER:
        rows.append((f"`{name}`", _bits(shift, bits), meanings[name]))
        shift += bits
    rows.append(("fields", f"{shift}..", "those of the instruction, in the order of its table"))
    rows.append(("spare", f"..{WORD_BYTES * 8 - 1}", "0"))
    return (
        f"## Words\n\nEvery instruction is one word of {WORD_BYTES} bytes, little-endian: bit 0 is the lowest bit of "
        f"the first byte.\n\n{table(('field', 'bits', 'meaning'), rows)}"
    )


def _units() -> str:
    rows = [
        (int(unit), f"`{unit.name.lower()}`", ", ".join(f"`{kind.mnemonic}`" for kind in _kinds(unit))) for unit in Unit
    ]
    return (
        f"## Units and tokens\n\n{table(('number', 'unit', 'instructions'), rows)}\n\n"
        "Each unit has its own queue and takes its instructions in program order, one at a time. Every ordered pair\n"
        "of units has a queue of tokens: an instruction that posts to a unit puts one in when it ends, one that waits\n"
        "for a unit takes the oldest before it starts. So an instruction starts when its unit is free and its tokens\n"
        "are there. Instructions of different units that touch the same bytes of a buffer, one of them writing, must\n"
        "be ordered so; `isa/hazards.py` derives the tokens. An `exit` waits for its decision, and what stands behind\n"
        "it, on any unit, waits for the exit."
    )


def _kinds(unit: Unit) -> list[type[Instruction]]:
    return sorted((kind for kind in Instruction.registry.values() if kind.unit == unit), key=lambda kind: kind.opcode)


def _regions() -> str:
    machine = load_machine(MACHINE)
    holds = {
        Region.DRAM: ("the program's own size", "weights and constants, the input, the output, spilled trains"),
        Region.WEIGHT: (machine.weight_buffer_bytes, "int8 weights"),
        Region.SPIKE: (machine.spike_buffer_bytes, "spike words; images, events and 8-bit streams as int8"),
        Region.OUTPUT: (machine.output_buffer_bytes, "accumulators, membranes, 16-bit streams, features, logits"),
        Region.CONSTANT: (machine.constant_buffer_bytes, "biases, thresholds, multipliers, pairings"),
        Region.CHANNEL: (machine.channel_buffer_bytes, "early spike counts and channel masks"),
    }
    rows = [(int(region), f"`{region.name}`", *holds[region]) for region in Region]
    return (
        "## Regions\n\nAddresses are bytes from the start of a region, written `REGION[byte]`.\n\n"
        f"{table(('number', 'region', f'bytes on {MACHINE}', 'holds'), rows)}"
    )


def _layouts() -> str:
    return f"## Layouts\n\n{_fenced(inspect.getdoc(instructions) or '')}"


def _text() -> str:
    return f"## Text\n\n{_fenced(inspect.getdoc(text) or '')}"


def _enumerations() -> str:
    parts = ["## Enumerations"]
    for kind in (Traffic, Sharing, Charge, Criterion, Gives):
        rows = [(int(member), f"`{member.name.lower()}`") for member in kind]
        parts.append(f"`{kind.__name__}`: {inspect.getdoc(kind)}\n\n{table(('number', 'name'), rows)}")
    return "\n\n".join(parts)


def _instruction(kind: type[Instruction]) -> str:
    head = f"## `{kind.mnemonic}`\n\nOpcode 0x{kind.opcode:02x}, unit `{kind.unit.name.lower()}`."
    parts = [head, _fenced(inspect.getdoc(kind) or "")]
    if kind.layout:
        parts.append(table(("field", "bits", "range", "meaning"), _fields(kind)))
    return "\n\n".join(parts)


def _fields(kind: type[Instruction]) -> Iterator[tuple[object, ...]]:
    shift = sum(bits for _, bits in HEADER)
    for name, spec in kind.layout:
        yield f"`{name}`", _bits(shift, width_of(spec)), _range(spec), _meaning(spec)
        shift += width_of(spec)


def _bits(shift: int, bits: int) -> str:
    return f"{shift}..{shift + bits - 1}" if bits > 1 else str(shift)


def _range(spec: Spec) -> str:
    if isinstance(spec, Choice):
        return ", ".join(str(int(member)) for member in spec.of)
    lowest = spec.lowest if isinstance(spec, Count) else 0
    step = f", multiples of {spec.align}" if isinstance(spec, Address) and spec.align > 1 else ""
    return f"{lowest}..{(1 << spec.bits) - 1}{step}"


def _meaning(spec: Spec) -> str:
    match spec:
        case Address():
            return f"{spec.role} {_where(spec)}{_condition(spec)}"
        case Choice():
            return f"a `{spec.of.__name__}`"
        case Flag():
            return "flag"
        case Count():
            return "number"


def _where(spec: Address) -> str:
    return f"`{spec.region.name}`" if spec.region is not None else f"the buffer that `{spec.region_field}` names"


def _condition(spec: Address) -> str:
    condition = f", only if `{spec.only_if}` is not 0" if spec.only_if else ""
    if spec.unless:
        condition += f"; with `{spec.unless}` only writes" if spec.role == "updates" else f"; not with `{spec.unless}`"
    if spec.in_place:
        condition += f"; may start where {_names(spec.in_place)} starts"
    if spec.apart:
        condition += f"; apart from {_names(spec.apart)}"
    return condition


def _names(fields: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in fields)


def _fenced(content: str) -> str:
    return f"```text\n{content}\n```"


if __name__ == "__main__":
    sys.stdout.write(manual())
