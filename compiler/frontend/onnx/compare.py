"""The torch module of an ONNX file beside onnxruntime on the file itself.

The file is cut at its neurons: onnxruntime computes every current and the logits from the spikes that torch computed,
so that a rounding at a threshold does not become another network, and so that the operators of domain c-step, which
onnxruntime lacks, need not run. What the neurons compute was compared when they were rolled up, or is said by the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from compiler.frontend.onnx.graph import Node
from compiler.frontend.onnx.model import OnnxModule
from compiler.frontend.onnx.session import Session, start
from compiler.ir.onnx.schema import DOMAIN
from isa.errors import CStepError

TOLERANCE = 1e-4
"""The largest difference of float32 sums in different orders, over the largest magnitude of the same tensor; a batch
norm with another epsilon makes more."""


@dataclass(frozen=True)
class Agreement:
    """How many currents and logits were compared, and the largest difference relative to their tensor's largest."""

    compared: int
    largest: float


def compare_with_onnxruntime(module: OnnxModule, inputs: NDArray[np.float32]) -> Agreement:
    """Compare on inputs [B, C, H, W], or [B, T, C, H, W] of events, one at a time.

    Raises CStepError naming the value and its node where they differ by more than rounding.
    """
    neurons = [node for node in module.graph.nodes if node.operator.startswith(f"{DOMAIN}.")]
    session = _cut(module, neurons)
    compared, largest = 0, 0.0
    for index, x in enumerate(inputs):
        image = np.ascontiguousarray(x[None])
        names = dict.fromkeys([*session.names, *(node.outputs[0] for node in neurons)])
        with torch.no_grad():
            values = {name: value.numpy() for name, value in module.run(torch.from_numpy(image), names).items()}
        given = {node.outputs[0]: np.ascontiguousarray(values[node.outputs[0]]) for node in neurons}
        for name, found in session.run({module.graph.input: image, **given}).items():
            difference = _difference(values[name], found)
            if difference > TOLERANCE:
                raise _differs(module, name, index, difference)
            compared, largest = compared + found.size, max(largest, difference)
    return Agreement(compared, largest)


def _cut(module: OnnxModule, neurons: list[Node]) -> Session:
    """onnxruntime on the file with spikes as inputs, and currents and logits as outputs."""
    graph = module.graph
    cut = onnx.ModelProto()
    cut.CopyFrom(graph.model)
    spikes = {node.outputs[0] for node in neurons}
    wanted = dict.fromkeys([*(node.inputs[0] for node in neurons), graph.output])
    wanted = [name for name in wanted if name not in spikes and name != graph.input]
    needed, kept = set(wanted), list[onnx.NodeProto]()
    for node in reversed(cut.graph.node):
        node.name = ""  # onnxruntime wants names to differ, ONNX does not
        if needed & set(node.output) - spikes:
            kept.append(node)
            needed |= set(node.input)
    del cut.graph.node[:], cut.graph.output[:], cut.graph.value_info[:]
    cut.graph.node.extend(kept[::-1])
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    shaped = [(name, graph.shapes[name]) for name in (graph.input, *spikes)]
    weights = {tensor.name for tensor in cut.graph.initializer}
    held = [value for value in cut.graph.input if value.name in weights]
    del cut.graph.input[:]
    cut.graph.input.extend(held)
    for name, shape in shaped:
        cut.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return start(cut, graph.file)


def _difference(torch_value: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The largest difference, over the largest magnitude of the two; infinite where shapes or finiteness differ."""
    if torch_value.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    if not found.size:
        return 0.0
    most = max(float(np.abs(found).max()), float(np.abs(torch_value).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(found.astype(np.float64) - torch_value).max()) / most


def _differs(module: OnnxModule, name: str, index: int, difference: float) -> CStepError:
    node = module.graph.producer(name)
    message = (
        f"input {index}: {name} differs between torch and onnxruntime by {difference:.1e} of its largest magnitude; "
        f"rounding makes less than {TOLERANCE:g}"
    )
    return module.graph.refuse(node, message) if node else CStepError(f"{module.graph.file}: {message}")
