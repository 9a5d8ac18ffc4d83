"""What one more block costs in compiling, cycles and operations, and how straight the line is."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.emulator import compiled
from benchmarks.figures import Figures, table
from benchmarks.networks import network
from compiler.frontend.model import open_model
from isa.errors import CStepError
from runtime.interpreter import run
from runtime.quantise import quantise_input

DEPTHS = (2, 4, 8, 16)
PATTERNS = ("sdt-v1-{}-256", "spikformer-{}-192")
"""Membranes are added in the first. In the second spikes are, so that counts, and what they cost, grow with depth."""
QUANTITIES = (
    ("compile", "s CPU", "measured"),
    ("code", "words", "measured"),
    ("sop_dense", "operations", "measured"),
    ("sop_hw", "operations", "measured"),
    ("cycles", "cycles", "modelled"),
)


def measure(pattern: str, folder: Path, figures: Figures) -> None:
    """All depths of `pattern`, e.g. spikformer-{}-192: a table, and the fit of value = first + slope * blocks."""
    print(f"depth: {pattern.format('N')}, without comparisons, one input", flush=True)
    torch.set_num_threads(1)
    rows: list[list[float]] = []
    try:
        of_depth(pattern.format(DEPTHS[0]), folder)  # kernels and modules are loaded once, and not counted
        for blocks in DEPTHS:
            rows.append(of_depth(pattern.format(blocks), folder))
    except CStepError as error:
        figures.refuse("depth", pattern, str(error))
        return
    header = ["blocks", *(f"{name} ({unit})" for name, unit, _ in QUANTITIES)]
    table(
        header, [[str(blocks), *(f"{value:,.6g}" for value in row)] for blocks, row in zip(DEPTHS, rows, strict=True)]
    )
    for (name, unit, origin), values in zip(QUANTITIES, np.array(rows).T, strict=True):
        slope, first = np.polyfit(DEPTHS, values, 1)
        residual = float(np.abs((first + slope * np.array(DEPTHS)) / values - 1).max())
        model = pattern.format("N")
        kind = "modelled" if origin == "modelled" else "measured"
        figures.add("depth", model, f"{name} a block", float(slope), unit, kind)
        figures.add("depth", model, f"{name}, farthest from the line", residual * 100, "%", kind, "linear in depth")


def of_depth(name: str, folder: Path) -> list[float]:
    """The quantities of one network."""
    made = network(name, folder)
    model = open_model(name, made.checkpoint).module
    started = time.process_time()
    program = compiled(made, model)
    seconds = time.process_time() - started
    counters = run(program, quantise_input(program, made.inputs(1, seed=2))).counters
    counts = [float(counters.total(counter)[0]) for counter in ("sop_dense", "sop_hw", "cycles")]
    return [seconds, float(len(program.code)), *counts]
