"""The results folder: which evaluation it belongs to, and which of its shards are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isa.errors import CStepError
from isa.files import write_whole
from isa.program import Program
from runtime.evaluate.shard import Shard, read_shard, write_shard
from runtime.interpreter import Kernels
from runtime.report.write import make_directory

SCHEMA = "cstep-evaluation/1"
ABOUT = "evaluation.json"


class About(BaseModel):
    """What a results folder is of; shards of other programs, data or options do not belong in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: str = Field(default=SCHEMA)
    program: str
    """The program's digest."""
    data: str
    """The digest of what the data set stores."""
    inputs: int
    """So many of the data set's first."""
    share: bool
    kernels: Kernels
    counters: tuple[str, ...]
    """Names of the counters, in the order of the shards' columns."""
    shard: int
    """Inputs of a shard; the last may have fewer."""

    def parts(self) -> list[range]:
        """The inputs of every shard."""
        return [range(at, min(at + self.shard, self.inputs)) for at in range(0, self.inputs, self.shard)]


class Folder:
    """A results folder, opened for one evaluation."""

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about

    @staticmethod
    def open(path: Path, wanted: Callable[[int | None], About], resume: bool) -> Folder:
        """Begin in a folder without shards; or resume where it is of what is `wanted`, given the inputs of a shard.

        `wanted` of None chooses those. Raises CStepError for a folder that holds anything else.
        """
        make_directory(path)
        held = [each.name for each in path.iterdir() if not each.name.startswith(".")]
        if not held or held == [ABOUT]:
            about = wanted(None)
            write_whole(path / ABOUT, (about.model_dump_json(indent=1) + "\n").encode())
            return Folder(path, about)
        if not resume:
            raise CStepError(f"{path}: is not empty; --resume goes on with what is there, or name another folder")
        began = _about(path)
        _require_same(path, began, wanted(began.shard))
        for torn in path.glob(".shard-*"):  # of a write that was killed
            torn.unlink(missing_ok=True)
        return Folder(path, began)

    def whole(self, program: Program) -> dict[int, Shard]:
        """The shards that are there."""
        parts = self.about.parts()
        found = {int(file.stem[6:]): file for file in self.path.iterdir() if re.fullmatch(_SHARD, file.name)}
        return {number: read_shard(file, program, len(parts[number])) for number, file in sorted(found.items())}

    def add(self, number: int, shard: Shard) -> None:
        """Write one."""
        write_shard(shard, self.path / f"shard-{number:06}.safetensors")


_SHARD = r"shard-\d{6,}\.safetensors"


def _about(path: Path) -> About:
    try:
        return About.model_validate_json((path / ABOUT).read_bytes())
    except (OSError, ValidationError):
        raise CStepError(f"{path}: holds no results of `cstep eval` ({ABOUT}); name another folder") from None


def _require_same(path: Path, began: About, wanted: About) -> None:
    for name, called in _CALLED.items():
        old, new = getattr(began, name), getattr(wanted, name)
        if old != new:
            said = "" if name == "counters" else f" ({name} {str(old)[:16]}, now {str(new)[:16]})"
            raise CStepError(f"{path}: holds results {called}{said}; name another folder for these")


_CALLED = {
    "program": "of another program",
    "data": "of another data set",
    "inputs": "of another number of inputs",
    "share": "with the other sharing",
    "kernels": "of the other kernels",
    "counters": "of a version with other counters",
    "shard": "in shards of another size",
}
