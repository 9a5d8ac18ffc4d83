"""reassociate-attention: the cheaper of (q kT) v and q (kT v)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import StringAttr

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass


@dataclass(frozen=True)
class ReassociateAttention(NetworkPass):
    """Multiply keys by values first where that takes fewer multiplications; in integers the result is the same.

        %a = spike.attention %q, %k, %v heads=8 : !spike.train<T=4, 64x64xint<0, 512>>
    becomes
        %a = spike.attention %q, %k, %v heads=8, order=values : !spike.train<T=4, 64x64xint<0, 512>>

    A head of w channels takes 2 N M w multiplications for N queries and M keys, or w^2 (N + M) with values first: eight
    times fewer for 64 tokens and 8 channels. Real attention is left alone: there the order rounds.
    """

    name = "reassociate-attention"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        for op in network.operations():
            if isinstance(op, spike.Attention) and not op.result_type.element.is_real and values_first_is_cheaper(op):
                op.properties["order"] = StringAttr("values")
        return network


def values_first_is_cheaper(op: spike.Attention) -> bool:
    """Whether q (kT v) takes fewer multiplications than (q kT) v."""
    queries, channels = op.operand_type(0).sizes
    keys, width = op.operand_type(1).sizes[0], channels // op.get("heads")
    return width * (queries + keys) < 2 * queries * keys
