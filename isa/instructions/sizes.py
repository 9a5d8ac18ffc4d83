"""Sizes that every instruction shares: words, slots, and how long a unit takes to fill."""

from __future__ import annotations

SPIKES_PER_WORD = 16
SPIKE_WORD_BYTES = 2
ACCUMULATOR_BYTES = 4
MEMBRANE_BYTES = 2
STREAM_BYTES = 2
"""A value of a fixed-point stream, int16."""
CONSTANT_BYTES = 8
"""A channel's bias and threshold (or multiplier), int32 each."""
COUNT_BYTES = 2
"""A channel's early spike count, uint16."""
MOST_COUNT = (1 << 16) - 1
SFU_FILL = 8
NEURON_FILL = 8
"""Cycles before a unit's first result."""


def words_of(channels: int) -> int:
    """Spike words that hold `channels` channels."""
    return -(-channels // SPIKES_PER_WORD)


def ceil_divide(value: int, by: int) -> int:
    return -(-value // by)


def mask_bytes(channels: int) -> int:
    """Bytes of a channel mask: whole words of 16 bits."""
    return 2 * words_of(channels)
