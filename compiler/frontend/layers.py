"""What torch's layers become."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx, nn

from compiler.frontend.importer import FEATURE, Atom, Importer, Value, feature_axis, feature_size
from compiler.frontend.neurons import keeps_state
from compiler.ir import spike
from compiler.ir.types import Element

REAL = Element.real()


def _one(importer: Importer, value: int | tuple[int, ...], what: str) -> int:
    """A size that is the same in both directions."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if len(set(sizes)) != 1:
        raise importer.refuse(f"{what}={sizes}; only square windows are supported")
    return sizes[0]


def conv2d(importer: Importer, x: Value, layer: nn.Conv2d, path: str) -> Value:
    """Conv2d over [.., C, H, W], as transpose, conv on HxWxC, transpose."""
    if len(x.type.sizes) != 3:
        raise importer.refuse(f"{path}: Conv2d of {x.type}; it must have channels, height and width")
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or set(layer.dilation) != {1}:
        raise importer.refuse(f"{path}: Conv2d with padding_mode, padding='same' or dilation is not supported")
    lead = x.dimensions[: len(x.dimensions) - 3]
    pixels = importer.transpose(x, (1, 2, 0), x.dimensions)
    kernel, stride = _one(importer, layer.kernel_size, "kernel"), _one(importer, layer.stride, "stride")
    padding = _one(importer, layer.padding, "padding")
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in x.type.sizes[1:])
    sizes = (height, width, layer.out_channels)
    made = importer.make(
        spike.Conv,
        pixels,
        result=x.type.with_sizes(sizes).with_element(REAL),
        hint=importer.hint("conv", path),
        symbols={"weight": f"{path}.weight", "bias": _bias(layer, path)},
        kernel=kernel,
        stride=stride,
        padding=padding,
        groups=layer.groups,
    )
    dimensions = (*lead, *((Atom(FEATURE, size),) for size in (sizes[2], height, width)))
    return importer.transpose(Value(made, dimensions), (2, 0, 1), dimensions)


def _bias(layer: Any, path: str) -> str | None:
    return f"{path}.bias" if layer.bias is not None else None


def linear(importer: Importer, x: Value, layer: nn.Linear, path: str) -> Value:
    """Linear over the last dimension."""
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


def max_pool2d(importer: Importer, x: Value, layer: nn.MaxPool2d, path: str) -> Value:
    """MaxPool2d over [.., C, H, W]."""
    if layer.ceil_mode or layer.return_indices or _one(importer, layer.dilation, "dilation") != 1:
        raise importer.refuse(f"{path}: MaxPool2d with ceil_mode, return_indices or dilation is not supported")
    lead = x.dimensions[: len(x.dimensions) - 3]
    pixels = importer.transpose(x, (1, 2, 0), x.dimensions)
    kernel, stride, padding = (
        _one(importer, size, "kernel") for size in (layer.kernel_size, layer.stride, layer.padding)
    )
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in x.type.sizes[1:])
    channels = x.type.sizes[0]
    made = importer.make(
        spike.MaxPool,
        pixels,
        result=x.type.with_sizes((height, width, channels)),
        hint=importer.hint("max_pool", path),
        kernel=kernel,
        stride=stride,
        padding=padding,
    )
    dimensions = (*lead, *((Atom(FEATURE, size),) for size in (channels, height, width)))
    return importer.transpose(Value(made, dimensions), (2, 0, 1), dimensions)


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
