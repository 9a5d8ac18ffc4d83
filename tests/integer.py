"""Integer modules of the small families, T = 4, before any pass on time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from families import FAMILIES, SmallFamily

from compiler.calibrate.ranges import LEAST_IMAGES, image_scale
from compiler.frontend.importer import import_model
from compiler.ir.network import Network
from compiler.pipeline import DEFAULT_PASSES, parse_passes

STEPS = 4
TO_INTEGERS = DEFAULT_PASSES.partition(",mask-timesteps")[0]


@cache
def integer_module(
    name: str, steps: int = STEPS, pixels: tuple[int, int] | None = None, depths: int | None = None
) -> Network:
    """A small model of a family, quantised; of images of another size, and with more blocks, where that is given."""
    family = changed(name, pixels, depths)
    calibration = family.inputs(LEAST_IMAGES, steps=steps)
    network = import_model(family.build(steps), family.example(steps))
    for each in parse_passes(TO_INTEGERS.replace("SCALE", repr(image_scale(calibration))).replace("BITS", "24")):
        network = each.apply_with(network, calibration)
    return network


def changed(name: str, pixels: tuple[int, int] | None = None, depths: int | None = None) -> SmallFamily:
    """The family with images of another size, or with so many blocks."""
    family = FAMILIES[name]
    size = (family.size[0], *pixels) if pixels else family.size
    return replace(family, size=size, arguments={**family.arguments, **({"depths": depths} if depths else {})})
