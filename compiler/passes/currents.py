"""What a weighted layer's result is for: a neuron's current, a membrane stream, another layer's input, or logits.

Passes that find ranges or choose integers ask here; nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.passes.rewriting import only_user, users

SOURCES = (spike.Conv, spike.Linear, spike.Attention)
"""Ops whose results are sums of products, in units of their own."""
THROUGH = (spike.Add, spike.MaxPool, spike.Reshape, spike.Transpose, spike.Range)
"""Ops that leave a current's unit as it is."""
NEURONS = (spike.Lif, spike.Level)


class Role(Enum):
    """What a current is for."""

    NEURON = "neuron"
    """It goes to one neuron, and nowhere else."""
    POOLED = "pooled"
    """As NEURON, through a max-pool."""
    STREAM = "stream"
    """It is added to others, or read more than once: a membrane stream with one scale."""
    INPUT = "input"
    """Weighted layers read it as it is."""
    HEAD = "head"
    """It is the logits, or what they are means of."""


@dataclass(eq=False)
class Group:
    """Currents that share one scale: what weighted layers make, and what additions and pooling make of it."""

    sources: list[spike.SpikeOperation] = field(default_factory=list[spike.SpikeOperation])
    members: list[spike.SpikeOperation] = field(default_factory=list[spike.SpikeOperation])
    """The sources, and the ops that their results go through, in program order."""

    @property
    def readers(self) -> list[spike.SpikeOperation]:
        """What reads the currents and is not one of them."""
        return [op for member in self.members for op in users(member.results[0]) if op not in self.members]

    @property
    def ranges(self) -> list[spike.Range]:
        return [op for op in self.members if isinstance(op, spike.Range)]

    @property
    def most(self) -> float | None:
        """The greatest magnitude that calibration saw, or None where none was recorded."""
        return max((op.get("most") for op in self.ranges), default=None)

    @property
    def role(self) -> Role:
        added = any(isinstance(op, spike.Add) for op in self.members)
        pooled = any(isinstance(op, spike.MaxPool) for op in self.members)
        readers = self.readers
        if all(reaches_output(op.results[0]) for op in self.sources):
            return Role.HEAD
        if added or len(self.sources) > 1:
            return Role.STREAM
        if len(readers) == 1 and isinstance(readers[0], NEURONS):
            return Role.POOLED if pooled else Role.NEURON
        if readers and not pooled and all(isinstance(op, spike.Conv | spike.Linear) for op in readers):
            return Role.INPUT
        return Role.STREAM


def currents(network: Network) -> dict[SSAValue, Group]:
    """The group of every current of a real module, by value."""
    groups: dict[SSAValue, Group] = {}
    for op in network.operations():
        assert isinstance(op, spike.SpikeOperation)
        if isinstance(op, SOURCES):
            groups[op.results[0]] = Group([op], [op])
        elif isinstance(op, THROUGH):
            met = [groups[operand] for operand in op.operands if operand in groups]
            if met:
                groups[op.results[0]] = met[0]
                met[0].members.append(op)
                _join(groups, met)
    return groups


def _join(groups: dict[SSAValue, Group], met: list[Group]) -> None:
    """Make the first of these groups hold what the others hold."""
    first = met[0]
    for other in met[1:]:
        if other is first:
            continue
        first.sources += other.sources
        first.members += other.members
        for value, group in groups.items():
            if group is other:
                groups[value] = first


def reaches_output(value: SSAValue) -> bool:
    """Whether only means, and additions of other logits, stand between a value and the output."""
    user = only_user(value)
    if isinstance(user, spike.Mean | spike.MeanTime | spike.Reshape | spike.Range | spike.Add | spike.Scale):
        return reaches_output(user.results[0])
    return isinstance(user, spike.Output)
