"""Networks whose tokens halt: the pass, its reference, and the rules in reals."""

from __future__ import annotations

import copy
from math import exp, log2, prod
from typing import Any

from stopped import BLOCKS
from token_rules import Halting, Stop

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spike import SpikeOperation
from compiler.passes.halt_tokens import HaltTokens

FAMILIES_THAT_HALT = (
    "spikformer-cifar", "spikformer-imagenet", "spikformer-events", "spikingformer", "spikingformer-imagenet",
    "spikingformer-events", "spikingformer-cml", "spikingformer-cml-imagenet", "spikingformer-cml-events",
)  # fmt: skip
"""Those of whose zoo models blocks are whole, with one number of tokens and a linear classifier on the mean."""
MOST_SUM = (1 << 31) - 1


def halt(
    network: Network, name: str, depths: int, alpha: float, beta: float, epsilon: str, output: str = "weighted",
    tokens: tuple[int, int] | None = None,
) -> tuple[Network, Halting]:  # fmt: skip
    """The network with the pass applied, and what its reference is told; tokens rows x columns, if not the family's."""
    halted = HaltTokens(alpha, beta, float(epsilon), output).apply(network)
    halted.verify()
    first = BLOCKS[name][0]
    rows, columns = tokens or (first.rows, first.columns)
    exits = tuple(f"block.{number}.add.2" for number in range(depths))
    stops = tuple(
        Stop(entry, (f"block.{number}.",), rows, columns, keep=0) for number, entry in enumerate(exits[:-1], start=1)
    )
    states = [op for op in halted.operations() if isinstance(op, spike.Halt)]
    weighed = [op for op in halted.operations() if isinstance(op, spike.Weigh)]
    assert len(states) == depths and len(weighed) == (1 if output == "mean" else depths)
    for op in states:
        _check_scale(op, alpha)
    for op in weighed:
        _check_drop(op, output)
    scales = tuple((op.get("multiplier"), op.get("divisor")) for op in states)
    drops = (0,) * (depths - len(weighed)) + tuple(op.get("drop") for op in weighed)
    fraction = _fraction(network, halted)
    assert 0 <= fraction <= (0 if output == "mean" else 8)
    return halted, Halting(exits, stops, scales, beta, epsilon, output, drops, fraction)


def _check_scale(op: SpikeOperation, alpha: float) -> None:
    """A score is looked up in sixteenths of alpha x, x in real values."""
    factor, real = op.get("multiplier") / 2.0 ** op.get("divisor"), 16 * alpha * 2.0 ** -_fraction_bits(op)
    assert abs(factor - real) <= abs(real) * 2.0**-14


def _fraction_bits(op: SpikeOperation) -> int:
    return op.operand_type().element.fraction.data


def _check_drop(op: SpikeOperation, output: str) -> None:
    """Weights are cut as far as the sums over tokens and timesteps need to fit 32 bits; to 1 where there are none."""
    kind = op.operand_type()
    largest = max(map(abs, kind.element.bounds)) * prod(kind.sizes[:-1]) * (kind.steps or 1)
    drop = op.get("drop")
    if output == "mean":
        assert drop == 14
    else:
        assert largest << 14 - drop <= MOST_SUM and (drop == 0 or largest << 15 - drop > MOST_SUM)


def _fraction(network: Network, halted: Network) -> int:
    """Bits of a feature behind a spike's unit: by as many the logits' scale is finer."""
    before, after = (
        next(op.get("scale") for op in each.operations() if isinstance(op, spike.Output)) for each in (network, halted)
    )
    fraction = round(log2(before / after))
    assert before == after * 2**fraction
    return fraction


def rules_in_reals(x: list[list[list[float]]], alpha: float, beta: float, epsilon: float) -> dict[str, Any]:
    """The rules, a token, a timestep and a block at a time: x[l][t][k] is channel 0 of block l's output where the
    token goes through the block. Returns keep, p [l][t][k] and ponder [t][k].
    """
    blocks, steps, tokens = len(x), len(x[0]), len(x[0][0])
    h = [[[0.0] * tokens for _ in range(steps)] for _ in range(blocks)]
    keep = copy.deepcopy(h)
    p = copy.deepcopy(h)
    ponder = [[0.0] * tokens for _ in range(steps)]

    def total(block: int, step: int, token: int) -> float:
        """H (eq. 4): blocks in front of `block`, timesteps up to `step`."""
        return sum(h[before][at][token] for before in range(block) for at in range(step + 1))

    for block in range(blocks):
        for token in range(tokens):
            for step in range(steps):
                if total(block, step, token) >= 1 - epsilon:
                    continue
                keep[block][step][token] = 1.0
                h[block][step][token] = 1 / (1 + exp(-(alpha * x[block][step][token] + beta)))
            for step in range(steps):
                if not keep[block][step][token]:
                    continue
                remainder = 1 - total(block, step, token)
                last = block == blocks - 1 or total(block + 1, step, token) >= 1 - epsilon
                p[block][step][token] = remainder if last else h[block][step][token]
                ponder[step][token] += 1 + (remainder if last else 0.0)
    return {"keep": keep, "p": p, "ponder": ponder}
