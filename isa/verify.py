"""What a program must satisfy before anything runs.

Ranges, sizes and addresses; every token has its counterpart and cannot deadlock; conflicting accesses are ordered;
nothing is read that nothing wrote; rows share as the machine can, by a pairing of their size; what channel masks kept
in DRAM is not used; weights and inputs are never overwritten; the output is written before every exit and the end. A
program that passes runs to its end, or to an exit before it, on its machine, whatever the input.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from isa.contents import LOGIT_BYTES, check_contents, input_bytes, region_sizes
from isa.errors import CStepError
from isa.footprint import overlaps_itself, overwritten
from isa.instructions import Accumulate, Attend, Decide, End, Exit, Fire, Keep, Layer, Rescale
from isa.ordering import check_order, place, span, verb
from isa.sharing import check_sharing
from isa.word import Access, Instruction, Region, Unit, encode

if TYPE_CHECKING:
    from isa.program import Header, Program

MOST_DRAM_BYTES = 1 << 30
MOST_CODE_WORDS = 1 << 20


def verify(program: Program) -> None:
    """Raises CStepError, one line, at the first thing that a program must not do."""
    header = program.header
    check_header(header, len(program.memory))
    _check_structure(program.code, len(header.layers))
    _check_exits(program.code, header)
    check_kept(program.code)
    accesses = _check_words(program.code, region_sizes(header))
    check_sharing(program.code, header.machine)
    _check_source_map(program)
    check_order(program.code)
    check_contents(program, accesses)


def check_header(header: Header, memory_bytes: int) -> None:
    """The header's numbers make sense, and its areas lie apart in DRAM."""
    steps = {"image": 1, "events": header.timesteps}[header.input.kind]
    _require(header.timesteps >= 1, f"timesteps={header.timesteps} must be at least 1")
    _require(
        header.input.steps == steps, f"input steps={header.input.steps}; {header.input.kind} input has {steps} here"
    )
    _require(min(header.input.shape) >= 1, f"input shape {header.input.shape} must be positive")
    _require(header.output.classes >= 1, f"output classes={header.output.classes} must be at least 1")
    for what, scale in (("input", header.input.scale), ("output", header.output.scale)):
        _require(math.isfinite(scale) and scale > 0, f"{what} scale={scale} must be a positive number")
    _require(
        len(header.input.mean) == len(header.input.std) and all(map(math.isfinite, header.input.mean)),
        "input mean and std must be as many finite numbers",
    )
    _require(all(math.isfinite(std) and std > 0 for std in header.input.std), "input std must be positive numbers")
    _require(0 < header.dram_bytes <= MOST_DRAM_BYTES, f"dram_bytes={header.dram_bytes} not in 1..{MOST_DRAM_BYTES}")
    _check_areas(header, memory_bytes)


def _check_areas(header: Header, memory_bytes: int) -> None:
    areas = sorted(
        [
            (0, memory_bytes, "the memory image"),
            (header.input.address, input_bytes(header), "the input"),
            (header.output.address, header.output.classes * LOGIT_BYTES, "the output"),
        ]
    )
    _require(areas[0][0] >= 0, f"{areas[0][2]} begins at DRAM[{areas[0][0]}]; addresses begin at 0")
    for (start, size, what), (other, _, neighbour) in itertools.pairwise(areas):
        _require(start + size <= other, f"{what} DRAM[{start}..{start + size - 1}] overlaps {neighbour} at {other}")
    for start, size, what in areas:
        _require(
            start + size <= header.dram_bytes,
            f"{what} DRAM[{start}..{start + size - 1}] passes dram_bytes={header.dram_bytes}",
        )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CStepError(f"header: {otherwise}")


def _check_structure(code: tuple[Instruction, ...], layers: int) -> None:
    """One End, the last; a layer mark first, so that all work is counted for some layer; marks in the table."""
    if not code or not isinstance(code[-1], End):
        raise CStepError(f"code: {len(code)} words and the last is no end; a program ends with one")
    if len(code) > MOST_CODE_WORDS:
        raise CStepError(f"code: {len(code)} words; at most {MOST_CODE_WORDS} are allowed")
    if len(code) > 1 and not isinstance(code[0], Layer):
        raise CStepError(f"{place(0, code[0])} comes before the first layer mark; a program begins with one")
    for index, instruction in enumerate(code):
        if isinstance(instruction, End) and index != len(code) - 1:
            raise CStepError(f"{place(index, instruction)} only the last word ({len(code) - 1}) may be an end")
        if isinstance(instruction, Layer) and instruction.index >= layers:
            raise CStepError(
                f"{place(index, instruction)} index={instruction.index}; the layer table has 0..{layers - 1}"
            )


def _check_exits(code: tuple[Instruction, ...], header: Header) -> None:
    """A decision over all classes, then its exit, of ever more timesteps."""
    decided, steps = -1, 0
    for index, instruction in enumerate(code):
        if decided >= 0 and isinstance(instruction, Decide | End):
            raise CStepError(f"{place(index, instruction)} no exit acts on word {decided} (decide) before it")
        if isinstance(instruction, Decide):
            decided = index
            if instruction.outputs != header.output.classes:
                raise CStepError(
                    f"{place(index, instruction)} outputs={instruction.outputs}; the output has "
                    f"{header.output.classes} classes, and all decide"
                )
        if isinstance(instruction, Exit):
            if decided < 0:
                raise CStepError(f"{place(index, instruction)} no decide since the exit before it; each exit needs one")
            if not steps < instruction.steps < header.timesteps:
                raise CStepError(
                    f"{place(index, instruction)} steps={instruction.steps}; it must be {steps + 1}.."
                    f"{header.timesteps - 1}, after the exit before it and before the last timestep"
                )
            decided, steps = -1, instruction.steps


def check_kept(code: tuple[Instruction, ...]) -> None:
    """What is flagged `kept` follows, on its unit, a latch of just its steps and tokens."""
    latched: dict[Unit, Keep] = {}
    for index, instruction in enumerate(code):
        if isinstance(instruction, Keep):
            latched[instruction.unit] = instruction
        wanted = _tokens_kept(instruction)
        if wanted is None:
            continue
        kind = next(kind for kind in Keep.__subclasses__() if kind.unit == instruction.unit)
        found = latched.get(instruction.unit)
        if found is None or (found.steps, found.tokens) != wanted:
            before = f"the latest has {found.steps} x {found.tokens}" if found else "there is none before it"
            raise CStepError(
                f"{place(index, instruction)} kept needs a {kind.mnemonic} of {wanted[0]} steps x {wanted[1]} tokens; "
                f"{before}"
            )


def _tokens_kept(instruction: Instruction) -> tuple[int, int] | None:
    """Steps and tokens of the latch that an instruction needs, or None."""
    match instruction:
        case Accumulate(kept=1):
            return instruction.steps, instruction.columns
        case Fire(kept=1) | Rescale(kept=1):
            return instruction.steps, instruction.pixels
        case Attend(kept=1):
            return instruction.steps, instruction.keys
        case _:
            return None


def _check_words(code: tuple[Instruction, ...], sizes: dict[Region, int]) -> list[tuple[Access, ...]]:
    """Every field fits and every footprint lies inside its region; returns the footprints."""
    result: list[tuple[Access, ...]] = []
    for index, instruction in enumerate(code):
        try:
            encode(instruction)
        except CStepError as error:
            raise CStepError(f"code word {index}: {error}") from None
        accesses = tuple(instruction.accesses())
        for access in accesses:
            size = sizes[access.region]
            if access.stop > size:
                raise CStepError(
                    f"{place(index, instruction)} {verb(access)} {access.field} {span(access)}; "
                    f"the region ends at {size - 1}"
                )
            if access.writes and overlaps_itself(access.shape):
                raise CStepError(
                    f"{place(index, instruction)} the runs it writes to {access.field} {span(access)} overlap; "
                    "each stride must be at least what lies inside it"
                )
        problem = overwritten(instruction)
        if problem:
            raise CStepError(f"{place(index, instruction)} {problem}")
        result.append(accesses)
    return result


def _check_source_map(program: Program) -> None:
    """One row for each Fire, in order, and its neurons inside the layer's."""
    code, header = program.code, program.header
    rows: list[list[int]] = program.source_map.tolist()
    fires = [index for index, instruction in enumerate(code) if isinstance(instruction, Fire)]
    if [row[0] for row in rows] != fires:
        raise CStepError(f"source map: its {len(rows)} rows must name the {len(fires)} fire words in order")
    for number, (index, layer, step, row, column, channel) in enumerate(rows):
        where, fire = f"source map row {number}", code[index]
        assert isinstance(fire, Fire)
        if not 0 <= layer < len(header.layers):
            raise CStepError(f"{where}: layer {layer}; the layer table has 0..{len(header.layers) - 1}")
        neurons = header.layers[layer].neurons
        if neurons is None:
            raise CStepError(f"{where}: layer {layer} ({header.layers[layer].name}) has no neurons to fire")
        height, width, channels = neurons
        inside = min(step, channel) >= 0 and 0 <= row < height and 0 <= column < width
        fits = (
            step + fire.steps <= header.timesteps
            and row * width + column + fire.pixels <= height * width
            and channel + fire.outputs <= channels
        )
        if not (inside and fits):
            raise CStepError(
                f"{where}: {fire.steps} steps x {fire.pixels} pixels x {fire.outputs} channels from step {step}, row "
                f"{row}, column {column}, channel {channel} pass the layer's {header.timesteps} steps x {height} x "
                f"{width} x {channels}"
            )
