"""When every instruction runs: start = the later of unit free and tokens ready, in one pass in program order.

Every ordered pair of units has a first-in first-out queue of tokens (isa/word.py). A unit that waits is stalled, and
the stall's cause is the unit whose token came last. A wait for the DMA unit is split: `dram` is at most the cycles of
the copy waited for (what a faster memory would save), `dma_order` the rest (the copy itself started late).

Where an exit was taken, what stands before it runs to its end, and the tokens left over are nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Copy
from isa.word import Unit, field_names
from runtime.decoded import Decoded

CAUSES = ("dram", "pe", "neuron", "sfu", "control", "dma_order")
"""What a unit can wait for; the first five are the producing unit's number, DMA being `dram`."""

DMA_ORDER = CAUSES.index("dma_order")
WAIT, POST = 1 + field_names(Copy).index("wait"), 1 + field_names(Copy).index("post")
"""Columns of the code that every instruction has."""


@dataclass
class Timeline:
    """Cycles of one input, by layer (rows in the order of the layer table)."""

    frontier: NDArray[np.int64]
    """[layers]: by how much each layer's instructions moved the end of the program; the sum is the total."""
    busy: NDArray[np.int64]
    """[layers, units]."""
    stalls: NDArray[np.int64]
    """[layers, units, causes]."""

    @property
    def cycles(self) -> int:
        """Total cycles."""
        return int(self.frontier.sum())


def timeline(program: Decoded, work: NDArray[np.int64]) -> Timeline:
    """The schedule of one input that ran the first n instructions, which measured `work` [n]."""
    result = Timeline(
        np.zeros(program.layers, np.int64),
        np.zeros((program.layers, len(Unit)), np.int64),
        np.zeros((program.layers, len(Unit), len(CAUSES)), np.int64),
    )
    tokens = np.zeros((int(program.posts[-1]), 2), np.int64)
    ran = slice(len(work))
    waits, posts = program.code[ran, WAIT], program.code[ran, POST]
    layout = (program.unit[ran], waits, posts, program.cost[ran], program.layer[ran], program.posts)
    failed = _schedule(*layout, work, tokens, result.frontier, result.busy, result.stalls)
    if failed >= 0:
        mnemonic = program.instructions[failed].mnemonic
        raise CStepError(f"code word {failed}: {mnemonic} waits for a token that nothing posts before it")
    return result


@njit(nogil=True, cache=True)
def _schedule(unit_of, waits, posts, cost, layer_of, starts, work, tokens, frontier, busy, stalls) -> int:
    """Fill the result arrays; returns the instruction whose token is missing, or -1.

    `tokens` [n, 2] holds each token's time and its producer's cycles, queue after queue from `starts` on.
    """
    units = busy.shape[1]
    free = np.zeros(units, np.int64)
    head, tail = starts[:-1].copy(), starts[:-1].copy()
    end_so_far = 0
    for index in range(len(unit_of)):
        unit, layer = unit_of[index], layer_of[index]
        ready, cause, transfer = 0, -1, 0
        for producer in range(units):
            if waits[index] >> producer & 1:
                queue = producer * units + unit
                if head[queue] == tail[queue]:
                    return index
                if tokens[head[queue], 0] > ready:
                    ready, cause, transfer = tokens[head[queue], 0], producer, tokens[head[queue], 1]
                head[queue] += 1
        wait = ready - free[unit]
        if wait > 0:
            if cause == 0:
                stalls[layer, unit, 0] += min(wait, transfer)
                stalls[layer, unit, DMA_ORDER] += wait - min(wait, transfer)
            else:
                stalls[layer, unit, cause] += wait
        cycles = cost[index, 0] - (-work[index] * cost[index, 1] // cost[index, 2])
        end = max(free[unit], ready) + cycles
        free[unit] = end
        busy[layer, unit] += cycles
        for consumer in range(units):
            if posts[index] >> consumer & 1:
                queue = unit * units + consumer
                tokens[tail[queue], 0], tokens[tail[queue], 1] = end, cycles
                tail[queue] += 1
        if end > end_so_far:
            frontier[layer] += end - end_so_far
            end_so_far = end
    return -1
