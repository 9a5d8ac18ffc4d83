"""Some rows of a stored data set, without holding the others in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SKIPPED_BYTES = 1 << 24
"""As much of a compressed array is held while it is read past."""


def parquet_rows(file: Any, columns: list[str], rows: Sequence[int]) -> Any:
    """Columns of a pyarrow ParquetFile as a table of these rows, in this order; one row group at a time is read."""
    import pyarrow

    metadata = file.metadata
    starts = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
    wanted = np.asarray(rows, np.int64)
    order = np.argsort(wanted, kind="stable")
    groups = np.searchsorted(starts, wanted[order], side="right") - 1
    parts = [
        file.read_row_group(int(group), columns).take(wanted[order][groups == group] - starts[group])
        for group in np.unique(groups)
    ]
    return pyarrow.concat_tables(parts).take(np.argsort(order))


def npz_length(file: Any, key: str) -> int:
    """How many rows an array of a numpy NpzFile has; 0 where it has no dimension."""
    with file.zip.open(f"{key}.npy") as stream:
        shape = _array_header(stream)[0]
    return shape[0] if shape else 0


def npz_rows(file: Any, key: str, rows: Sequence[int]) -> NDArray[Any]:
    """These rows of an array of a numpy NpzFile, in this order; an array of no dimension as it is.

    Raises ValueError and EOFError as numpy does, and EOFError for a row that the array does not have.
    """
    with file.zip.open(f"{key}.npy") as stream:
        shape, by_column, dtype = _array_header(stream)
        if not shape or by_column or dtype.hasobject:  # not stored row by row
            whole = file[key]
            return whole if not shape else whole[np.asarray(rows)]
        if max(rows) >= shape[0]:
            raise EOFError(f"{key} has {shape[0]} rows, not {max(rows) + 1}")
        found = np.empty((len(rows), *shape[1:]), dtype)
        size, at = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)), 0
        for place in np.argsort(np.asarray(rows), kind="stable"):
            _skip(stream, (rows[place] - at) * size)
            data = stream.read(size)
            if len(data) < size:
                raise EOFError(f"{key} ends in row {rows[place]}")
            found[place] = np.frombuffer(data, dtype).reshape(shape[1:])
            at = rows[place] + 1
    return found


def _array_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, type; leaves the stream at the first element."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _skip(stream: zipfile.ZipExtFile, count: int) -> None:
    while count > 0:
        read = len(stream.read(min(count, SKIPPED_BYTES)))
        if not read:
            return
        count -= read
