"""The journal of a search: a line a trial, appended whole or not at all, so that a search that was killed goes on.

The first line says what the search is of. A last line that was torn is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from isa.errors import CStepError

NAME = "journal.jsonl"
SCHEMA = "cstep-tune/2"


class Line(BaseModel):
    """Base of the journal's lines."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class About(Line):
    """What a journal is of; trials of anything else do not belong in it."""

    schema_version: str = SCHEMA
    model: str
    checkpoint: str
    data: str
    """Digest of the held-out images and their labels."""
    unseen: str
    """Likewise of those that what is found is confirmed on."""
    ranges: str
    """What the ranges came from, and how the images are normalised."""
    machine: str
    """Name and digest of all its numbers."""
    objective: str
    max_loss: float
    seed: int
    base: str
    """Settings that the model was trained for, as canonical JSON."""
    version: str
    """Of cstep: another one may compile otherwise."""


class Choice(Line):
    """Confidences for which exits lose no more than a bound, chosen on recorded logits."""

    bound: float
    tau: tuple[float, ...]
    variance: tuple[float, ...]
    rate: float
    share: float = 1.0
    """Of the inputs that the bound would let leave each exit: fewer, for where it does not hold on other images."""


class Part(Line):
    """What the first so many images gave."""

    images: int
    right: int
    costs: dict[str, float]
    """Mean per input."""


class Trial(Line):
    """A compiled program, run on images."""

    settings: str
    """Canonical JSON."""
    images: int
    unseen: bool = False
    """Whether they are those that the search did not see."""
    right: int = 0
    costs: dict[str, float] = {}
    """Mean per input, by name."""
    exit_rate: float = 0.0
    screen: Part | None = None
    """Of the images that candidates are screened on, where there are more."""
    choices: tuple[Choice, ...] = ()
    """Where its exits are never taken."""
    rights: str = ""
    """Of unseen images: a bit for each that is right, in hexadecimal."""
    seconds: float = 0.0
    refused: str = ""
    """Why the compiler cannot make this program."""

    @property
    def key(self) -> Key:
        return self.settings, self.images, self.unseen

    def on(self, images: int) -> Part:
        """What so many of its first images gave: all of them, or those that candidates are screened on."""
        if images == self.images:
            return Part(images=images, right=self.right, costs=self.costs)
        assert self.screen is not None and self.screen.images == images
        return self.screen


L = TypeVar("L", bound=Line)
Key = tuple[str, int, bool]
"""Settings, number of images, and whether these are unseen."""


@dataclass
class Journal:
    """All trials; those of a file where there is one."""

    path: Path | None = None
    trials: dict[Key, Trial] = field(default_factory=dict[Key, Trial])

    @staticmethod
    def open(folder: Path, about: About, resume: bool) -> Journal:
        """Begin in an empty folder, or `resume` what is there. Raises CStepError where it is of anything else."""
        path = folder / NAME
        held = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
        if held and NAME not in held:
            raise CStepError(f"{folder}: holds no search of `cstep tune` (no {NAME}); name an empty folder")
        if held and not resume:
            raise CStepError(f"{folder}: is not empty; --resume goes on with what is there, or name another folder")
        lines = _whole_lines(path) if held else []
        if not lines:
            _append(path, about)
            return Journal(path)
        _require_same(folder, _read(path, 1, lines[0], About), about)
        trials = [_read(path, number, line, Trial) for number, line in enumerate(lines[1:], start=2)]
        return Journal(path, {each.key: each for each in trials})

    def add(self, trial: Trial) -> None:
        """Remember a trial, and write it down."""
        if self.path is not None:
            _append(self.path, trial)
        self.trials[trial.key] = trial


def _append(path: Path, line: Line) -> None:
    """In one write: a line without its end was torn."""
    data = (json.dumps(line.model_dump(mode="json"), separators=(",", ":")) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(handle, data) != len(data):
                raise CStepError(f"{path}: cannot be written (no room); make room, then --resume")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise CStepError(f"{path}: cannot be written ({error.strerror or error}); mend that, then --resume") from None


def _whole_lines(path: Path) -> list[bytes]:
    """The journal's lines; what a write that was killed left behind them is cut off."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data[:whole].splitlines()


def _read(path: Path, number: int, line: bytes, kind: type[L]) -> L:
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        raise CStepError(f"{path}: line {number} is none of `cstep tune`; name another folder") from None


def _require_same(folder: Path, began: About, wanted: About) -> None:
    for name, called in _CALLED.items():
        old, new = str(getattr(began, name)), str(getattr(wanted, name))
        if old != new:
            said = "" if name in ("base", "ranges") else f" ({old[:40]}, now {new[:40]})"
            raise CStepError(f"{folder}: holds a search {called}{said}; name another folder for this one")


_CALLED = {
    "schema_version": "of another version of the journal",
    "version": "of another version of cstep",
    "model": "of another model",
    "checkpoint": "of another checkpoint",
    "data": "on other images or labels",
    "unseen": "with other images to confirm on",
    "ranges": "with other ranges",
    "machine": "for another machine",
    "objective": "for another objective",
    "max_loss": "with another bound of the loss",
    "seed": "with another seed",
    "base": "from other base settings",
}
