"""Every counter by name, unit and definition; their values for each input and layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Exit
from isa.program import Program
from isa.word import Unit
from runtime.decoded import Decoded, decoded
from runtime.record import RECORD
from runtime.timeline import CAUSES, Timeline


@dataclass(frozen=True)
class Counter:
    """What one number means."""

    name: str
    unit: str
    definition: str


def _cycles() -> tuple[Counter, ...]:
    units = [unit.name.lower() for unit in Unit if unit != Unit.CONTROL]
    busy = [Counter(f"busy_{unit}", "cycles", f"cycles in which the {unit} unit works") for unit in units]
    stalls = [
        Counter(f"stall_{unit}_{cause}", "cycles", f"cycles in which the {unit} unit waits for {_CAUSE_TEXT[cause]}")
        for unit in units
        for cause in CAUSES
        if cause != unit and not (unit == "dma" and cause in ("dram", "dma_order"))
    ]
    return (*busy, *stalls)


_CAUSE_TEXT = {
    "dram": "a copy in transfer",
    "dma_order": "a copy that started late",
    "pe": "the PEs",
    "neuron": "the neuron unit",
    "sfu": "the SFU",
    "control": "control",
}

COUNTERS: tuple[Counter, ...] = (
    Counter("sop_dense", "operations", "accumulations if every input bit were set, borders exact, planes once"),
    Counter("sop_bit", "operations", "set input bits under the taps x outputs: accumulations without sharing"),
    Counter("sop_value", "operations", "spike values under the taps x outputs: set bits << plane"),
    Counter("common", "operations", "bits set in both pixels of a pair x outputs"),
    Counter(
        "sop_union",
        "operations",
        "accumulations with sharing, merges not counted: of pairs (also where not shared) sop_bit - common",
    ),
    Counter(
        "merges",
        "operations",
        "partial sums added to sums x outputs, where shared; of pairs 2 for each pair and step with anything common",
    ),
    Counter("copies", "operations", "partial sums that begin as a copy of another that is still needed x outputs"),
    Counter("sop_hw", "operations", "what the PEs do: sop_union + merges + copies where shared, sop_bit elsewhere"),
    Counter(
        "matching_bits", "bits", "compared to find what rows share beyond pairs, once for an instruction's outputs"
    ),
    Counter(
        "mac",
        "operations",
        "multiply-accumulates: image, streams, attention and head on the SFU, rescaling on the neuron unit",
    ),
    Counter("add", "operations", "additions of residuals, count trains, streams and features"),
    Counter(
        "neuron_updates", "operations", "neurons charged and compared: membrane updates, and levels without a membrane"
    ),
    Counter("pool_taps", "operations", "spikes and values looked at by pooling"),
    Counter("gates", "operations", "spikes gated by a mask or another spike"),
    Counter("exit_decisions", "operations", "of exit decisions: compares, additions and look-ups, logit by logit"),
    Counter("guard_counts", "operations", "spikes looked at for early counts of channels"),
    Counter("guard_compares", "operations", "channel counts compared with a threshold: mask building"),
    Counter("token_scores", "operations", "of choosing tokens: sums that scores are made of, scores, and their order"),
    Counter("words_read", "words", "spike words that are non-zero, per tap: of pair unions, depthwise of each pixel"),
    Counter("words_skipped", "words", "spike words that the word mask skips, per tap, likewise"),
    Counter("dram_weight_bytes", "bytes", "weights over DRAM"),
    Counter("dram_constant_bytes", "bytes", "biases, thresholds and multipliers over DRAM"),
    Counter("dram_spike_bytes", "bytes", "non-zero spike words over DRAM"),
    Counter("dram_mask_bytes", "bytes", "word masks of spikes over DRAM"),
    Counter("dram_membrane_bytes", "bytes", "membranes over DRAM"),
    Counter("dram_image_bytes", "bytes", "input image or events over DRAM"),
    Counter("dram_stream_bytes", "bytes", "fixed-point streams over DRAM"),
    Counter("dram_output_bytes", "bytes", "logits and other results over DRAM"),
    Counter("weight_buffer_bytes", "bytes", "weight buffer, both directions; every PE fetches its own rows"),
    Counter("spike_buffer_bytes", "bytes", "spike buffer, both directions"),
    Counter(
        "output_buffer_bytes", "bytes", "output buffer (accumulators, membranes, streams, results), both directions"
    ),
    Counter(
        "partial_sum_bytes", "bytes", "partial sums written, and read to make others, where rows share beyond pairs"
    ),
    Counter("constant_buffer_bytes", "bytes", "constant buffer, both directions"),
    Counter("channel_buffer_bytes", "bytes", "channel buffer (early counts and channel masks), both directions"),
    Counter("cycles", "cycles", "by how much the instructions moved the end of the program; layers add up"),
    *_cycles(),
)

INDEX = {counter.name: index for index, counter in enumerate(COUNTERS)}


@dataclass(frozen=True)
class Counters:
    """Values of all counters for some inputs: int64 [inputs, layers, counters], axes named by `layers` and INDEX.

    A program without layer marks has one layer; what comes before the first mark belongs to layer 0.
    """

    layers: tuple[str, ...]
    values: NDArray[np.int64]

    def by_layer(self, name: str) -> NDArray[np.int64]:
        """One counter, int64 [inputs, layers]."""
        if name not in INDEX:
            raise CStepError(f"counter {name}: no such counter; there are {', '.join(INDEX)}")
        return self.values[:, :, INDEX[name]]

    def total(self, name: str) -> NDArray[np.int64]:
        """One counter over all layers, int64 [inputs]."""
        return self.by_layer(name).sum(axis=1)

    def summed(self) -> Summed:
        """What a report takes of them."""
        inputs = Counters(("all layers",), self.values.sum(axis=1, keepdims=True))
        return Summed(inputs, Counters(self.layers, self.values.sum(axis=0, keepdims=True)))

    def totals(self) -> dict[str, NDArray[np.int64]]:
        """All counters over all layers."""
        return {name: self.total(name) for name in INDEX}


@dataclass(frozen=True)
class Summed:
    """Counters of any number of inputs in little memory: not every input's every layer, but the sums over both."""

    inputs: Counters
    """Of each input, as if the program had one layer: int64 [inputs, 1, counters]."""
    layers: Counters
    """Of each layer, all inputs together as if they were one: int64 [1, layers, counters]."""


def static_counts(program: Program, stop: int | None = None) -> NDArray[np.int64]:
    """What the program counts whatever the input, int64 [layers, counters], up to an exit or (None) to its end.

    `stop` is the code word behind the exit. Found once and kept with the program.
    """
    shared, kept = decoded(program), program.cache.get("static")
    if kept is None or kept[0] is not shared:
        kept = (shared, _static_counts(shared))
        program.cache["static"] = kept
    return kept[1][len(shared.code) if stop is None else stop]


def _static_counts(program: Decoded) -> dict[int, NDArray[np.int64]]:
    """By the code word that a run may stop before."""
    values = np.zeros((program.layers, len(COUNTERS)), np.int64)
    found: dict[int, NDArray[np.int64]] = {}
    for index, (layer, counts) in enumerate(zip(program.layer, program.static, strict=True)):
        for name, count in counts.items():
            values[layer, INDEX[name]] += count
        if isinstance(program.instructions[index], Exit):
            found[index + 1] = values.copy()
    return found | {len(program.code): values}


def count(
    program: Decoded,
    static: NDArray[np.int64],
    share: bool,
    record: NDArray[np.int64],
    times: Timeline,
) -> NDArray[np.int64]:
    """All counters of one input, int64 [layers, counters], from its record [n, columns] of what ran."""
    values = static.copy()
    by_layer = np.zeros((program.layers, record.shape[1]), np.int64)
    shared = np.zeros(program.layers, np.int64)
    columns = RECORD.sop_bit, RECORD.sop_union
    _add_by_layer(record, program.layer, program.shares & share, columns, by_layer, shared)
    for name, column in RECORD._asdict().items():
        if name in INDEX:
            values[:, INDEX[name]] += by_layer[:, column]
    values[:, INDEX["sop_hw"]] = shared + values[:, INDEX["merges"]] + values[:, INDEX["copies"]]
    values[:, INDEX["cycles"]] = times.frontier
    for unit in Unit:
        name = unit.name.lower()
        if unit != Unit.CONTROL:
            values[:, INDEX[f"busy_{name}"]] = times.busy[:, unit]
        for cause, cause_name in enumerate(CAUSES):
            if f"stall_{name}_{cause_name}" in INDEX:
                values[:, INDEX[f"stall_{name}_{cause_name}"]] = times.stalls[:, unit, cause]
    return values


@njit(nogil=True, cache=True)
def _add_by_layer(record, layer_of, shares, columns, by_layer, accumulated) -> None:
    """Sum the rows of a layer; `accumulated` sums the second of two columns where rows share, else the first."""
    for index in range(len(record)):
        layer = layer_of[index]
        for column in range(record.shape[1]):
            by_layer[layer, column] += record[index, column]
        accumulated[layer] += record[index, columns[1] if shares[index] else columns[0]]
