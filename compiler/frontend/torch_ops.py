"""One table from torch modules, functions and methods to spike ops."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from compiler.frontend.arithmetic import add, add_in_place, divide, matmul, multiply
from compiler.frontend.dimensions import Value
from compiler.frontend.importer import Handler, Importer
from compiler.frontend.indexing import chunk, index, split, unbind
from compiler.frontend.layers import (
    batch_norm,
    conv,
    framed_norm,
    linear,
    neuron,
    nothing,
    passed_on,
    passes_on,
    require_plain,
)
from compiler.frontend.neurons import class_name, is_neuron
from compiler.frontend.padded_norm import pads_norm
from compiler.frontend.pooling import (
    adaptive_average_pool2d,
    average_pool1d,
    average_pool2d,
    functional_pool,
    max_pool2d,
    max_pool3d,
)
from compiler.frontend.reductions import mean, total
from compiler.frontend.shapes import (
    clone,
    contiguous,
    expand,
    flatten,
    permute,
    repeat,
    reshape,
    squeeze,
    stack,
    transpose,
    unflatten,
    unsqueeze,
)
from compiler.frontend.timesteps import dynamic_timesteps
from compiler.nn import DynamicTimeSteps


def dropout(importer: Importer, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    """Dropout that is off."""
    if training and p:
        raise importer.refuse(
            "dropout with training=True (its default) is random; pass self.training, or use nn.Dropout"
        )
    return x


def flatten_layer(importer: Importer, x: Value, layer: nn.Flatten, path: str) -> Value:
    """Flatten; dimensions are counted without time in SpikingJelly's multi-step mode."""
    ahead = 1 if getattr(layer, "step_mode", "s") == "m" else 0
    end = layer.end_dim + ahead if layer.end_dim >= 0 else layer.end_dim
    return flatten(importer, x, layer.start_dim + ahead, end)


MODULES: dict[type[nn.Module], Handler] = {
    nn.Conv1d: conv,
    nn.Conv2d: conv,
    nn.Linear: linear,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.MaxPool2d: max_pool2d,
    nn.MaxPool3d: max_pool3d,
    nn.AvgPool2d: average_pool2d,
    nn.AdaptiveAvgPool2d: adaptive_average_pool2d,
    nn.Dropout: nothing,
    nn.Flatten: flatten_layer,
    nn.Identity: nothing,
    DynamicTimeSteps: dynamic_timesteps,
}

FUNCTIONS: dict[Any, Handler] = {
    operator.add: add,
    operator.iadd: add_in_place,
    torch.add: add,
    operator.mul: multiply,
    torch.mul: multiply,
    operator.truediv: divide,
    torch.div: divide,
    operator.matmul: matmul,
    torch.matmul: matmul,
    torch.mean: mean,
    torch.sum: total,
    torch.reshape: reshape,
    torch.flatten: flatten,
    torch.transpose: transpose,
    torch.permute: permute,
    torch.unsqueeze: unsqueeze,
    torch.squeeze: squeeze,
    torch.stack: stack,
    torch.unflatten: unflatten,
    operator.getitem: index,
    torch.chunk: chunk,
    torch.split: split,
    torch.unbind: unbind,
    functional.max_pool2d: functional_pool(nn.MaxPool2d, max_pool2d),
    functional.avg_pool1d: average_pool1d,
    functional.avg_pool2d: functional_pool(nn.AvgPool2d, average_pool2d),
    functional.adaptive_avg_pool2d: functional_pool(nn.AdaptiveAvgPool2d, adaptive_average_pool2d),
    functional.dropout: dropout,
}

METHODS: dict[str, Handler] = {
    "add": add,
    "mul": multiply,
    "multiply": multiply,
    "div": divide,
    "matmul": matmul,
    "mean": mean,
    "sum": total,
    "reshape": reshape,
    "view": reshape,
    "flatten": flatten,
    "transpose": transpose,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "unflatten": unflatten,
    "chunk": chunk,
    "split": split,
    "unbind": unbind,
    "repeat": repeat,
    "expand": expand,
    "contiguous": contiguous,
    "clone": clone,
    "detach": clone,
}


def _of_layer(handler: Handler, module: nn.Module, path: str) -> Handler:
    """A layer's handler as that of its call."""
    return lambda importer, x: handler(importer, x, module, path)


def handler_of(importer: Importer, node: fx.Node) -> tuple[Handler | None, str]:
    """The handler of a call, and the call's name for errors."""
    if node.op == "call_module":
        path = str(node.target)
        module: nn.Module = operator.attrgetter(path)(importer.model)
        what = f"{path}: {class_name(module)}"
        if is_neuron(module):
            return _of_layer(neuron, module, path), what
        if pads_norm(module):
            return _of_layer(framed_norm, module, path), what
        if isinstance(module, DynamicTimeSteps):
            return _of_layer(dynamic_timesteps, module, path), what
        for kind, handler in MODULES.items():
            if isinstance(module, kind):
                if kind is not DynamicTimeSteps:
                    require_plain(importer, kind, module, what, node)
                return _of_layer(handler, module, path), what
        return (passed_on if passes_on(module, node) else None), what
    if node.op == "call_method":
        return METHODS.get(str(node.target)), f"Tensor.{node.target}"
    target = cast(Any, node.target)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"
    return FUNCTIONS.get(target), name


def supported() -> dict[str, list[str]]:
    """What the front end knows, for `cstep check --ops`. Neurons are recognised by what they compute."""
    return {
        "modules": [*sorted(f"torch.nn.{kind.__name__}" for kind in MODULES), "compiler.nn.DynamicTimeSteps"],
        "neurons": ["IF", "LIF", "LIF with undecayed input", "parametric LIF", "levels without membrane"],
        "functions": sorted({getattr(f, "__name__", str(f)) for f in FUNCTIONS}),
        "methods": sorted(METHODS),
    }
