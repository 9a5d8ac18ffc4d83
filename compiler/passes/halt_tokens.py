"""halt-tokens: a token goes through no more blocks once its halting scores add up (STAS)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import FloatData
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import Emit
from compiler.ir.network import Network
from compiler.ir.spike import SpikeOperation
from compiler.ir.token_ops import HALTING
from compiler.ir.types import Element, Shaped, Tensor, Train, shaped
from compiler.passes.blocks import Block, blocks_to_thin, keep_in
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import Real, emitter, erase_unread, insert_behind, only_user, refuse, users, weight_of
from isa.epsilon import limit_of
from isa.errors import CStepError
from isa.scores import WEIGHT_BITS

OUTPUTS = ("weighted", "mean")
TABLE_STEPS, TABLE_ZERO = 16, 128
"""Entries of the table a unit of alpha x + beta, and the entry of 0."""
MULTIPLIER_BITS, MOST_DIVISOR = 16, 40
MOST_BIAS = 1 << 15
VIEWS = (spike.Reshape, spike.Sum)
"""What stands between a block and the sum over time."""
MOST_SUM = (1 << 31) - 1
FRACTION_BITS = 8
"""The most bits of a feature behind a spike's unit."""


@dataclass(frozen=True)
class HaltTokens(NetworkPass):
    """Let tokens halt when their scores add up to 1 - epsilon over blocks and timesteps (STAS, eq. 3 to 8).

        %y0 = spike.add %x, %m0                      : !spike.train<T=4, 64x96xcount<4>>
        %q = spike.linear %y0, @q.int8               : !spike.train<T=4, 64x96xint<-812, 790>>
        ...
        %y1 = spike.add %y0, %m1                     : !spike.train<T=4, 64x96xcount<6>>
        %f = spike.sum %y1 axis=0                    : !spike.train<T=4, 96xint<0, 384>>
    becomes
        %h0 = spike.halt %y0 multiplier=80, ...      : !spike.train<T=4, 64x2xfixed<16, 14>>
        %k1 = spike.below %h0 limit=16221            : !spike.train<T=4, 64x1xi1>
        %q = spike.linear %y0, @q.int8               : !spike.train<T=4, 64x96xint<-812, 790>>
        ...  neurons of block 1 have %k1
        %h1 = spike.halt %y1, %h0 gives=rest, ...    : !spike.train<T=4, 64x2xfixed<16, 14>>
        %f0 = spike.weigh %y0, %h0                   : !spike.train<T=4, 96xint<...>>
        %f1 = spike.weigh %y1, %h1                   : !spike.train<T=4, 96xint<...>>  added up behind the classifier

    The score of a token behind a block is sigmoid(alpha x + beta) of channel 0 of the block's output, from a table. Its
    total in front of a block is the sum over the blocks before, at this and all earlier timesteps, so every token
    begins each timestep anew and halts earlier than at the one before. A halted token's neurons are 0; its vector is
    read by nobody any more, which is what setting it to zero comes to. `output`: the classifier reads the mean of all
    blocks weighted by p (weighted: a score each, and what is left of 1 where the token halts, or at the last block), or
    the last block's tokens that have not halted (mean).
    """

    name = "halt-tokens"
    keeps: ClassVar[Keeps] = Keeps.LOSSY

    alpha: float = -5.0
    """The paper's are -5, 0 (Spikformer), 5, -25 (Spikingformer), 5, -10 (event data)."""
    beta: float = 0.0
    epsilon: float = 0.01
    """A token halts at a total of 1 - epsilon; it can be changed in the program (`cstep run --epsilon`)."""
    output: str = "weighted"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise CStepError(f"halt-tokens: output={self.output}; it must be one of {', '.join(OUTPUTS)}")
        limit_of(self.epsilon, "halt-tokens: epsilon=")
        if not all(abs(TABLE_STEPS * value) < MOST_BIAS - TABLE_ZERO for value in (self.alpha, self.beta)):
            raise CStepError(
                f"halt-tokens: alpha={self.alpha} beta={self.beta}; each must be less than 2000 away from 0"
            )

    def apply(self, network: Network) -> Network:
        network = network.clone()
        blocks = blocks_to_thin(network, self.name)
        for block in blocks:
            if not block.is_whole:
                raise CStepError(
                    f"halt-tokens: {block.name} mixes neighbouring tokens by a convolution; a halted token would be "
                    "part of it (stop-tokens works behind it)"
                )
            if block.tokens != blocks[0].tokens:
                raise CStepError(
                    f"halt-tokens: {block.name} has {block.tokens} tokens, {blocks[0].name} {blocks[0].tokens}; a "
                    "token must go through all blocks"
                )
        head = _Head.of(blocks[-1])
        states: list[SSAValue] = []
        for block in blocks:
            if states:
                keep_in(block, self._kept(block, states[-1]))
            states.append(self._state(block, states, is_last=block is blocks[-1]))
        weighted = list(zip(blocks, states, strict=True))[-1 if self.output == "mean" else 0 :]
        head.weigh(network, [(block.exit, state) for block, state in weighted], is_mean=self.output == "mean")
        return network

    def _kept(self, block: Block, state: SSAValue) -> SSAValue:
        """The kept train of a block, from the state in front of it."""
        kind = shaped(state.type)
        result = Train.of(kind.steps or 1, (block.tokens, 1), Element.spike())
        hint, source = f"{block.name}.kept", block.ops[0].source
        limit = limit_of(self.epsilon)
        emit = emitter(block.ops[0])
        return emit(spike.Below.make(state, result=result, hint=hint, source=source, limit=limit))

    def _state(self, block: Block, before: list[SSAValue], *, is_last: bool) -> SSAValue:
        """Totals and weights behind a block."""
        kind, maker = shaped(block.exit.type), block.exit.owner
        assert isinstance(maker, SpikeOperation)
        if kind.steps is None:
            raise refuse(maker, f"halt-tokens: {block.name} makes {kind}, the same at every timestep")
        multiplier, divisor = self._scale(kind)
        gives = "score" if not is_last else "whole" if self.output == "mean" else "rest"
        op = spike.Halt.make(
            block.exit, *before[-1:], result=Train.of(kind.steps, (block.tokens, 2), HALTING), source=maker.source,
            hint=f"{block.name}.halt", multiplier=multiplier, divisor=divisor,
            bias=round(TABLE_STEPS * self.beta) + TABLE_ZERO, limit=limit_of(self.epsilon), gives=gives,
        )  # fmt: skip
        return insert_behind(block.exit, op)

    def _scale(self, kind: Shaped) -> tuple[int, int]:
        """Multiplier and divisor that bring x into entries of the table."""
        factor = TABLE_STEPS * abs(self.alpha) * 2.0**-kind.element.fraction.data
        if factor == 0:
            return 0, 0
        divisor = min(max(MULTIPLIER_BITS - 1 - ceil(log2(factor)), 0), MOST_DIVISOR)
        multiplier = min(round(factor * 2**divisor), (1 << MULTIPLIER_BITS) - 1)
        while divisor and multiplier % 2 == 0:
            multiplier, divisor = multiplier // 2, divisor - 1
        return multiplier if self.alpha >= 0 else -multiplier, divisor


@dataclass(frozen=True, eq=False)
class _Head:
    """The classifier's way from the last block: sums over tokens and time, a shift, the linear layer, the output."""

    shift: int
    linear: spike.Linear
    output: spike.Output

    @classmethod
    def of(cls, block: Block) -> _Head:
        """Raises CStepError for another kind of classifier."""
        op = next((reader for reader in users(block.exit) if isinstance(reader, VIEWS)), None)
        while isinstance(op, VIEWS):
            op = only_user(op.results[0])
        behind = only_user(op.results[0]) if isinstance(op, spike.SumTime) else None
        shift = 0
        if isinstance(behind, spike.Align) and behind.symbol("bias") is None:
            shift, behind = behind.get("shift"), only_user(behind.results[0])
        output = only_user(behind.results[0]) if isinstance(behind, spike.Linear) else None
        if not isinstance(output, spike.Output) or shift > 0:
            raise CStepError(
                f"halt-tokens: what reads {block.name} must be one linear classifier on the mean over tokens and "
                "timesteps"
            )
        assert isinstance(behind, spike.Linear)
        return cls(shift, behind, output)

    def weigh(self, network: Network, parts: list[tuple[SSAValue, SSAValue]], *, is_mean: bool) -> None:
        """Put sums by weights in front of the classifier, one part a block; the bias counts once."""
        sums = [_Weighed.of(value, state, is_mean) for value, state in parts]
        weight = weight_of(network, self.linear, "weight")
        fraction = 0 if is_mean else FRACTION_BITS
        while fraction and sum(each.most(weight, self._shift(each.drop, fraction)) for each in sums) > MOST_SUM:
            fraction -= 1
        emit, logits = emitter(self.output), list[SSAValue]()
        for number, each in enumerate(sums):
            logits.append(self._logits(network, each, emit, fraction, with_bias=number == 0))
        total = logits[0]
        for each in logits[1:]:
            total = emit(spike.Add.make(total, each, result=_sum_of(total, each), hint=f"{self.linear.label}.add"))
        old = self.output.operands[0]
        self.output.operands[0] = total
        self.output.properties["scale"] = FloatData(self.output.get("scale") / (1 << fraction))
        erase_unread(old)

    def _shift(self, drop: int, fraction: int) -> int:
        """To the right, where negative: from weights of 14 - drop bits to `fraction` bits of a spike's unit."""
        return self.shift - (WEIGHT_BITS - drop - fraction)

    def _logits(self, network: Network, each: _Weighed, emit: Emit, fraction: int, *, with_bias: bool) -> SSAValue:
        """The logits of one block's sums."""
        linear, label = self.linear, each.label
        summed = emit(spike.Weigh.make(each.value, each.state, result=each.kind, hint=label, drop=each.drop))
        value = emit(spike.SumTime.make(summed, result=each.over_time, hint=f"{label}.time"))
        shift = self._shift(each.drop, fraction)
        if shift:
            kind = each.shifted(shift)
            value = emit(spike.Align.make(value, result=kind, hint=f"{label}.feature", shift=shift))
        low, high = each.logit_bounds(weight_of(network, linear, "weight"), shift)
        bias = linear.symbol("bias") if with_bias else None
        if bias is not None:
            scaled = network.weights[bias].astype(np.int64) << fraction
            low, high = low + int(scaled.min()), high + int(scaled.max())
            bias = network.add_weight(f"{bias}.weighted", scaled.astype(np.int32)) if fraction else bias
        made = spike.Linear.make(
            value,
            result=Tensor.of(linear.result_type.sizes, Element.integer(low, high)),
            symbols={"weight": linear.symbol("weight"), "bias": bias},
            source=linear.source,
            hint=linear.label if with_bias else f"{linear.label}.{label}",
        )
        return emit(made)


@dataclass(frozen=True, eq=False)
class _Weighed:
    """A block's output, its halting state, and the sums of the one by the other's weights."""

    value: SSAValue
    state: SSAValue
    drop: int

    @classmethod
    def of(cls, value: SSAValue, state: SSAValue, is_mean: bool) -> _Weighed:
        """With as many bits of the weights as keep the sums in 32 bits."""
        drop = WEIGHT_BITS if is_mean else 0
        while drop < WEIGHT_BITS and max(map(abs, cls(value, state, drop).over_time.element.bounds)) > MOST_SUM:
            drop += 1
        return cls(value, state, drop)

    @property
    def label(self) -> str:
        return f"{self.value.name_hint}.weighed"

    @property
    def kind(self) -> Shaped:
        """Of a timestep's sums."""
        kind, tokens = shaped(self.value.type), shaped(self.state.type).sizes[0]
        low, high = (bound * tokens << (WEIGHT_BITS - self.drop) for bound in kind.element.bounds)
        return Train.of(kind.steps or 1, kind.sizes[-1:], Element.integer(low, high))

    @property
    def over_time(self) -> Shaped:
        low, high = (bound * (self.kind.steps or 1) for bound in self.kind.element.bounds)
        return Tensor.of(self.kind.sizes, Element.integer(low, high))

    def shifted(self, shift: int) -> Shaped:
        low, high = (_half_up(bound, -shift) for bound in self.over_time.element.bounds)
        return Tensor.of(self.kind.sizes, Element.integer(low, high))

    def logit_bounds(self, weight: Real, shift: int) -> tuple[int, int]:
        """The least and the greatest sum of weights [classes, channels] times features."""
        low, high = self.shifted(shift).element.bounds
        up, down = weight.clip(min=0).sum(axis=1), weight.clip(max=0).sum(axis=1)
        return int((up * low + down * high).min()), int((up * high + down * low).max())

    def most(self, weight: Real, shift: int) -> int:
        return max(map(abs, self.logit_bounds(weight, shift)))


def _half_up(value: int, bits: int) -> int:
    return (value + (1 << bits >> 1)) >> bits if bits > 0 else value << -bits


def _sum_of(left: SSAValue, right: SSAValue) -> Shaped:
    one, other = shaped(left.type), shaped(right.type)
    bounds = zip(one.element.bounds, other.element.bounds, strict=True)
    low, high = (a + b for a, b in bounds)
    return Tensor.of(one.sizes, Element.integer(low, high))


__all__ = ["OUTPUTS", "HaltTokens"]
