"""At which timesteps a stage computes what: layers have timesteps of their own, and some are computed ahead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.ir import SSAValue

from compiler.backend.views import Views, least
from compiler.ir import spike
from compiler.ir.types import shaped


@dataclass(frozen=True)
class Timing:
    """At which timesteps a stage computes what."""

    steps: int = 1
    """Timesteps of its result in DRAM."""
    sums: int = 1
    """Timesteps at which it computes sums of its inputs; behind them they are 0, and currents are biases alone."""
    ends: int = 1
    """Timesteps at which its currents become spikes or values; behind them, only what is added to them goes on."""
    is_still: bool = False
    """Its sums are the same at every timestep: they are made once, ahead, for all its timesteps."""
    cuts: tuple[int, ...] = ()
    """Timesteps at which a window begins, because something is different from there on."""
    breaks: tuple[int, ...] = ()
    """Timesteps at which a call begins: every tile ends what is before them first."""
    is_ahead: bool = False
    """Something is summed over time that is made of it: all its timesteps are computed before any other segment."""


def timing_of_sums(
    views: Views,
    op: spike.SpikeOperation,
    sums: SSAValue,
    inputs: Iterable[SSAValue],
    result: SSAValue,
    addend: SSAValue | None,
) -> Timing:
    """The timing of a stage whose sums of `inputs` end in `op`, with what is added to that, as `result`.

    Neurons on sums that are the same at every timestep fire ahead. A stream of them is made at every timestep where its
    type says so.
    """
    whole, own = shaped(result.type).steps, op.result_type.steps
    is_neurons = isinstance(op, spike.IntegerLif | spike.IntegerLevel)
    is_still = views.is_still(sums) and (is_neurons or own is None)
    lives = [shaped(each.type).steps for each in views.chain(sums)]
    if not is_still:
        lives += [views.live(each) for each in inputs]
    ends = own or 1
    summed = min(ends, least(lives) or ends)
    added = 0 if addend is None else least([views.live(addend), whole]) or 1
    steps = max(ends, added)
    mask = op.get("mask") if is_neurons else ()
    changes = (step for step in range(1, len(mask)) if mask[step] != mask[step - 1])
    return Timing(steps, summed, ends, is_still, cuts((summed, ends, added, *changes), steps))


def timing_of_trains(views: Views, result: SSAValue, inputs: Iterable[SSAValue]) -> Timing:
    """The timing of a stage that works on trains or streams as they lie in DRAM."""
    steps = views.live(result) or 1
    lives = (views.live(value) or steps for value in inputs)
    return Timing(steps, steps, steps, shaped(result.type).steps is None, cuts(lives, steps))


def cuts(steps: Iterable[int], last: int) -> tuple[int, ...]:
    """Timesteps in the middle at which something changes, in order."""
    return tuple(sorted({step for step in steps if 0 < step < last}))
