"""An ONNX file as a graph whose shapes and constants are all known.

The graph is run once by onnxruntime on a made-up input, c-step's neurons replaced by identities: that gives every
value's shape, and the value of whatever does not depend on the input but by its shape (chains of Shape, Gather,
Concat that exporters write around a reshape).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from compiler.frontend.checkpoint import one_line
from compiler.frontend.onnx.session import run_onnx
from compiler.ir.onnx.schema import DOMAIN, VERSION, register
from isa.errors import CStepError

Array = NDArray[Any]
LARGEST = (1 << 31) - 1
"""Bytes of a protobuf message; weights of more must lie in external data, and even then fit memory once more."""
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Node:
    """A node of the file; `place` is its number there, from 1."""

    place: int
    operator: str
    """`Conv`, or `c-step.Neuron` where the domain is not ONNX's."""
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass
class Graph:
    """Nodes that the first output depends on, in order, without those that only make constants."""

    file: str
    model: onnx.ModelProto
    input: str
    output: str
    nodes: list[Node]
    constants: dict[str, Array]
    origins: dict[str, str]
    """The initializer that a constant is, or is a transposed copy of."""
    shapes: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        self._index()

    def _index(self) -> None:
        self._producers = {value: node for node in self.nodes for value in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                self._users.setdefault(value, []).append(node)

    def producer(self, value: str) -> Node | None:
        """The node that gives a value; None for the input and for constants."""
        return self._producers.get(value)

    def users(self, value: str) -> list[Node]:
        return self._users.get(value, [])

    def replace(self, old: Node, new: Node) -> None:
        """Put a node in the place of another."""
        self.nodes[self.nodes.index(old)] = new
        self._index()

    def number(self, name: str) -> float | None:
        """A constant that is one number all over, or None."""
        constant = self.constants.get(name)
        if constant is None or not constant.size or not (constant == constant.flat[0]).all():
            return None
        return float(constant.flat[0])

    def put(self, last: Node, operator: str, source: str, attributes: dict[str, Any]) -> None:
        """A neuron that takes `source`, in the place of the node that gave its result, called as that one's scope."""
        scope = last.name.rpartition("/")[0]
        made = Node(last.place, operator, scope or last.name, (source,), last.outputs, attributes)
        self.replace(last, made)

    def refuse(self, node: Node, message: str) -> CStepError:
        """An error that names the file, the node's place in it, its operator and its name."""
        return _refuse(self.file, node, message)

    def prune(self) -> None:
        """Drop nodes that nothing uses any more."""
        needed, kept = {self.output}, list[Node]()
        for node in reversed(self.nodes):
            if needed & set(node.outputs):
                kept.append(node)
                needed |= set(node.inputs)
        self.keep(kept[::-1])

    def keep(self, nodes: list[Node]) -> None:
        """Only these nodes are left."""
        self.nodes = nodes
        self._index()


def written(value: float) -> float:
    """A float32 as it was written, 0.3 and not 0.30000001: attributes are float32."""
    return float(str(np.float32(value)))


def slice_numbers(graph: Graph, node: Node, index: int, name: str) -> list[int] | None:
    """One of a Slice's arguments: an input, or in old files an attribute."""
    given = graph.constants.get(node.input(index))
    if given is not None:
        return [int(number) for number in given.reshape(-1)]
    return node.attributes.get(name)


def read_graph(path: Path, known: Sequence[str]) -> Graph:
    """The graph of a file with one float32 input [1, C, H, W] or [1, T, C, H, W], of `known` operators.

    Raises CStepError for a broken file, for one over 2 GB, and naming the node for anything else that is not known.
    """
    model = _load(path)
    inputs = _inputs(path.name, model)
    name, shape = inputs
    graph = Graph(path.name, model, name, model.graph.output[0].name, _nodes(model), {}, {}, {name: shape})
    graph.prune()
    for tensor in model.graph.initializer:
        graph.constants[tensor.name] = numpy_helper.to_array(tensor)
        graph.origins[tensor.name] = tensor.name
    fixed = _fixed(graph)
    for node in graph.nodes:
        if node not in fixed and node.operator not in known:
            raise graph.refuse(node, "has no meaning here; see docs/onnx.md for the operators that have")
    _evaluate(graph, fixed)
    graph.keep([node for node in graph.nodes if node not in fixed])
    return graph


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise CStepError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}; an .onnx is wanted")
    if path.stat().st_size > LARGEST:
        raise CStepError(f"{path}: over 2 GB; ONNX keeps weights of that size in external data beside the file")
    register()
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        model = inliner.inline_local_functions(model) if model.functions else model
    except (DecodeError, EOFError):
        raise CStepError(f"{path}: truncated, or not an ONNX file") from None
    except (onnx.checker.ValidationError, ValueError, OSError, RuntimeError) as error:
        if model_bytes(path) > LARGEST:
            raise CStepError(f"{path}: over 2 GB with its external data; split the model") from None
        raise CStepError(f"{path}: not a valid ONNX model ({one_line(error)})") from None
    if not model.graph.node or not model.graph.output:
        raise CStepError(f"{path}: an ONNX file without nodes; export the model again")
    for opset in model.opset_import:
        if opset.domain == DOMAIN and opset.version != VERSION:
            raise CStepError(f"{path}: operators {DOMAIN} of version {opset.version}; version {VERSION} is known here")
    return model


def model_bytes(path: Path) -> int:
    """The bytes of a file and of the external data that it names."""
    total = path.stat().st_size
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        return total
    places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    return total + sum((path.parent / place).stat().st_size for place in places if (path.parent / place).is_file())


def _inputs(file: str, model: onnx.ModelProto) -> tuple[str, tuple[int, ...]]:
    """The name and shape of the only input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        listed = ", ".join(value.name for value in inputs) or "none"
        raise CStepError(f"{file}: {len(inputs)} inputs ({listed}); it must have one, the image")
    value, kind = inputs[0], inputs[0].type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind.elem_type).lower()
        raise CStepError(f"{file}: input {value.name} holds {found}; it must be float32")
    shape = [size.dim_value if size.HasField("dim_value") else 0 for size in kind.shape.dim]
    shape[:1] = [shape[0] or 1] if shape else []
    spelled = ", ".join(str(size.dim_value or size.dim_param or "?") for size in kind.shape.dim)
    if len(shape) not in (4, 5) or shape[0] != 1 or min(shape) < 1:
        raise CStepError(
            f"{file}: input {value.name} [{spelled}]; it must be [1, C, H, W], or [1, T, C, H, W] of events, in fixed "
            "sizes: export with a batch of 1"
        )
    return value.name, tuple(shape)


def _nodes(model: onnx.ModelProto) -> list[Node]:
    made: list[Node] = []
    for place, node in enumerate(model.graph.node, 1):
        operator = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
        attributes = {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in node.attribute}
        made.append(Node(place, operator, node.name, tuple(node.input), tuple(node.output), attributes))
    return made


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _fixed(graph: Graph) -> set[Node]:
    """Nodes whose values do not depend on the input's, only on its shape."""
    fixed: set[Node] = set()
    names = set(graph.constants) | {""}
    for node in graph.nodes:
        alone = all(name in names for name in node.inputs)
        if alone and any(isinstance(value, onnx.GraphProto) for value in node.attributes.values()):
            continue  # a branch or loop may look at outer values
        if alone or node.operator in ("Shape", "Size"):
            fixed.add(node)
            names |= set(node.outputs)
    return fixed


def _evaluate(graph: Graph, fixed: set[Node]) -> None:
    """Fill in `shapes` and `constants` by one run."""
    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    for node in probe.graph.node:
        node.name = ""  # onnxruntime wants names to differ, ONNX does not
        if node.domain == DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    shapes: dict[str, str] = {}
    wanted: list[str] = []
    for node in graph.nodes:
        for value in filter(None, node.outputs):
            if node in fixed:
                wanted.append(value)
            elif not (value != node.outputs[0] and node.operator in ("Dropout", "BatchNormalization", "MaxPool")):
                shapes[value] = f"shape of {value}"
    probe.graph.node.extend(helper.make_node("Shape", [value], [name]) for value, name in shapes.items())
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (*wanted, *shapes.values()))
    _name_sizes(probe.graph, graph)
    found = run_onnx(probe, graph.file, {graph.input: np.zeros(graph.shapes[graph.input], np.float32)})
    graph.constants |= {name: found[name] for name in wanted}
    graph.shapes |= {value: tuple(int(size) for size in found[name]) for value, name in shapes.items()}
    for node in graph.nodes:
        if node in fixed and node.operator in ("Identity", "Transpose") and node.input(0) in graph.origins:
            graph.origins[node.outputs[0]] = graph.origins[node.input(0)]


def _name_sizes(proto: onnx.GraphProto, graph: Graph) -> None:
    """Give the input its sizes, the batch among them; intermediate shapes that the exporter wrote are not believed."""
    del proto.value_info[:]
    for value in proto.input:
        if value.name == graph.input:
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, graph.shapes[value.name]))


def _refuse(file: str, node: Node, message: str) -> CStepError:
    named = f" {node.name}" if node.name else ""
    return CStepError(f"{file}:{node.place}: {node.operator}{named}: {message}")
