"""Attend, the sums and Classify, as their formulas say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import Attend, Classify, Decide, Sum, SumHeads, SumValues, words_of
from isa.machine import Machine
from runtime.record import RECORD
from runtime.reference.pe import check_range
from runtime.reference.spikes import bits_of, int16_at, int32_at, put_int32, read_words, word_indices
from runtime.reference.tokens import kept_tokens
from runtime.state import State

Integers = NDArray[np.int64]


def attend(each: Attend, state: State, machine: Machine, record: Integers) -> None:
    """Scores of queries with keys, then scores times values, head by head; of kept tokens, where they are latched."""
    kept = kept_tokens(state, each.unit, each.kept, each.steps, each.keys)
    asked = kept[:, each.first_query : each.first_query + each.queries] if each.kept else None
    query, key = (each.query_step_stride, each.pixel_stride), (each.key_step_stride, each.pixel_stride)
    value = (each.value_step_stride, each.value_pixel_stride)
    q = _heads(each, state, each.q, query, each.queries, each.q_planes, each.width)
    k = _heads(each, state, each.k, key, each.keys, each.k_planes, each.width)
    v = _heads(each, state, each.v, value, each.keys, each.v_planes, each.value_width)
    if asked is not None:
        q, k, v = (x * held[:, :, None, None] for x, held in ((q, asked), (k, kept), (v, kept)))
        record[RECORD.work] = record[RECORD.mac] = _multiplications(each, asked.sum(axis=1), kept.sum(axis=1))
    scores = np.einsum("sihc,sjhc->shij", q, k)
    mixed = np.einsum("shij,sjhc->sihc", scores, v)
    put_int32(state.output, each.accumulators, mixed)
    check_range(each.mnemonic, state.output, each.accumulators, mixed.size, machine)


def _multiplications(each: Attend, queries: Integers, keys: Integers) -> int:
    """Multiply-accumulates of so many queries and keys a step."""
    if each.values_first:
        return each.heads * each.width * each.value_width * int((queries + keys).sum())
    return each.heads * (each.width + each.value_width) * int((queries * keys).sum())


def _heads(
    each: Attend, state: State, address: int, strides: tuple[int, int], tokens: int, planes: int, width: int
) -> Integers:
    """[steps, tokens, heads, width] of one operand, spikes or counts."""
    channels, counts = each.first_bit + each.heads * width, (planes * each.steps, tokens)
    indices = word_indices(address, strides, counts, words_of(channels))
    bits = bits_of(read_words(state, indices), channels)[..., each.first_bit :].astype(np.int64)
    by_plane = bits.reshape(planes, each.steps, tokens, each.heads, width)
    return (by_plane << np.arange(planes)[:, None, None, None, None]).sum(axis=0)


def add_up(each: Sum, state: State) -> None:
    """Spikes summed over steps and tokens."""
    counts, strides = (each.steps, each.tokens), (each.step_stride, each.pixel_stride)
    words = read_words(state, word_indices(each.spikes, strides, counts, words_of(each.inputs)))
    if each.both:
        words &= read_words(state, word_indices(each.other, strides, counts, words_of(each.inputs)))
    _add_features(each, state, bits_of(words, each.inputs).astype(np.int64) << each.plane)


def sum_values(each: SumValues, state: State) -> None:
    """Values of a stream summed over steps and tokens."""
    values = int16_at(state.output, each.values, each.steps * each.tokens * each.inputs)
    _add_features(each, state, values.reshape(each.steps, each.tokens, each.inputs))


def _add_features(each: Sum | SumValues, state: State, values: Integers) -> None:
    """Add values [steps, tokens, inputs] to the features, over tokens and, unless `per_step`, over steps."""
    sums = values.sum(axis=1 if each.per_step else (0, 1)).reshape(-1)
    before = 0 if each.fresh else int32_at(state.output, each.features, sums.size)
    put_int32(state.output, each.features, before + sums)


def sum_heads(each: SumHeads, state: State) -> None:
    """Spikes summed over the channels of every head."""
    counts, strides = (each.steps, each.tokens), (each.step_stride, each.pixel_stride)
    channels = each.heads * each.width
    bits = bits_of(read_words(state, word_indices(each.spikes, strides, counts, words_of(channels))), channels)
    sums = bits.reshape(*counts, each.heads, each.width).sum(axis=3, dtype=np.int64)
    put_int32(state.output, each.accumulators, sums)


def classify(each: Classify, state: State) -> None:
    """Features times weights."""
    features = (int32_at(state.output, each.features, each.inputs) + (1 << each.drop >> 1)) >> each.drop
    size = each.inputs * each.outputs
    weights = state.weight[each.weights : each.weights + size].view(np.int8).reshape(each.inputs, each.outputs)
    source, address = (state.constant, each.constants) if each.fresh else (state.output, each.logits)
    put_int32(state.output, each.logits, int32_at(source, address, each.outputs) + features @ weights.astype(np.int64))


def decide(each: Decide, state: State) -> None:
    """Whether the next exit is taken."""
    logits = int32_at(state.output, each.logits, each.outputs).tolist()
    state.flags[0] = each.measure(logits) >= each.threshold
