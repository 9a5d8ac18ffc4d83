"""What torch's layers become."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx, nn

from compiler.frontend.alike import likeness
from compiler.frontend.dimensions import FEATURE, Atom, Value, feature_axis, feature_size, features, is_time
from compiler.frontend.importer import Importer
from compiler.frontend.levels import LevelEquation, has_levels
from compiler.frontend.neurons import NeuronEquation, class_name, keeps_state, recognise, remembers
from compiler.frontend.padded_norm import padded_norm
from compiler.frontend.shapes import featured, regroup, reorder, repeat_time
from compiler.frontend.timesteps import neuron_mask
from compiler.ir import spike
from compiler.ir.types import Element, shaped
from compiler.nn import has_timesteps, unmasked

REAL = Element.real()


def square(importer: Importer, value: int | tuple[int, ...], what: str) -> int:
    """A size that is the same in both directions."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if len(set(sizes)) != 1:
        raise importer.refuse(f"{what}={sizes}; only square windows are supported")
    return sizes[0]


def conv(importer: Importer, x: Value, layer: nn.Conv1d | nn.Conv2d, path: str) -> Value:
    """Conv2d over [.., C, H, W], as transpose, conv on HxWxC, transpose; Conv1d over [.., C, N] on one row."""
    rank = len(layer.kernel_size)
    x = featured(importer, x, rank + 1)
    if len(x.type.sizes) != rank + 1:
        raise importer.refuse(f"{path}: Conv{rank}d of {x.type}; it must have channels and {rank} more dimensions")
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or set(layer.dilation) != {1}:
        raise importer.refuse(f"{path}: convolution with padding_mode, padding='same' or dilation is not supported")
    kernel, stride = square(importer, layer.kernel_size, "kernel"), square(importer, layer.stride, "stride")
    padding = square(importer, layer.padding, "padding")
    lead = x.dimensions[: len(x.dimensions) - rank - 1]
    sizes = tuple((size + 2 * padding - kernel) // stride + 1 for size in x.type.sizes[1:])
    pixels = reorder(importer, x, (*range(1, rank + 1), 0), x.dimensions)
    if rank == 1:
        pixels = regroup(importer, pixels, (*lead, *features((1, *pixels.type.sizes))))
    symbols: dict[str, str | None] = {"weight": f"{path}.weight", "bias": _bias(layer, path)}
    if rank == 1:
        weight = layer.weight.unsqueeze(2).detach().numpy()
        symbols["weight"] = importer.network.add_weight(f"{path}.weight.row", weight)
    made = importer.make(
        spike.Conv,
        pixels,
        result=x.type.with_sizes((*((1,) * (2 - rank)), *sizes, layer.out_channels)).with_element(REAL),
        hint=importer.hint("conv", path),
        symbols=symbols,
        kernel=kernel,
        stride=stride,
        padding=padding,
        groups=layer.groups,
        **({"rows": 1} if rank == 1 else {}),
    )
    out = regroup(
        importer,
        Value(made, (*lead, *features(shaped(made.type).sizes))),
        (*lead, *features((*sizes, layer.out_channels))),
    )
    return reorder(importer, out, (rank, *range(rank)), (*lead, *features((layer.out_channels, *sizes))))


def _bias(layer: Any, path: str) -> str | None:
    return f"{path}.bias" if layer.bias is not None else None


def linear(importer: Importer, x: Value, layer: nn.Linear, path: str) -> Value:
    """Linear over the last dimension."""
    if x.dimensions and feature_size(x.dimensions[-1]) is None:
        x = featured(importer, x, 1)
    if not x.type.sizes or feature_size(x.dimensions[-1]) != x.type.sizes[-1]:
        raise importer.refuse(f"{path}: Linear over a dimension that is not a feature")
    result = x.type.with_sizes((*x.type.sizes[:-1], layer.out_features)).with_element(REAL)
    made = importer.make(
        spike.Linear,
        x,
        result=result,
        hint=importer.hint("linear", path),
        symbols={"weight": f"{path}.weight", "bias": _bias(layer, path)},
    )
    return Value(made, (*x.dimensions[:-1], (Atom(FEATURE, layer.out_features),)))


def batch_norm(importer: Importer, x: Value, layer: nn.BatchNorm1d | nn.BatchNorm2d, path: str) -> Value:
    """BatchNorm over torch dimension 1 (2 in SpikingJelly's multi-step layers), in evaluation mode."""
    if layer.running_mean is None or not layer.affine:
        raise importer.refuse(f"{path}: BatchNorm without running statistics or affine weights is not supported")
    channel = 2 if getattr(layer, "step_mode", "s") == "m" else 1
    x = featured(importer, x, len(x.dimensions) - channel)
    axis = feature_axis(x, channel)
    if axis is None:
        raise importer.refuse(f"{path}: BatchNorm over time or batch")
    made = importer.make(
        spike.BatchNorm,
        x,
        result=x.type.with_element(REAL),
        hint=importer.hint("batch_norm", path),
        symbols={
            "weight": f"{path}.weight",
            "bias": f"{path}.bias",
            "mean": f"{path}.running_mean",
            "variance": f"{path}.running_var",
        },
        epsilon=float(layer.eps),
        axis=axis,
    )
    return Value(made, x.dimensions)


def framed_norm(importer: Importer, x: Value, layer: nn.Module, path: str) -> Value:
    """A batch norm over [.., C, H, W], and a frame of what it makes of 0."""
    found = padded_norm(layer)
    assert found is not None
    y = batch_norm(importer, x, found.norm, f"{path}.{found.path}")
    channels, *pixels = x.type.sizes
    sizes = [size + 2 * found.padding for size in pixels]
    made = importer.make(
        spike.Pad,
        reorder(importer, y, (1, 2, 0), y.dimensions),
        result=y.type.with_sizes((*sizes, channels)),
        hint=importer.hint("pad", path),
        symbols={"value": importer.network.add_weight(f"{path}.pad_value", found.value.numpy())},
        padding=found.padding,
    )
    dimensions = (*x.dimensions[:-3], *features((channels, *sizes)))
    return reorder(importer, Value(made, dimensions), (2, 0, 1), dimensions)


def neuron(importer: Importer, x: Value, module: nn.Module, path: str) -> Value:
    """A multi-step neuron, time in the first dimension; one with levels in any."""
    if path in importer.called and remembers(module, f"{path} ({importer.where})"):
        raise importer.refuse(
            f"{path}: {class_name(module)} is called twice and keeps its membrane; use one neuron a call"
        )
    importer.called.add(path)
    if has_levels(module):
        equation = _equation(importer, module, path)
        result = x.type.with_element(REAL)
        mask, hint = neuron_mask(importer, x, module, path), importer.hint("", path)
        made = importer.make(spike.Level, x, result=result, hint=hint, **vars(equation), mask=mask)
        return Value(made, x.dimensions)
    if x.type.steps is None:
        if x.dimensions[0] and feature_size(x.dimensions[0]) is not None:
            raise importer.refuse(f"{path}: the neuron's first dimension must be time")
        x = repeat_time(importer, x, 0, 1)
    if not is_time(x.dimensions[0]):
        raise importer.refuse(f"{path}: the neuron's first dimension must be time; [T, B, ...] in multi-step mode")
    equation = _equation(importer, module, path)
    emits_spikes = vars(equation)["emits"] == 1.0
    result = x.type.with_element(Element.spike() if emits_spikes else REAL)
    mask, hint = neuron_mask(importer, x, module, path), importer.hint("", path)
    made = importer.make(spike.Lif, x, result=result, hint=hint, **vars(equation), mask=mask)
    return Value(made, x.dimensions)


def _equation(importer: Importer, module: nn.Module, path: str) -> NeuronEquation | LevelEquation:
    """The equation of a neuron; one that is like another is not probed again."""
    module = unmasked(module) if has_timesteps(module) else module
    like = likeness(module)
    found = importer.equations.get(like) if like is not None else None
    if found is None:
        found = importer.equations[like] = recognise(module, f"{path} ({importer.where})")
    return found


def nothing(importer: Importer, x: Value, layer: nn.Module, path: str) -> Value:
    """Identity, and dropout in evaluation mode."""
    return x


def passed_on(importer: Importer, x: Value) -> Value:
    """A module that gives back its input."""
    return x


def passes_on(module: nn.Module, node: fx.Node) -> bool:
    """Whether a module with a state of its own (SpikingJelly's dropout) gives back its input in evaluation mode."""
    return keeps_state(module) and node.meta["example"] is cast(fx.Node, node.args[0]).meta["example"]


def require_plain(importer: Importer, kind: Any, module: Any, what: str, node: fx.Node) -> None:
    """A subclass with a forward of its own, or hooks, must compute what torch's layer does (SpikingJelly's do)."""
    if type(module).forward is kind.forward and not module._forward_hooks and not module._forward_pre_hooks:
        return
    shape = cast(fx.Node, node.args[0]).meta["example"].shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = module(x)
        if getattr(module, "step_mode", "s") == "m":
            plain = kind.forward(module, x.flatten(0, 1)).unflatten(0, shape[:2])
        else:
            plain = kind.forward(module, x)
    if not torch.equal(seen, plain):
        raise importer.refuse(
            f"{what} does not compute what torch.nn.{kind.__name__} does; its own forward is not supported"
        )
