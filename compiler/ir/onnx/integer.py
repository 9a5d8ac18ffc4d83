"""The integer module as plain ONNX: a second opinion on compiler/ir/meaning.py, run by somebody else's arithmetic.

Written from the docstrings of compiler/ir/spike.py, neuron_ops.py and of `isa.instructions.Fire`, not from meaning.py.
A value is a float32 tensor of integers, [T, *shape] for a train and [*shape] for a tensor; that is exact below 2^24,
which every layer must prove: by the bounds in its type, and by the farthest that a sum of any of its products can go,
so that no order of summation can round. Alignment, rescaling and neurons are computed in double, because products need
up to 2^53, and so are sums that pass 2^24: those over the tokens and timesteps of a stream, and the head's.
The operators are ONNX's plain ones; no quantised kernel is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from compiler.ir import spike
from compiler.ir.meaning import Run
from compiler.ir.network import Network
from compiler.ir.onnx import layers as layers
from compiler.ir.onnx import neurons as neurons
from compiler.ir.onnx.graph import CURRENT, STREAM, Graph, entrance, expose, refuse
from isa.errors import CStepError

LOGITS = "logits"


def to_onnx(network: Network) -> onnx.ModelProto:
    """The integer module of `network` (after quantise) as an ONNX model.

    Input: "input", float32, the shape of `spike.input`. Outputs: "logits", double carrying integers; for every neuron
    layer `<label>.current` [T, *shape], and for every stream `<label>.values`, float32 carrying integers. Raises
    CStepError naming the layer where an integer could pass what carries it, or an op that has no integer form.
    """
    graph = Graph(network)
    for op in network.operations():
        assert isinstance(op, spike.SpikeOperation)
        form = _FORMS.get(type(op))
        if isinstance(op, spike.Guard | spike.RunningSum | spike.Exit):
            raise refuse(op, f"{op.name} depends on the input; ONNX is written without guards and exits")
        if form is None:
            raise refuse(op, f"{op.name} has no ONNX form; only integer modules have one (after quantise)")
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
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # memory goes back as soon as it is free
        # Basic rewrites (constants, identities) move no rounding; with integers in range there is none to move.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, x: NDArray[np.float32]) -> Run:
        """Run on one image [C, H, W] or train of events [T, C, H, W]: logits, every neuron's current, every stream."""
        results: list[Any] = list(self._session.run(self._names, {"input": np.ascontiguousarray(x, np.float32)}))
        run = Run(np.zeros(0))
        for index, name in enumerate(self._names):
            integers = _integers(name, results[index])
            results[index] = None  # the same numbers twice take gigabytes where inputs are large
            if name == LOGITS:
                run.output = integers
            elif name.endswith(CURRENT):
                run.currents[name.removesuffix(CURRENT)] = integers
            else:
                run.streams[name.removesuffix(STREAM)] = integers
        return run


def _integers(name: str, array: Any) -> NDArray[Any]:
    """A float tensor that carries integers, as integers; those of a float32 are below 2^24."""
    integers = array.astype(np.int32 if array.dtype == np.float32 else np.int64)
    if not np.array_equal(integers, array):
        raise CStepError(f"onnx: {name} holds fractions; the exported model is not the integer module")
    return integers


def _output(graph: Graph, op: spike.Output) -> None:
    expose(graph, LOGITS, graph.double(graph.of(op)), op.operand_type())


_FORMS: dict[type[spike.SpikeOperation], Callable[[Graph, Any], None]] = {
    spike.Input: entrance,
    spike.QuantiseImage: layers.quantise_image,
    spike.Repeat: layers.repeat,
    spike.Extend: layers.extend,
    spike.Truncate: layers.truncate,
    spike.Conv: layers.conv,
    spike.Linear: layers.linear,
    spike.Attention: layers.attention,
    spike.Align: neurons.align,
    spike.Rescale: neurons.rescale,
    spike.IntegerLif: neurons.integer_lif,
    spike.IntegerLevel: neurons.integer_level,
    spike.Add: layers.add,
    spike.Multiply: layers.multiply,
    spike.Mask: layers.mask,
    spike.Dilate: layers.dilate,
    spike.MaxPool: layers.max_pool,
    spike.Reshape: layers.reshape,
    spike.Transpose: layers.transpose,
    spike.Sum: layers.sum_,
    spike.SumTime: layers.sum_time,
    spike.HeadSum: layers.head_sum,
    spike.Output: _output,
}
