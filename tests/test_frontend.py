"""What is imported equals the eager model bit for bit; what cannot be imported is refused by name and line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.frontend.neurons import NeuronEquation, is_neuron, recognise
from compiler.ir.meaning import Executor
from compiler.ir.network import Network, parse
from compiler.zoo import LIF, Spikformer
from isa.errors import CStepError

Model = TypeVar("Model", bound=nn.Module)
LINE = r"test_frontend\.py:\d+"


@pytest.fixture(scope="module")
def jelly() -> Any:
    """SpikingJelly 2.0's activation_based package."""
    pytest.importorskip("spikingjelly.activation_based.neuron", reason="spikingjelly is not installed")
    from spikingjelly import activation_based
    from spikingjelly.activation_based import functional, layer, neuron  # noqa: F401

    return activation_based


def lively(model: Model) -> Model:
    """Weights and batch norms under which every layer fires, though drawn at random."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                size = (module.num_features,)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(size, generator=generator) + 0.3)
                module.weight.copy_(torch.rand(size, generator=generator) * 1.5 + 0.5)
                module.bias.copy_(torch.randn(size, generator=generator) * 0.5 + 0.5)
            elif isinstance(module, nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 2 / module.in_features**0.5)
            elif isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 2 / fan_in**0.5)
    return model.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(8))


def imported(model: nn.Module, inputs: Tensor) -> Network:
    """`model` imported on the first input, and equal to it on all of them."""
    network = import_model(model, inputs[:1])
    compare_with_eager(model, network, inputs.numpy())
    return network


def rates(network: Network, x: Tensor) -> dict[str, float]:
    return {label: float(spikes.mean()) for label, spikes in Executor(network).run(x.numpy()).spikes.items()}


# --- the published architecture


@pytest.mark.parametrize(
    ("embed", "depths", "steps", "size", "heads"),
    [
        (16, 1, 1, (8, 8), 2),
        (16, 2, 2, (8, 12), 4),
        (32, 1, 3, (12, 20), 8),
        (64, 2, 4, (16, 16), 8),
        (64, 1, 6, (32, 32), 2),
        (32, 2, 5, (20, 12), 1),
        (16, 1, 4, (4, 4), 2),
        (24, 1, 4, (4, 8), 3),
        (64, 2, 4, (28, 28), 8),
        (96, 1, 4, (16, 16), 8),
    ],
)
def test_spikformer_is_bit_equal(embed: int, depths: int, steps: int, size: tuple[int, int], heads: int) -> None:
    height, width = size
    model = lively(
        Spikformer(img_size_h=height, img_size_w=width, embed_dims=embed, num_heads=heads, depths=depths, T=steps)
    )
    network = imported(model, images(2, 3, height, width))
    if height > 4:
        assert sum(rate > 0 for rate in rates(network, images(3, height, width)).values()) >= 3 + 6 * depths


def test_a_dimension_of_one_head_stays_a_feature() -> None:
    """So that attention with one head has the shape of attention with several."""
    model = lively(Spikformer(img_size_h=8, img_size_w=8, embed_dims=16, num_heads=1, depths=1, T=2))
    assert "!spike.train<T=2, 1x4x16xi1>" in imported(model, images(1, 3, 8, 8)).text()


def test_a_wrong_weight_is_noticed_in_the_currents() -> None:
    model = lively(Spikformer(img_size_h=16, img_size_w=16, embed_dims=32, num_heads=4, depths=1, T=4))
    network = import_model(model, images(1, 3, 16, 16))
    key = "block.0.mlp.fc1_bn.weight"
    network.weights[key] = network.weights[key] * np.float32(1.001)
    with pytest.raises(CStepError, match=r"^block.0.mlp.fc1_lif \(spikformer.py:\d+\): input 0: the current differs"):
        compare_with_eager(model, network, images(1, 3, 16, 16).numpy())


def replaced(model: nn.Module, make: Callable[[LIF], nn.Module]) -> nn.Module:
    """`model` with other neurons."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LIF):
                setattr(parent, name, make(child))
    return model


@pytest.mark.parametrize("kind", ["LIFNode", "undecayed", "soft", "SimpleLIFNode", "ParametricLIFNode", "IFNode"])
def test_spikformer_with_neurons_of_spikingjelly_is_bit_equal(jelly: Any, kind: str) -> None:
    neuron = jelly.neuron
    make: dict[str, Callable[[LIF], nn.Module]] = {
        "LIFNode": lambda lif: neuron.LIFNode(lif.tau, True, lif.v_threshold, 0.0, step_mode="m"),
        "undecayed": lambda lif: neuron.LIFNode(1.6, False, lif.v_threshold, 0.0, step_mode="m"),
        "soft": lambda lif: neuron.LIFNode(3.7, True, lif.v_threshold, None, step_mode="m"),
        "SimpleLIFNode": lambda lif: neuron.SimpleLIFNode(1.7, True, lif.v_threshold, 0.0, step_mode="m"),
        "ParametricLIFNode": lambda lif: neuron.ParametricLIFNode(1.7, True, lif.v_threshold, step_mode="m"),
        "IFNode": lambda lif: neuron.IFNode(lif.v_threshold, step_mode="m"),
    }
    model = lively(Spikformer(img_size_h=16, img_size_w=16, embed_dims=32, num_heads=4, depths=1, T=4))
    network = imported(replaced(model, make[kind]), images(3, 3, 16, 16))
    assert sum(rate > 0 for rate in rates(network, images(3, 16, 16)).values()) > 10


class JellyBlock(nn.Module):
    """Attention of the published architecture with SpikingJelly's multi-step layers: [T, B, N, C] -> the same."""

    def __init__(self, jelly: Any, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name in "qkvp":
            setattr(self, f"{name}_linear", jelly.layer.Linear(dim, dim, step_mode="m"))
            setattr(self, f"{name}_bn", jelly.layer.BatchNorm1d(dim, step_mode="m"))
            setattr(self, f"{name}_lif", jelly.neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m"))
        self.attn_lif = jelly.neuron.LIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, step_mode="m")
        self.drop = jelly.layer.Dropout(0.3, step_mode="m")

    def layer(self, name: str, x: Tensor) -> Tensor:
        x = getattr(self, f"{name}_linear")(x)
        x = getattr(self, f"{name}_bn")(x.transpose(-1, -2)).transpose(-1, -2)
        return getattr(self, f"{name}_lif")(x)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, tokens, channels = x.shape
        shape = (steps, batch, tokens, self.heads, channels // self.heads)
        q, k, v = (self.layer(name, x).reshape(shape).permute(0, 1, 3, 2, 4).contiguous() for name in "qkv")
        y = (q @ k.transpose(-2, -1)) * 0.125 @ v
        y = self.attn_lif(y.transpose(2, 3).reshape(steps, batch, tokens, channels).contiguous())
        return x + self.drop(self.layer("p", y))


class JellyFormer(nn.Module):
    """Images [B, 3, H, W] -> logits [B, 10], every layer in multi-step mode: [T, B, C, H, W]."""

    def __init__(self, jelly: Any, dim: int, heads: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        layer, neuron = jelly.layer, jelly.neuron
        stages: list[nn.Module] = []
        for before, after in ((3, dim // 2), (dim // 2, dim)):
            stages += [
                layer.Conv2d(before, after, 3, padding=1, bias=False, step_mode="m"),
                layer.BatchNorm2d(after, step_mode="m"),
                neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m"),
                layer.MaxPool2d(3, 2, 1, step_mode="m"),
            ]
        self.stem = nn.Sequential(*stages)
        self.position = layer.SeqToANNContainer(nn.Conv2d(dim, dim, 3, padding=1, groups=4), nn.BatchNorm2d(dim))
        self.position_lif = neuron.IFNode(step_mode="m")
        self.block = JellyBlock(jelly, dim, heads)
        self.head = layer.Linear(dim, 10, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x] * self.steps)
        x = self.stem(x)
        x = x + self.position_lif(self.position(x))
        x = self.block(x.flatten(3).transpose(-1, -2))
        return self.head(x.mean(2)).mean(0)


@pytest.mark.parametrize(("steps", "size"), [(4, (16, 16)), (1, (8, 8)), (2, (12, 20))])
def test_spikingjelly_layers_are_bit_equal(jelly: Any, steps: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = imported(lively(JellyFormer(jelly, 32, 4, steps)), images(2, 3, *size))
    assert min(rates(network, images(3, *size)).values()) >= 0
    assert network.text().count("spike.lif") == 8


def test_neurons_are_left_at_rest(jelly: Any) -> None:
    """Importing neither starts from what an earlier batch left, nor leaves anything."""
    model = lively(JellyFormer(jelly, 32, 4, 4))
    x = images(1, 3, 16, 16)
    model(x)
    network = imported(model, x)
    assert all(
        not isinstance(module.v, Tensor) for module in model.modules() if isinstance(module, jelly.neuron.LIFNode)
    )
    assert np.array_equal(model(x)[0].detach().numpy(), Executor(network).run(x[0].numpy()).output)


# --- neurons


@pytest.mark.parametrize("tau", [2.0, 1.5, 3.7])
@pytest.mark.parametrize("threshold", [1.0, 0.3])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("decay_input", [True, False])
def test_neurons_are_recognised(
    jelly: Any, tau: float, threshold: float, v_reset: float | None, decay_input: bool
) -> None:
    charge = "lif" if decay_input else "lif_undecayed"
    reset = "soft" if v_reset is None else "hard"
    neuron = jelly.neuron
    plain = NeuronEquation(tau, threshold, charge, reset, "ge", "divide")
    assert recognise(LIF(tau, threshold, v_reset, decay_input), "x") == plain
    assert recognise(neuron.LIFNode(tau, decay_input, threshold, v_reset, step_mode="m"), "x") == plain
    parametric = recognise(neuron.ParametricLIFNode(tau, decay_input, threshold, v_reset, step_mode="m"), "x")
    assert isinstance(parametric, NeuronEquation)
    assert parametric == NeuronEquation(parametric.tau, threshold, charge, reset, "ge", "multiply")
    assert parametric.tau == pytest.approx(tau, rel=1e-6)
    integrating = NeuronEquation(1.0, threshold, "if", reset, "ge")
    assert recognise(neuron.IFNode(threshold, v_reset, step_mode="m"), "x") == integrating
    assert recognise(neuron.SimpleIFNode(threshold, v_reset, step_mode="m"), "x") == integrating


class Vendored(nn.Module):
    """A neuron of a project's own: charge, fire, reset, one step after another; each part can be overridden."""

    def __init__(self, v_threshold: float = 1.0, tau: float = 2.0) -> None:
        super().__init__()
        self.v_threshold, self.tau, self.v_reset = v_threshold, tau, 0.0
        self.v: Any = 0.0

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + (x - self.v) / self.tau

    def neuronal_fire(self) -> Tensor:
        return (self.v >= self.v_threshold).float()

    def neuronal_reset(self, fired: Tensor) -> None:
        self.v = self.v * (1 - fired)

    def forward(self, x: Tensor) -> Tensor:
        self.v = torch.zeros_like(x[0])
        spikes: list[Tensor] = []
        for current in x:
            self.neuronal_charge(current)
            spikes.append(self.neuronal_fire())
            self.neuronal_reset(spikes[-1])
        return torch.stack(spikes)


class Strict(Vendored):
    def neuronal_fire(self) -> Tensor:
        return (self.v > self.v_threshold).float()


class Quadratic(Vendored):
    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + (x + 0.1 * self.v * (self.v - 0.5)) / self.tau


class Saturating(Vendored):
    """Only currents far beyond the threshold tell it from a LIF."""

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + (x.clamp(-20.0, 20.0) - self.v) / self.tau


class Refractory(Vendored):
    def neuronal_reset(self, fired: Tensor) -> None:
        self.v = torch.where(fired > 0, -0.2 * torch.ones_like(self.v), self.v)


class Graded(Vendored):
    def neuronal_fire(self) -> Tensor:
        return (self.v / self.v_threshold).floor().clamp(0, 4)


class Lasting(Vendored):
    """Keeps its membrane from call to call until it is reset."""

    def reset(self) -> None:
        self.v = 0.0

    def forward(self, x: Tensor) -> Tensor:
        left, spikes = self.v, list[Tensor]()
        self.v = left + torch.zeros_like(x[0])
        for current in x:
            self.neuronal_charge(current)
            spikes.append(self.neuronal_fire())
            self.neuronal_reset(spikes[-1])
        return torch.stack(spikes)


def test_a_neuron_is_recognised_by_what_it_computes() -> None:
    assert recognise(Vendored(0.7, 1.5), "x") == NeuronEquation(1.5, 0.7, "lif", "hard", "ge")
    assert recognise(Strict(0.7, 1.5), "x") == NeuronEquation(1.5, 0.7, "lif", "hard", "gt")
    assert is_neuron(Quadratic())
    assert not is_neuron(nn.ReLU())


@pytest.mark.parametrize("kind", [Quadratic, Saturating, Refractory])
def test_unknown_equations_are_refused_by_name(kind: type[Vendored]) -> None:
    with pytest.raises(CStepError, match=rf"^lif: test_frontend\.{kind.__name__} charges, fires or resets by"):
        recognise(kind(), "lif")


def test_graded_spikes_are_refused() -> None:
    with pytest.raises(CStepError, match=r"test_frontend\.Graded emits values other than 0 and one more; only"):
        recognise(Graded(), "lif")


@pytest.mark.parametrize("name", ["QIFNode", "EIFNode", "IzhikevichNode", "KLIFNode", "ComplementaryLIFNode"])
def test_other_neurons_of_spikingjelly_are_refused_by_name(jelly: Any, name: str) -> None:
    kind = getattr(jelly.neuron, name)
    rest = {"v_reset": 0.0, "v_rest": 0.0} if name in ("QIFNode", "EIFNode", "IzhikevichNode") else {}
    with pytest.raises(CStepError, match=rf"^model\.lif: spikingjelly\.\S+\.{name} "):
        recognise(kind(**rest, step_mode="m"), "model.lif")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_reset": -0.1}, "resets to -0.1; only 0"),
        ({"v_threshold": 0.0}, "has the threshold 0.0; it must be positive"),
        ({"v_threshold": float("nan")}, "has the threshold nan; it must be positive"),
        ({"tau": torch.ones(3)}, "has 3 values of tau; it must be one"),
        ({"tau": "two"}, "has tau='two'; it must be a number"),
        ({"step_mode": "s"}, r"is in single-step mode; put the model into multi-step mode \(step_mode='m'"),
    ],
)
def test_parameters_that_no_neuron_can_have_are_refused(change: dict[str, Any], message: str) -> None:
    neuron = Vendored()
    for name, value in change.items():
        setattr(neuron, name, value)
    with pytest.raises(CStepError, match=rf"^lif: test_frontend\.Vendored {message}"):
        recognise(neuron, "lif")


def test_single_step_mode_is_refused_before_anything_else(jelly: Any) -> None:
    model = lively(JellyFormer(jelly, 32, 4, 4))
    jelly.functional.set_step_mode(model, "s")
    with pytest.raises(CStepError, match=r"^stem\.2: spikingjelly\.\S+\.LIFNode is in single-step mode; put the model"):
        import_model(model, images(1, 3, 16, 16))


# --- what torch can say


class Tiny(nn.Module):
    """A stem, a middle that is the test's, and a head: images [1, 2, 4, 6] -> logits [1, 5]."""

    STEPS = 3

    def __init__(self, middle: nn.Module, features: int = 4 * 4 * 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.lif = LIF()
        self.middle = middle
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.conv(x).unsqueeze(0).repeat(self.STEPS, 1, 1, 1, 1))
        return self.head(self.middle(x).flatten(2).mean(0))


class Says(nn.Module):
    """A middle that is one function of its module and the spikes [T, B, C, H, W], with a few layers to call."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.lif = LIF()
        self.scale = nn.Parameter(torch.ones(6))
        self.fc = nn.Linear(6, 6)
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.LayerNorm(6)
        self.softmax = nn.Softmax(-1)
        self.gelu = nn.GELU()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def in_place_sum(module: Any, x: Tensor) -> Tensor:
    y = module.fc(x)
    y += x
    return module.lif(y)


SUPPORTED: dict[str, Callable[[Any, Tensor], Any]] = {
    "dropout that is off": lambda m, x: functional.dropout(m.drop(x), 0.5, m.training),
    "dropout of nothing": lambda m, x: functional.dropout(x, 0.0),
    "clone and contiguous": lambda m, x: m.lif(m.fc(x.transpose(3, 4).clone().contiguous().transpose(-2, -1))),
    "unflatten": lambda m, x: m.lif(m.fc(x.flatten(0, 1)).unflatten(0, (3, 1))),
    "view and size": lambda m, x: m.lif(m.conv(x.flatten(0, 1)).view(x.size(0), 1, 4, x.size(-2), -1)),
    "sum in place": in_place_sum,
    "numbers of shapes": lambda m, x: x.flatten(3) if x.dim() == 5 and x.numel() == 288 else m.softmax(x),
    "a neuron without memory, twice": lambda m, x: m.lif(m.fc(m.lif(m.fc(x)))),
    "permute and squeeze": lambda m, x: m.lif(m.fc(x.squeeze(1).permute(0, 2, 1, 3))).unsqueeze(1),
    "flatten and back": lambda m, x: m.lif(m.fc(torch.flatten(x, 0, 1)).reshape(3, 1, 4, 4, 6)),
    "matmul": lambda m, x: m.lif(torch.matmul(x, x.transpose(-1, -2)) * 0.25),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_what_is_supported_is_bit_equal(name: str) -> None:
    model = lively(Tiny(Says(SUPPORTED[name]), 4 * 4 * (4 if name == "matmul" else 6)))
    network = imported(model, images(3, 2, 4, 6))
    assert rates(network, images(2, 4, 6))["lif"] > 0.1


def branch(module: Any, x: Tensor) -> Tensor:
    return module.lif(module.fc(x)) if x.mean() > 0.5 else x


def assign(module: Any, x: Tensor) -> Tensor:
    x[0] = 0.0
    return x


def in_place_seen_twice(module: Any, x: Tensor) -> Tensor:
    y = module.fc(x)
    seen = y.flatten(0, 1)
    y += x
    return module.lif(seen.unflatten(0, (3, 1)))


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "softmax": (
        lambda m, x: m.softmax(x),
        "middle.softmax: torch.nn.modules.activation.Softmax has no spiking meaning",
    ),
    "functional softmax": (
        lambda m, x: functional.softmax(x, -1),
        "torch.nn.functional.softmax has no spiking meaning",
    ),
    "softmax method": (lambda m, x: x.softmax(-1), "Tensor.softmax has no spiking meaning"),
    "layer norm": (
        lambda m, x: m.norm(x),
        "middle.norm: torch.nn.modules.normalization.LayerNorm has no spiking meaning",
    ),
    "gelu": (lambda m, x: m.gelu(x), "middle.gelu: torch.nn.modules.activation.GELU has no spiking meaning here; see"),
    "branch": (branch, "the model branches on a tensor's value; a program has no such branch"),
    "item": (lambda m, x: x * x.max().item(), "the model turns a tensor into the float 1.0; it must stay a tensor"),
    "float": (lambda m, x: x * float(x.max()), "the model turns a tensor's value into a number; it must stay"),
    "assignment": (assign, "the model assigns into a tensor; build it with stack or cat instead"),
    "in place": (in_place_seen_twice, "adds in place to a tensor that is used again under another name; write x = x"),
    "time and features": (
        lambda m, x: x.reshape(1, 12, 24).reshape(x.shape),
        "a reshape merges time with features; keep T",
    ),
    "split time": (
        lambda m, x: x.reshape(6, 48).reshape(x.shape),
        "a reshape merges time with features",
    ),
    "parameter": (
        lambda m, x: x + m.scale,
        r"the model computes with middle\.scale \[6\] outside a layer; only products with one number a channel",
    ),
    "constant": (
        lambda m, x: x * torch.ones(4, 6),
        r"multiplies \[3, 1, 4, 4, 6\] by a constant \[4, 6\]; only",
    ),
    "number": (lambda m, x: x + 1.0, "adds a constant to a tensor"),
    "random dropout": (lambda m, x: functional.dropout(x), r"dropout with training=True \(its default\) is random"),
    "repeat of a feature": (
        lambda m, x: x.repeat(1, 1, 4, 1, 1).reshape(3, 1, 4, 4, 4, 6).mean(2),
        "repeats along a dimension that is not new",
    ),
    "keyword": (lambda m, x: torch.add(x, x, alpha=2), "torch.add: got an unexpected keyword argument 'alpha'"),
    "shapes": (
        lambda m, x: m.fc(x[..., :5]),
        r"the model fails on an input \[1, 2, 4, 6\]: RuntimeError: mat1 and mat2",
    ),
    "broadcast": (lambda m, x: x + x.mean(4).unsqueeze(4), "adds .* only equal shapes can be added"),
    "neuron first in features": (
        lambda m, x: m.lif(x.transpose(0, 2)).transpose(0, 2),
        "the neuron's first dimension must be time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_in_one_line(name: str) -> None:
    body, message = REFUSED[name]
    with pytest.raises(CStepError, match=rf"^{LINE}: (middle\.lif: )?({message})") as caught:
        import_model(Tiny(Says(body)), images(1, 2, 4, 6))
    assert "\n" not in str(caught.value)


def test_an_unknown_neuron_is_refused_with_its_line() -> None:
    with pytest.raises(CStepError, match=rf"^middle \({LINE}\): test_frontend\.Quadratic charges, fires or resets"):
        import_model(Tiny(Quadratic()), images(1, 2, 4, 6))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = Lasting()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.lif(x))


def test_a_neuron_that_keeps_its_membrane_is_refused_where_it_is_called_twice() -> None:
    message = (
        rf"^{LINE}: middle\.lif: test_frontend\.Lasting is called twice and keeps its membrane; use one neuron a call"
    )
    with pytest.raises(CStepError, match=message):
        import_model(Tiny(Twice()), images(1, 2, 4, 6))


class Standardised(nn.Conv2d):
    """A subclass that computes something else than a convolution with its weight."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class Padded(nn.Conv2d):
    """A subclass that computes just that."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        return functional.conv2d(input, self.weight, self.bias, self.stride, self.padding)


def test_a_layer_with_a_forward_of_its_own_must_compute_the_same() -> None:
    model = lively(Tiny(nn.Identity()))
    model.conv = Padded(2, 4, 3, padding=1)
    imported(model, images(2, 2, 4, 6))
    model.conv = Standardised(2, 4, 3, padding=1)
    with pytest.raises(
        CStepError, match=rf"^{LINE}: conv: test_frontend\.Standardised does not compute what torch\.nn\.C"
    ):
        import_model(model, images(1, 2, 4, 6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    model = lively(Tiny(nn.Identity()))
    with torch.no_grad():
        model.head.weight[2, 3] = value
    with pytest.raises(CStepError, match=rf"^head \({LINE}\): head\.weight holds NaN or infinity$"):
        import_model(model, images(1, 2, 4, 6))


def test_weights_in_another_precision_are_refused() -> None:
    model = lively(Tiny(nn.Identity())).double()
    with pytest.raises(
        CStepError, match=rf"^conv \({LINE}\): conv\.weight is float64, not float32; use model\.float\(\)"
    ):
        import_model(model, images(1, 2, 4, 6).double())


class Events(nn.Module):
    """Events [B, T, 2, H, W] -> logits [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.lif = LIF(tau=1.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps = x.shape[:2]
        x = self.norm(self.conv(x.transpose(0, 1).flatten(0, 1)))
        x = self.lif(x.reshape(steps, batch, *x.shape[1:]))
        return self.head(x.flatten(3).mean(3)).mean(0)


def test_events_are_bit_equal() -> None:
    network = imported(lively(Events()), images(2, 5, 2, 9, 7).round())
    assert "!spike.train<T=5, 2x9x7xf32>" in network.text()


def test_the_example_is_left_as_it_is() -> None:
    def overwrite(module: Any, x: Tensor) -> Tensor:
        return x.zero_()

    x = images(1, 2, 4, 6)
    model = nn.Sequential(Says(overwrite))
    with pytest.raises(CStepError, match=rf"^{LINE}: Tensor\.zero_ has no spiking meaning here"):
        import_model(model, x)
    assert torch.equal(x, images(1, 2, 4, 6))


def test_an_example_of_another_shape_is_refused() -> None:
    with pytest.raises(CStepError, match=r"^example input \[2, 4, 6\]; it must be \[1, C, H, W\]"):
        import_model(Tiny(nn.Identity()), images(2, 4, 6))


class Numbered(nn.Module):
    """Modules whose names end in numbers, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lif_1, self.lif_2, self.lif = LIF(), LIF(tau=1.5), LIF()
        self.fc_1, self.fc_2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc_1(self.lif(self.lif_2(self.fc_2(self.lif_1(self.fc_1(x)))))))


def test_every_neuron_has_a_label_of_its_own() -> None:
    model = lively(Tiny(Numbered()))
    network = imported(model, images(2, 2, 4, 6))
    labels = ["lif", "middle.lif.1", "middle.lif.2", "middle.lif", "middle.lif.3"]
    run = Executor(network).run(images(2, 4, 6).numpy())
    assert list(run.currents) == labels
    again = Network(parse(network.text()), network.weights)
    assert list(Executor(again).run(images(2, 4, 6).numpy()).currents) == labels


def test_frozen_parameters_change_nothing() -> None:
    model = lively(Tiny(Says(SUPPORTED["clone and contiguous"])))
    network = imported(model, images(3, 2, 4, 6))
    model.requires_grad_(False)
    compare_with_eager(model, network, images(3, 2, 4, 6).numpy())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Branching(nn.Module):
    """Branches on a flag that the trace sees as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.lif, self.short = LIF(), False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.short else self.lif(x)


def test_a_model_that_changed_after_import_is_noticed() -> None:
    model = lively(Tiny(Branching()))
    network = imported(model, images(1, 2, 4, 6))
    model.middle.short = True
    with pytest.raises(CStepError, match=r"^input 0: the model calls neurons 1 times, but 2 times on the example"):
        compare_with_eager(model, network, images(1, 2, 4, 6).numpy())
