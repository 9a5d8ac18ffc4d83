"""A network in the IR: its module, and the store of the weights that the module names.

Weights live outside the text: `@block.0.attn.q_linear.weight` is a name in the store. A name is written once; a
pass that changes a weight adds a new name. On disk a dump is `05-quantise.spike` with, beside it, one
`NN-pass.safetensors` for every pass that added names; a dump reads those up to its own number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from compiler.ir.spelling import HouseOperation
from compiler.ir.spike import SPIKE
from isa.errors import CStepError
from isa.files import write_whole
from isa.machine import Machine, load_machine

Array = NDArray[np.generic]


def context() -> Context:
    """An xDSL context that knows the house dialects."""
    from compiler.ir.cstep import CSTEP

    made = Context()
    for dialect in (Builtin, SPIKE, CSTEP):
        made.load_dialect(dialect)
    return made


def default_machine() -> Machine:
    """The machine that programs are for where nothing else is said."""
    return load_machine("c-step")


@dataclass
class Network:
    """A module, its weights, and the machine it is for."""

    module: ModuleOp
    weights: dict[str, Array] = field(default_factory=dict[str, Array])
    saved: set[str] = field(default_factory=set[str])
    """Names that a dump on disk already holds."""
    target: Machine = field(default_factory=default_machine)
    retired: set[str] = field(default_factory=set[str])
    """Names whose weights went when nothing used them any more: a name is not given twice."""

    def operations(self) -> Iterator[HouseOperation]:
        """The ops in program order."""
        for op in self.module.body.block.ops:
            yield cast(HouseOperation, op)

    def add_weight(self, name: str, value: Array) -> str:
        """Put a weight into the store under `name`, or under the first free `name.2`, `name.3`, ..."""
        free, number = name, 2
        while free in self.weights or free in self.retired:
            free, number = f"{name}.{number}", number + 1
        self.weights[free] = np.ascontiguousarray(value)
        return free

    def verify(self) -> None:
        """Raise CStepError naming the op, its place and what is wrong."""
        try:
            self.module.verify()
        except VerifyException as error:
            raise CStepError(f"the IR does not verify: {self._first_wrong() or _first_line(error)}") from None
        for op in self.operations():
            self._verify_weights(op)

    def _first_wrong(self) -> str | None:
        """The first op that does not verify by itself, and why."""
        for op in self.operations():
            try:
                op.verify()
            except VerifyException as error:
                problem = _first_line(error)
                return problem if problem.startswith(f"{op.label}: ") else f"{op.label}: {problem}"
        return None

    def _verify_weights(self, op: HouseOperation) -> None:
        """Names are in the store, in the shapes that the op implies."""
        keys = op.symbol_keys()
        shapes = op.weight_shapes() if keys else {}
        for key in keys:
            name = op.symbol(key)
            if name is None:
                continue
            if name not in self.weights:
                raise CStepError(f"{op.label}: {op.name}: no weight @{name} in the store")
            if self.weights[name].shape != shapes.get(key, self.weights[name].shape):
                has, wanted = (list(shape) for shape in (self.weights[name].shape, shapes[key]))
                raise CStepError(f"{op.label}: {op.name}: {key} @{name} is {has}; it must be {wanted}")

    def text(self) -> str:
        """The module in the house spelling, without the wrapper."""
        lines = str(self.module).splitlines()
        return "\n".join(line.removeprefix("  ") for line in lines[1:-1]) + "\n"

    def digest(self) -> str:
        """sha256 of the module's text and of the weights that it names."""
        found = hashlib.sha256(self.text().encode())
        for name in sorted(self.named()):
            value = self.weights[name]
            found.update(f"{name} {value.dtype} {value.shape}".encode())
            found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def clone(self) -> Network:
        """A copy of the module, with a store of its own: what is added there is not added here."""
        return self.with_module(self.module.clone())

    def with_module(self, module: ModuleOp) -> Network:
        """Another module, and in a store of its own the weights that this module names; the others are let go."""
        named = self.named()
        kept = {name: value for name, value in self.weights.items() if name in named}
        return replace(
            self, module=module, weights=kept, saved=set(self.saved), retired=self.retired | (set(self.weights) - named)
        )

    def named(self) -> set[str]:
        """The weights that the module names."""
        symbols = (op.symbol(key) for op in self.operations() for key in op.symbol_keys())
        return {name for name in symbols if name is not None}

    def dump(self, directory: Path, stem: str) -> Path:
        """Write `stem.spike`, and `stem.safetensors` for weights that no earlier dump holds."""
        directory.mkdir(parents=True, exist_ok=True)
        new = {name: np.asarray(value) for name, value in self.weights.items() if name not in self.saved}
        if new:
            write_whole(directory / f"{stem}.safetensors", save(new))
            self.saved |= set(new)
        path = directory / f"{stem}.spike"
        write_whole(path, self.text().encode())
        return path


def _first_line(error: Exception) -> str:
    """What an xDSL error says, without the module that it prints around it."""
    text = str(error.args[0] if error.args else error)
    lines = [line.strip(" ^-") for line in text.splitlines() if line.strip(" ^-")]
    return lines[-1].removeprefix("Operation does not verify: ") if lines else type(error).__name__


def parse(text: str, where: str = "dump") -> ModuleOp:
    """A module from its spelling. Raises CStepError with the line and what would have been right."""
    try:
        module = Parser(context(), text).parse_module()
    except (ParseError, VerifyException) as error:
        line = ""
        if isinstance(error, ParseError):
            line = f"line {text.count(chr(10), 0, error.span.start) + 1}: "
            message = error.msg
        else:
            message = _first_line(error)
        raise CStepError(f"{where}: {line}{message}") from None
    if len(module.body.blocks) != 1:
        raise CStepError(f"{where}: a dump is a list of ops, one after the other")
    stray = next((op for op in module.body.block.ops if not isinstance(op, HouseOperation)), None)
    if stray is not None:
        raise CStepError(f"{where}: {_name(stray)}: only ops of the dialects spike and cstep stand in a dump")
    return module


def _name(op: Operation) -> str:
    return op.name


def load_dump(path: Path) -> Network:
    """The network of a dump, with the weights of the stores beside it, up to its own number."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CStepError(f"{path}: cannot be read as a dump ({error})") from None
    weights: dict[str, Array] = {}
    for store in sorted(path.parent.glob("*.safetensors")):
        if store.stem <= path.stem:
            try:
                weights.update(cast(dict[str, Array], load_file(store)))
            except (SafetensorError, OSError) as error:
                raise CStepError(f"{store}: cannot be read as a weight store ({error})") from None
    network = Network(parse(text, path.name), weights)
    network.verify()
    return network
