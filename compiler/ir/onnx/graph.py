"""An ONNX model under construction: names of tensors, and how far their integers are exact."""

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
from compiler.ir.types import Shaped
from isa.errors import CStepError

OPERATOR_SET, FORMAT = 18, 10
EXACT_FLOAT, EXACT_DOUBLE = 1 << 24, 1 << 53
CURRENT, STREAM = ".current", ".values"
"""What the outputs of the model are called behind their op's label."""

Real = NDArray[np.float64]


def refuse(op: spike.SpikeOperation, message: str) -> CStepError:
    where = f" ({op.source})" if op.source else ""
    return CStepError(f"{op.label}{where}: {message}")


def greatest_of(kind: Shaped) -> int:
    """The greatest magnitude that a type's integers can have."""
    return max(abs(bound) for bound in kind.element.bounds)


@dataclass
class Graph:
    """A model under construction. A value is the name of an ONNX tensor."""

    network: Network
    values: dict[Any, str] = field(default_factory=dict[Any, str])
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    initializers: list[TensorProto] = field(default_factory=list[TensorProto])
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    doubles: set[str] = field(default_factory=set[str])
    """Tensors of doubles; the others hold float32."""

    def apply(self, kind: str, *operands: str, **attributes: int | Sequence[int]) -> str:
        """Add a node; the name of its result, doubles where an operand is."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(operands), [name], **cast(dict[str, Any], attributes)))
        if kind not in ("Cast", "Greater", "GreaterOrEqual") and not self.doubles.isdisjoint(operands):
            self.doubles.add(name)
        return name

    def constant(self, value: ArrayLike, dtype: Any = np.float64) -> str:
        name = f"constant_{len(self.initializers)}"
        self.hold(np.asarray(value, dtype), name)
        return name

    def hold(self, value: NDArray[Any], name: str) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        if value.dtype == np.float64:
            self.doubles.add(name)
        return name

    def weight(self, op: spike.SpikeOperation, key: str) -> Real | None:
        """A weight's integers, or None where the op has none."""
        name = op.symbol(key)
        if name is None:
            return None
        weight = self.network.weights[name]
        if not np.issubdtype(weight.dtype, np.integer):
            raise refuse(op, f"@{name} holds {weight.dtype}; only integer modules have an ONNX form (after quantise)")
        return weight.astype(np.float64)

    def of(self, op: spike.SpikeOperation, index: int = 0) -> str:
        return self.values[op.operands[index]]

    def give(self, op: spike.SpikeOperation, name: str, greatest: int = 0) -> None:
        """`name` is the result of `op`; its type, and sums up to `greatest` on the way, must be exact in its dtype."""
        if op.result_type.element.is_real:
            raise refuse(op, f"gives {op.result_type}; only integer modules have an ONNX form (after quantise)")
        greatest = max(greatest, greatest_of(op.result_type))
        limit = EXACT_DOUBLE if name in self.doubles else EXACT_FLOAT
        if greatest >= limit:
            power = limit.bit_length() - 1
            raise refuse(op, f"{op.name} could reach {greatest}; its integers are carried exactly below 2^{power}")
        self.values[op.results[0]] = name

    def double(self, name: str) -> str:
        if name in self.doubles:
            return name
        made = self.apply("Cast", name, to=TensorProto.DOUBLE)
        self.doubles.add(made)
        return made

    def float(self, name: str) -> str:
        return self.apply("Cast", name, to=TensorProto.FLOAT) if name in self.doubles else name

    def truth(self, name: str) -> str:
        """What a comparison says, as 0 or 1 in float32."""
        return self.apply("Cast", name, to=TensorProto.FLOAT)

    def narrowest(self, op: spike.SpikeOperation, name: str) -> str:
        """Doubles as float32, where the type of `op` says that it holds them."""
        return self.float(name) if greatest_of(op.result_type) < EXACT_FLOAT else name

    def scaled_down(self, name: str, bits: int) -> str:
        """floor((x + 2^(bits - 1)) / 2^bits) of doubles: a right shift that rounds half up; 0 bits leave x."""
        if bits == 0:
            return name
        sum_ = self.apply("Add", name, self.constant(2.0 ** (bits - 1)))
        return self.apply("Floor", self.apply("Mul", sum_, self.constant(2.0**-bits)))

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        return self.apply("Reshape", name, self.constant(list(shape), np.int64))

    def model(self) -> onnx.ModelProto:
        names = [output.name for output in self.outputs]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            what = "neurons" if repeated.endswith(CURRENT) else "streams"
            label = repeated.removesuffix(CURRENT).removesuffix(STREAM)
            raise CStepError(f"onnx: two {what} are called {label}; give each its own name")
        graph = helper.make_graph(self.nodes, "c-step", self.inputs, self.outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPERATOR_SET)], ir_version=FORMAT)


def shape_of(kind: Shaped) -> list[int]:
    """Time, where there is any, and the shape."""
    return [*(() if kind.steps is None else (kind.steps,)), *kind.sizes]


def _info(name: str, kind: Shaped, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape_of(kind))


def entrance(graph: Graph, op: spike.Input) -> None:
    """The model's input."""
    graph.inputs.append(_info("input", op.result_type))
    graph.values[op.results[0]] = "input"


def expose(graph: Graph, name: str, value: str, kind: Shaped) -> None:
    """Make a value an output of the model."""
    graph.nodes.append(helper.make_node("Identity", [value], [name]))
    dtype = TensorProto.DOUBLE if value in graph.doubles else TensorProto.FLOAT
    graph.outputs.append(_info(name, kind, dtype))
