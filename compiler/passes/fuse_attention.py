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


@dataclass(frozen=True)
class FuseAttention(NetworkPass):
    """Recognise softmax-free attention: heads split off, (q kT) * scale, times v, heads merged.

        %s = spike.matmul %qh, %kt                  : !spike.train<T=4, 8x64x64xcount<8>>
        %a = spike.scale %s factor=0.125            : !spike.train<T=4, 8x64x64xf32>
        %o = spike.matmul %a, %vh                   : !spike.train<T=4, 8x64x8xf32>
    with %qh, %vh (heads x tokens x channels) and %kt transposed views of %q, %k, %v, becomes
        %o = spike.attention %q, %k, %v heads=8, scale=0.125 : !spike.train<T=4, 64x64xf32>
    and the view of %o that the matmul gave.
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
    scores, scale = _behind_scale(last.operands[0])
    if not isinstance(scores.owner, spike.Matmul) or len(last.result_type.sizes) != 3:
        return
    first = scores.owner
    heads, tokens, width = last.result_type.sizes
    keys = first.result_type.sizes[-1]
    if first.operand_type(0).sizes[-1] != width:
        return
    block = last.parent_block()
    assert block is not None

    def emit(op: spike.SpikeOperation) -> SSAValue:
        block.insert_op_before(op, last)
        return op.results[0]

    def merged(value: SSAValue, rows: int, *, transposed: bool) -> SSAValue:
        """tokens x channels again; canonicalise cancels it against the view that split the heads."""
        view = _heads_view((rows, heads * width), heads, transposed=transposed)
        return view.emit(value, emit, last.source, last.label, inverse=True)

    q = merged(first.operands[0], tokens, transposed=False)
    k = merged(first.operands[1], keys, transposed=True)
    v = merged(last.operands[1], keys, transposed=False)
    result = shaped(q.type).with_element(last.result_type.element)
    hint = f"{_parent(first.label)}attention"
    fused = emit(spike.Attention.make(q, k, v, result=result, source=first.source, hint=hint, heads=heads, scale=scale))
    view = _heads_view((tokens, heads * width), heads, transposed=False)
    last.results[0].replace_all_uses_with(view.emit(fused, emit, last.source, last.label))
    last.detach()
    last.erase()


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


def _heads_view(sizes: tuple[int, int], heads: int, *, transposed: bool) -> Layout:
    """tokens x channels -> heads x tokens x width (or heads x width x tokens)."""
    tokens, channels = sizes
    layout = Layout(sizes)
    layout.reshape((tokens, heads, channels // heads))
    layout.transpose((1, 2, 0) if transposed else (1, 0, 2))
    return layout
