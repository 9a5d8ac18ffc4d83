"""The report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from runtime.report.figures import Distribution
from runtime.report.numbers import scale_for
from runtime.report.report import Report

OPERATIONS = ("sop_dense", "sop_bit", "sop_union", "sop_hw", "mac", "neuron_updates")
TRAFFIC = ("words_read", "words_skipped", "weight_buffer_bytes", "spike_buffer_bytes", "dram_bytes")
TIME = ("cycles", "latency", "steps")


class ReportTable:
    """Renders a report: a heading, the figures by what they are about, and sharing on against off."""

    def __init__(self, report: Report, energy_table: str) -> None:
        self.report, self.energy = report, f"energy {energy_table}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._heading()
        yield self._figures()
        if self.report.sharing is not None:
            yield self._sharing()

    def _heading(self) -> Iterator[str]:
        report = self.report
        name = report.provenance.model or "program"
        sharing = "on" if report.sharing_on else "off"
        yield (
            f"[bold]{name}[/] on {report.machine.name}, T={report.timesteps}, pair sharing {sharing}; "
            f"{report.inputs.count} inputs of {report.inputs.source}"
        )
        if report.accuracy is not None:
            accuracy = report.accuracy
            yield f"top-1 [bold]{accuracy.value:.2%}[/] ({accuracy.correct} of {accuracy.inputs}, measured)"

        if report.exit_rate:
            yield f"exit rate [bold]{report.exit_rate:.2%}[/] of the inputs stopped before timestep {report.timesteps}"
        if report.inputs.calibrated:
            yield (
                f"[bold red]warning: calibration data == test data[/]: the program was calibrated on "
                f"{report.inputs.calibrated:,} of these {report.inputs.count:,} inputs; take others for the test"
            )

    def _figures(self) -> Table:
        table = Table("per input", "mean", "p50", "p95", "worst", "unit", "origin", box=None, pad_edge=False)
        for column in table.columns[1:5]:
            column.justify = "right"
        for group in (OPERATIONS, TRAFFIC, TIME, (self.energy,)):
            for name in group:
                figure = self.report.figure(name)
                unit, *texts = _scaled(figure.per_input, figure.unit)
                table.add_row(name, *texts, unit, figure.origin)
        return table

    def _sharing(self) -> Table:
        sharing = self.report.sharing
        assert sharing is not None
        title = "same logits" if sharing.equal_logits else "[bold red]other logits[/]"
        table = Table(f"mean, {title}", "sharing on", "off", "on / off", "unit", box=None, pad_edge=False)
        for column in table.columns[1:4]:
            column.justify = "right"
        for row in sharing.rows:
            if row.name in ("sop_hw", "cycles", "weight_buffer_bytes", self.energy):
                scale = scale_for(max(row.on.mean, row.off.mean), row.unit)
                ratio = f"{row.on.mean / row.off.mean:.3f}" if row.off.mean else ""
                table.add_row(row.name, scale.text(row.on.mean), scale.text(row.off.mean), ratio, scale.unit)
        return table


def _scaled(values: Distribution, unit: str) -> tuple[str, ...]:
    """The row's unit, then its values in it."""
    scale = scale_for(values.worst, unit)
    return (scale.unit, *(scale.text(value) for value in (values.mean, values.p50, values.p95, values.worst)))
