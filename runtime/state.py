"""The machine's memories for one input: arrays of bytes, and nothing beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.instructions import PARTNER_BYTES, Keep, Pair
from isa.machine import Machine
from isa.program import Program
from isa.word import Region, Unit

LATCHES = ("kept_rows", "kept_neurons", "kept_tokens")
SPARE_BYTES = 512
"""Bytes behind each region's end that vector loads may read (never write, never use)."""
PAIRING_BYTES = PARTNER_BYTES * (2 + (1 << Pair.specs["rows"].bits))


@dataclass
class State:
    """Every region of one machine. DRAM is the program's memory (shared, read only) and, behind it, the input's own."""

    memory: NDArray[np.uint8]
    private: NDArray[np.uint8]
    weight: NDArray[np.uint8]
    spike: NDArray[np.uint8]
    output: NDArray[np.uint8]
    constant: NDArray[np.uint8]
    channel: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    """Bit i: whether word i of the spike buffer is non-zero."""
    pairing: NDArray[np.uint8]
    """What the latest `pair` latched, uint16: how many rows, whether they are timesteps, and each row's partner."""
    flags: NDArray[np.uint8]
    """One byte: whether the latest `decide` said that the next `exit` is taken."""
    kept_rows: NDArray[np.uint8]
    """A byte a token: those that the PE unit latched last, [steps][tokens]; the next two are of the other units."""
    kept_neurons: NDArray[np.uint8]
    kept_tokens: NDArray[np.uint8]

    @classmethod
    def of(cls, program: Program) -> State:
        """A machine with all memories zero and the program's memory image in DRAM."""
        machine: Machine = program.header.machine
        latched = max((each.steps * each.tokens for each in program.code if isinstance(each, Keep)), default=0)
        return cls(
            memory=padded_memory(program),
            private=_zeros(max(program.header.dram_bytes - len(program.memory), 0)),
            weight=_zeros(machine.weight_buffer_bytes),
            spike=_zeros(machine.spike_buffer_bytes),
            output=_zeros(machine.output_buffer_bytes),
            constant=_zeros(machine.constant_buffer_bytes),
            channel=_zeros(machine.channel_buffer_bytes),
            mask=_zeros(max(machine.word_mask_buffer_bytes, -(-machine.spike_buffer_bytes // 16))),
            pairing=_zeros(PAIRING_BYTES),
            flags=_zeros(1),
            kept_rows=_zeros(latched),
            kept_neurons=_zeros(latched),
            kept_tokens=_zeros(latched),
        )

    def clear(self) -> None:
        """Back to zero, ready for the next input."""
        for region in self.regions().values():
            region[:] = 0

    def region(self, region: Region) -> NDArray[np.uint8]:
        """A buffer by its number."""
        return {
            Region.WEIGHT: self.weight,
            Region.SPIKE: self.spike,
            Region.OUTPUT: self.output,
            Region.CONSTANT: self.constant,
            Region.CHANNEL: self.channel,
        }[region]

    def latch(self, unit: Unit) -> NDArray[np.uint8]:
        """The kept tokens that a unit latched."""
        return {Unit.PE: self.kept_rows, Unit.NEURON: self.kept_neurons, Unit.SFU: self.kept_tokens}[unit]

    def dram(self, address: int) -> tuple[NDArray[np.uint8], int]:
        """The half of DRAM that `address` lies in, and the offset there."""
        return (self.memory, address) if address < len(self.memory) else (self.private, address - len(self.memory))

    def regions(self) -> dict[str, NDArray[np.uint8]]:
        """All that an instruction can change, by name."""
        names = ("private", "weight", "spike", "output", "constant", "channel", "mask", "pairing", "flags", *LATCHES)
        return {name: getattr(self, name) for name in names}


def _zeros(size: int) -> NDArray[np.uint8]:
    """`size` zero bytes on a cache line, with spare ones behind."""
    whole = np.zeros(size + SPARE_BYTES + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


def padded_memory(program: Program) -> NDArray[np.uint8]:
    """The program's memory image, copied once to where vector loads may read past its end."""
    kept = program.cache.get("memory")
    if kept is None or kept[0] is not program.memory:
        copied = _zeros(len(program.memory))
        copied[:] = program.memory
        copied.flags.writeable = False
        kept = (program.memory, copied)
        program.cache["memory"] = kept
    return kept[1]
