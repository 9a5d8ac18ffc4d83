"""fold-linear-chains: linear layers with nothing between them become one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
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
    erase,
    layer_properties,
    let_go,
    only_user,
    refuse,
    replace_op,
    weight_of,
)

FRAME_TOLERANCE = 1e-5
"""Relative difference by which a frame's value, computed in float32, may miss the layer's in float64."""


@dataclass(frozen=True)
class FoldLinearChains(NetworkPass):
    """Multiply weights of layers that follow each other directly, where that takes no more multiplications.

        %a = spike.linear %x, @v, @v_bias                     : !spike.train<T=4, 14x14x64xf32>
        %p = spike.pad %a, @v_bias padding=1                  : !spike.train<T=4, 16x16x64xf32>
        %d = spike.conv %p, @w kernel=3, groups=64            : !spike.train<T=4, 14x14x64xf32>
        %b = spike.linear %d, @u                              : !spike.train<T=4, 14x14x64xf32>
    becomes
        %b = spike.conv %x, @u.chain, @u.chain_bias kernel=3, padding=1 : !spike.train<T=4, 14x14x64xf32>

    A frame of what the layer before it makes of 0 is that layer on an input padded by 0; such a chain (SDT-V2's
    re-parameterised convolution) is folded whatever it takes, borders included.
    """

    name = "fold-linear-chains"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        changed = True
        while changed:
            changed = False
            for op in list(network.operations()):
                if op.parent is not None and isinstance(op, Weighted):
                    changed |= _chain(network, op)
        return network


def _chain(network: Network, second: Weighted) -> bool:
    """second(first(x)) -> one layer."""
    first, frame = second.operands[0].owner, None
    if isinstance(first, spike.Pad):
        frame, first = first, first.operands[0].owner
    if not isinstance(first, Weighted) or any(only_user(op.results[0]) is None for op in (first, frame) if op):
        return False
    if isinstance(first, spike.Conv) and (frame or isinstance(second, spike.Conv) or first.get("groups") != 1):
        return False
    padding = 0 if isinstance(second, spike.Linear) else second.get("padding")
    inner = bias_of(network, first)
    if frame is not None:
        _check_frame(network, first, frame, padding)
        padding = frame.get("padding")
    elif (padding and inner.any()) or _saved(network, first, second) < 0:
        return False
    window, offset = _product(network, first, second, inner)
    conv = next((op for op in (first, second) if isinstance(op, spike.Conv)), None)
    properties = {} if conv is None else {**layer_properties(conv), "groups": 1}
    if conv is second:
        properties["padding"] = padding
    name = second.symbol("weight")
    made = (spike.Linear if conv is None else spike.Conv).make(
        first.operands[0],
        result=second.result_type,
        symbols={
            "weight": network.add_weight(f"{name}.chain", window),
            "bias": network.add_weight(f"{name}.chain_bias", bias_of(network, second) + offset),
        },
        source=second.source,
        hint=second.label,
        **properties,
    )
    replace_op(second, emitter(second)(made))
    erase(*([frame] if frame is not None else []), first)
    let_go(network, first, second)
    return True


def _check_frame(network: Network, first: Weighted, frame: spike.Pad, padding: int) -> None:
    """The frame must hold what the layer makes of 0: then the layer may as well read an input padded by 0."""
    value = np.zeros(1) if frame.symbol("value") is None else weight_of(network, frame, "value")
    zero = bias_of(network, first)
    if padding or not np.allclose(value, zero, rtol=FRAME_TOLERANCE, atol=FRAME_TOLERANCE):
        raise refuse(frame, "its frame is not what the layer before it makes of 0; such padding has no integer form")


def _product(network: Network, first: Weighted, second: Weighted, inner: Real) -> tuple[Real, Real]:
    """The weight of second(first(x)), of which at most one is a convolution, and what it makes of first's bias."""
    a, b = weight_of(network, first, "weight"), weight_of(network, second, "weight")
    if isinstance(second, spike.Linear):
        return np.tensordot(b, a, 1), b @ inner
    groups, out = second.get("groups"), len(b)
    if groups == out == len(a):  # depthwise: every output reads one of first's channels
        return b * a[:, :, None, None], b.sum(axis=(1, 2, 3)) * inner
    window, offset = np.empty((out, a.shape[1], *b.shape[2:])), np.empty(out)
    for rows, columns in zip(np.split(np.arange(out), groups), np.split(np.arange(len(a)), groups), strict=True):
        window[rows] = np.tensordot(b[rows], a[columns], (1, 0)).transpose(0, 3, 1, 2)
        offset[rows] = b[rows].sum(axis=(2, 3)) @ inner[columns]
    return window, offset


def _saved(network: Network, first: Weighted, second: Weighted) -> int:
    """How many multiplications one layer in place of the two saves."""
    shapes = [network.weights[str(op.symbol("weight"))].shape for op in (first, second)]
    apart = sum(prod((*shape, *op.result_type.sizes[:-1])) for shape, op in zip(shapes, (first, second), strict=True))
    windows = [shape[2:] for shape in shapes]
    return apart - prod(map(prod, windows)) * first.operand_type().sizes[-1] * prod(second.result_type.sizes)
