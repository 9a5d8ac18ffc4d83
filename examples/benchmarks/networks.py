"""Networks of the zoo with random weights under which every layer fires, kept as checkpoints between runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.figures import progress
from compiler.calibrate.without_data import drawn_inputs
from compiler.zoo import build
from compiler.zoo.family import Entry
from compiler.zoo.random_weights import randomise

SMALL = 1 << 14
"""Numbers in an input up to which weights are drawn on several inputs; on one where it is larger."""


@dataclass(frozen=True)
class Network:
    """A checkpoint, what the zoo says of it, and how its neurons fire on random inputs."""

    name: str
    checkpoint: Path
    entry: Entry
    rates: dict[str, float]

    @property
    def rate(self) -> float:
        """Mean spikes a neuron and timestep; layers count alike."""
        return float(np.mean(list(self.rates.values())))

    def inputs(self, count: int, seed: int) -> NDArray[np.float32]:
        """Random inputs, as the model takes them."""
        return drawn_inputs(count, self.entry.shape, self.entry.mean, self.entry.std, seed)


def network(name: str, folder: Path) -> Network:
    """The network of a name, from `folder` where an earlier run left it. Raises CStepError for a name of no family."""
    model, entry = build(name, None, {})
    checkpoint, rates = folder / f"{name}.pth", folder / f"{name}.rates.json"
    if not (checkpoint.exists() and rates.exists()):
        progress(f"{name}: drawing weights; kept as {checkpoint}")
        folder.mkdir(parents=True, exist_ok=True)
        drawn = drawn_inputs(4 if prod(entry.shape) <= SMALL else 1, entry.shape, entry.mean, entry.std, seed=1)
        found = randomise(model, torch.from_numpy(drawn), seed=0)
        torch.save({"state_dict": model.state_dict()}, checkpoint)
        rates.write_text(json.dumps(found))
    return Network(name, checkpoint, entry, json.loads(rates.read_text()))
