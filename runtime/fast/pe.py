"""Accumulate and Multiply, driven by the set bits: a weight row is added for every event, in vector registers."""

from __future__ import annotations

from typing import Any

from numba import njit

from runtime.fast.channels import any_live, clear_silent, live_channels
from runtime.fast.dense import HAS_DOT, multiply_dense
from runtime.fast.depthwise import taps_inside
from runtime.fast.places import ACCUMULATE, MULTIPLY, PAIR
from runtime.fast.scalar import copy_bytes, load_i8, load_i32, store_16
from runtime.fast.vector import store_lanes, vector_load, vector_splat, vector_store, vector_widen
from runtime.record import RECORD

MOST_EVENTS = 256
"""So many int8 weights always fit a 16-bit sum."""

_to16, _to32 = vector_widen(16), vector_widen(32)


def _accumulate_block(lanes: int) -> Any:
    """A kernel for `lanes` outputs at once."""
    load_weights, load_sums = vector_load(lanes, 8), vector_load(lanes, 32)
    splat16, splat32 = vector_splat(lanes, 16), vector_splat(lanes, 32)

    @njit
    def accumulate_block(row, weights, accumulators, kept, events, starts):
        """One step: accumulators of all pixels, `kept` (at most `lanes`) outputs from the given addresses on."""
        inputs, outputs = row[ACCUMULATE.inputs], row[ACCUMULATE.outputs]
        input_rows, input_columns = row[ACCUMULATE.input_rows], row[ACCUMULATE.input_columns]
        kernel_columns, stride = row[ACCUMULATE.kernel_columns], row[ACCUMULATE.stride]
        plane, fresh = splat32(row[ACCUMULATE.plane]), row[ACCUMULATE.fresh]
        keep = -1 if kept == 64 else (1 << kept) - 1
        for r in range(row[ACCUMULATE.rows]):
            for c in range(row[ACCUMULATE.columns]):
                column = c * stride - row[ACCUMULATE.left]
                near, far = max(column, 0), min(column + kernel_columns, input_columns)
                total, sums, room = splat32(0), splat16(0), MOST_EVENTS
                for i in range(row[ACCUMULATE.kernel_rows]):
                    y = r * stride + i - row[ACCUMULATE.top]
                    if y < 0 or y >= input_rows or far <= near:
                        continue
                    event = events + 4 * load_i32(starts + 4 * (y * input_columns + near))
                    stop = events + 4 * load_i32(starts + 4 * (y * input_columns + far))
                    base = weights + (i * kernel_columns - column) * inputs * outputs
                    while event < stop:
                        count = min((stop - event) >> 2, room)
                        for _ in range(count):
                            sums += _to16(load_weights(base + load_i32(event) * outputs))
                            event += 4
                        room -= count
                        if room == 0:
                            total += _to32(sums)
                            sums, room = splat16(0), MOST_EVENTS
                total = (total + _to32(sums)) << plane
                if not fresh:
                    total += load_sums(accumulators)
                if kept == lanes:
                    vector_store(accumulators, total)
                else:
                    store_lanes(accumulators, total, keep)
                accumulators += 4 * outputs

    return accumulate_block


def _multiply_block(lanes: int) -> Any:
    """A kernel for `lanes` outputs at once."""
    load_weights, load_sums = vector_load(lanes, 8), vector_load(lanes, 32)
    splat16, splat32 = vector_splat(lanes, 16), vector_splat(lanes, 32)

    @njit
    def multiply_block(row, values, weights, accumulators, kept):
        """One step, as `accumulate_block`; a product of two int8 fits 16 bits."""
        inputs, outputs = row[MULTIPLY.inputs], row[MULTIPLY.outputs]
        input_rows, input_columns = row[MULTIPLY.input_rows], row[MULTIPLY.input_columns]
        stride, pixel_stride = row[MULTIPLY.stride], row[MULTIPLY.pixel_stride]
        keep = -1 if kept == 64 else (1 << kept) - 1
        for r in range(row[MULTIPLY.rows]):
            for c in range(row[MULTIPLY.columns]):
                total = splat32(0) if row[MULTIPLY.fresh] else load_sums(accumulators)
                weight = weights
                for i in range(row[MULTIPLY.kernel_rows]):
                    y = r * stride + i - row[MULTIPLY.top]
                    for j in range(row[MULTIPLY.kernel_columns]):
                        x = c * stride + j - row[MULTIPLY.left]
                        if y < 0 or y >= input_rows or x < 0 or x >= input_columns:
                            weight += inputs * outputs
                            continue
                        value = values + (y * input_columns + x) * pixel_stride
                        for k in range(inputs):
                            total += _to32(_to16(load_weights(weight)) * splat16(load_i8(value + k)))
                            weight += outputs
                if kept == lanes:
                    vector_store(accumulators, total)
                else:
                    store_lanes(accumulators, total, keep)
                accumulators += 4 * outputs

    return multiply_block


_accumulate_64, _accumulate_32, _accumulate_16 = _accumulate_block(64), _accumulate_block(32), _accumulate_block(16)
_multiply_64, _multiply_32, _multiply_16 = _multiply_block(64), _multiply_block(32), _multiply_block(16)


@njit
def accumulate_step(row, memories, weights, accumulators, events, starts):
    """Add all events of one step to its accumulators, in blocks of outputs, those left out of which none is live."""
    outputs, mask = row[ACCUMULATE.outputs], memories.channel + row[ACCUMULATE.column_mask]
    for first in range(0, outputs, 64):
        kept = min(outputs - first, 64)
        if row[ACCUMULATE.masks_columns] and not any_live(mask, first, kept):
            continue
        if kept > 32:
            _accumulate_64(row, weights + first, accumulators + 4 * first, kept, events, starts)
        elif kept > 16:
            _accumulate_32(row, weights + first, accumulators + 4 * first, kept, events, starts)
        else:
            _accumulate_16(row, weights + first, accumulators + 4 * first, kept, events, starts)


@njit
def multiply(row, memories, scratch, record):
    """All steps of a Multiply, and what a channel mask leaves of its counts."""
    if HAS_DOT and row[MULTIPLY.outputs] >= 16:
        multiply_dense(row, memories, scratch)
    else:
        multiply_blocks(row, memories)
    if row[MULTIPLY.masks_columns]:
        leave_out(row, memories, record)


@njit
def latch(row, memories):
    """Keep a pairing: how many rows, whether they are timesteps, and the table."""
    store_16(memories.pairing, row[PAIR.rows])
    store_16(memories.pairing + 2, row[PAIR.timesteps])
    copy_bytes(memories.pairing + 4, memories.constant + row[PAIR.table], 2 * row[PAIR.rows])


@njit
def leave_out(row, memories, record):
    """Clear the accumulators of silent outputs, and count the others."""
    outputs, mask = row[MULTIPLY.outputs], memories.channel + row[MULTIPLY.column_mask]
    pixels = row[MULTIPLY.steps] * row[MULTIPLY.rows] * row[MULTIPLY.columns]
    clear_silent(memories.output + row[MULTIPLY.accumulators], mask, outputs, pixels)
    channels = live_channels(mask, outputs)
    record[RECORD.mac] = taps_inside(row) * row[MULTIPLY.inputs] * channels
    record[RECORD.work] = record[RECORD.mac]
    taps = row[MULTIPLY.kernel_rows] * row[MULTIPLY.kernel_columns]
    record[RECORD.weight_buffer_bytes] = taps * row[MULTIPLY.inputs] * channels
    record[RECORD.output_buffer_bytes] = pixels * channels * (4 if row[MULTIPLY.fresh] else 8)


@njit
def multiply_blocks(row, memories):
    """All steps, in blocks of outputs."""
    outputs = row[MULTIPLY.outputs]
    weights = memories.weight + row[MULTIPLY.weights]
    for step in range(row[MULTIPLY.steps]):
        values = memories.spike + row[MULTIPLY.values] + step * row[MULTIPLY.step_stride]
        place = step * row[MULTIPLY.rows] * row[MULTIPLY.columns] * outputs
        accumulators = memories.output + row[MULTIPLY.accumulators] + 4 * place
        for first in range(0, outputs, 64):
            kept = min(outputs - first, 64)
            if kept > 32:
                _multiply_64(row, values, weights + first, accumulators + 4 * first, kept)
            elif kept > 16:
                _multiply_32(row, values, weights + first, accumulators + 4 * first, kept)
            else:
                _multiply_16(row, values, weights + first, accumulators + 4 * first, kept)
