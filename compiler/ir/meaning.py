"""What every op computes: one function an op, in one place.

A value is a torch tensor: [T, *shape] for a train, [*shape] for a tensor; reals in the dtype of the run, integers
as int64. Real ops call the same torch functions, in the same shapes and memory order, as the model that was traced,
so that an imported module equals the eager model bit for bit. Integer matrix products run in float32 where the
bounds in the types prove them below 2^24, in float64 below 2^53; both are exact there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from xdsl.ir import SSAValue

from compiler.ir import spike, token_meaning
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import Element, shaped
from isa.errors import CStepError
from isa.logarithms import certainty, largest_probability, light_softmax

Weights = Callable[[str], Tensor]
Meaning = Callable[..., Tensor]
Watch = Callable[[str, NDArray[Any]], None]
MEANINGS: dict[type[HouseOperation], Meaning] = {}

NEURONS = (spike.Lif, spike.Level, spike.IntegerLif, spike.IntegerLevel)
"""Ops whose input currents and spikes a run records."""
STREAMS = (spike.Range, spike.Rescale)
"""Ops whose results a run records as streams."""
LARGE = 1 << 20
"""Reals of larger trains are kept in float32: a 224x224 image makes tens of millions of currents."""
INT16 = (-(1 << 15), (1 << 15) - 1)
EXACT_FLOAT32 = 1 << 24


def meaning(op: type[HouseOperation]) -> Callable[[Meaning], Meaning]:
    """Register the function that says what `op` computes: f(op, weights, *operands)."""

    def register(function: Meaning) -> Meaning:
        MEANINGS[op] = function
        return function

    return register


def _is_integer(x: Tensor) -> bool:
    return not x.dtype.is_floating_point


def _exactly(op: spike.SpikeOperation, product: Callable[..., Tensor], *factors: Tensor) -> Tensor:
    """An integer matrix product in floating point that holds every partial sum exactly."""
    element = op.result_type.element
    magnitude = max(abs(bound) for bound in element.bounds)
    dtype = torch.float32 if magnitude < EXACT_FLOAT32 else torch.float64
    return product(*(factor.to(dtype) for factor in factors)).to(torch.int64)


@meaning(spike.Repeat)
def repeat(op: spike.Repeat, weights: Weights, x: Tensor) -> Tensor:
    """x at every timestep."""
    steps = op.result_type.steps
    assert steps is not None
    return x.unsqueeze(0).repeat(steps, *[1] * x.dim())


@meaning(spike.QuantiseImage)
def quantise_image(op: spike.QuantiseImage, weights: Weights, x: Tensor) -> Tensor:
    """clip(rint(x / scale), -127, 127), in float64."""
    return torch.round(x.to(torch.float64) / op.get("scale")).clamp(-127, 127).to(torch.int64)


@meaning(spike.Conv)
def conv(op: spike.Conv, weights: Weights, x: Tensor) -> Tensor:
    """HxWxC convolved with weight [out, in / groups, kernel, kernel], plus bias."""
    weight, bias = weights(_symbol(op, "weight")), _bias(op, weights)
    images = x if x.dim() == 4 else x.unsqueeze(0)
    window = op.get("stride"), op.get("padding"), 1, op.get("groups")
    if op.get("rows"):  # every row by itself, as torch's conv1d
        images, convolve, weight = images.flatten(0, 1).permute(0, 2, 1), functional.conv1d, weight.squeeze(2)
    else:
        images, convolve = images.permute(0, 3, 1, 2), functional.conv2d
    if _is_integer(x):
        out = _exactly(op, lambda a, w: convolve(a, w, None, *window), images, weight)
    else:
        out = convolve(_with_plain_strides(images), weight, bias, *window)
    out = out.movedim(1, -1)
    if bias is not None and _is_integer(x):
        out = out + bias
    return out.reshape(*x.shape[:-3], *op.result_type.sizes)


def _with_plain_strides(x: Tensor) -> Tensor:
    """The same memory, with the strides of a new tensor: torch picks its kernel, and so its rounding, by strides.

    They differ only along dimensions of size 1, which a permutation leaves with any stride.
    """
    return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride()) if x.is_contiguous() else x


@meaning(spike.Linear)
def linear(op: spike.Linear, weights: Weights, x: Tensor) -> Tensor:
    """x weightT + bias over the last dimension."""
    weight, bias = weights(_symbol(op, "weight")), _bias(op, weights)
    if op.get("accrues") and bias is not None:
        bias = bias * torch.arange(1, len(x) + 1).reshape(-1, *[1] * (x.dim() - 1))
    if _is_integer(x):
        out = _exactly(op, lambda a, w: a @ w.T, x, weight)
        return out if bias is None else out + bias
    if op.get("accrues"):
        return functional.linear(x, weight) + (0 if bias is None else bias)
    if x.dim() == 1:  # one row, as the eager model's batch of one
        return functional.linear(x.unsqueeze(0), weight, bias)[0]
    return functional.linear(x, weight, bias)


@meaning(spike.BatchNorm)
def batch_norm(op: spike.BatchNorm, weights: Weights, x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias along `axis`."""
    rows = x if op.result_type.steps is not None else x.unsqueeze(0)
    moved = rows.movedim(op.get("axis") + 1, 1)
    named = (weights(_symbol(op, key)) for key in ("mean", "variance", "weight", "bias"))
    out = functional.batch_norm(moved, *named, training=False, eps=op.get("epsilon"))
    out = out.movedim(1, op.get("axis") + 1)
    return out if op.result_type.steps is not None else out[0]


@meaning(spike.Lif)
def lif(op: spike.Lif, weights: Weights, current: Tensor) -> Tensor:
    """h = v + (x - v) / tau; s = h >= threshold; v = 0 where s (hard) or h - threshold * s (soft)."""
    tau, threshold = op.get("tau"), op.get("threshold")

    def decayed(difference: Tensor) -> Tensor:
        return difference / tau if op.get("decay") == "divide" else difference * (1 / tau)

    v = torch.zeros_like(current[0])
    spikes: list[Tensor] = []
    for x in current:
        if op.get("charge") == "lif":
            h = v + decayed(x - v)
        elif op.get("charge") == "lif_undecayed":
            h = v - decayed(v) + x
        else:
            h = v + x
        fired = h > threshold if op.get("fires") == "gt" else h >= threshold
        spikes.append(fired.to(x.dtype))
        v = torch.where(fired, 0.0, h) if op.get("reset") == "hard" else h - threshold * spikes[-1]
    train = torch.stack(spikes)  # contiguous, as neurons give them: the next layer rounds by the memory order
    return _masked(op, train if op.get("emits") == 1.0 else train * op.get("emits"))


def _masked(op: spike.SpikeOperation, train: Tensor) -> Tensor:
    """A neuron's output, times its timestep mask."""
    mask = op.get("mask")
    return train * torch.tensor(mask, dtype=train.dtype).reshape(-1, *[1] * (train.dim() - 1)) if mask else train


@meaning(spike.Level)
def level(op: spike.Level, weights: Weights, current: Tensor) -> Tensor:
    """round(clamp(x, 0, levels)) / norm, ties to even, or up as floor(x + 0.5)."""
    clamped = current.clamp(0, op.get("levels"))
    rounded = torch.round(clamped) if op.get("ties") == "even" else torch.floor(clamped + 0.5)
    return _masked(op, rounded / op.get("norm"))


@meaning(spike.Range)
def value_range(op: spike.Range, weights: Weights, x: Tensor) -> Tensor:
    """x."""
    return x


@meaning(spike.IntegerLif)
def integer_lif(op: spike.IntegerLif, weights: Weights, current: Tensor, kept: Tensor | None = None) -> Tensor:
    """The neuron of `isa.instructions.Fire`: decay in fixed point, half up, membrane clamped to int16.

    Neurons of tokens that are not kept are 0, and their membranes stay as they are.
    """
    threshold = weights(_symbol(op, "threshold"))
    multiplier, divisor = op.get("multiplier"), op.get("divisor")
    half = 1 << divisor >> 1
    v = torch.zeros_like(current[0])
    spikes, stays = torch.empty_like(current), _of_tokens(kept, current)
    for step, x in enumerate(current):
        if op.get("charge") == "lif":
            h = v + (((x - v) * multiplier + half) >> divisor)
        elif op.get("charge") == "lif_undecayed":
            h = v + x - ((v * multiplier + half) >> divisor)
        else:
            h = v + x
        fired = h >= threshold
        charged = torch.where(fired, 0 if op.get("reset") == "hard" else h - threshold, h).clamp(*INT16)
        spikes[step] = fired * stays[step]
        v = torch.where(stays[step] > 0, charged, v)
    return _masked(op, spikes)


def _of_tokens(kept: Tensor | None, train: Tensor) -> Tensor:
    """What a kept train [T, N, 1] multiplies a train [T, ..., C] by; ones where there is none."""
    shape = (*train.shape[:-1], 1)
    return torch.ones(shape, dtype=train.dtype) if kept is None else kept.reshape(shape).to(train.dtype)


@meaning(spike.IntegerLevel)
def integer_level(op: spike.IntegerLevel, weights: Weights, current: Tensor, kept: Tensor | None = None) -> Tensor:
    """The number of j in 1..levels with 2 x >= (2 j - 1) threshold; > for odd j where ties go to even.

    Of tokens that are not kept, 0.
    """
    threshold = weights(_symbol(op, "threshold"))
    counts = torch.zeros_like(current)
    for j in range(1, op.get("levels") + 1):
        tie_counts = op.get("ties") == "up" or j % 2 == 0
        edge = (2 * j - 1) * threshold
        counts += 2 * current >= edge if tie_counts else 2 * current > edge
    return _masked(op, counts if kept is None else counts * _of_tokens(kept, counts))


@meaning(spike.Rescale)
def rescale(op: spike.Rescale, weights: Weights, x: Tensor, kept: Tensor | None = None) -> Tensor:
    """clamp(((x * multiplier + half) >> divisor) + bias), to the bounds of the result; 0 for tokens not kept."""
    half = 1 << op.get("divisor") >> 1
    product = (x * weights(_symbol(op, "multiplier")) + half) >> op.get("divisor")
    values = (product + weights(_symbol(op, "bias"))).clamp(*op.result_type.element.bounds)
    return values if kept is None else values * _of_tokens(kept, values)


@meaning(spike.Align)
def align(op: spike.Align, weights: Weights, x: Tensor) -> Tensor:
    """(x << shift) + bias; a negative shift goes right and rounds half up."""
    bias, shift = _bias(op, weights), op.get("shift")
    shifted = x << shift if shift >= 0 else (x + (1 << -shift >> 1)) >> -shift
    return shifted if bias is None else shifted + bias


@meaning(spike.Add)
def add(op: spike.Add, weights: Weights, left: Tensor, right: Tensor) -> Tensor:
    """left + right; streams are clamped to their bounds."""
    total = left + right
    element = op.result_type.element
    return total.clamp(*element.bounds) if element.is_fixed else total


@meaning(spike.Multiply)
def multiply(op: spike.Multiply, weights: Weights, left: Tensor, right: Tensor) -> Tensor:
    """left * right, sizes of 1 repeated."""
    return left * right


@meaning(spike.ChannelScale)
def channel_scale(op: spike.ChannelScale, weights: Weights, x: Tensor) -> Tensor:
    """x * weight along `axis`."""
    after = len(op.operand_type().sizes) - 1 - op.get("axis")
    return x * weights(_symbol(op, "weight")).reshape(-1, *[1] * after)


@meaning(spike.MaxPool)
def max_pool(op: spike.MaxPool, weights: Weights, x: Tensor) -> Tensor:
    """Maximum over windows of HxWxC."""
    images = x if x.dim() == 4 else x.unsqueeze(0)
    images = images.permute(0, 3, 1, 2)
    if _is_integer(x):
        images = images.to(torch.float64)
    out = functional.max_pool2d(images, op.get("kernel"), op.get("stride"), op.get("padding"))
    out = out.permute(0, 2, 3, 1).to(x.dtype)
    return out if x.dim() == 4 else out[0]


@meaning(spike.Pad)
def pad(op: spike.Pad, weights: Weights, x: Tensor) -> Tensor:
    """x with `padding` pixels of `value` around it."""
    rows = x if x.dim() == 4 else x.unsqueeze(0)
    value, width = op.symbol("value"), op.get("padding")
    out = functional.pad(rows.permute(0, 3, 1, 2), [width] * 4)
    if value is not None:
        border = torch.ones(out.shape[2:], dtype=torch.bool)
        border[width:-width, width:-width] = False
        out[:, :, border] = weights(value).unsqueeze(-1)
    out = out.permute(0, 2, 3, 1)
    return out if x.dim() == 4 else out[0]


@meaning(spike.Reshape)
def reshape(op: spike.Reshape, weights: Weights, x: Tensor) -> Tensor:
    """Row-major elements in another shape; a copy in memory order where the shape stays."""
    sizes = op.result_type.sizes
    if sizes == op.operand_type().sizes:
        return x.contiguous()
    return x.reshape(x.shape[0], *sizes) if op.result_type.steps is not None else x.reshape(sizes)


@meaning(spike.Transpose)
def transpose(op: spike.Transpose, weights: Weights, x: Tensor) -> Tensor:
    """Dimensions in another order."""
    order = op.get("order")
    return x.permute(0, *(i + 1 for i in order)) if op.result_type.steps is not None else x.permute(order)


@meaning(spike.Slice)
def part(op: spike.Slice, weights: Weights, x: Tensor) -> Tensor:
    """A part of a dimension."""
    axis = op.get("axis")
    return x.narrow(axis + (op.result_type.steps is not None), op.get("start"), op.result_type.sizes[axis])


@meaning(spike.Matmul)
def matmul(op: spike.Matmul, weights: Weights, left: Tensor, right: Tensor) -> Tensor:
    """left @ right."""
    return _exactly(op, torch.matmul, left, right) if _is_integer(left) else left @ right


@meaning(spike.Scale)
def scale(op: spike.Scale, weights: Weights, x: Tensor) -> Tensor:
    """x * factor."""
    return x * op.get("factor")


@meaning(spike.Attention)
def attention(op: spike.Attention, weights: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(q kT) * scale v in each head."""
    heads = op.get("heads")

    def split(x: Tensor) -> Tensor:
        steps, tokens, channels = x.shape  # v may be wider than q and k
        return x.reshape(steps, tokens, heads, channels // heads).transpose(1, 2)

    def scaled(product: Tensor) -> Tensor:
        return product if op.get("scale") == 1.0 else product * op.get("scale")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = split(k).transpose(-1, -2)
        if op.get("order") == "values":
            return (split(q) @ scaled(keys @ split(v))).transpose(1, 2)
        return (scaled(split(q) @ keys) @ split(v)).transpose(1, 2)

    out = _exactly(op, attend, q, k, v) if _is_integer(q) else attend(q, k, v)
    return out.reshape(*q.shape[:2], v.shape[2])


@meaning(spike.HeadSum)
def head_sum(op: spike.HeadSum, weights: Weights, x: Tensor) -> Tensor:
    """Sums over the channels of each head."""
    return x.unflatten(-1, (op.get("heads"), -1)).sum(-1)


@meaning(spike.Mask)
def mask(op: spike.Mask, weights: Weights, x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is 1: a mask C for all tokens, or Nxheads for the channels of each head."""
    if len(op.operand_type(1).sizes) == 1:
        return x * mask.unsqueeze(-2)
    heads = mask.shape[-1]
    return x * mask.repeat_interleave(x.shape[-1] // heads, dim=-1)


@meaning(spike.Dilate)
def dilate(op: spike.Dilate, weights: Weights, x: Tensor) -> Tensor:
    """The maximum over 3x3 windows of (token, channel in its head)."""
    rows = x if op.result_type.steps is not None else x.unsqueeze(0)
    heads = rows.unflatten(-1, (op.get("heads"), -1)).movedim(-2, 1)
    spread = functional.max_pool2d(heads.to(torch.float64), 3, 1, 1).to(x.dtype)
    out = spread.movedim(1, -2).flatten(-2)
    return out if op.result_type.steps is not None else out[0]


@meaning(spike.Mean)
def mean(op: spike.Mean, weights: Weights, x: Tensor) -> Tensor:
    """Mean over `axis`."""
    return x.mean(op.get("axis") + (op.result_type.steps is not None))


@meaning(spike.Sum)
def total(op: spike.Sum, weights: Weights, x: Tensor) -> Tensor:
    """Sum over `axis`."""
    return x.sum(op.get("axis") + (op.result_type.steps is not None))


@meaning(spike.MeanTime)
def mean_time(op: spike.MeanTime, weights: Weights, x: Tensor) -> Tensor:
    """Mean over the timesteps."""
    return x.mean(0)


@meaning(spike.SumTime)
def sum_time(op: spike.SumTime, weights: Weights, x: Tensor) -> Tensor:
    """Sum over the timesteps."""
    return x.sum(0)


@meaning(spike.Extend)
def extend(op: spike.Extend, weights: Weights, x: Tensor) -> Tensor:
    """x, then zeros."""
    steps = op.result_type.steps
    assert steps is not None
    return torch.cat([x, x.new_zeros(steps - len(x), *x.shape[1:])])


@meaning(spike.Truncate)
def truncate(op: spike.Truncate, weights: Weights, x: Tensor) -> Tensor:
    """The first timesteps of x."""
    return x[: op.result_type.steps]


@meaning(spike.RunningSum)
def running_sum(op: spike.RunningSum, weights: Weights, x: Tensor) -> Tensor:
    """Sums over the timesteps up to each."""
    return x.cumsum(0)


@meaning(spike.Exit)
def leave(op: spike.Exit, weights: Weights, logits: Tensor) -> Tensor:
    """The logits after `exit_steps` timesteps."""
    return logits[exit_steps(op, logits) - 1]


def exit_steps(op: spike.Exit, logits: Tensor) -> int:
    """After how many timesteps the first exit is taken; all of them where none is."""
    for index, after in enumerate(op.get("after")):
        values = [int(value) for value in logits[after - 1]]
        if op.get("criterion") == "lightsoftmax":
            measured = light_softmax(values)
        else:
            measure = largest_probability if op.get("criterion") == "softmax" else certainty
            measured = measure(values, op.get("multipliers")[index], op.get("divisors")[index])
        if measured >= op.get("thresholds")[index]:
            return after
    return len(logits)


@meaning(spike.Guard)
def guard(op: spike.Guard, weights: Weights, x: Tensor) -> Tensor:
    """x, and from timestep `after` on without the channels of which at most `threshold` bits were set before."""
    after, planes = op.get("after"), op.result_type.element.planes
    early = x[:after].to(torch.int64)
    bits = sum((early >> plane) & 1 for plane in range(planes))
    assert isinstance(bits, Tensor)
    live = bits.flatten(0, -2).sum(0) > op.get("threshold")
    return torch.cat([x[:after], x[after:] * live])


for _op, _function in (
    (spike.KeepTokens, token_meaning.keep_tokens),
    (spike.GivenTokens, token_meaning.given_tokens),
    (spike.Halt, token_meaning.halt),
    (spike.Below, token_meaning.below),
    (spike.Weigh, token_meaning.weigh),
):
    meaning(_op)(_function)


def _symbol(op: HouseOperation, key: str) -> str:
    name = op.symbol(key)
    assert name is not None, (op.name, key)
    return name


def _bias(op: HouseOperation, weights: Weights) -> Tensor | None:
    name = op.symbol("bias")
    return None if name is None else weights(name)


@dataclass
class Run:
    """What a run leaves: the output, and by label the input currents and the spikes of every layer of neurons, and the
    values of every stream (what `rescale` and `range` give).
    """

    output: NDArray[Any]
    currents: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    spikes: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    streams: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    kept: dict[str, NDArray[np.uint8]] = field(default_factory=dict[str, NDArray[np.uint8]])
    """By label of neurons whose tokens are not all kept, their kept train [T, tokens]."""
    values: dict[SSAValue, NDArray[Any]] = field(default_factory=dict[SSAValue, NDArray[Any]])
    """Those that were asked for."""
    steps: int | None = None
    """Timesteps run where an exit was taken: what is recorded of later ones does not count. None: all of them."""


class Executor:
    """Runs a network's module on one input after another; reals in `dtype`."""

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        self.network = network
        self.dtype = dtype

    def _weight(self, name: str) -> Tensor:
        """Converted anew at every use: all of them at once would take eight bytes a weight."""
        tensor = torch.from_numpy(self.network.weights[name])
        real = tensor.dtype.is_floating_point
        # A matrix product with a parameter (it requires a gradient) is summed in another order than one without.
        return tensor.to(self.dtype if real else torch.int64).requires_grad_(real)

    @torch.no_grad()
    def run(
        self,
        x: NDArray[np.float32],
        forced: Mapping[str, NDArray[Any]] | None = None,
        watch: Watch | None = None,
        wanted: Collection[SSAValue] = (),
    ) -> Run:
        """Run on one image [C, H, W] or one train of events [T, C, H, W].

        `forced` are spikes by neuron that go on in place of those computed (whose currents are still recorded).
        `watch` hears label and currents of every layer of neurons as they are recorded. `wanted` values are kept.
        """
        values: dict[Any, Tensor] = {}
        uses = Counter(operand for op in self.network.operations() for operand in op.operands)
        run = Run(np.zeros(0))
        for op in self.network.operations():
            if isinstance(op, spike.Input):
                values[op.results[0]] = torch.from_numpy(np.ascontiguousarray(x)).to(self.dtype)
                continue
            operands = [values[operand] for operand in op.operands]
            for operand in op.operands:
                uses[operand] -= 1
                if not uses[operand]:
                    del values[operand]
            if isinstance(op, spike.Output):
                run.output = operands[0].numpy()
                continue
            function = MEANINGS.get(type(op))
            if function is None:
                raise CStepError(f"{op.label}: {op.name} has no meaning on values; it runs on the emulator")
            result = function(op, self._weight, *operands)
            if isinstance(op, spike.Exit):
                run.steps = exit_steps(op, operands[0])
            assert isinstance(op, spike.SpikeOperation)
            _check_bounds(op, result)
            if isinstance(op, NEURONS):
                run.currents[op.label] = _compact(operands[0])
                run.spikes[op.label] = _compact(result, is_spikes=_gives_ones(op))
                if len(operands) == 2:
                    run.kept[op.label] = operands[1].squeeze(-1).to(torch.uint8).numpy()
                if watch is not None:
                    watch(op.label, run.currents[op.label])
                if forced is not None:
                    result = torch.from_numpy(forced[op.label]).to(result.dtype)
            elif isinstance(op, STREAMS):
                run.streams[op.label] = _compact(result)
            if op.results[0] in wanted:
                run.values[op.results[0]] = result.numpy()
            values[op.results[0]] = result
        return run


def _gives_ones(op: HouseOperation) -> bool:
    return isinstance(op, spike.IntegerLif) or (isinstance(op, spike.Lif) and op.get("emits") == 1.0)


def _compact(values: Tensor, is_spikes: bool = False) -> NDArray[Any]:
    """The same numbers in fewer bytes, for what is kept of a run."""
    if is_spikes:
        return values.to(torch.uint8).numpy()
    if values.dtype == torch.float64 and values.numel() > LARGE:
        return values.to(torch.float32).numpy()
    if _is_integer(values) and values.numel() and int(values.abs().max()) < 1 << 31:
        return values.to(torch.int32).numpy()
    return values.numpy()


def _check_bounds(op: spike.SpikeOperation, result: Tensor) -> None:
    """Integers must lie in the bounds that the type promises; the compiler's proofs rest on them."""
    element: Element = shaped(op.results[0].type).element
    if element.is_real or not result.numel():
        return
    low, high = element.bounds
    least, most = int(result.min()), int(result.max())
    if least < low or most > high:
        raise CStepError(f"{op.label}: {op.name} gives {least}..{most}, but its type promises {low}..{high}")


def execute(network: Network, inputs: NDArray[np.float32], dtype: torch.dtype = torch.float32) -> list[Run]:
    """Run a network on inputs [B, ...], one at a time."""
    executor = Executor(network, dtype)
    return [executor.run(x) for x in inputs]


def store_of(state: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """A state dict as a weight store."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
