"""hoist-invariant: what is the same at every timestep is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.types import Tensor, shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, erase_unread, remake, replace_op

STATELESS = (
    spike.QuantiseImage, spike.Conv, spike.Linear, spike.Align, spike.Rescale, spike.IntegerLevel, spike.Add,
    spike.Multiply, spike.Mask, spike.MaxPool, spike.Dilate, spike.Pad, spike.Reshape, spike.Transpose, spike.Slice,
    spike.Sum, spike.HeadSum,
)  # fmt: skip
"""Ops that give the same at every timestep where they get the same, and may be of tensors."""


@dataclass(frozen=True)
class HoistInvariant(NetworkPass):
    """Compute once what is the same at every timestep, as the first layers on a static image are.

        %x = spike.repeat %image                  : !spike.train<T=4, 8x8x3xi8>
        %c = spike.conv %x, @w kernel=3 ...       : !spike.train<T=4, 8x8x16xint<-900, 871>>
        %a = spike.align %c, @b shift=2           : !spike.train<T=4, 8x8x16xint<-3641, 3502>>
        %s = spike.integer_lif %a, @threshold ... : !spike.train<T=4, 8x8x16xi1>
    becomes
        %c = spike.conv %image, @w kernel=3 ...   : !spike.tensor<8x8x16xint<-900, 871>>
        %a = spike.align %c, @b shift=2           : !spike.tensor<8x8x16xint<-3641, 3502>>
        %x = spike.repeat %a                      : !spike.train<T=4, 8x8x16xint<-3641, 3502>>
        %s = spike.integer_lif %x, @threshold ... : !spike.train<T=4, 8x8x16xi1>

    Neurons with a membrane stop it: each of their timesteps is another. So do a level neuron's timestep mask, attention
    and sums over time. Where T is 1 there is nothing to save, and the module stays as it is.
    """

    name = "hoist-invariant"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for op in list(network.operations()):
            if isinstance(op, STATELESS):
                _hoist(op)
        return network


def _hoist(op: spike.SpikeOperation) -> None:
    """op(repeat(x), repeat(y)) -> repeat(op(x, y))."""
    repeats = [operand.owner for operand in op.operands]
    steps = op.result_type.steps
    if steps is None or steps == 1 or not _is_the_same(op):
        return
    found = [owner for owner in repeats if isinstance(owner, spike.Repeat)]
    if len(found) != len(repeats):
        return
    kind = op.result_type
    emit = emitter(op)
    once = emit(remake(op, [owner.operands[0] for owner in found], Tensor.of(kind.sizes, kind.element)))
    label = f"{op.label}.repeat"
    operands = list(op.operands)
    replace_op(op, emit(spike.Repeat.make(once, result=shaped(kind), source=op.source, hint=label)))
    for operand in operands:
        erase_unread(operand)


def _is_the_same(op: spike.SpikeOperation) -> bool:
    """Whether an op computes the same at every timestep."""
    if isinstance(op, spike.IntegerLevel):
        return not op.get("mask")
    return not (isinstance(op, spike.Linear) and op.get("accrues"))


__all__ = ["STATELESS", "HoistInvariant"]
