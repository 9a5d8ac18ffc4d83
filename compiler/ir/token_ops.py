"""Ops of the spike dialect that leave tokens out: which are kept, and what of them the classifier reads.

A kept train is Nx1 spikes, N the tokens in row-major order: 1 where a token is kept at a timestep. Neurons and rescales
have it as a second operand (compiler/ir/neuron_ops.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from xdsl.dialects.builtin import IntAttr, StringAttr, SymbolRefAttr
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from compiler.ir.operation import SpikeOperation, require
from compiler.ir.spelling import Plain
from compiler.ir.types import Element, Shaped, Train
from isa.scores import WEIGHT_BITS

SCORES = ("paper", "spatial", "temporal", "magnitude", "code")
SPATIAL, TEMPORAL = ("paper", "spatial", "code"), ("paper", "temporal", "magnitude", "code")
"""Scores that hold the share of 1 - cosine, and that of what changed; `magnitude` has a change from nothing."""
ALONE = ("temporal", "magnitude")
"""Scores that look at no neighbours."""
KERNELS = (1, 3, 5, 7)
"""Sides of a neighbourhood."""
GIVES = ("score", "rest", "whole")
HALTING = Element.fixed(16, WEIGHT_BITS)
"""What a halting state holds: totals and weights, 1 being 2^14."""


def tokens_of(kind: Shaped) -> int:
    """Tokens of HxWxC or NxC."""
    return prod(kind.sizes[:-1])


def _expect_kept(op: SpikeOperation) -> None:
    op.expect_shape((tokens_of(op.operand_type()), 1))
    op.expect_element(Element.spike())


@irdl_op_definition
class KeepTokens(SpikeOperation):
    """The `keep` tokens that carry most information at each timestep (TP-Spikformer): a kept train.

    A token's score compares it with its `kernel` x `kernel` neighbourhood in `rows` x `columns` tokens (spatial), and
    with itself a timestep before (temporal); `isa.instructions.KeepTop` and `ScoreSpikes` have the integers. `score`:
    paper, both added; spatial or temporal alone; magnitude, what it holds, which is what it has changed by since it was
    nothing; code, that of the published code: one set for all timesteps, of spikes summed over time, whatever the
    neighbourhood. `multiplier` and `divisor` bring a change summed over channels into exponents; values are shifted
    right by `drop` first.
    """

    name = "spike.keep_tokens"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"kernel": 3, "score": "paper", "drop": 0}
    input = operand_def(Train)
    result = result_def(Train)
    keep = prop_def(IntAttr)
    rows = prop_def(IntAttr)
    columns = prop_def(IntAttr)
    multiplier = prop_def(IntAttr)
    divisor = prop_def(IntAttr)
    kernel = opt_prop_def(IntAttr)
    score = opt_prop_def(StringAttr)
    drop = opt_prop_def(IntAttr)

    def check(self) -> None:
        kind, keep, score = self.operand_type(), self.get("keep"), self.get("score")
        tokens, shape = tokens_of(kind), (self.get("rows"), self.get("columns"))
        _expect_kept(self)
        require(kind.element.is_count or kind.element.is_fixed, self, f"scores {kind}; spikes, counts or a stream")
        require(prod(shape) == tokens, self, f"rows x columns = {shape[0]}x{shape[1]}; there are {tokens} tokens")
        require(0 <= keep <= tokens, self, f"keep={keep}; it must be in 0..{tokens}")
        require(self.get("kernel") in KERNELS, self, f"kernel={self.get('kernel')}; it must be 1, 3, 5 or 7")
        require(score in SCORES, self, f"score={score}; it must be one of {', '.join(SCORES)}")


@irdl_op_definition
class GivenTokens(SpikeOperation):
    """A kept train that no input changes: weight [T, N] of 0 and 1."""

    name = "spike.given_tokens"
    result = result_def(Train)
    kept = prop_def(SymbolRefAttr)

    def check(self) -> None:
        self.expect_element(Element.spike())
        sizes = self.result_type.sizes
        require(len(sizes) == 2 and sizes[1] == 1, self, f"the result is {self.result_type}; a kept train is Nx1")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"kept": (self.result_type.steps or 1, self.result_type.sizes[0])}


@irdl_op_definition
class Halt(SpikeOperation):
    """Halting totals and weights Nx2 behind a block (STAS, eq. 3 to 7), from its output and the state in front of it.

    With H the total in front (0 without a state), kept = H < limit, and x channel 0 of the output:
        h = kept * sigmoid[clamp((x * multiplier + half >> divisor) + bias, 0, 255)]      half = 1 << divisor >> 1
        A = min(sum of h over the timesteps so far, 2^14)        total = min(H + A, 2^14)
        weight = kept * (score: 2^14 - H where total >= limit, else h; rest: 2^14 - H; whole: 2^14), which `gives` says
    The table is that of isa/scores.py; 1 is 2^14.
    """

    name = "spike.halt"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"gives": "score"}
    input = operand_def(Train)
    before = opt_operand_def(Train)
    result = result_def(Train)
    multiplier = prop_def(IntAttr)
    divisor = prop_def(IntAttr)
    bias = prop_def(IntAttr)
    limit = prop_def(IntAttr)
    gives = opt_prop_def(StringAttr)

    def check(self) -> None:
        kind, limit = self.operand_type(), self.get("limit")
        self.expect_shape((tokens_of(kind), 2))
        self.expect_element(HALTING)
        require(kind.element.is_count or kind.element.is_fixed, self, f"scores {kind}; spikes, counts or a stream")
        if len(self.operands) == 2:
            before = self.operand_type(1)
            require(before == self.result_type, self, f"the state in front is {before}, the result {self.result_type}")
        require(0 < limit <= 1 << WEIGHT_BITS, self, f"limit={limit}; it must be in 1..{1 << WEIGHT_BITS}")
        require(self.get("gives") in GIVES, self, f"gives={self.get('gives')}; it must be one of {', '.join(GIVES)}")


@irdl_op_definition
class Below(SpikeOperation):
    """The kept train of a halting state: total < limit."""

    name = "spike.below"
    input = operand_def(Train)
    result = result_def(Train)
    limit = prop_def(IntAttr)

    def check(self) -> None:
        require(
            self.operand_type().element == HALTING, self, f"reads {self.operand_type()}; it must be a halting state"
        )
        _expect_kept(self)


@irdl_op_definition
class Weigh(SpikeOperation):
    """Sums over the tokens of x times their halting weights, rounded half up to 2^(14 - drop) (STAS, eq. 8): C."""

    name = "spike.weigh"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"drop": 0}
    input = operand_def(Train)
    state = operand_def(Train)
    result = result_def(Train)
    drop = opt_prop_def(IntAttr)

    def check(self) -> None:
        kind, state = self.operand_type(), self.operand_type(1)
        self.expect_shape(kind.sizes[-1:])
        fits = state.element == HALTING and state.sizes == (tokens_of(kind), 2)
        require(fits, self, f"weighs {kind} by {state}; the state must be {tokens_of(kind)}x2x{HALTING}")
        require(0 <= self.get("drop") <= WEIGHT_BITS, self, f"drop={self.get('drop')}; it must be in 0..{WEIGHT_BITS}")


OPERATIONS = (KeepTokens, GivenTokens, Halt, Below, Weigh)

__all__ = ["HALTING", "OPERATIONS", "SCORES", "Below", "GivenTokens", "Halt", "KeepTokens", "Weigh", "tokens_of"]
