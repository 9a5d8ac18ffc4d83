"""What a program costs, by the names that `cstep tune` minimises: one definition each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.program import Program
from runtime.counters import Counters
from runtime.energy import energy, energy_table
from runtime.report.figures import Origin, dram_bytes
from runtime.report.overheads import EXIT

CHARGED = ("sop_hw", "token_scores", "guard_counts", "guard_compares", "exit_decisions")
"""What `operations` adds up, beside the classifiers at exit points."""
AT_EXITS = ("mac", "add")


@dataclass(frozen=True)
class Cost:
    """What one number means."""

    name: str
    unit: str
    origin: Origin
    definition: str


COSTS: tuple[Cost, ...] = (
    Cost(
        "operations",
        "operations",
        "measured",
        f"all that the PEs do and all that deciding costs: {' + '.join(CHARGED)}, and of exit points mac + add",
    ),
    Cost("accumulations", "operations", "measured", "sop_union: merges, copies and deciding not charged"),
    Cost("sop_bit", "operations", "measured", "accumulations if nothing were shared"),
    Cost("cycles", "cycles", "modelled", "of the timeline"),
    Cost("energy", "pJ", "modelled", "counts x the named table, memory included where the table has it"),
    Cost("dram_bytes", "bytes", "measured", "over DRAM, both directions, membranes that exits spill among them"),
)


def costs_of(program: Program, counters: Counters, table: str) -> dict[str, NDArray[np.float64]]:
    """All COSTS of every input, [inputs] each; `table` names the energies."""
    found: dict[str, NDArray[np.generic]] = {
        "operations": charged_operations(program, counters),
        "accumulations": counters.total("sop_union"),
        "sop_bit": counters.total("sop_bit"),
        "cycles": counters.total("cycles"),
        "energy": energy(counters, energy_table(table)).sum(axis=1),
        "dram_bytes": dram_bytes(counters).sum(axis=1),
    }
    return {cost.name: found[cost.name].astype(np.float64) for cost in COSTS}


def charged_operations(program: Program, counters: Counters) -> NDArray[np.int64]:
    """[inputs]: the definition of `operations`."""
    table = program.header.layers
    exits = [index for index in range(min(len(table), len(counters.layers))) if table[index].operation == EXIT]
    found = np.sum([counters.total(name) for name in CHARGED], axis=0)
    return found + np.sum([counters.by_layer(name)[:, exits].sum(axis=1) for name in AT_EXITS], axis=0)
