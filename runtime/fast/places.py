"""What the fast kernels are given: addresses of the memories and of scratch space, the machine's sizes, columns."""

from __future__ import annotations

from typing import NamedTuple

from isa.instructions import (
    Accumulate,
    Add,
    Attend,
    Classify,
    Fire,
    Load,
    Multiply,
    Pool,
    Store,
    Sum,
)
from runtime.decoded import columns

LOAD, STORE = columns(Load), columns(Store)
ACCUMULATE, MULTIPLY = columns(Accumulate), columns(Multiply)
ATTEND, SUM, CLASSIFY = columns(Attend), columns(Sum), columns(Classify)
FIRE, POOL, ADD = columns(Fire), columns(Pool), columns(Add)
"""The columns of `Decoded.code` by field name, one name an instruction."""


class Memories(NamedTuple):
    """Addresses of the state's regions, and the length of the shared part of DRAM."""

    memory: int
    memory_bytes: int
    private: int
    weight: int
    spike: int
    output: int
    constant: int
    mask: int


class Scratch(NamedTuple):
    """Addresses of work space; nothing in it outlives an instruction."""

    events: int
    """int32: the set bits of one step's input, pixel by pixel, as column * inputs + channel."""
    starts: int
    """int32 [input pixels + 1]: where each pixel's events start."""
    common: int
    """int32 [input rows, stride + input columns + 1]: running sums along a row of the bits common to neighbours."""
    read: int
    """int32, likewise: words in which either neighbour has a bit."""
    pairs: int
    """int32 [steps, pairs]: cycles of a pair on its PE."""
    busy: int
    """int64 [window, pairs of the machine]: cycles of each PE."""
    head: int
    """int32 [width, width + 16]: keys times values of one head."""
    tail: int
    """64 bytes: ones where the last 512 channels of a pixel have any."""
    zeros: int
    """1024 zero bytes: a pixel outside the borders."""


class Sizes(NamedTuple):
    """What the kernels need of the machine."""

    pairs: int
    window: int
    port: int
    """Index into PORTS."""
    burst_bytes: int
