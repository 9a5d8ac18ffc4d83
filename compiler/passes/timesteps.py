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


AHEAD_OF_HEADS = (spike.Align, spike.Reshape, spike.Transpose, spike.Sum, spike.SumTime)
"""What may stand between a sum over time and a classifier."""


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


def makes_features(value: SSAValue) -> bool:
    """Whether only a classifier reads a value, or sums of it: a sum over time that does not is one of the network's."""
    readers = users(value)
    return bool(readers) and all(
        makes_logits(op.results[0])
        if isinstance(op, spike.Linear)
        else isinstance(op, AHEAD_OF_HEADS) and makes_features(op.results[0])
        for op in readers
    )


def sums_of_logits(network: Network) -> list[spike.SumTime]:
    """The sums over time that the logits are made of."""
    sums = [op for op in network.operations() if isinstance(op, spike.SumTime)]
    return [op for op in sums if makes_logits(op.results[0]) or makes_features(op.results[0])]


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
