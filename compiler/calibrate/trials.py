"""Programs on trial: the integer model with lossy passes behind it, compiled and run on the same inputs.

The compiler does not know the emulator; whoever calibrates hands it a function that runs a program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from compiler.backend.emit import Normalisation
from compiler.calibrate.ranges import image_scale
from compiler.calibrate.timesteps import longest_train
from compiler.check import Emulate as EmulateChecked
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.pipeline import DEFAULT_PASSES, Compiled, compile_network, parse_passes
from compiler.settings import MASKING, Parts
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
    costs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])
    """[B] each: what the run costs by name, where whoever runs it was asked for that."""


Emulate = Callable[[Program, NDArray[np.float32]], Outcome]
NOWHERE = Provenance(model="", checkpoint="", calibration="", pipeline="", schedule="", version="")


@dataclass(frozen=True, eq=False)
class Trials:
    """An integer model, the inputs [B, ...] that every trial is run on, and who runs them."""

    integer: Network
    machine: Machine
    inputs: NDArray[np.float32]
    emulate: Emulate
    calibration: NDArray[np.float32] | None = None
    """Inputs that passes may look at."""

    def program(self, parts: Parts, schedule: str = "layers", hoist: bool = True) -> Program:
        """The program with these passes."""
        return compile_integer(
            self.integer, self.machine, parts, schedule, hoist=hoist, calibration=self.calibration
        ).program

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


def front_passes(
    machine: Machine, calibration: NDArray[np.float32], scale: float | None, parts: Parts | None = None
) -> str:
    """The default pipeline up to the integers, before any pass that acts on time; a comma at its end.

    `parts` says what comes before all of it.

    `scale` is the real value of the image's integer 1; None: that of the calibration images [B, ...].
    """
    found = image_scale(calibration) if scale is None else scale
    front, _, _ = DEFAULT_PASSES.partition(MASKING)
    front = (parts.patch_splitting if parts else "") + front
    return front.replace("SCALE", repr(found)).replace("BITS", str(machine.accumulator_bits))


def integer_network(network: Network, front: str, calibration: NDArray[np.float32]) -> Network:
    """An imported network as integers, by `front_passes`."""
    for each in parse_passes(front.rstrip(",")):
        network = each.apply_with(network, calibration)
        network.verify()
    return network


def compile_integer(
    integer: Network,
    machine: Machine,
    parts: Parts,
    schedule: str = "layers",
    *,
    hoist: bool = True,
    front: str = "",
    provenance: Provenance = NOWHERE,
    normalisation: Normalisation = ((), ()),
    check: NDArray[np.float32] | None = None,
    emulate: EmulateChecked | None = None,
    calibration: NDArray[np.float32] | None = None,
) -> Compiled:
    """Compile an integer network on, with passes that act on time and channels; the rest as for `compile_network`.

    `front` are the passes that made it: with them, and the same provenance, the program is that of `cstep compile`.
    """
    text = parts.pipeline(hoist)
    cut = parts.timesteps + MASKING
    compiled = compile_network(
        integer,
        machine=machine,
        calibration=np.zeros((0, 1), np.float32) if calibration is None else calibration,
        check=check,
        provenance=provenance,
        normalisation=normalisation,
        passes=cut + text.partition(cut)[2],
        schedule=schedule,
        emulate=emulate,
    )
    header = compiled.program.header
    whole = header.provenance.model_copy(update={"pipeline": front + header.provenance.pipeline})
    program = replace(compiled.program, header=header.model_copy(update={"provenance": whole}))
    return replace(compiled, program=program)
