"""Spike-Driven Transformer V3 is the published one: its keys, its neuron, its heads."""

from typing import Literal

import pytest
import torch
from published import assert_published_logits, drawn_events, drawn_image, structure
from torch import Tensor, nn

from compiler.frontend.checkpoint import apply_checkpoint
from compiler.zoo import build
from compiler.zoo.level import Level
from compiler.zoo.random_weights import randomise
from compiler.zoo.sdt_v3 import SDTV3
from compiler.zoo.sdt_v3_large import SDTV3Large
from isa.errors import CStepError

# Digests of the keys and shapes of the published model files, and their numbers of parameters.
PUBLISHED = {
    "sdt-v3-5m": ("49182afd18a826caea55e6aa5a638fd91c180bca7221314588b87b301007ba6f", 5_105_608),
    "sdt-v3-10m": ("96af3fc677272fdb3b92c9d306671f5b19a7e3a76c9570ea8ddde34c18e49d45", 10_023_112),
    "sdt-v3-19m": ("4e4403991ae7351a40ebf29d97cd53d0da301510037c77a888b2dce9fbf586e8", 18_987_504),
    "sdt-v3-8-96": ("dff1e66a5b2a8c4168a0c3a355cd1432b2db4385b68a44153f18c0e91d480247", 2_702_048),
    "sdt-v3-83m": ("587db85baad7f4b80889515084f89ecdbdfe2f91989a3caa7e7b506e11bf36de", 83_015_952),
    "sdt-v3-171m": ("6aca512229a7e41e43fa93f93bf40d3aedc518dd98e327abe1c0ad5d5754eb53", 171_740_714),
    "sdt-v3-events-8-256": ("ec9cdfe48dc5e5079805997e3ae021f61a2578bb78dc7f831c301850991bfded", 18_740_004),
    "sdt-v3-gesture-1-256": ("adcf2cf9c788eafcca821e10b0dfa14e8208a27b5b14ff7e3e20b4aeaef5ca6d", 5_604_315),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_shapes_and_parameters_are_the_published_ones(name: str) -> None:
    assert structure(name) == PUBLISHED[name]


def test_a_level_is_the_nearest_count_within_its_range() -> None:
    currents = torch.tensor([-9.0, -0.1, 0.4, 0.5, 0.6, 1.5, 2.5, 3.5, 3.6, 4.5, 9.0])
    assert Level()(currents).mul(4).tolist() == [0, 0, 0, 0, 1, 2, 2, 4, 4, 4, 4]
    assert Level(ties="up")(currents).mul(4).tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4]
    assert Level(norm=1)(currents).tolist() == [0, 0, 0, 0, 1, 2, 2, 4, 4, 4, 4]
    assert Level(levels=8)(currents).tolist()[-2:] == [4 / 8, 1.0]
    assert not Level().state_dict()


def test_a_level_passes_gradients_inside_its_range() -> None:
    currents = torch.tensor([-0.1, 0.3, 3.9, 4.1], requires_grad=True)
    Level()(currents).sum().backward()
    assert currents.grad is not None
    assert currents.grad.tolist() == [0, 0.25, 0.25, 0]


@pytest.mark.parametrize("arguments", [{"levels": 0}, {"ties": "down"}, {"norm": 0.0}])
def test_a_level_that_means_nothing_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(CStepError, match="expected a level or more, ties 'even' or 'up', and a positive norm"):
        Level(**arguments)  # pyright: ignore[reportArgumentType]


SMALL = {"img_size_h": 32, "img_size_w": 32, "num_classes": 10, "embed_dims": 32, "num_heads": 4}

Variant = Literal["base", "events", "83m", "171m"]


def small(variant: Variant) -> tuple[SDTV3 | SDTV3Large, Tensor]:
    """An SDT-V3 that is quick to run, and two inputs for it."""
    torch.manual_seed(0)
    images, events = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 3, 2, 32, 32)).float()
    if variant == "base":
        return SDTV3(**SMALL, depths=2, last_dims=40, last_depths=1).eval(), images
    if variant == "events":
        model = SDTV3(**SMALL, depths=2, in_channels=2, last_dims=40, last_depths=0, T=3, norm=8.0, events=True)
        return model.eval(), events
    return SDTV3Large(**SMALL, depths=2, first_dims=12, rep_conv=variant == "83m").eval(), images


@pytest.mark.parametrize("variant", ["base", "events", "83m", "171m"])
def test_every_neuron_fires_and_no_input_depends_on_its_batch(variant: Variant) -> None:
    with torch.no_grad():
        model, inputs = small(variant)
        rates = randomise(model, inputs, seed=1)
        assert rates
        assert {name: rate for name, rate in rates.items() if not 0.02 < rate < 0.6} == {}
        together = model(inputs)
        assert together.shape == (2, 10)
        assert not torch.allclose(together[0], together[1], atol=1e-3)
        assert torch.allclose(together[1], model(inputs[1:])[0], atol=1e-4)


def test_base_logits_are_those_of_the_published_code() -> None:
    logits = (-0.0664, 2.2708, 3.7451, -0.9034, -1.0641, -3.4042, 5.1934, -2.3857, -2.4702, 5.5363)
    assert_published_logits(SDTV3(**SMALL, last_dims=40), drawn_image(32), logits)


def test_event_logits_are_those_of_the_published_code() -> None:
    sizes = {**SMALL, "in_channels": 2, "last_dims": 40, "depths": 4, "last_depths": 1, "T": 3}
    logits = (-0.527, -3.0185, 1.4397, 3.9948, -3.2486, -0.0886, 2.8284, -0.6764, -0.8737, -3.6902)
    assert_published_logits(SDTV3(**sizes, norm=1.0, events=True), drawn_events(32, 3), logits)


def test_large_logits_are_those_of_the_published_code() -> None:
    for rep_conv, logits in (
        (True, (-2.2533, 3.2341, 3.4322, -0.3024, -0.2759, -7.1388, -5.2714, 2.5556, 7.3775, 7.0118)),
        (False, (-0.1745, 1.9655, 1.3041, -6.1165, 0.4961, 2.8718, -2.1409, 2.972, 3.0942, -1.551)),
    ):
        model = SDTV3Large(**SMALL, first_dims=12, depths=2, rep_conv=rep_conv)
        assert_published_logits(model, drawn_image(32), logits)


@pytest.mark.parametrize(("variant", "ties", "norm"), [("base", "even", 4), ("events", "even", 8), ("83m", "up", 4)])
def test_neurons_are_the_published_ones(variant: Variant, ties: str, norm: float) -> None:
    model, _ = small(variant)
    levels = {name: module for name, module in model.named_modules() if isinstance(module, Level)}
    last = "lif" if variant == "83m" else "spike"
    assert {(level.levels, level.ties) for level in levels.values()} == {(4, ties)}
    assert {name: level.norm for name, level in levels.items() if level.norm != norm} == {last: 1.0}


def test_a_large_models_first_head_reads_the_stream_and_its_second_the_counts() -> None:
    with torch.no_grad():
        model, images = small("83m")
        assert isinstance(model, SDTV3Large)
        randomise(model, images, seed=1)
        mean = model.forward_features(images.unsqueeze(0)).flatten(3).mean(3)[0]
        assert not torch.equal(mean, mean.round())
        counts = mean.clamp(0, 4).add(0.5).floor()
        assert torch.equal(model(images), (model.head(mean) + model.head_kd(counts)) / 2)


@pytest.mark.parametrize("variant", ["base", "events", "83m", "171m"])
def test_sizes_are_read_off_a_checkpoint(variant: Variant) -> None:
    model, _ = small(variant)
    name = {"base": "sdt-v3-2-32", "events": "sdt-v3-gesture-2-32"}.get(variant, "sdt-v3-large-2-32")
    state = {key: tensor for key, tensor in model.state_dict().items() if "head_kd" not in key}
    rebuilt, entry = build(name, state, {"num_heads": "4"})
    apply_checkpoint(rebuilt, state, entry.dead_keys, "small")
    assert entry.events == (variant == "events")
    assert "membranes" in entry.needs_calibration


def test_a_name_may_say_the_levels() -> None:
    for name, levels in (("sdt-v3-83m", 4), ("sdt-v3-83m-1x8", 8), ("sdt-v3-171m-1x4", 4)):
        with torch.device("meta"):
            model, entry = build(name, None, {})
        neurons = [module for module in model.modules() if isinstance(module, Level)]
        assert {neuron.levels for neuron in neurons} == {levels}
        assert (entry.name, entry.timesteps, entry.input) == (name, 1, (3, 224, 224))


def test_layer_scales_scale_every_branch() -> None:
    with torch.no_grad():
        model, events = small("events")
        randomise(model, events, seed=1)
        assert isinstance(model, SDTV3)
        block = model.block3[0]
        x = torch.randn(3, 1, 32, 2, 2)
        for number in (1, 2, 3):
            scale = block.get_parameter(f"layer_scale{number}")
            nn.init.zeros_(scale)
        assert torch.equal(block(x), x)
        scale = block.get_parameter("layer_scale2")
        scale[5] = 2.0
        moved = (block(x) - x).abs().amax((0, 1, 3, 4))
        assert moved.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(
    ("construct", "arguments", "message"),
    [
        (SDTV3, {"img_size_w": 0}, "SDTV3: img_size_w=0 must be positive"),
        (SDTV3, {"embed_dims": 100}, "SDTV3: embed_dims=100 must be a multiple of 8"),
        (SDTV3, {"last_dims": 100}, "SDTV3: a width of 100 must be a multiple of num_heads=8"),
        (SDTV3, {"last_depths": 8}, "SDTV3: 0 blocks in the third stage"),
        (SDTV3Large, {"num_heads": 7}, "SDTV3Large: a width of 512 must be a multiple of num_heads=7"),
        (SDTV3Large, {"first_dims": 13}, "SDTV3Large: first_dims=13 must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    construct: type[SDTV3 | SDTV3Large], arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(CStepError, match=message) as refusal:
        construct(**arguments)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(refusal.value)
