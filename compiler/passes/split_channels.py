"""split-channels: a layer whose result is read in slices of channels becomes a layer for each slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import SymbolRefAttr
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import LAYOUT_OPS, Layout, chain_to
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.ir.types import shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import (
    Weighted,
    emitter,
    erase_unread,
    layer_properties,
    only_user,
    remake,
    replace_op,
    reshaped,
    users,
)

CHANNEL_BY_CHANNEL = (*NEURONS, spike.BatchNorm, spike.ChannelScale, spike.Scale, spike.MaxPool, spike.Range)
"""Ops that compute every channel by itself, the last dimension being channels."""


PART = ".channels."
"""Between the name of what was split and a part's number: `qk.channels.0`, `qk.channels.1`, ..."""


def whole_of(label: str) -> str:
    """What a part was split off, by its name; nothing where it is no part."""
    return label.rpartition(PART)[0]


@dataclass(frozen=True)
class SplitChannels(NetworkPass):
    """Give each slice of a fused layer's channels a layer and neurons of its own.

        %c = spike.linear %x, @qk                         : !spike.train<T=4, 64x32xf32>
        %s = spike.lif %c tau=2.0, threshold=1.0          : !spike.train<T=4, 64x32xi1>
        %q = spike.slice %s axis=1, start=0               : !spike.train<T=4, 64x16xi1>
        %k = spike.slice %s axis=1, start=16              : !spike.train<T=4, 64x16xi1>
    becomes
        %c.channels.0 = spike.linear %x, @qk.channels.0   : !spike.train<T=4, 64x16xf32>
        %q = spike.lif %c.channels.0 ...                  : !spike.train<T=4, 64x16xi1>
        %c.channels.1 = spike.linear %x, @qk.channels.1   : !spike.train<T=4, 64x16xf32>
        %k = spike.lif %c.channels.1 ...                  : !spike.train<T=4, 64x16xi1>
    with the neurons called %s.channels.0 and %s.channels.1. Slices may be of views that split the channels, norms and
    pooling may stand between. A slice of what cannot be cut goes into the weights of the layers that read it, as zeros.
    """

    name = "split-channels"
    keeps: ClassVar[Keeps] = Keeps.REALS

    def apply(self, network: Network) -> Network:
        network = network.clone()
        while any(_split(network, op) for op in list(network.operations()) if isinstance(op, spike.Slice)):
            pass
        return network


@dataclass(frozen=True)
class _Cut:
    """A slice as channels start..end of the source of its view, and the view of them that it gives."""

    op: spike.Slice
    start: int
    end: int
    view: Layout


def _split(network: Network, op: spike.Slice) -> bool:
    """Whether what `op` slices was split, or the slice went into the layers that read it."""
    source, _ = chain_to(op.operands[0])
    cuts = [_cut_of(reader) if isinstance(reader, spike.Slice) else None for reader in _readers(source)]
    found = [cut for cut in cuts if cut is not None]
    if len(found) == len(cuts) and _can_cut(source):
        channels = shaped(source.type).sizes[-1]
        ends = sorted({0, channels, *(place for cut in found for place in (cut.start, cut.end))})
        parts = list(pairwise(ends))
        if all((cut.start, cut.end) in parts for cut in found):
            made = {part: _part(network, source, *part, number) for number, part in enumerate(parts)}
            for cut in found:
                emit = emitter(cut.op)
                view = cut.op.operands[0]
                replace_op(cut.op, cut.view.emit(made[cut.start, cut.end], emit, cut.op.source, cut.op.label))
                erase_unread(view)
            return True
    return _into_readers(network, op)


def _readers(value: SSAValue) -> Iterator[spike.SpikeOperation]:
    """What reads a value, through views."""
    for op in users(value):
        if isinstance(op, LAYOUT_OPS):
            yield from _readers(op.results[0])
        else:
            yield op


def _cut_of(op: spike.Slice) -> _Cut | None:
    """A slice along the first factor of its source's channels; None for any other."""
    source, view = chain_to(op.operands[0])
    axis, start, kept = op.get("axis"), op.get("start"), op.result_type.sizes[op.get("axis")]
    sizes = shaped(source.type).sizes
    channels, sliced = view.source[-1], view.result[axis]
    if not sliced or channels[: len(sliced)] != sliced:
        return None
    width = sizes[-1] // op.operand_type().sizes[axis]
    part = Layout((*sizes[:-1], kept * width))
    part.source = [list(group) for group in view.source]
    part.result = [list(group) for group in view.result]
    first = Layout((kept,)).source[0]
    part.source[-1], part.result[axis] = [*first, *channels[len(sliced) :]], first
    part.result_sizes = op.result_type.sizes
    return _Cut(op, start * width, (start + kept) * width, part)


def _can_cut(value: SSAValue) -> bool:
    """Whether a layer and ops that work channel by channel make a value, for nobody else."""
    owner = value.owner
    if isinstance(owner, Weighted):
        return isinstance(owner, spike.Linear) or owner.get("groups") == 1
    if not isinstance(owner, CHANNEL_BY_CHANNEL):
        return False
    if (
        isinstance(owner, spike.BatchNorm | spike.ChannelScale)
        and owner.get("axis") != len(owner.result_type.sizes) - 1
    ):
        return False
    return only_user(owner.operands[0]) is owner and _can_cut(owner.operands[0])


def _part(network: Network, value: SSAValue, start: int, end: int, number: int) -> SSAValue:
    """Channels start..end of a value, computed by themselves; its place is that of the whole."""
    owner = value.owner
    assert isinstance(owner, spike.SpikeOperation)
    symbols = {key: _rows(network, owner, key, start, end, number) for key in owner.symbol_keys()}
    kind = owner.result_type.with_sizes((*owner.result_type.sizes[:-1], end - start))
    label = f"{owner.label}{PART}{number}"
    if isinstance(owner, Weighted):
        x, properties = owner.operands[0], layer_properties(owner)
        made = type(owner).make(x, result=kind, symbols=symbols, source=owner.source, hint=label, **properties)
        return emitter(owner)(made)
    new = remake(owner, [_part(network, owner.operands[0], start, end, number)], kind)
    new.properties |= {key: SymbolRefAttr(name) for key, name in symbols.items() if name is not None}
    new.results[0].name_hint = label
    return emitter(owner)(new)


def _rows(network: Network, op: spike.SpikeOperation, key: str, start: int, end: int, number: int) -> str | None:
    """The part of a weight that belongs to channels start..end, in the store."""
    name = op.symbol(key)
    return None if name is None else network.add_weight(f"{name}{PART}{number}", network.weights[name][start:end])


def _into_readers(network: Network, op: spike.Slice) -> bool:
    """layer(slice(x)) -> layer(x), with weights of 0 for the channels that are not in the slice."""
    readers, sizes = list(_readers(op.results[0])), op.operand_type().sizes
    layers = [reader for reader in readers if isinstance(reader, Weighted) and _reads_channels_of(reader, op)]
    if op.get("axis") != len(sizes) - 1 or not layers or len(layers) != len(readers):
        return False
    for layer in layers:
        name, kept = str(layer.symbol("weight")), layer.operand_type()
        weight = network.weights[name]
        before = op.get("start")
        after = sizes[-1] - before - kept.sizes[-1]
        wide = np.pad(weight, [(0, 0), (before, after), *[(0, 0)] * (weight.ndim - 2)])
        emit = emitter(layer)
        x = reshaped(op.operands[0], kept.with_sizes((*kept.sizes[:-1], sizes[-1])), emit, op)
        new = remake(layer, [x], layer.result_type)
        new.properties["weight"] = SymbolRefAttr(network.add_weight(f"{name}.wide", wide))
        operand = layer.operands[0]
        replace_op(layer, emit(new))
        erase_unread(operand)
    return True


def _reads_channels_of(layer: spike.SpikeOperation, op: spike.Slice) -> bool:
    """Whether a layer's channels are those of `op`, with nothing but pixels moved between, and all of them summed."""
    source, view = chain_to(layer.operands[0])
    same = view.keeps_order and layer.operand_type().sizes[-1] == op.result_type.sizes[-1]
    return source is op.results[0] and same and (isinstance(layer, spike.Linear) or layer.get("groups") == 1)
