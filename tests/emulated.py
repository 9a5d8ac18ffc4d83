"""Instructions executed by both kernel families on random memories."""

from __future__ import annotations

import numpy as np
from drawn import DRAM_BYTES, MEMORY_BYTES
from numpy.typing import NDArray

from isa.machine import Machine
from isa.program import Header, Input, Output, Program, Provenance
from isa.word import Instruction
from runtime.decoded import decoded
from runtime.fast.walk import Workspace
from runtime.fast.walk import walk as fast_walk
from runtime.record import RECORD, Record
from runtime.reference.walk import walk as reference_walk
from runtime.state import State


def program_of(code: list[Instruction], machine: Machine) -> Program:
    """A program around instructions; its input and output are never looked at."""
    header = Header(
        machine=machine,
        timesteps=4,
        dram_bytes=DRAM_BYTES,
        input=Input(kind="image", shape=(1, 1, 1), steps=1, address=0, scale=1.0, mean=(0.0,), std=(1.0,)),
        output=Output(address=0, classes=1, scale=1.0),
        layers=(),
        provenance=Provenance(model="", checkpoint="", calibration="", pipeline="", schedule="", version=""),
    )
    memory = np.random.default_rng(7).integers(0, 256, MEMORY_BYTES).astype(np.uint8)
    return Program(header, tuple(code), memory, np.zeros((0, 6), np.int32))


def random_state(program: Program, seed: int, density: float) -> State:
    """All memories random: accumulators and constants of moderate size, spikes of some density with empty words.

    The channel buffer's first half is for masks, with words and longer stretches that are silent or live as a whole;
    its second for counts, small ones and some next to the largest.
    """
    random, state = np.random.default_rng(seed), State.of(program)
    for region in (state.private, state.weight, state.output, state.constant, state.channel):
        region[:] = random.integers(0, 256, len(region))
    state.output.view("<i4")[:] >>= random.choice([6, 12, 20])
    state.constant.view("<i4")[:] >>= random.choice([4, 14, 24])
    bits = random.random((len(state.spike), 8)) < density
    words = np.packbits(bits, axis=1).reshape(-1).view("<u2")
    words[random.random(len(words)) < 0.3] = 0
    state.spike[:] = words.view(np.uint8)
    masks, counts = np.split(state.channel.view("<u2"), 2)
    for size in (1, 7):
        blocks = masks[: len(masks) // size * size].reshape(-1, size)
        blocks[random.random(len(blocks)) < 0.25] = 0
        blocks[random.random(len(blocks)) < 0.1] = 0xFFFF
    counts[random.random(len(counts)) < 0.8] >>= 13
    mask = np.packbits(words != 0, bitorder="little")
    state.mask[: len(mask)] = mask
    return state


def copy_of(program: Program, state: State) -> State:
    other = State.of(program)
    for name, region in other.regions().items():
        region[:] = state.regions()[name]
    return other


Run = tuple[dict[str, NDArray[np.uint8]], NDArray[np.int64]]


def both_families(program: Program, state: State, share: bool) -> tuple[Run, Run]:
    """Memories and record after the fast and after the reference family."""
    shared, other = decoded(program), copy_of(program, state)
    records = np.zeros((2, len(program.code), len(RECORD)), np.int64)
    fast_walk(shared, state, Workspace(shared), records[0], share)
    reference_walk(shared, other, records[1], share)
    return (state.regions(), records[0]), (other.regions(), records[1])


def assert_agree(code: list[Instruction], machine: Machine, seed: int, density: float, share: bool) -> None:
    program = program_of(code, machine)
    (fast, fast_record), (reference, record) = both_families(program, random_state(program, seed, density), share)
    for name, region in fast.items():
        assert np.array_equal(region, reference[name]), f"{name} differs at {np.flatnonzero(region != reference[name])}"
    assert Record(*fast_record.T.tolist()) == Record(*record.T.tolist())
