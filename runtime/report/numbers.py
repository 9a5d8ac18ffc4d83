"""Numbers as people read them."""

from __future__ import annotations

from typing import NamedTuple

STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
ENERGY = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


class Scale(NamedTuple):
    """What values of a row are divided by, and the unit that is then right."""

    divisor: float
    unit: str

    def text(self, value: float) -> str:
        """Three digits or so: `3.41`, `97.2`, `1,204`."""
        scaled = value / self.divisor
        if scaled == 0:
            return "0"
        return f"{scaled:,.0f}" if abs(scaled) >= 999.5 else f"{scaled:#.3g}".rstrip(".")


def scale_for(largest: float, unit: str) -> Scale:
    """One scale for a row of values up to `largest`, so that they compare at a glance."""
    if unit == "pJ":
        return next((Scale(*step) for step in ENERGY if largest >= step[0]), Scale(1.0, unit))
    if unit == "bytes":
        return next((Scale(*step) for step in BYTES if largest >= step[0]), Scale(1.0, "B"))
    if unit in ("ms", "fraction"):
        return Scale(1.0, unit)
    return next((Scale(size, f"{letter} {unit}") for size, letter in STEPS if largest >= size), Scale(1.0, unit))
