"""Spikformer, Spikingformer and Spike-driven Transformer V1 are the published ones: names, keys, settings, logits.

The digests and logits were taken from the published code, with SpikingJelly 2.0's neurons.
"""

import hashlib
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compiler.frontend.checkpoint import apply_checkpoint, load_checkpoint
from compiler.zoo import FAMILIES, LIF, Entry, build, recognise
from compiler.zoo.random_weights import NORMS, draw
from isa.errors import CStepError

# sha256, its first 16 digits, of the sorted lines "key shape" of a state_dict without its dead keys.
PUBLISHED_KEYS = {
    "spikformer-4-384": "ec123e0eef320350",
    "spikformer-4-256": "450248a1e302545d",
    "spikformer-2-384": "a22a9efe9092c797",
    "spikformer-2-256": "06943e37564a87cd",
    "spikformer-2-64": "9b43b43706ab1e68",
    "spikformer-8-384": "5823b6407deb1e4e",
    "spikformer-8-512": "31447a447b97142d",
    "spikformer-8-768": "ec75f289b731e49d",
    "spikformer-events-2-256": "99b57fa70ee89391",
    "spikingformer-4-384": "4fd21ac9f61c8cc3",
    "spikingformer-4-256": "ccf0d871b6104982",
    "spikingformer-2-384": "87fb5a9378f2489e",
    "spikingformer-2-256": "7ec6589ea06340c9",
    "spikingformer-8-384": "5f8c30b5d539f960",
    "spikingformer-8-512": "252178bd34859c66",
    "spikingformer-8-768": "536d7640c54254c6",
    "spikingformer-events-2-256": "4dc61c7d2749f336",
    "spikingformer-cml-4-384": "b2cdd1cc37117dc1",
    "spikingformer-cml-4-256": "02bf262473923d0f",
    "spikingformer-cml-2-384": "644a778f536ef7c3",
    "spikingformer-cml-2-256": "89cb8ccde342c73a",
    "spikingformer-cml-8-384": "5f8c30b5d539f960",
    "spikingformer-cml-8-512": "252178bd34859c66",
    "spikingformer-cml-8-768": "536d7640c54254c6",
    "spikingformer-cml-events-2-256": "4dc61c7d2749f336",
    "sdt-v1-8-384": "16c63af572217850",
    "sdt-v1-6-512": "8cefaafbc4ce6b66",
    "sdt-v1-8-512": "b3412d1d997379d7",
    "sdt-v1-10-512": "bd2e3848d4a6cd7d",
    "sdt-v1-8-768": "70a86d9ea6ffd37d",
    "sdt-v1-cifar-2-256": "5b9484686ca6f1e7",
    "sdt-v1-cifar-2-512": "14f6250c182dc864",
    "sdt-v1-events-2-256": "a2c5150d1dad3b8b",
    "sdt-v1-gesture-2-256": "4f899f0ec4996a0a",
}

# The first four logits of `small`'s first example.
PUBLISHED_LOGITS = {
    "spikformer-cifar-1-32": (-0.4366, 0.1325, 0.6378, -0.7798),
    "spikformer-imagenet-1-32": (-0.3847, 0.0656, -0.7757, -0.0246),
    "spikformer-events-1-32": (-1.3266, 0.2522, -0.0263, -0.8263),
    "spikingformer-1-32": (-1.3189, 0.5340, -1.4692, 0.4792),
    "spikingformer-imagenet-1-32": (-1.2054, 1.1792, -1.5371, 0.8337),
    "spikingformer-events-1-32": (-5.8563, 2.0716, -0.8392, -1.4274),
    "spikingformer-cml-1-32": (-1.2192, 0.7423, -1.4460, 0.6771),
    "spikingformer-cml-imagenet-1-32": (-1.0458, 1.2151, -1.6202, 0.9467),
    "spikingformer-cml-events-1-32": (-5.0799, 1.8145, -0.4244, -1.2235),
    "sdt-v1-1-32": (-0.9530, 0.0790, -0.6258, -0.4846),
    "sdt-v1-cifar-1-32": (-0.7718, -0.1783, -0.2139, -0.7066),
    "sdt-v1-events-1-32": (-0.8767, 0.2946, 0.0546, -0.4131),
    "sdt-v1-gesture-1-32": (-1.3067, 0.6480, -0.3946, -0.8772),
}

NORM = ["block.0.norm1.weight", "block.7.norm2.bias"]
DEAD_KEYS = {
    "spikformer-4-384": [*NORM, "pos_embed", "patch_embed.pos_embed1"],
    "spikformer-8-512": NORM,
    "spikformer-events-2-256": [*NORM, "norm.weight", "norm.bias", "pos_embed"],
    "spikingformer-4-384": NORM,
    "spikingformer-cml-8-768": NORM,
    "sdt-v1-8-512": ["block.7.attn.talking_heads.weight"],
}

HALVED_TWICE = ("spikformer", "spikingformer", "spikingformer-cml", "sdt-v1-cifar", "sdt-v1-events")


def small(name: str) -> tuple[nn.Module, Entry]:
    """The module called `name` for images of a few tokens, with random weights that fire without calibration."""
    side = "16" if recognise(name)[0].name in HALVED_TWICE else "64"
    size = {"img_size_h": side, "img_size_w": side, "T": "4", "num_classes": "10", "num_heads": "2"}
    model, entry = build(name, None, size)
    draw(model, torch.Generator().manual_seed(0))
    # So that attention is neither silent nor full: in SDT-V1, one spike that key and value have in common is enough.
    attention = {"q_bn": 1.5, **dict.fromkeys(("k_bn", "v_bn"), 0.0 if "sdt" in name else 1.5)}
    for layer, norm in model.named_modules():
        if isinstance(norm, NORMS):
            norm.weight.data *= 2
            norm.bias.data += attention.get(layer.rpartition(".")[2], 0.4)
    return model, entry


def example(entry: Entry) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, *entry.shape)
    return torch.poisson(torch.full(shape, 0.3), generator) if entry.events else torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", PUBLISHED_KEYS)
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model, _ = build(name, None, {})
    lines = sorted(f"{key} {tuple(tensor.shape)}" for key, tensor in model.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == PUBLISHED_KEYS[name]


@pytest.mark.parametrize("name", PUBLISHED_LOGITS)
def test_logits_are_those_of_the_published_code(name: str) -> None:
    model, entry = small(name)
    rates: list[float] = []
    for module in model.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _m, _i, spikes: rates.append(float(spikes.mean())))
    with torch.no_grad():
        logits = model(example(entry))
    assert min(rates) > 0 and max(rates) < 0.95
    assert logits.shape == (2, 10)
    # The tolerance is for a spike that tips over where torch adds in another order.
    torch.testing.assert_close(logits[0, :4], torch.tensor(PUBLISHED_LOGITS[name]), rtol=0, atol=0.02)


def test_every_published_name_is_of_its_family_and_as_large_as_stated() -> None:
    for family in FAMILIES:
        for name, parameters in family.examples.items():
            assert recognise(name)[0] is family
            with torch.device("meta"):
                entry = build(name, None, {})[1]
            assert (name, entry.parameters) == (name, parameters)
            assert entry.events == (len(entry.shape) == 4)


@pytest.mark.parametrize("name", DEAD_KEYS)
def test_dead_keys_are_named_and_no_live_one_is(name: str) -> None:
    with torch.device("meta"):
        model, entry = build(name, None, {})
    dead = [
        key for key in [*DEAD_KEYS[name], *model.state_dict()] if any(re.fullmatch(p, key) for p in entry.dead_keys)
    ]
    assert dead == DEAD_KEYS[name]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("spikformer-8-512", "spikformer-imagenet"),
        ("spikformer-8-64", "spikformer"),
        ("spikformer-cifar-8-512", "spikformer"),
        ("spikformer-imagenet-2-64", "spikformer-imagenet"),
        ("spikingformer-8-768", "spikingformer-imagenet"),
        ("spikingformer-cifar-8-768", "spikingformer"),
        ("spikingformer-cml-4-384", "spikingformer-cml"),
        ("spikingformer-cml-8-512", "spikingformer-cml-imagenet"),
        ("spikingformer-cml-events-2-256", "spikingformer-cml-events"),
        ("sdt-8-512", "sdt-v1"),
        ("sdt-v1-2-512", "sdt-v1-cifar"),
        ("sdt-v1-imagenet-2-512", "sdt-v1"),
        ("sdt-events-2-256", "sdt-v1-events"),
    ],
)
def test_a_name_says_the_layout(name: str, family: str) -> None:
    assert recognise(name)[0].name == family


@pytest.mark.parametrize(
    ("name", "shape", "classes", "tau", "heads"),
    [
        ("spikformer-8-384", (3, 224, 224), 1000, 2.0, 8),
        ("spikformer-events-2-256", (16, 2, 128, 128), 10, 2.0, 16),
        ("spikingformer-4-384", (3, 32, 32), 10, 2.0, 12),
        ("spikingformer-8-768", (3, 224, 224), 1000, 2.0, 8),
        ("spikingformer-events-2-256", (16, 2, 128, 128), 10, 1.5, 16),
        ("spikingformer-cml-events-2-256", (16, 2, 128, 128), 10, 1.75, 16),
        ("sdt-v1-8-768", (3, 224, 224), 1000, 2.0, 8),
        ("sdt-v1-cifar-2-512", (3, 32, 32), 10, 2.0, 8),
        ("sdt-v1-events-2-256", (10, 2, 64, 64), 10, 2.0, 8),
        ("sdt-v1-gesture-2-256", (16, 2, 128, 128), 11, 2.0, 8),
    ],
)
def test_settings_are_the_published_ones(
    name: str, shape: tuple[int, ...], classes: int, tau: float, heads: int
) -> None:
    with torch.device("meta"):
        model, entry = build(name, None, {})
    assert entry.shape == shape
    assert model.get_parameter("head.weight").shape[0] == classes
    neurons = {layer: module for layer, module in model.named_modules() if isinstance(module, LIF)}
    assert {neuron.tau for neuron in neurons.values()} == {tau}
    low = {layer.rpartition(".")[2] for layer, neuron in neurons.items() if neuron.v_threshold != 1.0}
    assert low == {"talking_heads_lif" if "sdt" in name else "attn_lif"}
    assert model.get_submodule("block.0.attn").num_heads == heads
    means = {3: (0.485 if shape[-1] == 224 else 0.4914), 2: 0.0}
    assert entry.mean[0] == means[entry.input[0]]
    assert bool(entry.needs_calibration) == ("spikformer" not in name)


def test_shapes_and_metadata_size_every_layout() -> None:
    heads, state = "block.0.attn.talking_heads.weight", {"patch_embed.proj_conv.weight": torch.zeros(8, 1, 3, 3)}
    model, entry = build("sdt-v1-1-64", {**state, heads: torch.zeros(4, 4, 1)}, {"pooling_stat": "0001", "T": "2"})
    assert model.get_submodule("block.0.attn").num_heads == 4
    assert (entry.shape, entry.mean) == ((1, 224, 224), (0.0,))
    assert [layer for layer, module in model.named_modules() if isinstance(module, nn.MaxPool2d)] == [
        "patch_embed.maxpool3"
    ]
    block0 = {"patch_embed.block0_conv.weight": torch.zeros(8, 1, 3, 3), "head.weight": torch.zeros(100, 64)}
    model, entry = build("spikingformer-2-64", block0, {})
    assert (entry.input, model.get_parameter("head.weight").shape[0]) == ((1, 32, 32), 100)
    assert build("spikingformer-cml-2-64", state, {})[1].input == (1, 32, 32)


def test_a_training_script_says_the_layout(tmp_path: Path) -> None:
    script = Namespace(layer=1, dim=32, num_heads=8, img_size=48, in_channels=2, pooling_stat="0011", dvs_mode=True)
    model, entry = build("sdt-v1-events-1-32", None, {"img_size_h": "48", "img_size_w": "48"})
    torch.save({"state_dict": model.state_dict(), "args": script}, tmp_path / "model_best.pth.tar")
    loaded = load_checkpoint(tmp_path / "model_best.pth.tar")
    again, said = build("sdt-v1-gesture-1-32", loaded.state, loaded.metadata)
    apply_checkpoint(again, loaded.state, said.dead_keys, "model_best")
    assert said.input == (2, 48, 48)
    frames = example(entry)
    with torch.no_grad():
        assert torch.equal(again(frames), model(frames))


def test_events_differ_from_step_to_step() -> None:
    model, entry = small("sdt-v1-events-1-32")
    events = example(entry)
    with torch.no_grad():
        assert not torch.equal(model(events), model(events.flip(1)))


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("spikformer-8-512", {"patch_size": "4"}, "patch_size=4, but the ImageNet layout halves .* four times: 16"),
        ("spikformer-8-512", {"img_size_h": "200"}, "image 200x224 does not divide into patches of 16x16"),
        ("spikformer-events-2-256", {"num_heads": "7"}, "embed_dims=256 must be a multiple of 8 and of num_heads=7"),
        ("spikingformer-2-64", {"patch_size": "16"}, "patch_size=16, but the cifar layout halves .* twice: 4"),
        ("spikingformer-2-64", {"layout": "vit"}, "no layout 'vit'; there are cifar, imagenet, events"),
        ("sdt-v1-2-64", {"pooling_stat": "01"}, "pooling_stat='01'; expected a 0 or 1 for each of four stages"),
        ("sdt-v1-2-64", {"dvs_mode": "maybe"}, "dvs_mode='maybe' is neither true nor false"),
        ("sdt-v1-2-64", {"img_size_w": "40"}, "image 224x40 does not divide into patches of 16x16"),
        ("sdt-v1-gesture-2-64", {"T": "0"}, "T=0 must be positive"),
    ],
)
def test_bad_sizes_are_refused(name: str, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(CStepError, match=message) as refusal:
        build(name, None, metadata)
    assert "\n" not in str(refusal.value)
