"""The two trained checkpoints, on 200 real images each: every pass, the oracle and the emulator agree in every integer.

With `make test-all`; `make test` checks the same on a few images at every compile.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cstep
from compiler.frontend.eager import eager_labels
from compiler.frontend.model import open_model
from compiler.pipeline import Compiled
from isa.machine import load_machine
from runtime.dataset import Dataset, load_dataset

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
IMAGES = 200
DIGITS = ("spikformer-2-96", ROOT / "examples" / "spikformer-digits.safetensors", "digits", "digits")
CIFAR = (
    "spikformer-2-64",
    SHARED / "checkpoints" / "spikformer-cifar10-2-64.safetensors",
    str(SHARED / "data" / "cifar10-train.parquet"),
    str(SHARED / "data" / "cifar10-test.parquet"),
)
BOTH = pytest.mark.parametrize("case", [DIGITS, CIFAR], ids=["digits", "cifar10"])
Case = tuple[str, Path, str, str]


def compiled_case(case: Case, schedule: str, images: int) -> tuple[Compiled, Dataset]:
    """The checkpoint compiled, checked on `images` test images, and its test set."""
    name, checkpoint, train, test = case
    if not checkpoint.exists():
        pytest.skip(f"{checkpoint.name} is not here")
    opened = open_model(name, checkpoint)
    settings = {"shape": opened.input, "mean": opened.mean, "std": opened.std}
    training = load_dataset(train, split="train", **settings).take(512, seed=0)
    dataset = load_dataset(test, split="test", **settings)
    compiled = cstep.compile_checked(
        opened.module,
        training.images[:1],
        training.images,
        load_machine("c-step"),
        check=dataset.batch(0, images),
        passes=None,
        schedule=schedule,
        dump_to=None,
        origin=(name, opened.checkpoint, training.name),
        normalisation=(training.mean, training.std),
    )
    return compiled, dataset


@pytest.mark.slow
@BOTH
def test_every_pass_agrees_on_200_images(case: Case) -> None:
    """A difference in any neuron's current would have stopped the build; here all were really compared."""
    compiled, _ = compiled_case(case, "windows", IMAGES)
    neurons = sum(int(np.prod(layer.neurons)) for layer in compiled.program.header.layers if layer.neurons is not None)
    expected = IMAGES * (neurons * compiled.program.header.timesteps + compiled.program.header.output.classes)
    compared = {check.name: check.compared for check in compiled.checks}
    assert all(compared[name] == expected for name in ("quantise", "lower-to-cstep", "allocate", "synchronise"))


@pytest.mark.slow
@BOTH
def test_program_is_within_half_a_point_of_the_float_model(case: Case) -> None:
    """Quantisation costs at most 0.5 point of top-1 on the whole test set."""
    compiled, dataset = compiled_case(case, "layers", 4)
    opened = open_model(case[0], case[1])
    floats = eager_labels(opened.module, dataset.images, lambda done: None)
    program = cstep.run(compiled.program, dataset.images)
    assert dataset.labels is not None
    difference = np.mean(floats == dataset.labels) - np.mean(program.labels == dataset.labels)
    assert difference <= 0.005, f"float is {100 * difference:.2f} points better"
