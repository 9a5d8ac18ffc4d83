"""What it costs to decide at run time: exits, early counts, channel masks, tokens, and membranes that leave the chip.

All of it is charged already, in the figures of the whole run; here it stands by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.program import Program
from runtime.counters import COUNTERS, INDEX, Counters, Summed
from runtime.energy import energy, energy_table, energy_tables
from runtime.report.figures import Origin, Strict

EXIT = "exit"
"""The operation of layers that stand for an exit point (see `isa.program.LayerInfo`)."""
DECISIONS = ("exit_decisions",)


class Overhead(Strict):
    """One line: how much, and its energy by every table (means over the inputs)."""

    name: str
    unit: str
    origin: Origin = "measured"
    definition: str
    mean: float
    energy: dict[str, float]
    """pJ by table, modelled."""


LINES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("exit decisions", "operations", "compares, additions and look-ups over the logits at exit points", DECISIONS),
    ("early counts", "operations", "spikes looked at to count a channel's early ones", ("guard_counts",)),
    ("mask building", "operations", "counts of channels compared with the guard's threshold", ("guard_compares",)),
    ("token choice", "operations", "scores of tokens, halting and their compares", ("token_scores",)),
    ("channel buffer", "bytes", "early counts and channel masks, written and read", ("channel_buffer_bytes",)),
    ("membrane spill", "bytes", "membranes stored and loaded between windows or segments", ("dram_membrane_bytes",)),
)
"""Name, unit, definition and counters."""


def overheads_of(program: Program, counters: Summed) -> tuple[Overhead, ...]:
    """The lines of a run; those of which nothing happened are 0."""
    inputs, sums = len(counters.inputs.values), counters.layers
    decisions, *lines = (_line(*line, _only(sums, line[-1]), inputs) for line in LINES)
    heads = _line(
        "heads at exit points",
        "operations",
        "multiply-accumulates and additions of the classifier at exit points; the energy with all their bytes",
        ("mac", "add"),
        _at_exits(program, _only(sums, tuple(each.name for each in COUNTERS if each.name not in DECISIONS))),
        inputs,
    )
    return (decisions, heads, *lines)


def has_exits(program: Program) -> bool:
    return any(layer.operation == EXIT for layer in program.header.layers)


def _line(name: str, unit: str, text: str, shown: tuple[str, ...], charged: Counters, inputs: int) -> Overhead:
    """The `shown` counters make the figure, all of `charged` the energy."""
    return Overhead(
        name=name,
        unit=unit,
        definition=text,
        mean=float(sum(charged.total(each).sum() for each in shown)) / inputs,
        energy={table: float(energy(charged, energy_table(table)).sum()) / inputs for table in energy_tables()},
    )


def _only(counters: Counters, names: tuple[str, ...]) -> Counters:
    """The same counters, all but these 0."""
    kept: NDArray[np.bool_] = np.zeros(len(COUNTERS), np.bool_)
    kept[[INDEX[name] for name in names]] = True
    return Counters(counters.layers, np.where(kept, counters.values, 0))


def _at_exits(program: Program, counters: Counters) -> Counters:
    """The same counters, all layers but the exit points' 0."""
    table = program.header.layers
    exits = [index < len(table) and table[index].operation == EXIT for index in range(len(counters.layers))]
    return Counters(counters.layers, np.where(np.array(exits)[:, None], counters.values, 0))
