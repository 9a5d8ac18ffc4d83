"""allocate: every buffer gets its address."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import networkx as nx
from xdsl.dialects.builtin import IntAttr
from xdsl.ir import SSAValue

from compiler.backend.tile import aligned
from compiler.ir.cstep import BufferOp, ConstantOp, InputOp, InstructionOp, LayerOp, OutputOp
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.errors import CStepError
from isa.instructions import Guard
from isa.machine import Machine
from isa.word import Region


@dataclass(frozen=True)
class Allocate(NetworkPass):
    """Give every buffer an address, from when it is first written to when it is last read.

        %w = cstep.buffer region=weight, bytes=24576, group=fc1.weights : !cstep.bytes
    becomes
        %w = cstep.buffer region=weight, bytes=24576, group=fc1.weights, at=32768 : !cstep.bytes

    Buffers of one group (a role of a layer) take turns in an arena of as many slots as are live at once, and one more
    where there is room: the double buffer that lets a copy run ahead. Arenas that live at the same time interfere;
    they are coloured with addresses, largest first. In DRAM every train is its own group.
    """

    name = "allocate"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    def apply(self, network: Network) -> Network:
        return allocate(network, network.target)


@dataclass
class Arena:
    """The slots of one group in one region."""

    region: Region
    group: str
    buffers: list[BufferOp] = field(default_factory=list[BufferOp])
    first: int = 0
    last: int = 0
    slot_bytes: int = 0
    slots: int = 0
    address: int = 0

    @property
    def bytes(self) -> int:
        return self.slot_bytes * self.slots


def capacities(machine: Machine) -> dict[Region, int]:
    """Bytes of the on-chip regions."""
    return {
        Region.WEIGHT: machine.weight_buffer_bytes,
        Region.SPIKE: min(machine.spike_buffer_bytes, 2 * machine.spike_words),
        Region.OUTPUT: machine.output_buffer_bytes,
        Region.CONSTANT: machine.constant_buffer_bytes,
        Region.CHANNEL: machine.channel_buffer_bytes,
    }


def allocate(network: Network, machine: Machine) -> Network:
    """Addresses for all buffers and constants."""
    network = network.clone()
    lives = _lives(network)
    arenas = _arenas(network, lives)
    memory = _place_constants(network)
    for region in Region:
        chosen = [arena for arena in arenas if arena.region == region]
        if region == Region.DRAM:
            _place(chosen, memory, 1 << 30, "DRAM")
        else:
            capacity = capacities(machine)[region]
            if region == Region.CHANNEL:
                _expect_room_for_guards(chosen, machine)
            _place(chosen, 0, capacity, f"the {region.name.lower()} buffer")
            _widen(chosen, capacity)
    for arena in arenas:
        _assign(arena, lives)
    return network


def _lives(network: Network) -> dict[SSAValue, tuple[int, int]]:
    """First and last instruction that touches each buffer; the input and output live throughout."""
    lives: dict[SSAValue, tuple[int, int]] = {}
    operations = list(network.operations())
    for index, op in enumerate(operations):
        if isinstance(op, InstructionOp):
            for buffer in op.operands:
                first, _ = lives.get(buffer, (index, index))
                lives[buffer] = (first, index)
    for op in operations:
        if isinstance(op, InputOp | OutputOp):
            lives[op.operands[0]] = (0, len(operations))
    return lives


def _arenas(network: Network, lives: dict[SSAValue, tuple[int, int]]) -> list[Arena]:
    """Groups of buffers with how many slots they need, and from when to when.

    A layer that comes back in a later window has new arenas there, not some that live in between.
    """
    arenas: dict[tuple[Region, str, int], Arena] = {}
    mark = 0
    for op in network.operations():
        mark += isinstance(op, LayerOp)
        if not isinstance(op, BufferOp) or op.results[0] not in lives:
            continue
        region, group = Region[op.get("region").upper()], op.get("group")
        first, last = lives[op.results[0]]
        arena = arenas.setdefault((region, group, mark), Arena(region, group, first=first, last=last))
        arena.buffers.append(op)
        arena.first, arena.last = min(arena.first, first), max(arena.last, last)
        size = op.get("bytes")
        arena.slot_bytes = max(arena.slot_bytes, size if region == Region.CHANNEL else aligned(size))
    for arena in arenas.values():
        arena.slots = _most_live(lives[op.results[0]] for op in arena.buffers)
    return list(arenas.values())


def _most_live(lives: Iterable[tuple[int, int]]) -> int:
    """How many intervals overlap at most."""
    events: dict[int, int] = defaultdict(int)
    for first, last in lives:
        events[first] += 1
        events[last + 1] -= 1
    live = most = 0
    for index in sorted(events):
        live += events[index]
        most = max(most, live)
    return most


def _place_constants(network: Network) -> int:
    """The memory image: constants one after the other. Returns its size."""
    address = 0
    for op in network.operations():
        if isinstance(op, ConstantOp):
            name = op.symbol("content")
            assert name is not None
            op.properties["at"] = IntAttr(address)
            address += aligned(network.weights[name].size)
    return address


def _interference(arenas: list[Arena]) -> nx.Graph[int]:
    """Arenas that live at the same time."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(arenas)))
    open_arenas: list[int] = []
    for index in sorted(range(len(arenas)), key=lambda i: arenas[i].first):
        open_arenas = [other for other in open_arenas if arenas[other].last >= arenas[index].first]
        graph.add_edges_from((index, other) for other in open_arenas)
        open_arenas.append(index)
    return graph


def _place(arenas: list[Arena], start: int, capacity: int, where: str) -> None:
    """Lowest address at which an arena meets none of those that interfere with it, largest first."""
    graph = _interference(arenas)
    placed: set[int] = set()
    for index in sorted(range(len(arenas)), key=lambda i: (-arenas[i].bytes, i)):
        arena = arenas[index]
        taken = sorted((arenas[n].address, arenas[n].address + arenas[n].bytes) for n in graph[index] if n in placed)
        address = start
        for low, high in taken:
            if address + arena.bytes <= low:
                break
            address = max(address, high)
        if address + arena.bytes > capacity:
            raise CStepError(f"{arena.group}: {arena.bytes} bytes do not fit {where} ({capacity} bytes)")
        arena.address = address
        placed.add(index)


def _expect_room_for_guards(arenas: list[Arena], machine: Machine) -> None:
    """Raises CStepError where counts and masks that live at the same time need more than the channel buffer."""
    if not arenas:
        return
    _place(arenas, 0, 1 << 30, "the channel buffer")
    last = max(arenas, key=lambda arena: arena.address + arena.bytes)
    needed = last.address + last.bytes
    if needed > machine.channel_buffer_bytes:
        most = 1 << Guard.specs["mask"].bits
        remedy = f"channel_buffer_bytes={needed} would do" if needed <= most else f"no machine has more than {most}"
        raise CStepError(
            f"{last.group}: counts and masks of guarded channels need {needed} bytes here; the channel buffer of "
            f"machine {machine.name} has {machine.channel_buffer_bytes}; {remedy}"
        )


def _widen(arenas: list[Arena], capacity: int) -> None:
    """One more slot for arenas that have several buffers, where the space behind them is free."""
    graph = _interference(arenas)
    for index, arena in enumerate(arenas):
        if len(arena.buffers) <= arena.slots:
            continue
        end = arena.address + arena.bytes
        above = [arenas[n].address for n in graph[index] if arenas[n].address >= end]
        if end + arena.slot_bytes <= min([*above, capacity]):
            arena.slots += 1


def _assign(arena: Arena, lives: dict[SSAValue, tuple[int, int]]) -> None:
    """Buffers take the slot that has been free for longest."""
    free_from = [-1] * arena.slots
    for op in sorted(arena.buffers, key=lambda op: lives[op.results[0]]):
        first, last = lives[op.results[0]]
        slot = min((s for s in range(arena.slots) if free_from[s] < first), key=lambda s: free_from[s])
        free_from[slot] = last
        op.properties["at"] = IntAttr(arena.address + slot * arena.slot_bytes)
