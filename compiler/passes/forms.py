"""One form for what has several: a part of canonicalise."""

from __future__ import annotations

from math import prod

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.layout import Layout, chain_to
from compiler.ir.network import Network
from compiler.ir.types import Shaped, shaped
from compiler.passes.currents import reaches_output
from compiler.passes.rewriting import emitter, replace_op, reshaped, rows_of


def one_form(network: Network, op: spike.SpikeOperation) -> bool:
    """Whether `op` was of another form than those below, and was replaced by one of them.

    A convolution of one pixel is a linear layer. A linear layer over a whole image is a convolution by a window of the
    image's size, or, in the head, where the image is not square, and of tokens, a linear layer over them row by row.
    A max-pool over tokens and the channels of heads is a dilation. Attention of transposed heads is attention.
    """
    if isinstance(op, spike.Conv):
        return _pixel_by_pixel(network, op)
    if isinstance(op, spike.MaxPool):
        return _dilated(op)
    if isinstance(op, spike.Attention):
        return _turned(op)
    return isinstance(op, spike.Linear) and _over_an_image(network, op)


def _pixel_by_pixel(network: Network, op: spike.Conv) -> bool:
    """conv kernel=1 of HxWxC -> linear of HxWxC."""
    if [op.get(key) for key in ("kernel", "stride", "padding", "groups")] != [1, 1, 0, 1]:
        return False
    name = str(op.symbol("weight"))
    matrix = network.add_weight(f"{name}.matrix", network.weights[name][:, :, 0, 0])
    _replace(op, spike.Linear, op.operands[0], op.result_type, matrix)
    return True


def _over_an_image(network: Network, op: spike.Linear) -> bool:
    """linear of a view of HxWxC as one row -> conv of HxWxC, or linear of its elements in row-major order."""
    source, layout = chain_to(op.operands[0])
    sizes = shaped(source.type).sizes
    if len(op.operand_type().sizes) != 1 or len(sizes) < 2 or prod(sizes) == sizes[-1]:
        return False
    square = len(sizes) == 3 and sizes[0] == sizes[1] and not reaches_output(op.results[0])
    if not square and layout.keeps_order:
        return False
    name = str(op.symbol("weight"))
    weight = network.weights[name]
    rows = np.empty_like(weight)
    rows[:, layout.positions().reshape(-1)] = weight
    result = op.result_type
    if square:
        window = network.add_weight(f"{name}.window", rows.reshape(-1, *sizes).transpose(0, 3, 1, 2))
        pixel = result.with_sizes((1, 1, result.sizes[0]))
        _replace(op, spike.Conv, source, pixel, window, kernel=sizes[0])
    else:
        flat = reshaped(source, op.operand_type(), emitter(op), op)
        _replace(op, spike.Linear, flat, result, network.add_weight(f"{name}.rows", rows))
    return True


def _dilated(op: spike.MaxPool) -> bool:
    """max-pool of view(x: NxC) as N x width x heads -> view of dilate(x)."""
    source, layout = chain_to(op.operands[0])
    rows, (tokens, width, heads) = rows_of(source), op.operand_type().sizes
    if [op.get(key) for key in ("kernel", "stride", "padding")] != [3, 1, 1] or rows != (tokens, width * heads):
        return False
    view = Layout((tokens, width * heads))
    view.reshape((tokens, heads, width))
    view.transpose((0, 2, 1))
    if source is op.operands[0] or not layout.same_order(view):
        return False
    emit = emitter(op)
    x = reshaped(source, op.operand_type().with_sizes(view.sizes), emit, op)
    made = emit(spike.Dilate.make(x, result=shaped(x.type), source=op.source, hint=op.label, heads=heads))
    replace_op(op, view.emit(made, emit, op.source, op.label))
    return True


def _turned(op: spike.Attention) -> bool:
    """attention of channels x (heads tokens), each transposed from tokens x channels -> attention of those.

    (a b) c of transposed heads is the transpose of (c' b') a': q and v change places, and so does what comes first.
    """
    width, heads = op.result_type.sizes[0], op.get("heads")
    tokens = op.result_type.sizes[1] // heads
    view = Layout((tokens, heads * width))
    view.reshape((tokens, heads, width))
    view.transpose((2, 1, 0))
    view.reshape((width, heads * tokens))
    chains = [chain_to(operand) for operand in op.operands]
    if view.keeps_order or not all(layout.same_order(view) for _, layout in chains):
        return False
    emit, kind = emitter(op), op.result_type.with_sizes(view.sizes)
    v, k, q = (reshaped(source, kind, emit, op) for source, _ in chains)
    order = "values" if op.get("order") == "scores" else "scores"
    made = spike.Attention.make(
        q, k, v, result=kind, source=op.source, hint=op.label, heads=heads, scale=op.get("scale"), order=order
    )
    replace_op(op, view.emit(emit(made), emit, op.source, op.label))
    return True


def _replace(
    op: spike.Conv | spike.Linear,
    kind: type[spike.Conv | spike.Linear],
    x: SSAValue,
    result: Shaped,
    weight: str,
    **properties: int,
) -> None:
    """The same layer, in another form; its result keeps its sizes for those who read it."""
    emit = emitter(op)
    symbols = {"weight": weight, "bias": op.symbol("bias")}
    made = emit(kind.make(x, result=result, symbols=symbols, source=op.source, hint=op.label, **properties))
    replace_op(op, reshaped(made, op.result_type, emit, op))
