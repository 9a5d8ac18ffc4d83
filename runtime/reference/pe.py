"""Accumulate, Depthwise and Multiply: every tap gathered (im2col), one product, and counts of the gathered bits."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import (
    ACCUMULATOR_BYTES,
    PARTNER_BYTES,
    Accumulate,
    Depthwise,
    Multiply,
    Pair,
    Window,
    words_of,
)
from isa.machine import Machine
from isa.word import Sharing
from runtime.record import RECORD
from runtime.reference.channels import Live, live_channels, live_groups
from runtime.reference.spikes import Bits, bits_of, int32_at, put_int32, read_words, word_indices, words_from
from runtime.reference.tokens import Kept, kept_tokens
from runtime.sharing.reuse import execute
from runtime.sharing.spent import Seen, spent, write_record
from runtime.sharing.windows import Pairing, windows_of
from runtime.sharing.windows import Window as SharedWindow
from runtime.state import State

Integers = NDArray[np.int64]
Value = TypeVar("Value", bound=np.generic)


def accumulate(each: Accumulate, state: State, machine: Machine, share: bool, record: Integers) -> None:
    """accumulator += (spikes @ weights) << plane, counted as the PEs do it."""
    gathered, live = _spikes_under_taps(each, state), _live(each, state, each.outputs)
    kept = kept_tokens(state, each.unit, each.kept, each.steps, each.columns)
    if each.kept:
        gathered = np.where(kept[:, None, :, None, None], gathered, 0).astype(np.uint8)
    windows = _windows(each, gathered, kept, state, machine) if share and each.reuses else None
    sums = _product(each, gathered, state) if windows is None else _reused(each, windows, state)
    sums <<= each.plane
    _add(each, state, sums, live)
    check_range(each.mnemonic, state.output, each.accumulators, sums.size, machine)
    passes = live_groups(live, machine.lanes)
    inside = np.broadcast_to(_inside(each), gathered.shape[:-1])
    if each.kept:
        gathered, inside = _compacted(gathered, kept), _compacted(inside, kept)
    if windows is not None:
        seen, left = Seen(*_seen(gathered)), int(kept.sum()) if each.kept else None
        write_record(each, seen, spent(windows, machine), int(live.sum()), passes, machine, record, left)
        return
    _count(each, gathered, inside, live, machine, share and each.sharing == Sharing.PAIR, record)
    if each.masks_columns or each.reuses:
        record[RECORD.work] *= passes
    if each.masks_columns or each.kept:
        accumulated = int(kept.sum()) * each.rows * int(live.sum()) * ACCUMULATOR_BYTES
        record[RECORD.output_buffer_bytes] = accumulated if each.fresh else 2 * accumulated


def _compacted(values: NDArray[Value], kept: Kept) -> NDArray[Value]:
    """The kept pixels of every step moved together, [steps, 1, most that a step keeps, ...], zeros behind them."""
    most = int(kept.sum(axis=1).max(initial=1))
    result = np.zeros((len(values), 1, most, *values.shape[3:]), values.dtype)
    for step, chosen in enumerate(kept):
        result[step, 0, : int(chosen.sum())] = values[step, 0, chosen]
    return result


def latch(each: Pair, state: State) -> None:
    """The pairing that following Accumulates use: rows, whether they are timesteps, and the table."""
    words, table = state.pairing.view("<u2"), slice(each.table, each.table + PARTNER_BYTES * each.rows)
    words[:2] = each.rows, each.timesteps
    words[2 : 2 + each.rows] = state.constant[table].view("<u2")


def depthwise(each: Depthwise, state: State, machine: Machine, record: Integers) -> None:
    """accumulator += (spikes * weights summed over taps) << plane, channel by channel."""
    gathered, live = _spikes_under_taps(each, state), _live(each, state, each.inputs)
    gathered = np.where(live, gathered, 0)
    size = gathered.shape[3] * each.inputs
    weights = state.weight[each.weights : each.weights + size].view(np.int8).reshape(-1, each.inputs)
    sums = np.einsum("srctk,tk->srck", gathered.astype(np.int64), weights.astype(np.int64))
    _add(each, state, sums << each.plane, live)
    check_range(each.mnemonic, state.output, each.accumulators, sums.size, machine)
    _count_depthwise(each, gathered, machine, record)
    if each.masks_columns:
        record[RECORD.output_buffer_bytes] = _accumulator_bytes(each, live)


def _windows(each: Accumulate, gathered: Bits, kept: Kept, state: State, machine: Machine) -> list[SharedWindow]:
    """The windows of its rows, and how each makes its sums."""
    bits, rows = gathered.reshape(each.steps, each.rows * each.columns, -1), kept if each.kept else None
    return list(windows_of(bits, Sharing(each.sharing), machine, Pairing.of(state.pairing), rows))


def _reused(each: Accumulate, windows: list[SharedWindow], state: State) -> Integers:
    """[steps, rows, columns, outputs], made sum by sum as the windows share."""
    depth = each.kernel_rows * each.kernel_columns * each.inputs
    weights = state.weight[each.weights : each.weights + depth * each.outputs].view(np.int8)
    sums = np.zeros((each.steps * each.rows * each.columns, each.outputs), np.int64)
    for window in windows:
        sums[window.rows] = execute(window.reuse, weights.reshape(depth, each.outputs))
    return sums.reshape(each.steps, each.rows, each.columns, each.outputs)


def _seen(gathered: Bits) -> tuple[int, int, int]:
    """Bits under all taps, those that both pixels of a pair have, and words that are not zero, row by row."""
    left, right = _pairs(gathered)
    words = words_from(np.ascontiguousarray(gathered, np.uint8))
    return int(gathered.sum()), int((left & right).sum()), int(np.count_nonzero(words))


def _live(each: Accumulate | Depthwise | Multiply, state: State, channels: int) -> Live:
    """[channels]: the output channels that no mask leaves out."""
    return live_channels(state, each.masks_columns, each.column_mask, channels)


def _accumulator_bytes(each: Accumulate | Depthwise | Multiply, live: Live) -> int:
    """What is read and written of the accumulators left."""
    accumulated = each.steps * each.rows * each.columns * int(live.sum()) * ACCUMULATOR_BYTES
    return accumulated if each.fresh else 2 * accumulated


def _spikes_under_taps(each: Accumulate | Depthwise, state: State) -> Bits:
    """Bits [steps, rows, columns, tap, inputs], 0 where the row mask has a 0."""
    strides = (each.step_stride, each.pixel_stride)
    counts = (each.steps, each.input_rows * each.input_columns)
    words = read_words(state, word_indices(each.spikes, strides, counts, words_of(each.inputs)))
    bits = bits_of(words, each.inputs)
    return taps(each, bits * live_channels(state, each.masks_rows, each.row_mask, each.inputs))


def multiply(each: Multiply, state: State, machine: Machine, record: Integers) -> None:
    """accumulator += values @ weights, int8 both."""
    pixels = each.input_rows * each.input_columns
    steps = each.step_stride * np.arange(each.steps)[:, None, None]
    places = each.values + steps + each.pixel_stride * np.arange(pixels)[:, None] + np.arange(each.inputs)
    gathered = taps(each, state.spike.view(np.int8)[places])
    sums, live = _product(each, gathered, state), _live(each, state, each.outputs)
    _add(each, state, sums, live)
    check_range(each.mnemonic, state.output, each.accumulators, sums.size, machine)
    if each.masks_columns:
        channels = int(live.sum())
        record[RECORD.work] = record[RECORD.mac] = each.taps * each.steps * each.inputs * channels
        record[RECORD.weight_buffer_bytes] = each.kernel_rows * each.kernel_columns * each.inputs * channels
        record[RECORD.output_buffer_bytes] = _accumulator_bytes(each, live)


def taps(each: Window, values: NDArray[Value], outside: int = 0) -> NDArray[Value]:
    """[steps, rows, columns, tap, inputs] of values [steps, input pixels, inputs], `outside` beyond the borders."""
    bottom = max((each.rows - 1) * each.stride + each.kernel_rows - each.top - each.input_rows, 0)
    right = max((each.columns - 1) * each.stride + each.kernel_columns - each.left - each.input_columns, 0)
    image = values.reshape(each.steps, each.input_rows, each.input_columns, each.inputs)
    padded = np.pad(image, ((0, 0), (each.top, bottom), (each.left, right), (0, 0)), constant_values=outside)
    rows = np.arange(each.rows)[:, None] * each.stride + np.arange(each.kernel_rows)
    columns = np.arange(each.columns)[:, None] * each.stride + np.arange(each.kernel_columns)
    gathered = padded[:, rows[:, None, :, None], columns[None, :, None, :]]
    return gathered.reshape(each.steps, each.rows, each.columns, each.kernel_rows * each.kernel_columns, each.inputs)


def _product(each: Accumulate | Multiply, gathered: NDArray[np.generic], state: State) -> Integers:
    """[steps, rows, columns, outputs]; the sums stay far below 2**53, so float64 is exact."""
    depth = gathered.shape[3] * each.inputs
    weights = state.weight[each.weights : each.weights + depth * each.outputs].view(np.int8)
    sums = gathered.reshape(-1, depth).astype(np.float64) @ weights.reshape(depth, each.outputs).astype(np.float64)
    return sums.astype(np.int64).reshape(each.steps, each.rows, each.columns, each.outputs)


def _add(each: Accumulate | Depthwise | Multiply, state: State, sums: Integers, live: Live) -> None:
    """Add sums [..., channels] to the accumulators; those of channels that are not live become 0."""
    before = 0 if each.fresh else int32_at(state.output, each.accumulators, sums.size).reshape(sums.shape)
    put_int32(state.output, each.accumulators, np.where(live, before + sums, 0))


def check_range(what: str, output: NDArray[np.uint8], address: int, count: int, machine: Machine) -> None:
    """The compiler proves that no accumulator passes the machine's width; here it is seen to hold."""
    values = int32_at(output, address, count)
    top = 1 << (machine.accumulator_bits - 1)
    if values.size and not (-top <= values.min() and values.max() < top):
        found = f"{values.min()}..{values.max()}"
        raise CStepError(f"{what}: accumulators {found} do not fit {machine.accumulator_bits} bits (-{top}..{top - 1})")


def _inside(each: Window) -> Bits:
    """[rows, columns, tap]: 1 where the tap lies inside the borders."""
    ones = np.ones((each.steps, each.input_rows * each.input_columns, each.inputs), np.uint8)
    return taps(each, ones)[0, ..., 0].astype(np.uint8)


def _pairs(values: NDArray[np.generic]) -> tuple[Integers, Integers]:
    """Left and right pixels [steps, pairs, ...] of [steps, rows, columns, ...]; a lone last pixel's partner is 0."""
    columns = values.shape[2]
    even = np.pad(values, ((0, 0), (0, 0), (0, columns % 2), *((0, 0),) * (values.ndim - 3)))
    shape = (values.shape[0], values.shape[1] * ((columns + 1) // 2), *values.shape[3:])
    return even[:, :, 0::2].reshape(shape).astype(np.int64), even[:, :, 1::2].reshape(shape).astype(np.int64)


def _count(
    each: Accumulate, gathered: Bits, inside: Bits, live: Live, machine: Machine, share: bool, record: Integers
) -> None:
    """What the PEs do for the outputs left; the work of one pass over them.

    `gathered` [steps, rows, columns, tap, inputs] are the bits, `inside` [steps, rows, columns, tap] which taps exist.
    """
    outputs = int(live.sum())
    left, right = _pairs(gathered)
    inside_of_pairs = np.maximum(*_pairs(inside))
    bits, both = left + right, left & right
    tasks = bits - both if share else bits
    common = both.sum(axis=(2, 3))
    union_words = words_from((left | right).astype(np.uint8))
    record[RECORD.sop_bit] = bits.sum() * outputs
    record[RECORD.sop_value] = bits.sum() * outputs << each.plane
    record[RECORD.common] = common.sum() * outputs
    record[RECORD.sop_union] = record[RECORD.sop_bit] - record[RECORD.common]
    record[RECORD.merges] = 2 * outputs * np.count_nonzero(common) if share else 0
    record[RECORD.words_read] = np.count_nonzero(union_words)
    all_words = int(inside_of_pairs.sum()) * words_of(each.inputs)
    record[RECORD.words_skipped] = all_words - record[RECORD.words_read]
    record[RECORD.weight_buffer_bytes] = tasks.sum() * outputs
    record[RECORD.spike_buffer_bytes] = 2 * record[RECORD.words_read]
    overhead = (4 + (2 * (common > 0) if share else np.zeros_like(common))) * inside_of_pairs.any(axis=2)
    width = -(-tasks.shape[3] // 16) * 16
    padded = np.pad(tasks, ((0, 0), (0, 0), (0, 0), (0, width - tasks.shape[3])))
    record[RECORD.work] = _work(padded.reshape(*tasks.shape[:2], -1, 16).sum(axis=-1), overhead, machine)


def _count_depthwise(each: Depthwise, gathered: NDArray[np.generic], machine: Machine, record: Integers) -> None:
    """A PE takes a cycle, a word and sixteen weights for every non-zero word under the taps of its two pixels."""
    held = words_from(gathered.astype(np.uint8)) != 0
    left, right = _pairs(held)
    by_word = (left + right).reshape(*left.shape[:2], -1)
    record[RECORD.sop_bit] = record[RECORD.sop_union] = np.count_nonzero(gathered)
    record[RECORD.sop_value] = np.count_nonzero(gathered) << each.plane
    record[RECORD.words_read] = np.count_nonzero(held)
    record[RECORD.words_skipped] = each.taps * each.steps * words_of(each.inputs) - np.count_nonzero(held)
    record[RECORD.weight_buffer_bytes] = 16 * np.count_nonzero(held)
    record[RECORD.spike_buffer_bytes] = 2 * np.count_nonzero(held)
    record[RECORD.work] = _work(by_word, np.full(by_word.shape[:2], 4), machine)


def _work(by_word: Integers, overhead: Integers, machine: Machine) -> int:
    """Cycles for work [steps, pairs, tap and word] and overhead [steps, pairs], as the weight port has it."""
    total, busy = 0, np.zeros((machine.window, machine.pairs), np.int64)
    for step in range(0, by_word.shape[0], machine.window):
        for pair in range(0, by_word.shape[1], machine.pairs):
            here = (slice(step, step + machine.window), slice(pair, pair + machine.pairs))
            if machine.weight_port == "word":
                total += int(by_word[here].max(axis=(0, 1)).sum() + overhead[here].max())
            one_round = by_word[here].sum(axis=-1) + overhead[here]
            if machine.weight_port == "round":
                total += int(one_round.max())
            busy[: one_round.shape[0], : one_round.shape[1]] += one_round
    return int(busy.max()) if machine.weight_port == "free" else total
