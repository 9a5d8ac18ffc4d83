"""From a traced graph to the spike dialect.

PyTorch mixes time, batch and features in the dimensions of one tensor ([T, B, N, C], flattened to [T*B, N, C] and
back). The importer follows each dimension as a product of atoms (time, batch, features); the IR's types then carry
time apart, have no batch, and keep the features in PyTorch's order and memory layout.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from compiler.frontend.neurons import class_name, recognise, remembers
from compiler.frontend.tracer import trace
from compiler.ir import spike
from compiler.ir.meaning import store_of
from compiler.ir.network import Network
from compiler.ir.spelling import Plain
from compiler.ir.types import Element, Shaped, Train, shaped
from compiler.ir.types import Tensor as StaticType
from isa.errors import CStepError

TIME, BATCH, FEATURE = "time", "batch", "feature"

Handler = Callable[..., Any]
"""What a torch call becomes: f(importer, *args, **kwargs) of the call, with values for tensors."""


@dataclass(frozen=True)
class Atom:
    """A factor of a tensor's dimension."""

    kind: str
    size: int


Dimension = tuple[Atom, ...]


@dataclass(frozen=True)
class Value:
    """A traced tensor: its value in the IR, and what each of its torch dimensions is made of."""

    ssa: SSAValue
    dimensions: tuple[Dimension, ...]

    @property
    def type(self) -> Shaped:
        return shaped(self.ssa.type)


def feature_size(dimension: Dimension) -> int | None:
    """The size of a dimension's features, or None where it has none."""
    sizes = [atom.size for atom in dimension if atom.kind == FEATURE]
    if not sizes:
        return None
    return prod(sizes)


def feature_sizes(dimensions: Sequence[Dimension]) -> tuple[int, ...]:
    return tuple(size for size in map(feature_size, dimensions) if size is not None)


def feature_axis(value: Value, dimension: int) -> int | None:
    """The IR dimension that torch dimension `dimension` is, or None for time and batch."""
    dimension %= len(value.dimensions)
    if feature_size(value.dimensions[dimension]) is None:
        return None
    return len(feature_sizes(value.dimensions[:dimension]))


class Importer:
    """Builds the module node by node; `handlers` in torch_ops.py say what each torch call becomes."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model = model
        self.graph = graph
        self.network = Network(ModuleOp([]), dict(store_of(model.state_dict())))
        self.values: dict[fx.Node, Any] = {}
        self.where = ""
        self._node: fx.Node | None = None
        self._module_path = ""
        self._hints: set[str] = set()
        self._called: set[str] = set()

    def run(self, events: bool) -> Network:
        from compiler.frontend.torch_ops import handler_of

        for node in self.graph.nodes:
            self._node = node
            self.where = node.meta.get("source") or "model"
            self._module_path = node.meta.get("module", "")
            if node.op == "placeholder":
                if not self.values:
                    self.values[node] = self._input(node.meta["example"], events)
            elif node.op == "output":
                self._output(self._arguments(node.args[0]))
            else:
                args, kwargs = self._arguments(node.args), self._arguments(node.kwargs)
                handler, what = handler_of(self, node)
                if handler is None:
                    raise CStepError(f"{self.where}: {what} has no spiking meaning here; see `cstep check --ops`")
                self._check_arguments(handler, what, args, kwargs)
                self.values[node] = made = handler(self, *args, **kwargs)
                self._check_shape(what, made, node.meta["example"])
        self.network.verify()
        self._check_weights()
        return self.network

    def _check_arguments(self, handler: Handler, what: str, args: Any, kwargs: Any) -> None:
        """Refuse arguments that the handler does not know."""
        try:
            inspect.signature(handler).bind(self, *args, **kwargs)
        except TypeError as error:
            raise self.refuse(f"{what}: {error}; called like this it is not supported") from None

    def _check_shape(self, what: str, value: Any, example: Any) -> None:
        """What the importer believes of a tensor's dimensions must be what the model made."""
        if not isinstance(value, Value) or not isinstance(example, Tensor):
            return
        sizes = [prod(atom.size for atom in dimension) for dimension in value.dimensions]
        if sizes != list(example.shape):
            raise self.refuse(
                f"{what} gives {list(example.shape)}, but {sizes} when imported; this use is not supported"
            )

    def _check_weights(self) -> None:
        """Every weight that the module names must be finite float32, as the model computes."""
        for op in self.network.operations():
            for key, definition in op.declared().items():
                name = op.symbol(key) if op.is_symbol(definition) else None
                if name is None:
                    continue
                weight = self.network.weights[name]
                if weight.dtype != np.float32:
                    raise CStepError(
                        f"{op.label} ({op.source}): {name} is {weight.dtype}, not float32; use model.float()"
                    )
                if not np.isfinite(weight).all():
                    raise CStepError(f"{op.label} ({op.source}): {name} holds NaN or infinity")

    def _arguments(self, tree: Any) -> Any:
        return map_arg(tree, lambda node: self.values[node])

    def _input(self, example: Tensor, events: bool) -> Value:
        sizes = tuple(example.shape)
        features = tuple((Atom(FEATURE, size),) for size in sizes[2 if events else 1 :])
        batch: Dimension = (Atom(BATCH, 1),)
        if events:
            made = Train.of(sizes[1], sizes[2:], Element.real())
            dimensions = (batch, (Atom(TIME, sizes[1]),), *features)
        else:
            made = StaticType.of(sizes[1:], Element.real())
            dimensions = (batch, *features)
        return Value(self.emit(spike.Input.make(result=made, source="", hint="input")), dimensions)

    def _output(self, value: Any) -> None:
        while isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Value) or value.type.steps is not None or len(value.type.sizes) != 1:
            found = value.type if isinstance(value, Value) else type(value).__name__
            raise CStepError(f"{self.where}: the model returns {found}; it must return logits [B, classes]")
        self.emit(spike.Output.make(value.ssa))

    def emit(self, op: spike.SpikeOperation) -> SSAValue:
        self.network.module.body.block.add_op(op)
        return op.results[0] if op.results else op.operands[0]

    def hint(self, name: str, module: str | None = None) -> str:
        """A name for a result, used once: the module's own path, or `name` inside the module it is called in.

        xDSL keeps names that end in _1, _2, ... for itself: lif_1 becomes lif.1.
        """
        path = module if module is not None else f"{self._module_path}.{name}" if self._module_path else name
        path = re.sub(r"_(\d+)$", r".\1", path)
        free, number = path, 2
        while free in self._hints:
            free, number = f"{path}.{number}", number + 1
        self._hints.add(free)
        return free

    def refuse(self, message: str) -> CStepError:
        return CStepError(f"{self.where}: {message}")

    def shares_memory_with_later(self, index: int) -> bool:
        """Whether argument `index` of the current call, or a view of it, is used by a later call."""
        assert self._node is not None

        def storage(node: fx.Node) -> int | None:
            example = node.meta.get("example")
            return example.untyped_storage().data_ptr() if isinstance(example, Tensor) else None

        shared = storage(cast(fx.Node, self._node.args[index]))
        nodes = list(self.graph.nodes)
        later = nodes[nodes.index(self._node) + 1 :]
        return any(storage(operand) == shared for node in later for operand in node.all_input_nodes)

    def make(
        self,
        kind: type[spike.SpikeOperation],
        *operands: Value,
        result: Shaped,
        hint: str,
        symbols: dict[str, str | None] | None = None,
        **properties: Plain,
    ) -> SSAValue:
        """Emit one op."""
        return self.emit(
            kind.make(
                *(operand.ssa for operand in operands),
                result=result,
                symbols=symbols,
                source=self.where,
                hint=hint,
                **properties,
            )
        )

    def transpose(self, value: Value, order: Sequence[int], dimensions: tuple[Dimension, ...]) -> Value:
        """Features in another order; nothing is emitted where they keep theirs."""
        if list(order) == list(range(len(order))):
            return Value(value.ssa, dimensions)
        result = value.type.with_sizes([value.type.sizes[index] for index in order])
        made = self.make(spike.Transpose, value, result=result, hint=self.hint("transpose"), order=tuple(order))
        return Value(made, dimensions)

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """torch's permute."""
        rank = len(value.dimensions)
        order = [index % rank for index in order]
        axes = [feature_axis(value, index) for index in order]
        kept = tuple(value.dimensions[index] for index in order)
        return self.transpose(value, [axis for axis in axes if axis is not None], kept)

    def regroup(self, value: Value, dimensions: tuple[Dimension, ...]) -> Value:
        """The same atoms in other dimensions: torch's reshape, flatten, unflatten, squeeze."""
        for dimension in dimensions:
            if any(atom.kind == TIME and atom.size > 1 for atom in dimension) and feature_size(dimension) is not None:
                raise self.refuse("a reshape merges time with features; keep T (or T*B) a dimension of its own")
        sizes = feature_sizes(dimensions)
        if sizes == value.type.sizes:
            return Value(value.ssa, dimensions)
        made = self.make(spike.Reshape, value, result=value.type.with_sizes(sizes), hint=self.hint("reshape"))
        return Value(made, dimensions)

    def reshape(self, value: Value, sizes: Sequence[int]) -> Value:
        """torch's reshape to `sizes` (one may be -1)."""
        atoms = [atom for dimension in value.dimensions for atom in dimension]
        total = prod(atom.size for atom in atoms)
        known = prod(size for size in sizes if size != -1)
        wanted = [size if size != -1 else total // known for size in sizes]
        groups: list[Dimension] = []
        for size in wanted:
            taken = self._take(atoms, size)
            inside = bool(groups) and feature_size(groups[-1]) is not None and bool(atoms)
            groups.append((Atom(FEATURE, 1),) if inside and not taken else taken)
        if atoms and groups:
            groups[-1] = (*groups[-1], *atoms)
        return self.regroup(value, tuple(groups))

    def _take(self, atoms: list[Atom], size: int) -> Dimension:
        """The next atoms whose product is `size`, splitting a feature where it must be."""
        if size == 1:
            return (atoms.pop(0),) if atoms and atoms[0].size == 1 else ()
        taken: list[Atom] = []
        product = 1
        while product < size:
            atom = atoms.pop(0)
            rest = size // product
            if atom.size > rest:
                if atom.kind != FEATURE or atom.size % rest:
                    raise self.refuse(f"a reshape splits {atom.kind} of size {atom.size} into parts of {rest}")
                atoms.insert(0, Atom(FEATURE, atom.size // rest))
                atom = Atom(FEATURE, rest)
            taken.append(atom)
            product *= atom.size
        return tuple(taken)

    def repeat_time(self, value: Value, dimension: int, steps: int) -> Value:
        """The same tensor `steps` times along a dimension that is empty so far: time."""
        dimensions = list(value.dimensions)
        dimensions[dimension] = (Atom(TIME, steps), *dimensions[dimension])
        result = Train.of(steps, value.type.sizes, value.type.element)
        made = self.make(spike.Repeat, value, result=result, hint=self.hint("repeat"))
        return Value(made, tuple(dimensions))

    def neuron(self, module: nn.Module, path: str, value: Value) -> Value:
        """A multi-step neuron, time in the first dimension."""
        if path in self._called and remembers(module, f"{path} ({self.where})"):
            raise self.refuse(
                f"{path}: {class_name(module)} is called twice and keeps its membrane; use one neuron a call"
            )
        self._called.add(path)
        if value.type.steps is None:
            if value.dimensions[0] and feature_size(value.dimensions[0]) is not None:
                raise self.refuse(f"{path}: the neuron's first dimension must be time")
            value = self.repeat_time(value, 0, 1)
        if not any(atom.kind == TIME for atom in value.dimensions[0]):
            raise self.refuse(f"{path}: the neuron's first dimension must be time; [T, B, ...] in multi-step mode")
        equation = recognise(module, f"{path} ({self.where})")
        made = self.make(
            spike.Lif,
            value,
            result=value.type.with_element(Element.spike()),
            hint=self.hint("", path),
            **vars(equation),
        )
        return Value(made, value.dimensions)


def import_model(model: nn.Module, example: Tensor) -> Network:
    """Trace `model` on `example` [1, C, H, W] or [1, T, C, H, W] (events) and import it into the spike dialect."""
    if example.dim() not in (4, 5) or example.shape[0] != 1:
        raise CStepError(f"example input {list(example.shape)}; it must be [1, C, H, W], or [1, T, C, H, W] for events")
    with torch.no_grad():
        graph = trace(model, example)
    return Importer(model, graph).run(events=example.dim() == 5)
