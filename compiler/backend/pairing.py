"""Which rows share: the machine's mode for a stage, and the tables that pair the rows of a tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Emitter, Step
from compiler.backend.lower_end import Span
from compiler.backend.stages import WeightedStage
from isa.errors import CStepError
from isa.instructions import PARTNER_BYTES, Load, Pair
from isa.machine import Machine
from isa.sharing import lacks
from isa.word import Region, Sharing, Traffic


def sharing_on(machine: Machine, stage: WeightedStage) -> Sharing:
    """The mode of a stage: its own, or pairs where the machine has them. Raises CStepError for one that it has not."""
    if stage.operation == "depthwise":
        return Sharing.NONE
    own = "pair" if lacks(machine, Sharing.PAIR) is None else "none"
    sharing = Sharing[(stage.sharing.mode or own).upper()]
    if problem := lacks(machine, sharing):
        raise CStepError(f"{stage.where}: {problem}")
    return sharing


def window_rows(machine: Machine, sharing: Sharing) -> int:
    """Rows that share what any of them has in common; 0 where only neighbours and partners do."""
    return machine.shared_rows(sharing.name.lower()) if sharing in (Sharing.PREFIX, Sharing.FOREST) else 0


Tables = dict[Span, SSAValue]
"""Buffers by the first and number of the rows that a table is for."""


class Partners:
    """The tables of one stage in one call: one a tile of pixels, or one a window of timesteps."""

    def __init__(self, stage: WeightedStage, emit: Emitter) -> None:
        assert stage.sharing.partners is not None
        self.stage, self.emit, self.partners = stage, emit, stage.sharing.partners
        self._held: Tables = {}
        self._latched: Span | None = None

    def load(self, step: Step, pixels: Span, windows: list[Span]) -> Tables:
        """The tables of a tile in some windows, loaded with `step` unless those loaded last are the same."""
        wanted = dict.fromkeys(self._rows(pixels, window) for window in windows)
        if not wanted.keys() <= self._held.keys():
            self._held = {rows: self._load(step, rows) for rows in wanted}
        return self._held

    def latch(self, tables: Tables, pixels: Span, window: Span) -> None:
        """Emit a `pair`, unless the table is latched."""
        rows = self._rows(pixels, window)
        if rows != self._latched:
            flags = {"timesteps": int(not self._is_by_pixels)}
            self.emit.instruction(Pair, {"table": (tables[rows], 0)}, rows=rows[1], **flags)
            self._latched = rows

    def _load(self, step: Step, rows: Span) -> SSAValue:
        size, label = rows[1] * PARTNER_BYTES, self.stage.label
        target = self.emit.buffer(Region.CONSTANT, size, f"{label}.partners_tile")
        source = self.emit.constant(f"{label}.partners.{rows[0]}.{rows[1]}", lambda: table_of(self.partners, rows))
        place, traffic = ((source, 0), (target, 0), Region.CONSTANT), Traffic.CONSTANT
        step.loads.append(lambda: self.emit.copy(Load, *place, traffic, size))
        return target

    @property
    def _is_by_pixels(self) -> bool:
        return not self.stage.sharing.timesteps

    def _rows(self, pixels: Span, window: Span) -> Span:
        """First and number of the pixels, or of the timesteps, that a table is for."""
        if not self._is_by_pixels:
            return window
        geometry = self.stage.geometry
        width = 1 if geometry.is_row_of_tokens else geometry.columns
        return pixels[0] * width, pixels[1] * width


def table_of(partners: NDArray[np.uint16], rows: Span) -> NDArray[np.uint8]:
    """The table of some rows, numbered from the first of them; whose partner is elsewhere is alone."""
    first, count = rows
    own = np.arange(count)
    there = partners[first : first + count].astype(np.int64) - first
    return np.where((there >= 0) & (there < count), there, own).astype("<u2").view(np.uint8)
