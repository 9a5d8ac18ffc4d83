"""The pipeline: dumps that a later run may start from, options refused by name, wrong passes caught."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import made_up_inputs, made_up_weights
from models import BACK_END, Shape, compiled, emulate, spikformer
from numpy.typing import NDArray
from xdsl.dialects.builtin import ArrayAttr, IntAttr

import compiler.pipeline
from compiler.backend.lower import LowerToCstep
from compiler.backend.synchronise import Synchronise
from compiler.check import Checker
from compiler.frontend.importer import import_model
from compiler.ir.cstep import InstructionOp
from compiler.ir.network import Network, load_dump, parse
from compiler.passes.canonicalise import Canonicalise
from compiler.passes.factor_common_spikes import FactorCommonSpikes
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.pipeline import DEFAULT_PASSES, PASSES, Compiled, parse_passes, run_passes
from isa.errors import CStepError
from isa.instructions import Load
from isa.machine import load_machine
from isa.program import program_bytes

Images = NDArray[np.float32]


@pytest.fixture(scope="module")
def imported() -> tuple[Network, Images]:
    """A small Spikformer whose attention hits its threshold exactly now and then."""
    model, images = spikformer(Shape(embed_dims=24, num_heads=3, timesteps=3, image=(2, 12, 20), seed=5))
    return import_model(model, torch.from_numpy(images[:1])), images


@pytest.fixture(scope="module")
def dumped(imported: tuple[Network, Images], tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    """The compiled network, and where its dumps are."""
    directory = tmp_path_factory.mktemp("dumps")
    return compiled(*imported, dump_to=directory), directory


def default_passes() -> list[NetworkPass]:
    """The passes of the default pipeline."""
    return parse_passes(DEFAULT_PASSES.replace("SCALE", "1").replace("BITS", "24").replace("SCHEDULE", "layers"))


def test_every_pass_leaves_a_dump_that_reads_back(dumped: tuple[Compiled, Path]) -> None:
    paths = sorted(dumped[1].glob("*.spike"))
    assert [path.stem[3:] for path in paths] == ["import", *(each.name for each in default_passes())]
    for path in paths:
        network = load_dump(path)
        assert network.text() == path.read_text(), path.stem
        assert parse(network.text()).is_structurally_equivalent(network.module), path.stem


def test_a_pipeline_may_start_from_any_dump(dumped: tuple[Compiled, Path]) -> None:
    """The last module is the same whichever dump the remaining passes start from: nothing is known but the dump."""
    result, directory = dumped
    passes = result.program.header.provenance.pipeline.split(",")
    final = result.network.text()
    for done, path in enumerate(sorted(directory.glob("*.spike"))):
        network = run_passes(load_dump(path), ",".join(passes[done:]))
        assert network.text() == final, path.stem
        names = {name: value for name, value in network.weights.items() if name in result.network.weights}
        assert all(np.array_equal(value, result.network.weights[name]) for name, value in names.items()), path.stem


def test_a_check_may_start_from_any_dump(dumped: tuple[Compiled, Path], imported: tuple[Network, Images]) -> None:
    """Compiling a dump compares what is left to compare, a program included."""
    result, directory = dumped
    passes = result.program.header.provenance.pipeline.split(",")
    for done, path in enumerate(sorted(directory.glob("*.spike"))):
        again = compiled(load_dump(path), imported[1], passes=",".join(passes[done:]) or "synchronise")
        assert again.program.code == result.program.code, path.stem
        assert all(check.compared for check in again.checks[1:]), path.stem


def test_compiling_twice_gives_the_same_file_and_dumps(
    imported: tuple[Network, Images], dumped: tuple[Compiled, Path], tmp_path: Path
) -> None:
    again = compiled(*imported, dump_to=tmp_path)
    assert program_bytes(again.program) == program_bytes(dumped[0].program)
    for path in sorted(dumped[1].iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_machine_of_its_own_reaches_every_pass(imported: tuple[Network, Images]) -> None:
    """Accumulator width, window and buffers come from the machine that was asked for."""
    machine = load_machine("c-step").with_changes(accumulator_bits=20, window=3, output_buffer_bytes=8192)
    program = compiled(*imported, machine=machine).program
    assert program.header.machine == machine
    assert "accumulator-bits=20" in program.header.provenance.pipeline


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("fold-batchnorm", "passes: no pass fold-batchnorm; there are integrate-patch-splitting, fuse-attention, "),
        ("quantise{scale=0.1}", "quantise: no option scale; it takes image-scale, weights, accumulator-bits"),
        ("allocate{first=1}", "allocate: no option first; it takes none"),
        ("quantise{image-scale=big}", "quantise: image-scale=big; it must be a number"),
        ("quantise{image-scale=inf}", "quantise: image-scale=inf; it must be a number"),
        ("quantise{accumulator-bits=2.5}", "quantise: accumulator-bits=2.5; it must be a whole number"),
        ("quantise{weights=per-row}", "quantise: weights=per-row; it must be per-channel or per-tensor"),
        ("lower-to-cstep{schedule=tiles}", "lower-to-cstep: schedule=tiles; it must be layers or windows"),
        ("lower-to-cstep{share}", "lower-to-cstep: share=; it must be true or false"),
        ("canonicalise,,allocate", "passes: canonicalise,,allocate: Expected pass name here; it must read like pass,"),
        ("quantise{", "passes: quantise{: Expected argument name here; it must read like pass,pass{option=value}"),
    ],
)
def test_a_wrong_pipeline_is_refused_in_one_line(passes: str, message: str) -> None:
    with pytest.raises(CStepError, match=f"^{re.escape(message)}") as caught:
        parse_passes(passes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", ["1", "0.5", "5e-06", "2.5e-06"])
def test_a_number_may_be_written_in_any_way(scale: str) -> None:
    """Python spells small scales without a point: 5e-06."""
    (quantise,) = parse_passes(f"quantise{{image-scale={scale}}}")
    assert vars(quantise)["image_scale"] == float(scale)


def test_what_nothing_reads_may_go() -> None:
    """A dead neuron's currents are not missed; those of a live one are."""
    text = """
%x = spike.input : !spike.train<T=2, 4x6xf32>
%dead = spike.lif %x tau=2.0, threshold=0.5 : !spike.train<T=2, 4x6xi1>
%s = spike.lif %x tau=2.0, threshold=0.25 : !spike.train<T=2, 4x6xi1>
%g = spike.mean %s axis=0 : !spike.train<T=2, 6xf32>
%m = spike.mean_time %g : !spike.tensor<6xf32>
spike.output %m
"""
    module = parse(text)
    network = Network(module, made_up_weights(module, text))
    checker = Checker(made_up_inputs(network, 2), emulate)
    checker.compare(None, network, None)
    assert checker.compare(Canonicalise(), Canonicalise().apply(network), None).compared == 2 * (2 * 4 * 6 + 6)
    renamed = network.with_module(parse(text.replace("%s", "%t")))
    with pytest.raises(CStepError, match=r"^canonicalise: s: its currents are gone$"):
        checker.compare(Canonicalise(), renamed, None)


Spoil = Callable[[Network], Network]


def broken(kind: type[NetworkPass], spoil: Spoil) -> type[NetworkPass]:
    """A pass that does its work, and then one thing wrong."""

    @dataclass(frozen=True)
    class Broken(kind):
        def apply(self, network: Network) -> Network:
            return spoil(super().apply(network))

    return Broken


def changed_weight(name: str, change: Callable[[NDArray[np.generic]], object]) -> Spoil:
    """The weight changed in place."""

    def spoil(network: Network) -> Network:
        network.weights[name] = network.weights[name].copy()
        change(network.weights[name])
        return network

    return spoil


def one_thousandth_more(weight: NDArray[np.float64]) -> None:
    weight *= 1.001


def first_weight_dropped(weight: NDArray[np.float64]) -> None:
    weight[0, 0] = 0


def thresholds_one_more(constants: NDArray[np.uint8]) -> None:
    half = constants.view("<i4")[len(constants) // 8 :]
    half += 1


def a_wrong_offset(network: Network) -> Network:
    """The second row of spikes in place of the first, in one copy of the last block's fc2."""
    network = network.clone()
    for op in network.operations():
        if isinstance(op, InstructionOp) and op.INSTRUCTION is Load:
            (_, (buffer, _)), _ = op.addresses.items()
            if buffer.name_hint == "block.0.mlp.fc1_lif.train":
                op.properties["offsets"] = ArrayAttr([IntAttr(2), IntAttr(0)])
    return network


def a_faster_leak(network: Network) -> Network:
    """A neuron that decays by another power of two."""
    network = network.clone()
    for op in network.operations():
        if isinstance(op, InstructionOp) and op.properties.get("charge") and op.field_value("start"):
            op.properties["divisor"] = IntAttr(op.field_value("divisor") + 1)
            break
    return network


SPIKFORMER = r"\((?:spikformer|layers)\.py:\d+\)"
DIFFERENCE = r"image \d+, element \[[\d, ]+\] is \S+ after the pass and \S+ before it \(\d+ of \d+ differ\)"


BROKEN: dict[str, tuple[type[NetworkPass], Spoil, str, str]] = {
    "a scale wrong by a thousandth": (
        FoldBatchNorm,
        changed_weight("block.0.attn.q_linear.weight.folded", one_thousandth_more),
        rf"fold-batch-norm: block\.0\.attn\.q_lif {SPIKFORMER}",
        "07-fold-batch-norm.spike",
    ),
    "one weight dropped": (
        FoldBatchNorm,
        changed_weight("block.0.mlp.fc2_linear.weight.folded", first_weight_dropped),
        rf"fold-batch-norm: block\.0\.mlp\.fc2_lif {SPIKFORMER}",
        "07-fold-batch-norm.spike",
    ),
    "one weight of the head dropped": (
        FoldBatchNorm,
        changed_weight("head.weight", first_weight_dropped),
        "fold-batch-norm: logits",
        "07-fold-batch-norm.spike",
    ),
    "thresholds one too high": (
        LowerToCstep,
        changed_weight("block.0.attn.attention.constants", thresholds_one_more),
        rf"lower-to-cstep: block\.0\.attn\.proj_lif {SPIKFORMER}",
        "15-lower-to-cstep.spike",
    ),
    "a tile at a wrong offset": (
        LowerToCstep,
        a_wrong_offset,
        rf"lower-to-cstep: block\.0\.mlp\.fc2_lif {SPIKFORMER}",
        "15-lower-to-cstep.spike",
    ),
    "a neuron that leaks faster": (
        LowerToCstep,
        a_faster_leak,
        rf"lower-to-cstep: patch_embed\.proj_lif1 {SPIKFORMER}",
        "15-lower-to-cstep.spike",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pass_stops_the_build(
    name: str,
    imported: tuple[Network, Images],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The error names pass, op, source line, first element, both values and the dumps to look at."""
    kind, spoil, where, dump = BROKEN[name]
    passes = tuple(broken(each, spoil) if each is kind else each for each in PASSES)
    monkeypatch.setattr(compiler.pipeline, "PASSES", passes)
    wanted = rf"^{where}: {DIFFERENCE}; see {re.escape(dump)} and the dump before it$"
    with pytest.raises(CStepError, match=wanted):
        compiled(*imported, dump_to=tmp_path)


def test_a_broken_pass_is_named_where_programs_are_compared_at_the_end(
    imported: tuple[Network, Images], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Large inputs are emulated once, after the last pass; a difference there is followed back."""
    monkeypatch.setattr(compiler.pipeline, "LARGE", 0)
    done = compiled(*imported)
    notes = {each.name: each.note for each in done.checks}
    assert notes["allocate"] == "compared after synchronise"
    assert notes["synchronise"] == "emulator == integer model"
    kind, spoil, where, dump = BROKEN["thresholds one too high"]
    passes = tuple(broken(each, spoil) if each is kind else each for each in PASSES)
    monkeypatch.setattr(compiler.pipeline, "PASSES", passes)
    wanted = rf"^{where}: {DIFFERENCE}; see {re.escape(dump)} and the dump before it$"
    with pytest.raises(CStepError, match=wanted):
        compiled(*imported, dump_to=tmp_path)


def without_one_token(network: Network) -> Network:
    """The first token between two units, taken away on both sides."""
    network = network.clone()
    ops = [op for op in network.operations() if isinstance(op, InstructionOp)]
    post = next(op for op in ops if "post" in op.properties)
    wait = next(op for op in ops if "wait" in op.properties)
    del post.properties["post"]
    del wait.properties["wait"]
    return network


def test_a_missing_token_is_refused_by_the_verifier(
    imported: tuple[Network, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator runs in program order and sees nothing; the proof before emission does."""
    passes = tuple(broken(each, without_one_token) if each is Synchronise else each for each in PASSES)
    monkeypatch.setattr(compiler.pipeline, "PASSES", passes)
    with pytest.raises(CStepError, match=r"^code word \d+: \w+: .* must wait for \w+, with a post to \w+ at word \d+"):
        compiled(*imported)


def test_an_accumulator_too_narrow_is_a_compile_error(imported: tuple[Network, Images]) -> None:
    machine = load_machine("c-step").with_changes(accumulator_bits=12)
    with pytest.raises(CStepError, match=rf"^patch_embed\.proj_conv {SPIKFORMER}: its accumulators could reach .* 12 "):
        compiled(*imported, machine=machine)


def test_the_default_pipeline_names_every_pass_but_those_that_are_asked_for() -> None:
    """In the order of the list; canonicalise runs again behind what fuses. The lossy ones, and how rows share."""
    kept = [kind for kind in PASSES if kind.keeps != Keeps.LOSSY and kind is not FactorCommonSpikes]
    assert list(dict.fromkeys(type(each) for each in default_passes())) == kept
    assert [each.name for each in parse_passes(BACK_END.format("windows"))] == [kind.name for kind in PASSES[-3:]]
