"""What is refused where tokens stop: words, programs, ops, the pass and the lowering, each by its one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forms import form
from golden import Golden
from integer import integer_module
from programs import FIRST, small_program, source_map

import cstep
from compiler.backend.lower import lower
from compiler.ir.network import Network, parse
from compiler.passes.insert_exits import InsertExits
from compiler.passes.stop_tokens import StopTokens
from isa.errors import CStepError
from isa.hazards import with_tokens
from isa.instructions import (
    Attend,
    Keep,
    KeepNeurons,
    KeepRows,
    KeepTokens,
    KeepTop,
    Rescale,
    ScoreSpikes,
    ScoreValues,
)
from isa.machine import load_machine
from isa.program import Program
from isa.verify import check_kept, verify
from isa.word import Instruction, encode
from runtime.interpreter import run

PROGRAM = small_program()
LINEAR, NEURONS = 9, 10
"""The code words of the small program's linear layer."""
LATCH = {"kept": FIRST, "steps": 2, "tokens": 16}
ROW = {"rows": 1, "columns": 16, "input_rows": 1, "input_columns": 16, "kept": 1}

pytestmark = pytest.mark.filterwarnings("ignore::isa.errors.CStepWarning")


def program(*latches: Keep, before: int = LINEAR, **changes: int) -> Program:
    """The small program with a word changed, and latches in front of it."""
    code: list[Instruction] = list(PROGRAM.code)
    code[before] = replace(code[before], **changes)
    code[before:before] = latches
    tokens = with_tokens(code)
    return replace(PROGRAM, code=tokens, source_map=source_map(tokens))


def test_kept_rows_and_neurons_pass_and_run() -> None:
    made = program(KeepRows(**LATCH), **ROW)
    verify(made)
    verify(program(KeepNeurons(**LATCH), before=NEURONS, kept=1))
    channels, height, width = made.header.input.shape
    inputs = np.random.default_rng(3).integers(-127, 128, (3, 1, height, width, channels), np.int8)
    fast, reference = run(made, inputs), run(made, inputs, kernels="reference")
    assert np.array_equal(fast.logits, reference.logits)
    assert np.array_equal(fast.counters.values, reference.counters.values)
    assert not np.array_equal(fast.logits, run(PROGRAM, inputs).logits)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (program(**ROW), "code word 9: accumulate: kept needs a keeprows of 2 steps x 16 tokens; there is none before"),
        (
            program(KeepRows(**LATCH | {"tokens": 15}), **ROW),
            "code word 10: accumulate: kept needs a keeprows of 2 steps x 16 tokens; the latest has 2 x 15",
        ),
        (
            program(KeepRows(**LATCH), KeepRows(**LATCH | {"steps": 1}), **ROW),
            "code word 11: accumulate: kept needs a keeprows of 2 steps x 16 tokens; the latest has 1 x 16",
        ),
        (
            program(KeepNeurons(**LATCH), **ROW),
            "code word 10: accumulate: kept needs a keeprows of 2 steps x 16 tokens; there is none before it",
        ),
        (
            program(before=NEURONS, kept=1),
            "code word 10: fire: kept needs a keepneurons of 2 steps x 16 tokens; there is none before it",
        ),
        (
            program(KeepNeurons(**LATCH | {"steps": 1}), before=NEURONS, kept=1),
            "code word 11: fire: kept needs a keepneurons of 2 steps x 16 tokens; the latest has 1 x 16",
        ),
        (
            program(KeepRows(**LATCH | {"tokens": 4}), kept=1),
            "code word 10: accumulate: kept is for linear layers; the window must be one pixel of one row of tokens",
        ),
        (
            program(KeepRows(**LATCH | {"kept": 30000}), **ROW),
            "code word 9: keeprows: reads kept SPIKE[30000..30063], but no word before it wrote 30000..30063",
        ),
        (
            program(KeepRows(**LATCH | {"kept": 32740}), **ROW),
            "code word 9: keeprows: reads kept SPIKE[32740..32803]; the region ends at 32767",
        ),
    ],
)
def test_programs_are_refused(made: Program, message: str) -> None:
    with pytest.raises(CStepError) as caught:
        verify(made)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


SCORED = {
    "sums": 0, "values": 0, "steps": 1, "rows": 4, "columns": 4, "input_rows": 4, "top": 0, "kernel": 3, "inputs": 16,
    "step_stride": 32, "drop": 0, "pooled": 0, "fresh": 1,
}  # fmt: skip
SPIKES = ScoreSpikes(**SCORED, planes=1, plane_stride=32)
VALUES = ScoreValues(**SCORED | {"values": 4096})
CHOICE = KeepTop(
    sums=0, kept=0, steps=1, tokens=16, keep=16, spatial=1, temporal=1, multiplier=1, divisor=0
)  # fmt: skip
ATTEND = Attend(
    q=0, k=0, v=0, accumulators=0, steps=1, queries=4, keys=8, heads=1, width=16, value_width=16, first_bit=0,
    pixel_stride=2, value_pixel_stride=2, query_step_stride=8, key_step_stride=16, value_step_stride=16,
    values_first=0, q_planes=1, k_planes=1, v_planes=1, first_query=4, kept=1,
)  # fmt: skip


RESCALE = Rescale(
    accumulators=0, constants=0, addend=0, result=0, steps=2, pixels=6, outputs=8, divisor=0, adds=0, narrow=0, small=0,
    kept=1,
)  # fmt: skip
TOKENS, PIXELS = KeepTokens(kept=0, steps=1, tokens=8), KeepNeurons(kept=0, steps=2, tokens=6)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ((ATTEND,), "code word 0: attend: kept needs a keeptokens of 1 steps x 8 tokens; there is none before it"),
        (
            (replace(TOKENS, tokens=4), ATTEND),  # as many as ask: keys are what is kept
            "code word 1: attend: kept needs a keeptokens of 1 steps x 8 tokens; the latest has 1 x 4",
        ),
        (
            (TOKENS, ATTEND, replace(TOKENS, steps=2), ATTEND),
            "code word 3: attend: kept needs a keeptokens of 1 steps x 8 tokens; the latest has 2 x 8",
        ),
        (
            (KeepRows(kept=0, steps=1, tokens=8), KeepNeurons(kept=0, steps=1, tokens=8), ATTEND),
            "code word 2: attend: kept needs a keeptokens of 1 steps x 8 tokens; there is none before it",
        ),
        (
            (ATTEND, TOKENS),
            "code word 0: attend: kept needs a keeptokens of 1 steps x 8 tokens; there is none before it",
        ),
        ((RESCALE,), "code word 0: rescale: kept needs a keepneurons of 2 steps x 6 tokens; there is none before it"),
        (
            (replace(PIXELS, steps=6, tokens=2), RESCALE),
            "code word 1: rescale: kept needs a keepneurons of 2 steps x 6 tokens; the latest has 6 x 2",
        ),
    ],
)
def test_latches_are_for_one_unit_and_one_shape(code: tuple[Instruction, ...], message: str) -> None:
    check_kept((TOKENS, PIXELS, ATTEND, RESCALE, ATTEND, replace(ATTEND, kept=0, keys=4), replace(RESCALE, kept=0)))
    with pytest.raises(CStepError) as caught:
        check_kept(code)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (replace(SPIKES, kernel=2), "scorespikes: kernel=2; a neighbourhood has an odd side"),
        (replace(VALUES, kernel=6), "scorevalues: kernel=6; a neighbourhood has an odd side"),
        (replace(SPIKES, kernel=9), "scorespikes: kernel=9 does not fit 3 bits (1..7)"),
        (replace(SPIKES, steps=3), "scorespikes: steps=3; a timestep and the one before it are 2 at most"),
        (replace(SPIKES, top=1), "scorespikes: rows=4 below top=1 pass input_rows=4"),
        (replace(SPIKES, step_stride=31), "scorespikes: strides must be multiples of 2 bytes"),
        (replace(SPIKES, plane_stride=31), "scorespikes: strides must be multiples of 2 bytes"),
        (replace(VALUES, step_stride=31), "scorevalues: step_stride=31 must be a multiple of 2"),
        (replace(SPIKES, sums=2), "scorespikes: sums=2 must be a multiple of 4"),
        (replace(CHOICE, keep=17), "keeptop: keep=17 of tokens=16; no more can be kept"),
        (replace(CHOICE, kept=1), "keeptop: kept=1 must be a multiple of 2"),
        (KeepRows(kept=1, steps=1, tokens=1), "keeprows: kept=1 must be a multiple of 2"),
        (KeepRows(kept=0, steps=0, tokens=1), "keeprows: steps=0 does not fit 4 bits (1..15)"),
        (KeepRows(kept=0, steps=1, tokens=1 << 14), "keeprows: tokens=16384 does not fit 14 bits (1..16383)"),
        (replace(ATTEND, first_query=5), "attend: queries 5..8 of 8 kept"),
    ],
)
def test_words_are_refused(each: Instruction, message: str) -> None:
    for fine in (SPIKES, VALUES, CHOICE, ATTEND, replace(SPIKES, pooled=1, steps=3)):
        encode(fine)
    with pytest.raises(CStepError, match=f"^{re.escape(message)}"):
        encode(each)


def test_sums_over_the_values_that_they_are_made_of_are_refused() -> None:
    code = (*PROGRAM.code[:5], replace(VALUES, values=0, sums=0), *PROGRAM.code[5:])
    tokens = with_tokens(code)
    with pytest.raises(CStepError, match=r"^code word 5: scorevalues: writes sums 0\.\.255 over values 0\.\.511; it"):
        verify(replace(PROGRAM, code=tokens, source_map=source_map(tokens)))


KEPT = Golden.read(Path(__file__).parent / "passes" / "lower-to-cstep-kept.spike")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep=6", "keep=17", "keep=17; it must be in 0..16"),
        ("rows=4, columns=4, m", "rows=4, columns=5, m", "rows x columns = 4x5; there are 16 tokens"),
        ("divisor=7 :", "divisor=7, kernel=2 :", "kernel=2; it must be 1, 3, 5 or 7"),
        ("divisor=7 :", "divisor=7, score=best :", "score=best; it must be one of paper, spatial"),
        ("<T=2, 16x1xi1>", "<T=2, 15x1xi1>", "15x1"),
        ("%q.current, %kept, @q", "%q.current, %v, @q", "what is kept must be 16x1xi1"),
    ],
)
def test_ops_are_refused(old: str, new: str, message: str) -> None:
    assert old in KEPT.before
    with pytest.raises(CStepError) as caught:
        Network(parse(KEPT.before.replace(old, new)), KEPT.network().weights).verify()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_dump_with_kept_operands_goes_through_opt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kept train is spelled second, and comes back as the second operand."""
    network = Golden.read(Path(__file__).parent / "passes" / "stop-tokens-random.spike").network()
    stopped = StopTokens((0.25,), "random", seed=7).apply(network)
    stopped.dump(tmp_path, "stopped")
    text = stopped.text()
    assert "spike.integer_lif %block.0.attn.q.current, %block.0.kept, @q.threshold" in text
    assert cstep.main(["opt", str(tmp_path / "stopped.spike"), "--passes", "canonicalise"]) == 0
    assert capsys.readouterr().out == text
    command = ["opt", str(tmp_path / "stopped.spike"), "--passes", "canonicalise", "-o", str(tmp_path / "again.spike")]
    assert cstep.main(command) == 0
    assert cstep.main(["opt", str(tmp_path / "again.spike"), "--passes", "lower-to-cstep"]) == 0
    assert "cstep.keeprows kept=" in capsys.readouterr().out


def stops(**options: object) -> Callable[[Network], Network]:
    return lambda network: StopTokens(**options).apply(network)  # type: ignore[arg-type]


def twice(network: Network) -> Network:
    return StopTokens().apply(StopTokens().apply(network))


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (
            stops(keep=(0.5, 0.5, 0.5)),
            "stop-tokens: keep=0.5,0.5,0.5 has 3 shares; the network has 2 blocks (block.0, block.1): give one for "
            "each, or one for all",
        ),
        (stops(keep=()), "stop-tokens: keep= has 0 shares; the network has 2 blocks (block.0, block.1)"),
        (stops(keep=(1.5,)), "stop-tokens: keep=1.5; shares of the tokens are in 0..1"),
        (stops(keep=(0.5, -0.1)), "stop-tokens: keep=0.5,-0.1; shares of the tokens are in 0..1"),
        (stops(keep=(float("nan"),)), "stop-tokens: keep=nan; shares of the tokens are in 0..1"),
        (stops(score="best"), "stop-tokens: score=best; it must be one of paper, spatial, temporal, magnitude"),
        (stops(kernel=2), "stop-tokens: kernel=2; it must be one of 1, 3, 5, 7"),
        (stops(kernel=9), "stop-tokens: kernel=9; it must be one of 1, 3, 5, 7"),
        (twice, "stop-tokens: the network leaves tokens out already; there can be one such pass"),
    ],
)
def test_the_pass_refuses(apply: Callable[[Network], Network], message: str) -> None:
    with pytest.raises(CStepError) as caught:
        apply(integer_module("spikformer-imagenet"))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["neurons on spikes, counts and the image", "a residual"])
def test_a_network_without_blocks_is_refused(name: str) -> None:
    """One layer after another as in a spiking VGG, and with residuals as in a SEW-ResNet."""
    network = form(name, 4, np.ones((3, 5, 7), np.float32))
    with pytest.raises(CStepError, match=r"^stop-tokens: the network has no transformer blocks: no attention under a"):
        StopTokens().apply(network)


def test_scores_of_all_timesteps_need_all_timesteps() -> None:
    network = StopTokens(score="code").apply(integer_module("spikformer-cifar"))
    exits = InsertExits(after=(2,), tau=(0.5,)).apply(network)
    machine = load_machine("c-step")
    for each, schedule in ((network, "windows"), (exits, "layers"), (exits, "windows")):
        with pytest.raises(CStepError, match=r"score=code looks at all 4 timesteps, but only .* use score=paper with"):
            lower(each, machine, schedule)
    lower(network, machine, "layers")
