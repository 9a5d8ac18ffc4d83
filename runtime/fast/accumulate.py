"""One Accumulate: list the events of its spikes and count them, unless known; then add their weight rows."""

from __future__ import annotations

from numba import njit

from runtime.decoded import SPARE_EVENTS
from runtime.fast.events import list_events
from runtime.fast.held import HELD, find, take
from runtime.fast.lockstep import work_in_lockstep
from runtime.fast.pairs import WORD, count_step, put_tail, sum_neighbours, words_inside, work_of_rounds
from runtime.fast.pe import accumulate_step
from runtime.fast.places import ACCUMULATE
from runtime.record import RECORD


@njit
def accumulate(row, memories, scratch, sizes, share, record):
    """All steps of an Accumulate and its counts."""
    sharing = int(share and row[ACCUMULATE.share] != 0)
    slot = find(row, sharing, scratch.held)
    if slot < 0:
        slot = take(row, sharing, scratch.held)
        study(row, memories.spike + row[ACCUMULATE.spikes], scratch, sizes, slot)
    weights, accumulators = memories.weight + row[ACCUMULATE.weights], memories.output + row[ACCUMULATE.accumulators]
    sums_a_step = row[ACCUMULATE.rows] * row[ACCUMULATE.columns] * row[ACCUMULATE.outputs]
    for step in range(row[ACCUMULATE.steps]):
        events, starts = places_of(row, scratch, slot, step)
        accumulate_step(row, weights, accumulators + 4 * step * sums_a_step, events, starts)
    write_record(row, scratch.held[slot], record)


@njit
def places_of(row, scratch, slot, step):
    """Addresses of a step's list of events and of its starts."""
    pixels = row[ACCUMULATE.input_rows] * row[ACCUMULATE.input_columns]
    event = slot * scratch.slot_events + step * (pixels * row[ACCUMULATE.inputs] + SPARE_EVENTS)
    return scratch.events + 4 * event, scratch.starts + 4 * (slot * scratch.slot_starts + step * (pixels + 1))


@njit
def study(row, spikes, scratch, sizes, slot):
    """List and count the spikes of all steps into a slot."""
    held = scratch.held[slot]
    put_tail(row[ACCUMULATE.inputs], scratch.tail)
    for step in range(row[ACCUMULATE.steps]):
        place = spikes + step * row[ACCUMULATE.step_stride]
        events, starts = places_of(row, scratch, slot, step)
        list_events(row, place, events, starts)
        sum_neighbours(row, place, scratch)
        count_step(row, place, scratch, starts, held, step)
    held[HELD.skipped] = words_inside(row) - held[HELD.read]
    if sizes.port == WORD:
        held[HELD.work] = work_in_lockstep(row, spikes, held[HELD.share] != 0, False, sizes)
    else:
        held[HELD.work] = work_of_rounds(row, scratch, sizes)


@njit
def write_record(row, held, record):
    """The counts of the spikes, for this instruction's outputs and plane."""
    outputs, bits, common = row[ACCUMULATE.outputs], held[HELD.bits], held[HELD.common]
    record[RECORD.work] = held[HELD.work]
    record[RECORD.sop_bit] = bits * outputs
    record[RECORD.sop_value] = bits * outputs << row[ACCUMULATE.plane]
    record[RECORD.common] = common * outputs
    record[RECORD.merges] = 2 * outputs * held[HELD.merging] if held[HELD.share] else 0
    record[RECORD.words_read] = held[HELD.read]
    record[RECORD.words_skipped] = held[HELD.skipped]
    record[RECORD.weight_buffer_bytes] = (bits - common if held[HELD.share] else bits) * outputs
    record[RECORD.spike_buffer_bytes] = 2 * held[HELD.read]
