"""Results on stdout, bars and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def show(what: RenderableType, markup: bool = True) -> None:
    """Print on the terminal; into a file or pipe as wide as it wants to be."""
    console().print(what, markup=markup, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line that is no result."""
    sys.stderr.write(f"cstep: note: {text}\n")


def console() -> Console:
    """Where results go."""
    return Console() if sys.stdout.isatty() else Console(width=200)


SPEED_SECONDS = 120.0
"""Over how long a bar's speed is taken: some shards, since each comes at once."""


class Speed(ProgressColumn):
    """`1,204 inputs/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if not speed else f"{speed:,.3g} {self.unit}/s" if speed < 1000 else f"{speed:,.0f} {self.unit}/s"
        )


@contextmanager
def progress_bar(label: str, total: int | None, unit: str | None = None) -> Generator[Callable[..., None]]:
    """A bar on stderr while something runs; call it with how much is done, or with None and what begins now,
    and with the total where that was not known before.

    With a `unit`, how many a second and the time left, too. Nothing is shown where stderr is no terminal.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    if unit is not None:
        columns += [Speed(unit), TextColumn("left"), TimeRemainingColumn()]
    terminal = Console(stderr=True)
    with Progress(
        *columns,
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
        speed_estimate_period=SPEED_SECONDS,
    ) as progress:
        task = progress.add_task(label, total=total)
        begun = 0

        def step(done: int | None, what: str | None = None, total: int | None = total) -> None:
            nonlocal begun
            completed = begun if done is None else done
            progress.update(task, completed=completed, description=what or label, total=total)
            begun += 1

        yield step
