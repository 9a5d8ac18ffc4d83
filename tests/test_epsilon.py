"""The run-time knob of programs whose tokens halt: another epsilon gives the program that compiling with it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from exact import program_of
from integer import integer_module
from models import Shape, spikformer
from programs import small_program

import cstep
from compiler.passes.halt_tokens import HaltTokens
from compiler.pipeline import parse_passes
from isa.epsilon import limit_of, with_epsilon
from isa.errors import CStepError
from isa.instructions import Halt, KeepBelow
from isa.machine import load_machine
from isa.program import Program

RULES = {"alpha": -1.0, "beta": -0.5}


def compiled(epsilon: float) -> Program:
    """Two blocks with the same weights each time."""
    model, images = spikformer(Shape(depths=2))
    table = {"schema": "cstep-settings/1", "model": {"name": "net"}, "halting": RULES | {"epsilon": epsilon}}
    return cstep.compile(model, images[:1], calibration=images, check=False, settings=table)


@pytest.fixture(scope="module")
def program() -> Program:
    return compiled(0.01)


@pytest.mark.parametrize(
    ("epsilon", "limit"), [(0, 16384), (0.01, 16221), (0.5, 8192), (1 - 2**-14, 1), (0.999999, 1), (2**-14, 16383)]
)
def test_a_token_halts_at_the_first_total_that_is_no_less_than_1_without_epsilon(epsilon: float, limit: int) -> None:
    assert limit_of(epsilon) == limit
    assert limit / 2**14 >= 1 - epsilon - 1e-12 and (limit == 1 or (limit - 1) / 2**14 < 1 - epsilon)


@pytest.mark.parametrize(
    ("epsilon", "said"), [(-0.1, "-0.1"), (1.0, "1"), (1, "1"), (nan, "nan"), (inf, "inf"), (-1e-9, "-1e-09")]
)
def test_an_epsilon_outside_0_to_1_is_refused(program: Program, epsilon: float, said: str) -> None:
    for refused in (lambda: limit_of(epsilon), lambda: with_epsilon(program, epsilon)):
        with pytest.raises(CStepError) as caught:
            refused()
        assert str(caught.value) == f"epsilon={said}; it must be 0 or more, and less than 1"


def test_a_program_without_halting_has_no_epsilon() -> None:
    with pytest.raises(CStepError) as caught:
        with_epsilon(small_program(), 0.25, "--epsilon ")
    expected = "--epsilon 0.25: no tokens halt in this program; compile it with [halting] settings"
    assert str(caught.value) == expected


@pytest.mark.parametrize("epsilon", [0.0, 0.6])
def test_another_epsilon_gives_the_program_that_is_compiled_with_it(program: Program, epsilon: float) -> None:
    """Code, memory, source map and header, with the settings and the pipeline that it says it has."""
    turned, expected = with_epsilon(program, epsilon), compiled(epsilon)
    assert turned.code == expected.code != program.code
    assert np.array_equal(turned.memory, expected.memory) and np.array_equal(turned.source_map, expected.source_map)
    assert turned.header == expected.header != program.header
    provenance = turned.header.provenance
    assert f"halt-tokens{{alpha=-1.0 beta=-0.5 epsilon={epsilon!r} output=weighted}}" in provenance.pipeline
    assert json.loads(provenance.settings)["halting"]["epsilon"] == epsilon
    assert with_epsilon(turned, 0.01).header == program.header and with_epsilon(turned, 0.01).code == program.code


def test_whole_numbers_are_said_as_compiling_says_them(program: Program) -> None:
    assert with_epsilon(program, 0).header == with_epsilon(program, 0.0).header
    assert with_epsilon(program, float(np.float32(0.5))).header == with_epsilon(program, np.float64(0.5)).header


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{alpha=-1.0 beta=-0.5}", "{alpha=-1.0 beta=-0.5 epsilon=0.75}"),
        ("{epsilon=0.25 alpha=-1.0}", "{epsilon=0.75 alpha=-1.0}"),
        ("{alpha=-1.0 epsilon=1e-05}", "{alpha=-1.0 epsilon=0.75}"),
        ("", "{epsilon=0.75}"),
    ],
)
def test_a_pipeline_written_by_hand_says_it_too(program: Program, options: str, said: str) -> None:
    """Where it left epsilon at what it is by default as well; there are no settings then."""
    front, _, rest = program.header.provenance.pipeline.partition("halt-tokens{")
    rest = rest.partition("}")[2]
    by_hand = program.header.provenance.model_copy(update={"pipeline": f"{front}halt-tokens{options}{rest}"})
    header = program.header.model_copy(update={"provenance": by_hand.model_copy(update={"settings": ""})})
    found = with_epsilon(replace(program, header=header), 0.75).header.provenance
    assert found.pipeline == f"{front}halt-tokens{said}{rest}" and not found.settings
    [made] = [each for each in parse_passes(found.pipeline) if isinstance(each, HaltTokens)]
    assert made.epsilon == 0.75


@pytest.mark.parametrize("schedule", ["layers", "windows"])
@pytest.mark.parametrize("output", ["weighted", "mean"])
def test_nothing_but_limits_depends_on_epsilon(schedule: str, output: str) -> None:
    """In either schedule and with either classifier, in front of every pass that may fold or move things."""
    network, machine = integer_module("spikformer-imagenet"), load_machine("c-step")
    low, high = (
        program_of(HaltTokens(**RULES, epsilon=epsilon, output=output).apply(network), 3, schedule, machine)[0]
        for epsilon in (0.01, 0.6)
    )
    turned = with_epsilon(low, 0.6)
    assert turned.code == high.code and np.array_equal(turned.memory, high.memory)
    changed = [each for each, other in zip(low.code, high.code, strict=True) if each != other]
    assert {type(each) for each in changed} <= {*Halt.__subclasses__(), KeepBelow} and changed


def test_the_command_turns_epsilon(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], refuses: Callable[..., str]
) -> None:
    """More tokens halt, so fewer operations are left; a program file is made only by `eval`."""
    file, data = tmp_path / "net.cstep", tmp_path / "images.npz"
    program.save(file)
    np.savez(data, x=np.random.default_rng(1).random((4, *program.header.input.shape), np.float32), y=np.arange(4))

    def says(*arguments: object) -> str:
        assert cstep.main([str(each) for each in arguments]) == 0
        return "".join(capsys.readouterr())

    plain = says("run", file, data)
    assert says("run", file, data, "--epsilon", 0.01) == plain
    turned = says("run", file, data, "--epsilon", 0.75)
    assert turned != plain
    with_epsilon(program, 0.75).save(tmp_path / "turned.cstep")
    assert says("run", tmp_path / "turned.cstep", data) == turned
    refused = refuses("run", file, data, "--epsilon", 1)
    assert refused == "--epsilon 1; it must be 0 or more, and less than 1"
    folder = tmp_path / "new" / "out"
    written = folder.with_name(f"{Path(file).stem}-epsilon-0.75.cstep")
    said = says("eval", file, data, "-o", folder, "--epsilon", 0.75, "--workers", 1)
    assert f"{written}: the program with that epsilon" in said.replace("\n", "")
    assert written.read_bytes() == (tmp_path / "turned.cstep").read_bytes()
    assert "for a program file" in refuses("eval", "spikformer-2-96", data, "--epsilon", 0.5)
