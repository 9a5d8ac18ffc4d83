"""The eager model beside the imported one: they must be equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.frontend.neurons import neurons_of
from compiler.frontend.tracer import reset
from compiler.ir.meaning import NEURONS, Executor
from compiler.ir.network import Network
from isa.errors import CStepError

BATCH = 64


@torch.no_grad()
def run_eager(model: nn.Module, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """The model on one input [C, H, W] or [T, C, H, W]: its logits, and its neurons' currents in the order of calls."""
    currents: list[NDArray[np.float32]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        currents.append(inputs[0].numpy().copy())

    hooks = [module.register_forward_pre_hook(record) for _, module in neurons_of(model)]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # torch sums a product with a frozen weight in another order, and rounds otherwise
        parameter.requires_grad_()
    reset(model)
    try:
        output: Any = model.eval()(torch.from_numpy(np.ascontiguousarray(x)).unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
        reset(model)
    return logits_of(output)[0].numpy(), currents


def logits_of(output: Any) -> Tensor:
    """Logits [B, classes] of what a model returns: alone or first in a tuple, or per timestep, of which the mean."""
    while isinstance(output, tuple | list):
        output = cast(Any, output)[0]
    return output.mean(0) if output.dim() == 3 else output


@torch.no_grad()
def eager_labels(model: nn.Module, inputs: NDArray[np.float32], progress: Callable[[int], None]) -> NDArray[np.int64]:
    """Where the greatest logit of every input [B, ...] is; `progress` hears how many are done."""
    labels: list[NDArray[np.int64]] = []
    for start in range(0, len(inputs), BATCH):
        reset(model)
        output: Any = model.eval()(torch.from_numpy(inputs[start : start + BATCH]))
        labels.append(logits_of(output).argmax(1).numpy())
        progress(min(start + BATCH, len(inputs)))
    reset(model)
    return np.concatenate(labels)


def compare_with_eager(model: nn.Module, network: Network, inputs: NDArray[np.float32]) -> int:
    """Run both on inputs [B, ...], one at a time; how many currents and logits were compared.

    Raises CStepError naming the first neuron, its source line and the first element where they differ.
    """
    executor = Executor(network)
    neurons = [op for op in network.operations() if isinstance(op, NEURONS)]
    places = {neuron.label: neuron.source for neuron in neurons}
    compared = 0
    for index, x in enumerate(inputs):
        output, currents = run_eager(model, x)
        sizes = output.size + sum(current.size for current in currents)
        if len(currents) != len(neurons):
            raise CStepError(
                f"input {index}: the model calls neurons {len(currents)} times, but {len(neurons)} times on the "
                "example that it was traced with; it must not branch"
            )
        left = dict(zip((neuron.label for neuron in neurons), currents, strict=True))
        del currents

        def equal(label: str, imported: NDArray[Any], index: int = index, left: dict[str, Any] = left) -> None:
            where = f"{label} ({places[label]})"
            _require_equal(f"{where}: input {index}: the current", left.pop(label), imported)

        _require_equal(f"output: input {index}: the logits", output, executor.run(x, watch=equal).output)
        compared += sizes
    return compared


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
