"""Files that appear whole or not at all, and what is refused before."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from isa.errors import CStepError


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it. Raises CStepError, leaving nothing, on failure."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise CStepError(f"{path}: cannot be written ({error.strerror or error}); nothing was left behind") from None


def read_text(path: Path, what: str) -> str:
    """A text file. Raises CStepError where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise CStepError(f"{path}: cannot be read: {reason}; {what} is wanted") from None


def require_directory_of(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if not path.parent.is_dir():
        raise CStepError(f"{path}: no directory {path.parent}; make it first")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
