"""A ladder in the terminal: tables that 120 columns hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from runtime.energy import energy_tables
from runtime.evaluate.ladder import Goal, Ladder, Row
from runtime.report.numbers import scale_for


class LadderTable:
    """Renders a ladder: operations, bytes and energies by row, the paper's values, and whether the goal is reached."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ladder = self.ladder
        yield (
            f"[bold]{ladder.model}[/] on {ladder.machine}, T={ladder.timesteps}; {ladder.inputs.count:,} inputs of "
            + (ladder.inputs.source)
        )
        if ladder.inputs.calibrated:
            yield (
                f"[bold red]warning: calibration data == test data[/]: {ladder.inputs.calibrated:,} of these "
                f"{ladder.inputs.count:,} inputs were calibrated on; take others for the test"
            )
        yield "operations over the baseline's sop_bit, all else over its own baseline (means; cycles, energy modelled)"
        yield self._operations()
        yield ""
        yield self._costs()
        yield from self._membranes()
        yield from goal_lines(ladder.goals)

    def _operations(self) -> Table:
        heads = ("top-1", "loss", "exits", "T_avg", "sop_bit", "sop_union", "sop_hw", "deciding", "cycles", "DRAM")
        table = _table("measured", heads)
        for row in self.ladder.rows:
            table.add_row(
                escape(row.name),
                "" if row.accuracy is None else f"{row.accuracy:.2%}",
                "" if row.loss is None else f"{row.loss:+.2f}",
                f"{row.exit_rate:.1%}",
                f"{row.average_timesteps:.2f}",
                *(_times(row, name) for name in ("sop_bit", "sop_union", "sop_hw")),
                f"{row.deciding:.4f}",
                _times(row, "cycles"),
                _times(row, "dram_bytes"),
            )
        paper = self.ladder.paper
        figures = (f"{paper.exit_and_guards:.3f}", f"{paper.with_sharing:.3f}")
        table.add_row(paper.note, "", "", f"{paper.exit_rate:.1%}", "", *figures)
        return table

    def _costs(self) -> Table:
        table = _table("modelled, but the bytes", ("weights", "membranes", *energy_tables()))
        for row in self.ladder.rows:
            energies = [_times(row, f"energy {name}") for name in energy_tables()]
            table.add_row(
                escape(row.name), _bytes(row, "dram_weight_bytes"), _bytes(row, "dram_membrane_bytes"), *energies
            )
        return table

    def _membranes(self) -> Iterator[str]:
        """What windows cost: membranes leave the chip."""
        rows = {row.key: row for row in self.ladder.rows}
        if {"hoist", "windows"} <= rows.keys():
            before, after = rows["hoist"], rows["windows"]
            cycles = after.figure("cycles").per_input.mean / before.figure("cycles").per_input.mean
            yield (
                f"cost of windows: {_bytes(after, 'dram_membrane_bytes')} of membranes over DRAM an input, "
                f"{cycles:.3f}x the cycles of no windows"
            )


def goal_lines(goals: Sequence[Goal]) -> Iterator[str]:
    """Whether the goal is reached; where not, what falls short."""
    for goal in goals:
        loss = "" if goal.loss is None else f" at a loss of {goal.loss:+.2f} points"
        word = "[green]reached[/]" if goal.reached else "[bold red]not reached[/]"
        yield f"goal {goal.wanted:.3f}x: {word}: {escape(goal.row)} has {goal.relative:.3f}x{loss}"
        if not goal.reached:
            for factor in goal.factors:
                what = "[red]falls short[/]" if factor.short else "is enough"
                yield f"    {factor.name} {factor.value:.3f}, {factor.wants} {factor.wanted:.3f}: {what}"


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title, *heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _times(row: Row, name: str) -> str:
    value = row.figure(name).relative
    return "" if value is None else f"{value:.3f}"


def _bytes(row: Row, name: str) -> str:
    scale = scale_for(row.figure(name).per_input.mean, "bytes")
    return f"{scale.text(row.figure(name).per_input.mean)} {scale.unit}"
