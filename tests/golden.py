"""Golden files of passes: the pipeline, the module before it, `// becomes`, the module after it.

Weights are made up from their names, in the shapes that the ops imply; a comment gives what no op implies:

    // @conv.tiles: int8 [288]            so many numbers
    // @conv.constants: int32 [24]        in a dump of the cstep dialect, so many numbers as bytes
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp

from compiler.ir import spike
from compiler.ir.cstep import ConstantOp, InputOp
from compiler.ir.network import Network, parse
from compiler.ir.spelling import HouseOperation

MARK = "// becomes\n"
Drawn = tuple[str, float, float]
REALS: dict[str, Drawn] = dict.fromkeys(("weight", "bias", "value"), ("float32", -1.0, 1.0))
NORMS: dict[str, Drawn] = {
    "weight": ("float32", 0.5, 1.5), "mean": ("float32", -0.5, 0.5), "variance": ("float32", 0.5, 2.0),
}  # fmt: skip
INTEGERS: dict[str, Drawn] = {
    "weight": ("int8", -127, 128), "bias": ("int32", -200, 200), "threshold": ("int32", 1, 300),
    "multiplier": ("int32", 1, 65536),
}  # fmt: skip
COMMAND = re.compile(r'// cstep opt --passes "(.*)"')
WEIGHT = re.compile(r"// @(\S+): (\w+) \[([\d, ]+)\]")


@dataclass(frozen=True)
class Golden:
    """A golden file."""

    path: Path
    passes: str
    before: str
    after: str

    @classmethod
    def read(cls, path: Path) -> Golden:
        before, _, after = path.read_text().partition(MARK)
        command = COMMAND.match(before)
        assert command, f'{path.name}: the first line must read // cstep opt --passes "..."'
        return cls(path, command[1], before, after)

    def network(self) -> Network:
        """The module before the passes, with weights."""
        module = parse(self.before, self.path.name)
        network = Network(module, made_up_weights(module, self.before))
        network.verify()
        return network

    def update(self, after: str) -> None:
        self.path.write_text(self.before + MARK + after)


def spread(name: str, count: int) -> NDArray[np.float64]:
    """Numbers in -1..1 that look random and depend on nothing but the name."""
    indices = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))
    mixed = (indices ^ (indices >> np.uint64(15))) * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
    return (mixed >> np.uint64(16)).astype(np.float64) / 32768 - 1


def made_up(name: str, shape: tuple[int, ...], dtype: str, low: float, high: float) -> NDArray[Any]:
    """A weight between `low` and `high`."""
    values = (spread(name, prod(shape)) + 1) / 2 * (high - low) + low
    return np.floor(values).astype(dtype).reshape(shape) if "int" in dtype else values.astype(dtype).reshape(shape)


def made_up_weights(module: ModuleOp, text: str) -> dict[str, NDArray[Any]]:
    """A weight for every name in the module."""
    weights: dict[str, NDArray[Any]] = {}
    given = {name: (dtype, tuple(map(int, sizes.split(",")))) for name, dtype, sizes in WEIGHT.findall(text)}
    for op in module.body.block.ops:
        assert isinstance(op, HouseOperation)
        for key, (shape, dtype, low, high) in _implied(op).items():
            name = op.symbol(key)
            if name is not None and name not in given:
                weights[name] = made_up(name, shape, dtype, low, high)
    in_bytes = any(isinstance(op, ConstantOp) for op in module.body.block.ops)
    for name, (dtype, shape) in given.items():
        # Bytes of a program: weights as they come, biases and thresholds a few hundred.
        low, high = (-127, 128) if dtype == "int8" else (1, 300)
        value = made_up(name, shape, dtype, low, high)
        weights[name] = value.reshape(-1).view(np.uint8) if in_bytes else value
    return weights


def _implied(op: HouseOperation) -> dict[str, tuple[tuple[int, ...], str, float, float]]:
    """Shape, type and range of the weights that an op names."""
    real = not op.results or not isinstance(op, spike.SpikeOperation) or op.result_type.element.is_real
    ranges = {**REALS, **NORMS} if isinstance(op, spike.BatchNorm) else REALS if real else INTEGERS
    return {key: (shape, *ranges[key]) for key, shape in op.weight_shapes().items()}


def made_up_inputs(network: Network, count: int) -> NDArray[np.float32]:
    """Inputs [count, ...] for the module."""
    for op in network.operations():
        if isinstance(op, spike.Input):
            kind = op.result_type
            sizes = kind.sizes if kind.steps is None else (kind.steps, *kind.sizes)
            break
        if isinstance(op, InputOp):
            sizes = op.get("shape") if op.get("kind") == "image" else (op.get("steps"), *op.get("shape"))
            break
    else:
        raise AssertionError("the module has no input")
    values = spread("input", count * prod(sizes)).reshape(count, *sizes)
    return (values * 2).astype(np.float32)
