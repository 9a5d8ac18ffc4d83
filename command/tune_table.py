"""What a search found, for the terminal: the best settings in words, and a row for every bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

if TYPE_CHECKING:
    from compiler.calibrate.tune import Tuned
    from compiler.settings import Settings

FACTORS = ("operations", "accumulations", "cycles", "energy", "dram_bytes")


class TunedTable:
    """Renders a search's result."""

    def __init__(self, tuned: Tuned, energy: str) -> None:
        self.tuned, self.energy = tuned, energy

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tuned, best = self.tuned, self.tuned.best
        yield f"best for {tuned.goal.objective} at a loss of {best.bound:g} points or less:"
        yield from (f"    {line}" for line in in_words(best.settings))
        yield ""
        yield "times less than the baseline: bit-sparse, nothing shared or left out (means per input)"
        yield self._factors()
        yield ""
        yield self._figures()
        images = tuned.baseline.images
        yield (
            f"loss on {images:,} held-out training images, measured, against {tuned.reference.right / images:.2%} "
            "top-1; costs on as many as the table says"
        )
        if best.confirmed:
            seen = f"{best.confirmed.images:,} training images that the search did not see"
            yield f"unseen: loss on {seen}, measured, and its standard error"
        yield (
            f"{len(tuned.trials):,} trials, {tuned.ran:,} of them run now, {tuned.seconds:,.0f} s of compiling and "
            f"running in all"
        )

    def _factors(self) -> Table:
        origins = {"cycles": "modelled", "energy": f"{self.energy}, modelled"}
        heads = [f"{name} ({origins.get(name, 'measured')})" for name in FACTORS]
        unseen = ["unseen [points]"] if self.tuned.goal.unseen else []
        table = Table(
            "loss bound", "loss [points]", *unseen, "exits", *heads, "sharing", "images", box=None, pad_edge=False
        )  # fmt: skip
        for column in table.columns[1:]:
            column.justify = "right"
        for each in sorted(self.tuned.points, key=lambda point: point.bound):
            factors = [f"{1 / each.relative(name):.2f}x" for name in FACTORS]
            mode = each.settings.sharing.mode if each.settings.sharing else "pair"
            on_unseen = [f"{each.confirmed.loss:+.2f} ± {each.confirmed.error:.2f}"] if each.confirmed else []
            table.add_row(
                f"{each.bound:g}", f"{each.loss:+.2f}", *on_unseen, f"{each.whole.exit_rate:.1%}", *factors, mode,
                f"{each.costed.images:,}",
            )  # fmt: skip
        return table

    def _figures(self) -> Table:
        """The best's own figures, with units."""
        from runtime.report.costs import COSTS
        from runtime.report.numbers import scale_for

        best = self.tuned.best
        table = Table("mean per input", "baseline", "best", "", "unit", "", box=None, pad_edge=False)
        for cost in COSTS:
            before, after = best.baseline.costs[cost.name], best.costed.costs[cost.name]
            scale = scale_for(max(before, after), cost.unit)
            said = f"{cost.origin}, table {self.energy}" if cost.name == "energy" else cost.origin
            table.add_row(cost.name, scale.text(before), scale.text(after), "", scale.unit, said)
        return table


def in_words(settings: Settings) -> Iterator[str]:
    """A line a dimension."""
    if settings.timesteps:
        masks = settings.timesteps.masks
        average = "" if settings.timesteps.average is None else f", T_avg {settings.timesteps.average:.2f}"
        kept = sorted(set(masks.values()))
        each = "; ".join(f"{mask}: {', '.join(label for label in masks if masks[label] == mask)}" for mask in kept)
        yield f"timesteps: {each}{average}"
    if settings.exit:
        taus = ", ".join(f"{tau:.4g}" for tau in settings.exit.tau)
        rate = "" if settings.exit.rate is None else f"; {settings.exit.rate:.1%} of the inputs leave"
        after = ", ".join(map(str, settings.exit.after))
        yield f"exits: after {after} timesteps, {settings.exit.criterion} above {taus}{rate}"
    if settings.guard:
        guard = settings.guard
        yield f"guard: {guard.mode} of channels with {guard.threshold} spikes or fewer in {guard.after} timesteps"
    if settings.tokens:
        keep = ", ".join(f"{each:g}" for each in settings.tokens.keep)
        yield f"tokens: {keep} of them go through the blocks, by score {settings.tokens.score}"
    if settings.halting:
        yield f"halting: epsilon {settings.halting.epsilon:g}"
    if settings.patch_splitting:
        yield "patch splitting: runs once, as trained"
    yield f"sharing: {settings.sharing.mode if settings.sharing else 'pair'}"
