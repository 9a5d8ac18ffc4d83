"""Neurons that an ONNX file unrolls over time, rolled back up.

    %a = Gather(%x, 0), %b = Gather(%x, 1), ...             the steps of one tensor of currents
    %h = Div(%a, 2), %s = GreaterOrEqual(%h, 1), ...        elementwise, with constants, step after step
    %y = Concat(Unsqueeze(%s), Unsqueeze(...))              the spikes stacked in the same order
becomes
    %y = c-step.Neuron(%x, tau=2, threshold=1, ...)

What lies between is not matched by its form, which every exporter makes its own, but run: on probe currents around
the threshold, and ties with it, its spikes must be those of `spike.lif` with the constants that appear in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.frontend.onnx.elementwise import COMPARISONS, ELEMENTWISE, RESHAPES
from compiler.frontend.onnx.equations import Region, equation
from compiler.frontend.onnx.graph import Graph, Node, slice_numbers
from compiler.frontend.onnx.levels import roll_up_level
from compiler.ir.onnx.schema import DOMAIN, NEURON

Step = tuple[str, int, int]
"""A tensor, the dimension that is time in it, and a timestep."""


def roll_up(graph: Graph) -> None:
    """Replace every unrolled neuron of `graph` by one node of domain c-step.

    Raises CStepError naming the place where spikes are stacked whose neuron has no equation here.
    """
    known: list[dict[str, Any]] = []
    for node in list(graph.nodes):
        region = _region(graph, node)
        if region is not None:
            attributes = equation(graph, region, known)
            known.append(attributes)
            graph.put(node, f"{DOMAIN}.{NEURON}", region.source, attributes | {"axis": region.axis})
    for node in list(graph.nodes):
        roll_up_level(graph, node)
    graph.prune()


def _region(graph: Graph, stack: Node) -> Region | None:
    """The region behind a Concat of steps, or None where it is a Concat of something else."""
    if stack.operator != "Concat" or any(name in graph.constants for name in stack.inputs):
        return None
    made = Region(stack, "", 0, list(stack.inputs), {}, {}, {})
    sources: set[tuple[str, int]] = set()
    stray: Node | None = None
    several: list[str] = []
    waiting = list(stack.inputs)
    while waiting:
        value = waiting.pop()
        if value in made.inner or value in made.steps or value in made.constants or not value:
            continue
        if value in graph.constants:
            number = graph.number(value)
            if number is None:
                several.append(value)
            else:
                made.constants[value] = number
            continue
        node = graph.producer(value)
        step = _step(graph, node, value) if node is not None else None
        if step is not None:
            sources.add(step[:2])
            made.steps[value] = step[2]
        elif node is not None and _is_inside(graph, node):
            made.inner[value] = node
            waiting += node.inputs[:1] if node.operator in RESHAPES else node.inputs
        else:
            stray = stray or node or stack
    if not any(node.operator in COMPARISONS for node in made.inner.values()):
        return None
    if several:
        sizes = list(graph.constants[several[0]].shape)
        raise graph.refuse(stack, f"stacks spikes of neurons with constants {sizes}; a layer has one for all neurons")
    _require_steps(graph, made, sources, stray)
    (made.source, made.axis), *_ = sources
    return made


def _require_steps(graph: Graph, region: Region, sources: set[tuple[str, int]], stray: Node | None) -> None:
    """The region must take all steps of one tensor, and give one output a step."""
    if stray is not None:
        raise graph.refuse(
            region.stack,
            f"stacks spikes that come from {stray.operator} {stray.name or stray.place}; an unrolled neuron must be "
            "elementwise between the steps of one tensor (Gather, Slice, Split) and this Concat",
        )
    if len(sources) != 1:
        listed = ", ".join(sorted(name for name, _ in sources)) or "nothing"
        raise graph.refuse(region.stack, f"stacks spikes of {listed}; a neuron takes the steps of one tensor")
    source, axis = next(iter(sources))
    count = graph.shapes[source][axis]
    if sorted(set(region.steps.values())) != list(range(count)) or len(region.outputs) != count:
        raise graph.refuse(
            region.stack,
            f"stacks {len(region.outputs)} steps of the {count} of {source}; a neuron gives a spike a step, for all",
        )
    if (
        graph.shapes[region.stack.outputs[0]] != graph.shapes[source]
        or region.stack.attributes["axis"] % len(graph.shapes[source]) != axis
    ):
        raise graph.refuse(region.stack, f"stacks spikes along another dimension than that of time in {source}")


def _is_inside(graph: Graph, node: Node) -> bool:
    if node.operator in RESHAPES:
        return _sizes(graph.shapes[node.inputs[0]]) == _sizes(graph.shapes[node.outputs[0]])
    return node.operator in ELEMENTWISE


def _sizes(shape: Sequence[int]) -> list[int]:
    """The dimensions that are not 1."""
    return [size for size in shape if size != 1]


def _step(graph: Graph, node: Node | None, value: str) -> Step | None:
    """Which step of which tensor a node takes out."""
    if node is None or node.operator not in ("Gather", "Slice", "Split"):
        return None
    source = node.inputs[0]
    shape = graph.shapes[source]
    if node.operator == "Split":
        axis = node.attributes.get("axis", 0) % len(shape)
        place = node.outputs.index(value)
        return (source, axis, place) if graph.shapes[value][axis] == 1 else None
    if node.operator == "Gather":
        axis, index = node.attributes.get("axis", 0) % len(shape), graph.constants.get(node.input(1))
        return (source, axis, int(index.flat[0]) % shape[axis]) if index is not None and index.size == 1 else None
    changed = [axis for axis, size in enumerate(graph.shapes[value]) if size != shape[axis]]
    starts, axes = (slice_numbers(graph, node, index, name) for index, name in ((1, "starts"), (3, "axes")))
    if starts is None or len(starts) != 1 or len(changed) > 1:
        return None
    axis = axes[0] % len(shape) if axes else 0
    return (source, axis, starts[0] % shape[axis]) if graph.shapes[value][axis] == 1 else None


def refuse_leftovers(graph: Graph) -> None:
    """What fires outside a neuron that was rolled up is refused where it stands."""
    for node in graph.nodes:
        if node.operator in COMPARISONS or node.operator in ("Where", "Round", "Floor"):
            raise graph.refuse(
                node,
                "stands outside a neuron; a neuron unrolled over time takes its currents from the steps of one tensor "
                "(Gather, Slice, Split) and stacks its spikes with Concat, or is one c-step.Neuron (docs/onnx.md)",
            )
