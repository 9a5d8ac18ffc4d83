"""The integer module as plain ONNX: a second opinion on compiler/ir/meaning.py, run by somebody else's arithmetic.

Written from the docstrings of compiler/ir/spike.py and of `isa.instructions.Fire`, not from meaning.py. A value is a
float32 tensor of integers, [T, *shape] for a train and [*shape] for a tensor; that is exact below 2^24, which every
layer must prove: by the bounds in its type, and by the farthest that a sum of any of its products can go, so that no
order of summation can round. Alignment and neurons are computed in double, because a decay needs up to 2^53.
The operators are ONNX's plain ones; no quantised kernel is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.ir import spike
from compiler.ir.meaning import Run
from compiler.ir.network import Network
from compiler.ir.types import Shaped
from isa.errors import CStepError

OPERATOR_SET, FORMAT = 18, 10
EXACT_FLOAT, EXACT_DOUBLE = 1 << 24, 1 << 53
MEMBRANE_LOW, MEMBRANE_HIGH = -(1 << 15), (1 << 15) - 1
LOGITS, CURRENT = "logits", ".current"

Real = NDArray[np.float64]


def to_onnx(network: Network) -> onnx.ModelProto:
    """The integer module of `network` (after quantise) as an ONNX model.

    Input: "input", float32, the shape of `spike.input`. Outputs: "logits", double carrying integers, and for every
    neuron layer `<label>.current` [T, *shape], float32 carrying integers. Raises CStepError naming the layer where an
    integer could pass what carries it, or an op that has no integer form.
    """
    graph = _Graph(network)
    for op in network.operations():
        assert isinstance(op, spike.SpikeOperation)
        form = _FORMS.get(type(op))
        if form is None:
            raise _refuse(op, f"{op.name} has no ONNX form; only integer modules have one (after quantise)")
        form(graph, op)
    return graph.model()


class Oracle:
    """onnxruntime on the ONNX form of a network: one CPU thread, one input after another."""

    def __init__(self, network: Network) -> None:
        self._start(to_onnx(network))

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Oracle:
        """An oracle for a model that `to_onnx` made."""
        made = cls.__new__(cls)
        made._start(model)
        return made

    def _start(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Basic rewrites (constants, identities) move no rounding; with integers in range there is none to move.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, x: NDArray[np.float32]) -> Run:
        """Run on one image [C, H, W] or one train of events [T, C, H, W]: the logits and every neuron's current."""
        results = self._session.run(self._names, {"input": np.ascontiguousarray(x, np.float32)})
        arrays = {name: _integers(name, array) for name, array in zip(self._names, results, strict=True)}
        output = arrays.pop(LOGITS)
        return Run(output, {name.removesuffix(CURRENT): array for name, array in arrays.items()})


def _integers(name: str, array: Any) -> NDArray[np.int64]:
    """A float tensor that carries integers, as integers."""
    integers = array.astype(np.int64)
    if not np.array_equal(integers, array):
        raise CStepError(f"onnx: {name} holds fractions; the exported model is not the integer module")
    return integers


def _refuse(op: spike.SpikeOperation, message: str) -> CStepError:
    where = f" ({op.source})" if op.source else ""
    return CStepError(f"{op.label}{where}: {message}")


def _greatest(kind: Shaped) -> int:
    """The greatest magnitude that a type's integers can have."""
    return max(abs(bound) for bound in kind.element.bounds)


@dataclass
class _Graph:
    """A model under construction. A value is the name of an ONNX tensor."""

    network: Network
    values: dict[Any, str] = field(default_factory=dict[Any, str])
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    initializers: list[TensorProto] = field(default_factory=list[TensorProto])
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])

    def apply(self, kind: str, *operands: str, **attributes: int | Sequence[int]) -> str:
        """Add a node; the name of its result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(operands), [name], **cast(dict[str, Any], attributes)))
        return name

    def constant(self, value: ArrayLike, dtype: Any = np.float64) -> str:
        name = f"constant_{len(self.initializers)}"
        self.hold(np.asarray(value, dtype), name)
        return name

    def hold(self, value: NDArray[Any], name: str) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, op: spike.SpikeOperation, key: str) -> Real | None:
        """A weight's integers, or None where the op has none."""
        name = op.symbol(key)
        if name is None:
            return None
        weight = self.network.weights[name]
        if not np.issubdtype(weight.dtype, np.integer):
            raise _refuse(op, f"@{name} holds {weight.dtype}; only integer modules have an ONNX form (after quantise)")
        return weight.astype(np.float64)

    def of(self, op: spike.SpikeOperation, index: int = 0) -> str:
        return self.values[op.operands[index]]

    def give(self, op: spike.SpikeOperation, name: str, greatest: int = 0, limit: int = EXACT_FLOAT) -> None:
        """`name` is the result of `op`; its type, and sums up to `greatest` on the way, must be exact below `limit`."""
        if op.result_type.element.is_real:
            raise _refuse(op, f"gives {op.result_type}; only integer modules have an ONNX form (after quantise)")
        greatest = max(greatest, _greatest(op.result_type))
        if greatest >= limit:
            power = limit.bit_length() - 1
            raise _refuse(op, f"{op.name} could reach {greatest}; its integers are carried exactly below 2^{power}")
        self.values[op.results[0]] = name

    def double(self, name: str) -> str:
        return self.apply("Cast", name, to=TensorProto.DOUBLE)

    def float(self, name: str) -> str:
        return self.apply("Cast", name, to=TensorProto.FLOAT)

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
            raise CStepError(f"onnx: two neurons are called {repeated.removesuffix(CURRENT)}; give each its own name")
        graph = helper.make_graph(self.nodes, "c-step", self.inputs, self.outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPERATOR_SET)], ir_version=FORMAT)


def _shape(kind: Shaped) -> list[int]:
    """Time, where there is any, and the shape."""
    return [*(() if kind.steps is None else (kind.steps,)), *kind.sizes]


def _info(name: str, kind: Shaped, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, _shape(kind))


def _expose(graph: _Graph, name: str, value: str, kind: Shaped, dtype: int = TensorProto.FLOAT) -> None:
    """Make a value an output of the model."""
    graph.nodes.append(helper.make_node("Identity", [value], [name]))
    graph.outputs.append(_info(name, kind, dtype))


def _input(graph: _Graph, op: spike.Input) -> None:
    graph.inputs.append(_info("input", op.result_type))
    graph.values[op.results[0]] = "input"


def _output(graph: _Graph, op: spike.Output) -> None:
    _expose(graph, LOGITS, graph.double(graph.of(op)), op.operand_type(), TensorProto.DOUBLE)


def _quantise_image(graph: _Graph, op: spike.QuantiseImage) -> None:
    """clip(rint(x / scale), -127, 127) in double; ONNX's Round is half to even, as rint."""
    quotient = graph.apply("Div", graph.double(graph.of(op)), graph.constant(op.get("scale")))
    rounded = graph.apply("Round", quotient)
    graph.give(op, graph.float(graph.apply("Clip", rounded, graph.constant(-127.0), graph.constant(127.0))))


def _repeat(graph: _Graph, op: spike.Repeat) -> None:
    graph.give(op, graph.apply("Expand", graph.of(op), graph.constant(_shape(op.result_type), np.int64)))


def _channels_first(graph: _Graph, op: spike.SpikeOperation) -> str:
    """[T, H, W, C] or [H, W, C] -> [T or 1, C, H, W]."""
    images = graph.of(op)
    if op.operand_type().steps is None:
        images = graph.reshaped(images, (1, *op.operand_type().sizes))
    return graph.apply("Transpose", images, perm=[0, 3, 1, 2])


def _channels_last(graph: _Graph, op: spike.SpikeOperation, images: str) -> str:
    moved = graph.apply("Transpose", images, perm=[0, 2, 3, 1])
    return moved if op.result_type.steps is not None else graph.reshaped(moved, op.result_type.sizes)


def _window(op: spike.SpikeOperation) -> dict[str, list[int]]:
    kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}


def _greatest_sum(graph: _Graph, op: spike.SpikeOperation, weight: Real) -> int:
    """No sum of a part of the products, or of them and the bias, passes that of all of one sign."""
    low, high = op.operand_type().element.bounds
    rows, bias = weight.reshape(len(weight), -1), graph.weight(op, "bias")
    lowest = np.minimum(np.minimum(rows * low, rows * high), 0).sum(axis=1)
    highest = np.maximum(np.maximum(rows * low, rows * high), 0).sum(axis=1)
    if bias is not None:
        lowest, highest = lowest + np.minimum(bias, 0), highest + np.maximum(bias, 0)
    return int(max(-lowest.min(), highest.max()))


def _biased(graph: _Graph, op: spike.SpikeOperation, sums: str, dtype: Any) -> str:
    """Add the bias along the last dimension."""
    bias = graph.weight(op, "bias")
    return sums if bias is None else graph.apply("Add", sums, graph.constant(bias, dtype))


def _conv(graph: _Graph, op: spike.Conv) -> None:
    weight = cast(Real, graph.weight(op, "weight"))
    held = graph.hold(weight.astype(np.float32), f"{op.label}.weight")
    images = _channels_first(graph, op)
    sums = graph.apply("Conv", images, held, group=op.get("groups"), **_window(op))
    biased = _biased(graph, op, _channels_last(graph, op, sums), np.float32)
    graph.give(op, biased, _greatest_sum(graph, op, weight))


def _linear(graph: _Graph, op: spike.Linear) -> None:
    """In double where the sums of many timesteps and tokens could pass float32: the head."""
    weight = cast(Real, graph.weight(op, "weight"))
    greatest = _greatest_sum(graph, op, weight)
    wide = greatest >= EXACT_FLOAT and not op.result_type.element.is_count
    dtype = np.float64 if wide else np.float32
    held = graph.hold(weight.T.astype(dtype), f"{op.label}.weight")
    x = graph.double(graph.of(op)) if wide else graph.of(op)
    sums = _biased(graph, op, graph.apply("MatMul", x, held), dtype)
    graph.give(op, sums, greatest, EXACT_DOUBLE if wide else EXACT_FLOAT)


def _attention(graph: _Graph, op: spike.Attention) -> None:
    """Heads split off, (q kT) v, heads merged."""
    if op.get("scale") != 1.0:
        raise _refuse(op, f"scale={op.get('scale')} on integers; it belongs into the threshold (quantise)")
    steps, heads = op.result_type.steps, op.get("heads")
    tokens, channels = op.operand_type(0).sizes
    keys, width = op.operand_type(1).sizes[0], channels // heads

    def split(index: int, rows: int, perm: list[int]) -> str:
        parted = graph.reshaped(graph.of(op, index), (cast(int, steps), rows, heads, width))
        return graph.apply("Transpose", parted, perm=perm)

    q, k, v = split(0, tokens, [0, 2, 1, 3]), split(1, keys, [0, 2, 3, 1]), split(2, keys, [0, 2, 1, 3])
    out = graph.apply("MatMul", graph.apply("MatMul", q, k), v)
    merged = graph.reshaped(graph.apply("Transpose", out, perm=[0, 2, 1, 3]), _shape(op.result_type))
    scores = width * _greatest(op.operand_type(0)) * _greatest(op.operand_type(1))
    graph.give(op, merged, keys * scores * _greatest(op.operand_type(2)))


def _align(graph: _Graph, op: spike.Align) -> None:
    shift, x = op.get("shift"), graph.double(graph.of(op))
    moved = graph.apply("Mul", x, graph.constant(2.0**shift)) if shift >= 0 else graph.scaled_down(x, -shift)
    bias = graph.weight(op, "bias")
    current = moved if bias is None else graph.apply("Add", moved, graph.constant(bias))
    graph.give(op, graph.float(current))


def _integer_lif(graph: _Graph, op: spike.IntegerLif) -> None:
    """The neuron of `Fire`, one timestep after another, in double; every current becomes an output."""
    _expose(graph, f"{op.label}{CURRENT}", graph.of(op), op.operand_type())
    farthest = _greatest(op.operand_type()) - MEMBRANE_LOW
    if (product := farthest * op.get("multiplier")) >= EXACT_DOUBLE:
        raise _refuse(op, f"its decay could reach {product}; double carries integers exactly below 2^53")
    steps = cast(int, op.result_type.steps)
    threshold = graph.constant(cast(Real, graph.weight(op, "threshold")))
    lowest, highest, zero = (graph.constant(float(value)) for value in (MEMBRANE_LOW, MEMBRANE_HIGH, 0))
    membrane, spikes = zero, list[str]()
    for step in range(steps):
        bounds = (graph.constant([edge], np.int64) for edge in (step, step + 1, 0))
        current = graph.double(graph.apply("Slice", graph.of(op), *bounds))
        charged = _charged(graph, op, membrane, current)
        fired = graph.apply("GreaterOrEqual", charged, threshold)
        spikes.append(graph.float(fired))
        after = zero if op.get("reset") == "hard" else graph.apply("Sub", charged, threshold)
        membrane = graph.apply("Clip", graph.apply("Where", fired, after, charged), lowest, highest)
    graph.give(op, graph.apply("Concat", *spikes, axis=0))


def _charged(graph: _Graph, op: spike.IntegerLif, membrane: str, current: str) -> str:
    """The membrane after charging: decay by round(d * multiplier / 2^divisor), half up."""

    def decayed(difference: str) -> str:
        product = graph.apply("Mul", difference, graph.constant(float(op.get("multiplier"))))
        return graph.scaled_down(product, op.get("divisor"))

    charge = op.get("charge")
    if charge == "lif":
        return graph.apply("Add", membrane, decayed(graph.apply("Sub", current, membrane)))
    grown = graph.apply("Add", membrane, current)
    return grown if charge == "if" else graph.apply("Sub", grown, decayed(membrane))


def _add(graph: _Graph, op: spike.Add) -> None:
    graph.give(op, graph.apply("Add", graph.of(op, 0), graph.of(op, 1)))


def _max_pool(graph: _Graph, op: spike.MaxPool) -> None:
    pooled = graph.apply("MaxPool", _channels_first(graph, op), **_window(op))
    graph.give(op, _channels_last(graph, op, pooled))


def _reshape(graph: _Graph, op: spike.Reshape) -> None:
    graph.give(op, graph.reshaped(graph.of(op), _shape(op.result_type)))


def _transpose(graph: _Graph, op: spike.Transpose) -> None:
    time = op.result_type.steps is not None
    order = [*([0] if time else []), *(dimension + time for dimension in op.get("order"))]
    graph.give(op, graph.apply("Transpose", graph.of(op), perm=order))


def _summed(graph: _Graph, op: spike.Sum | spike.SumTime, axis: int, count: int) -> None:
    axes = graph.constant([axis], np.int64)
    total = graph.apply("ReduceSum", graph.of(op), axes, keepdims=0)
    graph.give(op, total, count * _greatest(op.operand_type()))


def _sum(graph: _Graph, op: spike.Sum) -> None:
    axis = op.get("axis")
    _summed(graph, op, axis + (op.result_type.steps is not None), op.operand_type().sizes[axis])


def _sum_time(graph: _Graph, op: spike.SumTime) -> None:
    _summed(graph, op, 0, cast(int, op.operand_type().steps))


_FORMS: dict[type[spike.SpikeOperation], Callable[[_Graph, Any], None]] = {
    spike.Input: _input,
    spike.QuantiseImage: _quantise_image,
    spike.Repeat: _repeat,
    spike.Conv: _conv,
    spike.Linear: _linear,
    spike.Attention: _attention,
    spike.Align: _align,
    spike.IntegerLif: _integer_lif,
    spike.Add: _add,
    spike.MaxPool: _max_pool,
    spike.Reshape: _reshape,
    spike.Transpose: _transpose,
    spike.Sum: _sum,
    spike.SumTime: _sum_time,
    spike.Output: _output,
}
