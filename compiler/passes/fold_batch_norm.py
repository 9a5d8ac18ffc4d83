"""fold-batch-norm: a batch norm goes into the weights of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.passes.network_pass import Keeps, NetworkPass

Real = NDArray[np.float64]


@dataclass(frozen=True)
class FoldBatchNorm(NetworkPass):
    """Fold each batch norm into the convolution or linear layer that alone feeds it, in float64.

        %c = spike.conv %x, @w kernel=3, padding=1
        %n = spike.batch_norm %c, @g, @b, @m, @v epsilon=1.0e-05, axis=2
    becomes
        %n = spike.conv %x, @w.folded, @w.folded_bias kernel=3, padding=1
    with w.folded = w * g / sqrt(v + epsilon) and w.folded_bias = b + (bias - m) * g / sqrt(v + epsilon).
    """

    name = "fold-batch-norm"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for op in list(network.operations()):
            if isinstance(op, spike.BatchNorm):
                _fold(network, op)
        return network


def _fold(network: Network, norm: spike.BatchNorm) -> None:
    layer = norm.operands[0].owner
    last = len(norm.result_type.sizes) - 1
    if not isinstance(layer, spike.Conv | spike.Linear) or norm.get("axis") != last:
        return
    if len(list(layer.results[0].uses)) != 1:
        return
    gain = _weight(network, norm, "weight") / np.sqrt(_weight(network, norm, "variance") + norm.get("epsilon"))
    weight = _weight(network, layer, "weight")
    bias = _weight(network, layer, "bias") if layer.symbol("bias") else np.zeros(len(weight))
    name = layer.symbol("weight")
    folded = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    shifted = _weight(network, norm, "bias") + (bias - _weight(network, norm, "mean")) * gain
    new = type(layer).make(
        *layer.operands,
        result=norm.result_type,
        symbols={
            "weight": network.add_weight(f"{name}.folded", folded),
            "bias": network.add_weight(f"{name}.folded_bias", shifted),
        },
        source=layer.source,
        hint=layer.label,
        **{key: layer.get(key) for key in layer.DEFAULTS},
        **({"kernel": layer.get("kernel")} if isinstance(layer, spike.Conv) else {}),
    )
    block = norm.parent_block()
    assert block is not None
    block.insert_op_before(new, norm)
    norm.results[0].replace_all_uses_with(new.results[0])
    for dead in (norm, layer):
        dead.detach()
        dead.erase()


def _weight(network: Network, op: HouseOperation, key: str) -> Real:
    name = op.symbol(key)
    assert name is not None
    return network.weights[name].astype(np.float64)
