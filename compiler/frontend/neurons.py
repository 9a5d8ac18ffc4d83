"""Neurons recognised by equation.

A neuron is a module that charges, fires and resets (`neuronal_charge` and `neuronal_fire`). Its class name says
little (every project vendors its own), so it is run on probe currents and compared, spike for spike, with each
equation that the IR has. One that equals none of them is refused by name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from xdsl.ir.core import Block

from compiler.ir import spike
from compiler.ir.meaning import lif
from compiler.ir.types import Element, Train
from isa.errors import CStepError

PROBE_STEPS, PROBE_NEURONS = 12, 512


@dataclass(frozen=True)
class NeuronEquation:
    """Parameters of `spike.lif`."""

    tau: float
    threshold: float
    charge: str
    reset: str
    fires: str


def is_neuron(module: nn.Module) -> bool:
    """Whether a module charges and fires."""
    return hasattr(module, "neuronal_charge") and hasattr(module, "neuronal_fire")


def recognise(module: nn.Module, where: str) -> NeuronEquation:
    """The equation that `module` computes. Raises CStepError, naming the class, where it is none of ours."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    v_reset = getattr(module, "v_reset", 0.0)
    if v_reset is not None and float(v_reset) != 0.0:
        raise CStepError(f"{where}: {kind} resets to {float(v_reset)}; only 0 (hard) and None (soft) are supported")
    threshold = float(getattr(module, "v_threshold", 1.0))
    probe = _probe(threshold)
    seen = _run(module, probe, where, kind)
    if not bool(((seen == 0) | (seen == 1)).all()):
        raise CStepError(f"{where}: {kind} emits values other than 0 and 1; only spikes are supported")
    resets = ("soft",) if v_reset is None else ("hard",)
    for charge, reset, fires in product(("lif", "lif_undecayed", "if"), resets, ("ge", "gt")):
        equation = NeuronEquation(_tau(module) if charge != "if" else 1.0, threshold, charge, reset, fires)
        if torch.equal(_model(equation, probe), seen):
            return equation
    raise CStepError(
        f"{where}: {kind} charges, fires or resets by an equation that is not supported; supported are LIF (decayed "
        "input or not) and IF, hard reset to 0 or soft reset, fired at >= or > a threshold"
    )


def _tau(module: nn.Module) -> float:
    """The time constant: `tau`, or a parametric LIF's 1 / sigmoid(w)."""
    w = getattr(module, "w", None)
    if isinstance(w, Tensor) and w.numel() == 1:
        return float(1.0 / torch.sigmoid(w.detach()))
    return float(getattr(module, "tau", 2.0))


def _probe(threshold: float) -> Tensor:
    """Currents [steps, 1, neurons] around the threshold, some of which reach it exactly."""
    generator = torch.Generator().manual_seed(0)
    currents = (torch.rand(PROBE_STEPS, 1, PROBE_NEURONS, generator=generator) * 6 - 2) * threshold
    eighths = torch.randint(0, 33, (PROBE_STEPS, 1, PROBE_NEURONS // 4), generator=generator) * (threshold / 8)
    currents[..., : PROBE_NEURONS // 4] = eighths
    return currents


def _run(module: nn.Module, probe: Tensor, where: str, kind: str) -> Tensor:
    neuron: Any = copy.deepcopy(module).eval()
    if hasattr(neuron, "backend"):
        neuron.backend = "torch"
    if hasattr(neuron, "reset"):
        neuron.reset()
    try:
        with torch.no_grad():
            out = neuron(probe)
    except Exception as error:
        raise CStepError(f"{where}: {kind} cannot be run on currents [T, B, N] ({type(error).__name__}: {error})") from None
    if not isinstance(out, Tensor) or out.shape != probe.shape:
        raise CStepError(f"{where}: {kind} does not return one value per current; is it in multi-step mode?")
    return out


def _model(equation: NeuronEquation, probe: Tensor) -> Tensor:
    """What `spike.lif` with this equation makes of the probe."""
    train = Train.of(PROBE_STEPS, probe.shape[1:], Element.real())
    current = Block(arg_types=[train]).args[0]
    op = spike.Lif.make(
        current,
        result=train.with_element(Element.spike()),
        tau=equation.tau,
        threshold=equation.threshold,
        reset=equation.reset,
        charge=equation.charge,
        fires=equation.fires,
    )
    return lif(op, lambda name: probe, probe)
