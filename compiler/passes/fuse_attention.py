"""fuse-attention: two matrix products between head splits become one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import Layout
from compiler.ir.network import Network
from compiler.ir.types import shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, erase, only_user


@dataclass(frozen=True)
class FuseAttention(NetworkPass):
    """Recognise softmax-free attention: heads split off, (q kT) v or q (kT v), scaled anywhere, heads merged.

        %s = spike.matmul %qh, %kt                  : !spike.train<T=4, 8x64x64xcount<8>>
        %a = spike.scale %s factor=0.125            : !spike.train<T=4, 8x64x64xf32>
        %o = spike.matmul %a, %vh                   : !spike.train<T=4, 8x64x8xf32>
    with %qh, %vh (heads x tokens x channels) and %kt transposed views of %q, %k, %v, becomes
        %o = spike.attention %q, %k, %v heads=8, scale=0.125 : !spike.train<T=4, 64x64xf32>
    and the view of %o that the matmul gave. v may have wider heads than q and k.
    """

    name = "fuse-attention"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for op in list(network.operations()):
            if isinstance(op, spike.Matmul):
                _fuse(op)
        return network


def _fuse(last: spike.Matmul) -> None:
    if len(last.result_type.sizes) != 3:
        return
    (left, before), (right, behind) = (_behind_scale(operand) for operand in last.operands)
    if isinstance(left.owner, spike.Matmul):
        first, (q, k), v, order = left.owner, left.owner.operands, right, "scores"
    elif isinstance(right.owner, spike.Matmul):
        first, q, (k, v), order = right.owner, left, right.owner.operands, "values"
    else:
        return
    emit = emitter(last)
    heads = last.result_type.sizes[0]

    def merged(value: SSAValue, *, transposed: bool) -> SSAValue:
        """tokens x channels again; canonicalise cancels it against the view that split the heads."""
        _, *sizes = shaped(value.type).sizes
        tokens, width = reversed(sizes) if transposed else sizes
        view = _heads_view(tokens, width, heads, transposed=transposed)
        return view.emit(value, emit, last.source, last.label, inverse=True)

    rows = [merged(q, transposed=False), merged(k, transposed=True), merged(v, transposed=False)]
    tokens, width = last.result_type.sizes[1:]
    scaled, after = _scales_behind(last)
    fused = emit(
        spike.Attention.make(
            *rows,
            result=last.result_type.with_sizes((tokens, heads * width)),
            source=first.source,
            hint=f"{_parent(first.label)}attention",
            heads=heads,
            scale=before * behind * after,
            order=order,
        )
    )
    view = _heads_view(tokens, width, heads, transposed=False)
    scaled[-1].results[0].replace_all_uses_with(view.emit(fused, emit, last.source, last.label))
    erase(*reversed(scaled))


def _parent(label: str) -> str:
    """The module path of a label, with its dot."""
    return label.rpartition(".")[0] + "." if "." in label else ""


def _behind_scale(value: SSAValue) -> tuple[SSAValue, float]:
    """What a chain of scales multiplies, and by how much."""
    scale = 1.0
    while isinstance(value.owner, spike.Scale):
        scale *= value.owner.get("factor")
        value = value.owner.operands[0]
    return value, scale


def _scales_behind(op: spike.SpikeOperation) -> tuple[list[spike.SpikeOperation], float]:
    """`op` and the scales that alone read its result, and by how much they multiply."""
    chain, scale = [op], 1.0
    while isinstance(user := only_user(chain[-1].results[0]), spike.Scale):
        chain.append(user)
        scale *= user.get("factor")
    return chain, scale


def _heads_view(tokens: int, width: int, heads: int, *, transposed: bool) -> Layout:
    """tokens x channels -> heads x tokens x width (or heads x width x tokens)."""
    layout = Layout((tokens, heads * width))
    layout.reshape((tokens, heads, width))
    layout.transpose((1, 2, 0) if transposed else (1, 0, 2))
    return layout
