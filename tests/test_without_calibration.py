"""Compiling a zoo model from its checkpoint alone, and which families refuse that and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import cstep
from compiler import zoo
from compiler.calibrate.without_data import drawn_inputs, pixel_scale
from compiler.frontend.model import open_model
from compiler.zoo.random_weights import randomise

SMALL = {"T": "2", "num_classes": "5", "num_heads": "2", "img_size_h": "16", "img_size_w": "16"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of a small network of a zoo name, with metadata that says its sizes."""

    def made(name: str) -> Path:
        model, entry = zoo.build(name, None, SMALL)
        randomise(model, torch.from_numpy(drawn_inputs(4, entry.shape, entry.mean, entry.std)), seed=0)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors", SMALL)
        return tmp_path / f"{name}.safetensors"

    return made


Says = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Run a command in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cstep.main([str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("mean", "std"), [(zoo.family.CIFAR.mean, zoo.family.CIFAR.std), ((0.1, 0.9), (0.5, 0.4))])
def test_the_scale_of_pixels_is_their_range(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = np.arange(256) / 255
    normalised = (pixels[:, None] - np.array(mean)) / np.array(std)
    assert np.abs(normalised).max() / pixel_scale(mean, std) == pytest.approx(127, rel=1e-12)


def test_drawn_inputs_are_in_the_range_and_the_same_again() -> None:
    mean, std = zoo.family.IMAGENET.mean, zoo.family.IMAGENET.std
    images = drawn_inputs(2, (3, 8, 8), mean, std)
    assert np.array_equal(images, drawn_inputs(2, (3, 8, 8), mean, std))
    assert 100 < np.abs(images / pixel_scale(mean, std)).max() <= 127.001
    events = drawn_inputs(2, (4, 2, 8, 8))
    assert np.array_equal(events, np.rint(events))
    assert events.max() >= 2


def test_a_checkpoint_is_enough_where_spikes_are_added(checkpoint: Callable[..., Path], command: Says) -> None:
    code, out, err = command("compile", "spikformer-1-16", "--checkpoint", checkpoint("spikformer-1-16"))
    assert code == 0, err
    assert "4 random inputs (8-bit pixels, normalised); no calibration data were needed" in out
    assert "emulator == integer model" in out
    program = cstep.load("spikformer-1-16.cstep")
    assert program.header.provenance.calibration == "none: the range of normalised 8-bit pixels"
    assert program.header.input.scale == pixel_scale(program.header.input.mean, program.header.input.std)


def test_events_need_no_calibration_either(checkpoint: Callable[..., Path], command: Says) -> None:
    name = "spikformer-events-1-16"
    code, out, err = command("compile", name, "--checkpoint", checkpoint(name), "--check-images", 1)
    assert code == 0, err
    assert "1 random input (event counts)" in out
    counts = np.random.default_rng(0).poisson(0.3, (3, 2, 2, 16, 16)).astype(np.uint8)
    np.savez("events.npz", x=counts, y=np.arange(3))
    code, out, err = command("run", f"{name}.cstep", "events.npz")
    assert code == 0, err
    assert "3 inputs of events.npz" in out
    assert "of 3" in out.splitlines()[1]


def test_membrane_residuals_ask_for_calibration_and_say_why(checkpoint: Callable[..., Path], command: Says) -> None:
    name = "spikingformer-1-16"
    weights = checkpoint(name)
    code, _, err = command("compile", name, "--checkpoint", weights)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "give --calibration DATA, 8 inputs or more: its residuals are membranes" in err
    assert not Path(f"{name}.cstep").exists()
    opened = open_model(name, weights)
    assert opened.input is not None
    images = drawn_inputs(8, opened.input, opened.mean or (), opened.std or ())
    with pytest.raises(cstep.CStepError, match="residuals are membranes"):
        cstep.compile(opened.module, images[:1], mean=opened.mean or (), std=opened.std or ())
    np.savez("images.npz", x=images)
    code, out, err = command("compile", name, "--checkpoint", weights, "--calibration", "images.npz", "--no-check")
    assert code == 0, err
    assert "not compared" in out


def test_a_range_must_be_known(command: Says) -> None:
    source = "from compiler.zoo import Spikformer\nbuild = lambda: Spikformer(depths=1, embed_dims=16, num_heads=2)\n"
    Path("made.py").write_text(source)
    code, _, err = command("compile", "made.py:build")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "give --calibration DATA, 8 inputs or more; or --input-shape, --mean and --std" in err
    model, entry = zoo.build("spikformer-1-16", None, SMALL)
    with pytest.raises(cstep.CStepError, match="or the mean and std of 8-bit pixels"):
        cstep.compile(model, drawn_inputs(1, entry.shape, entry.mean, entry.std))
    with pytest.raises(cstep.CStepError, match="the model takes 3 channels"):
        cstep.compile(model, drawn_inputs(1, entry.shape, entry.mean, entry.std), mean=(0.5,), std=(0.5,))


def test_large_inputs_are_compared_on_one() -> None:
    assert [cstep.check_images(shape) for shape in ((3, 32, 32), (3, 224, 224), (16, 2, 128, 128))] == [4, 1, 1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("spikformer-1-16", ("patch_embed.proj_conv", "image", "count<2>", "count<3>")),
        ("spikformer-events-1-16", ("events", "count<2>")),
        ("spikingformer-1-16", ("image", "to compile it give --calibration: its residuals are membranes")),
    ],
)
def test_check_says_where_a_layers_input_is_not_binary(
    checkpoint: Callable[..., Path], command: Says, name: str, says: tuple[str, ...]
) -> None:
    code, out, err = command("check", name, "--checkpoint", checkpoint(name))
    assert code == 0, err
    assert "weighted layers take spikes only; the others:" in out
    for words in says:
        assert words in out
    assert f"{name} maps to c-step" in out
