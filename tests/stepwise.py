"""A plain reference of masked, guarded, exited, token-stopped and halting networks: torch, timestep after timestep.

It takes the integer module as it is before any pass on time, and what is asked for in plain words; it knows neither the
ops of compiler/ir/time_ops.py and token_ops.py nor what computes or makes them. Integers are carried in float64, exact
below 2^53. What it does with tokens is in token_rules.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from token_rules import TOKENWISE, Halted, Halting, Stop, half_up
from torch import Tensor
from torch.nn import functional

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spike import SpikeOperation

WEIGHTED = (spike.Conv, spike.Linear)
TO_LOGITS = (spike.Align, spike.Add, spike.SumTime, spike.Reshape)


@dataclass(frozen=True)
class Guard:
    """Channels with at most `threshold` bits in the first `after` timesteps are 0 later: mode rows, columns, both."""

    mode: str
    after: int
    threshold: int = 0


@dataclass(frozen=True)
class Exits:
    """Leave after so many timesteps where the confidence of the cumulative logits is above tau."""

    after: tuple[int, ...]
    tau: tuple[float, ...]
    criterion: str = "lightsoftmax"
    variance: float = 0.0


@dataclass
class Result:
    """Integer logits, after how many timesteps, the currents seen by label, and the confidences at exits."""

    logits: NDArray[np.int64]
    steps: int
    currents: dict[str, list[Tensor]]
    confidences: list[float]


def confidence(criterion: str, logits: Tensor, variance: float) -> float:
    """Of real logits: the published cs, the largest probability, or 1 - entropy / ln M."""
    classes, z = len(logits), logits.max()
    if criterion == "lightsoftmax":
        others = (logits.sum() - z) / (classes - 1)
        return float(1 / (1 + (classes - 1) * torch.exp(others - z + variance / 2)))
    probabilities = torch.softmax(logits, 0)
    if criterion == "softmax":
        return float(probabilities.max())
    return float(1 + (torch.special.xlogy(probabilities, probabilities)).sum() / log(classes))


@dataclass
class Stepwise:
    """The network, its masks by label (1 or 0 a timestep), its guard, its exits, where tokens stop, how they halt."""

    network: Network
    masks: Mapping[str, str] = field(default_factory=dict[str, str])
    guard: Guard | None = None
    exits: Exits | None = None
    stops: Sequence[Stop] = ()
    halting: Halting | None = None

    def __post_init__(self) -> None:
        self.ops = [op for op in self.network.operations() if isinstance(op, SpikeOperation)]
        self.total = max(op.operand_type().steps or 0 for op in self.ops if isinstance(op, spike.SumTime))
        self.classifiers = _classifiers(self.ops)
        self.scale = next(op.get("scale") for op in self.ops if isinstance(op, spike.Output))
        self.scale *= 2.0 ** -(self.halting.fraction if self.halting else 0)
        self.entries = {_maker(self.ops, stop.entry): stop for stop in self.stops}
        halts = self.halting.stops if self.halting else ()
        behind = self.halting.exits if self.halting else ()
        self.behind = {_maker(self.ops, label): number for number, label in enumerate(behind)}
        self.stopped = {op: stop for stop in (*self.stops, *halts) for op in self.ops if stop.holds(op)}
        self.same: set[object] = set()
        for op in self.ops:  # what is the same at every timestep
            still = isinstance(op, spike.Repeat) or all(operand in self.same for operand in op.operands)
            states = isinstance(op, spike.IntegerLif | spike.Attention) or op.label in self.masks or op in self.stopped
            if op.operands and still and not states and op.results:
                self.same.add(op.results[0])

    def run(self, x: NDArray[np.float32]) -> Result:
        """One input [C, H, W], or events [T, C, H, W]."""
        given = torch.from_numpy(np.ascontiguousarray(x)).to(torch.float64)
        self.kept: dict[tuple[Stop, int], Tensor] = {}
        for op, stop in self.entries.items():
            if stop.score == "code" and stop.given is None:  # one choice from all timesteps, in front of the block
                self._begin()
                steps = [self._step(given, step, defaultdict(list), until=op) for step in range(self.total)]
                chosen = stop.choose(stop.pooled_sums(steps))
                self.kept |= {(stop, step): chosen for step in range(self.total)}
        self._begin()
        currents: dict[str, list[Tensor]] = defaultdict(list)
        confidences: list[float] = []
        logits = torch.zeros(0)
        for step in range(self.total):
            logits = self._step(given, step, currents)
            if self.exits and step + 1 in self.exits.after:
                real = logits * self.scale * self.total / (step + 1)
                confidences.append(confidence(self.exits.criterion, real, self.exits.variance))
                if confidences[-1] > self.exits.tau[self.exits.after.index(step + 1)]:
                    return Result(_integers(logits), step + 1, currents, confidences)
        return Result(_integers(logits), self.total, currents, confidences)

    def _begin(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.before: dict[Stop, Tensor] = {}
        self.halted: Halted | None = None

    def _step(
        self, given: Tensor, step: int, currents: dict[str, list[Tensor]], until: SpikeOperation | None = None
    ) -> Tensor:
        """All ops at one timestep; the cumulative logits, or what the op `until` puts out."""
        values: dict[object, Tensor] = {}
        for op in self.ops:
            operands = [values[operand] for operand in op.operands]
            if isinstance(op, spike.Output):
                return operands[0]
            if isinstance(op, spike.Input):
                values[op.results[0]] = given[step] if op.result_type.steps is not None else given
                continue
            if self._reads_guarded(op):
                operands[0] = self._guarded(f"{op.label} reads", operands[0], step)
            value = values[op.results[0]] = self._value(op, operands, step, currents)
            if op is until:
                return value
            if op in self.entries:
                self._enter(self.entries[op], value, step)
            if op in self.behind:
                self._leave(self.behind[op], value.reshape(-1, value.shape[-1]), step)
        raise AssertionError("no output")

    def _value(
        self, op: SpikeOperation, operands: list[Tensor], step: int, currents: dict[str, list[Tensor]]
    ) -> Tensor:
        if isinstance(op, spike.SumTime):
            before = self.state.get(op.label, torch.zeros_like(operands[0]))
            self.state[op.label] = before + operands[0]
            return self.state[op.label]
        if isinstance(op, spike.IntegerLif | spike.IntegerLevel):
            currents[op.label].append(operands[0])
            return self._neurons(op, operands[0], step)
        if self.halting and op in self.classifiers:
            return self._classified(self.halting, op, step)
        value = OPS[type(op)](self, op, step, *operands)
        return value * self.of_tokens(op, value, step)

    def _enter(self, stop: Stop, x: Tensor, step: int) -> None:
        """Choose the tokens of a timestep that go through a block."""
        if stop.given is not None:
            self.kept[stop, step] = torch.from_numpy(stop.given[step].astype(np.float64))
        elif stop.score != "code":
            before = self.before.get(stop, torch.zeros_like(x))
            self.kept[stop, step] = stop.choose(stop.sums(x, before))
        self.before[stop] = x

    def _leave(self, block: int, x: Tensor, step: int) -> None:
        """Tokens behind a block, of which some go through the next."""
        assert self.halting is not None
        self.halted = self.halted or Halted.none(self.halting, len(x))
        goes_on = self.halted.leave(self.halting, block, x)
        if block < len(self.halting.stops):
            self.kept[self.halting.stops[block], step] = goes_on

    def _classified(self, halting: Halting, op: SpikeOperation, step: int) -> Tensor:
        """Logits of the weighted sums so far, the bias once."""
        assert self.halted is not None
        weight, bias = self.weight(op, "weight"), self.weight(op, "bias")
        logits = bias * 2**halting.fraction * (step + 1) / self.total
        aligned = [each for each in self.ops if isinstance(each, spike.Align) and each.result_type.steps is None]
        bits = 14 - halting.fraction - sum(each.get("shift") for each in aligned)
        for sums, drop in zip(self.halted.features, halting.drops, strict=True):
            logits = logits + half_up(sums, bits - drop) @ weight.T
        return logits

    def of_tokens(self, op: SpikeOperation, x: Tensor, step: int) -> Tensor:
        """What x [..., C] is multiplied by where tokens stop: 1 for those that are kept, 0 for the others."""
        if op not in self.stopped:
            return torch.ones(1, dtype=torch.float64)
        return self.kept[self.stopped[op], step].reshape(*x.shape[:-1], 1)

    def _neurons(self, op: SpikeOperation, current: Tensor, step: int) -> Tensor:
        stays = self.of_tokens(op, current, step)
        fired = _lif(self, op, current, stays) if isinstance(op, spike.IntegerLif) else _level(self, op, current)
        fired = fired * stays
        mask = self.masks.get(op.label)
        if mask is not None:
            fired = fired * int(mask[step])
        if self._guards("columns") and op.operands[0] not in self.same:
            fired = self._guarded(op.label, fired, step)
        return fired

    def _reads_guarded(self, op: SpikeOperation) -> bool:
        """Whether an op is a weighted layer, no classifier, on spikes or counts that timesteps tell apart."""
        layer = self._guards("rows") and isinstance(op, WEIGHTED) and op not in self.classifiers
        return layer and op.operand_type().element.is_count and op.operands[0] not in self.same

    def _guards(self, side: str) -> bool:
        return self.guard is not None and self.guard.mode in (side, "both")

    def _guarded(self, name: str, x: Tensor, step: int) -> Tensor:
        """x [..., C] without the channels that were silent in the early timesteps."""
        assert self.guard is not None
        if step < self.guard.after:
            rows = x.reshape(-1, x.shape[-1]).to(torch.int64)
            bits = torch.stack([rows >> plane & 1 for plane in range(8)]).sum((0, 1))
            self.counts[name] = bits + self.counts.get(name, torch.zeros_like(bits))
            return x
        return x * (self.counts[name] > self.guard.threshold)

    def weight(self, op: SpikeOperation, key: str) -> Tensor:
        """A weight of an op; 0 where it has none."""
        name = op.symbol(key)
        value = np.zeros(1) if name is None else self.network.weights[name].astype(np.float64)
        return torch.from_numpy(value)


def _integers(x: Tensor) -> NDArray[np.int64]:
    return x.to(torch.int64).numpy()


def _classifiers(ops: list[SpikeOperation]) -> set[SpikeOperation]:
    """The last linear layers in front of the output."""
    found: set[SpikeOperation] = set()
    ahead = [operand.owner for op in ops if isinstance(op, spike.Output) for operand in op.operands]
    while ahead:
        op = ahead.pop()
        if isinstance(op, spike.Linear):
            found.add(op)
        elif isinstance(op, TO_LOGITS):
            ahead += [operand.owner for operand in op.operands]
    return found


def _maker(ops: list[SpikeOperation], label: str) -> SpikeOperation:
    """The op that makes the residual of that name."""
    return next(op for op in ops if op.label == label and isinstance(op, (spike.Add, *TOKENWISE)))


def _lif(run: Stepwise, op: SpikeOperation, x: Tensor, stays: Tensor) -> Tensor:
    """Spikes, and the membranes of what stays; those of all others are what they were."""
    v = run.state.get(op.label, torch.zeros_like(x))
    if op.get("charge") == "lif":
        h = v + half_up((x - v) * op.get("multiplier"), op.get("divisor"))
    elif op.get("charge") == "if":
        h = v + x
    else:
        h = v - half_up(v * op.get("multiplier"), op.get("divisor")) + x
    threshold = run.weight(op, "threshold")
    fired = h >= threshold
    after = torch.zeros_like(h) if op.get("reset") == "hard" else h - threshold
    run.state[op.label] = torch.where(stays > 0, torch.where(fired, after, h).clamp(-32768, 32767), v)
    return fired.to(torch.float64)


def _level(run: Stepwise, op: SpikeOperation, x: Tensor) -> Tensor:
    ratio = x / run.weight(op, "threshold")  # halves are exact; nothing else is near one
    rounded = torch.round(ratio) if op.get("ties") == "even" else torch.floor(ratio + 0.5)
    return rounded.clamp(0, op.get("levels"))


def _image(run: Stepwise, op: SpikeOperation, step: int, x: Tensor) -> Tensor:
    return torch.round(x / op.get("scale")).clamp(-127, 127)


def _conv(run: Stepwise, op: SpikeOperation, step: int, x: Tensor) -> Tensor:
    weight, window = run.weight(op, "weight"), {key: op.get(key) for key in ("stride", "padding", "groups")}
    assert not op.get("rows") and op.symbol("bias") is None
    return functional.conv2d(x.movedim(-1, 0)[None], weight, **window)[0].movedim(0, -1)


def _linear(run: Stepwise, op: SpikeOperation, step: int, x: Tensor) -> Tensor:
    """Behind the sum over time, each timestep so far has its share of the bias."""
    weight, bias = run.weight(op, "weight"), run.weight(op, "bias")
    share = (step + 1) / run.total if op.result_type.steps is None else 1
    return x @ weight.T + bias * share


def _align(run: Stepwise, op: SpikeOperation, step: int, x: Tensor) -> Tensor:
    return half_up(x, -op.get("shift")) + run.weight(op, "bias")


def _rescale(run: Stepwise, op: SpikeOperation, step: int, x: Tensor) -> Tensor:
    moved = half_up(x * run.weight(op, "multiplier"), op.get("divisor")) + run.weight(op, "bias")
    return moved.clamp(*op.result_type.element.bounds)


def _add(run: Stepwise, op: SpikeOperation, step: int, x: Tensor, y: Tensor) -> Tensor:
    return (x + y).clamp(-32768, 32767) if op.result_type.element.is_fixed else x + y


def _attention(run: Stepwise, op: SpikeOperation, step: int, *operands: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (op.get("heads"), -1)).movedim(1, 0) for x in operands)
    return (q @ k.mT @ v).movedim(0, 1).flatten(1)


def _mask(run: Stepwise, op: SpikeOperation, step: int, x: Tensor, mask: Tensor) -> Tensor:
    heads = 1 if mask.dim() == 1 else mask.shape[-1]
    return x * mask if mask.dim() == 1 else x * mask.repeat_interleave(x.shape[-1] // heads, -1)


def _pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return functional.max_pool2d(x.movedim(-1, 0)[None], kernel, stride, padding)[0].movedim(0, -1)


def _dilate(run: Stepwise, op: SpikeOperation, step: int, x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (op.get("heads"), -1)).movedim(1, -1)  # tokens x width x heads
    return _pool(heads, 3, 1, 1).movedim(-1, 1).flatten(1)


OPS: dict[type[SpikeOperation], Callable[..., Tensor]] = {
    spike.QuantiseImage: _image,
    spike.Repeat: lambda run, op, step, x: x,
    spike.Conv: _conv,
    spike.Linear: _linear,
    spike.Align: _align,
    spike.Rescale: _rescale,
    spike.Add: _add,
    spike.Multiply: lambda run, op, step, x, y: x * y,
    spike.Attention: _attention,
    spike.Mask: _mask,
    spike.Dilate: _dilate,
    spike.MaxPool: lambda run, op, step, x: _pool(x, op.get("kernel"), op.get("stride"), op.get("padding")),
    spike.Reshape: lambda run, op, step, x: x.reshape(op.result_type.sizes),
    spike.Transpose: lambda run, op, step, x: x.permute(op.get("order")),
    spike.Sum: lambda run, op, step, x: x.sum(op.get("axis")),
    spike.HeadSum: lambda run, op, step, x: x.unflatten(-1, (op.get("heads"), -1)).sum(-1),
}
