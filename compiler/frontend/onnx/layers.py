"""What ONNX's operators with weights, and its pools, become: torch's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compiler.frontend.onnx.graph import Node, written
from compiler.frontend.onnx.model import Ref, Translation

Array = NDArray[Any]


def _fill(parameter: Any, value: Array) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(value, np.float32)))


def _weight(t: Translation, node: Node, index: int, ranks: tuple[int, ...]) -> Array:
    weight = t.constant(node, index)
    if weight is None or weight.ndim not in ranks or weight.dtype != np.float32:
        found = "missing" if weight is None else f"{weight.dtype} {list(weight.shape)}"
        raise t.graph.refuse(node, f"its weight is {found}; it must be float32 of {' or '.join(map(str, ranks))} sizes")
    return weight


def conv(t: Translation, node: Node) -> None:
    """Conv1d or Conv2d."""
    weight, bias = _weight(t, node, 1, (3, 4)), t.constant(node, 2)
    rank = weight.ndim - 2
    kernel, stride, padding, dilation = _window(t, node, rank, weight.shape[2:])
    groups = int(node.attributes.get("group", 1))
    kind = nn.Conv2d if rank == 2 else nn.Conv1d
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    layer: Any = kind(inputs, outputs, kernel, stride, padding, dilation, groups, bias is not None)
    _fill(layer.weight, weight)
    if bias is not None:
        _fill(layer.bias, bias)
    t.give(node, t.layer(node, t.path(node, 1, 2), layer, t.value(node)))


def _window(t: Translation, node: Node, rank: int, kernel: Any) -> list[Any]:
    """Kernel, stride, padding and dilation of a window as torch says them."""
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        raise t.graph.refuse(node, f"auto_pad={automatic}; write its padding out as pads")
    pads = node.attributes.get("pads", [0] * (2 * rank)) if automatic == "NOTSET" else [0] * (2 * rank)
    if list(pads[:rank]) != list(pads[rank:]):
        raise t.graph.refuse(node, f"pads={list(pads)}; the padding must be the same on both sides")
    ones = [1] * rank
    return [
        tuple(kernel),
        tuple(node.attributes.get("strides", ones)),
        tuple(pads[:rank]),
        tuple(node.attributes.get("dilations", ones)),
    ]


def gemm(t: Translation, node: Node) -> None:
    """alpha * x W + beta * bias, as Linear."""
    if node.attributes.get("transA", 0):
        raise t.graph.refuse(node, "transA=1; the first operand must be [rows, inputs]")
    weight, bias = _weight(t, node, 1, (2,)), t.constant(node, 2)
    weight = weight if node.attributes.get("transB", 0) else weight.T
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if bias is not None:
        bias = np.broadcast_to(np.asarray(bias, np.float32).reshape(-1), weight.shape[:1]) * np.float32(beta)
    t.give(node, _linear(t, node, t.path(node, 1, 2), weight * np.float32(alpha), bias, t.value(node)))


def _linear(t: Translation, node: Node, path: str, weight: Array, bias: Array | None, x: Ref) -> Ref:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _fill(layer.weight, weight)
    if bias is not None:
        _fill(layer.bias, bias)
    return t.layer(node, path, layer, x)


def matmul(t: Translation, node: Node) -> None:
    """x @ y, or Linear where one of them is a constant matrix; a bias added right behind belongs to it."""
    left, right = (name in t.graph.constants for name in node.inputs)
    if not left and not right:
        t.give(node, t.apply(node, torch.matmul, t.value(node, 0), t.value(node, 1)))
        return
    if left:  # W x, over the second to last dimension
        weight = _weight(t, node, 0, (2,))
        x = t.apply(node, torch.transpose, t.value(node, 1), -2, -1)
        out = _linear(t, node, t.path(node, 0), weight, None, x)
        t.give(node, t.apply(node, torch.transpose, out, -2, -1))
        return
    weight = _weight(t, node, 1, (2,)).T
    users = t.graph.users(node.outputs[0])
    adding = users[0] if len(users) == 1 and users[0].operator == "Add" else None
    bias = _bias(t, adding, node, len(weight)) if adding is not None else None
    if adding is None or bias is None:
        t.give(node, _linear(t, node, t.path(node, 1), weight, None, t.value(node)))
        return
    side = 1 - adding.inputs.index(node.outputs[0])
    named = t.path(node, 1), t.path(adding, side)
    path = named[0] if t.graph.origins.get(node.inputs[1], "").endswith(".weight") else named[1]
    t.give(adding, _linear(t, node, path, weight, bias, t.value(node)))


def _bias(t: Translation, adding: Node, node: Node, outputs: int) -> Array | None:
    """What is added to the last dimension of `node`'s result, where it is a constant vector."""
    constant = t.graph.constants.get(next((name for name in adding.inputs if name != node.outputs[0]), ""))
    if (
        constant is None
        or constant.dtype != np.float32
        or constant.size != outputs
        or constant.shape[-1:] != (outputs,)
    ):
        return None
    return constant.reshape(-1)


def batch_norm(t: Translation, node: Node) -> None:
    """BatchNormalization over dimension 1, of a trained model."""
    if node.attributes.get("training_mode", 0):
        raise t.graph.refuse(node, "is in training mode; export the model after model.eval()")
    scale, bias, mean, variance = (_weight(t, node, index, (1,)) for index in range(1, 5))
    epsilon = written(node.attributes.get("epsilon", 1e-5))
    rank = len(t.shape(node))
    if rank not in (2, 3, 4):
        raise t.graph.refuse(node, f"works on {rank} dimensions; a batch norm takes 2 to 4, channels in the second")
    layer = affine_norm(rank, scale, bias, epsilon)
    _fill(layer.running_mean, mean)
    _fill(layer.running_var, variance)
    t.give(node, t.layer(node, t.path(node, 1, 2, 3), layer, t.value(node)))


def affine_norm(rank: int, scale: Array, bias: Array, epsilon: float = 0.0) -> Any:
    """A batch norm of mean 0 and variance 1 over `rank` dimensions."""
    layer: Any = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(scale.size, epsilon)
    _fill(layer.weight, scale)
    _fill(layer.bias, bias)
    return layer.eval()


def affine(
    t: Translation, node: Node, index: int, *, scale: Array | None = None, bias: Array | None = None, name: int
) -> None:
    """x * scale, or x + bias as a batch norm of mean 0 and variance 1, per channel; operand `name` names it."""
    shape, x = t.shape(node, index), t.value(node, index)
    given = np.asarray(scale if scale is not None else bias)
    if bias is not None and not given.any():
        t.give(node, x)
        return
    wide = given.reshape((1,) * (len(shape) - given.ndim) + given.shape) if given.ndim <= len(shape) else given
    varying = [place for place, size in enumerate(wide.shape) if size != 1]
    if wide.ndim != len(shape) or len(varying) > 1 or any(wide.shape[place] != shape[place] for place in varying):
        sizes = f"{list(shape)} with a constant {list(given.shape)}"
        raise t.graph.refuse(node, f"computes {sizes}; a constant is one number, or one a channel")
    channel = varying[0] if varying else 1 if len(shape) == 4 else len(shape) - 1
    if channel == 0 or (channel == 1 and len(shape) == 5):
        raise t.graph.refuse(node, f"computes with constants along dimension {channel} of {list(shape)}, time or batch")
    if scale is not None:
        t.give(node, t.apply(node, torch.mul, x, t.weight(node, name, wide.reshape(wide.shape[channel:]))))
        return
    ones, vector = np.ones(shape[channel]), np.broadcast_to(wide.reshape(-1), (shape[channel],))
    if len(shape) == 5:
        x, channel = t.apply(node, torch.flatten, x, 0, 1), channel - 1
    layer = affine_norm(min(len(shape), 4), ones, vector)
    if channel != 1:
        x = t.apply(node, torch.transpose, x, 1, channel)
    x = t.layer(node, t.path(node, name), layer, x)
    if channel != 1:
        x = t.apply(node, torch.transpose, x, 1, channel)
    if len(shape) == 5:
        x = t.apply(node, torch.reshape, x, list(shape))
    t.give(node, x)


def max_pool(t: Translation, node: Node) -> None:
    """MaxPool2d, or MaxPool3d."""
    if any(node.outputs[1:]):
        raise t.graph.refuse(node, "gives its indices, too; only the maxima have a meaning here")
    kernel = node.attributes["kernel_shape"]
    if len(kernel) not in (2, 3):
        raise t.graph.refuse(node, f"kernel_shape={list(kernel)}; it must have 2 or 3 dimensions")
    kind = nn.MaxPool2d if len(kernel) == 2 else nn.MaxPool3d
    window = _window(t, node, len(kernel), kernel)
    layer = kind(*window, return_indices=False, ceil_mode=bool(node.attributes.get("ceil_mode", 0)))
    t.give(node, t.layer(node, t.scope(node) or "max_pool", layer, t.value(node)))


def pool(t: Translation, node: Node) -> None:
    """AveragePool and GlobalAveragePool over height and width."""
    if len(t.shape(node)) != 4:
        raise t.graph.refuse(node, f"works on {list(t.shape(node))}; it must be [.., C, H, W]")
    layer: nn.Module = nn.AdaptiveAvgPool2d(1)
    if node.operator == "AveragePool":
        kernel, stride, padding, dilation = _window(t, node, 2, node.attributes["kernel_shape"])
        counts_padding = bool(node.attributes.get("count_include_pad", 0))
        if set(dilation) != {1} or node.attributes.get("ceil_mode", 0):
            raise t.graph.refuse(node, "has dilations or ceil_mode; only plain windows are averaged")
        layer = nn.AvgPool2d(kernel, stride, padding, False, counts_padding)
    t.give(node, t.layer(node, t.scope(node) or "average_pool", layer, t.value(node)))
