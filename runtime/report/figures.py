"""One figure: its name, unit, origin and definition, and how it is distributed over the inputs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from isa.machine import Machine
from runtime.counters import COUNTERS, Counters
from runtime.energy import energy, energy_table, energy_tables

Origin = Literal["measured", "modelled", "paper"]


class Strict(BaseModel):
    """Base of the report's parts: nothing extra, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Distribution(Strict):
    """Over the inputs; p50 and p95 are values of actual inputs, the worst is the greatest."""

    mean: float
    p50: float
    p95: float
    worst: float


class Figure(Strict):
    """A figure of a whole run."""

    name: str
    unit: str
    origin: Origin
    definition: str
    per_input: Distribution


class Histogram(Strict):
    """How many inputs lie between neighbouring edges; the last edge belongs to the last bin."""

    name: str
    unit: str
    origin: Origin
    edges: tuple[float, ...]
    counts: tuple[int, ...]


BINS = 24


def distribution(values: NDArray[Any]) -> Distribution:
    """How values [inputs] are distributed."""
    p50, p95 = (float(np.percentile(values, point, method="inverted_cdf")) for point in (50, 95))
    return Distribution(mean=float(values.mean()), p50=p50, p95=p95, worst=float(values.max()))


def origin_of(counter: str) -> Origin:
    """Cycles follow from a model of the units; operations, words and bytes are counted."""
    return "modelled" if counter == "cycles" or counter.startswith(("busy_", "stall_")) else "measured"


def dram_bytes(counters: Counters) -> NDArray[np.int64]:
    """All bytes over DRAM, int64 [inputs, layers]."""
    names = [counter.name for counter in COUNTERS if counter.name.startswith("dram_")]
    return np.sum([counters.by_layer(name) for name in names], axis=0)


def figures_of(counters: Counters, machine: Machine) -> tuple[Figure, ...]:
    """Every counter over all layers; then what follows from them: DRAM bytes, time, energy by every table."""
    figures = [
        Figure(
            name=counter.name,
            unit=counter.unit,
            origin=origin_of(counter.name),
            definition=counter.definition,
            per_input=distribution(counters.total(counter.name)),
        )
        for counter in COUNTERS
    ]
    figures.append(
        Figure(
            name="dram_bytes",
            unit="bytes",
            origin="measured",
            definition="all bytes over DRAM, both directions, whatever they are",
            per_input=distribution(dram_bytes(counters).sum(axis=1)),
        )
    )
    figures.append(
        Figure(
            name="latency",
            unit="ms",
            origin="modelled",
            definition=f"cycles at {machine.clock_mhz:g} MHz",
            per_input=distribution(counters.total("cycles") / (machine.clock_mhz * 1e3)),
        )
    )
    return (*figures, *(_energy_figure(counters, name) for name in energy_tables()))


def steps_figure(steps: NDArray[np.int64]) -> Figure:
    """Timesteps run [inputs]."""
    return Figure(
        name="steps",
        unit="timesteps",
        origin="measured",
        definition="timesteps run until the input's result stood",
        per_input=distribution(steps),
    )


def histograms_of(counters: Counters, steps: NDArray[np.int64]) -> tuple[Histogram, ...]:
    """Operations, cycles, energy by every table, timesteps run: how many inputs cost how much."""
    shown: dict[str, tuple[str, NDArray[Any]]] = {
        "sop_hw": ("operations", counters.total("sop_hw")),
        "cycles": ("cycles", counters.total("cycles")),
    }
    shown |= {f"energy {name}": ("pJ", energy(counters, energy_table(name)).sum(axis=1)) for name in energy_tables()}
    found = [_histogram(name, unit, values, BINS) for name, (unit, values) in shown.items()]
    return (*found, _histogram("steps", "timesteps", steps, np.arange(int(steps.max()) + 1) + 0.5))


def _histogram(name: str, unit: str, values: NDArray[Any], bins: int | NDArray[Any]) -> Histogram:
    counts, edges = np.histogram(values, bins)
    origin = "modelled" if unit == "pJ" else origin_of(name)
    return Histogram(name=name, unit=unit, origin=origin, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _energy_figure(counters: Counters, name: str) -> Figure:
    table = energy_table(name)
    return Figure(
        name=f"energy {name}",
        unit="pJ",
        origin="modelled",
        definition=f"counts x table {name} ({table.description}); left out: {table.leaves_out}",
        per_input=distribution(energy(counters, table).sum(axis=1)),
    )
