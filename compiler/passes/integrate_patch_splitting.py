"""integrate-patch-splitting: every block sees the same at every timestep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.operation import SpikeOperation
from compiler.ir.types import Element, Tensor, Train, shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import remake, replace_op
from isa.errors import CStepError

Reader = tuple[SpikeOperation, int]
"""An op, and which of its operands."""
MOVES = (spike.Repeat, spike.Reshape, spike.Transpose, spike.Slice, spike.MaxPool, spike.Dilate, spike.Pad)
"""Ops whose results are their operand's values."""


@dataclass(frozen=True)
class IntegratePatchSplitting(NetworkPass):
    """Sum over time what the patch splitting fires, and show the sum at every timestep (STAS, section 3.1).

        %patch_embed.add = spike.add %p, %s                   : !spike.train<T=4, 64x64xcount<2>>
        %c = spike.linear %patch_embed.add, @q                : !spike.train<T=4, 64x64xf32>
        %r = spike.add %patch_embed.add, %a                   : !spike.train<T=4, 64x64xcount<3>>
    becomes
        %patch_embed.add = spike.add %p, %s                   : !spike.train<T=4, 64x64xcount<2>>
        %patch_embed.sum_time = spike.sum_time %patch_embed.add : !spike.tensor<64x64xcount<8>>
        %patch_embed.repeat = spike.repeat %patch_embed.sum_time : !spike.train<T=4, 64x64xcount<8>>
        %c = spike.linear %patch_embed.repeat, @q             : !spike.train<T=4, 64x64xf32>
        %r = spike.add %patch_embed.repeat, %a                : !spike.train<T=4, 64x64xcount<9>>

    For a model that was trained so and is written without it. The patch splitting is what is labelled `prefix`. What
    leaves it is summed where it is spikes or counts; where it is a current, the last spikes on the way to it are, and
    the layers behind them are computed once. It stands first in a pipeline: what ranges, scales and bounds are found
    for, and what hoist-invariant then computes once, is the network behind it. With one timestep nothing changes.
    """

    name = "integrate-patch-splitting"
    keeps: ClassVar[Keeps] = Keeps.LOSSY

    prefix: str = "patch_embed"
    """The first part of the labels of the patch splitting: its name in the model."""

    def apply(self, network: Network) -> Network:
        network = network.clone()
        ops = [op for op in network.operations() if isinstance(op, SpikeOperation)]
        inside = self._inside(ops)
        leaving = [
            (reader, index)
            for reader in ops
            if reader not in inside
            for index, operand in enumerate(reader.operands)
            if operand.owner in inside
        ]
        summed: dict[SSAValue, SSAValue] = {}
        for reader, index in self._last_spikes(leaving):
            value = reader.operands[index]
            if (shaped(value.type).steps or 1) > 1:
                if value not in summed:
                    summed[value] = _at_every_timestep(value, self.prefix)
                reader.operands[index] = summed[value]
        _retype(network, set(summed.values()))
        return network

    def _inside(self, ops: list[SpikeOperation]) -> set[SpikeOperation]:
        """The ops of the patch splitting. Raises CStepError where there is none, or nothing to sum."""
        inside = {op for op in ops if op.label.startswith(f"{self.prefix}.")}
        if any(isinstance(op, spike.Input) and op.result_type.steps is not None for op in ops):
            raise self._refused("the input is events, another image at every timestep; it must be one image")
        if any(isinstance(op, spike.QuantiseImage) for op in ops):
            raise self._refused("the network is integers already; it must stand in front of quantise")
        if not inside:
            parts = dict.fromkeys(op.label.partition(".")[0] for op in ops if op.results and "." in op.label)
            raise self._refused(f"no label begins with {self.prefix}.; prefix must be one of {', '.join(parts)}")
        if any(isinstance(op, spike.SumTime) for op in inside):
            raise self._refused(f"{self.prefix} is summed over time already; leave this pass out")
        return inside

    def _last_spikes(self, leaving: list[Reader]) -> list[Reader]:
        """Readers of the last spikes or counts on the way to what leaves the patch splitting."""
        found: dict[Reader, None] = {}
        ahead = list(leaving)
        while ahead:
            op, index = ahead.pop(0)
            value = op.operands[index]
            maker = value.owner
            if shaped(value.type).element.is_count:
                found[op, index] = None
            elif isinstance(maker, SpikeOperation) and maker.operands:
                ahead += [(maker, each) for each in range(len(maker.operands))]
            else:
                raise self._refused(f"no neuron stands between the input and what leaves {self.prefix}")
        return list(found)

    def _refused(self, message: str) -> CStepError:
        return CStepError(f"{self.name}: {message}")


def _at_every_timestep(value: SSAValue, prefix: str) -> SSAValue:
    """repeat(sum_time(value)), right behind what makes it."""
    kind, owner = shaped(value.type), value.owner
    assert isinstance(owner, SpikeOperation) and kind.steps is not None
    block = owner.parent_block()
    assert block is not None
    element = Element.count(kind.element.bounds[1] * kind.steps)
    still, train = Tensor.of(kind.sizes, element), Train.of(kind.steps, kind.sizes, element)
    total = spike.SumTime.make(value, result=still, source=owner.source, hint=f"{prefix}.sum_time")
    repeat = spike.Repeat.make(total.results[0], result=train, source=owner.source, hint=f"{prefix}.repeat")
    block.insert_op_after(total, owner)
    block.insert_op_after(repeat, total)
    return repeat.results[0]


def _retype(network: Network, changed: set[SSAValue]) -> None:
    """Counts that are made of `changed` are larger."""
    for op in list(network.operations()):
        if isinstance(op, SpikeOperation) and any(operand in changed for operand in op.operands):
            element = _counted(op)
            if element is not None and element != op.result_type.element:
                new = remake(op, list(op.operands), op.result_type.with_element(element))
                block = op.parent_block()
                assert block is not None
                block.insert_op_before(new, op)
                replace_op(op, new.results[0])
                changed.add(new.results[0])


def _counted(op: SpikeOperation) -> Element | None:
    """The element of an op that moves or adds counts; None of others, whose results are as before."""
    elements = [op.operand_type(index).element for index in range(len(op.operands))]
    most = [element.bounds[1] for element in elements]
    if not all(element.is_count for element in elements):
        return None
    match op:
        case spike.Add():
            return Element.count(sum(most))
        case spike.Sum():
            return Element.count(most[0] * op.operand_type().sizes[op.get("axis")])
        case spike.SumTime():
            return Element.count(most[0] * (op.operand_type().steps or 1))
        case _:
            return elements[0] if isinstance(op, MOVES) else None


__all__ = ["IntegratePatchSplitting"]
