"""Spike-Driven Transformer V2 is the published one: its keys, its border, its heads."""

import pytest
import torch
from published import assert_published_logits, drawn_image, structure
from torch import Tensor, nn

from compiler.frontend.checkpoint import apply_checkpoint
from compiler.zoo import LIF, build
from compiler.zoo.random_weights import randomise
from compiler.zoo.sdt_v2 import SDTV2, PaddedBatchNorm, RepConv
from isa.errors import CStepError

# Digests of the keys and shapes of the published model file, and its numbers of parameters.
PUBLISHED = {
    "sdt-v2-31m": ("eed4af9be9a4ac6dc13aa6c5166156d0cb3bcd61c1bd9015f0d01952e4460e85", 31_333_864),
    "sdt-v2-55m": ("dc77edd5ed091d6c6541bc8f648f93cac5daee8eb610271e11c1a57502740082", 55_350_248),
    "sdt-v2-123m": ("ce10b9f4f7e93eec3fe8b30dc3edaebc13432f2baf171e2624acbcc3eb496584", 123_741_160),
    "sdt-v2-8-384": ("eed4af9be9a4ac6dc13aa6c5166156d0cb3bcd61c1bd9015f0d01952e4460e85", 31_333_864),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_shapes_and_parameters_are_the_published_ones(name: str) -> None:
    assert structure(name) == PUBLISHED[name]


def small(T: int = 2, kd: bool = False) -> tuple[SDTV2, Tensor]:  # noqa: N803
    """An SDT-V2 that is quick to run, and two images for it."""
    torch.manual_seed(0)
    model = SDTV2(32, 32, 3, 10, embed_dims=32, last_dims=40, num_heads=4, depths=2, last_depths=1, T=T, kd=kd)
    return model.eval(), torch.randn(2, 3, 32, 32)


def test_every_neuron_fires_and_no_image_depends_on_its_batch() -> None:
    with torch.no_grad():
        model, images = small()
        rates = randomise(model, images, seed=1)
        assert rates.keys() == {name for name, module in model.named_modules() if isinstance(module, LIF)}
        assert {name: rate for name, rate in rates.items() if not 0.02 < rate < 0.6} == {}
        together = model(images)
        assert together.shape == (2, 10)
        assert not torch.allclose(together[0], together[1], atol=1e-3)
        assert torch.allclose(together[1], model(images[1:])[0], atol=1e-5)


def test_both_heads_read_the_same_spikes_and_their_mean_is_the_answer() -> None:
    with torch.no_grad():
        model, images = small(kd=True)
        randomise(model, images, seed=1)
        seen: list[Tensor] = []
        model.lif.register_forward_hook(lambda _module, _inputs, spikes: seen.append(spikes))
        logits = model(images)
        assert seen[0].shape == (2, 2, 40)
        assert set(seen[0].unique().tolist()) == {0.0, 1.0}
        both = [head(seen[0]).mean(0) for head in (model.head, model.head_kd)]
        assert torch.equal(logits, (both[0] + both[1]) / 2)
        assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_logits_are_those_of_the_published_code() -> None:
    model = SDTV2(32, 32, 3, 10, embed_dims=32, last_dims=40, num_heads=4, T=2, kd=True)
    logits = (0.4875, 0.4682, -0.0425, -0.9811, -0.1586, 0.2414, -0.7624, 0.1387, 0.4894, -0.3193)
    assert_published_logits(model, drawn_image(32), logits)


def drawn_norm(norm: nn.BatchNorm2d) -> None:
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            assert tensor is not None
            tensor.normal_()
        assert norm.running_var is not None
        norm.running_var.uniform_(0.5, 2)


def test_the_padded_norm_frames_its_output_with_the_norm_of_zero() -> None:
    torch.manual_seed(0)
    layer = PaddedBatchNorm(5).eval()
    drawn_norm(layer.bn)
    x = torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(y[:, :, 1:-1, 1:-1], layer.bn(x))
        torch.testing.assert_close(y, layer.bn(nn.functional.pad(x, [1] * 4)), rtol=0, atol=1e-6)
        assert not torch.allclose(y[:, :, 0], torch.zeros(2, 5, 6), atol=0.1)


def test_a_reparametrised_convolution_is_one_convolution_borders_included() -> None:
    torch.manual_seed(0)
    layer = RepConv(4).eval().double()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            drawn_norm(module)
    with torch.no_grad():
        bias = layer(torch.zeros(1, 4, 5, 5, dtype=torch.double))
        assert torch.allclose(bias, bias[:, :, 2:3, 2:3].expand_as(bias)), "it has one bias, also at the border"
        # The response to a single 1 at the centre is the kernel, seen from behind.
        impulses = torch.zeros(4, 4, 3, 3, dtype=torch.double)
        impulses[range(4), range(4), 1, 1] = 1
        kernel = (layer(impulses) - bias[:, :, :3, :3]).permute(1, 0, 2, 3).flip(2, 3)
        x = torch.randn(2, 4, 6, 5, dtype=torch.double)
        folded = nn.functional.conv2d(x, kernel, bias[0, :, 0, 0], padding=1)
        torch.testing.assert_close(layer(x), folded, rtol=0, atol=1e-10)


def test_sizes_are_read_off_a_checkpoint() -> None:
    model, _ = small(kd=True)
    rebuilt, entry = build("sdt-v2-2-32", model.state_dict(), {"num_heads": "4", "T": "4", "img_size_h": "32"})
    apply_checkpoint(rebuilt, model.state_dict(), entry.dead_keys, "small")
    assert (entry.input, entry.timesteps, entry.events) == ((3, 32, 224), 4, False)
    assert entry.mean == (0.485, 0.456, 0.406)
    assert "membranes" in entry.needs_calibration
    with pytest.raises(CStepError, match="the name says depths=8, but the shapes of its tensors say 2"):
        build("sdt-v2-8-32", model.state_dict(), {"num_heads": "4"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size_h": 0}, "img_size_h=0 must be positive"),
        ({"embed_dims": 36}, "embed_dims=36 must be a multiple of 8, the stem has an eighth of it"),
        ({"embed_dims": 64, "num_heads": 48}, "a width of 64 must be a multiple of num_heads=48"),
        ({"last_dims": 42}, "a width of 42 must be a multiple of num_heads=8"),
        ({"depths": 2}, "0 blocks in the third stage, expected depths above last_depths"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(CStepError, match=message) as refusal:
        SDTV2(**arguments)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(refusal.value)
