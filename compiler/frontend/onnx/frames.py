"""A border around an image that an ONNX file writes as Pad, or with a value a channel as Where(inside, Pad, value).

SDT-V2's re-parameterised convolutions pad a normalised tensor with what the norm makes of 0, so that a border of values
stands before a convolution without padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.frontend.onnx.graph import Graph, Node
from compiler.frontend.onnx.layers import affine_norm
from compiler.frontend.onnx.model import Translation
from compiler.zoo.sdt_v2 import PaddedBatchNorm

FRAME = "Where with a frame"


def roll_up_frames(graph: Graph) -> None:
    """Replace every Where(inside, Pad(x, 0), value a channel) of constants by one node."""
    for node in list(graph.nodes):
        pad = graph.producer(node.input(1)) if node.operator == "Where" else None
        inside, value = (graph.constants.get(node.input(index)) for index in (0, 2))
        if pad is None or pad.operator != "Pad" or inside is None or value is None:
            continue
        padding, shape = _padding(graph, pad), graph.shapes[pad.outputs[0]]
        channels, border = (1, shape[1], 1, 1), _inside(shape, padding)
        if value.shape in (channels, channels[1:]) and np.array_equal(np.broadcast_to(inside, shape), border):
            graph.put(node, FRAME, pad.inputs[0], {"padding": padding, "value": value.reshape(-1)})
    graph.prune()


def _padding(graph: Graph, pad: Node) -> int:
    """How many zeros stand on every side of an image."""
    pads = graph.constants.get(pad.input(1))
    sides = list(map(int, pads.reshape(-1))) if pads is not None else list(pad.attributes.get("pads", []))
    filled = graph.number(pad.input(2)) if pad.input(2) else pad.attributes.get("value", 0.0)
    plain = pad.attributes.get("mode", "constant") == "constant" and filled == 0.0 and not pad.input(3)
    if not plain or len(sides) != 8 or sides != [0, 0, *[sides[-1]] * 2] * 2 or sides[-1] < 1:
        raise graph.refuse(pad, f"pads={sides}; only zeros, as many on every side of an image, have a meaning here")
    return sides[-1]


def _inside(shape: tuple[int, ...], padding: int) -> NDArray[np.bool_]:
    made = np.zeros(shape, np.bool_)
    made[..., padding:-padding, padding:-padding] = True
    return made


def frame(t: Translation, node: Node) -> None:
    """A padded norm that leaves x as it is: it adds the border's value, which is subtracted first."""
    if node.operator == FRAME:
        padding, value = node.attributes["padding"], node.attributes["value"]
    else:
        padding, value = _padding(t.graph, node), np.zeros(t.shape(node)[1], np.float32)
    x: Any = t.value(node)
    ones, path = np.ones(value.size), t.scope(node) or "frame"
    if value.any():
        x = t.layer(node, f"{path}.less", affine_norm(4, ones, -value), x)
    layer = PaddedBatchNorm(value.size, padding)
    layer.bn = affine_norm(4, ones, value)
    t.give(node, t.layer(node, path, layer, x))
