"""The spiking neuron of the published models, in plain torch.

The equations are written in the order SpikingJelly 2.0 evaluates them, because float32 addition is not associative: a
sum in another order moves a membrane by one unit in the last place, and now and then a spike with it.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from isa.errors import CStepError


class ArctangentSpike(torch.autograd.Function):
    """Forward: 1 where membrane >= threshold, else 0. Backward: the slope of an arctangent of width alpha = 2."""

    ALPHA = 2.0

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(membrane)
        ctx.threshold = threshold
        return (membrane >= threshold).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (membrane,) = ctx.saved_tensors
        alpha = ArctangentSpike.ALPHA
        angle = (membrane - ctx.threshold) * (math.pi / 2 * alpha)
        return grad_outputs[0] * ((alpha / 2) / (1 + angle * angle)), None


class LIF(nn.Module):
    """Leaky integrate-and-fire over a leading time dimension: currents [T, ...] -> spikes [T, ...] in {0, 1}.

        h = v + (x - (v - v_reset)) / tau          decay_input (v_reset counts as 0 for the soft reset)
        h = v - (v - v_reset) / tau + x            otherwise
        s = h >= v_threshold
        v = v_reset where s                        hard reset
        v = h - v_threshold * s                    soft reset, v_reset = None

    Every call starts from a membrane at rest (v_reset, or 0), so one call is one input: nothing leaks from batch to
    batch. The final membrane stays readable as `v`. The reset is kept out of the gradient, as in the published
    training code.

    Raises CStepError for tau < 1, which would make the membrane overshoot its input.
    """

    v: Tensor

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
    ) -> None:
        super().__init__()
        if not tau >= 1.0:
            raise CStepError(f"LIF: tau={tau} is not a leak; a time constant is 1.0 or more (published models: 2.0)")
        self.tau = tau
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.decay_input = decay_input
        self.v = torch.zeros((), device="cpu")  # also where weights wait on the meta device for a checkpoint

    def neuronal_charge(self, x: Tensor) -> None:
        """Integrate one timestep's current x into the membrane `v`."""
        rest = 0.0 if self.v_reset is None else self.v_reset
        if self.decay_input:
            self.v = self.v + (x - (self.v - rest)) / self.tau
        else:
            self.v = self.v - (self.v - rest) / self.tau + x

    def neuronal_fire(self) -> Tensor:
        """The spikes {0, 1} of the charged membrane, in its dtype."""
        fire = cast("Callable[[Tensor, float], Tensor]", ArctangentSpike.apply)
        return fire(self.v, self.v_threshold)

    def neuronal_reset(self, spike: Tensor) -> None:
        """Reset the membrane where `spike` is 1."""
        fired = spike.detach()
        if self.v_reset is None:
            self.v = self.v - fired * self.v_threshold
        else:
            self.v = fired * self.v_reset + (1 - fired) * self.v

    def forward(self, x: Tensor) -> Tensor:
        self.v = torch.full_like(x[0], 0.0 if self.v_reset is None else self.v_reset)
        spikes: list[Tensor] = []
        for current in x:
            self.neuronal_charge(current)
            spike = self.neuronal_fire()
            self.neuronal_reset(spike)
            spikes.append(spike)
        # Without this the whole graph of the last batch would hang on the module, and copying the module would fail.
        self.v = self.v.detach()
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        reset = "soft" if self.v_reset is None else self.v_reset
        return f"tau={self.tau}, v_threshold={self.v_threshold}, v_reset={reset}, decay_input={self.decay_input}"
