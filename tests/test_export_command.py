"""`cstep export`, and `cstep compile` of what it writes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import cstep
from compiler.backend.emit import neuron_labels
from compiler.ir.network import load_dump
from runtime.dataset import load_dataset
from runtime.interpreter import run
from runtime.quantise import quantise_input

SOURCE = """
import torch
from compiler.zoo import Spikformer
from compiler.zoo.random_weights import randomise

def build():
    torch.manual_seed(0)
    model = Spikformer(img_size_h=16, img_size_w=16, in_channels=1, embed_dims=16, num_heads=2, depths=1, T=2)
    randomise(model, torch.rand(4, 1, 16, 16) * 2 - 1, 0)
    return model.eval()
"""
AS_TRAINED = ("--mean", "0.3", "--std", "0.4", "--input-shape", "1,16,16")
Says = Callable[..., str]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its checkpoint, a program compiled from them, and its dumps."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "spiking.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    import spiking  # pyright: ignore[reportMissingImports]

    sys.path.remove(str(folder))
    save_file(spiking.build().state_dict(), folder / "model.safetensors", {"mean": "0.3", "std": "0.4"})
    assert cstep.main([str(each) for each in compiling(folder, "net.cstep", "--dump-ir", folder / "ir")]) == 0
    return folder


def compiling(folder: Path, output: str, *options: object) -> tuple[object, ...]:
    return (
        "compile", f"{folder}/spiking.py:build", "--checkpoint", folder / "model.safetensors",
        "--calibration", "digits", "--input-shape", "1,16,16", "--check-images", "1", "-o", folder / output, *options,
    )  # fmt: skip


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    """Run a command that must succeed; what it printed."""

    def run_it(*arguments: object) -> str:
        code = cstep.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run_it


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str], here: Path, tmp_path: Path) -> Says:
    """Export what must be refused; its one line, after making sure that nothing was written."""

    def run_it(source: object, *options: object, output: str = "out.onnx") -> str:
        given = ("export", source, "--onnx", tmp_path / output, *options)
        code = cstep.main([str(each) for each in given])
        out, err = capsys.readouterr()
        assert code == 2
        lines = [line for line in err.splitlines() if not line.startswith("cstep: note:")]
        assert len(lines) == 1, err
        assert "Traceback" not in out + err
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        return lines[0]

    return run_it


def images_of(folder: Path, count: int) -> NDArray[np.float32]:
    program = cstep.load(folder / "net.cstep").header.input
    dataset = load_dataset("digits", split="test", shape=program.shape, mean=program.mean, std=program.std)
    return dataset.batch(0, count)


def by_onnxruntime(path: Path, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": x}), strict=True))


@pytest.mark.parametrize("source", ["program", "model", "dump"])
def test_the_integer_model_gives_the_integers_of_the_program(
    here: Path, says: Says, tmp_path: Path, source: str
) -> None:
    path = tmp_path / "integers.onnx"
    checkpoint = ("--checkpoint", here / "model.safetensors")
    if source == "program":
        says("export", here / "net.cstep", *checkpoint, "--onnx", path, "--currents")
    elif source == "model":
        data = ("--calibration", "digits", "--no-check", "--input-shape", "1,16,16")
        says("export", f"{here}/spiking.py:build", *checkpoint, *data, "--onnx", path)
    else:
        says("export", next((here / "ir").glob("*-quantise.spike")), "--onnx", path)
    program, images = cstep.load(here / "net.cstep"), images_of(here, 3)
    done = run(program, quantise_input(program, images), observe=True)
    assert done.currents is not None
    labels = neuron_labels(load_dump(next((here / "ir").glob("*-lower-to-cstep.spike"))))
    differing = 0
    for index, image in enumerate(images):
        outputs = by_onnxruntime(path, image)
        differing += int((outputs.pop("logits") != done.logits[index]).sum())
        found = {name.removesuffix(".current"): value for name, value in outputs.items()}
        assert len(found) == (len(done.currents) if source == "program" else 0)
        for layer, current in done.currents.items() if found else ():
            differing += int((found[labels[layer]].reshape(-1) != current[index].reshape(-1)).sum())
    assert differing == 0
    scale = {each.key: each.value for each in onnx.load(path).metadata_props}["logit_scale"]
    assert float(scale) == program.header.output.scale


@pytest.mark.parametrize("form", ["--real", "--unrolled"])
def test_a_real_model_compiles_to_the_same_program(here: Path, says: Says, tmp_path: Path, form: str) -> None:
    path, model = tmp_path / "real.onnx", (f"{here}/spiking.py:build", "--checkpoint", here / "model.safetensors")
    says("export", *model, form, "--input-shape", "1,16,16", "--onnx", path)
    out = says(
        "compile", path, "--calibration", "digits", "--check-images", "2", *AS_TRAINED, "-o", tmp_path / "net.cstep"
    )
    assert "== eager model, bit for bit (float32); onnxruntime within" in " ".join(out.split())
    again, program = cstep.load(tmp_path / "net.cstep"), cstep.load(here / "net.cstep")
    assert again.code == program.code
    assert np.array_equal(again.memory, program.memory)
    assert again.header.provenance.checkpoint.startswith("real.onnx sha256:")


def test_an_unrolled_model_is_the_eager_one_in_onnxruntime(here: Path, tmp_path: Path) -> None:
    from compiler.frontend.model import open_model

    model = open_model(f"{here}/spiking.py:build", here / "model.safetensors").module
    images = images_of(here, 3)
    cstep.export_onnx(model, images[:1], tmp_path / "net.onnx", unrolled=True)
    with torch.no_grad():
        expected = torch.cat([model(torch.from_numpy(image[None])) for image in images]).numpy()
    found = np.concatenate([by_onnxruntime(tmp_path / "net.onnx", image[None])["logits"] for image in images])
    assert np.abs(found - expected).max() < 1e-5


def test_what_cannot_be_exported_is_one_line(here: Path, refuses: Says) -> None:
    model = f"{here}/spiking.py:build"
    assert "name ends in .onnx" in refuses(model, "--real", output="out.pb")
    assert "no directory" in refuses(model, "--real", output="nowhere/out.onnx")
    assert "give --calibration DATA, 8 inputs or more; or --input-shape, --mean and --std" in refuses(model)
    assert "--input-shape 3,32,32" in refuses(model, "--real")
    assert "leave out --real" in refuses(model, "--real", "--currents")
    assert "a program has integers only" in refuses(here / "net.cstep", "--real")
    assert "has its own weights" in refuses("net.onnx", "--real", "--checkpoint", here / "model.safetensors")
    assert "net.onnx: no such file" in refuses("net.onnx", "--real")
    assert "only integer modules" in refuses(next((here / "ir").glob("*-canonicalise.spike")))
    assert "in real numbers" in refuses(next((here / "ir").glob("*-quantise.spike")), "--real")


def test_a_program_of_other_weights_is_refused(here: Path, refuses: Says, tmp_path_factory: Any) -> None:
    from safetensors.torch import load_file

    state = load_file(here / "model.safetensors")
    state["head.weight"][0, 0] += 1.0
    other = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_file(state, other, {"mean": "0.3", "std": "0.4"})
    line = refuses(here / "net.cstep", "--checkpoint", other)
    assert "compiles to another program now; give the --checkpoint and --calibration" in line


def test_a_full_disk_leaves_no_file(here: Path, refuses: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert "nothing was left behind" in refuses(f"{here}/spiking.py:build", "--real", "--input-shape", "1,16,16")
