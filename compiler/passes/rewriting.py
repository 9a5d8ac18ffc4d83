"""What passes that rewrite ops in place share: where new ops go, and how an old one is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import Operation, SSAValue

from compiler.ir import spike
from compiler.ir.layout import Emit
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import Shaped, shaped
from isa.errors import CStepError

Real = NDArray[np.float64]
Weighted = spike.Conv | spike.Linear


def emitter(before: spike.SpikeOperation) -> Emit:
    """Inserts ops before `before`; gives their results."""

    def emit(op: spike.SpikeOperation) -> SSAValue:
        block = before.parent_block()
        assert block is not None
        block.insert_op_before(op, before)
        return op.results[0]

    return emit


def insert_behind(value: SSAValue, op: spike.SpikeOperation) -> SSAValue:
    """Insert an op right behind what makes `value`; its result."""
    maker = value.owner
    assert isinstance(maker, spike.SpikeOperation)
    block = maker.parent_block()
    assert block is not None
    block.insert_op_after(op, maker)
    return op.results[0]


def erase(*ops: Operation) -> None:
    for op in ops:
        op.detach()
        op.erase()


def erase_unread(value: SSAValue) -> None:
    """Erase what makes a value that nothing reads any more."""
    owner = value.owner
    if isinstance(owner, spike.SpikeOperation) and owner.parent is not None and owner.operands and not value.uses:
        operands = list(owner.operands)
        erase(owner)
        for operand in operands:
            erase_unread(operand)


def replace_op(op: spike.SpikeOperation, value: SSAValue) -> None:
    """`value` in the place of the result of `op`, which goes."""
    op.results[0].replace_all_uses_with(value)
    erase(op)


def remake(op: spike.SpikeOperation, operands: Sequence[SSAValue], result: Shaped) -> spike.SpikeOperation:
    """The same op on other operands."""
    new = type(op)(
        operands=type(op).grouped(operands),
        result_types=[result],
        properties=dict(op.properties),
        attributes=dict(op.attributes),
    )
    new.results[0].name_hint = op.results[0].name_hint
    return new


def users(value: SSAValue) -> list[spike.SpikeOperation]:
    """The ops that read a value, in no order."""
    found = [use.operation for use in value.uses]
    return [op for op in found if isinstance(op, spike.SpikeOperation)]


def only_user(value: SSAValue) -> spike.SpikeOperation | None:
    """The one op that reads a value, or None where there are several or none."""
    found = users(value)
    return found[0] if len(found) == 1 else None


def weight_of(network: Network, op: HouseOperation, key: str) -> Real:
    """A weight that `op` names, in float64; to be read only, it may be the one in the store."""
    name = op.symbol(key)
    assert name is not None, (op.name, key)
    return network.weights[name].astype(np.float64, copy=False)


def let_go(network: Network, *layers: HouseOperation) -> None:
    """Drop from the store what only these ops, which went, named: in float64, large models have gigabytes."""
    named = network.named()
    for name in {name for layer in layers for key in layer.symbol_keys() if (name := layer.symbol(key))} - named:
        if network.weights.pop(name, None) is not None:
            network.retired.add(name)


def bias_of(network: Network, layer: Weighted) -> Real:
    """A layer's bias in float64, zeros where it has none."""
    if layer.symbol("bias") is None:
        return np.zeros(layer.result_type.sizes[-1])
    return weight_of(network, layer, "bias")


def layer_properties(layer: Weighted) -> dict[str, int]:
    """The properties of a convolution (kernel, stride, ...); none of a linear layer."""
    if isinstance(layer, spike.Linear):
        return {}
    return {"kernel": layer.get("kernel"), **{key: layer.get(key) for key in layer.DEFAULTS}}


def reshaped(value: SSAValue, like: Shaped, emit: Emit, op: HouseOperation) -> SSAValue:
    """`value` in the sizes of `like`, by a reshape where they differ."""
    kind = shaped(value.type)
    if kind.sizes == like.sizes:
        return value
    result = kind.with_sizes(like.sizes)
    return emit(spike.Reshape.make(value, result=result, source=op.source, hint=f"{op.label}.rows"))


def rows_of(value: SSAValue) -> tuple[int, int] | None:
    """Tokens and channels of a value with its channels last; None for one row of channels."""
    sizes = shaped(value.type).sizes
    return (prod(sizes[:-1]), sizes[-1]) if len(sizes) > 1 else None


def refuse(op: HouseOperation, message: str) -> CStepError:
    """An error that names the op and its source line."""
    where = f" ({op.source})" if op.source else ""
    return CStepError(f"{op.label}{where}: {message}")
