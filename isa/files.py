"""Files that appear whole or not at all."""

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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
