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
        if any(each.mean for each in self.report.overheads):
            yield self._overheads()
        if self.report.sharing is not None:
            yield self._sharing()

    def _heading(self) -> Iterator[str]:
        report = self.report
        name = report.provenance.model or "program"
        sharing = "on" if report.sharing_on else "off"
        modes = "".join(f"{mode} " for mode in report.sharing_modes)
        yield (
            f"[bold]{name}[/] on {report.machine.name}, T={report.timesteps}, {modes}sharing {sharing}; "
            f"{report.inputs.count} inputs of {report.inputs.source}"
        )
        if report.accuracy is not None:
            accuracy = report.accuracy
            yield f"top-1 [bold]{accuracy.value:.2%}[/] ({accuracy.correct} of {accuracy.inputs}, measured)"
        if report.exits:
            mean = report.figure("steps").per_input.mean
            taken = ", ".join(f"{rate:.2%} after {steps}" for steps, rate in report.steps_taken.items())
            yield (
                f"exit rate [bold]{report.exit_rate:.2%}[/] (measured): {taken} of {report.timesteps} timesteps, "
                f"mean {mean:.3f}"
            )
        else:
            yield f"no exit points: every input runs all {report.timesteps} timesteps"
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

    def _overheads(self) -> Table:
        """What deciding costs; it is part of the figures above."""
        report, table = self.report, self.energy.removeprefix("energy ")
        rows = Table("overhead, mean", "", "unit", "energy", "of all", box=None, pad_edge=False)
        for column in (rows.columns[1], *rows.columns[3:]):
            column.justify = "right"
        whole = report.figure(self.energy).per_input.mean
        for each in report.overheads:
            scale, spent = scale_for(each.mean, each.unit), scale_for(each.energy[table], "pJ")
            energy = f"{spent.text(each.energy[table])} {spent.unit}" if each.energy[table] else "not charged"
            share = f"{each.energy[table] / whole:.2%}" if whole else ""
            if each.mean:
                rows.add_row(each.name, scale.text(each.mean), scale.unit, energy, share)
        return rows

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
