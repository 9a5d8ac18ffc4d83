"""The fast family: one compiled loop walks the decoded program over one input's state."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

import isa.instructions
import isa.logarithms
import isa.scores
import isa.word
from isa.instructions import (
    Accumulate,
    Add,
    Attend,
    Classify,
    CountSpikes,
    Decide,
    Depthwise,
    Dilate,
    Exit,
    Fire,
    Guard,
    HaltSpikes,
    HaltValues,
    KeepBelow,
    KeepNeurons,
    KeepRows,
    KeepTokens,
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
)
from runtime.decoded import PORTS, SPARE_LANES, Decoded
from runtime.fast import channels, dma, elementwise, halting, pe, pool, sfu, tokens
from runtime.fast.accumulate import accumulate
from runtime.fast.decide import decide
from runtime.fast.depthwise import depthwise
from runtime.fast.fire import fire
from runtime.fast.held import COLUMNS, SLOTS, forget_all
from runtime.fast.places import Memories, Scratch, Sizes
from runtime.fast.reuse import Found, count_reuse
from runtime.fast.scalar import load_u8
from runtime.state import State

MOST_OUTPUTS = 1 << Multiply.specs["outputs"].bits
LOAD, STORE = Load.opcode, Store.opcode
ACCUMULATE, DEPTHWISE, MULTIPLY = Accumulate.opcode, Depthwise.opcode, Multiply.opcode
ATTEND, SUM, SUM_HEADS, SUM_VALUES = Attend.opcode, Sum.opcode, SumHeads.opcode, SumValues.opcode
CLASSIFY, FIRE, ADD, RESCALE, MASK = Classify.opcode, Fire.opcode, Add.opcode, Rescale.opcode, Mask.opcode
POOL, POOL_VALUES, DILATE, EXIT = Pool.opcode, PoolValues.opcode, Dilate.opcode, Exit.opcode
KEEP_ROWS, KEEP_NEURONS, KEEP_TOKENS = KeepRows.opcode, KeepNeurons.opcode, KeepTokens.opcode
SCORE_SPIKES, SCORE_VALUES, KEEP_TOP = ScoreSpikes.opcode, ScoreValues.opcode, KeepTop.opcode
HALT_SPIKES, HALT_VALUES, KEEP_BELOW = HaltSpikes.opcode, HaltValues.opcode, KeepBelow.opcode
WEIGH_SPIKES, WEIGH_VALUES = WeighSpikes.opcode, WeighValues.opcode
COUNT_SPIKES, GUARD, DECIDE, PAIR = CountSpikes.opcode, Guard.opcode, Decide.opcode, Pair.opcode


def _compiled(sources: int) -> Callable[..., tuple[int, int]]:
    """The loop. numba's cache looks at this file and at `sources` only, so that must change with all the others."""

    @njit(nogil=True, cache=True)
    def run(code, planes, memories, scratch, sizes, share, record, start, stop):
        forget_all(scratch.held)
        done = start
        for index in range(start, stop):
            if index < done:  # a plane that was accumulated together with the first
                continue
            row, opcode = code[index], code[index, 0]
            if opcode in (LOAD, STORE):
                dma.copy(row, opcode == LOAD, memories, scratch, sizes, record[index])
            elif opcode == ACCUMULATE:
                together = min(planes[index], stop - index)
                accumulate(code, index, together, memories, scratch, sizes, share, record)
                done = index + together
            elif opcode == FIRE:
                fire(row, memories, scratch, sizes, record[index])
            elif opcode == MULTIPLY:
                pe.multiply(row, memories, scratch, record[index])
            elif opcode == ATTEND:
                sfu.attend(row, memories, scratch, record[index])
            elif opcode == SUM:
                sfu.add_up(row, memories)
            elif opcode == CLASSIFY:
                sfu.classify(row, memories)
            elif opcode == POOL:
                pool.pool(row, memories, scratch)
            elif opcode == ADD:
                elementwise.add(row, memories, scratch)
            elif opcode == DEPTHWISE:
                depthwise(row, memories, scratch, sizes, record[index])
            elif opcode == SUM_HEADS:
                sfu.sum_heads(row, memories)
            elif opcode == SUM_VALUES:
                sfu.sum_values(row, memories)
            elif opcode == RESCALE:
                elementwise.rescale(row, memories, scratch, record[index])
            elif opcode == MASK:
                elementwise.mask(row, memories, scratch)
            elif opcode == POOL_VALUES:
                pool.pool_values(row, memories)
            elif opcode == DILATE:
                pool.dilate(row, memories, scratch)
            elif opcode == COUNT_SPIKES:
                channels.count_spikes(row, memories, scratch)
            elif opcode == GUARD:
                channels.guard(row, memories, scratch)
            elif opcode == KEEP_ROWS:
                tokens.keep_rows(row, memories, scratch)
            elif opcode == KEEP_NEURONS:
                tokens.keep(row, memories, memories.kept_neurons)
            elif opcode == KEEP_TOKENS:
                tokens.keep(row, memories, memories.kept_tokens)
            elif opcode == SCORE_SPIKES:
                tokens.score_spikes(row, memories)
            elif opcode == SCORE_VALUES:
                tokens.score_values(row, memories)
            elif opcode == KEEP_TOP:
                tokens.keep_top(row, memories, scratch)
            elif opcode == HALT_SPIKES:
                halting.halt_spikes(row, memories)
            elif opcode == HALT_VALUES:
                halting.halt_values(row, memories)
            elif opcode == KEEP_BELOW:
                halting.keep_below(row, memories, scratch)
            elif opcode == WEIGH_SPIKES:
                halting.weigh_spikes(row, memories)
            elif opcode == WEIGH_VALUES:
                halting.weigh_values(row, memories)
            elif opcode == DECIDE:
                decide(row, memories)
            elif opcode == PAIR:
                pe.latch(row, memories)
            elif opcode == EXIT and load_u8(memories.flags) != 0:
                return index + 1, sources
        return stop, sources

    return run


def _fingerprint() -> int:
    """A number that changes with any file whose code or columns are compiled into the loop."""
    files = [
        *Path(__file__).parent.glob("*.py"),
        *Path(isa.instructions.__file__).parent.glob("*.py"),
        Path(isa.word.__file__),
        Path(isa.logarithms.__file__),
        Path(isa.scores.__file__),
    ]
    files += [Path(__file__).parent.parent / name for name in ("record.py", "decoded.py")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files)))
    return int.from_bytes(digest.digest()[:7], "little")


_run = _compiled(_fingerprint())


class Workspace:
    """Scratch arrays for one thread; `places` holds their addresses."""

    def __init__(self, program: Decoded) -> None:
        sizes, machine = program.scratch, program.machine
        self.arrays = {
            "events": np.zeros(SLOTS * sizes.events, np.int32),
            "starts": np.zeros(SLOTS * sizes.starts, np.int32),
            "common": np.zeros(sizes.pixels, np.int32),
            "read": np.zeros(sizes.pixels, np.int32),
            "pairs": np.zeros(sizes.pairs, np.int32),
            "masked": np.zeros(sizes.masked + 256, np.uint8),
            "compact": np.zeros(sizes.masked + 256, np.uint8),
            "busy": np.zeros(machine.window * machine.pairs, np.int64),
            "head": np.zeros(sizes.head, np.int32),
            "tail": np.zeros(64, np.uint8),
            "planes": np.zeros(8, np.int64),
            "packed": np.zeros(sizes.packed + 64, np.uint8),
            "offsets": np.zeros(MOST_OUTPUTS + SPARE_LANES, np.int32),
            "image": np.zeros(sizes.image + 128, np.uint8),
            "zeros": np.zeros(1024, np.uint8),
        }
        held = np.zeros((SLOTS + 1, COLUMNS), np.int64)
        addresses = {name: array.ctypes.data for name, array in self.arrays.items()}
        self.places = Scratch(**addresses, held=held, slot_events=sizes.events, slot_starts=sizes.starts)
        self.found = Found()


def walk(
    program: Decoded,
    state: State,
    workspace: Workspace,
    record: NDArray[np.int64],
    share: bool,
    start: int = 0,
    stop: int | None = None,
) -> int:
    """Run instructions start .. stop - 1 on `state`; instruction i fills row i of `record`.

    A taken exit ends the walk. Returns the number of the instruction behind the last one that ran. Behind Accumulates
    whose rows share beyond pairs the loop is left, and what they count is written over what it counted.
    """
    machine = program.machine
    port = PORTS.index(machine.weight_port)
    sizes = Sizes(machine.pairs, machine.window, port, machine.burst_bytes, machine.lanes, machine.neuron_lanes)
    regions = {name: region.ctypes.data for name, region in state.regions().items()}
    memories = Memories(memory=state.memory.ctypes.data, memory_bytes=len(state.memory), **regions)
    last = len(program.code) if stop is None else stop

    def to(first: int, end: int) -> int:
        return _run(program.code, program.planes, memories, workspace.places, sizes, share, record, first, end)[0]

    done = start
    for index in (
        program.reuses[bisect_left(program.reuses, start) : bisect_left(program.reuses, last)] if share else ()
    ):
        if index < done:  # a plane that was accumulated together with the first
            continue
        end = min(index + int(program.planes[index]), last)
        done = to(done, end)
        if done < end:
            return done
        for plane in range(index, end):
            each = program.instructions[plane]
            assert isinstance(each, Accumulate)
            count_reuse(each, state, machine, workspace.found, record[plane])
    return to(done, last)
