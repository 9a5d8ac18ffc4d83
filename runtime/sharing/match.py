"""Rows share with a partner that calibration chose for them: the pairing is static, as the machine's own is."""

from __future__ import annotations

import networkx
import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from runtime.sharing.group import share_within
from runtime.sharing.reuse import Bits, Reuse, checked_bits

CANDIDATES = 6
"""Partners that are considered for a row: those with which it has most in common."""


def pairing(samples: NDArray[np.uint8], candidates: int = CANDIDATES) -> NDArray[np.int64]:
    """[pairs, 2]: the pairs of rows that together have most in common in `samples` [samples, rows, channels].

    A maximum-weight matching of the rows (tokens, timesteps, or both at once), each considering the `candidates` rows
    with which it has most in common. The second of a pair is -1 for a row that is left alone.
    """
    if samples.ndim != 3:
        raise CStepError(f"calibration spikes: {list(samples.shape)}; they must be [samples, rows, channels]")
    rows = samples.shape[1]
    common = np.zeros((rows, rows), np.float64)
    for sample in samples.astype(np.float32):
        common += sample @ sample.T
    np.fill_diagonal(common, -1)
    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(range(rows))
    best = np.argsort(-common, axis=1, kind="stable")[:, :candidates]
    for row, others in enumerate(best):
        for other in others[common[row, others] > 0]:
            graph.add_edge(row, int(other), weight=float(common[row, other]))
    matched = [sorted(edge) for edge in networkx.max_weight_matching(graph)]
    alone = set(range(rows)) - {row for edge in matched for row in edge}
    return np.array(sorted(matched + [[row, -1] for row in alone]), np.int64).reshape(-1, 2)


def match(bits: Bits, pairs: NDArray[np.int64]) -> Reuse:
    """As `pair`, for `pairs` of rows [pairs, 2] (see `pairing`). Raises CStepError where a row is not there once."""
    rows = checked_bits(bits)
    if sorted(pairs[pairs >= 0].tolist()) != list(range(len(rows))):
        raise CStepError(f"pairs: they must hold each of the rows 0..{len(rows) - 1} once")
    return share_within(rows, pairs)


def common_bits(samples: NDArray[np.uint8], pairs: NDArray[np.int64]) -> int:
    """Bits of `samples` [samples, rows, channels] that a pairing shares: what `pairing` makes most of."""
    both = pairs[pairs[:, 1] >= 0]
    return int(np.count_nonzero(samples[:, both[:, 0]] & samples[:, both[:, 1]]))
