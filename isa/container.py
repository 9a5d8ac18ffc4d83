"""A strict safetensors file: one spelling for its content, and nothing else is read.

The bytes are those of the safetensors library but for one thing: it writes metadata in a random order, so the same
program would get different files. Here the order is fixed; the library reads the result, and anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from isa.errors import CStepError

MOST_FILE_BYTES = 1 << 30
MOST_HEADER_BYTES = 1 << 24
LENGTH_BYTES = 8
"""The file begins with the length of its JSON, little-endian."""

DTYPES = {"I32": np.dtype("<i4"), "U8": np.dtype("u1")}
"""What a tensor may be, widest first: the order in which safetensors lays tensors out."""


def pack(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The one file of these tensors (int32 or uint8) and this metadata."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    wrong = [name for name, tensor in tensors.items() if tensor.dtype not in names]
    if wrong:
        raise CStepError(f"tensor {wrong[0]} is {tensors[wrong[0]].dtype}; it must be int32 or uint8")
    order = list(DTYPES.values())
    described: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    blobs: list[bytes] = []
    offset = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        blobs.append(tensor.tobytes())
        stop = offset + len(blobs[-1])
        described[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return b"".join((len(text).to_bytes(LENGTH_BYTES, "little"), text, *blobs))


def unpack(
    data: bytes, tensor_names: Collection[str], keys: Collection[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a file that has exactly these; the caller compares `pack` of them with the file."""
    size = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES + size or size == 0:
        raise CStepError(f"{len(data)} bytes are no program file, or the file is cut short")
    if size > MOST_HEADER_BYTES:
        raise CStepError(f"its header has {size} bytes; at most {MOST_HEADER_BYTES} are allowed")
    described = strict_json(data[LENGTH_BYTES : LENGTH_BYTES + size], "file header")
    found = described.pop("__metadata__", None)
    metadata = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    _require_names("tensors", described, tensor_names)
    _require_names("metadata", metadata, keys)
    _require_types(described)
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise CStepError(f"no safetensors file, or the file is cut short ({reason})") from None
    return tensors, {key: str(metadata[key]) for key in keys}


def _require_names(what: str, found: dict[str, Any], wanted: Collection[str]) -> None:
    if set(found) != set(wanted):
        names = ", ".join(sorted(found)[:8]) or "none"
        raise CStepError(f"its {what} are {names}; a program file has exactly {', '.join(sorted(wanted))}")


def _require_types(described: dict[str, Any]) -> None:
    """Refuses element types that a program has not before they are read."""
    for name, entry in described.items():
        dtype = cast("dict[str, Any]", entry).get("dtype") if isinstance(entry, dict) else None
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise CStepError(f"tensor {name} has dtype {dtype}; a program file has only {', '.join(DTYPES)}")


def strict_json(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
            raise CStepError(f"{what}: key {twice!r} appears twice")
        return result

    try:
        value: object = json.loads(text, object_pairs_hook=unique)
    except CStepError:
        raise
    except (ValueError, RecursionError) as error:
        raise CStepError(f"{what}: no JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise CStepError(f"{what}: JSON, but no object")
    return cast("dict[str, Any]", value)


def read_whole(path: Path) -> bytes:
    """All bytes of a file of a size that a program file can have."""
    try:
        if path.is_dir():
            raise CStepError(f"{path}: a directory; a program file is wanted")
        size = path.stat().st_size
        if size > MOST_FILE_BYTES:
            raise CStepError(f"{path}: {size} bytes; a program file has at most {MOST_FILE_BYTES}")
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise CStepError(f"{path}: cannot be read: {error.strerror}; a program file is wanted") from None
    if not data:
        raise CStepError(f"{path}: empty; a program file is wanted")
    return data
