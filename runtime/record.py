"""What one run of one instruction is recorded as: a row of int64 whose columns are named here, once."""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """Columns of the record [instructions, columns] that both kernel families fill for every input.

    `work` is the unit's measured work (see `isa.word.Cost`); the others are counters of runtime/counters.py that
    depend on the data. The last five do so under channel masks and kept tokens only (`output_buffer_bytes` also where
    rows share beyond pairs); elsewhere they are counted once a program (`Instruction.counts`). `partial_sums`, the most
    that an instruction stores at once, adds up to nothing, so it is no counter. Columns that an instruction does not
    touch stay 0.
    """

    work: int
    sop_bit: int
    sop_value: int
    common: int
    sop_union: int
    merges: int
    copies: int
    matching_bits: int
    partial_sum_bytes: int
    partial_sums: int
    words_read: int
    words_skipped: int
    weight_buffer_bytes: int
    spike_buffer_bytes: int
    dram_spike_bytes: int
    dram_mask_bytes: int
    dram_weight_bytes: int
    mac: int
    neuron_updates: int
    output_buffer_bytes: int
    constant_buffer_bytes: int


RECORD = Record(*range(len(Record._fields)))
"""Each column's index under its name."""
