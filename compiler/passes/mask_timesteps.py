"""mask-timesteps: timesteps that masks make unused disappear."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, IntAttr
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import Emit
from compiler.ir.network import Network
from compiler.ir.types import Shaped, Train, shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, erase, erase_unread, remake, replace_op, users
from compiler.passes.timesteps import sums_of_logits
from isa.errors import CStepWarning

NEURONS = (spike.IntegerLif, spike.IntegerLevel)
ZERO_OF_ZERO = (
    spike.Conv, spike.Linear, spike.MaxPool, spike.Dilate, spike.Pad, spike.Reshape, spike.Transpose,
    spike.Slice, spike.Sum, spike.HeadSum,
)  # fmt: skip
"""Ops of one operand that give 0 where it is 0, unless they have a bias or a border. Currents begin at `align`."""
PRODUCTS = (spike.Attention, spike.Multiply, spike.Mask)
"""Ops that give 0 where any operand is 0."""
WHOLE = (spike.SumTime, spike.MeanTime, spike.RunningSum, spike.Exit)
"""Ops that need all the timesteps of their operand."""
KEEP_THEIRS = (spike.Input, spike.Exit)
"""Ops whose result has the timesteps that it has."""


@dataclass(frozen=True)
class MaskTimesteps(NetworkPass):
    """Drop what timestep masks make unused (DTS-SNN eq. 5, 7): layers have timesteps of their own.

        %c = spike.linear %x, @fc1                : !spike.train<T=4, 64x384xint<-812, 790>>
        %a = spike.align %c, @b1 shift=2          : !spike.train<T=4, 64x384xint<-3300, 3244>>
        %s = spike.integer_lif %a ... mask=[1, 1, 0, 0] : !spike.train<T=4, 64x384xi1>
        %y = spike.linear %s, @fc2                : !spike.train<T=4, 64x96xint<-812, 790>>
        %d = spike.align %y, @b2 shift=2          : !spike.train<T=4, 64x96xint<-3300, 3244>>
    becomes
        %x.2 = spike.truncate %x                  : !spike.train<T=2, 64x96xi1>
        %c = spike.linear %x.2, @fc1              : !spike.train<T=2, 64x384xint<-812, 790>>
        %a = spike.align %c, @b1 shift=2          : !spike.train<T=2, 64x384xint<-3300, 3244>>
        %s = spike.integer_lif %a ...             : !spike.train<T=2, 64x384xi1>
        %y = spike.linear %s, @fc2                : !spike.train<T=2, 64x96xint<-812, 790>>
        %e = spike.extend %y                      : !spike.train<T=4, 64x96xint<-812, 790>>
        %d = spike.align %e, @b2 shift=2          : !spike.train<T=4, 64x96xint<-3300, 3244>>

    Forward, zeros of later timesteps sink through what makes zeros of them, to where a bias is added: later values are
    that bias, a constant per channel. Backward, what is read by no later timestep is not computed at any, up to the
    input. A mask with holes stays up to its last 1, with a warning. Of a layer whose mask is all 0 one timestep stays,
    with a mask of 0: its readers need a train, and one is the least that a train has.
    """

    name = "mask-timesteps"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    def apply(self, network: Network) -> Network:
        masked = [op for op in network.operations() if isinstance(op, NEURONS) and op.get("mask")]
        if not masked:
            return network
        network = network.clone()
        summed = _summed(network)
        for op in list(network.operations()):
            if isinstance(op, NEURONS) and op.get("mask"):
                _cut_behind(op)
        for op in list(network.operations()):
            if isinstance(op, spike.SpikeOperation) and op.parent is not None:
                _sink(op)
        _narrow(network)
        for op in network.operations():
            if isinstance(op, spike.Output) and _summed(network) < summed and not op.get("steps"):
                op.properties["steps"] = IntAttr(summed)
        return network


def _summed(network: Network) -> int:
    """The most timesteps that logits are sums of; 0 where they are sums of none."""
    return max((op.operand_type().steps or 0 for op in sums_of_logits(network)), default=0)


def _cut_behind(op: spike.SpikeOperation) -> None:
    """neuron(x, mask=1100) -> extend(neuron(truncate(x)))."""
    mask: tuple[int, ...] = op.get("mask")
    ones = [step for step, each in enumerate(mask) if each]
    kept = max(ones, default=0) + 1
    if 0 in mask[:kept] and ones:
        spelled = "".join(map(str, mask))
        text = (
            f"mask-timesteps: {op.label}: mask {spelled} has holes; its {kept} timesteps up to the last 1 are computed"
        )
        warnings.warn(text, CStepWarning, stacklevel=3)
    if kept == len(mask):
        _keep_mask(op, mask)
        return
    emit, kind = emitter(op), op.result_type
    new = remake(op, [_first(op.operands[0], kept, emit)], _lasting(kind, kept))
    _keep_mask(new, mask[:kept])
    replace_op(op, _extended(emit(new), kind.steps or 0, emit))


def _keep_mask(op: spike.SpikeOperation, mask: tuple[int, ...]) -> None:
    if 0 in mask:
        op.properties["mask"] = ArrayAttr([IntAttr(each) for each in mask])
    else:
        op.properties.pop("mask", None)


def _sink(op: spike.SpikeOperation) -> None:
    """op(extend(x)) -> extend(op(x)), where later zeros make zeros; sums over time do not see them."""
    lengths = [_length(operand) for operand in op.operands]
    steps = op.result_type.steps if op.results else None
    if isinstance(op, spike.SumTime) and isinstance(op.operands[0].owner, spike.Extend):
        op.operands[0] = op.operands[0].owner.operands[0]
        return
    if steps is None or not lengths:
        return
    if isinstance(op, PRODUCTS):
        length = min(lengths)
    elif isinstance(op, spike.Add) or (isinstance(op, ZERO_OF_ZERO) and _has_no_constant(op)):
        length = max(lengths)
    else:
        return
    if length == steps:
        return
    emit, operands = emitter(op), list(op.operands)
    made = emit(remake(op, [_first(operand, length, emit) for operand in operands], _lasting(op.result_type, length)))
    replace_op(op, _extended(made, steps, emit))
    for operand in operands:
        erase_unread(operand)


def _has_no_constant(op: spike.SpikeOperation) -> bool:
    return all(op.symbol(key) is None for key in ("bias", "value")) and not (
        isinstance(op, spike.Linear) and op.get("accrues")
    )


def _length(value: SSAValue) -> int:
    """Timesteps behind which a train is 0."""
    owner = value.owner
    return shaped((owner.operands[0] if isinstance(owner, spike.Extend) else value).type).steps or 0


def _narrow(network: Network) -> None:
    """Give every op as many timesteps as are read, and no more; what nothing reads goes."""
    _drop_dead(network)
    read: dict[SSAValue, int] = {}
    for op in reversed(list(network.operations())):
        for operand, steps in _reads(op, read):
            read[operand] = max(read.get(operand, 0), steps)
    for op in list(network.operations()):
        if isinstance(op, spike.SpikeOperation) and op.results and not isinstance(op, KEEP_THEIRS):
            least = read.get(op.results[0])
            if least is not None and op.result_type.steps is not None:
                _shorten(op, least)
    _drop_dead(network)


def _drop_dead(network: Network) -> None:
    for op in reversed(list(network.operations())):
        if op.results and not op.results[0].uses and not isinstance(op, spike.Input):
            erase(op)


def _shorten(op: spike.SpikeOperation, steps: int) -> None:
    """The op with `steps` timesteps, on as many of its operands."""
    emit = emitter(op)
    if isinstance(op, spike.Extend | spike.Truncate):
        value = _first(op.results[0], steps, emit)
        if value is not op.results[0]:
            replace_op(op, value)
        return
    operands = [_first(operand, steps, emit) for operand in op.operands]
    if op.result_type.steps == steps and all(new is old for new, old in zip(operands, op.operands, strict=True)):
        return
    new = remake(op, operands, _lasting(op.result_type, steps))
    if isinstance(op, NEURONS) and op.get("mask"):
        _keep_mask(new, op.get("mask")[:steps])
    replace_op(op, emit(new))


def _reads(op: spike.SpikeOperation | object, read: dict[SSAValue, int]) -> list[tuple[SSAValue, int]]:
    """How many timesteps of each of its operands an op reads, where so many of its result are read."""
    if not isinstance(op, spike.SpikeOperation):
        return []
    own = read.get(op.results[0], 0) if op.results else 0
    found: list[tuple[SSAValue, int]] = []
    for operand in op.operands:
        steps = shaped(operand.type).steps
        if steps is not None:
            found.append((operand, steps if isinstance(op, WHOLE) else min(own, steps)))
    return found


def _first(value: SSAValue, steps: int, emit: Emit) -> SSAValue:
    """The first `steps` timesteps of a train, or zeros behind them where it is extended; a tensor is itself."""
    kind, owner = shaped(value.type), value.owner
    if kind.steps is None:
        return value
    assert isinstance(owner, spike.SpikeOperation)
    if isinstance(owner, spike.Extend):
        inner = owner.operands[0]
        short = shaped(inner.type).steps or 0
        return _first(inner, steps, emit) if steps <= short else _extended(inner, steps, emit, owner)
    if isinstance(owner, spike.Truncate):
        return _first(owner.operands[0], steps, emit)
    if kind.steps == steps:
        return value
    result = _lasting(kind, steps)
    if isinstance(owner, spike.Repeat):
        return emit(spike.Repeat.make(owner.operands[0], result=result, source=owner.source, hint=owner.label))
    for op in users(value):
        if isinstance(op, spike.Truncate) and op.result_type.steps == steps:
            return op.results[0]
    made = spike.Truncate.make(value, result=result, source=owner.source, hint=f"{owner.label}.first")
    block = owner.parent_block()
    assert block is not None
    block.insert_op_after(made, owner)  # where every reader can have it
    return made.results[0]


def _extended(value: SSAValue, steps: int, emit: Emit, old: spike.Extend | None = None) -> SSAValue:
    """The train, and zeros up to `steps` timesteps; `old` where it is the same op."""
    kind, owner = shaped(value.type), value.owner
    if kind.steps == steps:
        return value
    if old is not None and old.result_type.steps == steps:
        return old.results[0]
    assert isinstance(owner, spike.SpikeOperation)
    result = _lasting(kind, steps)
    return emit(spike.Extend.make(value, result=result, source=owner.source, hint=f"{owner.label}.extend"))


def _lasting(kind: Shaped, steps: int) -> Train:
    return Train.of(steps, kind.sizes, kind.element)
