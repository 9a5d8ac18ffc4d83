"""From a traced graph to the spike dialect.

PyTorch mixes time, batch and features in the dimensions of one tensor ([T, B, N, C], flattened to [T*B, N, C] and
back). The importer follows each dimension as a product of atoms (time, batch, features); the IR's types then carry
time apart, have no batch, and keep the features in PyTorch's order and memory layout.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from compiler.frontend.dimensions import (
    BATCH,
    TIME,
    Atom,
    Constant,
    Dimension,
    Value,
    features,
    is_time,
)
from compiler.frontend.tracer import trace
from compiler.ir import spike
from compiler.ir.meaning import store_of
from compiler.ir.network import Network
from compiler.ir.spelling import Plain
from compiler.ir.types import Element, Shaped, Train
from compiler.ir.types import Tensor as StaticType
from isa.errors import CStepError

Handler = Callable[..., Any]
"""What a torch call becomes: f(importer, *args, **kwargs) of the call, with values for tensors."""


class Importer:
    """Builds the module node by node; `handlers` in torch_ops.py say what each torch call becomes.

    `one_step`: an image is a train of one timestep from the start, for models that know no time.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, one_step: bool = False) -> None:
        self.model = model
        self.graph = graph
        self.one_step = one_step
        self.network = Network(ModuleOp([]), dict(store_of(model.state_dict())))
        self.values: dict[fx.Node, Any] = {}
        self.where = ""
        self.node: fx.Node | None = None
        self.module_path = ""
        self._hints: set[str] = set()
        self.called: set[str] = set()
        self.equations: dict[Hashable, Any] = {}
        """What neurons were found to compute, by their likeness."""
        self._last_use = {
            storage: node
            for node in graph.nodes
            for operand in node.all_input_nodes
            if (storage := _storage(operand)) is not None
        }

    def run(self, events: bool) -> Network:
        from compiler.frontend.torch_ops import handler_of

        for node in self.graph.nodes:
            self.node = node
            self.where = node.meta.get("source") or "model"
            self.module_path = node.meta.get("module", "")
            if node.op == "placeholder":
                if not self.values:
                    self.values[node] = self._input(node.meta["example"], events)
            elif node.op == "get_attr":
                self.values[node] = Constant(node.meta["example"], str(node.target))
            elif node.op == "output":
                self._output(self._arguments(node.args[0]))
            else:
                args, kwargs = self._arguments(node.args), self._arguments(node.kwargs)
                handler, what = handler_of(self, node)
                if handler is None:
                    raise CStepError(f"{self.where}: {what} has no spiking meaning here; see `cstep check --ops`")
                self._check_arguments(handler, what, args, kwargs)
                self._check_constants(handler, args, kwargs)
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

    def _check_constants(self, handler: Handler, args: Any, kwargs: Any) -> None:
        """Refuse parameters and constants where the handler computes with the input only."""
        if getattr(handler, "takes_constants", False):
            return
        given = next((item for item in (*args, *kwargs.values()) if isinstance(item, Constant)), None)
        if given is not None:
            raise self.refuse(
                f"the model computes with {given} outside a layer; only products with one number a channel are known"
            )

    def _check_shape(self, what: str, value: Any, example: Any) -> None:
        """What the importer believes of a tensor's dimensions must be what the model made."""
        if isinstance(value, Value) and isinstance(example, Tensor) and value.shape != list(example.shape):
            raise self.refuse(
                f"{what} gives {list(example.shape)}, but {value.shape} when imported; this use is not supported"
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
        batch: Dimension = (Atom(BATCH, 1),)
        if events:
            made = Train.of(sizes[1], sizes[2:], Element.real())
            dimensions = (batch, (Atom(TIME, sizes[1]),), *features(sizes[2:]))
        else:
            made = StaticType.of(sizes[1:], Element.real())
            dimensions = (batch, *features(sizes[1:]))
        value = Value(self.emit(spike.Input.make(result=made, source="", hint="input")), dimensions)
        if events or not self.one_step:
            return value
        train = Train.of(1, made.sizes, made.element)
        repeated = self.make(spike.Repeat, value, result=train, hint=self.hint("repeat"))
        return Value(repeated, ((Atom(TIME, 1), *batch), *dimensions[1:]))

    def _output(self, value: Any) -> None:
        from compiler.frontend.shapes import featured

        while isinstance(value, tuple | list) and value:
            value = value[0]
        value = featured(self, value, 1) if isinstance(value, Value) else value
        if not isinstance(value, Value) or len(value.type.sizes) != 1 or not self._is_logits(value):
            found = value.type if isinstance(value, Value) else type(value).__name__
            raise CStepError(f"{self.where}: the model returns {found}; it must return logits [B, classes]")
        if value.type.steps is not None:
            result = StaticType.of(value.type.sizes, Element.real())
            made = self.make(spike.MeanTime, value, result=result, hint=self.hint("mean_time"))
            value = Value(made, value.dimensions[1:])
        self.emit(spike.Output.make(value.ssa))

    def _is_logits(self, value: Value) -> bool:
        """[B, classes], or one per timestep: [T, B, classes]."""
        steps, rank = value.type.steps, len(value.dimensions)
        return steps is None or ((rank == 3 or (rank == 2 and steps == 1)) and is_time(value.dimensions[0]))

    def emit(self, op: spike.SpikeOperation) -> SSAValue:
        self.network.module.body.block.add_op(op)
        return op.results[0] if op.results else op.operands[0]

    def hint(self, name: str, module: str | None = None) -> str:
        """A name for a result, used once: the module's own path, or `name` inside the module it is called in.

        xDSL keeps names that end in _1, _2, ... for itself: lif_1 becomes lif.1.
        """
        path = module if module is not None else f"{self.module_path}.{name}" if self.module_path else name
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
        assert self.node is not None
        storage = _storage(cast(fx.Node, self.node.args[index]))
        return storage is not None and self._last_use[storage] is not self.node

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

    def constant(self, constant: Constant, values: Tensor) -> str:
        """The name in the store of a constant's values [n]: the parameter's own, or a new one."""
        known = self.network.weights.get(constant.name)
        array = values.detach().numpy()
        if known is not None and known.shape == array.shape and np.array_equal(known, array):
            return constant.name
        return self.network.add_weight(constant.name or f"{self.module_path}.constant".lstrip("."), array)


def _storage(node: fx.Node) -> torch.UntypedStorage | None:
    """The memory of a tensor, the same object for all views of it."""
    example = node.meta.get("example")
    return example.untyped_storage() if isinstance(example, Tensor) else None


def import_model(model: nn.Module, example: Tensor) -> Network:
    """Trace `model` on `example` [1, C, H, W] or [1, T, C, H, W] (events) and import it into the spike dialect.

    The model returns logits [B, classes], or one per timestep [T, B, classes], whose mean over time is then imported;
    of a tuple or list (logits and what hooks left) the first item counts. A model with levels and no time (published
    SDT-V3) becomes one of one timestep.

    Raises CStepError naming the call, its line in the model and what would be right, where a call has no spiking
    meaning here.
    """
    if example.dim() not in (4, 5) or example.shape[0] != 1:
        raise CStepError(f"example input {list(example.shape)}; it must be [1, C, H, W], or [1, T, C, H, W] for events")
    with torch.no_grad():
        graph = trace(model, example)
    network = Importer(model, graph).run(events=example.dim() == 5)
    levels = [op for op in network.operations() if isinstance(op, spike.Level)]
    if levels and all(level.result_type.steps is None for level in levels):
        return Importer(model, graph, one_step=True).run(events=False)
    return network
