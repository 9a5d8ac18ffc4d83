"""The report's histograms as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from isa.files import write_whole
from runtime.report.numbers import scale_for
from runtime.report.report import Report


def write_histograms(report: Report, path: Path, energy_table: str) -> None:
    """Operations, cycles, energy by one table, and timesteps run, as an SVG; the same report gives the same bytes."""
    found = {each.name: each for each in report.histograms}
    with rc_context({"svg.hashsalt": "cstep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        panels = figure.subplots(2, 2).flat
        for axes, name in zip(panels, ("sop_hw", "cycles", f"energy {energy_table}", "steps"), strict=True):
            each = found[name]
            scale = scale_for(each.edges[-1], each.unit)
            axes.stairs(each.counts, [edge / scale.divisor for edge in each.edges], fill=True)
            axes.set_xlabel(f"{name} [{scale.unit}], {each.origin}")
            axes.set_ylabel("inputs")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "steps":
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(
            f"{report.provenance.model or 'program'}: {report.inputs.count:,} inputs of {report.inputs.source}"
        )
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    write_whole(path, picture.getvalue())
