"""The neuron of Spike-Driven Transformer V3: a count of spikes at once, and no membrane."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from isa.errors import CStepError


class NearestCount(torch.autograd.Function):
    """Forward: the whole number nearest to the current, within 0..levels. Backward: 1 inside that range, else 0."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, levels: int, ties_up: bool) -> Tensor:
        ctx.save_for_backward(current)
        ctx.levels = levels
        clamped = current.clamp(0, levels)
        return torch.floor(clamped + 0.5) if ties_up else torch.round(clamped)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (current,) = ctx.saved_tensors
        inside = (current >= 0) & (current <= ctx.levels)
        return grad_outputs[0] * inside, None, None


class Level(nn.Module):
    """Currents -> counts / norm, elementwise (Yao et al., TPAMI 2025: spike firing approximation).

        count = round(clamp(x, 0, levels))           ties = "even": half to even
        count = floor(clamp(x, 0, levels) + 0.5)     ties = "up": half up; the sum is float32, as published
        y = count / norm

    `levels` timesteps of a soft-reset integrate-and-fire neuron emit as many spikes as the count says; here they are
    one value. Nothing is kept from one call, or one timestep, to the next.

    Raises CStepError for fewer than one level, unknown ties or a norm that is not positive.
    """

    def __init__(self, levels: int = 4, ties: Literal["even", "up"] = "even", norm: float | None = None) -> None:
        super().__init__()
        self.levels = levels
        self.ties = ties
        self.norm = float(levels if norm is None else norm)
        if levels < 1 or ties not in ("even", "up") or not self.norm > 0:
            raise CStepError(
                f"Level: levels={levels}, ties={ties!r}, norm={self.norm}; expected a level or more, ties 'even' or "
                "'up', and a positive norm"
            )

    def forward(self, x: Tensor) -> Tensor:
        count = cast("Tensor", NearestCount.apply(x, self.levels, self.ties == "up"))
        return count / self.norm

    def extra_repr(self) -> str:
        return f"levels={self.levels}, ties={self.ties!r}, norm={self.norm}"
