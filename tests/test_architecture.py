"""The house: who may import whom, and what no file is called."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRONT_DOOR = {"cstep", "command"}
OWN = {"isa", "compiler", "runtime", "tests", "examples", *FRONT_DOOR}

MAY_IMPORT = {
    "isa": {"isa"},
    "compiler": {"isa", "compiler"},
    "runtime": {"isa", "runtime"},
}
"""Imports run downhill."""

NEVER = {
    "isa": {"torch", "xdsl", "numba", "onnx", "onnxruntime", "typer", "rich"},
    "compiler": {"numba", "typer"},
    "runtime": {"torch", "xdsl", "onnx", "onnxruntime", "typer"},
}
"""What a floor does without: the emulator runs where neither the compiler nor the model can be imported."""

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "base"}


def sources(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imported(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports, at the top or inside a function, and how many dots it begins with."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(name.name, 0) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level))
    return found


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_imports_run_downhill(floor: str) -> None:
    assert sources(floor)
    for path in sources(floor):
        tops = {name.partition(".")[0] for name, _ in imported(path)}
        assert tops & OWN <= MAY_IMPORT[floor], path
        assert not tops & NEVER[floor], path


def test_imports_are_absolute() -> None:
    for path in [
        *ROOT.glob("*.py"),
        *(file for floor in (*MAY_IMPORT, "command", "examples", "tests") for file in sources(floor)),
    ]:
        assert all(level == 0 for _, level in imported(path)), path


def test_only_the_front_door_knows_both_sides() -> None:
    for path in [*sources("isa"), *sources("compiler"), *sources("runtime")]:
        assert not FRONT_DOOR & {name.partition(".")[0] for name, _ in imported(path)}, path


def test_the_compiler_alone_knows_xdsl() -> None:
    for path in [
        *ROOT.glob("*.py"),
        *(file for floor in OWN - {"compiler", "tests", "cstep"} for file in sources(floor)),
    ]:
        assert "xdsl" not in {name.partition(".")[0] for name, _ in imported(path)}, path


def test_no_file_is_called_after_nothing() -> None:
    for floor in (*MAY_IMPORT, "command", "examples", "tests"):
        for path in sources(floor):
            assert path.stem not in FORBIDDEN_NAMES, path
            assert not path.stem.endswith(("_utils", "_helpers", "_manager")), path


def test_no_switches_in_the_environment() -> None:
    for path in [*ROOT.glob("*.py"), *(file for floor in (*MAY_IMPORT, "command") for file in sources(floor))]:
        text = path.read_text()
        assert "os.environ" not in text, path
        assert "getenv" not in text, path


def test_the_emulator_runs_where_compiler_and_model_cannot_be_imported(tmp_path: Path) -> None:
    """A program file, the runtime and numpy are enough."""
    from tests.programs import small_program

    small_program().save(tmp_path / "small.cstep")
    code = f"""
import sys
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"compiler", "torch", "xdsl", "onnx", "onnxruntime", "networkx"}}:
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
import numpy as np
import cstep
program = cstep.load({str(tmp_path / "small.cstep")!r})
result = cstep.run(program, np.random.default_rng(0).random((2, 2, 4, 4), np.float32))
print(result.logits.shape, result.counters.total("sop_hw").min() > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "(2, 3) True\n", done.stderr
