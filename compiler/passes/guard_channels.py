"""guard-channels: channels that were silent early are left out later (C-STEP's early-guided channel pruning)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.time_ops import SKIPS
from compiler.ir.types import shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import users
from compiler.passes.timesteps import makes_logits, network_steps
from isa.errors import CStepError

NEURONS = (spike.IntegerLif, spike.IntegerLevel)
WEIGHTED = (spike.Conv, spike.Linear)


@dataclass(frozen=True)
class GuardChannels(NetworkPass):
    """Guard channels that are silent in the first timesteps: later ones do not compute (columns) or read (rows) them.

        %s = spike.integer_lif %a, @threshold ...       : !spike.train<T=4, 64x96xi1>
        %y = spike.linear %s, @fc2                      : !spike.train<T=4, 64x384xint<-812, 790>>
    becomes, with mode=both
        %s = spike.integer_lif %a, @threshold ...       : !spike.train<T=4, 64x96xi1>
        %g = spike.guard %s after=2                     : !spike.train<T=4, 64x96xi1>
        %y = spike.linear %g, @fc2                      : !spike.train<T=4, 64x384xint<-812, 790>>

    columns: a guard behind every neuron layer, before anything is added to its spikes. rows: one in front of the
    convolutions and linear layers that read a train of spikes or counts, for them alone. both: guards behind neurons
    serve the layers that read them, too; what these layers read otherwise gets one that skips rows. Neurons on hoisted
    currents fire ahead for all timesteps, so only their readers skip rows. The classifier skips nothing.
    """

    name = "guard-channels"
    keeps: ClassVar[Keeps] = Keeps.LOSSY

    mode: str = "both"
    """Whose work is skipped: rows (weighted layers that read), columns (those that produce), or both."""
    after: int = 2
    """Timesteps that are counted; from this one on silent channels are 0. The paper's t0 = 1 is 2 here."""
    threshold: int = 0
    """The most bits that a silent channel has, over these timesteps and all tokens."""

    def __post_init__(self) -> None:
        if self.mode not in SKIPS:
            raise CStepError(f"guard-channels: mode={self.mode}; it must be one of {', '.join(SKIPS)}")
        if not 0 <= self.threshold < (1 << 16) - 1:
            raise CStepError(f"guard-channels: threshold={self.threshold}; it must be in 0..65534")

    def apply(self, network: Network) -> Network:
        network = network.clone()
        steps = network_steps(network)
        if steps < 2:
            raise CStepError("guard-channels: the network has T=1; there is no later timestep that could be guarded")
        if not 0 < self.after < steps:
            raise CStepError(f"guard-channels: after={self.after}; with T={steps} it must be in 1..{steps - 1}")
        ops = list(network.operations())
        if any(isinstance(op, spike.Guard) for op in ops):
            raise CStepError("guard-channels: the network has guards; give their mode at once")
        if not any(isinstance(op, NEURONS) for op in ops):
            raise CStepError("guard-channels: the network has no integer neurons to guard; quantise it first")
        for op in ops:
            if self.mode != "rows" and isinstance(op, NEURONS) and not _is_hoisted(op):
                self._guard_columns(op)
        if self.mode != "columns":
            for value in [op.results[0] for op in network.operations() if op.results]:
                self._guard_rows(value)
        return network

    def _guard_columns(self, op: spike.SpikeOperation) -> None:
        """One guard for all that read a neuron layer."""
        serves = self.mode == "both" and any(is_weighted(reader) for reader in _readers(op.results[0]))
        readers = users(op.results[0])
        if self._can_guard(op.results[0]) and readers:
            self._insert(op.results[0], readers, "both" if serves else "columns")

    def _guard_rows(self, value: SSAValue) -> None:
        """One guard for the weighted layers that read a train which no guard is behind."""
        layers = [reader for reader in users(value) if is_weighted(reader)]
        if self._can_guard(value) and layers and not _is_guarded(value):
            self._insert(value, layers, "rows")

    def _can_guard(self, value: SSAValue) -> bool:
        kind = shaped(value.type)
        return kind.element.is_count and (kind.steps or 0) > self.after

    def _insert(self, value: SSAValue, readers: list[spike.SpikeOperation], skips: str) -> None:
        """`readers` read a guard of `value`, which stands right behind what makes it."""
        maker = value.owner
        assert isinstance(maker, spike.SpikeOperation)
        guard = spike.Guard.make(
            value,
            result=value.type,
            source=maker.source,
            hint=f"{maker.label}.guard",
            after=self.after,
            threshold=self.threshold,
            skips=skips,
        )
        block = maker.parent_block()
        assert block is not None
        block.insert_op_after(guard, maker)
        for reader in readers:
            for index, operand in enumerate(reader.operands):
                if operand is value:
                    reader.operands[index] = guard.results[0]


def is_weighted(op: spike.SpikeOperation) -> bool:
    """Whether an op reads weights by the row, and is not the classifier."""
    return isinstance(op, WEIGHTED) and not makes_logits(op.results[0])


def _is_hoisted(op: spike.SpikeOperation) -> bool:
    return isinstance(op.operands[0].owner, spike.Repeat) or op.result_type.steps is None


def _readers(value: SSAValue) -> Iterator[spike.SpikeOperation]:
    """What reads a value's channels, through views that only move its pixels."""
    for op in users(value):
        if _moves_pixels(op):
            yield from _readers(op.results[0])
        else:
            yield op


def _is_guarded(value: SSAValue) -> bool:
    """Whether a guard gives a value's channels, with only pixels moved behind it."""
    owner = value.owner
    while isinstance(owner, spike.SpikeOperation) and _moves_pixels(owner):
        owner = owner.operands[0].owner
    return isinstance(owner, spike.Guard)


def _moves_pixels(op: spike.SpikeOperation) -> bool:
    return isinstance(op, spike.Reshape) and op.result_type.sizes[-1:] == op.operand_type().sizes[-1:]
