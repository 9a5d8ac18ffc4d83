"""Tokens that stop in front of blocks: module and programs compute what a reference of the paper's formula does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer import STEPS, TO_INTEGERS, changed, integer_module
from lossy import exits_of, masks_of, passes_of
from models import digits
from numpy.typing import NDArray
from stepwise import Guard, Stepwise
from stopped import BLOCKS, SCORES, Where, assert_stops, assert_stops_beside, check_scale, stop
from token_rules import Stop
from torch import Tensor

from compiler.calibrate.ranges import image_scale
from compiler.ir import spike, token_meaning, token_ops
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from compiler.ir.types import Element, Train
from compiler.passes.stop_tokens import StopTokens, change_scale, drop_of
from compiler.pipeline import parse_passes
from isa.errors import CStepError

FAMILY = pytest.mark.parametrize("name", FAMILIES)
SCORE = pytest.mark.parametrize("score", SCORES)

pytestmark = pytest.mark.filterwarnings("ignore::isa.errors.CStepWarning")


def check(
    name: str, keep: list[str], score: str = "paper", kernel: int = 3, count: int = 8, both: bool = True
) -> float:
    """The share of tokens kept on the first inputs of a family."""
    network, inputs = integer_module(name), FAMILIES[name].inputs(count, seed=3, steps=STEPS)
    stopped, stops = stop(network, BLOCKS[name], keep, score, kernel)
    schedules = ["layers", "windows"] if both and score != "code" else ["layers"]
    return assert_stops(Stepwise(network, stops=stops), stopped, inputs, schedules)


def test_every_family_that_has_blocks_is_here() -> None:
    assert set(BLOCKS) == set(FAMILIES)


@FAMILY
def test_module_and_programs_are_the_reference(name: str) -> None:
    assert 0.4 < check(name, ["0.5"], count=5) < 0.7


SOME = ("spikformer-imagenet", "spikingformer", "sdt-v1-events", "qkformer-events")


@pytest.mark.parametrize(
    ("name", "score"), [(SOME[(at + turn) % 4], score) for at, score in enumerate(SCORES) for turn in (0, 1)]
)
def test_every_score_is_the_reference(name: str, score: str) -> None:
    """Spikes and counts, a stream, a part of a block, and blocks of other sizes in one network."""
    check(name, ["0.3"], score, kernel=5, both=False)


@pytest.mark.parametrize("keep", ["0", "0.05", "0.95"])
@pytest.mark.parametrize("name", ["spikformer-cifar", "sdt-v3-events"])
def test_none_one_or_nearly_all_are_kept(name: str, keep: str) -> None:
    check(name, [keep], kernel=1, both=False)


@pytest.mark.parametrize("keep", [["1", "0.5"], ["0.25", "1"], ["0.9", "0.2"]])
def test_every_block_has_its_own_share(keep: list[str]) -> None:
    check("spikformer-imagenet", keep)


@FAMILY
def test_where_all_are_kept_the_module_is_as_it_was(name: str) -> None:
    network = integer_module(name)
    stopped, stops = stop(network, BLOCKS[name], ["1"])
    assert not stops and stopped.text() == network.text()


@pytest.mark.slow
@FAMILY
@SCORE
def test_module_and_programs_are_the_reference_on_200_inputs(name: str, score: str) -> None:
    check(name, ["0.6"], score, kernel=3 if score == "paper" else 7, count=200)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    pixels=st.sampled_from([(4, 4), (4, 12), (12, 4), (12, 12), (20, 12), (20, 28)]),
    steps=st.integers(1, 5),
    keep=st.sampled_from(["0", "0.1", "0.34", "0.5", "0.77", "0.99"]),
    kernel=st.sampled_from([1, 3, 5, 7]),
    score=st.sampled_from(SCORES),
)
def test_any_number_of_tokens_and_timesteps(
    pixels: tuple[int, int], steps: int, keep: str, kernel: int, score: str
) -> None:
    """1x1, 1x3, 3x1, 3x3, 5x3 and 5x7 tokens."""
    network = integer_module("spikformer-cifar", steps, pixels)
    inputs = changed("spikformer-cifar", pixels).inputs(2, seed=steps)
    where = [replace(BLOCKS["spikformer-cifar"][0], rows=pixels[0] // 4, columns=pixels[1] // 4)]
    stopped, stops = stop(network, where, [keep], score, kernel)
    assert_stops(Stepwise(network, stops=stops), stopped, inputs, ["layers" if score == "code" else "windows"])


ELEMENTS = {
    "i1": Element.spike(), "count<3>": Element.count(3), "count<7>": Element.count(7),
    "fixed<16, 8>": Element.fixed(16, 8), "fixed<8, 3>": Element.fixed(8, 3),
}  # fmt: skip
KINDS = {
    "i1": (0, 1), "count<3>": (0, 3), "count<7>": (0, 7), "fixed<16, 8>": (-32768, 32767), "fixed<8, 3>": (-128, 127),
}  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_values_are_scored_as_the_reference_does(data: st.DataObject) -> None:
    """Trains of every kind, dense and sparse, so that many tokens are equal."""
    draw = data.draw
    steps, rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    channels, kind, score = (
        draw(st.sampled_from([1, 3, 16])),
        draw(st.sampled_from([*KINDS])),
        draw(st.sampled_from(token_ops.SCORES)),
    )
    kernel, keep = draw(st.sampled_from([1, 3, 5, 7])), draw(st.integers(0, rows * columns))
    low, high = KINDS[kind]
    random = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    shape = (steps, rows, columns, channels)
    x = random.integers(low, high, shape, endpoint=True) * (random.random(shape) < draw(st.sampled_from([0.1, 0.5, 1])))
    stop = Stop("", (), rows, columns, keep, score, kernel, *_scale(kind, steps, channels, kernel, score))
    op = keep_tokens(kind, stop, steps, channels)
    found = token_meaning.keep_tokens(op, _no_weights, torch.from_numpy(x.astype(np.int64)))
    trains = [torch.from_numpy(each.astype(np.float64)) for each in x]
    before = [torch.zeros_like(trains[0]), *trains]
    sums = [stop.pooled_sums(trains)] * steps if score == "code" else map(stop.sums, trains, before)
    assert np.array_equal(found.squeeze(-1).numpy(), torch.stack([stop.choose(each) for each in sums]).numpy())


def _no_weights(name: str) -> Tensor:
    raise AssertionError(name)


def _scale(kind: str, steps: int, channels: int, kernel: int, score: str) -> tuple[tuple[int, int], int]:
    """What the pass finds out about a kind of values."""
    train = train_of(kind, steps, (1, 1, channels))
    drop = drop_of(train, kernel, score)
    return change_scale(train, drop), drop


def train_of(kind: str, steps: int, sizes: Sequence[int]) -> Train:
    return Train.of(steps, sizes, ELEMENTS[kind])


def keep_tokens(kind: str, stop: Stop, steps: int, channels: int) -> spike.KeepTokens:
    """The op of a choice, of values of a kind."""
    source = spike.Input.make(result=train_of(kind, steps, (stop.rows, stop.columns, channels)), hint="x")
    result = Train.of(steps, (stop.rows * stop.columns, 1), Element.spike())
    op = spike.KeepTokens.make(
        source.results[0], result=result, hint="k", keep=stop.keep, rows=stop.rows, columns=stop.columns,
        multiplier=stop.scale[0], divisor=stop.scale[1], kernel=stop.kernel, score=stop.score, drop=stop.drop,
    )  # fmt: skip
    op.check()
    check_scale(op, stop.kernel)
    return op


def ranked_in_reals(x: NDArray[np.float64], kernel: int, keep: int) -> NDArray[np.bool_]:
    """[T, H, W] kept of values [T, H, W, C] by the paper's formula in float64; of equal ones, the first.

    Spatial: 1 - cos(x, mean of its neighbourhood); temporal: mean over channels of |x_t - x_(t-1)|; each a softmax.
    """
    steps, rows, columns, channels = x.shape
    edges = ((0, 0), (kernel // 2, kernel // 2), (kernel // 2, kernel // 2), (0, 0))
    near = np.lib.stride_tricks.sliding_window_view(np.pad(x, edges), (kernel, kernel), axis=(1, 2)).mean(axis=(-1, -2))
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(near, axis=-1)
    cosine = (x * near).sum(axis=-1) / np.where(lengths > 0, lengths, 1)
    change = np.abs(np.diff(x, axis=0, prepend=np.zeros((1, rows, columns, channels)))).mean(axis=-1)
    scores = softmax(1 - cosine) + softmax(change)
    order = np.argsort(-scores.round(12).reshape(steps, -1), axis=-1, kind="stable")
    kept = np.zeros((steps, rows * columns), np.bool_)
    np.put_along_axis(kept, order[:, :keep], True, axis=-1)
    return kept


def softmax(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(maps)
    return powers / powers.sum(axis=(1, 2), keepdims=True)


def agreement(kind: str, density: float, channels: int = 64) -> float:
    """The share of kept tokens that integers and reals have in common: 14x14 tokens, as of a 224x224 image."""
    random, rows, steps = np.random.default_rng(2), 14, 4
    same = total = 0
    for keep in (30, 98, 160):
        stop = Stop("", (), rows, rows, keep, "paper", 3, *_scale(kind, steps, channels, 3, "paper"))
        op, shape = keep_tokens(kind, stop, steps, channels), (steps, rows, rows, channels)
        x = (random.random(shape) < density * random.random((1, rows, rows, 1)) * 2).astype(np.int64)
        if kind != "i1":
            x *= random.integers(-700, 701, shape) if "fixed" in kind else random.integers(1, 4, shape)
        found = token_meaning.keep_tokens(op, _no_weights, torch.from_numpy(x)).squeeze(-1).numpy() == 1
        wanted = ranked_in_reals(x / 2.0 ** ELEMENTS[kind].fraction.data, 3, keep)
        same, total = same + int((found & wanted).sum()), total + int(wanted.sum())
    return same / total


@pytest.mark.parametrize("density", [0.02, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("kind", ["i1", "count<3>"])
def test_integers_rank_random_tokens_as_the_formula_does(kind: str, density: float) -> None:
    assert agreement(kind, density) >= 0.99


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_of_a_stream_that_fills_few_of_its_bits_more_tokens_differ(density: float) -> None:
    """Its bounds allow 45 times as much: 6 bits are dropped, which leaves 4 of values up to 700."""
    assert agreement("fixed<16, 8>", density) >= 0.95


@cache
def digits_module() -> tuple[Network, NDArray[np.float32]]:
    """The trained digits model in integers, and images of the test part."""
    network, images = digits()
    for each in parse_passes(TO_INTEGERS.replace("SCALE", repr(image_scale(images))).replace("BITS", "24")):
        network = each.apply_with(network, images)
    return network, images


def test_integers_rank_the_tokens_of_a_trained_model_as_the_formula_does() -> None:
    network, images = digits_module()
    stopped = StopTokens((0.5,)).apply(network)
    chosen = [op for op in stopped.operations() if isinstance(op, spike.KeepTokens)]
    assert len(chosen) == 2
    same = total = 0
    for image in images:
        wanted = [value for op in chosen for value in (op.operands[0], op.results[0])]
        seen = Executor(stopped).run(image, wanted=wanted).values
        for op in chosen:
            x = seen[op.operands[0]].astype(np.float64)
            x = x.reshape(len(x), op.get("rows"), op.get("columns"), -1)
            found, real = seen[op.results[0]][..., 0] == 1, ranked_in_reals(x, op.get("kernel"), op.get("keep"))
            same, total = same + int((found & real).sum()), total + int(real.sum())
    assert same >= 0.99 * total


def test_a_trained_model_stops_tokens_as_the_reference_says() -> None:
    network, images = digits_module()
    where = [
        Where(entry, (f"block.{number}.",), 4, 4) for number, entry in enumerate(["patch_embed.add", "block.0.add.2"])
    ]
    stopped, stops = stop(network, where, ["0.75", "0.5"])
    assert_stops(Stepwise(network, stops=stops), stopped, images)


BESIDE = ("masks", "rows", "columns", "both", "exits", "together")


def masks_inside(name: str) -> dict[str, str]:
    """Masks of the blocks' own neurons only: what enters a block has every timestep."""
    parts = tuple(part for block in BLOCKS[name] for part in block.parts)
    return {label: mask for label, mask in masks_of(integer_module(name), len(name)).items() if label.startswith(parts)}


def beside(
    name: str, variant: str, count: int, schedules: Sequence[str], score: str = "paper", inside: bool = False
) -> set[int]:
    """Tokens that stop beside other lossy passes; after how many timesteps inputs left."""
    network, inputs = integer_module(name), FAMILIES[name].inputs(count, seed=3, steps=STEPS)
    together = variant == "together"
    masks = masks_inside(name) if inside else masks_of(network, len(name))
    masks = masks if variant == "masks" or together else {}
    mode = "both" if together else variant
    guard = Guard(mode, 2, 0 if together else 1) if mode in ("rows", "columns", "both") else None
    _, stops = stop(network, BLOCKS[name], ["0.5"], score)
    leaves = variant == "exits" or together
    exits = exits_of(network, inputs, "lightsoftmax", guard, masks, stops) if leaves else None
    stopped = network
    for each in parse_passes(passes_of(masks, guard, exits, f"stop-tokens{{keep=0.5 score={score} seed=3}}")):
        stopped = each.apply(stopped)
        stopped.verify()
    return assert_stops_beside(Stepwise(network, masks, guard, exits, stops), stopped, inputs, schedules, 1e-9)


@pytest.mark.parametrize("variant", BESIDE)
@pytest.mark.parametrize("name", ["spikformer-cifar", "sdt-v1"])
def test_tokens_stop_beside_other_lossy_passes(name: str, variant: str) -> None:
    left = beside(name, variant, 4, ["windows" if variant in ("both", "exits") else "layers"])
    assert left


@pytest.mark.slow
@FAMILY
@pytest.mark.parametrize("score", ["paper", "random"])
@pytest.mark.parametrize("variant", BESIDE)
def test_tokens_stop_beside_other_lossy_passes_on_every_family(name: str, variant: str, score: str) -> None:
    assert beside(name, variant, 40, ["layers", "windows"], score, inside=True)


def test_what_ends_before_the_block_behind_it_cannot_be_scored() -> None:
    """All that enters is masked from timestep 1 on, but biases let neurons of the block go on."""
    network = integer_module("spikformer-imagenet")
    masked = network
    for each in parse_passes(passes_of(masks_of(network, len("spikformer-imagenet")), None, None)):
        masked = each.apply(masked)
    with pytest.raises(CStepError, match=r"^block\.0\.attn\.attn_lif .*: has T=4; tokens are left out of T=1$"):
        StopTokens().apply(masked)
