"""What a data set holds, without decoding it: how many inputs, and a digest of what is stored."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isa.errors import CStepError
from runtime.dataset import IMAGE_ENDINGS, first_line, folder_files, load_dataset
from runtime.rows import npz_length


@dataclass(frozen=True)
class Stored:
    """How many inputs, and the sha256 of what is stored: of a file's bytes, of a folder's names and files."""

    count: int
    digest: str


_seen: dict[tuple[Any, ...], Stored] = {}


def stored(source: str, split: str) -> Stored:
    """What `load_dataset(source, split=split)` would read. Files that did not change since are not read again.

    Raises CStepError for what is no data set.
    """
    word, _, part = source.partition(":")
    if word == "digits":
        digits = load_dataset(source, split=part or split)
        return Stored(len(digits), digits.digest)
    path = Path(source)
    if path.is_dir():
        path = path / split if (path / split).is_dir() else path
        files = [file for _, file in folder_files(path)]
    elif path.suffix in (".parquet", ".npz") and path.exists():
        files = [path]
    else:
        expected = f"a .parquet, an .npz, a folder of class folders ({', '.join(IMAGE_ENDINGS)}), or digits"
        raise CStepError(f"{source}: no such dataset; give {expected}")
    told = [file.stat() for file in files]
    known = (
        str(path),
        *((str(file), about.st_size, about.st_mtime_ns) for file, about in zip(files, told, strict=True)),
    )
    if known not in _seen:
        _seen.clear()
        _seen[known] = Stored(_count(path, files), _digest(path, files))
    return _seen[known]


def _count(path: Path, files: Sequence[Path]) -> int:
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        return len(files)
    try:
        if path.suffix == ".parquet":
            count: int = pyarrow.parquet.ParquetFile(path).metadata.num_rows
        else:
            with np.load(path, allow_pickle=False) as file:
                count = npz_length(file, "x")
    except (pyarrow.ArrowException, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CStepError(f"{path}: truncated, or not a {path.suffix} data set ({first_line(error)})") from None
    except KeyError:
        raise CStepError(f"{path}: no array x [B, C, H, W]") from None
    if count == 0:
        raise CStepError(f"{path}: holds no image")
    return count


def _digest(path: Path, files: Sequence[Path]) -> str:
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            whole.update(f"{each.relative_to(path)}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
