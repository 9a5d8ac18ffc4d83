"""The program: its parts, and the program file (write, read, refuse)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from isa.instructions import Instruction
from isa.machine import Machine

SCHEMA = "cstep-program/1"


class Strict(BaseModel):
    """Base of the header's parts: nothing extra, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(Strict):
    """The input in DRAM: int8 [steps, height, width, channels], one step for an image, T for events.

    An image's integers are clip(rint(x / scale), -127, 127), x as the model takes it; events are counts, scale 1.
    `mean` and `std` are what a data set's 0..1 pixels are normalised with before they are the model's x.
    """

    kind: Literal["image", "events"]
    shape: tuple[int, int, int]
    """Channels, height, width."""
    steps: int
    address: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Output(Strict):
    """The logits in DRAM: int32 [classes]; the model's logits are these times `scale`."""

    address: int
    classes: int
    scale: float


class LayerInfo(Strict):
    """A row of the layer table: what a `Layer` mark's index stands for."""

    name: str
    """The layer's name in the model, e.g. block.0.attn.q."""
    operation: str
    """What it does: conv, linear, attention, pool, add, head."""
    source: str
    """Python file and line that it was traced from."""
    binary: bool
    """Whether its input is {0,1} spikes (SynOpCounter counts only those)."""
    neurons: tuple[int, int, int] | None
    """Rows, columns and channels of its neurons, or None."""


class Provenance(Strict):
    """Where the program comes from; for reports, not for running."""

    model: str
    checkpoint: str
    calibration: str
    pipeline: str
    schedule: str
    version: str


class Header(Strict):
    """Everything of a program but its code, its memory image and its source map."""

    schema_version: str = Field(default=SCHEMA)
    machine: Machine
    timesteps: int
    dram_bytes: int
    input: Input
    output: Output
    layers: tuple[LayerInfo, ...]
    provenance: Provenance


SOURCE_MAP_COLUMNS = ("instruction", "layer", "step", "row", "column", "channel")
"""One row for each `Fire`: where its first neuron sits in the layer's [T, rows, columns, channels]."""


@dataclass(frozen=True)
class Program:
    """A program: header, code, initial DRAM contents from address 0 on (weights and constants), source map."""

    header: Header
    code: tuple[Instruction, ...]
    memory: NDArray[np.uint8]
    source_map: NDArray[np.int32]
    """int32 [n, 6], columns as in SOURCE_MAP_COLUMNS; tiles are row-major runs of pixels with full channel tiles."""
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What an interpreter derives from the code once (never saved)."""
