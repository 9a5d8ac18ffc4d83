"""The program file: written whole or not at all, read back exactly, and nothing else is read."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from isa import container
from isa.errors import CStepError
from isa.instructions import Load, Store
from isa.program import digest_of, load, program_bytes, save
from tests.programs import small_program

PROGRAM = small_program()
DATA = program_bytes(PROGRAM)


def refused(path: Path, message: str, machine: str | None = None) -> None:
    """Loading says so, in one line that names the file."""
    with pytest.raises(CStepError) as caught:
        load(path, machine)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), text
    assert "\n" not in text
    assert message in text


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "demo.cstep"
    path.write_bytes(data)
    return path


def test_a_program_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "demo.cstep"
    save(PROGRAM, path)
    program = load(path, "c-step")
    assert program.header == PROGRAM.header
    assert program.code == PROGRAM.code
    assert (program.memory == PROGRAM.memory).all()
    assert (program.source_map == PROGRAM.source_map).all()
    assert program_bytes(program) == DATA == path.read_bytes()
    assert os.listdir(tmp_path) == ["demo.cstep"]


def test_the_library_reads_the_file() -> None:
    tensors = safetensors.numpy.load(DATA)
    assert {name: (tensor.dtype.name, tensor.shape[1:]) for name, tensor in tensors.items()} == {
        "code": ("uint8", (32,)),
        "memory": ("uint8", ()),
        "source_map": ("int32", (6,)),
    }


def test_little_is_added_to_the_weights() -> None:
    """A program with a megabyte of memory; its areas and traffic lie `far` higher than the small program's."""
    far = 1 << 20
    header = PROGRAM.header.model_copy(
        update={
            "dram_bytes": PROGRAM.header.dram_bytes + far,
            "input": PROGRAM.header.input.model_copy(update={"address": PROGRAM.header.input.address + far}),
            "output": PROGRAM.header.output.model_copy(update={"address": PROGRAM.header.output.address + far}),
        }
    )
    code = tuple(
        replace(word, source=word.source + far)
        if isinstance(word, Load) and word.source >= len(PROGRAM.memory)
        else replace(word, target=word.target + far)
        if isinstance(word, Store)
        else word
        for word in PROGRAM.code
    )
    memory = np.zeros(far, np.uint8)
    memory[: len(PROGRAM.memory)] = PROGRAM.memory
    assert len(program_bytes(replace(PROGRAM, header=header, memory=memory, code=code))) < 1.01 * far


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    edge = container.LENGTH_BYTES + int.from_bytes(DATA[: container.LENGTH_BYTES], "little")
    bits = [*range(8 * 16), *random.integers(0, 8 * edge, 400), *random.integers(8 * edge, 8 * len(DATA), 200)]
    path = tmp_path / "demo.cstep"
    for bit in map(int, bits):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        refused(path, "")


def test_every_cut_and_every_addition_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo.cstep"
    for size in (1, 7, 8, 9, 100, len(DATA) // 2, len(DATA) - 1):
        path.write_bytes(DATA[:size])
        refused(path, "cut short")
    path.write_bytes(DATA + b"\0")
    refused(path, "")


def test_what_is_no_program_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.cstep", "cannot be read: No such file or directory; a program file is wanted")
    refused(tmp_path, "a directory; a program file is wanted")
    refused(written(tmp_path, b""), "empty; a program file is wanted")
    refused(written(tmp_path, b"#!/bin/sh\necho hello\n" * 9), "no program file, or the file is cut short")
    other = safetensors.numpy.save({"weight": np.zeros(3, np.float32)})
    refused(written(tmp_path, other), "its tensors are weight; a program file has exactly code, memory, source_map")


def test_sizes_are_capped(tmp_path: Path) -> None:
    path = tmp_path / "demo.cstep"
    with path.open("wb") as file:
        file.truncate(container.MOST_FILE_BYTES + 1)
    refused(path, "a program file has at most 1073741824")
    with path.open("wb") as file:
        file.write((1 << 25).to_bytes(8, "little"))
        file.truncate(1 << 26)
    refused(path, "its header has 33554432 bytes; at most 16777216 are allowed")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("__metadata__.note", "hi", "its metadata are digest, header, note; a program file has exactly digest, header"),
        ("__metadata__.digest", None, "its metadata are header; a program file has exactly digest, header"),
        ("__metadata__.header", 3, "no safetensors file, or the file is cut short"),
        ("__metadata__", None, "its metadata are none; a program file has exactly digest, header"),
        ("__metadata__", 3, "its metadata are none"),
        ("memory", None, "its tensors are code, source_map; a program file has exactly"),
        ("more", {}, "its tensors are code, memory, more, source_map; a program file has exactly"),
        ("code", [], "tensor code has dtype None; a program file has only I32, U8"),
        ("code.dtype", "I8", "tensor code has dtype I8; a program file has only I32, U8"),
        ("code.dtype", ["U8"], "tensor code has dtype ['U8']; a program file has only I32, U8"),
        ("code.shape", [-1], "no safetensors file, or the file is cut short"),
        ("code.shape", [17 * 32], "tensor code is uint8 [544]; it must be uint8 [n, 32]"),
        ("memory.shape", [372, 1], "tensor memory is uint8 [372, 1]; it must be uint8 [n]"),
    ],
)
def test_the_frame_is_strict(tmp_path: Path, key: str, value: object, message: str) -> None:
    """The outer JSON edited (None takes a key away), the data unchanged."""
    size = int.from_bytes(DATA[:8], "little")
    outer: dict[str, Any] = json.loads(DATA[8 : 8 + size])
    part, _, field = key.rpartition(".")
    inside: dict[str, Any] = outer[part] if part else outer
    inside[field] = value
    if value is None:
        del inside[field]
    text = json.dumps(outer, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    refused(written(tmp_path, len(text).to_bytes(8, "little") + text + DATA[8 + size :]), message)


def test_duplicates_and_other_spellings_are_refused(tmp_path: Path) -> None:
    size = int.from_bytes(DATA[:8], "little")
    text = DATA[8 : 8 + size].rstrip()

    def with_text(changed: bytes) -> Path:
        changed += b" " * (-len(changed) % 8)
        return written(tmp_path, len(changed).to_bytes(8, "little") + changed + DATA[8 + size :])

    refused(with_text(text[:-1] + b',"memory":{}}'), "file header: key 'memory' appears twice")
    refused(with_text(text + b" " * 8), "not canonical")
    refused(with_text(text.replace(b'"U8"', b'"U\\u0038"')), "not canonical")
    refused(with_text(b"[" * 100_000), "file header: no JSON")
    refused(with_text(b"[]"), "file header: JSON, but no object")
    refused(with_text(b"\xff" * 16), "file header: no JSON")


def resealed(header: str) -> bytes:
    """A file with another header, its digest right."""
    tensors = safetensors.numpy.load(DATA)
    return container.pack(tensors, {"header": header, "digest": digest_of(header, tensors)})


def spelled(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "schema_version",
            "cstep-program/3",
            "schema 'cstep-program/3' is unknown; this version reads cstep-program/4",
        ),
        ("schema_version", None, "schema None is unknown; this version reads cstep-program/4"),
        ("timesteps", "two", "header: timesteps: Input should be a valid integer"),
        ("timesteps", "2", "header: not canonical"),
        ("more", 1, "header: more: Extra inputs are not permitted"),
        ("machine.lanes", 0, "header: machine.lanes: Input should be greater than or equal to 1"),
        ("input.kind", "sound", "header: input.kind: Input should be 'image' or 'events'"),
        ("output.scale", float("nan"), "header: output scale=nan must be a positive number"),
        ("dram_bytes", 1 << 40, "header: dram_bytes=1099511627776 not in 1..1073741824"),
    ],
)
def test_the_header_is_strict(tmp_path: Path, key: str, value: object, message: str) -> None:
    values = PROGRAM.header.model_dump(mode="json")
    part, _, field = key.rpartition(".")
    (values[part] if part else values)[field] = value
    refused(written(tmp_path, resealed(spelled(values))), message)


def test_the_header_has_one_spelling(tmp_path: Path) -> None:
    header = spelled(PROGRAM.header.model_dump(mode="json"))
    refused(written(tmp_path, resealed(header.replace(":", ": ", 1))), "header: not canonical")
    refused(written(tmp_path, resealed(header[:-1] + ',"timesteps":2}')), "header: key 'timesteps' appears twice")
    refused(written(tmp_path, resealed("{")), "header: no JSON")


def test_other_machines_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, DATA)
    refused(path, "compiled for machine c-step, not c-step-64: lanes is 16, there 64; compile it for", "c-step-64")
    with pytest.raises(CStepError, match="machine warp: no such preset or file; presets are"):
        load(path, "warp")


def test_bad_programs_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "demo.cstep"
    for program, message in (
        (replace(PROGRAM, code=PROGRAM.code[:-1]), "code: 16 words and the last is no end"),
        (replace(PROGRAM, memory=PROGRAM.memory.view(np.int8)), "tensor memory is int8 [372]; it must be uint8 [n]"),
        (replace(PROGRAM, source_map=PROGRAM.source_map[:, :5]), "tensor source_map is int32 [2, 5]; it must be"),
    ):
        with pytest.raises(CStepError, match=f"^{re.escape(f'{path}: {message}')}"):
            save(program, path)
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CStepError, match=r"demo\.cstep: cannot be written .*No space left on device"):
        save(PROGRAM, path)
    assert os.listdir(tmp_path) == ["demo.cstep"]
    assert path.read_bytes() == b"old"


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CStepError, match="No such file or directory"):
        save(PROGRAM, tmp_path / "no" / "demo.cstep")
    with pytest.raises(CStepError, match=r"[Dd]irectory"):
        save(PROGRAM, tmp_path)
    assert not os.listdir(tmp_path)
