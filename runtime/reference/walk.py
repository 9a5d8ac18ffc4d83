"""The reference family: one plain numpy function an instruction, one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import (
    Accumulate,
    Add,
    Attend,
    Classify,
    CountSpikes,
    Decide,
    Depthwise,
    Dilate,
    End,
    Exit,
    Fire,
    Guard,
    HaltSpikes,
    HaltValues,
    Keep,
    KeepBelow,
    KeepTop,
    Layer,
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
from isa.machine import Machine
from isa.word import Instruction
from runtime.decoded import Decoded
from runtime.reference import channels, dma, halting, neuron, pe, pool, sfu, tokens
from runtime.state import State


def walk(
    program: Decoded, state: State, record: NDArray[np.int64], share: bool, start: int = 0, stop: int | None = None
) -> int:
    """Run instructions start .. stop - 1 on `state`; instruction i fills row i of `record`.

    A taken exit ends the walk. Returns the number of the instruction behind the last one that ran.
    """
    stop = len(program.instructions) if stop is None else stop
    for index in range(start, stop):
        try:
            execute(program.instructions[index], state, program.machine, share, record[index])
        except CStepError as error:
            raise CStepError(f"code word {index}: {error}") from None
        if isinstance(program.instructions[index], Exit) and state.flags[0]:
            return index + 1
    return stop


def execute(each: Instruction, state: State, machine: Machine, share: bool, record: NDArray[np.int64]) -> None:
    """Run one instruction."""
    match each:
        case Load() | Store():
            dma.copy(each, state, machine, record)
        case Accumulate():
            pe.accumulate(each, state, machine, share, record)
        case Pair():
            pe.latch(each, state)
        case Depthwise():
            pe.depthwise(each, state, machine, record)
        case Multiply():
            pe.multiply(each, state, machine, record)
        case Attend():
            sfu.attend(each, state, machine, record)
        case Sum():
            sfu.add_up(each, state)
        case Classify():
            sfu.classify(each, state)
        case SumHeads():
            sfu.sum_heads(each, state)
        case SumValues():
            sfu.sum_values(each, state)
        case Decide():
            sfu.decide(each, state)
        case Fire():
            neuron.fire(each, state, machine, record)
        case CountSpikes():
            channels.count_spikes(each, state)
        case Guard():
            channels.guard(each, state)
        case Keep():
            tokens.keep(each, state)
        case ScoreSpikes() | ScoreValues():
            tokens.score(each, state)
        case KeepTop():
            tokens.keep_top(each, state)
        case HaltSpikes() | HaltValues():
            halting.halt(each, state)
        case KeepBelow():
            halting.keep_below(each, state)
        case WeighSpikes() | WeighValues():
            halting.weigh(each, state)
        case Rescale():
            neuron.rescale(each, state, machine, record)
        case Add() | Mask() | Pool() | PoolValues() | Dilate():
            _on_neuron_unit(each, state)
        case Layer() | Exit() | End():
            pass
        case _:
            raise CStepError(f"{each.mnemonic}: the reference family does not know this instruction")


def _on_neuron_unit(each: Add | Mask | Pool | PoolValues | Dilate, state: State) -> None:
    match each:
        case Add():
            neuron.add(each, state)
        case Mask():
            neuron.mask(each, state)
        case Pool():
            pool.pool(each, state)
        case PoolValues():
            pool.pool_values(each, state)
        case Dilate():
            pool.dilate(each, state)
