"""Energy tables: TOML files beside this one, one table each; energy is counts times table entries and nothing else."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isa.errors import CStepError
from runtime.counters import INDEX, Counters

TABLES = Path(__file__).parent


class Entry(BaseModel):
    """Picojoules for every `per` of the counters named (1 operation, or the bytes of one access)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    counters: tuple[str, ...] = Field(min_length=1)
    picojoules: float = Field(ge=0)
    per: float = Field(default=1, gt=0)
    source: str = Field(min_length=1)


class Table(BaseModel):
    """Entries, where they come from, and what the table does not charge."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    description: str
    leaves_out: str = Field(min_length=1)
    entries: tuple[Entry, ...] = Field(min_length=1)


def energy_tables() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(path.stem for path in TABLES.glob("*.toml"))


@cache
def energy_table(name: str) -> Table:
    """A table by name. Raises CStepError for an unknown one, or one whose counters do not exist."""
    path = TABLES / f"{name}.toml"
    if name not in energy_tables():
        raise CStepError(f"energy table {name}: no such table; there are {', '.join(energy_tables())}")
    try:
        table = Table.model_validate(tomllib.loads(path.read_text()) | {"name": name})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise CStepError(f"energy table {name}: {str(error).splitlines()[0]}") from None
    for entry in table.entries:
        for counter in entry.counters:
            if counter not in INDEX:
                raise CStepError(f"energy table {name}: {entry.name}: no such counter: {counter}")
    return table


def energy_by_entry(counters: Counters, table: Table) -> dict[str, NDArray[np.float64]]:
    """Picojoules [inputs, layers] of every entry of the table."""
    spent: dict[str, NDArray[np.float64]] = {}
    for entry in table.entries:
        counted = np.sum([counters.by_layer(name) for name in entry.counters], axis=0)
        spent[entry.name] = counted * (entry.picojoules / entry.per)
    return spent


def energy(counters: Counters, table: Table) -> NDArray[np.float64]:
    """Picojoules [inputs, layers]."""
    return np.sum(list(energy_by_entry(counters, table).values()), axis=0)
