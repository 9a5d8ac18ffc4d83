"""The eager model beside the imported one: they must be equal bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.frontend.neurons import is_neuron
from compiler.frontend.tracer import reset
from compiler.ir.meaning import Executor, Run
from compiler.ir.network import Network
from isa.errors import CStepError


@torch.no_grad()
def run_eager(model: nn.Module, x: NDArray[np.float32]) -> Run:
    """The model on one input [C, H, W] or [T, C, H, W]: its logits, and its neurons' currents under the IR's labels."""
    run = Run(np.zeros(0))
    calls: dict[str, int] = {}

    def record(path: str, current: Tensor) -> None:
        calls[path] = count = calls.get(path, 0) + 1
        run.currents[path if count == 1 else f"{path}_{count}"] = current.numpy().copy()

    def hook(path: str) -> Any:
        return lambda module, inputs: record(path, inputs[0])

    hooks = [
        module.register_forward_pre_hook(hook(path)) for path, module in model.named_modules() if is_neuron(module)
    ]
    reset(model)
    try:
        output: Any = model.eval()(torch.from_numpy(np.ascontiguousarray(x)).unsqueeze(0))
    finally:
        for each in hooks:
            each.remove()
        reset(model)
    while isinstance(output, tuple | list):
        output = output[0]
    run.output = output[0].numpy()
    return run


def compare_with_eager(model: nn.Module, network: Network, inputs: NDArray[np.float32]) -> None:
    """Run both on inputs [B, ...], one at a time.

    Raises CStepError naming the first neuron, its source line and the first element where they differ.
    """
    executor = Executor(network)
    sources = {op.label: op.source for op in network.operations()}
    for index, x in enumerate(inputs):
        eager, imported = run_eager(model, x), executor.run(x)
        for label, current in imported.currents.items():
            where = f"{label} ({sources[label]})"
            if label not in eager.currents:
                raise CStepError(f"{where}: the model does not call this neuron on input {index}; it must not branch")
            _require_equal(f"{where}: input {index}: the current", eager.currents[label], current)
        _require_equal(f"output: input {index}: the logits", eager.output, imported.output)


def _require_equal(what: str, eager: NDArray[Any], imported: NDArray[Any]) -> None:
    """Bit for bit, whatever dimensions of size 1 (the batch) the model has between."""
    if eager.size != imported.size:
        raise CStepError(f"{what} has shape {list(eager.shape)} in the model and {list(imported.shape)} imported")
    differing = np.flatnonzero(eager.reshape(-1) != imported.reshape(-1))
    if differing.size:
        first = int(differing[0])
        place = [int(number) for number in np.unravel_index(first, imported.shape)]
        raise CStepError(
            f"{what} differs from the model's in {differing.size} of {imported.size} elements; the first is {place}: "
            f"{eager.reshape(-1)[first]} in the model, {imported.reshape(-1)[first]} imported"
        )
