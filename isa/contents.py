"""What memories hold while a program is followed in order: the part of the verifier that knows who wrote what."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from isa.errors import CStepError
from isa.footprint import Written, simplified
from isa.guarded import Guarded
from isa.instructions import Copy, End, Exit, Multiply
from isa.machine import Machine
from isa.ordering import place, span, verb
from isa.word import Access, Instruction, Region, Strided, Traffic

if TYPE_CHECKING:
    from isa.program import Header, Program

LOGIT_BYTES = 4


def region_sizes(header: Header) -> dict[Region, int]:
    """Bytes of each region."""
    machine = header.machine
    return {
        Region.DRAM: header.dram_bytes,
        Region.WEIGHT: machine.weight_buffer_bytes,
        Region.SPIKE: machine.spike_buffer_bytes,
        Region.OUTPUT: machine.output_buffer_bytes,
        Region.CONSTANT: machine.constant_buffer_bytes,
        Region.CHANNEL: machine.channel_buffer_bytes,
    }


def input_bytes(header: Header) -> int:
    return header.input.steps * math.prod(header.input.shape)


def check_contents(program: Program, accesses: list[tuple[Access, ...]]) -> None:
    """Raises CStepError at the first word that reads what nothing wrote, or writes or ends where it must not."""
    header = program.header
    contents = Contents(header, len(program.memory))
    for index, (instruction, touched) in enumerate(zip(program.code, accesses, strict=True)):
        contents.follow(index, instruction, touched, header.machine)


class Contents:
    """What every region holds while the code is followed in program order."""

    def __init__(self, header: Header, memory_bytes: int) -> None:
        self.written = {region: Written(size) for region, size in region_sizes(header).items()}
        self.spike_words = Written(header.machine.spike_buffer_bytes)
        """Bytes of the spike buffer that hold spikes: with a word mask bit, not images or events."""
        self.masks = Written(header.machine.channel_buffer_bytes)
        """Bytes of the channel buffer that hold masks, not counts."""
        self.guarded = Guarded(header.machine.weight_buffer_bytes)
        self.output = slice(header.output.address, header.output.address + header.output.classes * LOGIT_BYTES)
        self.logits = Written(header.output.classes * LOGIT_BYTES)
        """Bytes of the output that were written since the latest exit."""
        self.exit = -1
        """The latest exit."""
        self.protected = (
            (0, memory_bytes, "the memory image"),
            (header.input.address, header.input.address + input_bytes(header), "the input"),
        )
        for start, stop, _ in self.protected:
            self.written[Region.DRAM].bytes[start:stop] = True

    def follow(self, index: int, instruction: Instruction, accesses: tuple[Access, ...], machine: Machine) -> None:
        """Raises CStepError for what an instruction may not read, write or end."""
        spikes = _moves_spikes(instruction)
        for access in accesses:
            if access.region == Region.SPIKE and spikes and access.stop > 2 * machine.spike_words:
                raise CStepError(
                    f"{place(index, instruction)} {verb(access)} {access.field} {span(access)}; the word mask buffer "
                    f"covers {machine.spike_words} words, SPIKE[0..{2 * machine.spike_words - 1}]"
                )
            if access.reads:
                self._read(index, instruction, access, spikes)
        problem = self.guarded.follow(index, instruction, accesses)
        if problem:
            raise CStepError(f"{place(index, instruction)} reads {problem}")
        if isinstance(instruction, Exit | End):
            self._leave(index, instruction)
        for access in accesses:
            if access.writes:
                self._write(index, instruction, access, spikes)

    def _read(self, index: int, instruction: Instruction, access: Access, spikes: bool) -> None:
        shape = simplified(access.shape)
        missing = self.written[access.region].missing(access.start, shape)
        if missing:
            raise CStepError(
                f"{place(index, instruction)} reads {access.field} {span(access)}, but no word before it wrote "
                f"{missing[0]}..{missing[1]}"
            )
        if access.region == Region.SPIKE and spikes:
            missing = self.spike_words.missing(access.start, shape)
            if missing:
                raise CStepError(
                    f"{place(index, instruction)} reads {access.field} {span(access)}, but {missing[0]}..{missing[1]} "
                    "has no word mask: it was not written as spikes"
                )
        if access.region == Region.CHANNEL:
            self._read_channels(index, instruction, access, shape)

    def _read_channels(self, index: int, instruction: Instruction, access: Access, shape: Strided) -> None:
        """Masks are what a guard made, counts are what spikes were counted in."""
        held = self.masks.bytes[access.start : access.start + shape.run]
        counts = _holds_counts(access)
        if held.any() if counts else not held.all():
            first = access.start + int(np.argmax(held == counts))
            wanted, found = ("counts", "a mask") if counts else ("a mask", "counts")
            raise CStepError(
                f"{place(index, instruction)} reads {access.field} {span(access)} as {wanted}, but byte {first} is of "
                f"{found}; a guard makes masks of counts"
            )

    def _leave(self, index: int, instruction: Instruction) -> None:
        """Where a program may end, the output holds the logits of the timesteps since the exit before."""
        if not self.logits.bytes.all():
            since = f"since word {self.exit} (exit)" if self.exit >= 0 else "before it"
            raise CStepError(
                f"{place(index, instruction)} no word wrote all of the output "
                f"DRAM[{self.output.start}..{self.output.stop - 1}] {since}"
            )
        self.logits.bytes[:], self.exit = False, index

    def _write(self, index: int, instruction: Instruction, access: Access, spikes: bool) -> None:
        if access.region == Region.DRAM:
            for start, stop, what in self.protected:
                if access.start < stop and start < access.stop:
                    raise CStepError(
                        f"{place(index, instruction)} writes {access.field} {span(access)} into {what} "
                        f"DRAM[{start}..{stop - 1}]; nothing may"
                    )
        shape = simplified(access.shape)
        if access.region == Region.DRAM and access.start < self.output.stop and self.output.start < access.stop:
            self._write_output(access.start, shape)
        self.written[access.region].set(access.start, shape)
        if access.region == Region.SPIKE:
            self.spike_words.set(access.start, shape, spikes)
        if access.region == Region.CHANNEL:
            self.masks.set(access.start, shape, not _holds_counts(access))

    def _write_output(self, start: int, shape: Strided) -> None:
        """Notes which bytes of the output a footprint has."""
        held = self.written[Region.DRAM]
        before = held.bytes[self.output].copy()
        held.bytes[self.output] = False
        held.set(start, shape)
        self.logits.bytes |= held.bytes[self.output]
        held.bytes[self.output] |= before


def _holds_counts(access: Access) -> bool:
    return access.field == "counts_at"


def _moves_spikes(instruction: Instruction) -> bool:
    """Whether what an instruction does in the spike buffer are spikes, not bytes of an image or of events."""
    if isinstance(instruction, Copy):
        return instruction.traffic == Traffic.SPIKE
    return not isinstance(instruction, Multiply)
