"""Every example runs, as a reader would run it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compiler.zoo import build

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

ARGUMENTS = {
    "accuracy.py": ["--limit", "40"],
    "benchmark.py": ["emulator", "--model", "resnet-50", "--model", "spikformer-1-64", "--rounds", "2"],
    "inspect_passes.py": [],
    "keep_curve.py": ["--images", "20", "--keep", "1,0.5,0", "--seeds", "2", "--output", "curve"],
    "kept_tokens.py": ["--images", "3"],
    "quickstart.py": [],
    "sharing.py": ["--model", "digits", "--images", "1"],
    "train.py": ["--epochs", "1"],
    "train_halting.py": ["--first-epochs", "1", "--epochs", "1"],
    "train_timesteps.py": ["--first-epochs", "1", "--epochs", "1", "--weight", "1e-2", "--limit", "10"],
}
"""Smaller than by default where an example takes minutes."""

SAYS = {
    "accuracy.py": "differ between integer model and program: 0",
    "benchmark.py": "spikingjelly / emulator",
    "inspect_passes.py": "spike.integer_lif",
    "keep_curve.py": "the paper's score loses to random",
    "kept_tokens.py": "largest change",
    "quickstart.py": "top-1 99.",
    "sharing.py": "differ between integer module and emulator: 0 of",
    "train.py": "M parameters",
    "train_halting.py": "halting, as trained",
    "train_timesteps.py": "masked.safetensors: T_avg",
}

SLOW = {"train_timesteps.py"}
"""Those that take a minute even so."""


def test_every_example_is_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(ARGUMENTS)


def run_example(name: str, arguments: list[str], folder: Path) -> str:
    """What it says, started in `folder`."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600 if name in SLOW else 240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_curve_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    written: list[list[bytes]] = []
    for folder in ("one", "two"):
        arguments = ["--images", "5", "--keep", "1,0.5", "--score", "paper,random", "--seeds", "1"]
        run_example("keep_curve.py", [*arguments, "--output", folder], tmp_path)
        written.append([(tmp_path / folder / f"keep_curve.{ending}").read_bytes() for ending in ("csv", "svg")])
    assert written[0] == written[1]
    rows = written[0][0].decode().splitlines()
    assert [row.split(",")[:5] for row in rows[1:]] == [
        ["1", "all", "3", "0", "5"],
        ["0.5", "paper", "3", "0", "5"],
        ["0.5", "random", "3", "0", "5"],
    ]


@pytest.mark.parametrize("family", ["spikformer", "spikingformer", "sdt-v1", "sdt-v3"])
def test_a_trained_family_is_the_zoo_s_model_of_its_name(family: str) -> None:
    place = importlib.util.spec_from_file_location("train", EXAMPLES / "train.py")
    assert place is not None and place.loader is not None
    train = importlib.util.module_from_spec(place)
    sys.modules["train"] = train
    place.loader.exec_module(train)
    chosen = train.FAMILIES[family]
    trained = chosen.construct(**chosen.arguments).eval()
    metadata = {key: str(value) for key, value in chosen.arguments.items()}
    model, entry = build(chosen.name, trained.state_dict(), metadata)
    model.load_state_dict(trained.state_dict())
    digits = torch.from_numpy(train.digits("test", entry.input[1]).images[:2])
    with torch.no_grad():
        assert torch.equal(model(digits), trained(digits))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ARGUMENTS]
)
def test_example(name: str, tmp_path: Path) -> None:
    said = run_example(name, ARGUMENTS[name], tmp_path)
    assert SAYS[name] in said, said
