"""Proof that tokens balance, cannot deadlock, and order every conflict."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from isa.errors import CStepError
from isa.hazards import NEVER, UNITS, buffer_accesses, dependences
from isa.instructions import End, Exit
from isa.word import Access, Instruction, Unit


def check_order(code: Sequence[Instruction]) -> None:
    """Raises CStepError at the first token without its counterpart, or conflict that no token orders.

    Every wait must take a token that an earlier instruction posted: then running in program order never blocks,
    so no interleaving of the queues deadlocks.
    """
    queues: dict[tuple[int, int], deque[int]] = {(a, b): deque() for a in Unit for b in Unit}
    ended: list[list[int]] = []
    known = [[NEVER] * UNITS for _ in Unit]
    for index, (instruction, needed) in enumerate(zip(code, dependences(code), strict=True)):
        unit = instruction.unit
        now = known[unit].copy()
        for producer in _units(instruction.wait, "waits for", index, instruction):
            queue = queues[producer, unit]
            if not queue:
                raise CStepError(
                    f"{place(index, instruction)} waits for {name(producer)}, but no earlier {name(producer)} "
                    f"instruction has a token left for it (post={name(unit)})"
                )
            now = list(map(max, now, ended[queue.popleft()]))
        early = max(last if last > now[producer] else NEVER for producer, last in enumerate(needed))
        if early != NEVER:
            raise CStepError(_unordered(code, index, early))
        now[unit] = index
        known[unit] = now
        ended.append(now)
        for consumer in _units(instruction.post, "posts to", index, instruction):
            queues[unit, consumer].append(index)
    for (_, consumer), queue in queues.items():
        if queue:
            raise CStepError(
                f"{place(queue[0], code[queue[0]])} posts to {name(consumer)}, but no {name(consumer)} instruction "
                f"takes the token (wait={name(code[queue[0]].unit)})"
            )


def place(index: int, instruction: Instruction) -> str:
    return f"code word {index}: {instruction.mnemonic}:"


def name(unit: int) -> str:
    return Unit(unit).name.lower()


def span(access: Access) -> str:
    """A footprint as errors name it, first and last byte."""
    return f"{access.region.name}[{access.start}..{access.stop - 1}]"


def verb(access: Access) -> str:
    return "writes" if access.writes else "reads"


def _units(mask: int, does: str, index: int, instruction: Instruction) -> list[int]:
    units = [unit for unit in Unit if mask >> unit & 1]
    if instruction.unit in units:
        raise CStepError(
            f"{place(index, instruction)} {does} {name(instruction.unit)}, its own unit; its queue is in order anyway"
        )
    return [int(unit) for unit in units]


def _unordered(code: Sequence[Instruction], index: int, earlier: int) -> str:
    """Names the two accesses in conflict and the token that would order them."""
    late, early = code[index], code[earlier]
    remedy = f"it must wait for {name(early.unit)}, with a post to {name(late.unit)} at word {earlier} or after"
    if isinstance(late, End | Exit) or isinstance(early, Exit):
        return f"{place(index, late)} may come before word {earlier} ({early.mnemonic}) has ended; {remedy}"
    mine, other = next(
        (mine, other)
        for mine in buffer_accesses(late)
        for other in buffer_accesses(early)
        if mine.region == other.region
        and mine.start < other.stop
        and other.start < mine.stop
        and (mine.writes or other.writes)
    )
    done = "written" if other.writes else "read"
    return (
        f"{place(index, late)} {verb(mine)} {mine.field} {span(mine)}, maybe before word {earlier} ({early.mnemonic}) "
        f"has {done} {span(other)}; {remedy}"
    )
