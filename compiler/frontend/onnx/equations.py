"""Which equation an unrolled neuron computes: it is run on probe currents and compared with `spike.lif`'s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.frontend.onnx.elementwise import ELEMENTWISE, RESHAPES
from compiler.frontend.onnx.graph import Graph, Node
from compiler.frontend.onnx.neuron import Neuron

PROBES = 512
"""Neurons of each kind of probe."""
ULPS = 2
"""How far beside the threshold, in units in the last place, a probe looks for a tie."""


@dataclass
class Region:
    """What stands between the steps of `source` and the stacked spikes."""

    stack: Node
    source: str
    axis: int
    outputs: list[str]
    """The spikes of every step."""
    steps: dict[str, int]
    """Which step of the source a value is."""
    inner: dict[str, Node]
    constants: dict[str, float]


def _run(graph: Graph, region: Region, currents: Tensor) -> Tensor:
    """The spikes [T, N] of currents [T, N]."""
    values: dict[str, Tensor] = {name: currents[step] for name, step in region.steps.items()}
    for name, constant in region.constants.items():
        values[name] = torch.from_numpy(np.asarray(constant, graph.constants[name].dtype))
    order = [node for node in graph.nodes if any(name in region.inner for name in node.outputs)]
    for node in order:
        if node.operator in RESHAPES:
            values[node.outputs[0]] = values[node.inputs[0]]
        else:
            operands = [values[name] if name else None for name in node.inputs]
            values[node.outputs[0]] = ELEMENTWISE[node.operator](node, *operands)
    return torch.stack([values[name].to(torch.float32).expand(currents.shape[1:]) for name in region.outputs])


def equation(graph: Graph, region: Region, known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The attributes of the neuron that a region computes."""
    steps = graph.shapes[region.source][region.axis]
    seen: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
    try:
        for attributes in (*known, *_candidates(region)):
            kind = (attributes["tau"], attributes["threshold"])
            if kind not in seen:
                probe = _probe(*kind, steps)
                seen[kind] = probe, _run(graph, region, probe)
            probe, spikes = seen[kind]
            highest = float(spikes.max())
            emits: dict[str, Any] = attributes | {"emits": highest if highest > 0 else 1.0}
            if torch.equal(Neuron(**emits)(probe), spikes):
                return emits
    except (KeyError, TypeError, RuntimeError) as error:
        raise graph.refuse(region.stack, f"stacks spikes whose neuron cannot be run ({error})") from None
    listed = ", ".join(f"{value:g}" for value in sorted(set(region.constants.values())))
    raise graph.refuse(
        region.stack,
        f"stacks the spikes of a neuron unrolled over {steps} steps whose equation is none of LIF (decayed input or "
        f"not) and IF, hard reset to 0 or soft, >= or > (its constants: {listed})",
    )


def _candidates(region: Region) -> Iterator[dict[str, Any]]:
    """The equations to try, with constants that appear, the likely ones first."""
    constants = {abs(value) for value in region.constants.values() if 0 < abs(value) < math.inf}
    thresholds = sorted(constants | {1.0}, key=lambda value: abs(value - 1.0))
    decays = {2.0, *constants, *(1 / value for value in constants), *(1 / (1 - v) for v in constants if v < 1)}
    taus = sorted((tau for tau in decays if tau >= 1), key=lambda tau: abs(tau - 2.0))
    words = product(("lif", "lif_undecayed"), ("hard", "soft"), ("ge", "gt"), ("divide", "multiply"))
    for (charge, reset, fires, decay), tau, threshold in product(words, taus, thresholds):
        yield {
            "tau": tau, "threshold": threshold, "charge": charge, "reset": reset, "fires": fires, "decay": decay,
        }  # fmt: skip
    for reset, fires, threshold in product(("hard", "soft"), ("ge", "gt"), thresholds):
        yield {
            "tau": 1.0, "threshold": threshold, "charge": "if", "reset": reset, "fires": fires, "decay": "divide",
        }  # fmt: skip


def _probe(tau: float, threshold: float, steps: int) -> Tensor:
    """Currents [steps, N]: about the threshold, far from it, in eighths of it, and ties in the first two steps."""
    generator = torch.Generator().manual_seed(0)
    shape = (steps, PROBES)
    near = (torch.rand(shape, generator=generator) * 6 - 2) * threshold
    far = torch.randn(shape, generator=generator) * (50 * threshold)
    eighths = torch.randint(-16, 33, shape, generator=generator) * (threshold / 8)
    ties = [near.clone() for _ in range(4)]
    ties[0][0], ties[1][0] = _beside(threshold * tau, generator), _beside(threshold, generator)
    if steps > 1:
        first = torch.rand(PROBES, generator=generator) * threshold * 0.9
        ties[2][0] = ties[3][0] = first
        membrane = first / tau
        ties[2][1] = _beside(membrane + (threshold - membrane) * tau, generator)
        ties[3][1] = _beside(threshold - first + first / tau, generator)
    return torch.cat((near, far, eighths, *ties), dim=1)


def _beside(value: float | Tensor, generator: torch.Generator) -> Tensor:
    """A value, or a few units in the last place beside it."""
    centre = torch.as_tensor(value, dtype=torch.float32).expand(PROBES).contiguous()
    offset = torch.randint(-ULPS, ULPS + 1, (PROBES,), generator=generator, dtype=torch.int32)
    return (centre.view(torch.int32) + offset).view(torch.float32)
