"""The imported network as ONNX in real numbers, as anybody's tools read it.

A neuron is one node of domain c-step (compiler/ir/onnx_schema.py), or, unrolled, plain elementwise operators for
every timestep, which any runtime takes. Weights keep their names and torch's layout.

A value is float32, [T, *shape] for a train and [*shape] for a tensor, as in the IR; the file's input has the batch
that models take, [1, C, H, W] or [1, T, C, H, W], and its output is [1, classes].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.onnx_schema import DOMAIN, LEVEL, NEURON, VERSION, register
from compiler.ir.types import Shaped
from isa.errors import CStepError

OPERATOR_SET, FORMAT = 18, 10
INPUT, OUTPUT = "input", "logits"


def real_onnx(network: Network, *, unrolled: bool = False) -> onnx.ModelProto:
    """The module of `network`, as imported, as an ONNX model.

    Raises CStepError naming the op that has no real form, such as those of integer modules.
    """
    register()
    graph = _Graph(network, unrolled)
    for op in network.operations():
        form = _FORMS.get(type(op))
        if form is None or not isinstance(op, spike.SpikeOperation):
            where = f" ({op.source})" if op.source else ""
            raise CStepError(f"{op.label}{where}: {op.name} has no ONNX form in real numbers; export it as imported")
        if op.results and not op.result_type.element.is_real and not op.result_type.element.is_count:
            raise CStepError(f"{op.label}: gives {op.result_type}; only a module in real numbers has this form")
        form(graph, op)
    return graph.model()


@dataclass
class _Graph:
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


def _shape(kind: Shaped) -> list[int]:
    """Time, where there is any, and the shape."""
    return [*(() if kind.steps is None else (kind.steps,)), *kind.sizes]


def _input(g: _Graph, op: spike.Input) -> None:
    g.input = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, *_shape(op.result_type)])
    g.give(op, g.apply(INPUT, "Squeeze", INPUT, g.integers([0])))


def _output(g: _Graph, op: spike.Output) -> None:
    g.output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, *_shape(op.operand_type())])
    g.nodes.append(helper.make_node("Unsqueeze", [g.of(op), g.integers([0])], [OUTPUT], name=OUTPUT))


def _repeat(g: _Graph, op: spike.Repeat) -> None:
    new = g.apply(op.label, "Unsqueeze", g.of(op), g.integers([0]))
    g.give(op, g.apply(op.label, "Expand", new, g.integers(_shape(op.result_type))))


def _with_time(g: _Graph, op: spike.SpikeOperation) -> tuple[str, list[int]]:
    """The operand with a leading dimension, time or 1."""
    kind = op.operand_type()
    if kind.steps is not None:
        return g.of(op), _shape(kind)
    return g.apply(op.label, "Unsqueeze", g.of(op), g.integers([0])), [1, *kind.sizes]


def _without_time(g: _Graph, op: spike.SpikeOperation, x: str) -> None:
    """The result, its leading 1 gone where it has no time."""
    timeless = op.result_type.steps is None
    g.give(op, g.apply(op.label, "Squeeze", x, g.integers([0])) if timeless else x)


def _conv(g: _Graph, op: spike.Conv) -> None:
    """On channels first; a convolution of rows is 1-d, the rows beside the timesteps."""
    x, (steps, height, width, channels) = _with_time(g, op)
    kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
    rank, shape = 2, None
    if op.get("rows"):
        rank, shape = 1, (op.result_type.sizes[-1], channels // op.get("groups"), kernel)
        x = g.reshaped(op.label, x, [steps * height, width, channels])
    weights = [g.weight(op, "weight", shape), g.weight(op, "bias")]
    first, last = ([0, 3, 1, 2], [0, 2, 3, 1]) if rank == 2 else ([0, 2, 1], [0, 2, 1])
    images = g.transposed(op.label, x, first)
    out = g.apply(
        op.label,
        "Conv",
        images,
        *(name for name in weights if name is not None),
        kernel_shape=[kernel] * rank,
        strides=[stride] * rank,
        pads=[padding] * (2 * rank),
        group=op.get("groups"),
    )
    out = g.transposed(op.label, out, last)
    if rank == 1:
        out = g.reshaped(op.label, out, [steps, *op.result_type.sizes])
    _without_time(g, op, out)


def _linear(g: _Graph, op: spike.Linear) -> None:
    transposed = g.transposed(op.label, cast(str, g.weight(op, "weight")), [1, 0])
    out, bias = g.apply(op.label, "MatMul", g.of(op), transposed), g.weight(op, "bias")
    g.give(op, out if bias is None else g.apply(op.label, "Add", out, bias))


def _batch_norm(g: _Graph, op: spike.BatchNorm) -> None:
    """With the channels in the second dimension."""
    x, shape = _with_time(g, op)
    order = list(range(len(shape)))
    order.insert(1, order.pop(op.get("axis") + 1))
    names = [cast(str, g.weight(op, key)) for key in ("weight", "bias", "mean", "variance")]
    moved = g.transposed(op.label, x, order)
    out = g.apply(op.label, "BatchNormalization", moved, *names, epsilon=float(op.get("epsilon")))
    back = [int(place) for place in np.argsort(order)]
    _without_time(g, op, g.transposed(op.label, out, back))


def _channel_scale(g: _Graph, op: spike.ChannelScale) -> None:
    channels, after = op.operand_type().sizes[op.get("axis")], len(op.operand_type().sizes) - 1 - op.get("axis")
    weight = cast(str, g.weight(op, "weight", (channels, *[1] * after)))
    g.give(op, g.apply(op.label, "Mul", g.of(op), weight))


def _lif(g: _Graph, op: spike.Lif) -> None:
    words = {key: op.get(key) for key in ("tau", "threshold", *spike.Lif.DEFAULTS)}
    if not g.unrolled:
        g.give(op, g.apply(op.label, NEURON, g.of(op), **words))
        return
    steps = cast(int, op.result_type.steps)
    label, threshold, membrane = op.label, g.number(op.get("threshold")), g.number(0.0)
    first = g.apply(label, "Split", g.of(op), g.integers([1] * steps), outputs=steps, axis=0)
    currents = [f"{first.removesuffix('.0')}.{step}" for step in range(steps)] if steps > 1 else [first]
    spikes: list[str] = []
    for current in currents:
        charged = _charged(g, op, membrane, current)
        fired = g.apply(label, "Greater" if op.get("fires") == "gt" else "GreaterOrEqual", charged, threshold)
        spike_ = g.apply(label, "Cast", fired, to=TensorProto.FLOAT)
        after = g.number(0.0)
        if op.get("reset") == "soft":
            after = g.apply(label, "Sub", charged, g.apply(label, "Mul", spike_, threshold))
        membrane = g.apply(label, "Where", fired, after, charged)
        spikes.append(spike_ if op.get("emits") == 1.0 else g.apply(label, "Mul", spike_, g.number(op.get("emits"))))
    g.give(op, g.apply(label, "Concat", *spikes, axis=0))


def _charged(g: _Graph, op: spike.Lif, membrane: str, current: str) -> str:
    """The membrane after a current; v + (x - v) / tau in this order, for float32 sums have one."""

    def decayed(difference: str) -> str:
        divides = op.get("decay") == "divide"
        factor = g.number(op.get("tau") if divides else 1 / op.get("tau"))
        return g.apply(op.label, "Div" if divides else "Mul", difference, factor)

    if op.get("charge") == "lif":
        return g.apply(op.label, "Add", membrane, decayed(g.apply(op.label, "Sub", current, membrane)))
    if op.get("charge") == "lif_undecayed":
        kept = g.apply(op.label, "Sub", membrane, decayed(membrane))
        return g.apply(op.label, "Add", kept, current)
    return g.apply(op.label, "Add", membrane, current)


def _level(g: _Graph, op: spike.Level) -> None:
    levels, norm, ties = op.get("levels"), op.get("norm"), op.get("ties")
    if not g.unrolled:
        g.give(op, g.apply(op.label, LEVEL, g.of(op), levels=levels, norm=norm, ties=ties))
        return
    clipped = g.apply(op.label, "Clip", g.of(op), g.number(0.0), g.number(float(levels)))
    if ties == "up":
        rounded = g.apply(op.label, "Floor", g.apply(op.label, "Add", clipped, g.number(0.5)))
    else:
        rounded = g.apply(op.label, "Round", clipped)
    g.give(op, g.apply(op.label, "Div", rounded, g.number(norm)))


def _max_pool(g: _Graph, op: spike.MaxPool) -> None:
    x, _ = _with_time(g, op)
    images = g.transposed(op.label, x, [0, 3, 1, 2])
    kernel, stride, padding = op.get("kernel"), op.get("stride"), op.get("padding")
    pooled = g.apply(op.label, "MaxPool", images, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)
    _without_time(g, op, g.transposed(op.label, pooled, [0, 2, 3, 1]))


def _reshape(g: _Graph, op: spike.Reshape) -> None:
    same = op.result_type.sizes == op.operand_type().sizes
    g.give(op, g.of(op) if same else g.reshaped(op.label, g.of(op), _shape(op.result_type)))


def _transpose(g: _Graph, op: spike.Transpose) -> None:
    time = op.result_type.steps is not None
    order = [*([0] if time else []), *(dimension + time for dimension in op.get("order"))]
    g.give(op, g.transposed(op.label, g.of(op), order))


def _scale(g: _Graph, op: spike.Scale) -> None:
    g.give(op, g.apply(op.label, "Mul", g.of(op), g.number(op.get("factor"))))


def _two(kind: str) -> Callable[[_Graph, Any], None]:
    """An operator on two tensors."""
    return lambda g, op: g.give(op, g.apply(op.label, kind, g.of(op, 0), g.of(op, 1)))


def _reduced(kind: str) -> Callable[[_Graph, Any], None]:
    """A mean or sum over an axis, or over time where the op has none."""

    def form(g: _Graph, op: Any) -> None:
        over_time = isinstance(op, spike.MeanTime | spike.SumTime)
        axis = 0 if over_time else op.get("axis") + (op.result_type.steps is not None)
        g.give(op, g.apply(op.label, kind, g.of(op), g.integers([axis]), keepdims=0))

    return form


_FORMS: dict[type[Any], Callable[[_Graph, Any], None]] = {
    spike.Input: _input,
    spike.Output: _output,
    spike.Repeat: _repeat,
    spike.Conv: _conv,
    spike.Linear: _linear,
    spike.BatchNorm: _batch_norm,
    spike.ChannelScale: _channel_scale,
    spike.Lif: _lif,
    spike.Level: _level,
    spike.Add: _two("Add"),
    spike.Multiply: _two("Mul"),
    spike.Matmul: _two("MatMul"),
    spike.MaxPool: _max_pool,
    spike.Reshape: _reshape,
    spike.Transpose: _transpose,
    spike.Scale: _scale,
    spike.Mean: _reduced("ReduceMean"),
    spike.MeanTime: _reduced("ReduceMean"),
    spike.Sum: _reduced("ReduceSum"),
    spike.SumTime: _reduced("ReduceSum"),
}
