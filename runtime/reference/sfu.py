"""Attend, Sum and Classify, as their formulas say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.instructions import Attend, Classify, Sum, words_of
from isa.machine import Machine
from runtime.reference.pe import check_range
from runtime.reference.spikes import bits_of, int32_at, put_int32, read_words, word_indices
from runtime.state import State


def attend(each: Attend, state: State, machine: Machine) -> None:
    """Scores of queries with keys, then scores times values, head by head."""
    q = _heads(each, state, each.q, each.query_step_stride, each.queries)
    k = _heads(each, state, each.k, each.key_step_stride, each.keys)
    v = _heads(each, state, each.v, each.key_step_stride, each.keys)
    scores = np.einsum("sihc,sjhc->shij", q, k)
    mixed = np.einsum("shij,sjhc->sihc", scores, v)
    put_int32(state.output, each.accumulators, mixed)
    check_range(each.mnemonic, state.output, each.accumulators, mixed.size, machine)


def _heads(each: Attend, state: State, address: int, step_stride: int, tokens: int) -> NDArray[np.int64]:
    """[steps, tokens, heads, width] of one operand."""
    channels = each.first_bit + each.heads * each.width
    indices = word_indices(address, (step_stride, each.pixel_stride), (each.steps, tokens), words_of(channels))
    bits = bits_of(read_words(state, indices), channels)[..., each.first_bit :]
    return bits.reshape(each.steps, tokens, each.heads, each.width).astype(np.int64)


def add_up(each: Sum, state: State) -> None:
    """Spikes summed over steps and tokens."""
    counts, strides = (each.steps, each.tokens), (each.step_stride, each.pixel_stride)
    words = read_words(state, word_indices(each.spikes, strides, counts, words_of(each.inputs)))
    sums = bits_of(words, each.inputs).sum(axis=(0, 1), dtype=np.int64) << each.plane
    before = 0 if each.fresh else int32_at(state.output, each.features, each.inputs)
    put_int32(state.output, each.features, before + sums)


def classify(each: Classify, state: State) -> None:
    """Features times weights."""
    features = int32_at(state.output, each.features, each.inputs)
    size = each.inputs * each.outputs
    weights = state.weight[each.weights : each.weights + size].view(np.int8).reshape(each.inputs, each.outputs)
    source, address = (state.constant, each.constants) if each.fresh else (state.output, each.logits)
    put_int32(state.output, each.logits, int32_at(source, address, each.outputs) + features @ weights.astype(np.int64))
