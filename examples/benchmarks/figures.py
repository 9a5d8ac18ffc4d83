"""Figures with their unit and origin: printed as they are found, and kept for a JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Origin = Literal["measured", "modelled"]


@dataclass(frozen=True)
class Figure:
    """One number of one network. `goal` is what was asked of it, in words; empty where nothing was."""

    part: str
    network: str
    name: str
    value: float
    unit: str
    origin: Origin
    goal: str = ""


@dataclass
class Figures:
    """All figures of a run, and what was refused."""

    found: list[Figure] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)

    def add(
        self, part: str, network: str, name: str, value: float, unit: str, origin: Origin = "measured", goal: str = ""
    ) -> None:
        """Keep and print one."""
        self.found.append(Figure(part, network, name, value, unit, origin, goal))
        text = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
        print(f"  {name:32} {text:>16} {unit:12} ({origin}){f'   goal: {goal}' if goal else ''}", flush=True)

    def refuse(self, part: str, network: str, reason: str) -> None:
        """What cannot be measured yet is named, and the others go on."""
        self.refused.append({"part": part, "network": network, "reason": reason})
        print(f"  refused: {reason}", flush=True)

    def save(self, path: Path) -> None:
        path.write_text(
            json.dumps({"figures": [asdict(each) for each in self.found], "refused": self.refused}, indent=1)
        )


def progress(text: str) -> None:
    """What is being done now, where a person is looking."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)
