"""What stages take from single ops: geometries, weights in the machine's order, constants, the head's pattern."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.stages import Geometry, Neurons, Rescaling, RowSharing
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from isa.errors import CStepError
from isa.instructions import SPIKES_PER_WORD

Alias = Callable[[SSAValue], SSAValue]
"""The value whose bytes a value is."""


def refuse(op: HouseOperation, message: str) -> CStepError:
    """An error that names the op and its source line."""
    where = f" ({op.source})" if op.source else ""
    return CStepError(f"{op.label}{where}: {message}")


def geometry_of(op: spike.Conv | spike.Linear | spike.MaxPool) -> Geometry:
    """The window of a convolution, linear layer or pooling."""
    sizes, out = op.operand_type().sizes, op.result_type.sizes
    if isinstance(op, spike.Linear):
        tokens = prod(sizes[:-1])
        return Geometry(1, tokens, 1, tokens, 1, 1, 0)
    kernel, stride, padding = (op.get(key) for key in ("kernel", "stride", "padding"))
    is_flat = isinstance(op, spike.Conv) and op.get("rows") == 1
    if is_flat and stride > 1 and sizes[0] > 1:
        raise refuse(op, f"rows=1 with stride={stride} over {sizes[0]} rows; the machine's windows have one stride")
    return Geometry(out[0], out[1], sizes[0], sizes[1], kernel, stride, padding, is_flat)


def weights_of(op: spike.Conv | spike.Linear, network: Network, is_train: bool) -> tuple[str, int, NDArray[np.int8]]:
    """Operation, groups and weights [kernel rows, kernel, in of a group, out] of a weighted layer.

    A depthwise convolution of a train stays one, [kernel rows, kernel, 1, channels]. Groups of other convolutions
    are computed one by one where their channels are whole spike words on both sides; otherwise the weight is dense,
    with zeros, and charged as executed.
    """
    if op.symbol("bias"):
        raise refuse(op, "has a bias of its own; before a neuron it belongs into the align")
    weight = network.weights[symbol_of(op, "weight")].astype(np.int8)
    if isinstance(op, spike.Linear):
        return "linear", 1, np.ascontiguousarray(weight.T[None, None])
    groups, (outputs, inputs) = op.get("groups"), weight.shape[:2]
    operation = "conv"
    if groups == outputs and inputs == 1 and groups > 1 and is_train:
        operation, groups = "depthwise", 1
        weight = weight.transpose(1, 0, 2, 3)
    elif groups > 1 and not (is_train and inputs % SPIKES_PER_WORD == outputs // groups % SPIKES_PER_WORD == 0):
        weight, groups = _dense(weight, groups), 1
    return (
        operation,
        groups,
        np.ascontiguousarray(weight.transpose(2, 3, 1, 0) if operation == "conv" else weight.transpose(2, 3, 0, 1)),
    )


def sharing_of(op: spike.Conv | spike.Linear, network: Network) -> RowSharing:
    """How the layer's rows share, as `factor-common-spikes` wrote it."""
    name = op.symbol("partners")
    partners = None if name is None else network.weights[name].astype(np.uint16)
    return RowSharing(op.get("sharing"), partners, op.get("over") == "timesteps")


def _dense(weight: NDArray[np.int8], groups: int) -> NDArray[np.int8]:
    """The weight of a grouped convolution as one [out, in, ...], zeros between groups."""
    outputs, inputs = weight.shape[:2]
    dense = np.zeros((outputs, inputs * groups, *weight.shape[2:]), np.int8)
    each = outputs // groups
    for group in range(groups):
        rows = slice(group * each, (group + 1) * each)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def lif_constants(op: spike.IntegerLif, align: spike.Align, network: Network) -> Neurons:
    """Bias, threshold and fields of a neuron with a membrane."""
    bias, threshold, shift = _aligned(op, align, network)
    return Neurons(
        op.label,
        bias,
        threshold,
        max(-shift, 0),
        max(shift, 0),
        op.get("charge"),
        op.get("multiplier"),
        op.get("divisor"),
        op.get("reset") == "soft",
        mask=op.get("mask"),
    )


def level_constants(op: spike.IntegerLevel, align: spike.Align, network: Network) -> Neurons:
    """Bias, threshold and fields of a level neuron."""
    bias, threshold, shift = _aligned(op, align, network)
    return Neurons(
        op.label,
        bias,
        threshold,
        max(-shift, 0),
        max(shift, 0),
        "none",
        levels=op.get("levels"),
        ties_even=op.get("ties") == "even",
        mask=op.get("mask"),
    )


def _aligned(
    op: spike.SpikeOperation, align: spike.Align, network: Network
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Bias, threshold and shift of neurons."""
    name = align.symbol("bias")
    bias = np.zeros(op.result_type.sizes[-1], np.int32) if name is None else network.weights[name].astype(np.int32)
    return bias, network.weights[symbol_of(op, "threshold")].astype(np.int32), align.get("shift")


def rescale_constants(op: spike.Rescale, network: Network) -> Rescaling:
    """Bias, multiplier and divisor of a stream."""
    bias, multiplier = (network.weights[symbol_of(op, key)].astype(np.int32) for key in ("bias", "multiplier"))
    return Rescaling(bias, multiplier, op.get("divisor"))


def tokens_summed(op: spike.Sum, alias: Alias) -> SSAValue:
    """What sums over all dimensions but the last add up, `alias` saying whose bytes a value is.

    Raises CStepError where they do not end in channels.
    """
    if len(op.result_type.sizes) != 1:
        raise refuse(op, f"makes {op.result_type}; sums in front of neurons run over all tokens")
    value: SSAValue = op.results[0]
    while isinstance(owner := alias(value).owner, spike.Sum):
        value = tokens_of(owner)
    return value


def tokens_of(op: spike.Sum) -> SSAValue:
    """The operand of a sum that leaves the channels alone."""
    if op.get("axis") == len(op.operand_type().sizes) - 1:
        raise refuse(op, f"axis={op.get('axis')}; the machine sums over tokens, not over channels")
    return op.operands[0]


def symbol_of(op: HouseOperation, key: str) -> str:
    name = op.symbol(key)
    assert name is not None, (op.name, key)
    return name
