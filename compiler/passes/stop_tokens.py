"""stop-tokens: only the most informative tokens go through a block, the others keep their values (TP-Spikformer)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import ClassVar

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.token_ops import ALONE, KERNELS, SCORES
from compiler.ir.types import Element, Shaped, Train, shaped
from compiler.passes.blocks import Block, blocks_to_thin, keep_in
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, refuse
from isa.errors import CStepError
from isa.scores import E_TO_TWO

RANDOM = "random"
MULTIPLIER_BITS, MOST_DIVISOR = 16, 40
MOST_SUM = (1 << 31) - 1


@dataclass(frozen=True)
class StopTokens(NetworkPass):
    """Let the tokens with the largest scores through each block; the others stay what they are (TP-Spikformer).

        %q = spike.linear %x, @q.int8                       : !spike.train<T=4, 64x96xint<-812, 790>>
        ...
        %m = spike.integer_lif %c, @threshold ...           : !spike.train<T=4, 64x96xi1>
        %y = spike.add %x, %m                               : !spike.train<T=4, 64x96xcount<3>>
    becomes, with keep=0.5
        %k = spike.keep_tokens %x keep=32, rows=8, ...      : !spike.train<T=4, 64x1xi1>
        %q = spike.linear %x, @q.int8                       : !spike.train<T=4, 64x96xint<-812, 790>>
        ...
        %m = spike.integer_lif %c, %k, @threshold ...       : !spike.train<T=4, 64x96xi1>
        %y = spike.add %x, %m                               : !spike.train<T=4, 64x96xcount<3>>

    At each timestep ceil(keep * tokens) tokens are kept, scored anew on what enters the block. What the others would
    add to the residual is 0, and so are their queries, keys and values: the attention is that of the kept tokens, and
    the others are put back in their places by not having been moved. Membranes of a token that is not kept stay as they
    are. A branch with a convolution over neighbouring tokens, and what stands before it in its block, has all tokens
    (Spike-Driven Transformer V3's SepConv). `score` is paper (spatial and temporal), spatial, temporal, magnitude (what
    a token holds: ours), code (that of the published code: one set of tokens for all timesteps) or random (drawn once,
    by `seed`).
    """

    name = "stop-tokens"
    keeps: ClassVar[Keeps] = Keeps.LOSSY

    keep: tuple[float, ...] = (0.5,)
    """Of a block's tokens, the share that is kept; one a block, or one for all."""
    score: str = "paper"
    kernel: int = 3
    """Side of the neighbourhood that a token is compared with, where its score looks at one."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.score not in (*SCORES, RANDOM):
            raise CStepError(f"stop-tokens: score={self.score}; it must be one of {', '.join((*SCORES, RANDOM))}")
        if self.kernel not in KERNELS:
            raise CStepError(f"stop-tokens: kernel={self.kernel}; it must be one of {', '.join(map(str, KERNELS))}")
        if not all(0 <= keep <= 1 for keep in self.keep):
            raise CStepError(f"stop-tokens: keep={','.join(map(str, self.keep))}; shares of the tokens are in 0..1")

    def apply(self, network: Network) -> Network:
        network = network.clone()
        blocks = blocks_to_thin(network, self.name)
        if len(self.keep) not in (1, len(blocks)):
            names = ", ".join(block.name for block in blocks)
            raise CStepError(
                f"stop-tokens: keep={','.join(map(str, self.keep))} has {len(self.keep)} shares; the network has "
                f"{len(blocks)} blocks ({names}): give one for each, or one for all"
            )
        shares = self.keep * len(blocks) if len(self.keep) == 1 else self.keep
        for number, (block, share) in enumerate(zip(blocks, shares, strict=True)):
            kept = ceil(share * block.tokens - 1e-9)
            if kept < block.tokens:
                keep_in(block, self._kept(network, block, kept, number))
        return network

    def _kept(self, network: Network, block: Block, kept: int, number: int) -> SSAValue:
        """The kept train of a block."""
        kind, first = shaped(block.entry.type), block.ops[0]
        if kind.steps is None:
            raise refuse(first, f"stop-tokens: what enters {block.name} is {kind}, the same at every timestep")
        emit, hint = emitter(first), f"{block.name}.kept"
        result = Train.of(kind.steps, (block.tokens, 1), Element.spike())
        if self.score == RANDOM:
            draw = np.random.default_rng((self.seed, number))
            order = np.stack([draw.permutation(block.tokens) for _ in range(kind.steps)])
            name = network.add_weight(hint, (order < kept).astype(np.uint8))
            return emit(spike.GivenTokens.make(result=result, symbols={"kept": name}, hint=hint, source=first.source))
        kernel = 1 if self.score in ALONE else self.kernel
        drop = drop_of(kind, kernel, self.score)
        multiplier, divisor = change_scale(kind, drop)
        return emit(
            spike.KeepTokens.make(
                block.entry, result=result, source=first.source, hint=hint, keep=kept, rows=block.rows,
                columns=block.columns, multiplier=multiplier, divisor=divisor, kernel=kernel, score=self.score,
                drop=drop,
            )
        )  # fmt: skip


def drop_of(kind: Shaped, kernel: int, score: str) -> int:
    """How far values are shifted right so that every sum of a score fits int32. Raises CStepError for 15 and more."""
    largest = max(map(abs, kind.element.bounds))
    around = (kind.steps or 1) if score == "code" else kernel * kernel
    for drop in range(15):
        if kind.sizes[-1] * (around * -(-largest >> drop)) ** 2 <= MOST_SUM:
            return drop
    raise CStepError(f"stop-tokens: scores of {kind} do not fit 32 bits")


def change_scale(kind: Shaped, drop: int) -> tuple[int, int]:
    """Multiplier and divisor: what a change summed over channels is as a mean, in exponents of two."""
    unit = 2.0 ** (drop - kind.element.fraction.data)
    factor = E_TO_TWO * unit / kind.sizes[-1]
    divisor = min(max(MULTIPLIER_BITS - 1 - ceil(log2(factor)), 0), MOST_DIVISOR)
    return min(round(factor * 2**divisor), (1 << MULTIPLIER_BITS) - 1), divisor


__all__ = ["RANDOM", "StopTokens", "change_scale", "drop_of"]
