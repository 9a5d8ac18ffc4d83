"""The accelerator's sizes: presets in isa/machines/*.toml, or a file of one's own, with a source for every number."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from isa.errors import CStepError

SharingMode = Literal["pair", "group4", "group8", "match", "prefix", "forest"]
"""The members of `isa.word.Sharing` but NONE, which every machine has."""

PRESETS = Path(__file__).parent / "machines"


class Number(BaseModel):
    """A number and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float | str | tuple[str, ...]
    source: str


class Machine(BaseModel):
    """Sizes and rates of one accelerator. Bytes, cycles of its clock, and operations a cycle."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    description: str
    clock_mhz: float = Field(gt=0)
    pairs: int = Field(ge=1, le=64)
    window: int = Field(ge=1, le=8)
    lanes: int = Field(ge=1, le=512)
    neuron_lanes: int = Field(ge=1)
    sfu_multipliers: int = Field(ge=1)
    accumulator_bits: int = Field(ge=8, le=32)
    weight_buffer_bytes: int = Field(ge=1024, le=1 << 18)
    spike_buffer_bytes: int = Field(ge=1024, le=1 << 17)
    word_mask_buffer_bytes: int = Field(ge=64)
    output_buffer_bytes: int = Field(ge=1024, le=1 << 18)
    constant_buffer_bytes: int = Field(ge=256, le=1 << 16)
    channel_buffer_bytes: int = Field(ge=256, le=1 << 14)
    dram_gigabytes_per_second: float = Field(gt=0)
    dram_latency_cycles: int = Field(ge=0)
    burst_bytes: int = Field(ge=1)
    weight_port: Literal["free", "round", "word"]
    sharing: tuple[SharingMode, ...] = ("pair",)
    """How rows may share what they have in common (`isa.word.Sharing`)."""
    reuse_rows: int = Field(default=0, ge=0, le=4096, multiple_of=8)
    """Rows of a window, in which all modes but `pair` look for what to share."""
    prefix_rows: int = Field(default=0, ge=0, le=4096, multiple_of=8)
    """Rows of a window of `prefix`; 0: as many as of other modes."""
    prefix_channels: int = Field(default=0, ge=0)
    """Channels of a tile of `prefix`; 0: all of them."""
    forest_channels: int = Field(default=0, ge=0)
    """Channels of a tile of `forest`; 0: all of them."""
    reuse_sums: int = Field(default=0, ge=0)
    """Partial sums that are stored at once, each of `lanes` outputs."""
    matching_bits: int = Field(default=0, ge=0)
    """Bits that are compared in a cycle to find what to share."""
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_room_to_share(self) -> Machine:
        """A machine that shares beyond pairs says where it keeps sums, and how fast it finds them."""
        beyond = [mode for mode in self.sharing if mode != "pair"]
        if beyond and not (self.reuse_rows and self.reuse_sums and self.matching_bits):
            raise ValueError(f"{beyond[0]} needs reuse_rows, reuse_sums and matching_bits of 1 or more")
        rows = "prefix_rows" if self.prefix_rows else "reuse_rows"
        if "prefix" in beyond and self.reuse_sums < self.shared_rows("prefix"):
            raise ValueError(
                f"prefix stores up to a sum a row: reuse_sums must be {rows}={self.shared_rows('prefix')} or more"
            )
        return self

    def shared_rows(self, mode: str) -> int:
        """Rows of a window in which a mode beyond `pair` looks for what to share."""
        return self.prefix_rows if mode == "prefix" and self.prefix_rows else self.reuse_rows

    @property
    def processing_elements(self) -> int:
        """PEs: pairs in flight, of as many timesteps."""
        return self.pairs * self.window

    @property
    def dram_latency(self) -> int:
        return self.dram_latency_cycles

    @cached_property
    def cycles_per_burst(self) -> tuple[int, int]:
        """Cycles a burst takes, as numerator and denominator; 0 / 1 for infinite bandwidth."""
        if self.dram_gigabytes_per_second == float("inf"):
            return 0, 1
        bytes_per_cycle = Fraction(str(self.dram_gigabytes_per_second)) * 1000 / Fraction(str(self.clock_mhz))
        cycles = Fraction(self.burst_bytes) / bytes_per_cycle
        return cycles.numerator, cycles.denominator

    @property
    def spike_words(self) -> int:
        """Spike words the machine can hold: the word mask buffer has one bit for each."""
        return min(self.spike_buffer_bytes // 2, self.word_mask_buffer_bytes * 8)

    def with_changes(self, **changes: Any) -> Machine:
        """The same machine with some sizes changed; the name says so. Raises CStepError for impossible sizes."""
        values = self.model_dump() | changes
        suffix = ",".join(f"{key}={value}" for key, value in changes.items())
        return _validate(values | {"name": f"{self.name}[{suffix}]"}, self.name)


def _validate(values: dict[str, Any], where: str) -> Machine:
    try:
        return Machine.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "sharing"
        raise CStepError(f"machine {where}: {field}: {first['msg'].removeprefix('Value error, ')}") from None


def presets() -> list[str]:
    """Names of the machines that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_machine(name: str) -> Machine:
    """A preset by name, or a TOML file by path."""
    path = PRESETS / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise CStepError(f"machine {name}: no such preset or file; presets are {', '.join(presets())}")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CStepError(f"machine {name}: {error}") from None
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, entry in table.items():
        if isinstance(entry, dict):
            try:
                number = Number.model_validate(entry)
            except ValidationError:
                raise CStepError(f"machine {name}: [{key}] needs `value` and `source`") from None
            values[key], sources[key] = number.value, number.source
        else:
            values[key] = cast(str, entry)
    return _validate(values | {"sources": sources}, name)
