"""What the inputs of an integer module's weighted layers can be: where they are not {0, 1}."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import OpResult, SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.types import shaped

WEIGHTED = (spike.Conv, spike.Linear, spike.Attention)
MOVES = (spike.Repeat, spike.Reshape, spike.Transpose, spike.MaxPool, spike.Mask, spike.Dilate, spike.Pad)
"""Ops whose results are their first operand's values."""


@dataclass(frozen=True)
class LayerInput:
    """A weighted layer or attention of an integer module."""

    layer: str
    operation: str
    kinds: tuple[str, ...]
    """Of its operands: spike, count<3>, levels<4>, fixed<16, 9>, image, events or int<0, 784>."""
    source: str

    @property
    def is_binary(self) -> bool:
        return set(self.kinds) == {"spike"}


def layer_inputs(network: Network) -> list[LayerInput]:
    """The weighted layers of an integer module, in program order."""
    return [
        LayerInput(
            op.label, op.name.partition(".")[2], tuple(value_kind(operand) for operand in op.operands), op.source
        )
        for op in network.operations()
        if isinstance(op, WEIGHTED)
    ]


def value_kind(value: SSAValue) -> str:
    """What a value of an integer module can be, in a word and its bounds."""
    element = shaped(value.type).element
    made = _maker(value)
    if isinstance(made, spike.IntegerLevel):
        return f"levels<{made.get('levels')}>"
    if element.kind.data == "i8":
        return "image" if not isinstance(made, spike.QuantiseImage) or made.operand_type().steps is None else "events"
    return "spike" if element.kind.data == "i1" else str(element)


def _maker(value: SSAValue) -> object:
    """The op that made the values, through what only moves them."""
    while isinstance(value, OpResult) and isinstance(value.op, MOVES):
        value = value.op.operands[0]
    return value.op if isinstance(value, OpResult) else None
