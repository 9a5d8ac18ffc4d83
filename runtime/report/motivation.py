"""C-STEP's four figures of motivation, for a program: what early logits, silent channels and neighbours promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Decide, Exit
from isa.program import Program
from runtime.interpreter import RunResult, run

EARLY = 2
"""Timesteps of the early window (the paper's t0 = 1)."""
NEIGHBOURS = (2, 4, 8)
SHARES = tuple(tenth / 10 for tenth in range(1, 10))
NEVER = (1 << 48) - 1
"""More than any criterion measures."""
AT_ONCE = 4
"""Inputs that are observed together: every neuron's current and spike at every timestep are held."""


@dataclass(frozen=True)
class ExitPoint:
    """Inputs that would leave after some timesteps, at a threshold of the softmax confidence (eq. 1)."""

    after: int
    share: float
    """Of the inputs, that leave."""
    tau: float
    exited: float
    """Accuracy of those that leave, on the logits there."""
    exited_full: float
    """Accuracy of the same with all timesteps."""
    stayed: float
    """Accuracy of the others, on the logits there."""
    stayed_full: float


@dataclass
class LayerSpikes:
    """Sums over the inputs of what one layer of neurons did."""

    name: str
    channels: int = 0
    silent: int = 0
    """Channels without a spike in the early window, over all inputs."""
    late_spikes: float = 0.0
    late_places: int = 0
    """(Timestep, token) pairs behind the early window, times channels."""
    silent_late_spikes: float = 0.0
    silent_late_places: int = 0
    common: dict[int, int] = field(default_factory=dict[int, int])
    """By K: set bits that all of K neighbouring tokens have, times K."""
    bits: dict[int, int] = field(default_factory=dict[int, int])
    """By K: set bits of whole groups of K tokens."""

    @property
    def silent_ratio(self) -> float:
        return _share(self.silent, self.channels)

    @property
    def late_rate(self) -> float:
        """Spikes a place, behind the early window."""
        return _share(self.late_spikes, self.late_places)

    @property
    def silent_late_rate(self) -> float:
        """The same of the channels that were silent early."""
        return _share(self.silent_late_spikes, self.silent_late_places)

    def common_fraction(self, neighbours: int) -> float:
        """Of the set bits, those that all `neighbours` tokens of a group have."""
        return _share(self.common.get(neighbours, 0), self.bits.get(neighbours, 0))


@dataclass(frozen=True)
class Estimate:
    """What exits, guards on columns and sharing among K tokens would leave of the operations."""

    neighbours: int
    common_fraction: float
    sharing: float
    """1 - f (K - 1) / K."""
    exit_rate: float
    early: float
    """Share of the operations in the early window, measured."""
    removed: float
    """Share of the late operations whose outputs are silent channels, weighted by measured operations of layers."""
    exit_and_guards: float
    everything: float


def never_exiting(program: Program) -> Program:
    """The program with exits that are not taken, so that every input gives logits at all of them."""
    return _with_thresholds(program, lambda after: NEVER)


def always_exiting(program: Program, after: int) -> Program:
    """The program whose exit after so many timesteps every input takes, and no other."""
    return _with_thresholds(program, lambda at: 0 if at == after else NEVER)


def exits_of(program: Program) -> tuple[int, ...]:
    """After how many timesteps there are exits."""
    return tuple(each.steps for each in program.code if isinstance(each, Exit))


def _with_thresholds(program: Program, threshold: Callable[[int], int]) -> Program:
    code = list(program.code)
    for place, each in enumerate(code):
        if isinstance(each, Decide):
            after = next(other.steps for other in code[place:] if isinstance(other, Exit))
            code[place] = replace(each, threshold=threshold(after))
    return Program(program.header, tuple(code), program.memory, program.source_map)


def exit_points(result: RunResult, after: Sequence[int], scale: float, truth: NDArray[np.int64]) -> list[ExitPoint]:
    """Figure 1a: thresholds at which a tenth to nine tenths leave; `scale` makes logits of all timesteps real."""
    steps = int(result.steps.max())
    full = np.equal(result.logits.argmax(axis=1), truth)
    points: list[ExitPoint] = []
    for number, count in enumerate(after):
        logits = result.decisions[:, number]
        right = np.equal(logits.argmax(axis=1), truth)
        sure = _softmax(logits * (scale * steps / count))
        for share in SHARES:
            tau = float(np.quantile(sure, 1 - share))
            leaves = sure > tau
            points.append(
                ExitPoint(
                    count,
                    float(leaves.mean()),
                    tau,
                    _mean(right[leaves]),
                    _mean(full[leaves]),
                    _mean(right[~leaves]),
                    _mean(full[~leaves]),
                )
            )
    return points


def observe(
    program: Program, integers: NDArray[np.int8], workers: int, progress: Callable[[int], None] = lambda done: None
) -> dict[int, LayerSpikes]:
    """Figures 1b and 2a: every layer's spikes on int8 inputs, by layer index. Raises CStepError for two timesteps."""
    if program.header.timesteps <= EARLY:
        raise CStepError(f"figures: the model has T={program.header.timesteps}; {EARLY} are early, none would be late")
    found: dict[int, LayerSpikes] = {}
    for start in range(0, len(integers), AT_ONCE):
        seen = run(program, integers[start : start + AT_ONCE], observe=True, workers=workers)
        assert seen.spikes is not None
        for layer, spikes in seen.spikes.items():
            held = found.setdefault(layer, LayerSpikes(program.header.layers[layer].name))
            for each in spikes:
                add_input(held, each)
        progress(min(start + AT_ONCE, len(integers)))
    return found


def estimates(
    layers: dict[int, LayerSpikes], whole: RunResult, early: RunResult | None, exit_rate: float
) -> list[Estimate]:
    """Figure 2b, and the paper's product with this model's own numbers.

    `whole` ran all timesteps and `early` those of the early window, of the same inputs without sharing; where there is
    no such run, its operations are taken for their share of the timesteps.
    """
    by_layer = whole.counters.by_layer("sop_bit").sum(axis=0).astype(float)
    first_share = EARLY / float(whole.steps.max())
    late = by_layer * (1 - first_share) if early is None else by_layer - early.counters.by_layer("sop_bit").sum(axis=0)
    silent = np.array([layers[index].silent_ratio if index in layers else 0.0 for index in range(len(late))])
    removed = _share(float(late @ silent), float(late.sum()))
    first = 1 - _share(float(late.sum()), float(by_layer.sum()))
    left = first + (1 - exit_rate) * (1 - first) * (1 - removed)
    made: list[Estimate] = []
    for neighbours in NEIGHBOURS:
        fraction = mean_fraction(layers, neighbours)
        sharing = 1 - fraction * (neighbours - 1) / neighbours
        made.append(Estimate(neighbours, fraction, sharing, exit_rate, first, removed, left, left * sharing))
    return made


def mean_fraction(layers: dict[int, LayerSpikes], neighbours: int) -> float:
    """Over all layers, bits counted alike."""
    common = sum(each.common.get(neighbours, 0) for each in layers.values())
    return _share(common, sum(each.bits.get(neighbours, 0) for each in layers.values()))


def add_input(held: LayerSpikes, spikes: NDArray[np.uint8]) -> None:
    """Add one input's spikes or levels [T, tokens, channels] to the sums."""
    bits = spikes > 0
    silent = np.logical_not(np.asarray(bits[:EARLY].any(axis=(0, 1))))
    late = bits[EARLY:].sum(axis=(0, 1))
    places = bits[EARLY:, :, 0].size
    held.channels += len(silent)
    held.silent += int(silent.sum())
    held.late_spikes += int(late.sum())
    held.late_places += places * len(silent)
    held.silent_late_spikes += int(late[silent].sum())
    held.silent_late_places += places * int(silent.sum())
    for neighbours in NEIGHBOURS:
        groups = bits.shape[1] // neighbours
        together = bits[:, : groups * neighbours].reshape(len(bits), groups, neighbours, bits.shape[2])
        held.common[neighbours] = held.common.get(neighbours, 0) + neighbours * int(together.all(axis=2).sum())
        held.bits[neighbours] = held.bits.get(neighbours, 0) + int(together.sum())


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    return 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def _mean(right: NDArray[Any]) -> float:
    return float(right.mean()) if len(right) else float("nan")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
