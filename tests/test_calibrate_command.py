"""`cstep calibrate`, `compile --settings`, and what is refused or warned of on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cstep
from compiler.settings import read_settings
from runtime.dataset import drawn, load_dataset
from runtime.report.measure import calibrated_on, inputs_for
from tests.models import DIGITS_CHECKPOINT

MODEL, IMAGES, RANGES = "spikformer-2-96", 100, 1024
CHECKPOINT = ("--checkpoint", str(DIGITS_CHECKPOINT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings found on digits, and the program compiled with them."""
    here = tmp_path_factory.mktemp("calibrated")
    found = ["calibrate", MODEL, *CHECKPOINT, "--data", "digits", "--images", str(IMAGES), "--guard", "none"]
    assert cstep.main([*found, "-o", str(here / "settings.toml")]) == 0
    built = ["compile", MODEL, *CHECKPOINT, "--calibration", "digits", "--no-check"]
    assert cstep.main([*built, "--settings", str(here / "settings.toml"), "-o", str(here / "net.cstep")]) == 0
    return here


Refuses = Callable[..., str]


def test_settings_are_found_on_images_that_no_range_came_from(folder: Path) -> None:
    found = read_settings(folder / "settings.toml")
    assert found.data is not None and found.exit is not None
    total = len(load_dataset("digits:train"))
    rows = drawn(total, total, seed=0)[RANGES : RANGES + IMAGES]
    program = cstep.load(folder / "net.cstep")
    assert inputs_for(program, "digits:train", rows.tolist()).digest == found.data.digest
    assert (found.data.images, found.model.name) == (IMAGES, MODEL)
    assert found.exit.rate is not None and 0 < found.exit.rate <= 0.4
    assert found.guard is None


def test_a_program_carries_its_settings(folder: Path) -> None:
    provenance = cstep.load(folder / "net.cstep").header.provenance
    assert provenance.settings == read_settings(folder / "settings.toml").canonical()
    assert "insert-exits{after=2 criterion=lightsoftmax tau=0." in provenance.pipeline


def test_images_that_settings_were_found_on_are_known_in_the_test_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = cstep.load(folder / "net.cstep")
    data = inputs_for(program, "digits:train")
    assert len(calibrated_on(program, len(data), data.rows)) == RANGES + IMAGES
    held_out = inputs_for(program, "digits")
    assert len(calibrated_on(program, len(held_out), held_out.rows)) == 0
    assert cstep.main(["run", str(folder / "net.cstep"), "digits:train", "--limit", "8"]) == 0
    assert "calibration data == test data" in capsys.readouterr().out


def test_settings_of_another_model_or_checkpoint(folder: Path, refuses: Refuses) -> None:
    line = refuses("compile", "spikformer-2-64", "--settings", folder / "settings.toml", "-o", folder / "other.cstep")
    assert line.endswith("settings for model spikformer-2-96, not spikformer-2-64; calibrate that one")
    text = (folder / "settings.toml").read_text().replace('checkpoint = "', 'checkpoint = "ffff')
    (folder / "older.toml").write_text(text)
    assert "was found with" not in text
    found = read_settings(folder / "older.toml")
    assert "were found with checkpoint sha256:ffff" in found.checkpoint_note(DIGITS_CHECKPOINT.name + " sha256:0")


def test_kept_tokens_are_found_and_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, program = tmp_path / "settings.toml", tmp_path / "net.cstep"
    found = ["calibrate", MODEL, *CHECKPOINT, "--data", "digits", "--images", str(IMAGES), "--exit-after", "none"]
    asked = ["--guard", "none", "--tokens", "auto", "--score", "temporal", "--loss", "1"]
    assert cstep.main([*found, *asked, "-o", str(file)]) == 0
    settings, out = read_settings(file), " ".join(capsys.readouterr().out.split())
    assert settings.exit is None is settings.guard
    assert settings.tokens is not None and settings.tokens.loss is not None
    assert settings.tokens.score == "temporal" and settings.tokens.loss <= 1
    assert len(settings.tokens.keep) == 2 and min(settings.tokens.keep) < 1
    for name, keep in zip(("block.0", "block.1"), settings.tokens.keep, strict=True):
        assert f"tokens kept in {name} {keep:.1%}" in out
    assert f"{settings.tokens.loss:.2f} points (bound 1)" in out
    built = ["compile", MODEL, *CHECKPOINT, "--calibration", "digits", "--no-check", "--settings", str(file)]
    assert cstep.main([*built, "-o", str(program)]) == 0
    assert "stop-tokens{keep=" in cstep.load(program).header.provenance.pipeline


def test_tokens_of_a_model_without_blocks(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "plain.py").write_text(
        "from compiler.zoo import Spikformer\n\n"
        "def plain():\n"
        "    return Spikformer(img_size_h=16, img_size_w=16, in_channels=1, embed_dims=16, num_heads=2, depths=0)\n"
    )
    arguments = ("--data", "digits", "--input-shape", "1,16,16", "--tokens", "auto", "-o", tmp_path / "settings.toml")
    line = refuses("calibrate", f"{tmp_path / 'plain.py'}:plain", *arguments)
    assert line.startswith("--tokens auto: stop-tokens: the network has no transformer blocks")
    assert not (tmp_path / "settings.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--exit-after", "4"), "--exit-after 4: the model has T=4; exits are after 1..3 timesteps"),
        (("--exit-after", "0"), "--exit-after 0: the model has T=4"),
        (("--exit-after", "two"), "--exit-after two: it must be numbers"),
        (("--rate", "2"), "--rate 2: must be more than 0"),
        (("--loss", "-0.1"), "--loss -0.1: must be 0 or more"),
        (("--images", "1000"), "--images 1000: digits has 418 that no range came from"),
        (("--images", "50"), "50 held-out images; at least 100"),
        (("--guard-after", "4"), "--guard-after 4: the model has T=4"),
        (("--tokens", "auto", "--score", "random"), "--score"),
        (("--tokens", "auto", "--score", "code"), "--score code: looks at all timesteps before a block"),
        (("-o", "nowhere/settings.toml"), "no directory nowhere"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(arguments: tuple[str, ...], said: str, refuses: Refuses) -> None:
    assert said in refuses("calibrate", MODEL, *CHECKPOINT, "--data", "digits", *arguments)


def test_data_that_calibrating_cannot_use(tmp_path: Path, refuses: Refuses) -> None:
    images = np.random.default_rng(0).standard_normal((200, 1, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "few.npz", x=images, y=np.zeros(200, np.int64))
    np.savez(tmp_path / "unlabelled.npz", x=images)
    calibrate = ("calibrate", MODEL, *CHECKPOINT, "--data")
    assert "the ranges came from all of its 200 images" in refuses(*calibrate, tmp_path / "few.npz")
    assert "has no labels" in refuses(*calibrate, tmp_path / "unlabelled.npz", "--calibration", "digits")


def test_a_ladder_needs_settings_and_a_program_has_its_own(folder: Path, refuses: Refuses) -> None:
    assert "or --settings FILE.toml" in refuses("eval", MODEL, "digits")
    assert "leave out" in refuses("eval", folder / "net.cstep", "digits", "--settings", folder / "settings.toml")
