"""What passes on time ask of an integer module; nothing is changed."""

from __future__ import annotations

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.ir.types import shaped
from compiler.passes.rewriting import users

BEHIND_HEADS = (
    spike.Align, spike.Add, spike.SumTime, spike.RunningSum, spike.Reshape, spike.Extend, spike.Truncate, spike.Exit,
)  # fmt: skip
"""What may stand between a classifier and the output."""


def network_steps(network: Network) -> int:
    """The most timesteps that any train has; 1 where there is no train."""
    values = [op.results[0] for op in network.operations() if isinstance(op, spike.SpikeOperation) and op.results]
    return max((steps for value in values if (steps := shaped(value.type).steps) is not None), default=1)


def makes_logits(value: SSAValue) -> bool:
    """Whether only sums over time, and additions of other logits, stand between a value and the output."""
    readers = users(value)
    return bool(readers) and all(
        isinstance(op, spike.Output) or (isinstance(op, BEHIND_HEADS) and makes_logits(op.results[0])) for op in readers
    )


def timesteps_of(network: Network) -> dict[str, int]:
    """T_l by label: at how many timesteps each neuron layer's output is not masked, in program order."""
    steps: dict[str, int] = {}
    every = network_steps(network)
    for op in network.operations():
        if isinstance(op, NEURONS):
            own = shaped(op.results[0].type).steps
            mask = op.get("mask")
            steps[op.label] = sum(mask) if mask else every if own is None else own
    return steps


def average_timesteps(network: Network) -> float:
    """T_avg: the mean of `timesteps_of` over the neuron layers (DTS-SNN); 0 where there are none."""
    steps = timesteps_of(network)
    return sum(steps.values()) / len(steps) if steps else 0.0
