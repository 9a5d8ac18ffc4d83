"""Where guards stand in an integer module, and which stages skip work by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xdsl.ir import SSAValue

from compiler.backend.guards import ChannelGuard, Guards
from compiler.backend.match import refuse
from compiler.backend.stages import EndedStage, Neurons, Stage, WeightedStage
from compiler.backend.views import Views
from compiler.ir import spike

NEURONS = (spike.IntegerLif, spike.IntegerLevel)


def guards_of(stages: Iterable[Stage], views: Views) -> Guards:
    """The guards of a module's stages. Raises CStepError for one that the machine has no way to honour."""
    guards, honoured = Guards(), set[spike.Guard]()
    stages = list(stages)
    for stage in stages:
        made = stage.result
        if isinstance(stage, EndedStage) and isinstance(stage.end, Neurons) and made is not None:
            op = _behind(_neurons_of(stage))
            if op is not None:
                honoured.add(op)
                counted = op.operands[0]
                guards.guard_columns(made, ChannelGuard(counted, made, op.get("after"), op.get("threshold")))
        if isinstance(stage, WeightedStage) and made is not None:
            op = _in_front(stage.inputs[0], views)
            if op is not None:
                honoured.add(op)
                train = views.memory(op.operands[0])
                guards.guard_rows(made, ChannelGuard(train, train, op.get("after"), op.get("threshold")))
    for stage in stages:
        for value in stage.reads:
            _check_read(stage, value, views, honoured)
    return guards


def with_guards(stage: Stage, guards: Guards) -> Stage:
    """The stage with windows that end where its guards begin; what its own neurons' guard needs is computed first."""
    if stage.result is None:
        return stage
    timing, own = stage.timing, guards.columns.get(stage.result)
    inside = {cut for cut in guards.cuts(stage.result) if 0 < cut < timing.steps}
    breaks = {own.after} & inside if own else set[int]()
    cuts = tuple(sorted({*timing.cuts, *inside}))
    return replace(stage, timing=replace(timing, cuts=cuts, breaks=tuple(sorted({*timing.breaks, *breaks}))))


def neurons_behind(value: SSAValue) -> SSAValue:
    """What a guard that skips columns guards; any other value is itself."""
    owner = value.owner
    return owner.operands[0] if isinstance(owner, spike.Guard) and owner.get("skips") != "rows" else value


def _neurons_of(stage: EndedStage) -> SSAValue:
    """The spikes that a stage's neurons make, before anything is added to them."""
    value = stage.result
    assert value is not None
    if stage.addend is not None:
        assert isinstance(value.owner, spike.Add)
        left, right = value.owner.operands
        value = right if left is stage.addend else left
    while isinstance(value.owner, spike.Guard | spike.Extend):
        value = value.owner.operands[0]
    return value


def _behind(neurons: SSAValue) -> spike.Guard | None:
    """The guard right behind neurons that keeps their silent columns from being computed, or None."""
    readers = [use.operation for use in neurons.uses]
    found = [each for each in readers if isinstance(each, spike.Guard) and each.get("skips") != "rows"]
    if not found:
        return None
    if len(readers) > 1:
        raise refuse(found[0], f"skips={found[0].get('skips')}: whatever reads the neurons must read them guarded")
    return found[0]


def _in_front(operand: SSAValue, views: Views) -> spike.Guard | None:
    """The guard through which a weighted layer reads a train, so that it reads no rows of silent channels, or None."""
    found = [
        value.owner
        for value in views.chain(operand)
        if isinstance(value.owner, spike.Guard) and value.owner.get("skips") != "columns"
    ]
    if len(found) > 1 and found[1].get("skips") == "rows":
        raise refuse(found[0], f"guards what {found[1].label} guards already; a train has one guard of rows")
    return found[0] if found else None


def _check_read(stage: Stage, value: SSAValue, views: Views, honoured: set[spike.Guard]) -> None:
    """Every guard between a stage and the bytes it reads is honoured: by what makes them, or by this reader."""
    for each in views.chain(value):
        op = each.owner
        if not isinstance(op, spike.Guard):
            continue
        if op.get("skips") != "rows" and op not in honoured:
            raise refuse(op, f"skips={op.get('skips')} stands right behind neurons; elsewhere guards skip rows")
        if op.get("skips") == "rows" and not (isinstance(stage, WeightedStage) and value is stage.inputs[0]):
            raise refuse(op, f"skips=rows is for convolutions and linear layers; {stage.label} reads it")
