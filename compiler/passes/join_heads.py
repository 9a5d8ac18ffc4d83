"""join-heads: the logits come from one linear layer, and raw membranes are averaged before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.ir import spike
from compiler.ir.layout import chain_to
from compiler.ir.network import Network
from compiler.ir.types import Tensor, shaped
from compiler.passes.currents import currents, reaches_output
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import (
    Real,
    bias_of,
    emitter,
    erase,
    erase_unread,
    only_user,
    remake,
    replace_op,
    weight_of,
)


@dataclass(frozen=True)
class JoinHeads(NetworkPass):
    """Logits that are averaged over two heads on one input come from one head.

        %a = spike.mean_time (spike.linear %s, @head) : !spike.tensor<10xf32>
        %b = spike.mean_time (spike.linear %s, @kd)   : !spike.tensor<10xf32>
        %l = spike.scale (spike.add %a, %b) factor=0.5
    becomes
        %h = spike.linear %s, @head.joined            : !spike.train<T=4, 10xf32>
        %l = spike.mean_time %h                       : !spike.tensor<10xf32>
    with head.joined = (head + kd) / 2. A head that reads raw membranes (their mean over tokens) reads their mean over
    time, too, instead of being averaged itself: sums come first, while they are exact. So does one of two heads that
    read different inputs, and stay two. Logits that are means of groups of spikes (votes) come from one, too.
    """

    name = "join-heads"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for rewrite in (_voted, _joined, _scale_first, _mean_first):
            while any(
                rewrite(network, op) for op in list(network.operations()) if isinstance(op, spike.SpikeOperation)
            ):
                pass
        return network


def _voted(network: Network, op: spike.SpikeOperation) -> bool:
    """mean of views of channels, which are the logits -> linear, with weights of 1 / as many as are averaged."""
    source, view = chain_to(op.operands[0]) if isinstance(op, spike.Mean) else (None, None)
    if source is None or view is None or len(view.sizes) != 1 or not reaches_output(op.results[0]):
        return False
    voters = np.moveaxis(view.positions(), op.get("axis"), -1)
    if voters.ndim != 2:
        return False
    weight = np.zeros((len(voters), *view.sizes))
    np.put_along_axis(weight, voters, 1 / voters.shape[1], axis=1)
    symbols = {"weight": network.add_weight(f"{op.label}.votes", weight)}
    made = spike.Linear.make(source, result=op.result_type, symbols=symbols, source=op.source, hint=op.label)
    view_of = op.operands[0]
    replace_op(op, emitter(op)(made))
    erase_unread(view_of)
    return True


def _joined(network: Network, op: spike.SpikeOperation) -> bool:
    """add of two heads on one input, or of their means over time -> one head, or its mean."""
    if not isinstance(op, spike.Add):
        return False
    means = [owner for operand in op.operands if isinstance(owner := operand.owner, spike.MeanTime)]
    results = [mean.operands[0] for mean in means] if means else list(op.operands)
    layers = [owner for result in results if isinstance(owner := result.owner, spike.Linear)]
    if len(means) == 1 or len(layers) != 2 or layers[0] is layers[1] or layers[0].operands[0] != layers[1].operands[0]:
        return False
    if any(only_user(each.results[0]) is None for each in (*means, *layers)):
        return False
    weight = sum(weight_of(network, layer, "weight") for layer in layers)
    bias = sum(bias_of(network, layer) for layer in layers)
    emit = emitter(op)
    head = emit(_head(network, layers[0], np.asarray(weight), np.asarray(bias), ".joined"))
    replace_op(op, emit(remake(means[0], [head], op.result_type)) if means else head)
    erase(*means, *layers)
    return True


def _scale_first(network: Network, op: spike.SpikeOperation) -> bool:
    """scale(linear(x)) -> linear(x), scale(mean_time(x)) -> mean_time(scale(x))."""
    if not isinstance(op, spike.Scale):
        return False
    before = op.operands[0].owner
    if not isinstance(before, spike.Linear | spike.MeanTime) or only_user(before.results[0]) is not op:
        return False
    emit, x = emitter(op), before.operands[0]
    if isinstance(before, spike.Linear):
        weight, bias = weight_of(network, before, "weight"), bias_of(network, before)
        made = emit(_head(network, before, weight * op.get("factor"), bias * op.get("factor"), ".scaled"))
    else:
        made = emit(remake(before, [emit(remake(op, [x], shaped(x.type)))], op.result_type))
    replace_op(op, made)
    erase(before)
    return True


def _mean_first(network: Network, op: spike.SpikeOperation) -> bool:
    """mean_time(linear(x)) -> linear(mean_time(x)), where x is a mean of membranes, or other logits are added."""
    layer = op.operands[0].owner if isinstance(op, spike.MeanTime) else None
    if not isinstance(layer, spike.Linear) or only_user(layer.results[0]) is not op:
        return False
    x = layer.operands[0]
    raw = isinstance(x.owner, spike.Mean) and x.owner.operands[0] in currents(network)
    if not raw and not isinstance(only_user(op.results[0]), spike.Add):
        return False
    emit, kind = emitter(op), shaped(x.type)
    mean = emit(remake(op, [x], Tensor.of(kind.sizes, kind.element)))
    replace_op(op, emit(remake(layer, [mean], op.result_type)))
    erase(layer)
    return True


def _head(network: Network, like: spike.Linear, weight: Real, bias: Real, suffix: str) -> spike.Linear:
    """A head as another, with a weight and a bias of its own."""
    name = like.symbol("weight")
    symbols = {
        "weight": network.add_weight(f"{name}{suffix}", weight),
        "bias": network.add_weight(f"{name}{suffix}_bias", bias),
    }
    return spike.Linear.make(
        like.operands[0], result=like.result_type, symbols=symbols, source=like.source, hint=like.label
    )
