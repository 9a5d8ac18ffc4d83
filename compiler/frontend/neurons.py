"""Neurons recognised by equation.

A neuron is a module that charges and fires: one with `neuronal_charge` and `neuronal_fire`, or with a threshold and a
`multi_step_functional_forward` (SpikingJelly 2.0); or one with levels and no membrane (levels.py). Its class name says
little (every project vendors its own), so it is run on probe currents and compared, spike for spike, with each equation
that the IR has. One that equals none of them is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from xdsl.ir.core import Block

from compiler.frontend.levels import LevelEquation, has_levels, recognise_levels
from compiler.ir import spike
from compiler.ir.meaning import lif
from compiler.ir.types import Element, Train
from compiler.nn import unmasked
from isa.errors import CStepError

PROBE_STEPS, PROBE_NEURONS = 12, 128
"""Timesteps of a probe, and neurons of each of its kinds."""
ULPS = 2
"""How far beside the threshold, in units in the last place, a probe looks for a tie."""


@dataclass(frozen=True)
class NeuronEquation:
    """Parameters of `spike.lif`."""

    tau: float
    threshold: float
    charge: str
    reset: str
    fires: str
    decay: str = "divide"
    emits: float = 1.0


def keeps_state(module: nn.Module) -> bool:
    """Whether a module has SpikingJelly 2.0's explicit state; it is a leaf of the graph, neuron or not."""
    return hasattr(module, "multi_step_functional_forward")


def is_neuron(module: nn.Module) -> bool:
    """Whether a module charges and fires, or has levels."""
    if hasattr(module, "neuronal_charge") and hasattr(module, "neuronal_fire"):
        return True
    return (keeps_state(module) and hasattr(module, "v_threshold")) or has_levels(module)


def neurons_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The neurons of a model with their paths; a neuron inside a neuron is its own affair."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if not any(path.startswith(outer) for outer in inside) and is_neuron(module):
            inside.append(f"{path}.")
            yield path, module


def class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def require_multi_step(module: nn.Module, where: str) -> None:
    """Refuse a neuron that takes one timestep a call, and keeps a membrane from one to the next."""
    if getattr(module, "step_mode", "m") != "m" and not has_levels(module):
        raise CStepError(
            f"{where}: {class_name(module)} is in single-step mode; put the model into multi-step mode "
            "(step_mode='m', spikingjelly.activation_based.functional.set_step_mode) and give it [T, B, ...]"
        )


def recognise(module: nn.Module, where: str) -> NeuronEquation | LevelEquation:
    """The equation that `module` computes. Raises CStepError, naming the class, where it is none of ours."""
    levels = recognise_levels(module) if has_levels(module) else None
    if levels is not None:
        return levels
    require_multi_step(module, where)
    kind = class_name(module)
    v_reset = getattr(module, "v_reset", 0.0)
    if v_reset is not None and _number(module, "v_reset", 0.0, where) != 0.0:
        raise CStepError(f"{where}: {kind} resets to {float(v_reset)}; only 0 (hard) and None (soft) are supported")
    threshold = _number(module, "v_threshold", 1.0, where)
    if not 0 < threshold < float("inf"):
        raise CStepError(f"{where}: {kind} has the threshold {threshold}; it must be positive")
    for equation in _candidates(module, threshold, "soft" if v_reset is None else "hard", where):
        probe = _probe(equation)
        seen = _run(module, probe, where)
        emits = float(seen.max())
        if emits <= 0 or not bool(((seen == 0) | (seen == emits)).all()):
            raise CStepError(f"{where}: {kind} emits values other than 0 and one more; only spikes are supported")
        equation = replace(equation, emits=emits)
        if torch.equal(_model(equation, probe), seen):
            return equation
    raise CStepError(
        f"{where}: {kind} charges, fires or resets by an equation that is not supported; supported are LIF (decayed "
        "input or not) and IF, hard reset to 0 or soft reset, fired at >= or > a threshold"
    )


def remembers(module: nn.Module, where: str) -> bool:
    """Whether a second call without a reset begins with the membrane that the first one left."""
    if has_levels(module):
        return False
    probe = _probe(NeuronEquation(1.0, _number(module, "v_threshold", 1.0, where), "if", "hard", "ge"))
    seen = _run(module, torch.cat((probe, probe)), where, parts=2)
    return not torch.equal(seen[:PROBE_STEPS], seen[PROBE_STEPS:])


def _candidates(module: nn.Module, threshold: float, reset: str, where: str) -> Iterator[NeuronEquation]:
    """The equations to try, the likely ones first."""
    parametric = isinstance(getattr(module, "w", None), Tensor)
    decays = ("multiply", "divide") if parametric else ("divide", "multiply")
    tau = _parametric_tau(module, where) if parametric else _number(module, "tau", 2.0, where)
    for charge, decay, fires in product(("lif", "lif_undecayed"), decays, ("ge", "gt")):
        if 0 < tau < float("inf"):
            yield NeuronEquation(tau, threshold, charge, reset, fires, decay)
    for fires in ("ge", "gt"):
        yield NeuronEquation(1.0, threshold, "if", reset, fires)


def _parametric_tau(module: Any, where: str) -> float:
    """A parametric LIF multiplies by sigmoid(w), in float32; the double 1 / tau rounds back to just that."""
    return 1.0 / float(torch.sigmoid(torch.tensor(_number(module, "w", 0.0, where))))


def _number(module: nn.Module, name: str, default: float, where: str) -> float:
    """A parameter that must be one number for the whole layer."""
    value = getattr(module, name, default)
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise CStepError(f"{where}: {class_name(module)} has {value.numel()} values of {name}; it must be one")
        return float(value.detach())
    if not isinstance(value, int | float):
        raise CStepError(f"{where}: {class_name(module)} has {name}={value!r}; it must be a number")
    return float(value)


def _probe(equation: NeuronEquation) -> Tensor:
    """Currents [steps, 1, neurons]: around the threshold, far beside it, in eighths of it, and ties with it."""
    threshold, shape = equation.threshold, (PROBE_STEPS, 1, PROBE_NEURONS)
    generator = torch.Generator().manual_seed(0)
    near = (torch.rand(shape, generator=generator) * 6 - 2) * threshold
    far = torch.randn(shape, generator=generator) * (50 * threshold)
    eighths = torch.randint(0, 33, shape, generator=generator) * (threshold / 8)
    ties = (torch.rand(shape, generator=generator) * 6 - 2) * threshold
    ties[0] = torch.rand(shape[1:], generator=generator) * threshold * 0.9
    ties[0, :, ::4] = 0.0
    ties[1] = _tie(equation, ties[0], generator)
    return torch.cat((near, far, eighths, ties), dim=-1)


def _tie(equation: NeuronEquation, first: Tensor, generator: torch.Generator) -> Tensor:
    """The second current that, after `first` below the threshold, brings the membrane to it, or a few ulps beside."""
    tau, threshold = equation.tau, torch.tensor(equation.threshold)
    if equation.charge == "lif":
        membrane = first / tau
        current = membrane + (threshold - membrane) * tau
    else:
        current = threshold - first + (first / tau if equation.charge == "lif_undecayed" else 0.0)
    offset = torch.randint(-ULPS, ULPS + 1, first.shape, generator=generator)
    return (current.view(torch.int32) + offset.to(torch.int32)).view(torch.float32)


def _run(module: nn.Module, probe: Tensor, where: str, parts: int = 1) -> Tensor:
    """The spikes of a copy of the module, reset first and called `parts` times."""
    try:
        neuron: Any = unmasked(module).eval()
        if hasattr(neuron, "backend"):
            neuron.backend = "torch"
        if hasattr(neuron, "reset"):
            neuron.reset()
        with torch.no_grad():
            outs = [neuron(part) for part in probe.chunk(parts)]
    except Exception as error:  # somebody else's class can fail in any way
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        raise CStepError(f"{where}: {class_name(module)} cannot be run on currents [T, B, N] ({reason})") from None
    if not all(isinstance(out, Tensor) and out.shape == probe.chunk(parts)[0].shape for out in outs):
        raise CStepError(
            f"{where}: {class_name(module)} does not return one value per current; is it in multi-step mode?"
        )
    return torch.cat(outs)


def _model(equation: NeuronEquation, probe: Tensor) -> Tensor:
    """What `spike.lif` with this equation makes of the probe."""
    train = Train.of(PROBE_STEPS, probe.shape[1:], Element.real())
    current = Block(arg_types=[train]).args[0]
    op = spike.Lif.make(current, result=train, **vars(equation))
    return lif(op, lambda name: probe, probe)
