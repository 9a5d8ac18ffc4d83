"""Sums over time in the middle of a network: a chain of additions of count trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span
from compiler.backend.stages import TimeSumStage
from compiler.backend.tile import MAX_PIXELS, aligned, largest, spans
from compiler.ir.types import shaped
from isa.instructions import Add, Load, Store
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.lower import Lowering


def lower_time_sum(lowering: Lowering, stage: TimeSumStage) -> None:
    """Runs of pixels; each timestep is added to the sum of those before it, and the last sum is stored."""
    assert stage.result is not None
    info, made = lowering.plan.train(stage.inputs[0]), lowering.plan.train(stage.result)
    capacity = 2 * lowering.machine.spike_words

    def fits(pixels: int) -> bool:
        """Twice the sum, and twice the timestep that is added to it: the next ones are loaded meanwhile."""
        row = pixels * made.pixel_bytes
        return 2 * (aligned(row * made.planes) + aligned(row * info.planes)) <= capacity and pixels <= MAX_PIXELS

    steps: list[Step] = []
    for pixels in spans(made.pixels, largest(made.pixels, fits, stage.where)):
        steps += _tile(lowering, stage, stage.result, pixels)
    lowering.emit.pipeline(steps)


def _tile(lowering: Lowering, stage: TimeSumStage, result: SSAValue, pixels: Span) -> list[Step]:
    """A step a timestep: the first begins the sum, in its lower planes; the others are added in place."""
    emit, plan, value = lowering.emit, lowering.plan, stage.inputs[0]
    info, made, live = plan.train(value), plan.train(result), plan.live(value)
    channels, plane_bytes = (0, made.words), pixels[1] * made.pixel_bytes
    total = emit.buffer(Region.SPIKE, made.planes * plane_bytes, f"{stage.label}.total")
    most = shaped(value.type).element.bounds[1]

    def load(time: int, held: SSAValue) -> None:
        tile = {"steps": (time, 1), "pixels": pixels, "words": channels}
        emit.copy_train(Load, info, lowering.dram_of(value), held, **tile, planes=info.planes)

    def add(time: int, held: SSAValue) -> None:
        emit.instruction(
            Add,
            {"left": (total, 0), "right": (held, 0), "result": (total, 0)},
            left_planes=(most * time).bit_length(),
            right_planes=info.planes,
            planes=made.planes if time == live - 1 else (most * (time + 1)).bit_length(),
            pixels=pixels[1],
            words=made.words,
            plane_stride=plane_bytes,
        )

    first = Step(loads=[lambda: load(0, total)])
    if live == 1 and made.planes > info.planes:
        extra = (info.planes, made.planes - info.planes)
        clear = {"planes": extra, "steps": (0, 1), "held_steps": 1, "pixels": pixels[1], "words": made.words}
        first.loads.append(lambda: emit.clear_train((total, 0), **clear))
    steps = [first]
    for time in range(1, live):
        held = emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{stage.label}.spikes")
        steps.append(Step(loads=[lambda t=time, h=held: load(t, h)], works=[lambda t=time, h=held: add(t, h)]))
    tile = {"steps": (0, 1), "pixels": pixels, "words": channels, "planes": made.planes}
    steps[-1].stores.append(lambda: emit.copy_train(Store, made, lowering.dram_of(result), total, **tile))
    return steps
