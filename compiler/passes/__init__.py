"""The passes, in one list. `pipeline.py` says in which order they run by default."""

from __future__ import annotations

from compiler.passes.canonicalise import Canonicalise
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.fuse_attention import FuseAttention
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.quantise import Quantise

PASSES: tuple[type[NetworkPass], ...] = (FuseAttention, Canonicalise, FoldBatchNorm, Quantise)

__all__ = ["PASSES", "Keeps", "NetworkPass"]
