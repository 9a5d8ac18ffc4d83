"""canonicalise: dead ops go, layout-only ops sink and cancel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from xdsl.dialects.builtin import IntAttr
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import LAYOUT_OPS, Emit, Layout, chain_to
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.ir.types import Shaped, Train, shaped
from compiler.passes.network_pass import Keeps, NetworkPass

ELEMENTWISE = (*NEURONS, spike.Range, spike.Scale, spike.BatchNorm, spike.ChannelScale, spike.Add)
"""Ops that compute the same whatever the layout; a batch norm's axis follows."""


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
                changed |= _collapse(op) or _sink(op) or _reduce_first(op) or _lift_layout(op) or _begin_time(op)
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


def _emitter(before: spike.SpikeOperation) -> Emit:
    """Inserts ops before `before`."""

    def emit(op: spike.SpikeOperation) -> SSAValue:
        block = before.parent_block()
        assert block is not None
        block.insert_op_before(op, before)
        return op.results[0]

    return emit


def _replace(op: spike.SpikeOperation, value: SSAValue) -> None:
    op.results[0].replace_all_uses_with(value)
    op.detach()
    op.erase()


def _collapse(op: spike.SpikeOperation) -> bool:
    """A chain of layout ops -> at most reshape, transpose, reshape."""
    if not isinstance(op, LAYOUT_OPS) or all(isinstance(use.operation, LAYOUT_OPS) for use in op.results[0].uses):
        return False  # only the last op of a chain
    source, layout = chain_to(op.results[0])
    needed = _length(layout)
    length = 0
    value = op.results[0]
    while value is not source:
        length += 1
        assert isinstance(value.owner, LAYOUT_OPS)
        value = value.owner.operands[0]
    if needed >= length:
        return False
    emit = _emitter(op)
    _replace(op, layout.emit(source, emit, op.source, op.label))
    return True


def _length(layout: Layout) -> int:
    """Ops that `layout` needs."""
    if layout.keeps_order:
        return int(layout.sizes != layout.result_sizes)
    runs = layout.runs()
    sizes = [f.size for group in layout.source for f in group]
    widths = tuple(prod(sizes[place] for place in run) for run in sorted(runs))
    result = tuple(prod(sizes[place] for place in run) for run in runs)
    return 1 + int(widths != layout.sizes) + int(result != layout.result_sizes)


def _sink(op: spike.SpikeOperation) -> bool:
    """elementwise(layout(x)) -> layout(elementwise(x)); of an add, where both operands have the same layout."""
    if not isinstance(op, ELEMENTWISE):
        return False
    chains = [chain_to(operand) for operand in op.operands]
    layout = chains[0][1]
    if any(source is operand for (source, _), operand in zip(chains, op.operands, strict=True)):
        return False
    if not all(layout.same_as(other) for _, other in chains[1:]):
        return False
    new = _remake(op, [source for source, _ in chains], op.result_type.with_sizes(layout.sizes))
    if isinstance(op, spike.BatchNorm):
        axis = layout.source_dimension(op.get("axis"))
        if axis is None:
            return False
        new.properties["axis"] = IntAttr(axis)
    emit = _emitter(op)
    _replace(op, layout.emit(emit(new), emit, op.source, f"{op.label}.layout"))
    return True


def _reduce_first(op: spike.SpikeOperation) -> bool:
    """mean(transpose(x)) -> mean(reshape(x)): a mean over what lies side by side needs no transpose."""
    if not isinstance(op, spike.Mean | spike.Sum):
        return False
    source, layout = chain_to(op.operands[0])
    if source is op.operands[0] or layout.keeps_order:
        return False
    places, order = layout.places(op.get("axis")), layout.permutation
    rest = [place for place in order if place not in places]
    first, last = min(places, default=0), max(places, default=-1)
    if len(places) != last - first + 1 or rest != sorted(rest):
        return False
    sizes = [factor.size for group in layout.source for factor in group]
    before, after = ([prod(part)] if prod(part) > 1 else [] for part in (sizes[:first], sizes[last + 1 :]))
    emit = _emitter(op)
    kind = shaped(source.type)
    rows = kind.with_sizes([*before, prod(sizes[first : last + 1]), *after])
    flat = emit(spike.Reshape.make(source, result=rows, source=op.source, hint=f"{op.label}.rows"))
    reduced = _remake(op, [flat], op.result_type.with_sizes([*before, *after]))
    reduced.properties["axis"] = IntAttr(len(before))
    made = emit(reduced)
    if reduced.result_type != op.result_type:
        made = emit(spike.Reshape.make(made, result=op.result_type, source=op.source, hint=f"{op.label}.layout"))
    _replace(op, made)
    return True


def _remake(op: spike.SpikeOperation, operands: list[SSAValue], result: Shaped) -> spike.SpikeOperation:
    """The same op on other operands."""
    new = type(op)(
        operands=operands, result_types=[result], properties=dict(op.properties), attributes=dict(op.attributes)
    )
    new.results[0].name_hint = op.results[0].name_hint
    return new


def _lift_layout(op: spike.SpikeOperation) -> bool:
    """layout(repeat(x)) -> repeat(layout(x))."""
    repeat = op.operands[0].owner if op.operands else None
    if not isinstance(op, LAYOUT_OPS) or not isinstance(repeat, spike.Repeat):
        return False
    emit = _emitter(op)
    x = repeat.operands[0]
    moved = emit(_remake(op, [x], shaped(x.type).with_sizes(op.result_type.sizes)))
    _replace(op, emit(_remake(repeat, [moved], op.result_type)))
    return True


def _begin_time(op: spike.SpikeOperation) -> bool:
    """repeat(weighted(x)) -> weighted(repeat(x)): every layer is computed at every timestep, as the model says."""
    weighted = op.operands[0].owner if op.operands else None
    if not isinstance(op, spike.Repeat) or not isinstance(weighted, spike.Conv | spike.Linear | spike.BatchNorm):
        return False
    steps = op.result_type.steps
    assert steps is not None
    emit = _emitter(op)
    x = weighted.operands[0]
    kind = shaped(x.type)
    repeated = emit(_remake(op, [x], Train.of(steps, kind.sizes, kind.element)))
    made = weighted.result_type
    _replace(op, emit(_remake(weighted, [repeated], Train.of(steps, made.sizes, made.element))))
    return True
