"""Calibration: confidences, thresholds under a bound of the loss, and the whole of it on the digits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import exp
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import cstep
from command.trials import emulator
from compiler.calibrate.calibration import calibrate
from compiler.calibrate.confidence import (
    entropy_confidence,
    light_softmax_confidence,
    margin,
    margin_of,
    softmax_confidence,
    tau_of,
    variance_of_others,
)
from compiler.calibrate.exits import apply, choose
from compiler.calibrate.search import Findings, Wanted
from compiler.calibrate.timesteps import average_timesteps, neuron_timesteps, prefix, sensitivities
from compiler.calibrate.trials import Outcome, Trials, front_passes, integer_network
from compiler.frontend.importer import import_model
from compiler.ir.network import Network
from compiler.settings import GuardMode, Model, Parts, Score, Settings
from compiler.zoo import Spikformer
from isa.errors import CStepError
from isa.machine import load_machine
from tests.models import Shape, spikformer

Logits = NDArray[np.float64]


@pytest.fixture(scope="module")
def logits() -> Logits:
    """[200, 10], some surer than others."""
    random = np.random.default_rng(0)
    drawn = random.standard_normal((200, 10))
    drawn[np.arange(200), random.integers(0, 10, 200)] += random.uniform(0, 8, 200)
    return drawn


def test_light_softmax_is_the_published_expression(logits: Logits) -> None:
    """C-STEP eq. 3 with the constants of eq. 4 and 5 and their corrections at run time, exponentials and all."""
    mean, greatest, variance, others = 0.3, 2.5, 1.7, logits.shape[1] - 1
    for each in logits:
        z = each.max()
        m = (each.sum() - z) / others
        top = exp(greatest) * exp(z - greatest)
        rest = others * exp(mean + variance / 2) * exp(m - mean)
        assert light_softmax_confidence(each, variance) == pytest.approx(top / (rest + top), rel=1e-12)


def test_the_margin_decides_as_the_confidence_does(logits: Logits) -> None:
    variance = variance_of_others(logits)
    for tau in (0.2, 0.5, 0.83, 0.99):
        cut = margin_of(tau, variance, logits.shape[1])
        assert np.array_equal(light_softmax_confidence(logits, variance) > tau, margin(logits) > cut)
        assert tau_of(cut, variance, logits.shape[1]) == pytest.approx(tau)


def test_a_confidence_is_never_one() -> None:
    assert tau_of(1e6, 1.0, 10) < 1
    assert 0 <= tau_of(-1e6, 1.0, 10) < 1e-100


def test_confidences_of_the_plainest_logits() -> None:
    even, sure = np.zeros(4), np.array([50.0, 0, 0, 0])
    assert softmax_confidence(even) == pytest.approx(0.25)
    assert entropy_confidence(even) == pytest.approx(0, abs=1e-12)
    assert softmax_confidence(sure) == pytest.approx(1)
    assert entropy_confidence(sure) == pytest.approx(1)


def test_variance_is_that_of_the_logits_that_were_not_predicted() -> None:
    assert variance_of_others(np.array([[9.0, 1, 3], [7, 5, 5]])) == pytest.approx((1 + 0) / 2)


def drawn_case(seed: int, inputs: int = 400) -> tuple[Logits, NDArray[np.bool_], NDArray[np.bool_]]:
    """Scores [B, 2], rising with how often early logits are right, and what is right late."""
    random = np.random.default_rng(seed)
    scores = random.random((inputs, 2))
    early = random.random((inputs, 2)) < 0.5 + 0.5 * scores
    return scores, early, random.random(inputs) < 0.9


@pytest.mark.parametrize("bound", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("rate", [0.1, 0.4, 1.0])
def test_exits_keep_rate_and_bound_and_no_lower_threshold_does(bound: float, rate: float) -> None:
    scores, early, late = drawn_case(1)
    found = choose(scores, early, late, late, rate, bound)
    assert found.loss <= bound + 1e-9
    assert apply(found.thresholds, scores, early, late, late).taken.tolist() == found.taken.tolist()
    leaving = int((found.taken == 0).sum())
    assert leaving <= rate * len(late)
    ranked = np.sort(scores[:, 0])[::-1]
    for more in range(leaving + 1, int(rate * len(late)) + 1):
        tried = apply((float(ranked[more - 1]) - 1e-12, None), scores, early, late, late)
        assert tried.loss > bound


def test_equal_scores_leave_together_or_not_at_all() -> None:
    scores = np.array([[3.0], [1.0], [1.0], [1.0]])
    right = np.ones(4, bool)
    found = choose(scores, right[:, None], right, right, 0.5, 100.0)
    assert found.taken.tolist() == [0, 1, 1, 1]


def test_without_a_bearable_exit_none_is_taken() -> None:
    scores, late = np.array([[2.0], [1.0]]), np.ones(2, bool)
    found = choose(scores, np.zeros((2, 1), bool), late, late, 1.0, 0.0)
    assert (found.thresholds, found.lost, found.rate) == ((None,), 0, 0)


@pytest.mark.parametrize(
    ("wanted", "steps", "classes", "images", "said"),
    [
        (Wanted(), 1, 10, 500, "T=1"),
        (Wanted((), guard=None), 1, 10, 500, "T=1; .* only tokens can stop: --tokens auto --exit-after none"),
        (Wanted((), tokens=True), 1, 10, 500, "T=1"),
        (Wanted((), guard=None, timesteps=True, tokens=True), 1, 10, 500, "T=1"),
        (Wanted(score="random"), 4, 10, 500, "--score random: must be one of paper, spatial, temporal, magnitude"),
        (Wanted(tokens=True, score="code"), 4, 10, 500, "--score code: looks at all .* --exit-after none, or another"),
        (Wanted(), 4, 1, 500, "one class"),
        (Wanted(after=(4,)), 4, 10, 500, "--exit-after 4: the model has T=4; exits are after 1..3"),
        (Wanted(after=(2, 2)), 4, 10, 500, "must ascend"),
        (Wanted(criterion=cast(Any, "max")), 4, 10, 500, "--criterion max: must be one of lightsoftmax, softmax, ent"),
        (Wanted(guard=cast(Any, "all")), 4, 10, 500, "--guard all: must be one of rows, columns, both, none"),
        (Wanted(rate=1.5), 4, 10, 500, "--rate 1.5"),
        (Wanted(loss=-1), 4, 10, 500, "--loss -1"),
        (Wanted(loss=float("nan")), 4, 10, 500, "--loss nan"),
        (Wanted(guard_after=4), 4, 10, 500, "--guard-after 4"),
        (Wanted(), 4, 10, 99, "99 held-out images; at least 100"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(wanted: Wanted, steps: int, classes: int, images: int, said: str) -> None:
    with pytest.raises(CStepError, match=said):
        wanted.check(steps, classes, images)


def test_timesteps_are_taken_from_the_least_sensitive_groups_first() -> None:
    model, images = spikformer(Shape(depths=1))
    front = front_passes(load_machine("c-step"), images, None)
    network = integer_network(import_model(model, torch.from_numpy(images[:1])), front, images)
    found = sensitivities(network, images[:2])
    assert {each.group for each in found} == {"sps", "qkv", "attn", "mlp"}
    assert [each.similarity for each in found] == sorted((each.similarity for each in found), reverse=True)
    assert all(0 <= each.similarity <= 1 + 1e-9 for each in found)
    assert {label for each in found for label in each.layers} == neuron_timesteps(network).keys()
    assert average_timesteps(network, {}) == 4
    masked = dict.fromkeys(found[0].layers, prefix(4, 1))
    assert average_timesteps(network, masked) == pytest.approx(4 - 3 * len(masked) / len(neuron_timesteps(network)))


def test_masks_are_found_under_the_bound_and_make_the_same_program_again() -> None:
    model, images = spikformer(Shape(classes=3))
    inputs = np.random.default_rng(3).standard_normal((120, *images.shape[1:])).astype(np.float32)
    labels = cstep.run(cstep.compile(model, images[:1], calibration=images, check=False), inputs).labels
    found = cstep.calibrate(
        model, images[:1], inputs, labels, calibration=images, after=(), guard=None, timesteps=True, loss=20.0
    )
    assert found.exit is None and found.guard is None
    assert found.timesteps is not None and found.timesteps.average is not None and found.timesteps.loss is not None
    assert found.timesteps.average < 4
    masked = cstep.compile(model, images[:1], calibration=images, check=False, settings=found)
    lost = 100 * float((cstep.run(masked, inputs).labels != labels).mean())
    assert lost == pytest.approx(found.timesteps.loss)
    assert lost <= 20


def quantised(model: Spikformer, images: NDArray[np.float32]) -> Network:
    """The integer network that trials begin with."""
    front = front_passes(load_machine("c-step"), images, None)
    return integer_network(import_model(model, torch.from_numpy(images[:1])), front, images)


@dataclass(frozen=True, eq=False)
class Pretended(Trials):
    """Trials in which an eighth fewer of a block's tokens costs so many images, and nothing can be guarded."""

    costs: tuple[int | None, ...] = ()
    """None: nothing can be stopped there."""
    seen: list[str] = field(default_factory=list[str])

    def run(self, parts: Parts) -> Outcome:
        if parts.guard:
            raise CStepError("guard-channels: not here")
        self.seen.append(parts.tokens.partition(" ")[0].removeprefix("stop-tokens{keep="))
        keep = map(float, self.seen[-1].split(",")) if self.seen[-1] else (1.0,) * len(self.costs)
        wrong = 0.0
        for cost, each in zip(self.costs, keep, strict=True):
            if cost is None and each < 1:
                raise CStepError("stop-tokens: not here")
            wrong += (cost or 0) * 8 * (1 - each)
        right = np.arange(len(self.inputs)) >= wrong
        none = np.zeros((len(right), 0, 4), np.int64)
        return Outcome(np.eye(4, dtype=np.int64)[np.where(right, 0, 1)], none, np.full(len(right), 4), right * 1)


def looked_for(
    costs: tuple[int | None, ...], loss: float, guard: GuardMode | None = None
) -> tuple[Findings, list[str]]:
    """Findings on 100 images of which every block's notch costs so many, and the shares that were tried."""
    model, images = spikformer(Shape(depths=len(costs)))
    inputs = np.zeros((100, *images.shape[1:]), np.float32)
    trials = Pretended(quantised(model, images), load_machine("c-step"), inputs, emulator(), costs=costs)
    wanted = Wanted((), guard=guard, loss=loss, tokens=True)
    found = calibrate(trials, np.zeros(100, np.int64), wanted, Settings(model=Model(name="pretended")))
    return found, trials.seen[1:]


def test_tokens_are_taken_where_that_costs_least() -> None:
    found, tried = looked_for((0, 3), loss=7.0)
    tokens = found.settings.tokens
    assert found.blocks == ("block.0", "block.1")
    assert tokens is not None and (tokens.keep, tokens.score, tokens.loss) == ((0.0, 0.75), "paper", 6.0)
    assert tried[:2] == ["1.0,0.875", "0.875,0.875"], "the last block first, then the one that may cost less"
    assert tried[-2:] == ["0.0,0.75", "0.0,0.625"]
    assert len(tried) == 8 + 3
    assert not found.warnings


def test_tokens_that_are_all_needed_stay() -> None:
    found, tried = looked_for((1, 2), loss=0.0)
    assert found.settings.tokens is None
    assert tried == ["1.0,0.875", "0.875,1.0"]
    assert found.warnings == ["tokens: no block loses at most 0 points with an eighth fewer of them"]


def test_a_block_in_which_none_can_be_stopped_is_said_and_left() -> None:
    found, tried = looked_for((40, None), loss=50.0)
    assert found.settings.tokens is not None and found.settings.tokens.keep == (0.875, 1.0)
    assert tried == ["1.0,0.875", "0.875,1.0", "0.75,1.0"]
    assert found.warnings == ["tokens: no 0.875 of them in block.1: stop-tokens: not here"]


def test_where_no_guard_can_be_what_was_found_before_is_kept() -> None:
    found, _ = looked_for((10,), loss=30.0, guard="both")
    assert found.settings.tokens is not None and found.settings.tokens.keep == (0.625,)
    assert found.settings.guard is None
    assert found.warnings == ["guard: none after 2 timesteps: guard-channels: not here"]


@pytest.mark.parametrize(("steps", "after", "score", "bound"), [(4, (2,), "temporal", 45.0), (1, (), "spatial", 25.0)])
def test_tokens_are_found_under_the_bound_and_make_the_same_program_again(
    steps: int, after: tuple[int, ...], score: Score, bound: float
) -> None:
    """With exits, which are found behind them, and for a model of one timestep."""
    model, images = spikformer(Shape(classes=10, timesteps=steps, seed=3))
    inputs = np.random.default_rng(3).standard_normal((120, *images.shape[1:])).astype(np.float32)
    labels = cstep.run(cstep.compile(model, images[:1], calibration=images, check=False), inputs).labels
    found = cstep.calibrate(
        model, images[:1], inputs, labels, calibration=images, after=after, guard=None, tokens=True, score=score,
        loss=bound,
    )  # fmt: skip
    assert found.tokens is not None and found.tokens.loss is not None
    assert found.tokens.score == score
    assert 0 < found.tokens.keep[0] < 1
    assert 0 < found.tokens.loss <= bound
    without = [found.model_copy(update={"exit": None})] if found.exit else []
    for settings in (found, *without):
        stopped = cstep.compile(model, images[:1], calibration=images, check=False, settings=settings)
        lost = 100 * float((cstep.run(stopped, inputs).labels != labels).mean())
        assert lost == pytest.approx((settings.exit or found.tokens).loss)
        assert lost <= bound


def test_tokens_that_do_not_matter_all_stop() -> None:
    """The logits are the head's bias."""
    model, images = spikformer(Shape(classes=3))
    torch.nn.init.zeros_(model.head.weight)
    inputs = np.random.default_rng(3).standard_normal((100, *images.shape[1:])).astype(np.float32)
    labels = np.full(100, int(model.head.bias.argmax()))
    found = cstep.calibrate(
        model, images[:1], inputs, labels, calibration=images, after=(), guard=None, tokens=True, loss=0.0
    )
    assert found.tokens is not None and (found.tokens.keep, found.tokens.loss) == ((0.0,), 0.0)


def test_tokens_of_a_model_without_blocks_are_refused_before_anything_is_run() -> None:
    model, images = spikformer(Shape(depths=0))
    trials = Pretended(quantised(model, images), load_machine("c-step"), images, emulator())
    trials = replace(trials, inputs=np.zeros((100, *images.shape[1:]), np.float32))
    settings = Settings(model=Model(name="plain"))
    with pytest.raises(CStepError, match=r"^--tokens auto: stop-tokens: the network has no transformer blocks"):
        calibrate(trials, np.zeros(100, np.int64), Wanted(tokens=True), settings)
    assert not trials.seen


def test_labels_of_other_classes_are_refused() -> None:
    model, images = spikformer(Shape(classes=3, depths=1))
    inputs = np.random.default_rng(3).standard_normal((100, *images.shape[1:])).astype(np.float32)
    with pytest.raises(CStepError, match=r"label 3; the model's 3 classes are 0\.\.2"):
        cstep.calibrate(model, images[:1], inputs, np.full(100, 3), calibration=images)
