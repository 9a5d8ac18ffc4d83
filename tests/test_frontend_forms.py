"""Products, sums, parts, pooling, levels and frames are imported bit for bit; what they cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.frontend.levels import LevelEquation, has_levels, recognise_levels
from compiler.frontend.neurons import NeuronEquation, recognise
from compiler.frontend.padded_norm import padded_norm
from compiler.ir import spike
from compiler.ir.network import Network, parse
from compiler.zoo import LIF
from compiler.zoo.level import Level
from isa.errors import CStepError

LINE = r"test_frontend_forms\.py:\d+"
STEPS, CHANNELS, HEIGHT, WIDTH, CLASSES = 3, 4, 4, 6, 5


class Says(nn.Module):
    """Images [B, 2, 4, 6] -> `body` of the module and its spikes [T, B, 4, 4, 6]: currents of as many neurons."""

    def __init__(self, body: Callable[[Any, Tensor], Any], features: int) -> None:
        super().__init__()
        self.body = body
        self.stem, self.stem_lif = nn.Conv2d(2, CHANNELS, 3, padding=1), cast(nn.Module, LIF())
        self.lif, self.inner = LIF(), LIF()
        self.conv, self.tokens = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.row, self.fused = nn.Conv1d(CHANNELS, 6, 3, padding=1), nn.Conv1d(CHANNELS, 3 * CHANNELS, 1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1, groups=CHANNELS)
        self.scale, self.pixels = nn.Parameter(torch.rand(CHANNELS)), nn.Parameter(torch.rand(1, 1, HEIGHT, 1))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.planes, self.deep = nn.MaxPool3d((1, 3, 3), 1, (0, 1, 1)), nn.MaxPool3d(2)
        self.mean, self.windows = nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)
        self.head, self.other = nn.Linear(features, CLASSES), nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.stem_lif(self.stem(x).unsqueeze(0).repeat(STEPS, 1, 1, 1, 1))
        return self.head(self.lif(self.body(self, x)).flatten(2)).mean(0)


def frames(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, (STEPS, 1))


def token_mask(m: Any, x: Tensor) -> Tensor:
    q = x.flatten(3).reshape(STEPS, 1, 2, 2, HEIGHT * WIDTH)
    return (m.inner(q.sum(3, keepdim=True)) * q).flatten(2, 3)


def channel_mask(m: Any, x: Tensor) -> Tensor:
    k = x.flatten(3).transpose(-1, -2).reshape(STEPS, 1, HEIGHT * WIDTH, 2, 2).transpose(2, 3)
    return k.mul(m.inner((k * k).sum(dim=-2, keepdim=True)))


def fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.inner(frames(m.fused, x.flatten(3))).chunk(3, dim=2)
    return q @ k.transpose(-1, -2) @ v


def stacked(m: Any, x: Tensor) -> Tensor:
    qkv = m.inner(frames(m.fused, x.flatten(3))).reshape(STEPS, 1, 3, CHANNELS, -1).permute(2, 0, 1, 3, 4)
    return (qkv[0] + qkv[-1]) * qkv.unbind(0)[1]


FULL, WINDOWS = CHANNELS * HEIGHT * WIDTH, CHANNELS * HEIGHT * WIDTH // 4
FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, str]] = {
    "conv1d": (lambda m, x: frames(m.tokens, x.flatten(3)), FULL, "kernel=1, rows=1"),
    "conv1d of three": (lambda m, x: frames(m.row, x.flatten(3)), 6 * HEIGHT * WIDTH, "padding=1, rows=1"),
    "depthwise": (lambda m, x: frames(m.depthwise, x), WINDOWS, "stride=2, padding=1, groups=4"),
    "layer scale": (lambda m, x: frames(m.conv, x) * m.scale.view(-1, 1, 1), FULL, "channel_scale %conv.transpose.2"),
    "parameter of pixels": (lambda m, x: m.pixels * frames(m.conv, x), FULL, "@pixels.2 axis=1"),
    "parameter of one": (lambda m, x: frames(m.conv, x) * m.gain, FULL, "factor=0.6999"),
    "half": (lambda m, x: (frames(m.conv, x) + x) / 2, FULL, "factor=0.5"),
    "token mask": (token_mask, FULL, "spike.sum %reshape.2 axis=1 : !spike.train<T=3, 2x24xcount<2>>"),
    "channel mask": (channel_mask, FULL, "spike.multiply %transpose.2, %inner : !spike.train<T=3, 2x24x2xi1>"),
    "chunks": (fused, FULL, "axis=0, start=8"),
    "elements": (stacked, FULL, "axis=0, start=2"),
    "split": (lambda m, x: torch.split(x, [1, 3], 2)[1], FULL * 3 // 4, "axis=0, start=1"),
    "brackets": (lambda m, x: x[..., None, 1:3, 2].squeeze(4), CHANNELS * 2, "axis=2, start=2"),
    "pooled planes": (lambda m, x: m.planes(frames(m.conv, x)), FULL, "spike.max_pool"),
    "pooled tokens": (lambda m, x: m.planes(x.flatten(3).reshape(STEPS, 1, 2, 2, -1)), FULL, "24x2xi1"),
    "pooled by a function": (lambda m, x: frames(lambda y: functional.max_pool2d(y, 2), x), WINDOWS, "kernel=2"),
    "means of windows": (lambda m, x: frames(m.windows, x), WINDOWS, "axis=3"),
    "windows of a function": (lambda m, x: frames(lambda y: functional.avg_pool2d(y, 2), x), WINDOWS, "axis=3"),
    "adaptive mean": (lambda m, x: frames(lambda y: m.mean(m.conv(y)), x), CHANNELS, "spike.mean"),
    "adaptive nothing": (lambda m, x: frames(lambda y: functional.adaptive_avg_pool2d(y, (4, 6)), x), FULL, "lif"),
    "mean of both": (lambda m, x: frames(m.conv, x).mean((3, 4)), CHANNELS, "spike.mean"),
    "votes": (lambda m, x: functional.avg_pool1d(x.flatten(2), 12), 8, "spike.mean"),
}


def lively(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                std = 2 / parameter[0].numel() ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(8)) * 2


def imported(model: nn.Module) -> Network:
    """`model` imported, equal to it on three images, and the same when its text is read again."""
    network = import_model(lively(model), images(1))
    compare_with_eager(model, network, images(3).numpy())
    compare_with_eager(model, Network(parse(network.text()), network.weights), images(1).numpy())
    return network


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_bit_equal(name: str) -> None:
    body, features, written = FORMS[name]
    torch.manual_seed(0)
    assert written in imported(Says(body, features)).text()


def test_a_parameter_keeps_its_name_where_it_is_a_vector() -> None:
    network = imported(Says(FORMS["layer scale"][0], FULL))
    assert [op.symbol("weight") for op in network.operations() if isinstance(op, spike.ChannelScale)] == ["scale"]


# --- what a model takes and returns


class Named(NamedTuple):
    logits: Tensor
    hooks: Any


class Returns(Says):
    """What a model returns beside its logits, and what it can be asked for."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(lambda m, x: x, FULL)
        self.returned = body

    def forward(self, x: Tensor, hook: Any = None, *rest: Any, flag: bool = False) -> Any:
        assert hook is None and not rest and not flag
        x = self.stem_lif(self.stem(x).unsqueeze(0).repeat(STEPS, 1, 1, 1, 1))
        return self.returned(self, x.flatten(2))


RETURNED: dict[str, Callable[[Any, Tensor], Any]] = {
    "a pair": lambda m, x: (m.head(x).mean(0), None),
    "a named tuple": lambda m, x: Named(m.head(x).mean(0), {"spikes": x}),
    "a list in a tuple": lambda m, x: ([m.head(x).mean(0)], x),
    "two heads": lambda m, x: (m.head(x).mean(0) + m.other(x).mean(0)) / 2,
    "logits of every timestep": lambda m, x: m.head(x),
    "spikes of every timestep": lambda m, x: m.lif(m.head(x)),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_a_model_returns_is_bit_equal(name: str) -> None:
    network = imported(Returns(RETURNED[name]))
    assert network.text().splitlines()[-1].startswith("spike.output %")


# --- neurons


class Emitting(LIF):
    """Emits its threshold (DTS-SNN)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.v_threshold


class Whole(nn.Module):
    """Levels under another name, as in published code: the neuron is a function inside."""

    def __init__(self, levels: int, up: bool, norm: float) -> None:
        super().__init__()
        self.top, self.up, self.divisor = levels, up, norm

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x, 0, self.top)
        return (torch.floor(x + 0.5) if self.up else torch.round(x)) / self.divisor


class Half(Whole):
    """Rounds half down, which no equation here does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ceil(torch.clamp(x, 0, self.top) - 0.5) / self.divisor


class Inside(nn.Module):
    """A neuron that holds a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Whole(4, False, 4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


@pytest.mark.parametrize(("levels", "up", "norm"), [(4, False, 4.0), (4, True, 4.0), (8, True, 8.0), (3, False, 1.0)])
def test_neurons_with_levels_are_recognised(levels: int, up: bool, norm: float) -> None:
    equation = LevelEquation(levels, norm, "up" if up else "even")
    assert recognise(Whole(levels, up, norm), "x") == equation
    assert recognise(Level(levels, "up" if up else "even", norm), "x") == equation


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Hardtanh(0, 4), Half(4, False, 4.0), LIF(), nn.Identity()])
def test_other_modules_have_no_levels(module: nn.Module) -> None:
    assert not has_levels(module)
    assert recognise_levels(module) is None


def test_a_neuron_may_emit_its_threshold() -> None:
    assert recognise(Emitting(v_threshold=0.3, v_reset=None), "x") == NeuronEquation(
        2.0, 0.3, "lif", "soft", "ge", emits=float(torch.tensor(0.3))
    )
    model = Says(lambda m, x: frames(m.conv, x), FULL)
    model.stem_lif = Emitting(v_threshold=0.3)
    assert ", emits=0.3" in imported(model).text()


@pytest.mark.parametrize("neuron", [Level(4), Whole(4, True, 4.0), Inside()])
def test_levels_are_bit_equal(neuron: nn.Module) -> None:
    model = Says(lambda m, x: frames(m.conv, x), FULL)
    model.stem_lif = neuron
    network = imported(model)
    assert sum(isinstance(op, spike.Level) for op in network.operations()) == 1


class Timeless(nn.Module):
    """Levels on [B, C, H, W]: no dimension is time, as in the published SDT-V3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.level = nn.Conv2d(2, CHANNELS, 3, padding=1), Level(4)
        self.mix, self.other, self.head = nn.Conv2d(CHANNELS, CHANNELS, 1), Level(4, norm=1.0), nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x + self.mix(self.level(x))
        tokens = x.flatten(2).transpose(1, 2).reshape(x.shape[0], HEIGHT * WIDTH, 2, -1)
        return self.head(self.other(tokens.flatten(2).mean(1)))


def test_a_model_without_time_has_one_timestep() -> None:
    network = imported(Timeless())
    types = {str(op.results[0].type) for op in network.operations() if isinstance(op, spike.Level)}
    assert types == {"!spike.train<T=1, 4x4x6xf32>", "!spike.train<T=1, 4xf32>"}


# --- norms in frames


class Framed(nn.Module):
    """A norm framed as published code does it: assigned into a padded tensor, row by row."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.off = off

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        rest = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
        out = functional.pad(norm(x), [1, 1, 1, 1])
        for row in (out[:, :, 0], out[:, :, -1], out[..., 0], out[..., -1]):
            row[:] = rest.detach().view(1, -1, 1)
        out[:, :, 1, 1] += self.off
        return out


def framed(off: float) -> tuple[Says, Framed]:
    frame = Framed(off)
    generator = torch.Generator().manual_seed(1)
    for values in (frame.norm.weight, frame.norm.bias, frame.norm.running_mean, frame.norm.running_var):
        assert isinstance(values, Tensor)
        values.data.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
    model = Says(lambda m, x: frames(lambda y: m.depthwise(m.frame(y)), x), CHANNELS * 3 * 4)
    model.frame = frame
    return model, frame.eval()


def test_a_framed_norm_is_bit_equal() -> None:
    model, frame = framed(0.0)
    found = padded_norm(frame)
    assert found is not None and (found.path, found.padding) == ("norm", 1)
    assert "%frame = spike.pad %frame.transpose, @frame.pad_value padding=1" in imported(model).text()


def test_a_frame_that_is_something_else_is_refused() -> None:
    model, frame = framed(1.0)
    assert padded_norm(frame) is None
    with pytest.raises(CStepError, match=rf"^{LINE}: the model assigns into a tensor"):
        import_model(model, images(1))


# --- what cannot be

REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a timestep": (lambda m, x: x[1:], "takes a part of time or batch of "),
    "every second": (lambda m, x: x[:, :, ::2], "takes every 2th element; only slices without a step"),
    "a list of numbers": (lambda m, x: x[:, :, [0, 1]], r"indexes a tensor by \[0, 1\]; only numbers and slices"),
    "a third": (lambda m, x: x / 3, r"divides by 3; only powers of two; write x \* \(1 / 3\)"),
    "tensors divided": (lambda m, x: x / (x + x), "divides by something else than a number"),
    "a matrix of constants": (lambda m, x: x * torch.rand(4, 6), r"multiplies .* by a constant \[4, 6\]; only one"),
    "a bias": (lambda m, x: x + m.scale.view(-1, 1, 1), r"the model computes with scale \[4, 1, 1\] outside a layer"),
    "mean of everything": (lambda m, x: x.mean() * x, "mean over all dimensions; say which"),
    "scattered dimensions": (lambda m, x: x.sum((2, 4)), "reduces .* dimensions must lie side by side"),
    "windows that overlap": (
        lambda m, x: functional.avg_pool2d(x.flatten(0, 1), 3, 1),
        "AvgPool2d with padding, ceil_mode,",
    ),
    "windows of reals": (lambda m, x: frames(lambda y: m.windows(m.conv(y)), x), "windows: averages windows of"),
    "uneven windows": (
        lambda m, x: functional.adaptive_avg_pool2d(x.flatten(0, 1), 3),
        "AdaptiveAvgPool2d of .* uneven windows",
    ),
    "deep windows": (lambda m, x: m.deep(x), "deep: MaxPool3d of 2; only windows of 1 x k x k"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    body, message = REFUSED[name]
    with pytest.raises(CStepError, match=rf"^{LINE}: {message}") as caught:
        import_model(Says(lambda m, x: (body(m, x), x)[1], FULL), images(1))
    assert "\n" not in str(caught.value)
