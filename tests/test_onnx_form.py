"""The ONNX form and meaning.py give the same integers: every neuron's current, and the logits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.frontend.checkpoint import apply_checkpoint, load_checkpoint
from compiler.frontend.importer import import_model
from compiler.ir.meaning import Executor, Run
from compiler.ir.network import Network, parse
from compiler.ir.onnx.integer import Oracle, to_onnx
from compiler.passes.canonicalise import Canonicalise
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.fuse_attention import FuseAttention
from compiler.passes.quantise import Quantise
from compiler.zoo import build
from isa.errors import CStepError
from runtime.dataset import load_dataset

CHECKPOINT = Path(__file__).resolve().parent.parent / "examples" / "spikformer-digits.safetensors"
Array = NDArray[np.generic]


@pytest.fixture(scope="module")
def digits() -> tuple[Network, NDArray[np.float32]]:
    """The quantised digits network, and four images [4, 1, 16, 16]."""
    checkpoint = load_checkpoint(CHECKPOINT)
    model, entry = build("spikformer-2-96", checkpoint.state, checkpoint.metadata)
    apply_checkpoint(model, checkpoint.state, entry.dead_keys, "digits")
    images = load_dataset("digits", split="test", shape=entry.input, mean=entry.mean, std=entry.std).batch(0, 4)
    network = import_model(model, torch.from_numpy(images[:1]))
    quantise = Quantise(image_scale=float(np.abs(images).max()) / 127)
    for step in (FuseAttention(), Canonicalise(), FoldBatchNorm(), quantise):
        network = step.apply(network)
    return network, images


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """int8 weights drawn at random, by name and shape."""
    generator = np.random.default_rng(5)
    return {name: generator.integers(-127, 128, shape).astype(np.int8) for name, shape in shapes.items()}


def agree(network: Network, x: NDArray[np.float32]) -> Run:
    """What both make of `x`; they must not differ anywhere."""
    network.verify()
    model = to_onnx(network)
    onnx.checker.check_model(model, full_check=True)
    expected, found = Executor(network).run(x), Oracle.of(model).run(x)
    assert np.array_equal(expected.output, found.output)
    assert expected.currents.keys() == found.currents.keys()
    assert expected.streams.keys() == found.streams.keys()
    for label, current in (expected.currents | expected.streams).items():
        assert np.array_equal(current, (found.currents | found.streams)[label]), label
    return found


def drawn(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(9).standard_normal(shape) * scale).astype(np.float32)


def test_digits_agree_in_every_current(digits: tuple[Network, NDArray[np.float32]]) -> None:
    network, images = digits
    executor, oracle = Executor(network), Oracle(network)
    for image in images:
        expected, found = executor.run(image), oracle.run(image)
        assert np.array_equal(expected.output, found.output)
        assert len(found.currents) == 19
        assert expected.currents.keys() == found.currents.keys()
        assert all(np.array_equal(expected.currents[label], found.currents[label]) for label in found.currents)


def test_one_weight_off_by_one_is_noticed(digits: tuple[Network, NDArray[np.float32]]) -> None:
    network, images = digits
    model, expected = to_onnx(network), Executor(network).run(images[0])
    held = next(tensor for tensor in model.graph.initializer if tensor.name == "patch_embed.proj_conv1.weight")
    changed = numpy_helper.to_array(held).copy()
    changed[3, 4, 1, 1] += 1
    held.CopyFrom(numpy_helper.from_array(changed, held.name))
    found = Oracle.of(model).run(images[0])
    same = {label: np.array_equal(expected.currents[label], found.currents[label]) for label in found.currents}
    assert same["patch_embed.proj_lif"]
    assert not same["patch_embed.proj_lif1"]
    differing = np.argwhere(expected.currents["patch_embed.proj_lif1"] != found.currents["patch_embed.proj_lif1"])
    assert set(differing[:, -1]) == {3}


NEURON = """
%input = spike.input : !spike.train<T=6, 2x5x4xf32>
%image = spike.quantise_image %input scale=1.0 : !spike.train<T=6, 2x5x4xi8>
%pixels = spike.transpose %image order=[1, 2, 0] : !spike.train<T=6, 5x4x2xi8>
%sums = spike.conv %pixels, @w kernel=3, padding=1 : !spike.train<T=6, 5x4x3xint<-300000, 300000>>
%current = spike.align %sums, @bias shift={shift} : !spike.train<T=6, 5x4x3xint<-4000000, 4000000>>
%fire = spike.integer_lif %current, @threshold {neuron} : !spike.train<T=6, 5x4x3xi1>
%all = spike.sum_time %fire : !spike.tensor<5x4x3xint<0, 6>>
%rows = spike.sum %all axis=0 : !spike.tensor<4x3xint<0, 30>>
%logits = spike.sum %rows axis=0 : !spike.tensor<3xint<0, 120>>
spike.output %logits
"""


def neuron(shift: int, text: str) -> Network:
    held = weights(w=(3, 2, 3, 3))
    held["bias"] = np.array([-71, 0, 350], np.int32)
    held["threshold"] = np.array([900, 5000, 30000], np.int32)
    return Network(parse(NEURON.format(shift=shift, neuron=text)), held)


@pytest.mark.parametrize("shift", [-5, -1, 0, 3])
@pytest.mark.parametrize("charge", ["lif", "lif_undecayed", "if"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("decay", [(1, 1), (1, 0), (21845, 15), (10923, 15), (65535, 16)])
def test_neurons_agree(shift: int, charge: str, reset: str, decay: tuple[int, int]) -> None:
    text = f"multiplier={decay[0]}, divisor={decay[1]}, reset={reset}, charge={charge}"
    found = agree(neuron(shift, text), drawn(6, 2, 5, 4, scale=40.0))
    assert found.currents["fire"].min() < 0 < found.currents["fire"].max()


def fire_by_hand(
    currents: list[int], threshold: int, decay: tuple[int, int], charge: str, reset: str
) -> tuple[int, list[int]]:
    """Spikes and membranes of one neuron, in Python's integers, as the manual page of `Fire` says."""
    multiplier, divisor = decay
    half, v, spikes, membranes = 1 << divisor >> 1, 0, 0, list[int]()
    for x in currents:
        if charge == "lif":
            h = v + ((x - v) * multiplier + half >> divisor)
        elif charge == "lif_undecayed":
            h = v + x - (v * multiplier + half >> divisor)
        else:
            h = v + x
        fired = h >= threshold
        v = h if not fired else 0 if reset == "hard" else h - threshold
        v = max(-(1 << 15), min((1 << 15) - 1, v))
        spikes += fired
        membranes.append(v)
    return spikes, membranes


@pytest.mark.parametrize("charge", ["lif", "lif_undecayed", "if"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("decay", [(1, 1), (21845, 15)])
def test_neurons_agree_with_python_integers(charge: str, reset: str, decay: tuple[int, int]) -> None:
    """Also where the membrane is clamped to int16 at either end."""
    network = neuron(3, f"multiplier={decay[0]}, divisor={decay[1]}, reset={reset}, charge={charge}")
    found = agree(network, drawn(6, 2, 5, 4, scale=90.0))
    currents, clamped = found.currents["fire"].reshape(6, 20, 3), 0
    for channel, threshold in enumerate(network.weights["threshold"].tolist()):
        total = 0
        for place in range(20):
            spikes, membranes = fire_by_hand(currents[:, place, channel].tolist(), threshold, decay, charge, reset)
            total += spikes
            clamped += sum(membrane in (-(1 << 15), (1 << 15) - 1) for membrane in membranes)
        assert found.output[channel] == total
    assert clamped


def test_a_negative_shift_rounds_half_up() -> None:
    text = """
    %input = spike.input : !spike.train<T=1, 8xf32>
    %image = spike.quantise_image %input scale=1.0 : !spike.train<T=1, 8xi8>
    %current = spike.align %image shift=-2 : !spike.train<T=1, 8xint<-40, 40>>
    %fire = spike.integer_lif %current, @threshold multiplier=1, divisor=1 : !spike.train<T=1, 8xi1>
    %logits = spike.sum_time %fire : !spike.tensor<8xint<0, 1>>
    spike.output %logits
    """
    network = Network(parse(text), {"threshold": np.ones(8, np.int32)})
    found = agree(network, np.array([[-7, -6, -5, -2, 1, 2, 5, 6]], np.float32))
    assert found.currents["fire"].tolist() == [[-2, -1, -1, 0, 0, 1, 1, 2]]


def test_an_image_rounds_half_to_even_and_is_clipped() -> None:
    text = """
    %input = spike.input : !spike.tensor<1x1x8xf32>
    %image = spike.quantise_image %input scale=0.5 : !spike.tensor<1x1x8xi8>
    %logits = spike.reshape %image : !spike.tensor<8xi8>
    spike.output %logits
    """
    image = np.array([[[0.25, 0.75, -0.25, -0.75, 1.25, 80.0, -80.0, 0.2]]], np.float32)
    assert agree(Network(parse(text)), image).output.tolist() == [0, 2, 0, -2, 2, 127, -127, 0]


@pytest.mark.parametrize(
    ("groups", "kernel", "stride", "padding"),
    [(1, 3, 1, 1), (2, 3, 2, 1), (4, 3, 1, 0), (1, 1, 2, 0), (2, 5, 3, 2), (1, 7, 4, 3), (4, 2, 2, 0)],
)
def test_convolutions_agree(groups: int, kernel: int, stride: int, padding: int) -> None:
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (9, 7))
    text = f"""
    %input = spike.input : !spike.tensor<4x9x7xf32>
    %image = spike.quantise_image %input scale=0.02 : !spike.tensor<4x9x7xi8>
    %pixels = spike.transpose %image order=[1, 2, 0] : !spike.tensor<9x7x4xi8>
    %sums = spike.conv %pixels, @w kernel={kernel}, stride={stride}, padding={padding}, groups={groups}
        : !spike.tensor<{height}x{width}x8xint<-4000000, 4000000>>
    %logits = spike.reshape %sums : !spike.tensor<{height * width * 8}xint<-4000000, 4000000>>
    spike.output %logits
    """
    network = Network(parse(text), weights(w=(8, 4 // groups, kernel, kernel)))
    assert len(np.unique(agree(network, drawn(4, 9, 7)).output)) > 8


BLOCK = """
%input = spike.input : !spike.tensor<2x8x6xf32>
%image = spike.quantise_image %input scale=0.02 : !spike.tensor<2x8x6xi8>
%pixels = spike.transpose %image order=[1, 2, 0] : !spike.tensor<8x6x2xi8>
%x = spike.repeat %pixels : !spike.train<T=3, 8x6x2xi8>
%c = spike.conv %x, @stem kernel=3, padding=1 : !spike.train<T=3, 8x6x8xint<-300000, 300000>>
%a = spike.align %c shift=-3 : !spike.train<T=3, 8x6x8xint<-40000, 40000>>
%s = spike.integer_lif %a, @t multiplier=1, divisor=1 : !spike.train<T=3, 8x6x8xi1>
%p = spike.max_pool %s kernel=3, stride=2, padding=1 : !spike.train<T=3, 4x3x8xi1>
%y = spike.add %p, %p : !spike.train<T=3, 4x3x8xcount<2>>
%tokens = spike.reshape %y : !spike.train<T=3, 12x8xcount<2>>
%ql = spike.linear %tokens, @q : !spike.train<T=3, 12x8xint<-3000, 3000>>
%q = spike.integer_lif %ql, @t multiplier=1, divisor=1 : !spike.train<T=3, 12x8xi1>
%kl = spike.linear %tokens, @k : !spike.train<T=3, 12x8xint<-3000, 3000>>
%k = spike.integer_lif %kl, @t multiplier=1, divisor=2, reset=soft : !spike.train<T=3, 12x8xi1>
%v = spike.add %q, %tokens : !spike.train<T=3, 12x8xcount<3>>
%scores = spike.attention %q, %k, %v heads={heads} : !spike.train<T=3, 12x8xint<0, {most}>>
%al = spike.align %scores shift=5 : !spike.train<T=3, 12x8xint<0, 9216>>
%o = spike.integer_lif %al, @t multiplier=1, divisor=1 : !spike.train<T=3, 12x8xi1>
%z = spike.add %o, %tokens : !spike.train<T=3, 12x8xcount<3>>
%sum = spike.sum %z axis=0 : !spike.train<T=3, 8xint<0, 36>>
%total = spike.sum_time %sum : !spike.tensor<8xint<0, 108>>
%head = spike.linear %total, @head, @head.bias : !spike.tensor<5xint<-120000, 120000>>
spike.output %head scale=0.1
"""


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_a_block_agrees(heads: int) -> None:
    held = weights(stem=(8, 2, 3, 3), q=(8, 8), k=(8, 8), head=(5, 8))
    held["head.bias"] = np.array([-9000, 3, 0, 12000, 77], np.int32)
    held["t"] = np.array([40, 90, 100, 133, 150, 200, 300, 400], np.int32)
    found = agree(Network(parse(BLOCK.format(heads=heads, most=12 * 8 // heads * 3)), held), drawn(2, 8, 6))
    assert all(current.any() for current in found.currents.values())
    assert found.output.any()


LINEAR = """
%input = spike.input : !spike.train<T=2, 1x64xf32>
%image = spike.quantise_image %input scale=1.0 : !spike.train<T=2, 1x64xi8>
%wide = spike.linear %image, @w : !spike.train<T=2, 1x{outputs}xint<-{bound}, {bound}>>
%total = spike.sum_time %wide : !spike.tensor<1x{outputs}xint<-{bound}, {bound}>>
%row = spike.reshape %total : !spike.tensor<{outputs}xint<-{bound}, {bound}>>
spike.output %row
"""


def refusal(text: str, held: dict[str, Array]) -> str:
    with pytest.raises(CStepError) as caught:
        to_onnx(Network(parse(text), held))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bound_past_float32_is_refused_by_name() -> None:
    text = LINEAR.format(outputs=4, bound=1 << 24)
    message = refusal(text, weights(w=(4, 64)))
    assert message == "wide: spike.linear could reach 16777216; its integers are carried exactly below 2^24"


def test_convolutions_that_pass_the_bound_in_their_type_are_refused() -> None:
    held = neuron(0, "multiplier=1, divisor=1").weights | {"w": np.full((3, 2, 3, 3), 30000, np.int32)}
    message = refusal(NEURON.format(shift=0, neuron="multiplier=1, divisor=1"), held)
    assert message == "sums: spike.conv could reach 68580000; its integers are carried exactly below 2^24"


def test_a_head_past_float32_is_exact_in_double() -> None:
    text = """
    %input = spike.input : !spike.tensor<1x1x64xf32>
    %image = spike.quantise_image %input scale=1.0 : !spike.tensor<1x1x64xi8>
    %row = spike.reshape %image : !spike.tensor<64xi8>
    %head = spike.linear %row, @w, @b : !spike.tensor<4xint<-300000000, 300000000>>
    spike.output %head
    """
    held: dict[str, Array] = {"w": np.full((4, 64), 30001, np.int32), "b": np.array([1, 2, 3, 4], np.int32)}
    found = agree(Network(parse(text), held), np.full((1, 1, 64), 125.0, np.float32))
    assert found.output.tolist() == [240008001, 240008002, 240008003, 240008004]


def test_a_sum_past_float32_is_exact_in_double() -> None:
    text = """
    %input = spike.input : !spike.train<T=3, 1x64xf32>
    %image = spike.quantise_image %input scale=1.0 : !spike.train<T=3, 1x64xi8>
    %wide = spike.linear %image, @w : !spike.train<T=3, 1x4xint<-16000000, 16000000>>
    %total = spike.sum_time %wide : !spike.tensor<1x4xint<-48000000, 48000000>>
    %row = spike.reshape %total : !spike.tensor<4xint<-48000000, 48000000>>
    spike.output %row
    """
    found = agree(Network(parse(text), {"w": np.full((4, 64), 1999, np.int32)}), np.full((3, 1, 64), 125, np.float32))
    assert found.output.tolist() == [47976000] * 4


STREAMS = """
%input = spike.input : !spike.train<T=2, 1x64xf32>
%image = spike.quantise_image %input scale=0.02 : !spike.train<T=2, 1x64xi8>
%x = spike.reshape %image : !spike.train<T=2, 8x8xi8>
%y = spike.rescale %x, @m, @b divisor={divisor} : !spike.train<T=2, 8x8xfixed<16, 6>>
%z = spike.add %y, %y : !spike.train<T=2, 8x8xfixed<16, 6>>
%pixels = spike.reshape %z : !spike.train<T=2, 2x4x8xfixed<16, 6>>
%pool = spike.max_pool %pixels kernel=3, stride=1, padding=1 : !spike.train<T=2, 2x4x8xfixed<16, 6>>
%c = spike.align %pool shift=-3 : !spike.train<T=2, 2x4x8xint<-4096, 4096>>
%n = spike.integer_level %c, @t levels=4{ties} : !spike.train<T=2, 2x4x8xcount<4>>
%d = spike.conv %n, @w kernel=3, padding=1, rows=1 : !spike.train<T=2, 2x4x8xint<-8000, 8000>>
%s = spike.integer_lif %d, @t multiplier=1, divisor=1 : !spike.train<T=2, 2x4x8xi1>
%k = spike.reshape %s : !spike.train<T=2, 8x8xi1>
%e = spike.dilate %k heads=2 : !spike.train<T=2, 8x8xi1>
%f = spike.multiply %e, %k : !spike.train<T=2, 8x8xi1>
%g = spike.sum %f axis=0 : !spike.train<T=2, 8xint<0, 8>>
%h = spike.integer_lif %g, @one multiplier=1, divisor=0 : !spike.train<T=2, 8xi1>
%i = spike.mask %e, %h : !spike.train<T=2, 8x8xi1>
%j = spike.head_sum %i heads=4 : !spike.train<T=2, 8x4xint<0, 2>>
%l = spike.integer_lif %j, @few multiplier=1, divisor=0 : !spike.train<T=2, 8x4xi1>
%o = spike.mask %e, %l : !spike.train<T=2, 8x8xi1>
%v = spike.reshape %n : !spike.train<T=2, 4x16xcount<4>>
%q = spike.reshape %o : !spike.train<T=2, 4x16xi1>
%half = spike.linear %q, @half : !spike.train<T=2, 4x8xint<-2048, 2048>>
%qk = spike.integer_lif %half, @t multiplier=1, divisor=1 : !spike.train<T=2, 4x8xi1>
%a = spike.attention %qk, %qk, %v heads=4 : !spike.train<T=2, 4x16xint<0, 32>>
%m = spike.sum %a axis=0 : !spike.train<T=2, 16xint<0, 128>>
%u = spike.sum_time %m : !spike.tensor<16xint<0, 256>>
%r = spike.align %u shift=-1 : !spike.tensor<16xint<0, 128>>
%logits = spike.linear %r, @head : !spike.tensor<5xint<-260000, 260000>>
spike.output %logits
"""


@pytest.mark.parametrize(("divisor", "ties"), [(0, ""), (5, ", ties=up"), (9, "")])
def test_streams_levels_and_masks_agree(divisor: int, ties: str) -> None:
    """Every op that the families beside Spikformer need, some of them clamping, some of them at ties."""
    held = weights(w=(8, 8, 1, 3), head=(5, 16), half=(8, 16))
    held |= {
        "m": np.array([1, 2, 3, 200, 300, 32768, 50000, 65535], np.int32) >> max(0, 4 - divisor),
        "b": np.array([0, 5, -7, 30000, -30000, 1, 0, 99], np.int32),
        "t": np.array([2, 4, 6, 8, 10, 40, 100, 300], np.int32),
        "one": np.ones(8, np.int32),
        "few": np.ones(4, np.int32),
    }
    found = agree(Network(parse(STREAMS.format(divisor=divisor, ties=ties)), held), drawn(2, 1, 64))
    assert found.streams["y"].any()
    assert all(current.any() for current in found.currents.values())


def test_a_decay_past_double_is_refused() -> None:
    text = NEURON.format(shift=0, neuron=f"multiplier={1 << 40}, divisor=40")
    held = neuron(0, "multiplier=1, divisor=1").weights
    assert refusal(text, held).startswith("fire: its decay could reach")


def test_real_modules_are_refused() -> None:
    text = """
    %input = spike.input : !spike.train<T=2, 4xf32>
    %s = spike.lif %input tau=2.0, threshold=1.0 : !spike.train<T=2, 4xi1>
    """
    assert refusal(text, {}) == "s: spike.lif has no ONNX form; only integer modules have one (after quantise)"
    text = """
    %input = spike.input : !spike.train<T=2, 4xf32>
    %s = spike.linear %input, @w : !spike.train<T=2, 4xf32> at "model.py:7"
    """
    message = refusal(text, {"w": np.zeros((4, 4), np.float32)})
    assert message == "s (model.py:7): @w holds float32; only integer modules have an ONNX form (after quantise)"


def test_two_neurons_of_one_name_are_refused() -> None:
    text = """
    %0 = spike.input : !spike.train<T=2, 4xf32>
    %1 = spike.quantise_image %0 scale=1.0 : !spike.train<T=2, 4xi8>
    %2 = spike.integer_lif %1, @t multiplier=1, divisor=1 : !spike.train<T=2, 4xi1>
    %3 = spike.integer_lif %2, @t multiplier=1, divisor=1 : !spike.train<T=2, 4xi1>
    """
    message = refusal(text, {"t": np.ones(4, np.int32)})
    assert message == "onnx: two neurons are called spike.integer_lif; give each its own name"
