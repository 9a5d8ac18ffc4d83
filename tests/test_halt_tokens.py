"""Tokens that halt: module and programs compute what a reference of the paper's rules does, and halt as they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from halted import FAMILIES_THAT_HALT, halt, rules_in_reals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer import STEPS, changed, integer_module
from lossy import exits_of, masks_of, passes_of
from stepwise import Guard, Stepwise
from stopped import assert_stops, assert_stops_beside

from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from compiler.pipeline import parse_passes
from isa.scores import SIGMOID

FAMILY = pytest.mark.parametrize("name", FAMILIES_THAT_HALT)
DEPTHS = 3
RULES = (-1.0, -0.5, "0.01")
"""Under which tokens of random models halt, and some do not."""

pytestmark = pytest.mark.filterwarnings("ignore::isa.errors.CStepWarning")


def check(
    name: str, rules: tuple[float, float, str] = RULES, output: str = "weighted", count: int = 4,
    schedules: Sequence[str] = ("layers", "windows"), depths: int = DEPTHS,
) -> float:  # fmt: skip
    """The share of tokens that go through the blocks behind the first."""
    network, inputs = integer_module(name, depths=depths), changed(name).inputs(count, seed=3, steps=STEPS)
    halted, halting = halt(network, name, depths, *rules, output)
    return assert_stops(Stepwise(network, halting=halting), halted, inputs, schedules)


@FAMILY
def test_module_and_programs_are_the_reference(name: str) -> None:
    assert 0 < check(name) < 1


@pytest.mark.parametrize("name", ["spikformer-imagenet", "spikingformer"])
def test_where_the_last_block_alone_is_classified(name: str) -> None:
    assert 0 < check(name, output="mean") < 1


@pytest.mark.parametrize(("name", "output"), [("spikformer-cifar", "weighted"), ("spikingformer-imagenet", "mean")])
def test_all_tokens_halt_behind_the_first_block(name: str, output: str) -> None:
    """h = 1 everywhere: one block each, whose neurons are all that fires."""
    assert check(name, (0.0, 7.9, "0.01"), output) == 0


@pytest.mark.parametrize(("name", "output"), [("spikformer-cifar", "mean"), ("spikingformer-imagenet", "weighted")])
def test_no_token_halts(name: str, output: str) -> None:
    """h = 0.0003 everywhere: what is left of 1 is the last block's."""
    assert check(name, (0.0, -8.0, "0"), output) == 1


@pytest.mark.parametrize("epsilon", ["0", "0.5", "0.999"])
def test_any_epsilon(epsilon: str) -> None:
    check("spikformer-imagenet", (-1.0, -2.0, epsilon))


@pytest.mark.parametrize("name", ["spikformer-cifar", "spikingformer-imagenet"])
def test_of_one_block_nothing_halts(name: str) -> None:
    assert check(name, depths=1) == 1


@pytest.mark.slow
@FAMILY
@pytest.mark.parametrize("output", ["weighted", "mean"])
def test_module_and_programs_are_the_reference_on_200_inputs(name: str, output: str) -> None:
    check(name, output=output, count=200)


@settings(max_examples=7, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    pixels=st.sampled_from([(4, 4), (4, 12), (12, 4), (12, 12), (20, 12)]),
    steps=st.integers(1, 5),
    depths=st.integers(1, 3),
    rules=st.tuples(
        st.sampled_from([-5.0, -1.0, -0.25, 0.0, 0.7]), st.sampled_from([-3.0, -0.5, 0.0, 1.5]),
        st.sampled_from(["0", "0.01", "0.3", "0.9"]),
    ),
    output=st.sampled_from(["weighted", "mean"]),
)  # fmt: skip
def test_any_number_of_tokens_timesteps_and_blocks(
    pixels: tuple[int, int], steps: int, depths: int, rules: tuple[float, float, str], output: str
) -> None:
    """1x1, 1x3, 3x1, 3x3 and 5x3 tokens."""
    name = "spikformer-cifar"
    network = integer_module(name, steps, pixels, depths)
    inputs = changed(name, pixels).inputs(2, seed=steps)
    halted, halting = halt(network, name, depths, *rules, output, (pixels[0] // 4, pixels[1] // 4))
    assert_stops(Stepwise(network, halting=halting), halted, inputs, ["windows"])


def test_a_score_is_the_sigmoid_to_a_hundredth() -> None:
    """Of any sum: the table is cut into sixteenths, and ends at -8 and 8."""
    sums = np.linspace(-20, 20, 4001)
    entries = np.clip(np.floor(sums * 16 + 0.5) + 128, 0, 255).astype(np.int64)
    assert np.abs(SIGMOID[entries] / 2**14 - 1 / (1 + np.exp(-sums))).max() < 0.01


@pytest.mark.parametrize("name", ["spikformer-imagenet", "spikingformer"])
def test_tokens_halt_as_the_rules_say_in_reals(name: str) -> None:
    """On the same outputs of blocks: kept trains, and the classifier's features, beside reals."""
    alpha, beta, epsilon = RULES
    network, inputs = integer_module(name, depths=DEPTHS), changed(name).inputs(8, seed=3, steps=STEPS)
    halted, _ = halt(network, name, DEPTHS, *RULES)
    states = [op for op in halted.operations() if isinstance(op, spike.Halt)]
    kept = [op.results[0] for op in halted.operations() if isinstance(op, spike.Below)]
    sums = [op for op in halted.operations() if isinstance(op, spike.Weigh)]
    same = total = 0
    for x in inputs:
        wanted = [value for op in states for value in (op.operands[0], op.results[0])]
        seen = Executor(halted).run(x, wanted=[*wanted, *kept, *(op.results[0] for op in sums)]).values
        unit = 2.0 ** -states[0].operand_type().element.fraction.data
        outputs = [unit * np.asarray(seen[op.operands[0]]).reshape(STEPS, -1, 32) for op in states]
        expected = rules_in_reals([each[..., 0].tolist() for each in outputs], alpha, beta, float(epsilon))
        found = np.array([seen[value][..., 0] for value in kept])
        agree = found == np.array(expected["keep"])[1:]
        same, total = same + int(agree.sum()), total + agree.size
        for block, op in enumerate(sums):
            weights = np.array(expected["p"][block]) * np.array(expected["keep"][block])
            found_weights = np.asarray(seen[states[block].results[0]])[..., 1] / 2**14
            near = agree.all(axis=(0, 1))  # tokens whose every decision is the reals'
            assert np.abs(found_weights - weights)[:, near].max(initial=0) < 0.01 * DEPTHS * STEPS
            mixed = (outputs[block] * found_weights[..., None]).sum(axis=1)
            found_sums = np.asarray(seen[op.results[0]]) * unit * 2.0 ** (op.get("drop") - 14)
            rounded = 2.0 ** (op.get("drop") - 15) * np.abs(outputs[block]).sum(axis=1)
            assert (np.abs(found_sums - mixed) <= rounded + 1e-9).all()
    assert same >= 0.97 * total


BESIDE = ("masks", "rows", "columns", "both", "exits", "together")


@pytest.mark.parametrize("variant", BESIDE)
def test_tokens_halt_beside_other_lossy_passes(variant: str) -> None:
    left = beside("spikformer-imagenet", variant, 4, ["windows" if variant in ("both", "exits") else "layers"])
    assert left


@pytest.mark.slow
@FAMILY
@pytest.mark.parametrize("variant", BESIDE)
def test_tokens_halt_beside_other_lossy_passes_on_every_family(name: str, variant: str) -> None:
    assert beside(name, variant, 40, ["layers", "windows"])


def beside(name: str, variant: str, count: int, schedules: Sequence[str]) -> set[int]:
    """After how many timesteps inputs left."""
    network, inputs = integer_module(name, depths=DEPTHS), changed(name).inputs(count, seed=3, steps=STEPS)
    together = variant == "together"
    masks = _inner_masks(network, name) if variant == "masks" or together else {}
    mode = "both" if together else variant
    guard = Guard(mode, 2, 0 if together else 1) if mode in ("rows", "columns", "both") else None
    _, halting = halt(network, name, DEPTHS, *RULES)
    leaves = variant == "exits" or together
    exits = exits_of(network, inputs, "lightsoftmax", guard, masks, halting=halting) if leaves else None
    alpha, beta, epsilon = RULES
    halted = network
    for each in parse_passes(
        passes_of(masks, guard, exits, f"halt-tokens{{alpha={alpha} beta={beta} epsilon={epsilon}}}")
    ):
        halted = each.apply(halted)
        halted.verify()
    reference = Stepwise(network, masks, guard, exits, halting=halting)
    return assert_stops_beside(reference, halted, inputs, schedules, 1e-9)


def _inner_masks(network: Network, name: str) -> dict[str, str]:
    """Masks of the blocks' own neurons only."""
    return {label: mask for label, mask in masks_of(network, len(name)).items() if label.startswith("block.")}
