"""Random weights make every layer of every architecture fire, at rates as trained networks have them."""

import pytest
import torch
from torch import Tensor, nn

from compiler.zoo import Entry, build
from compiler.zoo.random_weights import HIGH, LOW, is_neuron, randomise

SIDE = {side: {"img_size_h": str(side), "img_size_w": str(side)} for side in (16, 32, 64)}

SMALL = {
    "spikformer-2-64": SIDE[16],
    "spikformer-imagenet-2-64": SIDE[64],
    "spikformer-events-2-64": {**SIDE[64], "T": "5", "num_heads": "4"},
    "spikingformer-2-64": SIDE[16],
    "spikingformer-events-2-64": {**SIDE[64], "T": "5", "num_heads": "4"},
    "spikingformer-cml-imagenet-2-64": SIDE[64],
    "sdt-v1-2-64": SIDE[64],
    "sdt-v1-events-2-64": {**SIDE[32], "T": "5"},
}


def example(entry: Entry, batch: int = 2) -> Tensor:
    """Normalised pixels, or sparse event counts."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, *entry.shape)
    return torch.poisson(torch.full(shape, 0.3), generator) if entry.events else torch.randn(shape, generator=generator)


def measured(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """The share of non-zeros that every neuron of a plain forward puts out."""
    rates: dict[str, float] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: rates.update({name: float((out != 0).double().mean())})
        )
        for name, module in model.named_modules()
        if is_neuron(module)
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return rates


@pytest.mark.parametrize("name", SMALL)
def test_every_layer_fires_as_it_should(name: str) -> None:
    model, entry = build(name, None, SMALL[name])
    inputs = example(entry)
    rates = randomise(model, inputs, seed=0)
    assert rates == pytest.approx(measured(model, inputs))
    assert len(rates) >= 10
    assert {layer: rate for layer, rate in rates.items() if not LOW <= rate <= HIGH} == {}
    with torch.no_grad():
        logits = model(inputs)
    assert not torch.equal(logits[0], logits[1])


def test_a_seed_says_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        model, entry = build("spikformer-1-32", None, {"img_size_h": "8", "img_size_w": "8"})
        randomise(model, example(entry), seed)
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
