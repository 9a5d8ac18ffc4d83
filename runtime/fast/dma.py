"""Load and Store; and spike words written elsewhere, with the word mask that follows every write."""

from __future__ import annotations

from numba import njit

from isa.word import Region, Traffic
from runtime.fast.channels import any_live, mask_bits
from runtime.fast.held import forget
from runtime.fast.places import LOAD, STORE
from runtime.fast.scalar import copy_bytes, load_u32, popcount, store_16, store_32, store_64
from runtime.fast.vector import nonzero, vector_load
from runtime.record import RECORD

WEIGHT, SPIKE, OUTPUT = int(Region.WEIGHT), int(Region.SPIKE), int(Region.OUTPUT)
COMPRESSED = int(Traffic.SPIKE)

_load_words = vector_load(16, 16)


@njit
def refresh_mask(memories, first_byte, size):
    """Set the word mask bits of all words that bytes first_byte .. first_byte + size - 1 touch; returns how many."""
    word, stop, found = first_byte >> 1, (first_byte + size + 1) >> 1, 0
    while word < stop:
        count = min(stop - word, 16)
        ones = (1 << count) - 1
        bits = nonzero(_load_words(memories.spike + 2 * word)) & ones
        found += popcount(bits)
        place, shift = memories.mask + (word >> 3), word & 7
        kept = load_u32(place) & ~(ones << shift)
        store_32(place, kept | bits << shift)
        word += count
    return found


@njit
def refresh_pixels(memories, place, pixels, stride, size):
    """Word mask bits of `pixels` runs of `size` bytes, at once where they lie side by side."""
    if stride == size:
        refresh_mask(memories, place, pixels * size)
        return
    for pixel in range(pixels):
        refresh_mask(memories, place + pixel * stride, size)


@njit
def put_words(address, word, octet, size, channels):
    """Write the words of a 64-bit word that belong to the pixel, bits behind its last channel cleared."""
    left = channels - 8 * octet
    if left >= 64:
        store_64(address, word)
        return
    word &= (1 << left) - 1
    for offset in range(0, size - octet, 2):
        store_16(address + offset, word >> (8 * offset))


@njit
def count_words(address, size):
    """Non-zero words in `size` bytes."""
    found = 0
    for first in range(0, size, 32):
        bits = nonzero(_load_words(address + first))
        if size - first < 32:
            bits &= (1 << ((size - first) >> 1)) - 1
        found += popcount(bits)
    return found


@njit
def buffer_at(memories, region):
    """Where a buffer starts."""
    if region == WEIGHT:
        return memories.weight
    if region == SPIKE:
        return memories.spike
    return memories.output if region == OUTPUT else memories.constant


@njit
def dram_at(memories, address):
    """Where a byte of DRAM lies: in the program's memory, or behind it in the input's own."""
    if address < memories.memory_bytes:
        return memories.memory + address
    return memories.private + address - memories.memory_bytes


@njit
def load_masked(row, memories, sizes, record):
    """The pieces of a Load that the channel masks leave, stretch by stretch; a burst holds bytes of one stretch."""
    rows, size, burst, merged = row[LOAD.rows], row[LOAD.bytes], sizes.burst_bytes, merged_loops(row)
    row_mask, column_mask = memories.channel + row[LOAD.row_mask], memories.channel + row[LOAD.column_mask]
    stretch, bursts, moved = 0, 0, 0
    for block in range(row[LOAD.blocks]):
        for run in range(rows):
            there = dram_at(memories, row[LOAD.source])
            there += block * row[LOAD.dram_block_stride] + run * row[LOAD.dram_row_stride]
            here = memories.weight + row[LOAD.target]
            here += block * row[LOAD.buffer_block_stride] + run * row[LOAD.buffer_row_stride]
            row_lives = not row[LOAD.masks_rows] or mask_bits(row_mask, run, 1) != 0
            for first in range(0, size, burst):
                count = min(burst, size - first)
                if row_lives and (not row[LOAD.masks_columns] or any_live(column_mask, first, count)):
                    copy_bytes(here + first, there + first, count)
                    stretch += count
                else:
                    bursts += (stretch + burst - 1) // burst
                    moved += stretch
                    stretch = 0
            if merged == 0 or (merged == 1 and run == rows - 1):
                bursts += (stretch + burst - 1) // burst
                moved += stretch
                stretch = 0
    record[RECORD.work] = bursts + (stretch + burst - 1) // burst
    record[RECORD.dram_weight_bytes] = moved + stretch
    record[RECORD.weight_buffer_bytes] = moved + stretch


@njit
def copy(row, loads, memories, scratch, sizes, record):
    """All runs of a Load or Store; the two have the same columns but for which address is which."""
    if loads and (row[LOAD.masks_rows] or row[LOAD.masks_columns]):
        load_masked(row, memories, sizes, record)
        return
    dram, near = (row[LOAD.source], row[LOAD.target]) if loads else (row[STORE.target], row[STORE.source])
    far = dram_at(memories, dram)
    here, size, rows = buffer_at(memories, row[LOAD.region]), row[LOAD.bytes], row[LOAD.rows]
    compressed, merged = row[LOAD.traffic] == COMPRESSED, merged_loops(row)
    mask_bytes = (size // 2 + 7) >> 3
    group, bursts, words = 0, 0, 0
    if loads and row[LOAD.region] == SPIKE:
        last = (row[LOAD.blocks] - 1) * row[LOAD.buffer_block_stride] + (rows - 1) * row[LOAD.buffer_row_stride]
        forget(scratch.held, near, last + size)
    for block in range(row[LOAD.blocks]):
        for run in range(rows):
            there = far + block * row[LOAD.dram_block_stride] + run * row[LOAD.dram_row_stride]
            offset = near + block * row[LOAD.buffer_block_stride] + run * row[LOAD.buffer_row_stride]
            if loads:
                copy_bytes(here + offset, there, size)
                if row[LOAD.region] == SPIKE:
                    refresh_mask(memories, offset, size)
            else:
                copy_bytes(there, here + offset, size)
            if compressed:
                found = count_words(here + offset, size)
                words += found
                group += 2 * found + mask_bytes
                if merged == 0 or (merged == 1 and run == rows - 1):
                    bursts += (group + sizes.burst_bytes - 1) // sizes.burst_bytes
                    group = 0
    if compressed:
        record[RECORD.work] = bursts + (group + sizes.burst_bytes - 1) // sizes.burst_bytes
        record[RECORD.dram_spike_bytes] = 2 * words
        record[RECORD.spike_buffer_bytes] = 2 * words
        record[RECORD.dram_mask_bytes] = mask_bytes * row[LOAD.blocks] * rows


@njit
def merged_loops(row):
    """As `isa.instructions.Copy.merged`."""
    inner = row[LOAD.rows] == 1 or row[LOAD.dram_row_stride] == row[LOAD.bytes]
    outer = row[LOAD.blocks] == 1 or row[LOAD.dram_block_stride] == row[LOAD.rows] * row[LOAD.bytes]
    if not inner:
        return 0
    return 2 if outer else 1
