"""What sharing costs the machine: counts and cycles of an `Accumulate` whose rows share beyond pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.instructions import ACCUMULATOR_BYTES, Accumulate
from isa.machine import Machine
from runtime.record import RECORD
from runtime.sharing.schedule import WINDOW_CYCLES, schedule
from runtime.sharing.windows import Window


@dataclass(frozen=True)
class Spent:
    """Of all windows of an instruction, for one output; what was found is found once for all of them."""

    accumulations: int
    merges: int
    copies: int
    stored: int
    """Partial sums written."""
    fetched: int
    """Partial sums read, to make others."""
    merged: int
    """Partial sums added to rows."""
    held: int
    """The most partial sums stored at once."""
    matching: int
    """Bits compared."""
    working: NDArray[np.int64]
    """[windows]: cycles of the PEs for as many outputs as they have lanes."""
    finding: NDArray[np.int64]
    """[windows]: cycles to find what they share."""

    def cycles(self, passes: int) -> int:
        """Of the instruction, in `passes` passes over the lanes: PEs work on a window while the next is matched."""
        following = np.append(self.finding[1:], 0)
        first = int(self.finding[0]) if len(self.finding) else 0
        return first + int(np.maximum(passes * self.working, following).sum())


def spent(windows: Iterable[Window], machine: Machine) -> Spent:
    """What the sums of all windows cost."""
    reuses = [window.reuse for window in windows]
    plans = [schedule(reuse, machine.processing_elements) for reuse in reuses]
    return Spent(
        accumulations=sum(reuse.accumulations for reuse in reuses),
        merges=sum(reuse.merges for reuse in reuses),
        copies=sum(reuse.copies for reuse in reuses),
        stored=sum(reuse.partial for reuse in reuses),
        fetched=sum(plan.fetched for plan in plans),
        merged=sum(plan.merged for plan in plans),
        held=max((reuse.held for reuse in reuses), default=0),
        matching=sum(reuse.matching for reuse in reuses),
        working=np.array([plan.cycles + WINDOW_CYCLES for plan in plans], np.int64),
        finding=np.array([-(-reuse.matching // machine.matching_bits) for reuse in reuses], np.int64),
    )


@dataclass(frozen=True)
class Seen:
    """What the PEs see of an instruction's spikes, under all taps."""

    bits: int
    common: int
    """Of both pixels of a pair."""
    words: int
    """That are not zero, row by row."""


def write_record(
    each: Accumulate,
    seen: Seen,
    cost: Spent,
    outputs: int,
    passes: int,
    machine: Machine,
    record: NDArray[np.int64],
    kept: int | None = None,
) -> None:
    """The record of an instruction with `outputs` outputs left, in `passes` passes over the lanes.

    `kept` pixels are left of all steps; None: all of them.
    """
    pixels = each.steps * each.rows * each.columns if kept is None else kept
    accumulated = pixels * outputs * ACCUMULATOR_BYTES * (1 if each.fresh else 2)
    words = (each.taps * each.steps if kept is None else kept) * -(-each.inputs // 16)
    found = {
        "work": cost.cycles(passes),
        "sop_bit": seen.bits * outputs,
        "sop_value": seen.bits * outputs << each.plane,
        "common": seen.common * outputs,
        "sop_union": cost.accumulations * outputs,
        "merges": cost.merges * outputs,
        "copies": cost.copies * outputs,
        "words_read": seen.words,
        "words_skipped": words - seen.words,
        "weight_buffer_bytes": cost.accumulations * outputs,
        "spike_buffer_bytes": 2 * seen.words,
        "matching_bits": cost.matching,
        "partial_sum_bytes": (cost.stored + cost.fetched) * outputs * -(-machine.accumulator_bits // 8),
        "partial_sums": cost.held,
        "output_buffer_bytes": 2 * cost.merged * outputs * ACCUMULATOR_BYTES
        + (accumulated if each.masks_columns or each.kept else 0),
    }
    for name, value in found.items():
        record[getattr(RECORD, name)] = value
