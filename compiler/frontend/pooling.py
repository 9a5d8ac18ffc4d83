"""Pooling layers of torch: maxima over windows, means over windows that do not overlap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from compiler.frontend.dimensions import FEATURE, Atom, Value, features
from compiler.frontend.importer import Handler, Importer
from compiler.frontend.layers import REAL, square
from compiler.frontend.reductions import mean_over
from compiler.frontend.shapes import featured, regroup, reorder
from compiler.ir import spike


def max_pool2d(importer: Importer, x: Value, layer: nn.MaxPool2d | nn.MaxPool3d, path: str) -> Value:
    """MaxPool2d over [.., C, H, W]."""
    windows = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (square(importer, size, "window") for size in windows)
    if layer.ceil_mode or layer.return_indices or square(importer, layer.dilation, "dilation") != 1:
        raise importer.refuse(f"{_named(path)}max-pooling with ceil_mode, return_indices or dilation is not supported")
    return _max_pool(importer, x, path, kernel, stride, padding)


def max_pool3d(importer: Importer, x: Value, layer: nn.MaxPool3d, path: str) -> Value:
    """MaxPool3d over [T, B, C, H, W] that looks at one plane at a time: windows of 1 x k x k."""

    def plane(value: int | tuple[int, ...], depth: int) -> int:
        first, *rest = (value,) * 3 if isinstance(value, int) else value
        if first != depth:
            raise importer.refuse(
                f"{_named(path)}MaxPool3d of {layer.kernel_size}; only windows of 1 x k x k are supported"
            )
        return square(importer, tuple(rest), "window")

    if layer.ceil_mode or layer.return_indices or plane(layer.dilation, 1) != 1 or len(x.dimensions) != 5:
        raise importer.refuse(f"{_named(path)}MaxPool3d with ceil_mode, return_indices, dilation or of {x.shape}")
    kernel, stride, padding = plane(layer.kernel_size, 1), plane(layer.stride, 1), plane(layer.padding, 0)
    return _max_pool(importer, x, path, kernel, stride, padding)


def _named(path: str) -> str:
    """How a refusal begins: by the layer's path, where it is a layer."""
    return f"{path}: " if path else ""


def _max_pool(importer: Importer, x: Value, path: str, kernel: int, stride: int, padding: int) -> Value:
    x = featured(importer, x, 3)
    if len(x.type.sizes) != 3:
        raise importer.refuse(f"{_named(path)}max-pooling of {x.type}; it must have channels, height and width")
    lead = x.dimensions[: len(x.dimensions) - 3]
    pixels = reorder(importer, x, (1, 2, 0), x.dimensions)
    channels, *sizes = x.type.sizes
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in sizes)
    made = importer.make(
        spike.MaxPool,
        pixels,
        result=x.type.with_sizes((height, width, channels)),
        hint=importer.hint("max_pool", path or None),
        kernel=kernel,
        stride=stride,
        padding=padding,
    )
    dimensions = (*lead, *features((channels, height, width)))
    return reorder(importer, Value(made, dimensions), (2, 0, 1), dimensions)


def average_pool2d(importer: Importer, x: Value, layer: nn.AvgPool2d, path: str) -> Value:
    """AvgPool2d whose windows lie side by side."""
    kernel, stride = square(importer, layer.kernel_size, "kernel"), square(importer, layer.stride, "stride")
    padding = square(importer, layer.padding, "padding")
    if padding or layer.ceil_mode or layer.divisor_override or stride != kernel:
        raise importer.refuse(f"{_named(path)}AvgPool2d with padding, ceil_mode, divisor or overlapping windows")
    return _average(importer, x, (kernel, kernel), path)


def adaptive_average_pool2d(importer: Importer, x: Value, layer: nn.AdaptiveAvgPool2d, path: str) -> Value:
    """AdaptiveAvgPool2d over everything, over nothing, or over windows that lie side by side."""
    wanted: Any = layer.output_size
    pair = (wanted, wanted) if isinstance(wanted, int) or wanted is None else wanted
    height, width = (own if size is None else size for size, own in zip(pair, x.shape[-2:], strict=True))
    if (height, width) == (1, 1):
        rank = len(x.dimensions)
        return mean_over(importer, x, [rank - 2, rank - 1], keepdim=True)
    if x.shape[-2] % height or x.shape[-1] % width:
        raise importer.refuse(
            f"{_named(path)}AdaptiveAvgPool2d of {x.shape[-2:]} to {[height, width]} has uneven windows"
        )
    return _average(importer, x, (x.shape[-2] // height, x.shape[-1] // width), path)


def _average(importer: Importer, x: Value, window: tuple[int, int], path: str) -> Value:
    """Means over windows side by side: of spikes and counts, whose sums are exact in any order."""
    if window == (1, 1):
        return x
    x = featured(importer, x, 3)
    if len(x.type.sizes) != 3 or not x.type.element.is_count:
        raise importer.refuse(
            f"{_named(path)}averages windows of {x.type}; only spikes [.., C, H, W] are averaged exactly"
        )
    channels, height, width = x.type.sizes
    rows, columns = height // window[0], width // window[1]
    if rows * window[0] != height or columns * window[1] != width:
        raise importer.refuse(f"{_named(path)}windows of {list(window)} do not cover {[height, width]}")
    lead = x.dimensions[:-3]
    split = regroup(importer, x, (*lead, *features((channels, rows, window[0], columns, window[1]))))
    order = (0, 1, 3, 2, 4)
    cut = reorder(importer, split, order, (*lead, *features((channels, rows, columns, *window))))
    area: tuple[Atom, ...] = (Atom(FEATURE, window[0] * window[1]),)
    cells = regroup(importer, cut, (*lead, *features((channels, rows, columns)), area))
    result = x.type.with_sizes((channels, rows, columns)).with_element(REAL)
    made = importer.make(spike.Mean, cells, result=result, hint=importer.hint("mean", path or None), axis=3)
    return Value(made, (*lead, *features((channels, rows, columns))))


def functional_pool(make: Callable[..., nn.Module], pool: Callable[..., Value]) -> Handler:
    """A function that does what the layer does that is made of its arguments."""

    def call(importer: Importer, x: Value, *args: Any, **kwargs: Any) -> Value:
        return pool(importer, x, make(*args, **kwargs), "")

    return call


def average_pool1d(importer: Importer, x: Value, kernel_size: Any, stride: Any = None) -> Value:
    """functional.avg_pool1d whose windows lie side by side: votes (SpikingJelly's VotingLayer)."""
    kernel = square(importer, kernel_size, "kernel")
    length = x.type.sizes[-1]
    aside = stride is None or square(importer, stride, "stride") == kernel
    if not aside or length % kernel or not x.type.element.is_count:
        raise importer.refuse(f"avg_pool1d of {x.type} by {kernel}; only spikes, in windows side by side")
    split = regroup(importer, x, (*x.dimensions[:-1], *features((length // kernel, kernel))))
    return mean_over(importer, split, [len(split.dimensions) - 1], keepdim=False)
