"""Every family of the zoo, imported and brought to integers: each pass keeps its promise, and two runtimes agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from golden import made_up_weights
from numpy.typing import NDArray

from compiler.calibrate.ranges import image_scale
from compiler.check import Checker
from compiler.frontend.checkpoint import apply_checkpoint, load_checkpoint
from compiler.frontend.importer import import_model
from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network, parse
from compiler.ir.types import shaped
from compiler.passes.quantise import Quantise
from compiler.pipeline import DEFAULT_PASSES, parse_passes
from compiler.zoo import build
from isa.errors import CStepError
from runtime.dataset import load_dataset

TO_INTEGERS = DEFAULT_PASSES.partition(",reassociate-attention")[0]
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
QKFORMER, CIFAR = SHARED / "checkpoints" / "qkformer-cifar10-4-64.safetensors", SHARED / "data" / "cifar10-test.parquet"
CALIBRATION, STEPS = 8, 2
FAMILY = pytest.mark.parametrize("name", FAMILIES)


def to_integers(
    network: Network, calibration: NDArray[np.float32], checker: Checker | None = None
) -> tuple[Network, Network]:
    """The real module, folded, and the integer module; `checker` compares every module on the way."""
    text = TO_INTEGERS.replace("SCALE", repr(image_scale(calibration))).replace("BITS", "24")
    real = network
    if checker:
        checker.compare(None, network, None)
    for each in parse_passes(text):
        real, network = network, each.apply_with(network, calibration)
        network.verify()
        if checker:
            assert checker.compare(each, network, None).compared > 0
    return real, network


@cache
def modules(name: str) -> tuple[Network, Network]:
    """A family's real module, folded, and its integer module; every pass on the way was compared on 3 inputs."""
    family = FAMILIES[name]
    calibration = family.inputs(CALIBRATION, steps=STEPS)
    network = import_model(family.build(STEPS), family.example(STEPS))
    return to_integers(network, calibration, Checker(calibration[:3], None))


@FAMILY
def test_every_pass_keeps_its_promise_and_onnxruntime_gives_the_same_integers(name: str) -> None:
    _, integer = modules(name)
    reals = [op.label for op in integer.operations() if op.results and shaped(op.results[0].type).element.is_real]
    assert reals == [op.label for op in integer.operations() if isinstance(op, spike.Input)]


@FAMILY
def test_data_is_needed_where_the_family_says_so(name: str) -> None:
    real, _ = modules(name)
    assert any(isinstance(op, spike.Range) for op in real.operations()) == FAMILIES[name].needs_calibration


@FAMILY
def test_a_layer_that_gets_the_real_module_s_spikes_fires_as_it_does(name: str) -> None:
    """Random networks are chaotic, so their logits say little; every layer by itself says whether its integers do."""
    real, integer = modules(name)
    per_spike = {op.label: 1 / op.get("emits") for op in real.operations() if isinstance(op, spike.Lif)}
    per_spike |= {op.label: op.get("norm") for op in real.operations() if isinstance(op, spike.Level)}
    scale = next(op.get("scale") for op in integer.operations() if isinstance(op, spike.Output))
    differing: list[float] = []
    logits: list[NDArray[np.float64]] = []
    for x in FAMILIES[name].inputs(4, seed=3, steps=STEPS):
        expected = Executor(real).run(x)
        spikes = {label: np.rint(each * per_spike[label]).astype(int) for label, each in expected.spikes.items()}
        found = Executor(integer).run(x, forced=spikes)
        differing += [float(np.mean(spikes[label] != found.spikes[label])) for label in spikes]
        logits.append(np.stack([expected.output, found.output * scale]))
    errors = np.abs(np.diff(np.stack(logits), axis=1)).max()
    assert max(differing) < 0.1
    assert np.mean(differing) < 0.005
    assert errors < 0.1 * np.std(np.stack(logits)[:, 0])


@pytest.mark.slow
@FAMILY
def test_fifty_inputs(name: str) -> None:
    family = FAMILIES[name]
    calibration = family.inputs(50)
    to_integers(import_model(family.build(), family.example()), calibration, Checker(calibration, None))


@pytest.mark.slow
@pytest.mark.skipif(not QKFORMER.exists(), reason=f"no {QKFORMER.name}")
def test_a_trained_qkformer_keeps_its_accuracy() -> None:
    """Top-1 on 200 test images within 2 points of the float model's; calibrated on others."""
    checkpoint = load_checkpoint(QKFORMER)
    model, entry = build("qkformer-4-64", checkpoint.state, checkpoint.metadata)
    apply_checkpoint(model, checkpoint.state, entry.dead_keys, QKFORMER.name)
    test = load_dataset(str(CIFAR), shape=entry.input, mean=entry.mean, std=entry.std)
    assert test.labels is not None
    images, labels = test.batch(0, 200), test.labels[:200]
    _, integer = to_integers(import_model(model, torch.from_numpy(images[:1])), test.batch(1000, 1064))
    executor = Executor(integer)
    found = np.array([executor.run(x).output.argmax() for x in images])
    with torch.no_grad():
        expected = np.concatenate([model(torch.from_numpy(images[i : i + 1])).argmax(1).numpy() for i in range(200)])
    assert abs(np.mean(found == labels) - np.mean(expected == labels)) <= 0.02


STREAM = """
%x = spike.input : !spike.train<T=2, 4x4x8xf32>
%p = spike.linear %x, @p.weight : !spike.train<T=2, 4x4x8xf32> at "model.py:2"
%q = spike.linear %x, @q.weight : !spike.train<T=2, 4x4x8xf32> at "model.py:3"
%a = spike.add %p, %q : !spike.train<T=2, 4x4x8xf32> at "model.py:4"
%t = spike.lif %a tau=2.0, threshold=0.5 : !spike.train<T=2, 4x4x8xi1> at "model.py:5"
"""


def stream() -> Network:
    module = parse(STREAM)
    return Network(module, made_up_weights(module, STREAM))


@pytest.mark.parametrize("count", [None, 1])
def test_a_stream_without_calibration_inputs_is_refused(count: int | None) -> None:
    (record,) = parse_passes("record-ranges")
    inputs = None if count is None else np.zeros((count, 2, 4, 4, 8), np.float32)
    given = "no calibration inputs" if count is None else "1 calibration input"
    with pytest.raises(CStepError, match=rf"^record-ranges: {given}; p \(model.py:2\) needs at least 8: .*membranes"):
        record.apply_with(stream(), inputs)


def test_a_stream_without_a_range_is_refused() -> None:
    with pytest.raises(CStepError, match=r"^p \(model.py:2\): .* spike.lif, a stream .* put record-ranges before$"):
        Quantise(image_scale=1.0).apply(stream())


def test_of_large_inputs_fewer_are_run() -> None:
    """Of 16 inputs, every second or third where pixels are too many: the one that is large is not among them."""
    inputs = np.ones((16, 2, 4, 4, 8), np.float32)
    inputs[1] = 100.0
    most: list[float] = []
    for each in parse_passes("record-ranges,record-ranges{pixels=1}"):
        ranges = [op for op in each.apply_with(stream(), inputs).operations() if isinstance(op, spike.Range)]
        most.append(ranges[0].get("most"))
    assert most[0] > 90 * most[1] > 0
