"""Load and Store, run by run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from isa.instructions import Copy, Load, Store
from isa.machine import Machine
from isa.word import Region
from runtime.record import RECORD
from runtime.reference.channels import live_channels
from runtime.reference.spikes import refresh_mask
from runtime.state import State


def copy(each: Load | Store, state: State, machine: Machine, record: NDArray[np.int64]) -> None:
    """Move every run; for spikes, count the words and mask bits that travel."""
    if isinstance(each, Load) and each.is_masked:
        _load_masked(each, state, machine, record)
        return
    buffer = state.region(Region(each.region))
    dram, first = state.dram(each.source if isinstance(each, Load) else each.target)
    near = each.target if isinstance(each, Load) else each.source
    runs: list[int] = []
    for dram_offset, buffer_offset in _run_offsets(each):
        far, here = first + dram_offset, near + buffer_offset
        if isinstance(each, Load):
            buffer[here : here + each.bytes] = dram[far : far + each.bytes]
            if each.region == Region.SPIKE:
                refresh_mask(state, here, each.bytes)
        else:
            dram[far : far + each.bytes] = buffer[here : here + each.bytes]
        moved = dram[far : far + each.bytes].reshape(-1, 2) if each.is_compressed else np.zeros((0, 2))
        runs.append(int(np.count_nonzero(moved.any(axis=1))))
    if each.is_compressed:
        _count_spikes(each, runs, machine, record)


def _load_masked(each: Load, state: State, machine: Machine, record: NDArray[np.int64]) -> None:
    """Move the pieces that the masks leave, and count them and their bursts: every stretch of them has its own.

    Stretches end at a piece left out and, as without masks, behind a run or block that the next one does not touch.
    """
    rows = live_channels(state, each.masks_rows, each.row_mask, each.rows)
    columns = live_channels(state, each.masks_columns, each.column_mask, each.bytes)
    dram, source = state.dram(each.source)
    runs_a_stretch = (1, each.rows, each.blocks * each.rows)[each.merged]
    stretches = [0]
    for number, (dram_offset, buffer_offset) in enumerate(_run_offsets(each)):
        stretches += [0] if number % runs_a_stretch == 0 else []
        for first in range(0, each.bytes, machine.burst_bytes):
            stop = min(first + machine.burst_bytes, each.bytes)
            if not (rows[number % each.rows] and columns[first:stop].any()):
                stretches.append(0)
                continue
            far, here = source + dram_offset, each.target + buffer_offset
            state.weight[here + first : here + stop] = dram[far + first : far + stop]
            stretches[-1] += stop - first
    record[RECORD.work] = sum(-(-stretch // machine.burst_bytes) for stretch in stretches)
    record[RECORD.dram_weight_bytes] = record[RECORD.weight_buffer_bytes] = sum(stretches)


def _run_offsets(each: Copy) -> Iterator[tuple[int, int]]:
    for block in range(each.blocks):
        for row in range(each.rows):
            dram = block * each.dram_block_stride + row * each.dram_row_stride
            yield dram, block * each.buffer_block_stride + row * each.buffer_row_stride


def _count_spikes(each: Copy, runs: list[int], machine: Machine, record: NDArray[np.int64]) -> None:
    mask_bytes = -(-(each.bytes // 2) // 8)
    runs_a_group = {0: 1, 1: each.rows, 2: len(runs)}[each.merged]
    groups = [runs[start : start + runs_a_group] for start in range(0, len(runs), runs_a_group)]
    sizes = [2 * sum(group) + mask_bytes * len(group) for group in groups]
    record[RECORD.work] = sum(-(-size // machine.burst_bytes) for size in sizes)
    record[RECORD.dram_spike_bytes] = record[RECORD.spike_buffer_bytes] = 2 * sum(runs)
    record[RECORD.dram_mask_bytes] = mask_bytes * len(runs)
