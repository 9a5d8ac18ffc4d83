"""record-ranges: calibration finds how large membrane streams become."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10, prod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from xdsl.dialects.builtin import FloatData

from compiler.calibrate.ranges import LEAST_IMAGES
from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from compiler.passes.currents import SOURCES, Group, Role, currents
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.errors import CStepError

DIGITS = 4
"""Significant digits of a range, rounded up: torch sums in another order on another machine."""


@dataclass(frozen=True)
class RecordRanges(NetworkPass):
    """Run calibration inputs, and say of every membrane stream and every real-valued input how large it becomes.

        %c = spike.conv %s, @w, @b kernel=3, padding=1 : !spike.train<T=4, 8x8x64xf32>
        %a = spike.add %x, %c                          : !spike.train<T=4, 8x8x64xf32>
    becomes
        %c = spike.conv %s, @w, @b kernel=3, padding=1 : !spike.train<T=4, 8x8x64xf32>
        %r = spike.range %c most=3.182                 : !spike.train<T=4, 8x8x64xf32>
        %a = spike.add %x, %r                          : !spike.train<T=4, 8x8x64xf32>
        %b = spike.range %a most=6.044                 : !spike.train<T=4, 8x8x64xf32>

    A current that goes to one neuron takes its scale from the neuron's threshold and needs no range; where there is
    nothing else (spikes that are added: Spikformer, QKFormer) no data is needed. Ranges that stand there already stay.
    """

    name = "record-ranges"
    keeps: ClassVar[Keeps] = Keeps.REALS

    images: int = 64
    """At most as many calibration inputs are run, spread over those given."""
    pixels: int = 1 << 21
    """At most as many pixels of theirs, counted at every timestep: ten images of 224x224 with T = 4, not 64, which
    would take minutes. Streams have headroom for what fewer images leave out. No fewer than `LEAST_IMAGES` are run.
    """

    def apply(self, network: Network) -> Network:
        return self.apply_with(network, None)

    def apply_with(self, network: Network, calibration: NDArray[np.float32] | None) -> Network:
        network = network.clone()
        groups = dict.fromkeys(currents(network).values())
        wanted = [group for group in groups if group.role in (Role.STREAM, Role.INPUT) and not group.ranges]
        if not wanted:
            return network
        inputs = _enough(wanted[0], calibration)
        steps = wanted[0].sources[0].result_type.steps or 1
        affordable = max(self.pixels // (steps * prod(inputs.shape[-2:])), LEAST_IMAGES)
        chosen = np.linspace(0, len(inputs) - 1, min(self.images, affordable, len(inputs))).astype(int)
        ranges = [made for group in wanted for made in _insert(group)]
        most = _greatest(network, inputs[chosen])
        for op in ranges:
            op.properties["most"] = FloatData(_rounded_up(most[op.label]))
        return network


def _enough(group: Group, calibration: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The calibration inputs, if they will do."""
    count = 0 if calibration is None else len(calibration)
    if calibration is not None and count >= LEAST_IMAGES:
        return calibration
    given = "no calibration inputs" if calibration is None else f"{count} calibration input{'s' if count != 1 else ''}"
    stream, where = group.sources[0], f" ({group.sources[0].source})" if group.sources[0].source else ""
    kind = "residuals are membranes" if group.role is Role.STREAM else "layers read real numbers"
    raise CStepError(
        f"record-ranges: {given}; {stream.label}{where} needs at least {LEAST_IMAGES}: the network's {kind}, real "
        "numbers whose range only data can tell"
    )


def _insert(group: Group) -> list[spike.Range]:
    """A range behind everything of the group that is computed: layers and additions."""
    ranges: list[spike.Range] = []
    for op in list(group.members):
        if not isinstance(op, (*SOURCES, spike.Add)):
            continue
        made = spike.Range.make(
            op.results[0], result=op.result_type, source=op.source, hint=f"{op.label}.range", most=1.0
        )
        block = op.parent_block()
        assert block is not None
        block.insert_op_after(made, op)
        op.results[0].replace_uses_with_if(made.results[0], lambda use, made=made: use.operation is not made)
        ranges.append(made)
    return ranges


def _greatest(network: Network, inputs: NDArray[np.float32]) -> dict[str, float]:
    """The greatest magnitude that every stream takes over the inputs."""
    executor, most = Executor(network, torch.float32), dict[str, float]()
    for x in inputs:
        for label, values in executor.run(x).streams.items():
            most[label] = max(most.get(label, 0.0), float(np.abs(values).max()))
    return most


def _rounded_up(value: float) -> float:
    """To DIGITS significant digits; a stream that is always 0 may as well be called 1."""
    if value == 0:
        return 1.0
    place = DIGITS - 1 - floor(log10(value))
    return round(float(np.ceil(value * 10.0**place)) / 10.0**place, place)
