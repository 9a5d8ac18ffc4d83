"""How an instruction class becomes bits, text, and back.

An instruction is a frozen dataclass whose annotated fields say how many bits each takes and, for addresses,
which region is read or written. Everything that handles instructions derives from those declarations: the
encoder and decoder here, the assembler and disassembler (isa/text.py), the manual (docs/isa.md), the range
errors, and the footprints that the verifier and the compiler's synchronisation use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from isa.errors import CStepError
from isa.machine import Machine

WORD_BYTES = 32
"""Every instruction is one word of 32 bytes, little-endian."""


class Unit(IntEnum):
    """The five units, each with its own in-order queue."""

    DMA = 0
    PE = 1
    NEURON = 2
    SFU = 3
    CONTROL = 4


class Region(IntEnum):
    """The memories that an address can point into."""

    DRAM = 0
    WEIGHT = 1
    SPIKE = 2
    OUTPUT = 3
    CONSTANT = 4
    CHANNEL = 5


class Traffic(IntEnum):
    """What a copy moves; DRAM bytes are counted by this class. Spikes travel as word mask + non-zero words."""

    WEIGHT = 0
    CONSTANT = 1
    SPIKE = 2
    MEMBRANE = 3
    IMAGE = 4
    OUTPUT = 5
    STREAM = 6


class Sharing(IntEnum):
    """Which rows of an `Accumulate` share what they have in common (see there); a row is an output pixel at a step."""

    NONE = 0
    PAIR = 1
    GROUP4 = 2
    GROUP8 = 3
    MATCH = 4
    PREFIX = 5
    FOREST = 6


class Criterion(IntEnum):
    """What an exit's decision measures (see `Decide`)."""

    LIGHTSOFTMAX = 0
    SOFTMAX = 1
    ENTROPY = 2


class Gives(IntEnum):
    """The weight that `halt` gives a token that is kept: its score or what is left of 1, what is left, or 1."""

    SCORE = 0
    REST = 1
    WHOLE = 2


class Charge(IntEnum):
    """The neuron's charge equation (see `Fire`); `NONE` has no membrane."""

    NONE = 0
    LIF = 1
    IF = 2
    LIF_UNDECAYED = 3


@dataclass(frozen=True)
class Count:
    """An unsigned number of `bits` bits; `lowest` is the least value that makes sense."""

    bits: int
    lowest: int = 0


@dataclass(frozen=True)
class Flag:
    """One bit."""

    bits: int = 1


@dataclass(frozen=True)
class Choice:
    """One of the members of an enumeration."""

    bits: int
    of: type[IntEnum]


@dataclass(frozen=True)
class Address:
    """A byte address into `region` (or into the region that the field `region_field` names)."""

    bits: int
    role: str
    region: Region | None = None
    region_field: str = ""
    unless: str = ""
    """Name of a flag: set, an `updates` becomes a `writes`, and a `reads` or `writes` does not happen."""
    only_if: str = ""
    """Name of a field that must be non-zero for the access to happen."""
    align: int = 1
    """The address must be a multiple of this, a power of two: the size of what lies there. Words hold the quotient."""
    apart: tuple[str, ...] = ()
    """Operands that are still read when writing has begun: what is written here overlaps none of their bytes."""
    in_place: tuple[str, ...] = ()
    """Operands that this one may start where they do; anywhere else, they are as those of `apart`."""


def reads(region: Region, bits: int, unless: str = "", only_if: str = "", align: int = 1) -> Address:
    return Address(bits, "reads", region, unless=unless, only_if=only_if, align=align)


def writes(
    region: Region, bits: int, align: int = 1, apart: tuple[str, ...] = (), in_place: tuple[str, ...] = ()
) -> Address:
    return Address(bits, "writes", region, align=align, apart=apart, in_place=in_place)


def updates(
    region: Region, bits: int, unless: str = "", only_if: str = "", align: int = 1, apart: tuple[str, ...] = ()
) -> Address:
    return Address(bits, "updates", region, unless=unless, only_if=only_if, align=align, apart=apart)


Spec = Count | Flag | Choice | Address


def unit_of(spec: Spec) -> int:
    """What a field's value is a multiple of."""
    return spec.align if isinstance(spec, Address) else 1


def width_of(spec: Spec) -> int:
    """Bits that a field takes in a word: an address is counted in units of its alignment."""
    return spec.bits - (unit_of(spec).bit_length() - 1)


@dataclass(frozen=True)
class Strided:
    """Bytes start + i*strides[0] + j*strides[1] + (0..run-1), for i < counts[0], j < counts[1]."""

    run: int
    counts: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @property
    def span(self) -> int:
        """Bytes from the first to the last one touched, gaps included."""
        return self.run + sum((count - 1) * stride for count, stride in zip(self.counts, self.strides, strict=True))


@dataclass(frozen=True)
class Access:
    """One footprint of an instruction: a region, where it starts, which bytes, and whether it reads or writes."""

    field: str
    region: Region
    start: int
    shape: Strided
    reads: bool
    writes: bool

    @property
    def stop(self) -> int:
        return self.start + self.shape.span


@dataclass(frozen=True)
class Cost:
    """cycles = fixed + ceil(work * numerator / denominator); `work` is what the unit measured on the data.

    Work is the sum over rounds for `Accumulate` and `Depthwise` (all cycles where rows share beyond pairs), and bursts
    for a copy that moves spikes. Under channel masks it is what they leave: bursts of a `Load`, passes times rounds,
    multiplications, groups of neurons. 0 for all others.
    """

    fixed: int
    numerator: int = 0
    denominator: int = 1

    def cycles(self, work: int) -> int:
        return self.fixed + -(-work * self.numerator // self.denominator)


UNIT_MASK_BITS = 5
HEADER: tuple[tuple[str, int], ...] = (("opcode", 8), ("wait", UNIT_MASK_BITS), ("post", UNIT_MASK_BITS))


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Base of all instructions. `wait` and `post` are masks of units, bit u for `Unit(u)`.

    Tokens: every ordered pair of units has a queue of tokens. An instruction that posts to unit u puts a token
    into the queue (own unit -> u) when it ends; one that waits for unit u takes the oldest token of the queue
    (u -> own unit) before it starts.
    """

    opcode: ClassVar[int]
    unit: ClassVar[Unit]
    mnemonic: ClassVar[str]
    layout: ClassVar[tuple[tuple[str, Spec], ...]]
    specs: ClassVar[dict[str, Spec]]
    registry: ClassVar[dict[int, type[Instruction]]] = {}

    wait: int = field(default=0)
    post: int = field(default=0)

    def __init_subclass__(cls, opcode: int = -1, unit: Unit = Unit.CONTROL, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if opcode < 0:
            return
        if opcode in Instruction.registry:
            raise TypeError(f"opcode 0x{opcode:02x} is taken by {Instruction.registry[opcode].__name__}")
        cls.opcode, cls.unit, cls.mnemonic = opcode, unit, cls.__name__.lower()
        hints = get_type_hints(cls, include_extras=True)
        cls.layout = tuple((name, _spec_of(hint)) for name, hint in hints.items() if get_origin(hint) is Annotated)
        cls.specs = dict(cls.layout)
        used = sum(bits for _, bits in HEADER) + sum(width_of(spec) for _, spec in cls.layout)
        if used > WORD_BYTES * 8:
            raise TypeError(f"{cls.__name__} takes {used} bits; a word has {WORD_BYTES * 8}")
        Instruction.registry[opcode] = cls

    def extents(self) -> dict[str, Strided]:
        """Bytes touched through each address field."""
        return {}

    def cost(self, machine: Machine) -> Cost:
        """Cycles that the unit is busy."""
        return Cost(0)

    def counts(self) -> dict[str, int]:
        """What this instruction counts whatever the data, by counter name (docs/counting.md)."""
        return {}

    def check(self) -> None:
        """Raise CStepError where fields contradict each other (the ranges of single fields are checked anyway)."""

    def accesses(self) -> Iterator[Access]:
        """Every footprint of this instruction, derived from the address fields and `extents`."""
        extents = self.extents()
        for name, spec in self.layout:
            if not isinstance(spec, Address):
                continue
            if spec.only_if and not getattr(self, spec.only_if):
                continue
            skip = bool(spec.unless and getattr(self, spec.unless))
            if skip and spec.role != "updates":
                continue
            region = spec.region if spec.region is not None else Region(getattr(self, spec.region_field))
            is_read = spec.role == "reads" or (spec.role == "updates" and not skip)
            yield Access(name, region, getattr(self, name), extents[name], is_read, spec.role != "reads")


def _spec_of(hint: Any) -> Spec:
    return get_args(hint)[1]


def range_error(instruction: type[Instruction], name: str, value: int) -> str | None:
    """What is wrong with `value` for field `name`, as one phrase, or None."""
    spec = instruction.specs[name]
    top = (1 << spec.bits) - 1
    lowest = spec.lowest if isinstance(spec, Count) else 0
    if lowest <= value <= top:
        if isinstance(spec, Choice) and all(value != member for member in spec.of):
            choices = ", ".join(f"{int(member)} ({member.name.lower()})" for member in spec.of)
            return f"{name}={value} is none of {choices}"
        if isinstance(spec, Address) and value % spec.align:
            return f"{name}={value} must be a multiple of {spec.align}"
        return None
    return f"{name}={value} does not fit {spec.bits} bits ({lowest}..{top})"


def encode(instruction: Instruction) -> bytes:
    """The 32-byte word of an instruction. Raises CStepError for a value that does not fit its field."""
    word, shift = 0, 0
    for name, bits in HEADER:
        value = instruction.opcode if name == "opcode" else getattr(instruction, name)
        if not 0 <= value < 1 << bits:
            raise CStepError(f"{instruction.mnemonic}: {name}={value} does not fit {bits} bits")
        word |= value << shift
        shift += bits
    for name, spec in instruction.layout:
        value = int(getattr(instruction, name))
        problem = range_error(type(instruction), name, value)
        if problem:
            raise CStepError(f"{instruction.mnemonic}: {problem}")
        word |= value // unit_of(spec) << shift
        shift += width_of(spec)
    instruction.check()
    return word.to_bytes(WORD_BYTES, "little")


def decode(word: bytes, where: str = "word") -> Instruction:
    """The instruction of a 32-byte word; refuses unknown opcodes, values out of range and non-zero spare bits."""
    if len(word) != WORD_BYTES:
        raise CStepError(f"{where}: {len(word)} bytes; an instruction has {WORD_BYTES}")
    number = int.from_bytes(word, "little")
    kind = Instruction.registry.get(number & 0xFF)
    if kind is None:
        raise CStepError(f"{where}: opcode 0x{number & 0xFF:02x} is no instruction")
    values: dict[str, int] = {}
    shift = 8
    for name, bits in HEADER[1:]:
        values[name] = number >> shift & ((1 << bits) - 1)
        shift += bits
    for name, spec in kind.layout:
        values[name] = (number >> shift & ((1 << width_of(spec)) - 1)) * unit_of(spec)
        shift += width_of(spec)
        problem = range_error(kind, name, values[name])
        if problem:
            raise CStepError(f"{where}: {kind.mnemonic}: {problem}")
    if number >> shift:
        raise CStepError(f"{where}: {kind.mnemonic}: spare bits above bit {shift} are set; they must be 0")
    instruction = kind(**values)
    try:
        instruction.check()
    except CStepError as error:
        raise CStepError(f"{where}: {error}") from None
    return instruction


def field_names(kind: type[Instruction]) -> tuple[str, ...]:
    """Field names in encoding order, the tokens first."""
    return tuple(f.name for f in fields(kind))
