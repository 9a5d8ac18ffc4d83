"""fold-batch-norm: a batch norm, or a layer scale, goes into the weights of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import (
    Real,
    Weighted,
    bias_of,
    emitter,
    erase_unread,
    layer_properties,
    let_go,
    only_user,
    replace_op,
    reshaped,
    weight_of,
)

Linear = spike.BatchNorm | spike.ChannelScale | spike.Scale
"""What multiplies every channel by a number, and may add another."""


@dataclass(frozen=True)
class FoldBatchNorm(NetworkPass):
    """Fold each batch norm, and each layer scale, into the convolution or linear layer that alone feeds it, in float64.

        %c = spike.conv %x, @w kernel=3, padding=1
        %n = spike.batch_norm %c, @g, @b, @m, @v epsilon=1.0e-05, axis=2
    becomes
        %n = spike.conv %x, @w.folded, @w.folded_bias kernel=3, padding=1
    with w.folded = w * g / sqrt(v + epsilon) and w.folded_bias = b + (bias - m) * g / sqrt(v + epsilon).

    A layer that something else reads, too, is computed twice. A norm of what no layer makes (a pooling, a residual)
    becomes a layer itself, a depthwise convolution by a window of one pixel.
    """

    name = "fold-batch-norm"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for op in list(network.operations()):
            if isinstance(op, Linear):
                _fold(network, op)
        return network


def _fold(network: Network, op: Linear) -> None:
    layer, last = op.operands[0].owner, len(op.result_type.sizes) - 1
    if not isinstance(op, spike.Scale) and op.get("axis") != last:
        return
    if not isinstance(layer, Weighted):
        if not isinstance(op, spike.Scale):
            _depthwise(network, op)
        return
    if isinstance(op, spike.Scale) and only_user(layer.results[0]) is not op:
        return
    gain, offset = _gain(network, op)
    weight = weight_of(network, layer, "weight")
    folded = weight * np.broadcast_to(gain, weight.shape[:1]).reshape(-1, *[1] * (weight.ndim - 1))
    bias = (
        None if isinstance(offset, float) and layer.symbol("bias") is None else bias_of(network, layer) * gain + offset
    )
    name = layer.symbol("weight")
    new = type(layer).make(
        *layer.operands,
        result=op.result_type,
        symbols={
            "weight": network.add_weight(f"{name}.folded", folded),
            "bias": None if bias is None else network.add_weight(f"{name}.folded_bias", bias),
        },
        source=layer.source,
        hint=layer.label if only_user(layer.results[0]) is op else op.label,
        **layer_properties(layer),
    )
    replace_op(op, emitter(op)(new))
    erase_unread(layer.results[0])
    let_go(network, op, layer)


def _depthwise(network: Network, op: spike.BatchNorm | spike.ChannelScale) -> None:
    """norm(x) -> conv(x), a window of one pixel for every channel by itself."""
    gain, offset = _gain(network, op)
    sizes, name, emit = op.result_type.sizes, op.symbol("weight"), emitter(op)
    kind = op.result_type.with_sizes((*(1,) * (3 - len(sizes)), *sizes))
    bias = None if isinstance(offset, float | int) else network.add_weight(f"{name}.folded_bias", offset)
    made = spike.Conv.make(
        reshaped(op.operands[0], kind, emit, op),
        result=kind,
        symbols={"weight": network.add_weight(f"{name}.folded", np.reshape(gain, (-1, 1, 1, 1))), "bias": bias},
        source=op.source,
        hint=op.label,
        kernel=1,
        groups=sizes[-1],
    )
    replace_op(op, reshaped(emit(made), op.result_type, emit, op))
    let_go(network, op)


def _gain(network: Network, op: Linear) -> tuple[Real | float, Real | float]:
    """What each channel is multiplied by, and what is added then; 0.0 where nothing is."""
    if isinstance(op, spike.Scale):
        return op.get("factor"), 0.0
    if isinstance(op, spike.ChannelScale):
        return weight_of(network, op, "weight"), 0.0
    gain = weight_of(network, op, "weight") / np.sqrt(weight_of(network, op, "variance") + op.get("epsilon"))
    return gain, weight_of(network, op, "bias") - weight_of(network, op, "mean") * gain
