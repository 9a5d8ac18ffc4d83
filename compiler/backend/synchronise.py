"""synchronise: tokens, derived from address conflicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import StringAttr

from compiler.backend.emit import instructions
from compiler.ir.cstep import InstructionOp, LayerOp, units_text
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.hazards import synchronise


@dataclass(frozen=True)
class Synchronise(NetworkPass):
    """Let every op wait for the ops of other units whose bytes it touches, and no other.

        cstep.load source=%d, target=%w, ...
        cstep.accumulate spikes=%s, weights=%w, ...
    becomes
        cstep.load source=%d, target=%w, ..., post=pe
        cstep.accumulate spikes=%s, weights=%w, ..., wait=dma
    """

    name = "synchronise"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        code = instructions(network)
        ops = [op for op in network.operations() if isinstance(op, InstructionOp | LayerOp)]
        for op, (wait, post) in zip(ops, synchronise(code), strict=True):
            for key, mask in (("wait", wait), ("post", post)):
                op.properties.pop(key, None)
                if mask:
                    op.properties[key] = StringAttr(units_text(mask))
        return network
