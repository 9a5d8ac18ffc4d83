"""Results on stdout, bars and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def show(what: RenderableType, markup: bool = True) -> None:
    """Print on the terminal; into a file or pipe as wide as it wants to be."""
    console().print(what, markup=markup, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line that is no result."""
    sys.stderr.write(f"cstep: note: {text}\n")


def console() -> Console:
    """Where results go."""
    return Console() if sys.stdout.isatty() else Console(width=200)


@contextmanager
def progress_bar(label: str, total: int | None) -> Generator[Callable[..., None]]:
    """A bar on stderr while something runs; call it with how much is done, or with None and what begins now.

    Nothing is shown where stderr is no terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = Console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        begun = 0

        def step(done: int | None, what: str | None = None) -> None:
            nonlocal begun
            progress.update(task, completed=begun if done is None else done, description=what or label)
            begun += 1

        yield step
