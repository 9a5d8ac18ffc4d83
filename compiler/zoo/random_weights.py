"""Random weights for a model of the zoo, with batch norms set so that its neurons fire as trained ones do.

Freshly built models fall silent after a few layers, and a silent network hides every mistake.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LOW, HIGH = 0.1, 0.25
"""The share of neurons that fire at a timestep in published models, layer by layer; every layer is brought there."""

SILENT = -6.0  # a bias, where what a batch norm puts out has standard deviations about 1

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Weighted = nn.Conv1d | nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
Signature = tuple[int, float, float]


SAMPLE = 1 << 14
"""So many of a layer's neurons, evenly spread, stand for all of them where a bias is sought."""


@dataclass(frozen=True)
class Tuning:
    """How the layers that feed an attention fire: the currents behind it can only be moved there."""

    rate: float = 1.0  # times the wanted one
    common: float = 1.0  # of the channels, those where neighbours among q, k, v both fire; elsewhere one of them does
    share: float = 1.0  # of the channels, the first ones; the others are silent
    alike: float = 0.0  # of the variance of a row of weights: what all rows have in common, so that channels agree

    def silent(self, channels: int, feeder: int) -> Tensor:
        """Which channels of the first, second, ... layer before the attention are."""
        spread = torch.arange(channels) * 0.6180339887 % 1.0
        if feeder % 2:
            spread = 1.0 - spread
        return (spread > (1 + self.common) / 2) | (torch.arange(channels) >= max(1, round(self.share * channels)))


AGREEING = tuple(Tuning(rate, share=share, alike=0.99) for rate, share in ((0.85, 1), (1.0, 1), (1.2, 1), (1.0, 0.5)))
FEWER = (
    *(Tuning(rate) for rate in (0.85, 0.75)),
    AGREEING[0],
    *(Tuning(0.9, common=common) for common in (0.4, 0.28, 0.2, 0.14, 0.1, 0.07, 0.05, 0.03)),
    *(Tuning(0.9, share=share) for share in (0.5, 0.35, 0.25, 0.2, 0.15)),
    *AGREEING[1:],
)
MORE = (
    *(Tuning(rate) for rate in (1.3, 1.6)),
    *(Tuning(1.4, share=share) for share in (0.5, 0.4, 0.3, 0.25, 0.2)),
    *AGREEING,
)
"""What is tried in turn before an attention that fires too much, and too little."""


def randomise(model: nn.Module, example: Tensor, seed: int, rate: float = 0.15) -> dict[str, float]:
    """Draw weights and calibrate the batch norms in place, so that every layer of neurons fires at 0.1 to 0.25.

    `example` is a batch as the model takes it, images [B, C, H, W] or event counts [B, T, C, H, W]; `rate` is the
    share of spikes (of non-zero counts, for neurons with levels) that a layer behind a batch norm is brought to. A
    layer behind attention, which no batch norm moves, is brought into the range by tuning what feeds the attention.

    Returns the rate of every neuron by name, measured on `example`: whether they will do is for the caller to say.
    The same for the same seed, torch build and number of threads. Leaves the model in evaluation mode.
    """
    draw(model.eval(), torch.Generator().manual_seed(seed))
    calibration = Calibration(model, rate)
    with torch.no_grad():
        for _ in range(2 + len(FEWER)):
            with calibration.watching(adjust=True):
                model(example)
            if calibration.retune():
                calibration.settled = False
            elif calibration.settled:
                break
            else:
                calibration.settled = True
        with calibration.watching(adjust=False):
            model(example)
    return dict(calibration.rates)


@torch.no_grad()
def draw(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep variances, small biases, and norms whose channels differ."""
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(std=0.1, generator=generator)
        elif isinstance(module, NORMS):
            module.weight.uniform_(0.7, 1.4, generator=generator)
            module.bias.normal_(std=0.2, generator=generator)
        else:
            for scale in module.parameters(recurse=False):  # layer scales, which start from almost 0
                scale.uniform_(0.7, 1.4, generator=generator)


def is_neuron(module: nn.Module) -> bool:
    """A membrane that charges and fires, or a neuron with levels."""
    return all(hasattr(module, name) for name in ("neuronal_charge", "neuronal_fire")) or hasattr(module, "levels")


def fired(spikes: Tensor) -> float:
    return int(spikes.count_nonzero()) / spikes.numel()


def signature(values: Tensor) -> Signature:
    """What a tensor keeps through transposes and reshapes, and hardly shares with another."""
    return values.numel(), float(values.min()), float(values.max())


def bias_for(neuron: Callable[[Tensor], Tensor], current: Tensor, rate: float) -> float:
    """By how much the currents must be moved for a share `rate` of spikes; bisection."""
    current = current.flatten(1)
    current = current[:, :: max(1, current.shape[1] // SAMPLE) | 1]
    middle = -float(current.mean())
    low, high = middle - 16.0, middle + 16.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if fired(neuron(current + middle)) > rate else (middle, high)
    return high


@dataclass
class Calibration:
    """Forward after forward over one model, each of which may set its batch norms a little better.

    A current is moved by the bias of the norm whose output it is; where it is a sum (a membrane's shortcut), a maximum
    or a mean of such outputs, by the bias of the norm that ran last. Where no norm has run since a neuron fired, it is
    an attention's.
    """

    model: nn.Module
    rate: float
    rates: dict[str, float] = field(default_factory=dict[str, float])
    feeders: dict[str, list[tuple[nn.Module, Norm]]] = field(default_factory=dict)  # by the attention's neuron
    to_try: dict[str, tuple[Tuning, ...]] = field(default_factory=dict)  # the same; the first is in force
    wanted: dict[nn.Module, float] = field(default_factory=dict)  # rates that are not `rate`
    before: dict[Norm, Weighted] = field(default_factory=dict)  # the layer that a norm follows
    drawn: dict[nn.Module, Tensor] = field(default_factory=dict)  # weights and biases that a tuning replaced
    settled: bool = False  # statistics stay as they are: a layer may have read them before its norm ran

    def __post_init__(self) -> None:
        self.names = {module: name for name, module in self.model.named_modules()}
        self.last: Weighted | None = None
        self.norms: list[tuple[Norm, Signature]] = []  # as they ran in this forward
        self.heard = 0  # so many of them have reached a neuron
        self.direct: list[tuple[nn.Module, Norm]] = []  # neurons that norms feed without anything between

    @contextmanager
    def watching(self, adjust: bool) -> Generator[None, None, None]:
        """Measure a forward's rates; where `adjust`, move statistics, biases and currents while it runs."""
        self.norms, self.heard, self.direct = [], 0, []
        handles = list(self.attach(adjust))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def attach(self, adjust: bool) -> Iterator[RemovableHandle]:
        for module in self.names:
            if is_neuron(module):
                yield module.register_forward_hook(self.measure)
                if adjust:
                    yield module.register_forward_pre_hook(self.shift)
            elif adjust and isinstance(module, NORMS):
                yield module.register_forward_pre_hook(self.estimate)
                yield module.register_forward_hook(self.remember_norm)
            elif adjust and isinstance(module, WEIGHTED):
                yield module.register_forward_hook(self.remember_weighted)

    def measure(self, neuron: nn.Module, _inputs: object, spikes: Tensor) -> None:
        self.rates[self.names[neuron]] = fired(spikes)

    def remember_weighted(self, module: nn.Module, _inputs: object, _output: object) -> None:
        self.last = cast("Weighted", module)

    def remember_norm(self, module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Contiguous outputs make contiguous shortcuts: a neuron's reshaped input is then the shortcut's own memory."""
        norm = cast("Norm", module)
        if self.last is not None:
            self.before[norm] = self.last
        self.norms.append((norm, signature(output)))
        return output.contiguous()

    def estimate(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        """The statistics of what a norm is given become its own."""
        if self.settled:
            return
        norm, x = cast("Norm", module), inputs[0]
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp(min=1e-3))

    def shift(self, neuron: nn.Module, inputs: tuple[Tensor]) -> None:
        """Move a norm's bias, and with it this current, until the neuron fires as it should.

        The current is moved in place: where it is a membrane's shortcut, later layers must see it moved, too.
        """
        current = inputs[0]
        same = [at for at, (_, known) in enumerate(self.norms) if known == signature(current)]
        if same:
            at = same[-1]
            self.direct.append((neuron, self.norms[at][0]))
        elif self.heard < len(self.norms):
            at = len(self.norms) - 1
        else:
            self.feeders[self.names[neuron]] = self.feeding(self.names[neuron])
            return
        self.heard = max(self.heard, at + 1)
        bias = bias_for(neuron.forward, current, self.wanted.get(neuron, self.rate))
        self.norms[at][0].bias.add_(bias)
        current += bias

    def feeding(self, attention: str) -> list[tuple[nn.Module, Norm]]:
        """Neurons that fired before an attention's, from norms of the same module: its queries, keys and values."""
        module = attention.rpartition(".")[0] + "."
        return [pair for pair in self.direct if all(self.names[part].startswith(module) for part in pair)]

    def retune(self) -> bool:
        """Give what feeds every attention that is out of the range its next tuning; False where all is done."""
        inside = {name: LOW <= rate < HIGH for name, rate in self.rates.items()}
        again = not all(inside[name] for name in inside if name not in self.feeders)
        for name, feeders in self.feeders.items():
            left = self.to_try.get(name, (Tuning(), *(FEWER if self.rates[name] > HIGH else MORE)))[1:]
            if inside[name] or not feeders or not left:
                continue
            again = True
            self.to_try[name] = left
            for at, (neuron, norm) in enumerate(feeders):
                self.wanted[neuron] = self.rate * left[0].rate
                self.tune(norm, left[0], at)
        return again

    def tune(self, norm: Norm, tuning: Tuning, feeder: int) -> None:
        """Silence channels, and mix the rows of the weights before the norm; the next forward does the rest."""
        weighted = self.before[norm]
        biases = self.drawn.setdefault(norm, norm.bias.clone())
        weights = self.drawn.setdefault(weighted, weighted.weight.clone())
        norm.bias.copy_(biases)
        norm.bias[tuning.silent(norm.num_features, feeder)] = SILENT
        weighted.weight.copy_((1 - tuning.alike) ** 0.5 * weights + tuning.alike**0.5 * weights[:1])
