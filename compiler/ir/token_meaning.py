"""What the ops on tokens compute (compiler/ir/token_ops.py); compiler/ir/meaning.py registers them.

Integers are int64, trains [T, ...]. What is a softmax, a cosine or a sigmoid here are the tables of isa/scores.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from compiler.ir import token_ops
from compiler.ir.token_ops import SPATIAL, TEMPORAL
from isa.scores import SIGMOID, WEIGHT_BITS, Integers, largest, token_scores

Weights = Callable[[str], Tensor]
ONE = 1 << WEIGHT_BITS


def keep_tokens(op: token_ops.KeepTokens, weights: Weights, x: Tensor) -> Tensor:
    """1 for the `keep` tokens with the largest scores, at each timestep, or of all of them together (`code`)."""
    kept = torch.from_numpy(largest(scores_of(op, x), op.get("keep"))).to(torch.int64)
    return kept.expand(len(x), -1).unsqueeze(-1)


def scores_of(op: token_ops.KeepTokens, x: Tensor) -> Integers:
    """[T, N], or [1, N] where all timesteps have one (`code`)."""
    score = op.get("score")
    maps = x.reshape(len(x), op.get("rows"), op.get("columns"), -1) >> op.get("drop")
    if score == "code":
        sums = _pooled_sums(maps)
    else:
        before = torch.cat([torch.zeros_like(maps[:1]), maps[:-1]])
        sums = _window_sums(maps, torch.zeros_like(maps) if score == "magnitude" else before, op.get("kernel"))
    parts = sums.flatten(1, 2).numpy()
    return token_scores(parts, score in SPATIAL, score in TEMPORAL, op.get("multiplier"), op.get("divisor"))


def _window_sums(x: Tensor, before: Tensor, kernel: int) -> Tensor:
    """[T, H, W, 4]: products with the neighbourhood's sum and with itself, of that sum, and what changed."""
    images = x.permute(0, 3, 1, 2).to(torch.float64)
    near = functional.avg_pool2d(images, kernel, 1, kernel // 2, divisor_override=1)
    around = near.permute(0, 2, 3, 1).to(torch.int64)
    change = (x - before).abs()
    return torch.stack([(x * around).sum(-1), (x * x).sum(-1), (around * around).sum(-1), change.sum(-1)], -1)


def _pooled_sums(x: Tensor) -> Tensor:
    """[1, H, W, 4], of spikes summed over time, and of their sums over channels."""
    total, by_step = x.sum(0), x.sum(-1)
    change = (by_step[1:] - by_step[:-1]).abs().sum(0)
    other = torch.full_like(change, x.shape[-1])
    return torch.stack([total.sum(-1), (total * total).sum(-1), other, change], -1).unsqueeze(0)


def given_tokens(op: token_ops.GivenTokens, weights: Weights) -> Tensor:
    """The weight."""
    name = op.symbol("kept")
    assert name is not None
    return weights(name).unsqueeze(-1)


def halt(op: token_ops.Halt, weights: Weights, x: Tensor, before: Tensor | None = None) -> Tensor:
    """Totals and weights behind a block, [T, N, 2]."""
    spikes = x.flatten(1, -2)[..., 0]
    entered = torch.zeros_like(spikes) if before is None else before[..., 0]
    half, limit = 1 << op.get("divisor") >> 1, op.get("limit")
    place = ((spikes * op.get("multiplier") + half) >> op.get("divisor")) + op.get("bias")
    score = torch.from_numpy(SIGMOID)[place.clamp(0, 255)] * (entered < limit)
    total = (entered + score.cumsum(0).clamp(max=ONE)).clamp(max=ONE)
    weight = torch.where(total >= limit, ONE - entered, score)
    if op.get("gives") != "score":
        weight = ONE - entered if op.get("gives") == "rest" else torch.full_like(entered, ONE)
    weight = weight * (entered < limit)
    return torch.stack([total, weight], -1)


def below(op: token_ops.Below, weights: Weights, state: Tensor) -> Tensor:
    """1 where the total is below the limit."""
    return (state[..., :1] < op.get("limit")).to(torch.int64)


def weigh(op: token_ops.Weigh, weights: Weights, x: Tensor, state: Tensor) -> Tensor:
    """Sums over the tokens of x times the rounded weights."""
    drop = op.get("drop")
    rounded = (state[..., 1:] + (1 << drop >> 1)) >> drop
    return (x.flatten(1, -2) * rounded).sum(1)
