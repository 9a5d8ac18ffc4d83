"""What the fast kernels are given: addresses of the memories and of scratch space, the machine's sizes, columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isa.instructions import (
    Accumulate,
    Add,
    Attend,
    Classify,
    CountSpikes,
    Decide,
    Depthwise,
    Dilate,
    Fire,
    Guard,
    HaltSpikes,
    HaltValues,
    KeepBelow,
    KeepRows,
    KeepTop,
    Load,
    Mask,
    Multiply,
    Pair,
    Pool,
    PoolValues,
    Rescale,
    ScoreSpikes,
    ScoreValues,
    Store,
    Sum,
    SumHeads,
    SumValues,
    WeighSpikes,
    WeighValues,
    Window,
)
from runtime.decoded import columns

LOAD, STORE = columns(Load), columns(Store)
ACCUMULATE, DEPTHWISE, MULTIPLY = columns(Accumulate), columns(Depthwise), columns(Multiply)
ATTEND, SUM, CLASSIFY = columns(Attend), columns(Sum), columns(Classify)
SUM_HEADS, SUM_VALUES = columns(SumHeads), columns(SumValues)
FIRE, ADD, RESCALE, MASK = columns(Fire), columns(Add), columns(Rescale), columns(Mask)
POOL, POOL_VALUES, DILATE = columns(Pool), columns(PoolValues), columns(Dilate)
COUNT_SPIKES, GUARD, DECIDE = columns(CountSpikes), columns(Guard), columns(Decide)
KEEP, KEEP_TOP = columns(KeepRows), columns(KeepTop)
SCORE_SPIKES, SCORE_VALUES = columns(ScoreSpikes), columns(ScoreValues)
HALT_SPIKES, HALT_VALUES, KEEP_BELOW = columns(HaltSpikes), columns(HaltValues), columns(KeepBelow)
WEIGH_SPIKES, WEIGH_VALUES = columns(WeighSpikes), columns(WeighValues)
PAIR = columns(Pair)
"""The columns of `Decoded.code` by field name, one name an instruction."""
WINDOW = columns(Window)
"""Those that every instruction with a window has, in the same places."""


class Memories(NamedTuple):
    """Addresses of the state's regions, and the length of the shared part of DRAM."""

    memory: int
    memory_bytes: int
    private: int
    weight: int
    spike: int
    output: int
    constant: int
    channel: int
    mask: int
    pairing: int
    flags: int
    kept_rows: int
    kept_neurons: int
    kept_tokens: int


class Scratch(NamedTuple):
    """Addresses of work space. Only the event lists and their tallies outlive an instruction (see fast/held.py)."""

    events: int
    """int32 [slots, events a slot]: the set bits of an input, step by step and pixel by pixel (see fast/events.py)."""
    starts: int
    """int32 [slots, starts a slot]: where each pixel's events start, and where a step's end."""
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
    masked: int
    """Spikes as an Accumulate's or Depthwise's channel masks leave them, laid out as in the spike buffer."""
    compact: int
    """The spikes of an Accumulate's kept pixels, moved together."""
    tail: int
    """64 bytes: ones where the last 512 channels of a pixel have any."""
    planes: int
    """int64 [8]: the planes of 64 counts."""
    zeros: int
    """1024 zero bytes: a pixel outside the borders."""
    packed: int
    """Weights in the order of fast/dense.py."""
    offsets: int
    """int32 [outputs]: what sums start from in fast/dense.py."""
    image: int
    """The input of one step with borders around it, a byte a channel (fast/dense.py)."""
    held: NDArray[np.int64]
    """[slots + 1, columns]: what each slot's lists belong to, columns as in fast/held.py."""
    slot_events: int
    """Events a slot."""
    slot_starts: int
    """Starts a slot."""


class Sizes(NamedTuple):
    """What the kernels need of the machine."""

    pairs: int
    window: int
    port: int
    """Index into PORTS."""
    burst_bytes: int
    lanes: int
    neuron_lanes: int
