"""One Accumulate: list the events of a step, add their weight rows, count."""

from __future__ import annotations

from numba import njit

from runtime.fast.events import list_events
from runtime.fast.lockstep import work_in_lockstep
from runtime.fast.pairs import WORD, count_step, put_tail, sum_neighbours, words_inside, work_of_rounds
from runtime.fast.pe import accumulate_step
from runtime.fast.places import ACCUMULATE
from runtime.record import RECORD


@njit
def accumulate(row, memories, scratch, sizes, share, record):
    """All steps of an Accumulate and its counts."""
    sharing = share and row[ACCUMULATE.share] != 0
    spikes = memories.spike + row[ACCUMULATE.spikes]
    weights, accumulators = memories.weight + row[ACCUMULATE.weights], memories.output + row[ACCUMULATE.accumulators]
    sums_a_step = row[ACCUMULATE.rows] * row[ACCUMULATE.columns] * row[ACCUMULATE.outputs]
    put_tail(row[ACCUMULATE.inputs], scratch.tail)
    for step in range(row[ACCUMULATE.steps]):
        place = spikes + step * row[ACCUMULATE.step_stride]
        list_events(row, place, scratch.events, scratch.starts)
        accumulate_step(row, weights, accumulators + 4 * step * sums_a_step, scratch.events, scratch.starts)
        sum_neighbours(row, place, scratch)
        count_step(row, place, scratch, sharing, record, step)
    record[RECORD.words_skipped] = words_inside(row) - record[RECORD.words_read]
    if sizes.port == WORD:
        record[RECORD.work] = work_in_lockstep(row, spikes, sharing, sizes)
    else:
        record[RECORD.work] = work_of_rounds(row, scratch, sizes)
