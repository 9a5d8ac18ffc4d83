"""Masks, exits and pipelines of lossy passes, for networks and the references beside them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from stepwise import Exits, Guard, Stepwise
from token_rules import Halting, Stop

from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network

NEAR = {"lightsoftmax": 1e-9, "softmax": 0.02, "entropy": 0.02}
"""How near a confidence may come to tau before rounding, or the coarse tables, may decide the other way."""


def masks_of(network: Network, seed: int) -> dict[str, str]:
    """A mask for two layers in three, the last one left alone: logits are sums over all timesteps."""
    draw = random.Random(seed)
    labels = [op.label for op in network.operations() if isinstance(op, NEURONS)]
    return {
        label: draw.choice(["1110", "1110", "1100", "1100", "1000", "1010", "0110", "0000"])
        for label in labels[:-1]
        if draw.random() < 2 / 3
    }


def exits_of(
    network: Network,
    inputs: NDArray[np.float32],
    criterion: str,
    guard: Guard | None,
    masks: Mapping[str, str],
    stops: Sequence[Stop] = (),
    halting: Halting | None = None,
) -> Exits:
    """Exits after 1 and 3 timesteps, at which some of the inputs leave and some stay, where they differ at all."""
    undecided = Stepwise(network, masks, guard, Exits((1, 3), (1.0, 1.0), criterion, 0.5), stops, halting)
    seen = np.sort(np.array([undecided.run(x).confidences for x in inputs[:8]]), axis=0)
    widest = np.diff(seen, axis=0).argmax(axis=0)
    low, high = (np.take_along_axis(seen, (widest + each)[None], axis=0)[0] for each in (0, 1))
    between = np.where(high - low > 4 * NEAR[criterion], (low + high) / 2, 0.9 * low)
    first, second = np.clip(between, 0.001, 0.999)
    return Exits((1, 3), (float(first), float(second)), criterion, 0.5)


def passes_of(masks: Mapping[str, str], guard: Guard | None, exits: Exits | None, tokens: str = "") -> str:
    """The pipeline of what a reference was asked for; `tokens` is the pass that leaves tokens out."""
    given = ",".join(f'"{label}={mask}"' for label, mask in masks.items())
    parts = [f"set-timesteps{{masks={given}}}"] if masks else []
    parts += ["mask-timesteps", *([tokens] if tokens else []), "hoist-invariant"]
    if guard:
        parts.append(f"guard-channels{{mode={guard.mode} after={guard.after} threshold={guard.threshold}}}")
    if exits:
        after, tau = (",".join(map(repr, each)) for each in (exits.after, exits.tau))
        parts.append(f"insert-exits{{after={after} criterion={exits.criterion} tau={tau} variance={exits.variance}}}")
    return ",".join(parts)
