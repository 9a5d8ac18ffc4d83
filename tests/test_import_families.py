"""Every family of the zoo is imported as it is: all currents and logits equal the eager model's, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import FAMILIES

from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.ir.meaning import NEURONS, execute


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_bit_equal(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    network = import_model(model, family.example())
    inputs = family.inputs(2, seed=5)
    compared = compare_with_eager(model, network, inputs)
    assert compared > 1000 * family.steps
    fired = {label for run in execute(network, inputs) for label, spikes in run.spikes.items() if spikes.any()}
    neurons = {op.label for op in network.operations() if isinstance(op, NEURONS)}
    assert neurons == fired, "a silent layer hides what comes behind it"


@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_bit_equal_at_other_timesteps(name: str, steps: int) -> None:
    family = FAMILIES[name]
    model = family.build()
    if hasattr(model, "T"):
        model.__dict__["T"] = steps
    network = import_model(model, family.example(steps))
    assert compare_with_eager(model, network, family.inputs(2, seed=5, steps=steps)) > 0
    trains = {op.result_type.steps for op in network.operations() if isinstance(op, NEURONS)}
    assert trains == {steps}


ODD = {
    "spikformer-imagenet": ((1, 48, 16), {"embed_dims": 24, "num_heads": 3}),
    "spikformer-events": ((2, 16, 16), {"embed_dims": 16, "num_heads": 1}),
    "spikingformer": ((3, 12, 20), {"embed_dims": 24, "num_heads": 1}),
    "spikingformer-cml-events": ((2, 16, 32), {"embed_dims": 16, "num_heads": 4}),
    "sdt-v1": ((1, 16, 16), {"embed_dims": 16, "num_heads": 1}),
    "sdt-v1-events": ((2, 12, 20), {"embed_dims": 24, "num_heads": 3}),
    "qkformer-cifar": ((1, 8, 24), {"embed_dims": 16, "num_heads": 1}),
    "qkformer-events": ((2, 16, 16), {"embed_dims": 48, "num_heads": 3}),
    "sdt-v2": ((1, 16, 16), {"embed_dims": 24, "num_heads": 1, "last_dims": 5}),
    "sdt-v3": ((1, 16, 48), {"embed_dims": 24, "num_heads": 3, "last_dims": 9}),
    "sdt-v3-large": ((2, 16, 16), {"embed_dims": 24, "num_heads": 1, "first_dims": 6}),
}
"""One token, one head, one channel, images that are not square, widths that no vector length divides."""


@pytest.mark.parametrize("name", ODD)
def test_a_family_of_odd_sizes_is_bit_equal(name: str) -> None:
    size, arguments = ODD[name]
    family = replace(FAMILIES[name], size=size, arguments={**FAMILIES[name].arguments, **arguments})
    torch.manual_seed(0)
    model = family.build(2)
    network = import_model(model, family.example(2))
    assert compare_with_eager(model, network, family.inputs(3, seed=5, steps=2)) > 0
