"""canonicalise: dead ops go, layout-only ops sink and cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.dialects.builtin import IntAttr

from compiler.ir import spike
from compiler.ir.layout import LAYOUT_OPS, chain_to
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.ir.types import Train, shaped
from compiler.passes.forms import one_form
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, remake, replace_op, reshaped

ELEMENTWISE = (
    *NEURONS,
    spike.Range,
    spike.Scale,
    spike.BatchNorm,
    spike.ChannelScale,
    spike.Add,
    spike.Multiply,
    spike.SumTime,
)
"""Ops that compute the same whatever the layout; the axis of a batch norm or a channel scale follows."""


@dataclass(frozen=True)
class Canonicalise(NetworkPass):
    """Drop dead ops, and sink reshapes and transposes through elementwise ops until they cancel.

        %t = spike.transpose %c order=[2, 0, 1]          : !spike.train<T=4, 8x32x32xf32>
        %s = spike.lif %t tau=2.0, threshold=1.0         : !spike.train<T=4, 8x32x32xi1>
        %u = spike.transpose %s order=[1, 2, 0]          : !spike.train<T=4, 32x32x8xi1>
        %d = spike.conv %u, @w kernel=3, padding=1       : !spike.train<T=4, 32x32x16xf32>
    becomes
        %s = spike.lif %c tau=2.0, threshold=1.0         : !spike.train<T=4, 32x32x8xi1>
        %d = spike.conv %s, @w kernel=3, padding=1       : !spike.train<T=4, 32x32x16xf32>
    """

    name = "canonicalise"
    keeps: ClassVar[Keeps] = Keeps.VALUES

    def apply(self, network: Network) -> Network:
        network = network.clone()
        changed = True
        while changed:
            changed = _drop_dead(network)
            for op in list(network.operations()):
                if op.parent is None:
                    continue
                assert isinstance(op, spike.SpikeOperation)
                changed |= (
                    _collapse(op)
                    or _sink(op)
                    or _reduce_first(op)
                    or _lift_layout(op)
                    or _begin_time(op)
                    or one_form(network, op)
                )
        return network


def _drop_dead(network: Network) -> bool:
    """Erase ops whose result nothing uses, last ones first."""
    changed = False
    for op in reversed(list(network.operations())):
        if op.results and not op.results[0].uses and not isinstance(op, spike.Input):
            op.detach()
            op.erase()
            changed = True
    return changed


def _collapse(op: spike.SpikeOperation) -> bool:
    """A chain of layout ops -> the fewest: at most reshape, transpose, reshape."""
    if not isinstance(op, LAYOUT_OPS) or all(isinstance(use.operation, LAYOUT_OPS) for use in op.results[0].uses):
        return False  # only the last op of a chain
    source, layout = chain_to(op.results[0])
    needed = layout.length
    length = 0
    value = op.results[0]
    while value is not source:
        length += 1
        assert isinstance(value.owner, LAYOUT_OPS)
        value = value.owner.operands[0]
    if needed >= length:
        return False
    emit = emitter(op)
    replace_op(op, layout.emit(source, emit, op.source, op.label))
    return True


def _sink(op: spike.SpikeOperation) -> bool:
    """elementwise(layout(x)) -> layout(elementwise(x)); of two operands, where both have the same layout."""
    if not isinstance(op, ELEMENTWISE) and not _repeats_a_sum(op):
        return False
    chains = [chain_to(operand) for operand in op.operands]
    layout = chains[0][1]
    if any(source is operand for (source, _), operand in zip(chains, op.operands, strict=True)):
        return False
    if not all(layout.same_order(other) for _, other in chains[1:]):
        return False
    emit = emitter(op)
    kind = op.result_type.with_sizes(layout.sizes)
    new = remake(op, [reshaped(source, kind, emit, op) for source, _ in chains], kind)
    if isinstance(op, spike.BatchNorm | spike.ChannelScale):
        axis = layout.source_dimension(op.get("axis"))
        if axis is None:
            return False
        new.properties["axis"] = IntAttr(axis)
    replace_op(op, layout.emit(emit(new), emit, op.source, f"{op.label}.layout"))
    return True


def _reduce_first(op: spike.SpikeOperation) -> bool:
    """reduction(layout(x)) -> layout(reduction(reshape(x))), where what is reduced lies side by side in x."""
    if not isinstance(op, spike.Mean | spike.Sum):
        return False
    source, layout = chain_to(op.operands[0])
    reduction = layout.reduced(op.get("axis"))
    if source is op.operands[0] or reduction is None:
        return False
    sizes, axis, rest = reduction
    if layout.keeps_order and tuple(sizes) == op.operand_type().sizes:
        return False
    emit = emitter(op)
    rows = reshaped(source, shaped(source.type).with_sizes(sizes), emit, op)
    reduced = remake(op, [rows], op.result_type.with_sizes(rest.sizes))
    reduced.properties["axis"] = IntAttr(axis)
    replace_op(op, rest.emit(emit(reduced), emit, op.source, f"{op.label}.layout"))
    return True


def _lift_layout(op: spike.SpikeOperation) -> bool:
    """layout(repeat(x)) -> repeat(layout(x)), where x is the image, or layers of it."""
    repeat = op.operands[0].owner if op.operands else None
    if not isinstance(op, LAYOUT_OPS) or not isinstance(repeat, spike.Repeat) or _repeats_a_sum(repeat):
        return False
    emit = emitter(op)
    x = repeat.operands[0]
    moved = emit(remake(op, [x], shaped(x.type).with_sizes(op.result_type.sizes)))
    replace_op(op, emit(remake(repeat, [moved], op.result_type)))
    return True


def _repeats_a_sum(op: spike.SpikeOperation) -> bool:
    """Whether an op repeats a sum over time: in the middle of a network, layouts sink through it as through others."""
    return isinstance(op, spike.Repeat) and isinstance(chain_to(op.operands[0])[0].owner, spike.SumTime)


def _begin_time(op: spike.SpikeOperation) -> bool:
    """repeat(weighted(x)) -> weighted(repeat(x)): every layer is computed at every timestep, as the model says."""
    weighted = op.operands[0].owner if op.operands else None
    if not isinstance(op, spike.Repeat) or not isinstance(weighted, spike.Conv | spike.Linear | spike.BatchNorm):
        return False
    steps = op.result_type.steps
    assert steps is not None
    emit = emitter(op)
    x = weighted.operands[0]
    kind = shaped(x.type)
    repeated = emit(remake(op, [x], Train.of(steps, kind.sizes, kind.element)))
    made = weighted.result_type
    replace_op(op, emit(remake(weighted, [repeated], Train.of(steps, made.sizes, made.element))))
    return True
