"""What of a model maps: for `cstep check`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.frontend.importer import Importer, import_model
from compiler.frontend.torch_ops import handler_of
from compiler.frontend.tracer import trace
from isa.errors import CStepError

CALLS = ("call_module", "call_method", "call_function")


def unmapped(model: nn.Module, example: Tensor) -> list[str]:
    """Everything in a model that has no spiking meaning here, one line each with its place; empty where all maps.

    `example` is [1, C, H, W], or [1, T, C, H, W] of events. Calls that nobody knows are all listed; where every call
    is known, the first thing that the importer refuses about them is.
    """
    with torch.no_grad():
        graph = trace(model, example)
    importer = Importer(model, graph)
    lines: list[str] = []
    for node in graph.nodes:
        if node.op in CALLS:
            try:
                handler, what = handler_of(importer, node)
            except CStepError as error:
                lines.append(str(error))
                continue
            if handler is None:
                lines.append(f"{node.meta.get('source') or 'model'}: {what} has no spiking meaning here")
    if not lines:
        try:
            import_model(model, example)
        except CStepError as error:
            lines.append(str(error))
    return lines
