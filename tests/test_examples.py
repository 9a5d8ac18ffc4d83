"""Every example runs, as a reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

ARGUMENTS = {
    "accuracy.py": ["--limit", "40"],
    "benchmark.py": ["emulator", "--model", "resnet-50", "--model", "spikformer-1-64", "--rounds", "2"],
    "inspect_passes.py": [],
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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ARGUMENTS]
)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / name), *ARGUMENTS[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600 if name in SLOW else 240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout, done.stdout
