"""Accumulates of a layer's planes: count their spikes, unless known; then add weight rows, or multiply everything."""

from __future__ import annotations

from numba import njit

from isa.word import Sharing
from runtime.decoded import SPARE_EVENTS
from runtime.fast.channels import clear_silent, live_channels, live_groups, step_of
from runtime.fast.dense import HAS_DOT, accumulate_dense
from runtime.fast.events import count_events, list_events
from runtime.fast.held import HELD, find, take
from runtime.fast.lockstep import work_in_lockstep
from runtime.fast.pairs import WORD, count_step, put_tail, sum_neighbours, words_inside, work_of_rounds
from runtime.fast.pe import accumulate_step
from runtime.fast.places import ACCUMULATE
from runtime.fast.scalar import store_32
from runtime.fast.tokens import compacted, count_kept
from runtime.record import RECORD

PAIRS = int(Sharing.PAIR)
DENSE_SHARE = 16
"""Where more than one in so many products would be with a set bit, all of them are computed (measured)."""


@njit
def accumulate(code, index, planes, memories, scratch, sizes, share, records):
    """An Accumulate and those of the following planes, `planes` instructions in all, and their counts."""
    bits = 0
    for number in range(planes):
        row = code[index + number]
        slot = studied(row, memories, scratch, sizes, int(share and row[ACCUMULATE.sharing] == PAIRS))
        write_record(row, scratch.held[slot], memories, sizes, records[index + number])
        bits += scratch.held[slot, HELD.bits]
    row = code[index]
    if HAS_DOT and row[ACCUMULATE.outputs] >= 16 and bits * DENSE_SHARE > products_of(row):
        accumulate_dense(code, index, planes, memories, scratch)
    else:
        for number in range(planes):
            accumulate_events(code[index + number], memories, scratch, share)
    if row[ACCUMULATE.masks_columns]:
        mask, pixels = memories.channel + row[ACCUMULATE.column_mask], pixels_of(row)
        clear_silent(memories.output + row[ACCUMULATE.accumulators], mask, row[ACCUMULATE.outputs], pixels)


@njit
def pixels_of(row):
    """Output pixels of all steps."""
    return row[ACCUMULATE.steps] * row[ACCUMULATE.rows] * row[ACCUMULATE.columns]


@njit
def products_of(row):
    """Products of one output, borders included."""
    return pixels_of(row) * row[ACCUMULATE.kernel_rows] * row[ACCUMULATE.kernel_columns] * row[ACCUMULATE.inputs]


@njit
def studied(row, memories, scratch, sizes, sharing):
    """The slot that holds the counts of an instruction's spikes."""
    slot = find(row, sharing, scratch.held)
    if slot < 0:
        slot = take(row, sharing, scratch.held)
        study(row, memories, scratch, sizes, slot)
    return slot


@njit
def accumulate_events(row, memories, scratch, share):
    """Add the weight rows of all events, listed on their first use."""
    slot = find(row, int(share and row[ACCUMULATE.sharing] == PAIRS), scratch.held)
    listed = scratch.held[slot, HELD.listed] != 0
    scratch.held[slot, HELD.listed] = 1
    weights, accumulators = memories.weight + row[ACCUMULATE.weights], memories.output + row[ACCUMULATE.accumulators]
    sums_a_step = row[ACCUMULATE.rows] * row[ACCUMULATE.columns] * row[ACCUMULATE.outputs]
    for step in range(row[ACCUMULATE.steps]):
        events, starts = places_of(row, scratch, slot, step)
        if not listed:
            list_events(row, step_of(row, memories, scratch, step), events)
        accumulate_step(row, memories, weights, accumulators + 4 * step * sums_a_step, events, starts)


@njit
def places_of(row, scratch, slot, step):
    """Addresses of a step's list of events and of its starts."""
    pixels = row[ACCUMULATE.input_rows] * row[ACCUMULATE.input_columns]
    event = slot * scratch.slot_events + step * (pixels * row[ACCUMULATE.inputs] + SPARE_EVENTS)
    return scratch.events + 4 * event, scratch.starts + 4 * (slot * scratch.slot_starts + step * (pixels + 1))


@njit
def study(row, memories, scratch, sizes, slot):
    """Count the spikes of all steps into a slot."""
    held = scratch.held[slot]
    put_tail(row[ACCUMULATE.inputs], scratch.tail)
    words = 0
    for step in range(row[ACCUMULATE.steps]):
        place = step_of(row, memories, scratch, step)
        _, starts = places_of(row, scratch, slot, step)
        if row[ACCUMULATE.kept]:
            words += study_kept(row, place, memories, scratch, starts, held, step)
            continue
        count_events(row, place, starts)
        sum_neighbours(row, place, scratch)
        count_step(row, place, scratch, starts, held, step)
    held[HELD.skipped] = (words if row[ACCUMULATE.kept] else words_inside(row)) - held[HELD.read]
    if sizes.port == WORD:
        kept = memories.kept_rows if row[ACCUMULATE.kept] else 0
        spikes = scratch.masked if row[ACCUMULATE.masks_rows] else memories.spike + row[ACCUMULATE.spikes]
        spikes = scratch.compact if row[ACCUMULATE.kept] else spikes
        held[HELD.work] = work_in_lockstep(row, spikes, held[HELD.share] != 0, False, sizes, kept)
    else:
        held[HELD.work] = work_of_rounds(row, scratch, sizes)


@njit
def study_kept(row, place, memories, scratch, starts, held, step):
    """Count one step of kept pixels only, pairs made of those that are left; returns the words of all their pairs."""
    columns = row[ACCUMULATE.columns]
    compact = scratch.compact + step * row[ACCUMULATE.step_stride]
    count = compacted(row, place, memories.kept_rows + step * columns, compact)
    count_events(row, compact, starts)
    sum_neighbours(row, compact, scratch)
    count_step(row, compact, scratch, starts, held, step)
    pairs, all_pairs = (count + 1) >> 1, (columns + 1) >> 1
    for pair in range(pairs, all_pairs):
        store_32(scratch.pairs + 4 * (step * all_pairs + pair), 0)
    count_events(row, place, starts)
    return pairs * ((row[ACCUMULATE.inputs] + 15) >> 4)


@njit
def write_record(row, held, memories, sizes, record):
    """The counts of the spikes, for this instruction's outputs, as many as a mask leaves, and its plane."""
    outputs, bits, common = row[ACCUMULATE.outputs], held[HELD.bits], held[HELD.common]
    record[RECORD.work] = held[HELD.work]
    if row[ACCUMULATE.masks_columns]:
        mask = memories.channel + row[ACCUMULATE.column_mask]
        record[RECORD.work] *= live_groups(mask, outputs, sizes.lanes)
        outputs = live_channels(mask, outputs)
    elif row[ACCUMULATE.sharing] > PAIRS:
        record[RECORD.work] *= (outputs + sizes.lanes - 1) // sizes.lanes
    if row[ACCUMULATE.masks_columns] or row[ACCUMULATE.kept]:
        pixels = pixels_of(row)
        if row[ACCUMULATE.kept]:
            pixels = count_kept(memories.kept_rows, pixels)
        record[RECORD.output_buffer_bytes] = pixels * outputs * (4 if row[ACCUMULATE.fresh] else 8)
    record[RECORD.sop_bit] = bits * outputs
    record[RECORD.sop_value] = bits * outputs << row[ACCUMULATE.plane]
    record[RECORD.common] = common * outputs
    record[RECORD.sop_union] = (bits - common) * outputs
    record[RECORD.merges] = 2 * outputs * held[HELD.merging] if held[HELD.share] else 0
    record[RECORD.words_read] = held[HELD.read]
    record[RECORD.words_skipped] = held[HELD.skipped]
    record[RECORD.weight_buffer_bytes] = (bits - common if held[HELD.share] else bits) * outputs
    record[RECORD.spike_buffer_bytes] = 2 * held[HELD.read]
