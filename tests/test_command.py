"""The `cstep` command: what every subcommand does, and that every mistake is one line, code 2, and no half file."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cstep

SOURCE = """
import torch
from torch import nn
from compiler.zoo import LIF, Spikformer

def build():
    torch.manual_seed(0)
    return Spikformer(img_size_h=16, img_size_w=16, in_channels=1, embed_dims=16, num_heads=2, depths=1, T=2)

class Events(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.lif = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), LIF()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        batch, steps = x.shape[:2]
        x = self.norm(self.conv(x.transpose(0, 1).flatten(0, 1)))
        x = self.lif(x.reshape(steps, batch, *x.shape[1:]))
        return self.head(x.flatten(3).transpose(-1, -2).mean(2).mean(0))

class Odd(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.between, self.second = nn.Linear(16, 8), between, nn.Linear(8, 10)

    def forward(self, x):
        return self.second(self.between(self.first(x.mean(1).mean(1))))

class Resonator(nn.Module):
    def neuronal_charge(self, x):
        self.v = self.v.cos() + x

    def neuronal_fire(self):
        return (self.v >= 1.0).float()

    def forward(self, x):
        self.v = torch.zeros_like(x[0])
        out = []
        for step in x:
            self.neuronal_charge(step)
            out.append(self.neuronal_fire())
        return torch.stack(out)

class Resonating(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.neuron, self.head = nn.Linear(16, 8), Resonator(), nn.Linear(8, 10)

    def forward(self, x):
        x = self.fc(x.mean(1).mean(1)).unsqueeze(0).repeat(2, 1, 1)
        return self.head(self.neuron(x).mean(0))

def softmax():
    return Odd(nn.Softmax(dim=-1))

def resonating():
    return Resonating()

def fails():
    return undefined_name

def number():
    return 7
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model file, its checkpoint, and a program compiled from them."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "model.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    import model  # pyright: ignore[reportMissingImports]

    sys.path.remove(str(folder))
    save_file(model.build().state_dict(), folder / "model.safetensors", {"mean": "0.3", "std": "0.4"})
    code = cstep.main(
        [
            "compile", f"{folder}/model.py:build", "--checkpoint", f"{folder}/model.safetensors",
            "--calibration", "digits", "--input-shape", "1,16,16", "--check-images", "1", "--test", "digits",
            "-o", f"{folder}/net.cstep", "--dump-ir", f"{folder}/ir",
        ]
    )  # fmt: skip
    assert code == 0
    return folder


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed; what it printed."""

    def run(*arguments: object) -> str:
        code = cstep.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert all(line.startswith("cstep: note: ") for line in err.splitlines())
        return out

    return run


Says = Callable[..., str]


# --- what works


def test_compile_leaves_a_program_and_a_dump_of_every_pass(here: Path) -> None:
    stems = [path.stem for path in sorted((here / "ir").glob("*.spike"))]
    assert [stem.partition("-")[2] for stem in stems][:3] == ["import", "fuse-attention", "canonicalise"]
    provenance = cstep.load(here / "net.cstep").header.provenance
    assert provenance.checkpoint.startswith("model.safetensors sha256:")
    assert provenance.calibration.startswith("digits:train, 1024 images, sha256:")
    assert provenance.version == cstep.__version__
    assert cstep.load(here / "net.cstep").header.input.mean == (0.3,)


def test_the_pipeline_of_a_program_compiles_to_the_same_program(here: Path, says: Says, tmp_path: Path) -> None:
    pipeline = cstep.load(here / "net.cstep").header.provenance.pipeline
    says(
        "compile", f"{here}/model.py:build", "--checkpoint", here / "model.safetensors", "--calibration", "digits",
        "--input-shape", "1,16,16", "--passes", pipeline, "--no-check", "-o", tmp_path / "again.cstep",
    )  # fmt: skip
    assert (tmp_path / "again.cstep").read_bytes() == (here / "net.cstep").read_bytes()


def test_a_module_names_a_model_and_the_data_its_shape(
    here: Path, says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    images = np.random.default_rng(0).standard_normal((8, 1, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(8))
    out = says(
        "compile", "model:build", "--checkpoint", here / "model.safetensors", "--calibration", tmp_path / "images.npz",
        "--schedule", "windows", "--machine", "c-step-64", "--check-images", "1", "-o", tmp_path / "net.cstep",
    )  # fmt: skip
    assert "emulator == integer model" in out
    assert "8 inputs of images.npz" in says("run", tmp_path / "net.cstep", tmp_path / "images.npz")
    header = cstep.load(tmp_path / "net.cstep").header
    assert (header.machine.name, header.provenance.schedule) == ("c-step-64", "windows")


def test_events_come_from_an_npz(here: Path, says: Says, refuses: Says, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(1.0, (9, 3, 2, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "events.npz", x=counts, y=np.arange(9))
    arguments = ("--calibration", tmp_path / "events.npz", "-o", tmp_path / "events.cstep")
    assert "emulator == integer model" in says("compile", f"{here}/model.py:Events", *arguments)
    says("run", tmp_path / "events.cstep", tmp_path / "events.npz")
    program = cstep.load(tmp_path / "events.cstep")
    assert (program.header.input.kind, program.header.input.steps) == ("events", 3)
    assert "takes 3x2x8x8, from an .npz" in refuses("run", tmp_path / "events.cstep", "digits")
    np.savez(tmp_path / "short.npz", x=counts[:, :2])
    assert "takes B x 3x2x8x8" in refuses("run", tmp_path / "events.cstep", tmp_path / "short.npz")


def test_run_prints_the_four_counts_side_by_side(here: Path, says: Says) -> None:
    lines = says("run", here / "net.cstep", "digits", "--limit", 4).splitlines()
    assert "4 inputs of digits:test" in lines[0]
    assert lines[1].startswith("top-1")
    names = [line.split()[0] for line in lines[4:8]]
    assert names == ["sop_dense", "sop_bit", "sop_union", "sop_hw"]


def test_run_writes_a_report(here: Path, says: Says, tmp_path: Path) -> None:
    out = says(
        "run", here / "net.cstep", "digits", "--limit", 5, "--report", tmp_path / "a/report", "--energy", "45nm-int8",
        "--machine", "c-step", "--workers", 2,
    )  # fmt: skip
    assert "same logits" in out
    report = json.loads((tmp_path / "a/report/report.json").read_text())
    assert report["schema_version"] == "cstep-report/3"
    assert report["inputs"]["count"] == 5
    assert report["program"] == cstep.load(here / "net.cstep").digest
    assert sorted(path.name for path in (tmp_path / "a/report").iterdir()) == [
        "per_layer.csv", "report.html", "report.json",
    ]  # fmt: skip


def test_run_without_sharing_and_with_reference_kernels(here: Path, says: Says) -> None:
    shared = says("run", here / "net.cstep", "digits", "--limit", 2)
    assert says("run", here / "net.cstep", "digits", "--limit", 2, "--kernels", "reference") == shared
    assert "pair sharing off" in says("run", here / "net.cstep", "digits", "--limit", 2, "--no-share")


def test_inspect_shows_layers_and_provenance(here: Path, says: Says) -> None:
    out = says("inspect", here / "net.cstep")
    for words in (
        "cstep-program/4",
        "block.0.attn.q_linear",
        "model.safetensors sha256:",
        "accumulate",
        "digits:train",
    ):
        assert words in out


def test_text_and_program_turn_into_each_other(here: Path, says: Says, tmp_path: Path) -> None:
    says("disasm", here / "net.cstep", "-o", tmp_path / "net.asm")
    assert (tmp_path / "net.asm").read_text() == says("disasm", here / "net.cstep")
    says("asm", tmp_path / "net.asm", "--program", here / "net.cstep", "-o", tmp_path / "again.cstep")
    assert (tmp_path / "again.cstep").read_bytes() == (here / "net.cstep").read_bytes()


def test_opt_takes_a_dump_one_pass_further(here: Path, says: Says, tmp_path: Path) -> None:
    dumps = {path.stem.partition("-")[2]: path for path in (here / "ir").glob("*.spike")}
    printed = says("opt", dumps["canonicalise"], "--passes", "fold-batch-norm")
    assert printed == dumps["fold-batch-norm"].read_text()
    says("opt", dumps["canonicalise"], "--passes", "fold-batch-norm", "-o", tmp_path / "folded.spike")
    assert says("opt", tmp_path / "folded.spike", "--passes", "canonicalise")


def test_check_lists_the_layers(here: Path, says: Says) -> None:
    out = says(
        "check", f"{here}/model.py:build", "--checkpoint", here / "model.safetensors", "--input-shape", "1,16,16"
    )
    assert "block.0.mlp.fc2_linear" in out
    assert "maps to c-step" in out
    assert "Softmax" not in says("check", "--ops")


def test_lists(says: Says) -> None:
    assert "spikformer-2-64" in says("models")
    assert "c-step-64" in says("machines")
    assert says("--version") == f"cstep {cstep.__version__}\n"
    assert "compile" in says()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cstep; cstep.main(['--help']); "
        "print([name for name in ('torch', 'numba', 'xdsl', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- bad input: program files


def test_a_missing_program(here: Path, refuses: Says) -> None:
    assert "missing.cstep: cannot be read" in refuses("run", here / "missing.cstep", "digits")


@pytest.mark.parametrize("command", ["run", "inspect", "disasm"])
def test_a_truncated_program(here: Path, refuses: Says, tmp_path: Path, command: str) -> None:
    (tmp_path / "cut.cstep").write_bytes((here / "net.cstep").read_bytes()[:-100])
    line = refuses(command, tmp_path / "cut.cstep", *(["digits"] if command == "run" else []))
    assert "cut.cstep" in line
    assert "cut short" in line


def test_a_flipped_bit_anywhere(here: Path, refuses: Says, tmp_path: Path) -> None:
    whole = (here / "net.cstep").read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 12):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(place) % 8
        (tmp_path / "flipped.cstep").write_bytes(flipped)
        assert "flipped.cstep" in refuses("inspect", tmp_path / "flipped.cstep")


def test_a_program_for_another_machine(here: Path, refuses: Says) -> None:
    line = refuses("run", here / "net.cstep", "digits", "--machine", "c-step-64")
    assert "compiled for machine c-step, not c-step-64: lanes is 16, there 64" in line
    assert "presets are c-step" in refuses("run", here / "net.cstep", "digits", "--machine", "nothing")


# --- bad input: data


def test_inputs_of_another_shape(here: Path, refuses: Says, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 1, 16, 17), np.float32))
    assert "the program takes B x 1x16x16" in refuses("run", here / "net.cstep", tmp_path / "wide.npz")


def test_inputs_of_another_type(here: Path, refuses: Says, tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=np.zeros((2, 1, 16, 16), np.int32))
    assert "expected uint8 pixels or floating point" in refuses("run", here / "net.cstep", tmp_path / "whole.npz")


def test_pixels_that_are_no_numbers(here: Path, refuses: Says, tmp_path: Path) -> None:
    x = np.zeros((3, 1, 16, 16), np.float32)
    x[1, 0, 2, 2] = np.nan
    np.savez(tmp_path / "holes.npz", x=x)
    line = refuses("run", here / "net.cstep", tmp_path / "holes.npz")
    assert "row 1" in line
    assert "NaN" in line


def test_data_that_are_none(here: Path, refuses: Says, tmp_path: Path) -> None:
    assert "no such dataset" in refuses("run", here / "net.cstep", tmp_path / "nothing.parquet")
    (tmp_path / "text.npz").write_text("no archive")
    assert "text.npz" in refuses("run", here / "net.cstep", tmp_path / "text.npz")
    np.savez(tmp_path / "labels.npz", x=np.zeros((1, 1, 16, 16), np.float32), y=np.array([99]))
    assert "classes 0..9" in refuses("run", here / "net.cstep", tmp_path / "labels.npz")


def test_wrong_arrays_in_python(here: Path) -> None:
    program = cstep.load(here / "net.cstep")
    for inputs, words in (
        (np.zeros((1, 1, 16, 16)), "float64"),
        (np.zeros((1, 3, 16, 16), np.float32), "shape"),
        (torch.full((1, 1, 16, 16), float("nan")), "NaN"),
        ([[1.0], [2.0, 3.0]], "no array"),
    ):
        with pytest.raises(cstep.CStepError, match=words):
            cstep.run(program, inputs)


# --- bad input: compiling


@pytest.fixture
def compiling(here: Path, refuses: Says, tmp_path: Path) -> Iterator[Says]:
    """A compile that must be refused and leave no program; `model`, `checkpoint` and options are the test's."""
    output = tmp_path / "never.cstep"

    def run(model: str = "build", checkpoint: object = None, *options: object, calibration: object = "digits") -> str:
        return refuses(
            "compile", model if ":" in model or "-" in model else f"{here}/model.py:{model}",
            "--checkpoint", checkpoint or here / "model.safetensors", "--calibration", calibration,
            "--input-shape", "1,16,16", "--check-images", 1, "-o", output, *options,
        )  # fmt: skip

    yield run
    assert not list(tmp_path.glob("*never*")), "a half-written file"


def test_checkpoint_keys(here: Path, compiling: Says, tmp_path: Path) -> None:
    state = load_file(here / "model.safetensors")
    changed = {key: value for key, value in state.items() if key != "head.bias"}
    changed["stranger"] = torch.zeros(1)
    changed["head.weight"] = changed["head.weight"][:, :3].contiguous()
    save_file(changed, tmp_path / "changed.safetensors")
    line = compiling("build", tmp_path / "changed.safetensors")
    assert "1 missing (head.bias)" in line
    assert "1 unknown (stranger)" in line
    assert "head.weight 10x3 float32, the model has 10x16 float32" in line


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-run",)


def test_a_pickle_that_wants_to_run_something(compiling: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": Runs()}))
    assert "refused" in compiling("build", tmp_path / "trap.pth")
    assert not (tmp_path / "was-run").exists()


def test_checkpoints_that_are_none(compiling: Says, tmp_path: Path) -> None:
    assert "no such checkpoint" in compiling("build", tmp_path / "missing.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    assert "truncated" in compiling("build", tmp_path / "cut.safetensors")


def test_models_that_are_none(here: Path, compiling: Says) -> None:
    assert "no function missing; it has" in compiling("missing")
    assert "NameError" in compiling("fails")
    assert "model.py:" in compiling("fails").partition("NameError")[2]
    assert "returns int" in compiling("number")
    assert "no such file" in compiling(f"{here}/nowhere.py:build")
    assert "ModuleNotFoundError" in compiling("no_such_module:build")
    assert "names read like" in compiling("resnet-50")


def test_a_model_without_a_factory(here: Path, refuses: Says, tmp_path: Path) -> None:
    line = refuses("compile", here / "model.py", "--calibration", "digits", "-o", tmp_path / "n.cstep")
    assert "name the factory too" in line


def test_an_unsupported_op_is_named_with_its_line(here: Path, refuses: Says, tmp_path: Path) -> None:
    arguments = ("--calibration", "digits", "--input-shape", "1,16,16", "-o", tmp_path / "n.cstep")
    line = refuses("compile", f"{here}/model.py:softmax", *arguments)
    assert "model.py:" in line
    assert "torch.nn" in line
    assert "Softmax" in line
    assert not (tmp_path / "n.cstep").exists()
    assert "1 of its calls do not map" in refuses("check", f"{here}/model.py:softmax", "--input-shape", "1,16,16")


def test_an_unsupported_neuron_is_named_with_its_line(here: Path, refuses: Says, tmp_path: Path) -> None:
    arguments = ("--calibration", "digits", "--input-shape", "1,16,16", "-o", tmp_path / "n.cstep")
    line = refuses("compile", f"{here}/model.py:resonating", *arguments)
    assert "neuron" in line
    assert "model.py:" in line
    assert not (tmp_path / "n.cstep").exists()


def test_one_calibration_image(compiling: Says, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 1, 16, 16), np.float32))
    assert "calibration: 1 image; at least 8" in compiling(calibration=tmp_path / "one.npz")


def test_options_that_are_wrong(compiling: Says, tmp_path: Path) -> None:
    assert "there are integrate-patch-splitting, fuse-attention" in compiling("build", None, "--passes", "optimise")
    assert "it must be numbers" in compiling("build", None, "--mean", "a,b")
    assert "must be positive" in compiling("build", None, "--std", "0")
    assert "--schedule" in compiling("build", None, "--schedule", "diagonal")
    assert "presets are" in compiling("build", None, "--machine", "z80")
    assert "no directory" in compiling("build", None, "-o", tmp_path / "nowhere/n.cstep")


def test_words_that_are_no_commands(refuses: Says) -> None:
    assert "No such command 'fly'" in refuses("fly")
    assert "Missing argument" in refuses("run")
    assert refuses("tune", "spikformer-2-64") == "Missing option '--calibration'; see cstep tune --help"
    assert refuses("--nope") == "No such option: --nope; see cstep --help"
    assert "name a MODEL" in refuses("check")


def test_listings_and_dumps_that_are_wrong(here: Path, refuses: Says, tmp_path: Path) -> None:
    (tmp_path / "bad.asm").write_text("end\nacumulate share\n")
    arguments = ("--program", here / "net.cstep", "-o", tmp_path / "never.cstep")
    assert "line 2: 'acumulate' is no instruction; did you mean accumulate?" in refuses(
        "asm", tmp_path / "bad.asm", *arguments
    )
    assert "a listing is wanted" in refuses("asm", tmp_path / "missing.asm", *arguments)
    (tmp_path / "bad.spike").write_text("%x = spike.nothing\n")
    assert "bad.spike: line" in refuses("opt", tmp_path / "bad.spike", "--passes", "canonicalise")
    assert "cannot be read" in refuses("opt", tmp_path / "missing.spike", "--passes", "canonicalise")
    assert not (tmp_path / "never.cstep").exists()


# --- a full disk


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_when_compiling(compiling: Says) -> None:
    line = compiling()
    assert "No space left on device" in line
    assert "nothing was left behind" in line


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_when_dumping(compiling: Says, tmp_path: Path) -> None:
    assert "No space left on device" in compiling("build", None, "--dump-ir", tmp_path / "ir")
    assert not list((tmp_path / "ir").iterdir())


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_when_reporting(here: Path, refuses: Says, tmp_path: Path) -> None:
    line = refuses("run", here / "net.cstep", "digits", "--limit", 2, "--report", tmp_path / "report")
    assert "No space left on device" in line
    assert not list((tmp_path / "report").iterdir())


def test_a_report_where_a_file_is(here: Path, refuses: Says, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refuses("run", here / "net.cstep", "digits", "--limit", 2, "--report", tmp_path / "file")
    assert "give a directory" in line
