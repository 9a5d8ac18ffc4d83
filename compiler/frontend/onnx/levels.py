"""Neurons without membrane (`spike.level`) that an ONNX file writes as Clip, Round and Div, rolled back up."""

from __future__ import annotations

import math

import torch

from compiler.frontend.onnx.graph import Graph, Node
from compiler.ir.onnx.schema import DOMAIN, LEVEL


def roll_up_level(graph: Graph, node: Node) -> None:
    """Round(Clip(x, 0, n)) or Floor(Clip(x, 0, n) + 0.5), divided by a constant or not -> c-step.Level."""
    if node.operator not in ("Round", "Floor"):
        return
    value, ties = node.inputs[0], "even"
    if node.operator == "Floor":
        add = graph.producer(value)
        numbers = [name for name in add.inputs if graph.number(name) == 0.5] if add and add.operator == "Add" else []
        if add is None or len(numbers) != 1:
            return
        value, ties = next(name for name in add.inputs if name not in numbers), "up"
    source, levels = _clipped(graph, value)
    if source is None or levels is None:
        return
    users = graph.users(node.outputs[0])
    last, norm = node, 1.0
    if len(users) == 1 and users[0].operator in ("Div", "Mul") and node.outputs[0] != graph.output:
        found = _norm(graph, users[0], node.outputs[0], levels)
        last, norm = (users[0], found) if found is not None else (last, norm)
    graph.put(last, f"{DOMAIN}.{LEVEL}", source, {"levels": levels, "norm": norm, "ties": ties})


def _clipped(graph: Graph, value: str) -> tuple[str | None, int | None]:
    """x and n of Clip(x, 0, n), also written as Min(Max(x, 0), n) or the other way round."""
    least, most = -math.inf, math.inf
    while (node := graph.producer(value)) is not None and node.operator in ("Clip", "Min", "Max", "Relu"):
        bounds = [graph.number(name) for name in node.inputs]
        inner = [name for name, bound in zip(node.inputs, bounds, strict=True) if name and bound is None]
        if len(inner) != 1 or (node.operator == "Clip" and bounds[0] is not None):
            break
        value = inner[0]
        if node.operator == "Clip":
            low = bounds[1] if len(bounds) > 1 else node.attributes.get("min")
            high = bounds[2] if len(bounds) > 2 else node.attributes.get("max")
        else:
            given = [bound for bound in bounds if bound is not None] or [0.0]
            low = max(given) if node.operator in ("Max", "Relu") else None
            high = min(given) if node.operator == "Min" else None
        least, most = max(least, -math.inf if low is None else low), min(most, math.inf if high is None else high)
    if least != 0.0 or not 1 <= most < math.inf or most != int(most):
        return None, None
    return value, int(most)


def _norm(graph: Graph, node: Node, count: str, levels: int) -> float | None:
    """The divisor of every count that `node` divides or multiplies by a constant, where dividing gives the same."""
    factor = next((number for name in node.inputs if name != count and (number := graph.number(name))), None)
    if factor is None or factor <= 0 or (node.operator == "Div" and node.inputs[0] != count):
        return None
    if node.operator == "Div":
        return factor
    counts, norm = torch.arange(levels + 1, dtype=torch.float32), round(1 / factor, 6)
    return norm if torch.equal(counts * factor, counts / norm) else None
