"""Neurons with levels and no membrane, recognised by what they compute: round(clamp(x, 0, levels)) / norm.

The zoo has `Level`; published code has classes of its own without a name or an attribute in common. So every module
without weights that nobody knows otherwise is run on probe currents, once, and compared with the equation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from xdsl.ir.core import Block

from compiler.ir import spike
from compiler.ir.meaning import level
from compiler.ir.types import Element
from compiler.ir.types import Tensor as StaticType
from compiler.nn import TIME_SCORE, unmasked

MOST_LEVELS = 256
PROBE_STEPS, PROBE_NEURONS = 4, 512
ULPS = 2
"""How far beside a half, in units in the last place, a probe looks for a tie."""

_seen: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class LevelEquation:
    """Parameters of `spike.level`."""

    levels: int
    norm: float
    ties: str


def has_levels(module: nn.Module) -> bool:
    """Whether a module computes a neuron with levels; asked once, as long as the module lives."""
    if module not in _seen:
        _seen[module] = _is_candidate(module) and recognise_levels(module) is not None
    return _seen[module]


def _is_candidate(module: nn.Module) -> bool:
    """A module without weights (a time score is none) or layers of its own, other than torch's."""
    if type(module).__module__.startswith("torch."):
        return False
    weights = [name for name, _ in module.named_parameters() if name != TIME_SCORE]
    stated = not weights and next(module.buffers(), None) is None
    parts = [part for part in module.modules() if part is not module]
    return stated and not any(type(part).__module__.startswith("torch.nn") for part in parts)


def recognise_levels(module: nn.Module) -> LevelEquation | None:
    """The equation that `module` computes, or None where it is no neuron with two levels or more."""
    run = _runner(module)
    far = run(torch.tensor([1e6, -1e6, 0.0, 1.0, 2.0]).expand(PROBE_STEPS, 1, 5).clone())
    if far is None:
        return None
    most, one, two = (float(far[0, 0, index]) for index in (0, 3, 4))
    if not 0 < one < two <= most or float(far[0, 0, 1]) != 0:
        return None
    levels, norm = round(most / one), _whole(1 / one)
    if not 2 <= levels <= MOST_LEVELS:
        return None
    probe = _probe(levels)
    seen = run(probe)
    for ties in ("even", "up"):
        equation = LevelEquation(levels, norm, ties)
        if seen is not None and torch.equal(seen, _model(equation, probe)):
            return equation
    return None


def _whole(norm: float) -> float:
    """1 / (1 / 3) in float32 is not 3: a norm that close to a whole number is one."""
    return float(round(norm)) if abs(norm - round(norm)) < 1e-5 * norm else norm


def _probe(levels: int) -> Tensor:
    """Currents [steps, 1, neurons]: around the levels, far beside them, in quarters, and ties or a few ulps beside."""
    shape = (PROBE_STEPS, 1, PROBE_NEURONS)
    generator = torch.Generator().manual_seed(0)
    near = torch.rand(shape, generator=generator) * (levels + 2) - 1
    far = torch.randn(shape, generator=generator) * (50 * levels)
    quarters = torch.randint(-8, 4 * levels + 8, shape, generator=generator) / 4
    ties = torch.randint(0, levels + 1, shape, generator=generator) + 0.5
    offset = torch.randint(-ULPS, ULPS + 1, shape, generator=generator)
    ties = (ties.view(torch.int32) + offset.to(torch.int32)).view(torch.float32)
    return torch.cat((near, far, quarters, ties), dim=-1)


def _runner(module: nn.Module) -> Callable[[Tensor], Tensor | None]:
    """Runs a copy of the module, reset first; None where it fails or gives something else than a value a current."""

    def run(probe: Tensor) -> Tensor | None:
        try:
            neuron: Any = unmasked(module).eval()
            if hasattr(neuron, "reset"):
                neuron.reset()
            with torch.no_grad():
                out = neuron(probe.clone())
        except Exception:  # somebody else's class can fail in any way
            return None
        return out if isinstance(out, Tensor) and out.shape == probe.shape and out.dtype == probe.dtype else None

    return run


def _model(equation: LevelEquation, probe: Tensor) -> Tensor:
    """What `spike.level` with this equation makes of the probe."""
    real = StaticType.of(probe.shape, Element.real())
    current = Block(arg_types=[real]).args[0]
    return level(spike.Level.make(current, result=real, **vars(equation)), lambda name: probe, probe)
