"""A program as both kernel families walk it: one int64 row an instruction, and what is known without running it."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import (
    SPIKE_WORD_BYTES,
    Accumulate,
    Attend,
    Copy,
    Decide,
    Depthwise,
    Layer,
    Multiply,
    Store,
    Window,
    words_of,
)
from isa.machine import Machine
from isa.program import Program
from isa.word import Instruction, Region, Unit, field_names

PORTS = ("free", "round", "word")
"""The machine's ways of sharing the weight port, by number."""

CODE_COLUMNS = 1 + max(len(field_names(kind)) for kind in Instruction.registry.values())


def columns(kind: type[Instruction]) -> Any:
    """A named tuple of `opcode` and the fields of `kind`, each holding its column in `Decoded.code`."""
    names = ("opcode", *field_names(kind))
    return namedtuple(kind.__name__, names)(*range(len(names)))  # pyright: ignore[reportUntypedNamedTuple]


SPARE_EVENTS = 64
"""Entries behind a list of events that may be written."""
SPARE_LANES = 64
"""Outputs that a block of vectors may pass the last one by, and four times the pixels."""


class Scratch:
    """Sizes of what the fast kernels keep beside the machine's state, each the most any instruction needs."""

    def __init__(self, code: tuple[Instruction, ...]) -> None:
        accumulates = [each for each in code if isinstance(each, Accumulate)]
        paired = [each for each in code if isinstance(each, Accumulate | Depthwise)]
        attends = [each for each in code if isinstance(each, Attend)]
        self.events = max((a.steps * (_pixels(a) * a.inputs + SPARE_EVENTS) for a in accumulates), default=0)
        self.starts = max((a.steps * (_pixels(a) + 1) for a in accumulates), default=0)
        masked = [each for each in paired if _masks_inputs(each) or (isinstance(each, Accumulate) and each.kept)]
        self.masked = max((_input_bytes(a) for a in masked), default=0)
        self.pixels = max((a.input_rows * (a.input_columns + a.stride + 1) for a in paired), default=0)
        self.pairs = max((a.steps * a.rows * (a.columns // 2 + 1) for a in paired), default=0)
        dense = [each for each in code if isinstance(each, Accumulate | Multiply)]
        self.packed = max((_taps(a) * (a.inputs + 3) * (a.outputs + SPARE_LANES) for a in dense), default=0)
        self.image = max((_padded_pixels(a) * (a.inputs + 3) for a in dense), default=0)
        self.head = max((a.width * (a.value_width + 16) for a in attends), default=0)


def _taps(each: Window) -> int:
    return each.kernel_rows * each.kernel_columns


def _masks_inputs(each: Accumulate | Depthwise) -> bool:
    return bool(each.masks_rows or (isinstance(each, Depthwise) and each.masks_columns))


def _input_bytes(each: Accumulate | Depthwise) -> int:
    return each.extents()["spikes"].span


def _overlap(each: Window) -> bool:
    """Whether words belong to several pixels, other than the same ones of several steps."""
    step_bytes = (_pixels(each) - 1) * each.pixel_stride + SPIKE_WORD_BYTES * words_of(each.inputs)
    return each.pixel_stride < SPIKE_WORD_BYTES * words_of(each.inputs) or 0 < each.step_stride < step_bytes


def _padded_pixels(each: Window) -> int:
    """Input pixels of a step with the window's borders, and what a group of output pixels may pass a row's end by."""
    rows = max(each.input_rows + each.top, (each.rows - 1) * each.stride + each.kernel_rows)
    columns = max(each.input_columns + each.left, (each.columns - 1) * each.stride + each.kernel_columns)
    return rows * columns + SPARE_LANES // 4 * each.stride


def _pixels(each: Window) -> int:
    return each.input_rows * each.input_columns


@dataclass(frozen=True)
class Decoded:
    """What an interpreter derives from a program once."""

    machine: Machine
    instructions: tuple[Instruction, ...]
    code: NDArray[np.int64]
    """[n, CODE_COLUMNS]: opcode, then the fields in encoding order, as `columns` names them."""
    unit: NDArray[np.int64]
    """[n] unit of each instruction."""
    cost: NDArray[np.int64]
    """[n, 3]: fixed, numerator, denominator (see `isa.word.Cost`)."""
    layer: NDArray[np.int64]
    """[n] index of the latest layer mark; 0 before the first."""
    layers: int
    posts: NDArray[np.int64]
    """[units * units + 1]: where the queue (from unit, to unit) starts in a list of all tokens."""
    static: tuple[dict[str, int], ...]
    """[n] what each instruction counts whatever the data."""
    shares: NDArray[np.bool_]
    """[n] whether the instruction shares what rows have in common."""
    reuses: tuple[int, ...]
    """The numbers of the instructions whose rows share beyond pairs."""
    planes: NDArray[np.int64]
    """[n] how many Accumulates from this one on are the planes of one input; kernels may take them together."""
    decides: tuple[int, ...]
    """The numbers of its decisions, one an exit."""
    scratch: Scratch


def decoded(program: Program) -> Decoded:
    """The decoded program, kept with it; raises CStepError for an address that no memory has."""
    kept = program.cache.get("decoded")
    if isinstance(kept, Decoded) and kept.instructions is program.code and kept.machine is program.header.machine:
        return kept
    _check_addresses(program)
    fresh = _decode(program)
    program.cache["decoded"] = fresh
    return fresh


def _decode(program: Program) -> Decoded:
    code, machine = program.code, program.header.machine
    costs = [each.cost(machine) for each in code]
    rows = np.zeros((len(code), CODE_COLUMNS), np.int64)
    for row, each in zip(rows, code, strict=True):
        row[0] = each.opcode
        row[1 : 1 + len(field_names(type(each)))] = [int(getattr(each, name)) for name in field_names(type(each))]
    layer = _layer_marks(code)
    return Decoded(
        machine=machine,
        instructions=code,
        code=rows,
        unit=np.array([each.unit for each in code], np.int64),
        cost=np.array([(c.fixed, c.numerator, c.denominator) for c in costs], np.int64).reshape(-1, 3),
        layer=layer,
        layers=max(len(program.header.layers), 1, int(layer.max(initial=0)) + 1),
        posts=_queue_starts(code),
        static=tuple(each.counts() for each in code),
        shares=np.array([isinstance(each, Accumulate) and bool(each.sharing) for each in code], np.bool_),
        reuses=tuple(index for index, each in enumerate(code) if isinstance(each, Accumulate) and each.reuses),
        planes=_planes(code),
        decides=tuple(index for index, each in enumerate(code) if isinstance(each, Decide)),
        scratch=Scratch(code),
    )


def _planes(code: tuple[Instruction, ...]) -> NDArray[np.int64]:
    counts = np.ones(len(code), np.int64)
    for index in range(len(code) - 2, -1, -1):
        if _is_next_plane(code[index], code[index + 1]):
            counts[index] += counts[index + 1]
    return counts


def _is_next_plane(each: Instruction, after: Instruction) -> bool:
    """Whether the second adds the next plane of the same pixels to the same accumulators."""
    if not (isinstance(each, Accumulate) and isinstance(after, Accumulate)) or each.plane + 1 != after.plane:
        return False
    other = {"plane": 0, "fresh": 0, "spikes": 0, "wait": 0, "post": 0}
    return not after.fresh and replace(each, **other) == replace(after, **other)


def _layer_marks(code: tuple[Instruction, ...]) -> NDArray[np.int64]:
    current, marks = 0, []
    for each in code:
        current = each.index if isinstance(each, Layer) else current
        marks.append(current)
    return np.array(marks, np.int64)


def _queue_starts(code: tuple[Instruction, ...]) -> NDArray[np.int64]:
    posted = np.zeros(len(Unit) * len(Unit) + 1, np.int64)
    for each in code:
        for unit in Unit:
            posted[1 + each.unit * len(Unit) + unit] += each.post >> unit & 1
    return np.cumsum(posted)


def region_bytes(machine: Machine, dram_bytes: int) -> dict[Region, int]:
    """Bytes that an address may point into, by region."""
    return {
        Region.DRAM: dram_bytes,
        Region.WEIGHT: machine.weight_buffer_bytes,
        Region.SPIKE: 2 * machine.spike_words,
        Region.OUTPUT: machine.output_buffer_bytes,
        Region.CONSTANT: machine.constant_buffer_bytes,
        Region.CHANNEL: machine.channel_buffer_bytes,
    }


def _check_addresses(program: Program) -> None:
    """The kernels use bare addresses, so every footprint is checked here again, whatever was verified before."""
    sizes = region_bytes(program.header.machine, program.header.dram_bytes)
    image = len(program.memory)
    for index, each in enumerate(program.code):
        where = f"code word {index}: {each.mnemonic}"
        for access in each.accesses():
            if access.start < 0 or access.stop > sizes[access.region]:
                bytes_named = f"{access.field} {access.start}..{access.stop - 1}"
                raise CStepError(f"{where}: {bytes_named} leaves {access.region.name} (0..{sizes[access.region] - 1})")
            if access.region == Region.DRAM and access.start < image < access.stop:
                raise CStepError(f"{where}: {access.field} crosses from the program's memory into the input's own")
        if isinstance(each, Store) and each.target < image:
            raise CStepError(f"{where}: target={each.target} is the program's own memory (0..{image - 1}), only read")
        if isinstance(each, Copy) and each.region == Region.DRAM:
            raise CStepError(f"{where}: region=0 (dram); a copy goes between DRAM and a buffer")
        if isinstance(each, Accumulate) and each.steps * _pixels(each) * each.inputs > 1 << 24:
            raise CStepError(f"{where}: input pixels overlap; they must lie side by side in the spike buffer")
        if isinstance(each, Accumulate | Depthwise) and _masks_inputs(each) and _overlap(each):
            raise CStepError(f"{where}: input pixels overlap; under channel masks every one needs bytes of its own")
        if isinstance(each, Accumulate) and each.kept and (_overlap(each) or not each.step_stride):
            raise CStepError(f"{where}: input pixels overlap; with kept tokens every one needs bytes of its own")
