"""The neuron of ONNX's domain c-step as a torch module, which the front end recognises like any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Neuron(nn.Module):
    """Currents [T, ...] -> spikes [T, ...]; the attributes are those of `spike.lif`, and so is the arithmetic.

    Every call begins with a membrane at rest.
    """

    v: Tensor

    def __init__(
        self,
        tau: float,
        threshold: float,
        charge: str = "lif",
        reset: str = "hard",
        fires: str = "ge",
        decay: str = "divide",
        emits: float = 1.0,
    ) -> None:
        super().__init__()
        self.tau, self.v_threshold, self.v_reset = tau, threshold, 0.0 if reset == "hard" else None
        self.charge, self.fires, self.decay, self.emits = charge, fires, decay, emits
        self.v = torch.zeros(())

    def decayed(self, difference: Tensor) -> Tensor:
        return difference / self.tau if self.decay == "divide" else difference * (1 / self.tau)

    def neuronal_charge(self, x: Tensor) -> None:
        if self.charge == "lif":
            self.v = self.v + self.decayed(x - self.v)
        elif self.charge == "lif_undecayed":
            self.v = self.v - self.decayed(self.v) + x
        else:
            self.v = self.v + x

    def neuronal_fire(self) -> Tensor:
        return self.v > self.v_threshold if self.fires == "gt" else self.v >= self.v_threshold

    def forward(self, x: Tensor) -> Tensor:
        self.v = torch.zeros_like(x[0])
        spikes: list[Tensor] = []
        for current in x:
            self.neuronal_charge(current)
            fired = self.neuronal_fire()
            spikes.append(fired.to(x.dtype))
            after = 0.0 if self.v_reset is not None else self.v - self.v_threshold * spikes[-1]
            self.v = torch.where(fired, after, self.v)
        train = torch.stack(spikes)
        return train if self.emits == 1.0 else train * self.emits

    def extra_repr(self) -> str:
        return f"tau={self.tau}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, charge={self.charge}"
