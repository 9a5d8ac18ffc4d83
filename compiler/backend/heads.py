"""Where attention cannot hold all its heads at once: every head begins at a spike word of its own in DRAM."""

from __future__ import annotations

from dataclasses import replace

from xdsl.ir import SSAValue

from compiler.backend.stages import AttentionStage, Neurons, Plan, Stage, WeightedStage
from isa.instructions import SPIKES_PER_WORD


def spread_heads(plan: Plan, stage: AttentionStage) -> bool:
    """Let the heads of q, k, v and of the result begin at spike words of their own, and say whether they could.

    A tile of such a train is one head. The layers that make and read these trains must take them head by head:
    attention and weighted layers do. Heads that are whole words already stay as they are.
    """
    q, k, v = (plan.memory(value) for value in stage.inputs)
    assert stage.result is not None
    runs = {q: stage.width, k: stage.width, v: stage.value_width}
    if isinstance(stage.end, Neurons):
        runs[stage.result] = stage.value_width
    runs = {value: run for value, run in runs.items() if run % SPIKES_PER_WORD}
    if not all(_can_spread(plan, value, run) for value, run in runs.items()):
        return False
    values = dict(plan.values)
    for value, run in runs.items():
        values[value] = replace(plan.train(value), run=run)
    plan.values = values
    return bool(runs)


def _can_spread(plan: Plan, value: SSAValue, run: int) -> bool:
    """Whether all that makes or reads a train works on runs of that many channels."""
    info = plan.train(value)
    touching = [stage for stage in plan.stages if stage.result is value or value in map(plan.memory, stage.reads)]
    return info.run in (0, run) and all(_works_on_runs(plan, stage, value) for stage in touching)


def _works_on_runs(plan: Plan, stage: Stage, value: SSAValue) -> bool:
    if not isinstance(stage, WeightedStage | AttentionStage):
        return False
    if stage.addend is not None and (stage.result is value or plan.memory(stage.addend) is value):
        return False
    return isinstance(stage, AttentionStage) or (stage.operation != "depthwise" and stage.groups == 1)
