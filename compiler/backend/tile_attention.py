"""The tiling of attention: heads and queries of a tile."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.backend.stages import AttentionStage
from compiler.backend.tile import MAX_COLUMNS, MAX_OUTPUTS, EndDemand, aligned, splits
from isa.errors import CStepError
from isa.instructions import ACCUMULATOR_BYTES, CONSTANT_BYTES, SPIKE_WORD_BYTES, SPIKES_PER_WORD, words_of
from isa.machine import Machine


@dataclass(frozen=True)
class AttentionTiling:
    """Heads and queries of a tile."""

    heads: int
    queries: int
    ahead: bool
    """Whether there is room to load a tile while the one before it is computed."""


def choose_attention(
    stage: AttentionStage, planes: tuple[int, int, int], end: EndDemand, machine: Machine, heads_apart: bool
) -> AttentionTiling:
    """The fewest tiles of queries, as each loads all keys and values again.

    A tile of heads ends at a spike word; where every head begins at one (`heads_apart`), it is a single head.
    `planes` are those of q, k and v. Only where nothing else fits, tiles are not loaded ahead.
    """
    for ahead in (True, False):
        best = _best(stage, planes, end, machine, heads_apart, ahead)
        if best is not None:
            return best
    raise CStepError(
        f"{stage.where}: attention of {stage.tokens} tokens in {stage.heads} heads of {stage.width} "
        f"channels does not fit the buffers of machine {machine.name}"
    )


def _best(
    stage: AttentionStage,
    planes: tuple[int, int, int],
    end: EndDemand,
    machine: Machine,
    heads_apart: bool,
    ahead: bool,
) -> AttentionTiling | None:
    """The fewest tiles of queries, then of heads, or None where none fits."""
    best: tuple[int, int, AttentionTiling] | None = None
    window = min(end.window, end.steps)
    for heads in [1] if heads_apart else range(stage.heads, 0, -1):
        channels, values = heads * stage.width, heads * stage.value_width
        whole = heads == stage.heads or heads_apart or not (channels % SPIKES_PER_WORD or values % SPIKES_PER_WORD)
        if stage.heads % heads or not whole or values > MAX_OUTPUTS:
            continue
        row, value_row = (words_of(each) * SPIKE_WORD_BYTES * window for each in (channels, values))
        keys = aligned(row * stage.keys * planes[1]) + aligned(value_row * stage.keys * planes[2])
        for queries in splits(stage.tokens):
            spikes = (2 if ahead else 1) * (aligned(row * queries * planes[0]) + keys)
            spikes += end.spike_bytes(queries, values) + end.kept_bytes(stage.keys)
            output = aligned(queries * values * window * ACCUMULATOR_BYTES) + end.output_bytes(queries, values)
            if (
                spikes <= 2 * machine.spike_words
                and output <= machine.output_buffer_bytes
                and 2 * aligned(values * CONSTANT_BYTES) <= machine.constant_buffer_bytes
                and queries <= MAX_COLUMNS
            ):
                found = (-(-stage.tokens // queries), stage.heads // heads, AttentionTiling(heads, queries, ahead))
                best = found if best is None or found[:2] < best[:2] else best
    return None if best is None else best[2]
