"""A real ONNX model under construction.

A value is float32, [T, *shape] for a train and [*shape] for a tensor, as in the IR; the file's input has the batch
that models take, [1, C, H, W] or [1, T, C, H, W], and its output is [1, classes].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.onnx.schema import DOMAIN, LEVEL, NEURON, VERSION
from compiler.ir.types import Shaped

OPERATOR_SET, FORMAT = 18, 10
INPUT, OUTPUT = "input", "logits"


@dataclass
class RealGraph:
    """A model under construction. A value is the name of an ONNX tensor."""

    network: Network
    unrolled: bool
    values: dict[Any, str] = field(default_factory=dict[Any, str])
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    held: dict[str, TensorProto] = field(default_factory=dict[str, TensorProto])
    transposes: dict[str, tuple[str, list[int]]] = field(default_factory=dict[str, tuple[str, list[int]]])
    """What a transpose was made of, and how."""
    input: onnx.ValueInfoProto | None = None
    output: onnx.ValueInfoProto | None = None

    def apply(
        self, label: str, kind: str, *operands: str, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node of the op called `label`; the name of its (first) result."""
        number = len(self.nodes)
        names = [f"{label}.{number}" if outputs == 1 else f"{label}.{number}.{index}" for index in range(outputs)]
        domain = DOMAIN if kind in (NEURON, LEVEL) else ""
        self.nodes.append(helper.make_node(kind, operands, names, name=f"{label}/{kind}_{number}", domain=domain))
        self.nodes[-1].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        return names[0]

    def of(self, op: spike.SpikeOperation, index: int = 0) -> str:
        return self.values[op.operands[index]]

    def give(self, op: spike.SpikeOperation, name: str) -> None:
        self.values[op.results[0]] = name

    def hold(self, name: str, value: ArrayLike, dtype: Any) -> str:
        """A constant under a name of its own."""
        self.held.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype)), name))
        return name

    def number(self, value: float) -> str:
        return self.hold(f"number {value!r}", value, np.float32)

    def integers(self, values: Sequence[int]) -> str:
        return self.hold(f"integers {list(values)}", list(values), np.int64)

    def weight(self, op: spike.SpikeOperation, key: str, shape: Sequence[int] | None = None) -> str | None:
        """A weight under its own name (without the `.row` of a 1-d convolution's), or None where the op has none."""
        name = op.symbol(key)
        if name is None:
            return None
        value = cast(NDArray[Any], self.network.weights[name])
        return self.hold(name.removesuffix(".row"), value if shape is None else value.reshape(shape), np.float32)

    def transposed(self, label: str, x: str, order: Sequence[int]) -> str:
        """Dimensions in another order; behind another transpose, in one with it, or in none."""
        before = self.transposes.get(x)
        if before is not None:
            x, order = before[0], [before[1][place] for place in order]
        if list(order) == list(range(len(order))):
            return x
        made = self.apply(label, "Transpose", x, perm=list(order))
        self.transposes[made] = x, list(order)
        return made

    def reshaped(self, label: str, x: str, shape: Sequence[int]) -> str:
        return self.apply(label, "Reshape", x, self.integers(shape))

    def model(self) -> onnx.ModelProto:
        assert self.input is not None and self.output is not None
        needed, kept = {OUTPUT}, list[onnx.NodeProto]()
        for node in reversed(self.nodes):  # transposes that became one with another are left over
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        graph = helper.make_graph(kept[::-1], "c-step", [self.input], [self.output], list(self.held.values()))
        opsets = [helper.make_opsetid("", OPERATOR_SET)]
        if any(node.domain == DOMAIN for node in self.nodes):
            opsets.append(helper.make_opsetid(DOMAIN, VERSION))
        return helper.make_model(graph, opset_imports=opsets, ir_version=FORMAT, producer_name="cstep")


def shape_of(kind: Shaped) -> list[int]:
    """Time, where there is any, and the shape."""
    return [*(() if kind.steps is None else (kind.steps,)), *kind.sizes]
