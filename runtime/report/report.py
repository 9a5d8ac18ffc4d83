"""The report of a run: what ran, on what, how good it was, and what it cost."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Accumulate
from isa.machine import Machine
from isa.program import Program, Provenance
from isa.word import Sharing as SharingMode
from runtime.counters import COUNTERS, Summed
from runtime.energy import Table, energy, energy_by_entry, energy_table, energy_tables
from runtime.report.figures import (
    Distribution,
    Figure,
    Histogram,
    Origin,
    Strict,
    dram_bytes,
    figures_of,
    histograms_of,
    origin_of,
    steps_figure,
)
from runtime.report.overheads import Overhead, has_exits, overheads_of

SCHEMA = "cstep-report/3"


class Inputs(Strict):
    """What ran: where the inputs come from, how many there are, and the sha256 of what the program saw."""

    source: str
    digest: str
    count: int
    calibrated: int = 0
    """How many of them the program was calibrated on, as far as its provenance tells: they say too much good of it."""


class Accuracy(Strict):
    """Top-1 over the labelled inputs."""

    name: str = "top1"
    unit: str = "fraction"
    origin: Origin = "measured"
    definition: str = "inputs whose greatest logit is at their label"
    value: float
    correct: int
    inputs: int


class LayerFigures(Strict):
    """One layer: mean over the inputs of every counter, of the DRAM bytes, and of the energy by every table (pJ)."""

    index: int
    name: str
    operation: str
    source: str
    figures: dict[str, float]


class SharingRow(Strict):
    """One figure with sharing on and off, on the same inputs."""

    name: str
    unit: str
    origin: Origin
    on: Distribution
    off: Distribution


class Sharing(Strict):
    """Sharing on and off, on the same inputs; the logits must be the same integers."""

    equal_logits: bool
    rows: tuple[SharingRow, ...]


class TableEntry(Strict):
    """One line of an energy table, and the energy that it stands for (mean over inputs, pJ)."""

    name: str
    counters: tuple[str, ...]
    picojoules: float
    per: float
    origin: Origin = "paper"
    source: str
    mean: float


class EnergyTable(Strict):
    """An energy table as it was used."""

    name: str
    description: str
    leaves_out: str
    entries: tuple[TableEntry, ...]


class Report(Strict):
    """Everything that report.json holds."""

    schema_version: Literal["cstep-report/3"] = SCHEMA
    program: str
    """The program's digest."""
    provenance: Provenance
    machine: Machine
    timesteps: int
    inputs: Inputs
    sharing_on: bool
    """Whether the figures are with sharing."""
    sharing_modes: tuple[str, ...] = ()
    """How rows share then, by name."""
    accuracy: Accuracy | None
    exits: bool
    """Whether the program has exit points; without, every input runs all timesteps, and no window costs a spill."""
    exit_rate: float
    """Fraction of the inputs that stopped before the last timestep."""
    figures: tuple[Figure, ...]
    histograms: tuple[Histogram, ...]
    layers: tuple[LayerFigures, ...]
    overheads: tuple[Overhead, ...]
    sharing: Sharing | None
    energy: tuple[EnergyTable, ...]

    @property
    def steps_taken(self) -> dict[int, float]:
        """Fraction of the inputs by how many timesteps they ran."""
        counts = next(each.counts for each in self.histograms if each.name == "steps")
        return {steps: count / sum(counts) for steps, count in enumerate(counts, 1) if count}

    def figure(self, name: str) -> Figure:
        """The figure of that name."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise CStepError(f"report: no figure {name}; there are {', '.join(each.name for each in self.figures)}")


BEYOND_PAIRS = ("copies", "matching_bits", "partial_sum_bytes")
"""Shown where there are any."""
COMPARED = ("sop_hw", "merges", *BEYOND_PAIRS, "cycles", "latency", "weight_buffer_bytes", "dram_bytes")
"""What sharing can change, beside energy."""


def make_report(
    program: Program,
    inputs: Inputs,
    counters: Summed,
    steps: NDArray[np.int64],
    accuracy: Accuracy | None,
    *,
    share: bool,
    other: Summed | None = None,
    equal_logits: bool = True,
) -> Report:
    """The report of a run of `steps` [inputs] timesteps whose `counters` were taken with sharing or without (`share`).

    `other` are the counters of the same inputs with the opposite, and `equal_logits` whether that gave the same.
    """
    machine = program.header.machine
    figures = figures_of(counters.inputs, machine)
    sharing = None
    if other is not None:
        others = figures_of(other.inputs, machine)
        sharing = _sharing(figures, others, equal_logits) if share else _sharing(others, figures, equal_logits)
    return Report(
        program=program.digest,
        provenance=program.header.provenance,
        machine=machine,
        timesteps=program.header.timesteps,
        inputs=inputs,
        sharing_on=share,
        sharing_modes=_modes(program),
        accuracy=accuracy,
        exits=has_exits(program),
        exit_rate=float((steps < program.header.timesteps).mean()),
        figures=(*figures, steps_figure(steps)),
        histograms=histograms_of(counters.inputs, steps),
        layers=_layers(program, counters),
        overheads=overheads_of(program, counters),
        sharing=sharing,
        energy=tuple(_energy_table(counters, energy_table(name)) for name in energy_tables()),
    )


def accuracy_of(labels: NDArray[Any], truth: NDArray[Any] | None) -> Accuracy | None:
    """Top-1 of labels [inputs], or None where the truth is not known."""
    if truth is None:
        return None
    correct = int((labels == truth).sum())
    return Accuracy(value=correct / len(truth), correct=correct, inputs=len(truth))


def _sharing(on: tuple[Figure, ...], off: tuple[Figure, ...], equal_logits: bool) -> Sharing:
    rows = [
        SharingRow(name=a.name, unit=a.unit, origin=a.origin, on=a.per_input, off=b.per_input)
        for a, b in zip(on, off, strict=True)
        if (a.name in COMPARED and not _is_none_of(a, b)) or a.name.startswith("energy ")
    ]
    return Sharing(equal_logits=equal_logits, rows=tuple(rows))


def _is_none_of(on: Figure, off: Figure) -> bool:
    """Whether a figure is one that only sharing beyond pairs has, and there is none of it."""
    return on.name in BEYOND_PAIRS and not (on.per_input.worst or off.per_input.worst)


def _modes(program: Program) -> tuple[str, ...]:
    """How a program's rows share."""
    modes = sorted({SharingMode(each.sharing) for each in program.code if isinstance(each, Accumulate)})
    return tuple(mode.name.lower() for mode in modes if mode != SharingMode.NONE)


def layer_units() -> dict[str, tuple[str, Origin]]:
    """Unit and origin of every figure of a layer, in their order."""
    units: dict[str, tuple[str, Origin]] = {each.name: (each.unit, origin_of(each.name)) for each in COUNTERS}
    units["dram_bytes"] = ("bytes", "measured")
    for name in energy_tables():
        units[f"energy {name}"] = ("pJ", "modelled")
    return units


def _layers(program: Program, counters: Summed) -> tuple[LayerFigures, ...]:
    inputs, sums = len(counters.inputs.values), counters.layers
    means: dict[str, NDArray[np.float64]] = {each.name: sums.by_layer(each.name)[0] / inputs for each in COUNTERS}
    means["dram_bytes"] = dram_bytes(sums)[0] / inputs
    means |= {f"energy {name}": energy(sums, energy_table(name))[0] / inputs for name in energy_tables()}
    table = program.header.layers
    return tuple(
        LayerFigures(
            index=index,
            name=name,
            operation=table[index].operation if index < len(table) else "",
            source=table[index].source if index < len(table) else "",
            figures={figure: float(values[index]) for figure, values in means.items()},
        )
        for index, name in enumerate(sums.layers)
    )


def _energy_table(counters: Summed, table: Table) -> EnergyTable:
    spent = energy_by_entry(counters.inputs, table)
    entries = tuple(
        TableEntry(**entry.model_dump(), mean=float(spent[entry.name].sum(axis=1).mean())) for entry in table.entries
    )
    return EnergyTable(name=table.name, description=table.description, leaves_out=table.leaves_out, entries=entries)
