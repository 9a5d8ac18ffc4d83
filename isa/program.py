"""The program: its parts, and the program file (write, read, refuse)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isa import container
from isa.collector import collector_paused
from isa.errors import CStepError
from isa.files import write_whole
from isa.machine import Machine, load_machine
from isa.verify import verify
from isa.word import WORD_BYTES, Instruction, decode, encode

SCHEMA = "cstep-program/4"


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
    settings: str = ""
    """What calibration chose (thresholds, masks, curves): canonical JSON, or nothing."""


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
    cache: dict[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)
    """What an interpreter derives from the code once (never saved)."""

    def save(self, path: str | Path) -> None:
        """Write the program file; see `save`."""
        save(self, path)

    @property
    def digest(self) -> str:
        """The digest that its file carries: sha256 in hexadecimal."""
        return digest_of(canonical_json(self.header), _tensors_of(self))


def save(program: Program, path: str | Path) -> None:
    """Writes a verified program file, whole or not at all. Raises CStepError for a bad program or a failed write."""
    try:
        data = program_bytes(program)
    except CStepError as error:
        raise CStepError(f"{path}: {error}") from None
    write_whole(Path(path), data)


@collector_paused()
def load(path: str | Path, machine_name: str | None = None) -> Program:
    """The program of a file, verified, and made for the machine asked for where one is.

    Raises CStepError, one line that begins with the path, for a file that `save` would not have written.
    """
    data = container.read_whole(Path(path))
    try:
        program = program_of(data)
        if machine_name is not None:
            _require_machine(program.header.machine, load_machine(machine_name))
    except CStepError as error:
        raise CStepError(f"{path}: {error}") from None
    return program


@collector_paused()
def program_bytes(program: Program) -> bytes:
    """The one canonical file of a program; verifies it first."""
    _require_parts(program.memory, program.source_map)
    verify(program)
    tensors = _tensors_of(program)
    header = canonical_json(program.header)
    return container.pack(tensors, {"header": header, "digest": digest_of(header, tensors)})


def _tensors_of(program: Program) -> dict[str, NDArray[Any]]:
    return {
        "code": np.frombuffer(b"".join(map(encode, program.code)), np.uint8).reshape(-1, WORD_BYTES),
        "memory": program.memory,
        "source_map": program.source_map,
    }


def program_of(data: bytes) -> Program:
    """The program of a file's bytes; refuses whatever `program_bytes` would not give back byte for byte."""
    tensors, metadata = container.unpack(data, ("code", "memory", "source_map"), ("header", "digest"))
    _require_tensor(tensors["code"], "code", np.uint8, WORD_BYTES)
    _require_parts(tensors["memory"], tensors["source_map"])
    if metadata["digest"] != digest_of(metadata["header"], tensors):
        raise CStepError("the digest does not match: the file was changed or damaged; write it again")
    if container.pack(tensors, metadata) != data:
        raise CStepError("not canonical: the file holds the right parts, but not as `cstep compile` writes them")
    header = _header_of(metadata["header"])
    words = tensors["code"].tobytes()
    code = tuple(
        decode(words[start : start + WORD_BYTES], f"code word {start // WORD_BYTES}")
        for start in range(0, len(words), WORD_BYTES)
    )
    program = Program(header, code, tensors["memory"], tensors["source_map"])
    verify(program)
    return program


def canonical_json(header: Header) -> str:
    """The one spelling of a header: sorted keys, no spaces, ASCII."""
    return json.dumps(header.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def _header_of(text: str) -> Header:
    values = container.strict_json(text, "header")
    schema = values.get("schema_version")
    if schema != SCHEMA:
        raise CStepError(f"header: schema {schema!r} is unknown; this version reads {SCHEMA}")
    try:
        header = Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CStepError(f"header: {where}: {first['msg']}") from None
    if canonical_json(header) != text:
        raise CStepError("header: not canonical; keys must be sorted, numbers in their shortest form, nothing left out")
    return header


def digest_of(header: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over the header's JSON and every tensor, in hexadecimal."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _require_parts(memory: NDArray[Any], source_map: NDArray[Any]) -> None:
    _require_tensor(memory, "memory", np.uint8, None)
    _require_tensor(source_map, "source_map", np.int32, len(SOURCE_MAP_COLUMNS))


def _require_tensor(tensor: NDArray[Any], name: str, dtype: type[np.generic], columns: int | None) -> None:
    right = tensor.dtype == dtype and (tensor.ndim == 1 if columns is None else tensor.shape[1:] == (columns,))
    if not right:
        wanted = f"{np.dtype(dtype)} [{'n' if columns is None else f'n, {columns}'}]"
        raise CStepError(f"tensor {name} is {tensor.dtype} {list(tensor.shape)}; it must be {wanted}")


def _require_machine(has: Machine, asked: Machine) -> None:
    """The sizes count, not the names or sources."""
    for key, value in asked.model_dump(exclude={"name", "description", "sources"}).items():
        if getattr(has, key) != value:
            raise CStepError(
                f"compiled for machine {has.name}, not {asked.name}: {key} is {getattr(has, key)}, there {value}; "
                f"compile it for {asked.name}"
            )
