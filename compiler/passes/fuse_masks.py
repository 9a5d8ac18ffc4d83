"""fuse-masks: products of spikes with a neuron of their sums become masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import Layout, chain_to
from compiler.ir.network import Network
from compiler.ir.types import Shaped, shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, replace_op, reshaped, rows_of


@dataclass(frozen=True)
class FuseMasks(NetworkPass):
    """Recognise attention that masks: QKFormer's of tokens, Spike-Driven Transformer's of channels.

        %r = spike.reshape %q                     : !spike.train<T=4, 64x8x8xi1>
        %n = spike.sum %r axis=2                  : !spike.train<T=4, 64x8xf32>
        %m = spike.lif %n ...                     : !spike.train<T=4, 64x8xi1>
        %o = spike.multiply %mv, %kv              : !spike.train<T=4, 8x8x64xf32>
    with %mv (heads x 1 x tokens) and %kv (heads x channels x tokens) views of %m and %k, becomes
        %n = spike.head_sum %q heads=8            : !spike.train<T=4, 64x8xf32>
        %m = spike.lif %n ...                     : !spike.train<T=4, 64x8xi1>
        %o = spike.mask %k, %m                    : !spike.train<T=4, 64x64xf32>
    and the view of %o that the product gave; a product with a view of one row of channels is a mask of channels.
    """

    name = "fuse-masks"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for op in list(network.operations()):
            if isinstance(op, spike.Sum):
                _sum_heads(op)
            elif isinstance(op, spike.Multiply):
                _mask(op)
        return network


def _sum_heads(op: spike.Sum) -> None:
    """sum of view(x: NxC) as (N * heads) x width -> head_sum; one head where nothing is split off."""
    source, layout = chain_to(op.operands[0])
    rows, sizes = rows_of(source), op.operand_type().sizes
    if rows is None or not layout.keeps_order or op.get("axis") != len(sizes) - 1:
        return
    (tokens, channels), width = rows, sizes[-1]
    if channels % width:
        return
    emit = emitter(op)
    heads = channels // width
    x = reshaped(source, op.operand_type().with_sizes(rows), emit, op)
    kind = op.result_type.with_sizes((tokens, heads))
    made = emit(spike.HeadSum.make(x, result=kind, source=op.source, hint=op.label, heads=heads))
    replace_op(op, reshaped(made, op.result_type, emit, op))


def _mask(op: spike.Multiply) -> None:
    """multiply(view(spikes: NxC), view(mask: C or Nxheads)) -> view of mask(spikes, mask)."""
    for spikes, mask in (op.operands, reversed(op.operands)):
        if shaped(spikes.type).sizes == op.result_type.sizes != shaped(mask.type).sizes and _fused(op, spikes, mask):
            return


def _fused(op: spike.Multiply, spikes: SSAValue, mask: SSAValue) -> bool:
    (source, view), (gate, gate_view) = chain_to(spikes), chain_to(mask)
    rows = rows_of(source)
    if rows is None or not _is_spike(gate):
        return False
    read = _read_by(view, gate_view, op.result_type).reshape(rows)
    form = _mask_form(read, shaped(gate.type))
    if form is None:
        return False
    emit = emitter(op)
    x = reshaped(source, op.result_type.with_sizes(rows), emit, op)
    held = reshaped(gate, shaped(gate.type).with_sizes(form), emit, op)
    kind = op.result_type.with_sizes(rows)
    made = emit(spike.Mask.make(x, held, result=kind, source=op.source, hint=op.label))
    made = reshaped(made, op.result_type.with_sizes(view.sizes), emit, op)
    replace_op(op, view.emit(made, emit, op.source, op.label))
    return True


def _is_spike(value: SSAValue) -> bool:
    return shaped(value.type).element.is_count and shaped(value.type).element.bounds[1] == 1


def _read_by(view: Layout, gate_view: Layout, result: Shaped) -> NDArray[np.int64]:
    """For every element of the spikes' source, the element of the mask's source that it is multiplied by."""
    gates = np.broadcast_to(gate_view.positions(), result.sizes)
    read = np.empty(gates.size, np.int64)
    read[view.positions().reshape(-1)] = gates.reshape(-1)
    return read


def _mask_form(read: NDArray[np.int64], gate: Shaped) -> tuple[int, ...] | None:
    """The mask's sizes, C or Nxheads, where NxC spikes read it like that; None where they read it otherwise."""
    tokens, channels = read.shape
    gates = int(np.prod(gate.sizes))
    if gates == channels and np.array_equal(read, np.broadcast_to(np.arange(channels), read.shape)):
        return (channels,)
    heads = gates // tokens
    if gates % tokens or not heads or channels % heads:
        return None
    by_head = np.arange(gates).reshape(tokens, heads).repeat(channels // heads, axis=1)
    return (tokens, heads) if np.array_equal(read, by_head) else None
