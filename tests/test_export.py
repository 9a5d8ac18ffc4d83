"""torch.export, which traces by other means, finds the same layers and neurons in a model, and computes the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from torch.export import ExportedProgram, export

from compiler.frontend.importer import import_model
from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network

Layer = tuple[tuple[int, ...], int, int, int]
"""The shape of the weight, as torch has it; stride, padding, groups."""

CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default")
NEURONS = {spike.Lif: "aten.stack.default", spike.Level: "aten.clamp.default"}
"""What every call of a neuron of the zoo does once."""


def calls(program: ExportedProgram, *names: str) -> list[Any]:
    return [node for node in program.graph.nodes if node.op == "call_function" and str(node.target) in names]


def exported_layers(program: ExportedProgram) -> Counter[Layer]:
    found: Counter[Layer] = Counter()
    for node in calls(program, *CONVOLUTIONS):
        given: list[Any] = list(node.args[3:])
        stride, padding, _, groups = given + [[1], [0], [1], 1][len(given) :]
        found[tuple(node.args[1].meta["val"].shape), stride[0], padding[0], groups] += 1
    for node in calls(program, "aten.linear.default"):
        found[tuple(node.args[1].meta["val"].shape), 1, 0, 1] += 1
    return found


def imported_layers(network: Network) -> Counter[Layer]:
    found: Counter[Layer] = Counter()
    for op in network.operations():
        if isinstance(op, spike.Conv | spike.Linear):
            found[layer_of(op, network.weights[str(op.symbol("weight"))].shape)] += 1
    return found


def layer_of(op: spike.Conv | spike.Linear, shape: tuple[int, ...]) -> Layer:
    if isinstance(op, spike.Linear):
        return shape, 1, 0, 1
    shape = (*shape[:2], *shape[3:]) if op.get("rows") else shape
    return shape, op.get("stride"), op.get("padding"), op.get("groups")


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("name", ["spikformer-cifar", "spikingformer-cml-events", "sdt-v1-events", "sdt-v3-large"])
def test_torch_export_agrees(name: str) -> None:
    family, steps = FAMILIES[name], 1
    model = family.build()
    model.__dict__["T"] = steps
    example = family.example(steps)
    program = export(model, (example,), strict=False)
    network = import_model(model, example)
    layers = imported_layers(network)
    assert layers == exported_layers(program)
    assert layers.total() > 10
    for kind, call in NEURONS.items():
        assert sum(isinstance(op, kind) for op in network.operations()) == len(calls(program, call))
    run, exported = Executor(network), program.module()
    for x in family.inputs(3, seed=5, steps=steps):
        with torch.no_grad():
            logits = exported(torch.from_numpy(x[None]))
        assert np.array_equal(run.run(x).output, logits[0].numpy())
