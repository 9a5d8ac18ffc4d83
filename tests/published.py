"""What a published architecture's keys, shapes and parameters are, without a weight in memory."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor, nn

from compiler.zoo import build
from compiler.zoo.random_weights import NORMS, draw


def structure(name: str) -> tuple[str, int]:
    """Sha256 of the sorted lines "key 64x3x3x3" of the module called `name`, and the number of its parameters."""
    with torch.device("meta"):
        model, entry = build(name, None, {})
    lines = sorted(f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), entry.parameters


def draw_loud(model: nn.Module) -> None:
    """Random weights with which neurons fire, and which no calibration makes depend on a sum's rounding."""
    draw(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, norm in model.named_modules():
            if isinstance(norm, NORMS):
                norm.weight.mul_(2)
                norm.bias.add_(1.5 if re.search(r"\b[qkv]_(bn|conv\.1)$", name) else 0.4)  # else attention is silent


def drawn_image(edge: int) -> Tensor:
    """One normalised image [1, 3, edge, edge]."""
    return torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(1))


def drawn_events(edge: int, steps: int) -> Tensor:
    """The event counts of one input, [1, steps, 2, edge, edge]."""
    return torch.poisson(torch.full((1, steps, 2, edge, edge), 0.3), torch.Generator().manual_seed(1))


def assert_published_logits(model: nn.Module, example: Tensor, expected: tuple[float, ...]) -> None:
    """The logits of `example`, after `draw_loud`, against those of the published code with the same weights.

    The tolerance is for a spike that tips over where torch adds in another order.
    """
    draw_loud(model)
    with torch.no_grad():
        logits = model.eval()(example)
    torch.testing.assert_close(logits, torch.tensor([expected]), rtol=0, atol=0.02)
