"""Decide: the measures of isa/logarithms.py, on the same tables."""

from __future__ import annotations

import numpy as np
from numba import njit

from isa.logarithms import LOG_BITS, LOGARITHMS, POWER_BITS, POWER_STEPS, POWERS
from isa.word import Criterion
from runtime.fast.places import DECIDE
from runtime.fast.scalar import load_i32, store_8

LIGHTSOFTMAX, SOFTMAX = int(Criterion.LIGHTSOFTMAX), int(Criterion.SOFTMAX)

_POWERS, _LOGARITHMS = np.array(POWERS, np.int64), np.array(LOGARITHMS, np.int64)


@njit
def decide(row, memories):
    """Put down whether the next exit is taken."""
    logits, outputs = memories.output + row[DECIDE.logits], row[DECIDE.outputs]
    largest, total = load_i32(logits), 0
    for output in range(outputs):
        logit = load_i32(logits + 4 * output)
        largest = max(largest, logit)
        total += logit
    if row[DECIDE.criterion] == LIGHTSOFTMAX:
        measured = outputs * largest - total
    else:
        measured = measure_powers(row, logits, largest)
    store_8(memories.flags, int(measured >= row[DECIDE.threshold]))


@njit
def measure_powers(row, logits, largest):
    """The largest probability, or log2(M) less the entropy."""
    outputs, total, weighted = row[DECIDE.outputs], 0, 0
    for output in range(outputs):
        below = largest - load_i32(logits + 4 * output)
        step = min((below * row[DECIDE.multiplier]) >> row[DECIDE.divisor], 255)
        total += _POWERS[step]
        weighted += _POWERS[step] * step
    if row[DECIDE.criterion] == SOFTMAX:
        return (1 << (2 * POWER_BITS)) // total
    spread = (weighted << LOG_BITS) // (POWER_STEPS * total)
    return max(logarithm(outputs) - (logarithm(total) - (POWER_BITS << LOG_BITS) + spread), 0)


@njit
def logarithm(value):
    """As `isa.logarithms.logarithm`."""
    place = 0
    while value >> (place + 1) != 0:
        place += 1
    behind = (value << LOG_BITS) >> place if place < LOG_BITS else value >> (place - LOG_BITS)
    return (place << LOG_BITS) + _LOGARITHMS[behind & 255]
