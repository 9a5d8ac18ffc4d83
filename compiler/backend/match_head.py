"""The head's pattern: linear layers on sums over tokens and timesteps, and the exits behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from xdsl.ir import SSAValue

from compiler.backend.match import refuse, symbol_of, tokens_of
from compiler.backend.stages import ExitPoints, HeadBias, HeadPart, HeadStage
from compiler.backend.views import Views, least
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import shaped
from compiler.passes.timesteps import makes_features
from isa.word import Criterion

OVER_TIME = (spike.SumTime, spike.RunningSum)
BEHIND_LINEAR = (*OVER_TIME, spike.Exit, spike.Sum, spike.Repeat, spike.Extend, spike.Truncate, spike.Add)


@dataclass(frozen=True)
class _Walk:
    """What lies between the logits and a linear layer whose results add up to them."""

    value: SSAValue
    repeats: int = 1
    """Values of one timestep that are summed."""
    steps: int = 1
    """Timesteps that are summed."""
    least: int | None = None
    """The fewest timesteps of a train on the way."""


def head_of(op: spike.Output, network: Network, views: Views) -> HeadStage:
    """The classifier that makes the logits: a linear layer, or several whose results are added.

    Sums before and after a linear layer commute with it; the bias counts as often as they sum. With exits, logits are
    those of the timesteps that have run.
    """
    value, exits = op.operands[0], None
    if isinstance(value.owner, spike.Exit):
        exits, value = _exits(value.owner), value.owner.operands[0]
    parts: list[tuple[SSAValue, HeadPart]] = []
    biases: list[HeadBias] = []
    first: spike.Linear | None = None
    for walk in _linears(op, _Walk(value)):
        linear = walk.value.owner
        assert isinstance(linear, spike.Linear)
        first = first or linear
        parts.append(_head_part(linear, walk, network, views))
        name = linear.symbol("bias")
        if name is not None:
            steps = linear.result_type.steps or 1 if linear.get("accrues") else walk.steps
            biases.append(HeadBias(network.weights[name].astype(np.int64) * walk.repeats, steps))
    assert first is not None
    return HeadStage(
        first.label,
        first.source,
        tuple(value for value, _ in parts),
        None,
        tuple(part for _, part in parts),
        tuple(biases),
        op.operand_type().sizes[-1],
        op.get("scale"),
        exits,
    )


def logit_adds(network: Network) -> set[spike.Add]:
    """The adds of logits, behind the linear layers that make them."""
    found: set[spike.Add] = set()
    behind = {operand for op in network.operations() if isinstance(op, spike.Output) for operand in op.operands}
    while behind:
        owner = behind.pop().owner
        if isinstance(owner, BEHIND_LINEAR):
            behind |= set(owner.operands)
        if isinstance(owner, spike.Add):
            found.add(owner)
    return found


def _exits(op: spike.Exit) -> ExitPoints:
    """Where the program may end, and when it does."""
    after, none = op.get("after"), (0,) * len(op.get("after"))
    return ExitPoints(
        after,
        op.get("thresholds"),
        Criterion[op.get("criterion").upper()],
        op.get("multipliers") or none,
        op.get("divisors") or none,
    )


def _linears(op: spike.Output, walk: _Walk) -> Iterator[_Walk]:
    """The ways to the linear layers whose results add up to the logits."""
    while True:
        owner = walk.value.owner
        walk = replace(walk, least=least([walk.least, shaped(walk.value.type).steps]))
        match owner:
            case spike.SumTime() | spike.RunningSum():
                walk = replace(walk, steps=owner.operand_type().steps or 1)
            case spike.Sum():
                walk = replace(walk, repeats=walk.repeats * owner.operand_type().sizes[owner.get("axis")])
            case spike.Extend():
                walk = replace(walk, steps=min(walk.steps, owner.operand_type().steps or 1))
            case spike.Repeat() | spike.Truncate():
                pass
            case spike.Add():
                for operand in owner.operands:
                    yield from _linears(op, replace(walk, value=operand))
                return
            case spike.Linear():
                yield walk
                return
            case _:
                raise refuse(op, "the logits must come from a linear layer")
        walk = replace(walk, value=owner.operands[0])


def _head_part(linear: spike.Linear, walk: _Walk, network: Network, views: Views) -> tuple[SSAValue, HeadPart]:
    """What a classifier sums, and its weights; the sums may be shifted (align) right in front of it."""
    value, shift, fewest = linear.operands[0], 0, walk.least
    state, drop = None, 0
    while True:
        owner = views.memory(value).owner
        fewest = least([fewest, *(shaped(each.type).steps for each in views.chain(value))])
        if isinstance(owner, spike.Align) and not shift:
            shift = owner.get("shift")
            if owner.symbol("bias") or (shift < 0 and walk.repeats * walk.steps > 1):
                raise refuse(owner, "before the classifier, sums are shifted last, and without a bias")
            value = owner.operands[0]
        elif isinstance(owner, OVER_TIME) and makes_features(owner.results[0]):
            value = owner.operands[0]
        elif isinstance(owner, spike.Sum):
            value = tokens_of(owner)
        elif isinstance(owner, spike.Weigh):
            value, state, drop = owner.operands[0], owner.operands[1], owner.get("drop")
        else:
            break
    assert isinstance(owner, HouseOperation)
    weight = network.weights[symbol_of(linear, "weight")].astype(np.int8)
    steps = least([fewest, views.live(value)]) or 1
    return value, HeadPart(np.ascontiguousarray(weight.T), shift, steps, state, drop)
