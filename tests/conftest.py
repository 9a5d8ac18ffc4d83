"""Options of the whole test suite, and what several of its files do."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

import cstep

# One thread of torch in the suite, and in what it starts: layers this small gain nothing from more, and where other
# work keeps the cores busy they lose much. An epoch of examples/train.py takes 20 s with one thread and took 170 s
# with two beside another worker of the suite. What torch rounds depends on their number, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the passes give into tests/passes")


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as a mistake of the user; its one line."""

    def run(*arguments: object) -> str:
        code = cstep.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert code == 2
        lines = [line for line in err.splitlines() if not line.startswith("cstep: note:")]
        assert len(lines) == 1
        assert lines[0].startswith("cstep: ")
        assert "Traceback" not in out + err
        return lines[0].removeprefix("cstep: ")

    return run
