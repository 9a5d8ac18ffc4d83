"""How many timesteps a group of neuron layers needs: DTS-SNN's sensitivity, without training.

Groups are sps (stems, downsampling, convolution blocks, neurons before the head), qkv, attn and mlp, by the layers'
names (`compiler.nn.group_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.ir import spike
from compiler.ir.meaning import NEURONS, Executor
from compiler.ir.network import Network
from compiler.nn import group_of

BINS = 64
"""Of a histogram of a layer's currents, from their least to their greatest."""


@dataclass(frozen=True)
class Sensitivity:
    """Of a group: the cosine similarity of its currents at the first timestep and at the later ones."""

    group: str
    layers: tuple[str, ...]
    similarity: float
    """Mean over layers and later timesteps; 1: every timestep is like the first."""


def longest_train(network: Network) -> int:
    """T of a network: that of its longest train; 1 where it has none."""
    return max(
        op.result_type.steps or 1 for op in network.operations() if isinstance(op, spike.SpikeOperation) and op.results
    )


def neuron_timesteps(network: Network) -> dict[str, int]:
    """T_l of every neuron layer: the timesteps of its train that its mask leaves."""
    found: dict[str, int] = {}
    for op in network.operations():
        if isinstance(op, NEURONS):
            mask = op.get("mask")
            found[op.label] = sum(mask) if mask else op.result_type.steps or 1
    return found


def average_timesteps(network: Network, masks: Mapping[str, str]) -> float:
    """T_avg: the mean of T_l over all neuron layers, with these masks."""
    each = neuron_timesteps(network) | {label: mask.count("1") for label, mask in masks.items()}
    return sum(each.values()) / len(each)


def sensitivities(network: Network, inputs: NDArray[np.float32]) -> list[Sensitivity]:
    """Every group's, least sensitive first, from the currents that inputs [B, ...] cause."""
    executor = Executor(network)
    seen: dict[str, list[NDArray[np.int64]]] = {}
    for x in inputs:
        for label, currents in executor.run(x).currents.items():
            seen.setdefault(label, []).append(currents)
    similar = {label: _similarity(np.stack(values, axis=1)) for label, values in seen.items()}
    groups: dict[str, list[str]] = {}
    for label in similar:
        groups.setdefault(group_of(label), []).append(label)
    found = [
        Sensitivity(group, tuple(labels), float(np.mean([similar[label] for label in labels])))
        for group, labels in groups.items()
    ]
    return sorted(found, key=lambda each: -each.similarity)


def prefix(steps: int, kept: int) -> str:
    """The mask of the first `kept` of `steps` timesteps."""
    return "1" * kept + "0" * (steps - kept)


def _similarity(currents: NDArray[np.int64]) -> float:
    """Of currents [T, ...]: mean over t > 0 of the cosine of the histograms at 0 and t; 1 for one timestep."""
    low, high = float(currents.min()), float(currents.max())
    steps = [np.histogram(each, BINS, (low, high + 1))[0].astype(np.float64) for each in currents]
    first = steps[0]
    norms = [float(np.linalg.norm(each)) for each in steps]
    cosines = [float(first @ each) / (norms[0] * norm) for each, norm in zip(steps[1:], norms[1:], strict=True)]
    return float(np.mean(cosines)) if cosines else 1.0
