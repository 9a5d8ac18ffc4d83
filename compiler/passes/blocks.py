"""Transformer blocks of an integer module: where tokens enter, what acts on each of them by itself, where they leave.

A block is what has one numbered prefix in its labels, `block.3.`, `stage2.0.`, `transformer.blocks.1.`, and attends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spike import SpikeOperation
from compiler.ir.types import Element, Train, shaped
from compiler.passes.rewriting import emitter, insert_behind, refuse, remake, replace_op
from isa.errors import CStepError

ENDS = (spike.IntegerLif, spike.IntegerLevel, spike.Rescale)
"""What currents of tokens become."""
ATTENDS = (spike.Attention, spike.HeadSum, spike.Mask, spike.Multiply)
MIXES_NEIGHBOURS = (spike.MaxPool, spike.Dilate)
VIEWS = (spike.Reshape, spike.Truncate, spike.Extend, spike.Guard)
PREFIX = re.compile(r"((?:[A-Za-z_]\w*\.)+?\d+)\.")


@dataclass(frozen=True, eq=False)
class Block:
    """The part of a block that leaves tokens alone with each other but for attention: its last residual branches."""

    name: str
    entry: SSAValue
    """The residual in front of that part: spikes, counts or a stream, HxWxC or NxC."""
    exit: SSAValue
    """The residual behind the block."""
    ops: tuple[SpikeOperation, ...]
    """All ops of that part, in program order."""
    rows: int
    columns: int
    is_whole: bool
    """Whether that part is all of the block: no branch of it mixes neighbouring tokens."""

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def ends(self) -> list[SpikeOperation]:
        """Neurons and rescales that have every token."""
        return [op for op in self.ops if isinstance(op, ENDS) and _tokens(op.results[0]) == self.tokens]


def blocks_of(network: Network) -> list[Block]:
    """The blocks in program order. Raises CStepError for a module that has none."""
    groups: dict[str, list[SpikeOperation]] = {}
    for op in network.operations():
        found = PREFIX.match(op.label) if isinstance(op, SpikeOperation) and op.results else None
        if found:
            assert isinstance(op, SpikeOperation)
            groups.setdefault(found[1], []).append(op)
    attending = {name: ops for name, ops in groups.items() if any(isinstance(op, ATTENDS) for op in ops)}
    blocks = [block for name, ops in attending.items() if (block := _block(name, ops)) is not None]
    if not blocks:
        raise CStepError(
            "the network has no transformer blocks: no attention under a numbered prefix (block.0., stage1.2.) whose "
            "residual branches leave each token by itself"
        )
    return blocks


def blocks_to_thin(network: Network, name: str) -> list[Block]:
    """The blocks, for a pass of that name that leaves tokens out of them; there is one such pass in a network.

    Raises CStepError for a network that has no blocks, or whose tokens are left out already.
    """
    if any(isinstance(op, spike.KeepTokens | spike.GivenTokens | spike.Halt) for op in network.operations()):
        raise CStepError(f"{name}: the network leaves tokens out already; there can be one such pass")
    try:
        return blocks_of(network)
    except CStepError as error:
        raise CStepError(f"{name}: {error}") from None


def keep_in(block: Block, kept: SSAValue) -> None:
    """Give the ends of a block a kept train, cut to their timesteps."""
    steps = shaped(kept.type).steps or 0
    shorter: dict[int, SSAValue] = {steps: kept}
    for op in block.ends:
        own = op.result_type.steps
        if own is None or own > steps:
            raise refuse(op, f"has {'no time' if own is None else f'T={own}'}; tokens are left out of T={steps}")
        if own not in shorter:
            cut = Train.of(own, shaped(kept.type).sizes, Element.spike())
            shorter[own] = insert_behind(kept, spike.Truncate.make(kept, result=cut, hint=f"{block.name}.kept.{own}"))
        replace_op(op, emitter(op)(remake(op, [op.operands[0], shorter[own]], op.result_type)))


def base(value: SSAValue) -> SSAValue:
    """The value that is regrouped, cut short or guarded to this one."""
    while isinstance(value.owner, VIEWS):
        value = value.owner.operands[0]
    return value


def _block(name: str, ops: list[SpikeOperation]) -> Block | None:
    """The last branches of a group that none of its ops that look at neighbouring tokens is in; None without any."""
    own = set(ops)
    adds = [op for op in ops if isinstance(op, spike.Add)]
    if not adds:
        return None
    residuals, branches = _chain(adds[-1], own)
    parts: list[set[SpikeOperation]] = []
    for branch in branches:  # the last one first
        if any(_looks_around(op) for op in branch):
            break
        parts.append(branch)
    if not parts:
        return None
    inside = set[SpikeOperation]().union(*parts)
    entry = residuals[len(parts)]
    pixels = _pixels(entry)
    if pixels is None:
        return None
    return Block(
        name, entry, adds[-1].results[0], tuple(op for op in ops if op in inside), *pixels, entry.owner not in own
    )


def _chain(last: spike.Add, own: set[SpikeOperation]) -> tuple[list[SSAValue], list[set[SpikeOperation]]]:
    """The residuals of a block, the last first, and the ops between each and the one before it."""
    residuals: list[SSAValue] = [last.results[0]]
    branches: list[set[SpikeOperation]] = []
    while isinstance(add := residuals[-1].owner, spike.Add) and add in own:
        before = next((base(each) for each in add.operands if _is_residual(base(each), own)), None)
        if before is None:
            break
        branches.append({add, *_behind(add, before, own)})
        residuals.append(before)
    return residuals[: len(branches) + 1], branches


def _is_residual(value: SSAValue, own: set[SpikeOperation]) -> bool:
    return value.owner not in own or isinstance(value.owner, spike.Add)


def _behind(op: SpikeOperation, residual: SSAValue, own: set[SpikeOperation]) -> Iterator[SpikeOperation]:
    """The ops of the block that an op needs, back to a residual."""
    seen, ahead = set[SpikeOperation](), [op]
    while ahead:
        for operand in ahead.pop().operands:
            owner = operand.owner
            if operand is residual or owner not in own or owner in seen:
                continue
            assert isinstance(owner, SpikeOperation)
            seen.add(owner)
            ahead.append(owner)
            yield owner


def _looks_around(op: SpikeOperation) -> bool:
    """Whether an op mixes neighbouring tokens."""
    return isinstance(op, MIXES_NEIGHBOURS) or (isinstance(op, spike.Conv) and op.get("kernel") > 1)


def _tokens(value: SSAValue) -> int:
    """Tokens of NxC or HxWxC; 0 for what has none."""
    sizes = shaped(value.type).sizes
    return prod(sizes[:-1]) if len(sizes) > 1 else 0


def _pixels(entry: SSAValue) -> tuple[int, int] | None:
    """Rows and columns of the tokens, from the nearest value in front that has them apart; else one row of them."""
    ahead, tokens = [entry], _tokens(entry)
    while ahead:
        value = ahead.pop(0)
        sizes = shaped(value.type).sizes
        if len(sizes) == 3 and (sizes[0] > 1 or sizes[1] == 1):
            return sizes[0], sizes[1]
        if isinstance(value.owner, SpikeOperation):
            ahead += [each for each in value.owner.operands if _tokens(each) == tokens]
    return (1, tokens) if tokens else None
