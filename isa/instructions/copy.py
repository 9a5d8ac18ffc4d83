"""Copies between DRAM and the buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from isa.errors import CStepError
from isa.instructions.sizes import (
    SPIKE_WORD_BYTES,
    ceil_divide,
    mask_bytes,
)
from isa.machine import Machine
from isa.word import (
    Address,
    Choice,
    Cost,
    Count,
    Flag,
    Instruction,
    Region,
    Strided,
    Traffic,
    Unit,
    reads,
    writes,
)


@dataclass(frozen=True, kw_only=True)
class Copy(Instruction):
    """blocks x rows runs of `bytes` bytes from source to target, each side with its own strides."""

    region: Annotated[int, Choice(3, Region)]
    traffic: Annotated[int, Choice(3, Traffic)]
    blocks: Annotated[int, Count(12, 1)]
    rows: Annotated[int, Count(14, 1)]
    bytes: Annotated[int, Count(18, 1)]
    dram_block_stride: Annotated[int, Count(26)]
    dram_row_stride: Annotated[int, Count(22)]
    buffer_block_stride: Annotated[int, Count(18)]
    buffer_row_stride: Annotated[int, Count(18)]

    def _shapes(self) -> tuple[Strided, Strided]:
        counts = (self.blocks, self.rows)
        return (
            Strided(self.bytes, counts, (self.dram_block_stride, self.dram_row_stride)),
            Strided(self.bytes, counts, (self.buffer_block_stride, self.buffer_row_stride)),
        )

    @property
    def merged(self) -> int:
        """How many of the two loops are contiguous in DRAM, innermost first: bursts run on across them."""
        rows = self.rows == 1 or self.dram_row_stride == self.bytes
        blocks = self.blocks == 1 or self.dram_block_stride == self.rows * self.bytes
        return 2 if rows and blocks else 1 if rows else 0

    @property
    def is_compressed(self) -> bool:
        """Spikes travel as one mask bit a word, rounded up to bytes a run, and the non-zero words."""
        return self.traffic == Traffic.SPIKE

    def bursts(self, machine: Machine) -> int:
        """Bursts of an uncompressed copy."""
        runs, size = ((self.blocks * self.rows, 1), (self.blocks, self.rows), (1, self.blocks * self.rows))[self.merged]
        return runs * ceil_divide(size * self.bytes, machine.burst_bytes)

    def cost(self, machine: Machine) -> Cost:
        numerator, denominator = machine.cycles_per_burst
        if self.is_compressed:
            return Cost(machine.dram_latency, numerator, denominator)
        return Cost(machine.dram_latency + ceil_divide(self.bursts(machine) * numerator, denominator))

    def counts(self) -> dict[str, int]:
        if self.is_compressed:
            return {}
        moved = self.blocks * self.rows * self.bytes
        return {f"dram_{Traffic(self.traffic).name.lower()}_bytes": moved, _BUFFER_BYTES[Region(self.region)]: moved}

    def check(self) -> None:
        if self.region == Region.DRAM:
            raise CStepError(f"{self.mnemonic}: region=0 (dram); a copy goes between DRAM and a buffer")
        if self.region == Region.CHANNEL:
            raise CStepError(f"{self.mnemonic}: region=5 (channel); counts and masks never leave their buffer")
        if self.is_compressed and (self.region != Region.SPIKE or self.bytes % SPIKE_WORD_BYTES):
            raise CStepError(f"{self.mnemonic}: spikes move in whole words between DRAM and the spike buffer")


_BUFFER_BYTES = {
    Region.DRAM: "dram_bytes",
    Region.WEIGHT: "weight_buffer_bytes",
    Region.SPIKE: "spike_buffer_bytes",
    Region.OUTPUT: "output_buffer_bytes",
    Region.CONSTANT: "constant_buffer_bytes",
}


@dataclass(frozen=True, kw_only=True)
class Load(Copy, opcode=0x01, unit=Unit.DMA):
    """buffer[target] = dram[source]: blocks x rows runs of bytes; spikes also set their word mask bits.

    Weights may be guarded by channel masks. With `masks_rows` a run travels only where bit `row` of `row_mask` is 1
    (a row is an input channel). With `masks_columns` a run travels in pieces of one burst, counted from its start, and
    a piece only where bit i of `column_mask` is 1 for any of its bytes i (a byte of a run is an output channel). What
    does not travel leaves the buffer as it was.
    Cycles: latency + ceil(bursts * cycles per burst); runs that are contiguous in DRAM share bursts, where none
    between them is left out; of spikes, only the word mask and the non-zero words travel.
    """

    source: Annotated[int, reads(Region.DRAM, 32)]
    target: Annotated[int, Address(18, "writes", region_field="region")]
    row_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_rows", align=2)] = 0
    column_mask: Annotated[int, reads(Region.CHANNEL, 14, only_if="masks_columns", align=2)] = 0
    masks_rows: Annotated[int, Flag()] = 0
    masks_columns: Annotated[int, Flag()] = 0

    def extents(self) -> dict[str, Strided]:
        dram, buffer = self._shapes()
        return {
            "source": dram,
            "target": buffer,
            "row_mask": Strided(mask_bytes(self.rows)),
            "column_mask": Strided(mask_bytes(self.bytes)),
        }

    @property
    def is_masked(self) -> bool:
        """Whether what travels depends on channel masks."""
        return bool(self.masks_rows or self.masks_columns)

    def cost(self, machine: Machine) -> Cost:
        if self.is_masked:
            numerator, denominator = machine.cycles_per_burst
            return Cost(machine.dram_latency, numerator, denominator)
        return super().cost(machine)

    def counts(self) -> dict[str, int]:
        if not self.is_masked:
            return super().counts()
        rows, columns = mask_bytes(self.rows), mask_bytes(self.bytes)
        return {"channel_buffer_bytes": rows * self.masks_rows + columns * self.masks_columns}

    def check(self) -> None:
        super().check()
        if self.is_masked and (self.traffic != Traffic.WEIGHT or self.region != Region.WEIGHT):
            raise CStepError("load: only weights are guarded by channel masks")


@dataclass(frozen=True, kw_only=True)
class Store(Copy, opcode=0x02, unit=Unit.DMA):
    """dram[target] = buffer[source]: blocks x rows runs of bytes.

    Cycles: as `Load`.
    """

    source: Annotated[int, Address(18, "reads", region_field="region")]
    target: Annotated[int, writes(Region.DRAM, 32)]

    def extents(self) -> dict[str, Strided]:
        dram, buffer = self._shapes()
        return {"source": buffer, "target": dram}
