"""How deep tokens go: what the emulator kept is what the module keeps, and the files that say so."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from exact import program_of
from families import FAMILIES
from integer import STEPS, integer_module
from numpy.typing import NDArray
from programs import small_program

import cstep
from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network
from compiler.passes.halt_tokens import HaltTokens
from compiler.passes.insert_exits import InsertExits
from compiler.passes.network_pass import NetworkPass
from compiler.passes.stop_tokens import StopTokens
from isa.errors import CStepError
from isa.machine import load_machine
from isa.program import Program
from runtime.depth import Depths, chooses_tokens, depths_of
from runtime.interpreter import quantise_input
from runtime.report.depth_files import as_csv, as_svg, write_depths

INPUTS = 4
HALTS = HaltTokens(alpha=-1.0, beta=-0.5, epsilon=0.3)
SVG = "{http://www.w3.org/2000/svg}"

pytestmark = pytest.mark.filterwarnings("ignore::isa.errors.CStepWarning")


def inputs_of(name: str) -> NDArray[np.float32]:
    return FAMILIES[name].inputs(INPUTS, seed=3, steps=STEPS)


def made(network: Network, schedule: str = "layers") -> Program:
    return program_of(network, 3, schedule, load_machine("c-step"))[0]


@cache
def halting() -> Program:
    return made(HALTS.apply(integer_module("spikformer-imagenet")))


def depths(program: Program, x: NDArray[np.float32]) -> Depths:
    return depths_of(program, quantise_input(program, x))


@pytest.mark.parametrize("schedule", ["layers", "windows"])
@pytest.mark.parametrize(
    ("choice", "blocks"),
    [
        (HALTS, ["block.1.kept"]),
        (HaltTokens(alpha=-1.0, beta=-0.5, epsilon=0.01, output="mean"), ["block.1.kept"]),
        (StopTokens((0.5, 0.7)), ["block.0.kept", "block.1.kept"]),
        (StopTokens((1.0, 0.3)), ["block.1.kept"]),
    ],
)
def test_depths_are_the_kept_trains_of_the_module(choice: NetworkPass, blocks: list[str], schedule: str) -> None:
    """Of two blocks; where tokens halt, all go through the first one, which is counted."""
    network, x = choice.apply(integer_module("spikformer-imagenet")), inputs_of("spikformer-imagenet")
    kept = [op.results[0] for op in network.operations() if isinstance(op, spike.Below | spike.KeepTokens)]
    found, executor = depths(made(network, schedule), x), Executor(network)
    assert list(found.blocks) == blocks and found.kept.shape == (INPUTS, len(blocks), STEPS, 6)
    assert found.halts == isinstance(choice, HaltTokens) and (found.rows, found.columns) == (2, 3)
    assert found.most == len(blocks) + found.halts
    for index, each in enumerate(x):
        values = executor.run(each, wanted=kept).values
        expected = np.stack([values[value][..., 0] for value in kept])
        assert np.array_equal(found.kept[index], expected)
        assert np.array_equal(found.depth[index], expected.sum(axis=0) + found.halts)
    assert 0 < found.kept.mean() < 1
    assert chooses_tokens(made(network, schedule))


def test_nothing_is_kept_at_timesteps_that_did_not_run() -> None:
    network = InsertExits(after=(2,), tau=(0.01,)).apply(HALTS.apply(integer_module("spikformer-imagenet")))
    x = inputs_of("spikformer-imagenet")
    whole, left = depths(halting(), x), depths(made(network, "windows"), x)
    assert whole.kept[:, :, 2:].any() and not left.kept[:, :, 2:].any()
    assert np.array_equal(left.kept[:, :, :2], whole.kept[:, :, :2])


def test_progress_counts_inputs() -> None:
    told: list[int] = []
    program = halting()
    depths_of(program, quantise_input(program, inputs_of("spikformer-imagenet")), told.append)
    assert told == [1, 2, 3, 4]


@pytest.mark.parametrize("score", [None, "random"])
def test_a_program_that_chooses_no_tokens_has_no_depths(score: str | None) -> None:
    """None at all, or without looking at them."""
    if score is None:
        program, integers = small_program(), np.zeros((1, 1, 4, 4, 1), np.int8)
    else:
        program = made(StopTokens((0.5,), score).apply(integer_module("spikformer-imagenet")))
        integers = quantise_input(program, inputs_of("spikformer-imagenet"))
    assert not chooses_tokens(program)
    with pytest.raises(CStepError) as caught:
        depths_of(program, integers)
    assert str(caught.value) == "no tokens are stopped or halted in this program; there is no depth to look at"


def test_maps_of_several_sizes_are_refused() -> None:
    network = StopTokens((0.5,)).apply(integer_module("qkformer-events"))
    program = program_of(network, 2, "layers", load_machine("c-step"))[0]
    with pytest.raises(CStepError) as caught:
        depths(program, inputs_of("qkformer-events"))
    assert str(caught.value).startswith("blocks choose among 4, 16 tokens; ") and "\n" not in str(caught.value)


KEPT = np.array([[[[1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]], [[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]]] * 2, np.uint8)
BY_HAND = Depths(("block.1", "block.2"), KEPT, halts=True, rows=2, columns=3)
"""Two inputs, two blocks that choose behind the first, two timesteps, 2x3 tokens."""


def test_the_table_counts_kept_tokens_by_input_block_and_timestep() -> None:
    assert list(csv.reader(as_csv(BY_HAND).splitlines())) == [
        ["input", "block", "tokens", "kept at t=0", "kept at t=1"],
        ["0", "block.1", "6", "5", "1"],
        ["0", "block.2", "6", "2", "0"],
        ["1", "block.1", "6", "5", "1"],
        ["1", "block.2", "6", "2", "0"],
    ]


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 8, 12), (2, 8, 12), (2, 2, 8, 12)])
@pytest.mark.parametrize("constant", [False, True])
def test_the_picture_is_xml_and_says_depths(shape: tuple[int, ...], constant: bool) -> None:
    """Over colours, grey, two channels, events; also where an image is all one value."""
    random = np.random.default_rng(2)
    images = np.zeros((2, *shape), np.float32) if constant else random.random((2, *shape), np.float32)
    drawn = as_svg(BY_HAND, "a <title> & more", images)
    root = ElementTree.fromstring(drawn)
    assert root.tag == f"{SVG}svg"
    said = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "a <title> & more" in said and "blocks that a token goes through, of 3; measured" in said
    assert said.count(f"t=0: mean {1 + 7 / 6:.2f}") == said.count(f"t=1: mean {1 + 1 / 6:.2f}") == 2
    assert len(list(root.iter(f"{SVG}image"))) == 2 * (1 + 2) + 1, "an image, depths over it twice, a scale"
    assert as_svg(BY_HAND, "a <title> & more", images) == drawn


def test_both_files_are_written_and_few_inputs_are_drawn(tmp_path: Path) -> None:
    kept = np.repeat(KEPT[:1], 9, axis=0)
    many = Depths(("block.1", "block.2"), kept, halts=False, rows=3, columns=2)
    images = np.random.default_rng(2).random((9, 1, 6, 4), np.float32)
    written = write_depths(tmp_path / "new" / "folder", "net", many, images)
    assert [path.name for path in written] == ["depth.csv", "depth.svg"]
    assert len(written[0].read_text().splitlines()) == 1 + 9 * 2
    titles = [text.text or "" for text in ElementTree.parse(written[1]).iter(f"{SVG}text")]
    assert sum(title.startswith("t=0: mean") for title in titles) == 6


def test_the_command_draws_depths_beside_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refuses: Callable[..., str]
) -> None:
    """Of a program whose tokens halt: what its kept trains say, by input."""
    program, x = halting(), inputs_of("spikformer-imagenet")
    program.save(tmp_path / "net.cstep")
    np.savez(tmp_path / "test.npz", x=x, y=np.zeros(INPUTS, np.int64))
    command = ["figures", str(tmp_path / "net.cstep"), str(tmp_path / "test.npz"), "-o", str(tmp_path / "out")]
    assert cstep.main([*command, "--observed", "3"]) == 0
    assert "depth.svg" in capsys.readouterr().out
    found = depths(program, x[:3])
    rows = list(csv.reader((tmp_path / "out" / "depth.csv").read_text().splitlines()))[1:]
    assert rows == [
        [str(number), "block.1.kept", "6", *map(str, found.kept[number, 0].sum(axis=1))] for number in range(3)
    ]
    ElementTree.parse(tmp_path / "out" / "depth.svg")
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refuses(*command[:-1], tmp_path / "file" / "out")
