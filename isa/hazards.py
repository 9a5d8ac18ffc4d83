"""Which instruction must wait for which, and the tokens that make it wait.

Two instructions of different units conflict where they touch the same bytes of a buffer and one of them writes.
Footprints count as whole spans [start, stop), gaps included: simple, safe, and the same for compiler and verifier.
Only buffers matter: DRAM is touched by the DMA unit alone, whose queue is in order, and the word mask follows the
spike buffer. Instructions of one unit never need a token between them.

An exit is a fence: it waits for the decision that it acts on, and what stands behind it, on any unit, waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from isa.instructions import Decide, End, Exit
from isa.word import Access, Instruction, Region, Unit

UNITS = len(Unit)
NEVER = -1


class _Map:
    """For each segment of one region and each unit: the last instruction that wrote it, and that touched it.

    The segments lie between the addresses at which any access starts or stops.
    """

    def __init__(self, edges: set[int]) -> None:
        self.place = {edge: index for index, edge in enumerate(sorted(edges))}
        self.wrote = np.full((UNITS, len(edges)), NEVER, np.int32)
        self.touched = np.full((UNITS, len(edges)), NEVER, np.int32)

    def conflicts(self, access: Access) -> list[int]:
        """Per unit, the last instruction in conflict with this access."""
        last = self.touched if access.writes else self.wrote
        return last[:, self.place[access.start] : self.place[access.stop]].max(axis=1).tolist()

    def enter(self, access: Access, unit: Unit, index: int) -> None:
        segments = slice(self.place[access.start], self.place[access.stop])
        self.touched[unit, segments] = index
        if access.writes:
            self.wrote[unit, segments] = index


def buffer_accesses(instruction: Instruction) -> tuple[Access, ...]:
    """The footprints that can conflict with another unit."""
    return tuple(access for access in instruction.accesses() if access.region != Region.DRAM)


def dependences(code: Sequence[Instruction]) -> list[tuple[int, ...]]:
    """Per instruction, for each unit the index of its latest earlier instruction in conflict, or -1.

    The entry of the instruction's own unit is -1. `End` depends on the last instruction of every other unit, `Exit` on
    the latest decision, and whatever stands behind an exit on the latest one.
    """
    footprints = [buffer_accesses(instruction) for instruction in code]
    maps = _maps(footprints)
    last = [NEVER] * UNITS
    decided, fence = NEVER, NEVER
    result: list[tuple[int, ...]] = []
    for index, (instruction, accesses) in enumerate(zip(code, footprints, strict=True)):
        latest = [NEVER] * UNITS
        for access in accesses:
            latest = list(map(max, latest, maps[access.region].conflicts(access)))
        latest[Unit.CONTROL] = fence
        if isinstance(instruction, End):
            latest = last.copy()
        elif isinstance(instruction, Exit):
            latest[Decide.unit], fence = decided, index
        elif isinstance(instruction, Decide):
            decided = index
        latest[instruction.unit] = NEVER
        result.append(tuple(latest))
        last[instruction.unit] = index
        for access in accesses:
            maps[access.region].enter(access, instruction.unit, index)
    return result


def _maps(footprints: Iterable[tuple[Access, ...]]) -> dict[Region, _Map]:
    edges: dict[Region, set[int]] = {region: set() for region in Region}
    for accesses in footprints:
        for access in accesses:
            edges[access.region].update((access.start, access.stop))
    return {region: _Map(found) for region, found in edges.items()}


def synchronise(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """The (wait, post) masks that order every conflict, with no token that another already implies.

    A token is needed where an instruction depends on one that is not yet known to have ended. Known is, by vector
    clocks, what the own queue has ended, what it waited for, and what those had waited for. Along each ordered pair
    of units both ends of the tokens only move forward, so the queues match the k-th post with the k-th wait. The
    masks that `code` already has are ignored.
    """
    waits, posts = [0] * len(code), [0] * len(code)
    ended: list[list[int]] = []
    known = [[NEVER] * UNITS for _ in Unit]
    for index, (instruction, needed) in enumerate(zip(code, dependences(code), strict=True)):
        unit = instruction.unit
        now = known[unit].copy()
        # The latest producer first: it may have waited for the others.
        for producer_index, producer in sorted(((last, unit) for unit, last in enumerate(needed)), reverse=True):
            if producer_index > now[producer]:
                waits[index] |= 1 << producer
                posts[producer_index] |= 1 << unit
                now = list(map(max, now, ended[producer_index]))
        now[unit] = index
        known[unit] = now
        ended.append(now)
    return list(zip(waits, posts, strict=True))


def with_tokens(code: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The same code with the waits and posts of `synchronise`."""
    masks = synchronise(code)
    return tuple(replace(item, wait=wait, post=post) for item, (wait, post) in zip(code, masks, strict=True))
