"""factor-common-spikes: which rows of a weighted layer share what their spikes have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import StringAttr, SymbolRefAttr

from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from compiler.ir.sharing import MODES
from compiler.passes.guard_channels import is_weighted
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.errors import CStepError

Weighted = spike.Conv | spike.Linear
Table = tuple[str, NDArray[np.uint16]]
"""What is paired, tokens or timesteps, and the partners."""
CANDIDATES = 6
"""Partners that are considered for a row: those with which it has most in common."""


@dataclass(frozen=True)
class FactorCommonSpikes(NetworkPass):
    """Say of every layer that reads spikes how its rows share sums; the values stay as they are.

        %y = spike.linear %s, @fc2                              : !spike.train<T=4, 64x96xint<-812, 790>>
    becomes, with mode=forest
        %y = spike.linear %s, @fc2 sharing=forest               : !spike.train<T=4, 64x96xint<-812, 790>>
    and with mode=match
        %y = spike.linear %s, @fc2 sharing=match, over=tokens, partners=@y.partners : ...

    A row is an output pixel or token at a timestep; docs/sharing.md says what each mode does. match pairs the tokens of
    every timestep, or the timesteps of every token, whichever have more in common on calibration inputs, by a matching
    of greatest weight. Depthwise layers, and those that read an image or a stream, share nothing.
    """

    name = "factor-common-spikes"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    mode: str = "pair"
    """none, pair, group4, group8, match, prefix or forest."""
    layers: tuple[str, ...] = ()
    """Other modes by layer, each label=mode."""
    images: int = 4
    """So many calibration inputs are run for match, spread over those given."""

    def __post_init__(self) -> None:
        for mode in (self.mode, *self._by_layer().values()):
            if mode not in MODES:
                raise CStepError(f"factor-common-spikes: mode={mode}; it must be one of {', '.join(MODES)}")
        if self.images < 1:
            raise CStepError(f"factor-common-spikes: images={self.images}; it must be 1 or more")

    def apply(self, network: Network) -> Network:
        return self.apply_with(network, None)

    def apply_with(self, network: Network, calibration: NDArray[np.float32] | None) -> Network:
        network = network.clone()
        sharing = [op for op in network.operations() if isinstance(op, Weighted) and shares(op)]
        others, labels = self._by_layer(), {op.label for op in sharing}
        for label in others.keys() - labels:
            raise CStepError(f"factor-common-spikes: layers={label}; no such layer shares, there are {_some(labels)}")
        modes = {op: others.get(op.label, self.mode) for op in sharing}
        matched = [op for op, mode in modes.items() if mode == "match"]
        tables = _pairings(network, matched, self._inputs(calibration)) if matched else {}
        for op, mode in modes.items():
            op.properties["sharing"] = StringAttr(mode)
            if op in tables:
                over, partners = tables[op]
                op.properties["over"] = StringAttr(over)
                op.properties["partners"] = SymbolRefAttr(network.add_weight(f"{op.label}.partners", partners))
        return network

    def _by_layer(self) -> dict[str, str]:
        pairs = [each.rpartition("=") for each in self.layers]
        for label, _, mode in pairs:
            if not label:
                raise CStepError(f"factor-common-spikes: layers={mode}; it must be label=mode")
        return {label: mode for label, _, mode in pairs}

    def _inputs(self, calibration: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if calibration is None or not len(calibration):
            raise CStepError("factor-common-spikes: mode=match pairs rows by calibration inputs; none are given")
        chosen = np.linspace(0, len(calibration) - 1, min(self.images, len(calibration))).astype(int)
        return calibration[chosen]


def shares(op: Weighted) -> bool:
    """Whether a layer reads spikes or counts on the PEs, all input channels for every output."""
    is_depthwise = isinstance(op, spike.Conv) and op.get("groups") == op.operand_type().sizes[-1] > 1
    return is_weighted(op) and op.operand_type().element.is_count and not is_depthwise


def _some(labels: Iterable[str]) -> str:
    return ", ".join(sorted(labels)) or "none"


def _pairings(network: Network, layers: Sequence[Weighted], inputs: NDArray[np.float32]) -> dict[Weighted, Table]:
    """Of every layer the partners that have most in common over all inputs."""
    wanted = {op.operands[0] for op in layers}
    common: dict[Weighted, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    executor = Executor(network)
    for x in inputs:
        values = executor.run(x, wanted=wanted).values
        for op in layers:
            found = in_common(rows_of(op, values[op.operands[0]]))
            before = common.get(op)
            common[op] = found if before is None else (before[0] + found[0], before[1] + found[1])
    return {op: _better(*found) for op, found in common.items()}


def rows_of(op: Weighted, counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Bits [planes, T, output pixels, channels under all taps] of the train [T, ...] (or [...]) that a layer reads."""
    kind = op.operand_type()
    x = counts.reshape(kind.steps or 1, *kind.sizes)
    if isinstance(op, spike.Conv):
        kernel, stride, padding = (op.get(key) for key in ("kernel", "stride", "padding"))
        height, top = (1, 0) if op.get("rows") else (kernel, padding)
        padded = np.pad(x, ((0, 0), (top, top), (padding, padding), (0, 0)))
        taps = np.lib.stride_tricks.sliding_window_view(padded, (height, kernel), axis=(1, 2))
        x = taps[:, :: 1 if op.get("rows") else stride, ::stride]
        x = x.reshape(len(x), x.shape[1] * x.shape[2], -1)
    x = x.reshape(len(x), prod(x.shape[1:-1]), x.shape[-1])
    return np.stack([(x >> plane & 1).astype(np.float32) for plane in range(kind.element.planes)])


def in_common(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits that each two tokens have in common, summed over planes and timesteps, and each two timesteps likewise."""
    tokens = sum((step @ step.T for plane in rows for step in plane), np.zeros((rows.shape[2],) * 2))
    flat = rows.reshape(*rows.shape[:2], -1)
    steps = sum((plane @ plane.T for plane in flat), np.zeros((rows.shape[1],) * 2))
    return tokens, steps


def _better(tokens: NDArray[np.float64], steps: NDArray[np.float64]) -> Table:
    """Tokens or timesteps, whichever pairs have more in common; both count each shared bit once."""
    by_token, by_step = partners_of(tokens), partners_of(steps)
    gains = [
        float(each[np.arange(len(p)), p][p != np.arange(len(p))].sum())
        for each, p in ((tokens, by_token), (steps, by_step))
    ]
    return ("timesteps", by_step) if gains[1] > gains[0] else ("tokens", by_token)


def partners_of(common: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The partner of each row in a matching of greatest weight [rows, rows]; itself where it is left alone."""
    rows = len(common)
    weights = common.copy()
    np.fill_diagonal(weights, -1)
    graph: nx.Graph[int] = nx.Graph()
    best = np.argsort(-weights, axis=1, kind="stable")[:, :CANDIDATES]
    for row, others in enumerate(best):
        graph.add_weighted_edges_from(
            (row, int(other), float(weights[row, other])) for other in others if weights[row, other] > 0
        )
    partners = np.arange(rows, dtype=np.uint16)
    for one, other in nx.max_weight_matching(graph):
        partners[one], partners[other] = other, one
    return partners
