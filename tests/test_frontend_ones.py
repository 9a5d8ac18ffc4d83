"""Sizes of 1: a reshape does not say whether such a dimension is the batch, a timestep or a channel."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.ir import spike
from compiler.zoo import LIF


class OneChannel(nn.Module):
    """Layers of one channel; time and batch are joined and cut in the ways of published code."""

    def __init__(self, steps: int, channels: int, joins: bool, cuts: bool, merges: bool) -> None:
        super().__init__()
        self.steps, self.joins, self.cuts, self.merges = steps, joins, cuts, merges
        self.conv1, self.norm1, self.lif1 = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), LIF(2, 0.3)
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.norm2, self.lif2 = nn.Conv2d(channels, 1, 3, padding=1), nn.BatchNorm2d(1), LIF(2, 0.3)
        self.mix, self.lif3 = nn.Conv1d(1, 1, 1), LIF(2, 0.2)
        self.head = nn.Linear(16, 5)

    def joined(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) if self.joins else x.flatten(0, 1)

    def cut(self, x: Tensor) -> Tensor:
        return x.reshape(self.steps, -1, *x.shape[1:]) if self.cuts else x.unflatten(0, (self.steps, -1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        x = self.lif1(self.cut(self.norm1(self.conv1(self.joined(x)))))
        x = self.cut(self.pool(self.joined(x)))
        x = self.lif2(self.cut(self.norm2(self.conv2(self.joined(x)))))
        x = x.reshape(self.steps * x.shape[1], 1, -1) if self.merges else self.joined(x.flatten(3))
        x = self.lif3(self.cut(self.mix(x)))
        x = x.reshape(self.steps, x.shape[1], -1) if self.merges else x.flatten(2)
        return self.head(x).mean(0) if self.joins else self.head(x.mean(0))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("joins", "cuts", "merges"), list(product((False, True), repeat=3)))
def test_a_size_of_1_is_what_its_user_needs(steps: int, channels: int, joins: bool, cuts: bool, merges: bool) -> None:
    torch.manual_seed(1)
    model = OneChannel(steps, channels, joins, cuts, merges).eval()
    network = import_model(model, torch.zeros(1, 1, 8, 8))
    assert compare_with_eager(model, network, torch.randn(2, 1, 8, 8).numpy()) > 0
    pixels = sorted({op.result_type.sizes for op in network.operations() if isinstance(op, spike.Conv)})
    assert pixels == sorted({(8, 8, channels), (4, 4, 1), (1, 16, 1)})
