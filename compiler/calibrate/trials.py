"""Programs on trial: the integer model with lossy passes behind it, compiled and run on the same inputs.

The compiler does not know the emulator; whoever calibrates hands it a function that runs a program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from compiler.calibrate.ranges import image_scale
from compiler.calibrate.timesteps import longest_train
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.pipeline import DEFAULT_PASSES, compile_network, parse_passes
from compiler.settings import LOWERING, MASKING, Parts
from isa.machine import Machine
from isa.program import Program, Provenance


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a program gives on B inputs."""

    logits: NDArray[np.int64]
    """[B, classes]."""
    decisions: NDArray[np.int64]
    """[B, exits, classes]: cumulative logits at every exit point; 0 where it was not reached."""
    steps: NDArray[np.int64]
    """[B]: timesteps run."""
    operations: NDArray[np.int64]
    """[B]: accumulations, sharing off."""


Emulate = Callable[[Program, NDArray[np.float32]], Outcome]
NOWHERE = Provenance(model="", checkpoint="", calibration="", pipeline="", schedule="", version="")


@dataclass(frozen=True, eq=False)
class Trials:
    """An integer model, the inputs [B, ...] that every trial is run on, and who runs them."""

    integer: Network
    machine: Machine
    inputs: NDArray[np.float32]
    emulate: Emulate

    def program(self, parts: Parts, schedule: str = "layers", hoist: bool = True) -> Program:
        """The program with these passes."""
        return compile_integer(self.integer, self.machine, parts, schedule, hoist=hoist)

    def run(self, parts: Parts) -> Outcome:
        """What it gives."""
        return self.emulate(self.program(parts), self.inputs)

    @property
    def timesteps(self) -> int:
        """Of the network: the longest train."""
        return longest_train(self.integer)

    @property
    def output(self) -> spike.Output:
        """The module's last op, which has the logits' scale."""
        return next(op for op in self.integer.operations() if isinstance(op, spike.Output))

    @property
    def scale(self) -> float:
        """What integer logits of all timesteps are multiplied with to be the model's."""
        return self.output.get("scale")

    @property
    def classes(self) -> int:
        return prod(self.output.operand_type().sizes)


def integer_network(
    network: Network, machine: Machine, calibration: NDArray[np.float32], scale: float | None
) -> Network:
    """An imported network as integers, before any pass that acts on time.

    `scale` is the real value of the image's integer 1; None: that of the calibration images [B, ...].
    """
    text = _ranges(DEFAULT_PASSES, machine, calibration, scale)
    cut = MASKING if MASKING in text else LOWERING
    for each in parse_passes(text.partition(cut)[0].rstrip(",")):
        network = each.apply_with(network, calibration)
        network.verify()
    return network


def compile_integer(
    integer: Network, machine: Machine, parts: Parts, schedule: str = "layers", *, hoist: bool = True
) -> Program:
    """The program of an integer network, with passes that act on time and channels."""
    text = parts.pipeline(hoist)
    cut = parts.timesteps + MASKING if MASKING in text else LOWERING
    _, found, rest = text.partition(cut)
    return compile_network(
        integer,
        machine=machine,
        calibration=np.zeros((0, 1), np.float32),
        check=None,
        provenance=NOWHERE,
        normalisation=((), ()),
        passes=found + rest,
        schedule=schedule,
    ).program


def _ranges(text: str, machine: Machine, calibration: NDArray[np.float32], scale: float | None) -> str:
    found = image_scale(calibration) if scale is None else scale
    return text.replace("SCALE", repr(found)).replace("BITS", str(machine.accumulator_bits))
