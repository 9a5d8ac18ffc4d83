"""An ONNX file as a torch module, so that everything behind the front end takes it like any other model.

The module has torch's layers, with the file's initializers as their weights, and calls them in the graph's order.
In source lines of errors and of the IR, `net.onnx:37` is the 37th node of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from compiler.frontend.onnx.graph import Graph, Node
from isa.errors import CStepError


@dataclass(frozen=True)
class Ref:
    """A value that a call of the module made."""

    name: str


@dataclass(frozen=True)
class Weight:
    """A parameter of the module that no layer has."""

    path: str


@dataclass(frozen=True)
class Call:
    """One call of a torch function, or of the layer at a path."""

    result: Ref
    target: Callable[..., Any] | str
    arguments: tuple[Any, ...]
    place: int
    """The node's number in the file."""

    @property
    def operands(self) -> list[Ref]:
        return [ref for argument in self.arguments for ref in (argument if isinstance(argument, list) else [argument])
                if isinstance(ref, Ref)]  # fmt: skip


class OnnxModule(nn.Module):
    """Images [B, C, H, W], or events [B, T, C, H, W], -> logits [B, classes]; one input after another."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.calls: list[Call] = []
        self.values: dict[str, Ref] = {graph.input: Ref(graph.input)}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            return torch.cat([self(image.unsqueeze(0)) for image in x])
        return self.run(x, [self.graph.output])[self.graph.output]

    def run(self, x: Tensor, keep: Collection[str]) -> dict[str, Tensor]:
        """The values called `keep` in the file, for one input."""
        kept = {self.values[name] for name in keep}
        last = {ref: index for index, call in enumerate(self.calls) for ref in call.operands}
        values: dict[Ref, Any] = {Ref(self.graph.input): x}
        for index, call in enumerate(self.calls):
            arguments = [self._filled(argument, values) for argument in call.arguments]
            target = call.target if callable(call.target) else self.get_submodule(call.target)
            values[call.result] = _at(self.graph.file, call.place)(target, arguments)
            for ref in set(call.operands) - kept:
                if last[ref] == index:
                    del values[ref]
        return {name: values[self.values[name]] for name in keep}

    def _filled(self, argument: Any, values: dict[Ref, Any]) -> Any:
        if isinstance(argument, list):
            return [self._filled(item, values) for item in argument]
        if isinstance(argument, Weight):
            return self.get_parameter(argument.path)
        return values[argument] if isinstance(argument, Ref) else argument


def _at(file: str, place: int) -> FunctionType:
    """A function that calls, and that says of itself that it stands at `file`:`place`: where a node came from."""
    code = (lambda target, arguments: target(*arguments)).__code__
    return FunctionType(code.replace(co_filename=file, co_firstlineno=place), {})


class Translation:
    """Builds an OnnxModule node by node; the operators in ops.py say what each becomes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.module = OnnxModule(graph)
        self._number = 0

    def value(self, node: Node, index: int = 0) -> Ref:
        """An operand that depends on the input."""
        name = node.input(index)
        if name not in self.module.values:
            what = "a constant" if name in self.graph.constants else "missing"
            raise self.graph.refuse(node, f"operand {index} is {what}; it must be a tensor that the model computes")
        return self.module.values[name]

    def shape(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """The shape of an operand that depends on the input."""
        self.value(node, index)
        return self.graph.shapes[node.input(index)]

    def constant(self, node: Node, index: int) -> Any:
        """An operand that does not depend on the input, as an array; None where it is left out."""
        name = node.input(index)
        if name and name not in self.graph.constants:
            raise self.graph.refuse(node, f"operand {index} ({name}) depends on the input; it must be a constant")
        return self.graph.constants.get(name)

    def apply(self, node: Node, target: Callable[..., Any] | str, *arguments: Any) -> Ref:
        """Add a call; its result."""
        self._number += 1
        result = Ref(f"%{self._number}")
        self.module.calls.append(Call(result, target, arguments, node.place))
        return result

    def give(self, node: Node, result: Ref, output: int = 0) -> None:
        self.module.values[node.outputs[output]] = result

    def layer(self, node: Node, path: str, layer: nn.Module, x: Ref) -> Ref:
        """Call a new layer, put at `path` or a name like it."""
        return self.apply(node, self.attach(path, layer), x)

    def weight(self, node: Node, index: int, value: Any) -> Weight:
        """Operand `index`, a constant, as a parameter called as its initializer."""
        name = self.graph.origins.get(node.input(index), "") or f"{self.scope(node)}.weight"
        parameter = nn.Parameter(torch.tensor(value, dtype=torch.float32), requires_grad=False)
        return Weight(self.attach(name, parameter))

    def attach(self, path: str, made: nn.Module | nn.Parameter) -> str:
        """Put a layer or parameter into the module at `path`, or at the first free name like it; where it is."""
        parts = [part for part in re.split(r"[./:]+", re.sub(r"[^\w./:]", "_", path)) if part] or ["layer"]
        parts = [f"n{part}" if part[0].isdigit() and index == 0 else part for index, part in enumerate(parts)]
        free, number = parts, 2
        while not _is_free(self.module, free):
            free, number = [*parts[:-1], f"{parts[-1]}_{number}"], number + 1
            if number > 3:  # something else is called as one of the parts before the last
                free = ["_".join([*parts, str(number)])]
        holder: nn.Module = self.module
        for part in free[:-1]:
            if part not in dict(holder.named_children()):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        if isinstance(made, nn.Parameter):
            holder.register_parameter(free[-1], made)
        else:
            holder.add_module(free[-1], made.eval().requires_grad_(False))
        return ".".join(free)

    def path(self, node: Node, *weights: int) -> str:
        """A layer's path: that of its weights' initializers where they are called like torch's, else the node's own."""
        names = [self.graph.origins.get(node.input(index), node.input(index)) for index in weights]
        for name in names:
            owner, dot, last = name.rpartition(".")
            if dot and last in ("weight", "bias", "running_mean", "running_var"):
                return owner
        return self.scope(node) or next(iter(names), "") or node.operator

    def scope(self, node: Node) -> str:
        """/block.0/attn/MatMul_3 -> block.0.attn; a name without a path is kept."""
        scope, slash, last = node.name.rpartition("/")
        operator = node.operator.rpartition(".")[2]
        return scope if slash and scope and re.fullmatch(rf"{operator}(_\d+)?", last) else node.name


def _is_free(module: nn.Module, parts: list[str]) -> bool:
    holder: nn.Module = module
    for part in parts[:-1]:
        if part not in dict(holder.named_children()):
            return not hasattr(holder, part)
        holder = holder.get_submodule(part)
    return not hasattr(holder, parts[-1])


def open_onnx(path: Path) -> tuple[OnnxModule, tuple[int, ...]]:
    """The module of a file in evaluation mode, and its input's shape without the batch.

    Raises CStepError naming file, node and operator for whatever has no meaning here (docs/onnx.md).
    """
    from compiler.frontend.onnx.frames import roll_up_frames
    from compiler.frontend.onnx.graph import read_graph
    from compiler.frontend.onnx.neurons import refuse_leftovers, roll_up
    from compiler.frontend.onnx.ops import KNOWN, OPERATORS

    graph = read_graph(path, KNOWN)
    roll_up(graph)
    roll_up_frames(graph)
    refuse_leftovers(graph)
    translation = Translation(graph)
    for node in graph.nodes:
        operator = OPERATORS.get(node.operator)
        if operator is None:
            raise graph.refuse(node, "has no meaning outside a neuron; see docs/onnx.md for the operators that have")
        operator(translation, node)
    if graph.output not in translation.module.values:
        raise CStepError(f"{path}: its output {graph.output} does not depend on its input")
    return translation.module.eval(), graph.shapes[graph.input][1:]
