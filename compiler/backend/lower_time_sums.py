"""Sums over time in the middle of a network: a chain of additions of count trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span
from compiler.backend.lower_guards import SpikeTile
from compiler.backend.memory import TrainInfo
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
    emit, value = lowering.emit, stage.inputs[0]
    info, made, live = lowering.plan.train(value), lowering.plan.train(result), lowering.plan.live(value)
    plane_bytes = pixels[1] * made.pixel_bytes
    total = emit.buffer(Region.SPIKE, made.planes * plane_bytes, f"{stage.label}.total")
    steps = [Step(loads=[lambda: _load(lowering, value, total, 0, pixels)])]
    if live == 1:  # nothing is added that would write the upper planes
        steps[0].loads.append(lambda: _clear(lowering, total, (info.planes, made.planes - info.planes), made, pixels))
    for time in range(1, live):
        held = emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{stage.label}.spikes")
        steps.append(
            Step(
                loads=[lambda t=time, h=held: _load(lowering, value, h, t, pixels)],
                works=[lambda t=time, h=held: _add(lowering, value, (total, h), t, made, pixels)],
            )
        )
    tile = SpikeTile((total, 0), pixels[1], (0, made.channels), plane_bytes, plane_bytes, made.pixel_bytes)
    steps[-1].works.append(lambda: lowering.masks.count(stage, (0, 1), tile))
    steps[-1].stores.append(
        lambda: emit.copy_train(
            Store,
            made,
            lowering.dram_of(result),
            total,
            steps=(0, 1),
            pixels=pixels,
            words=(0, made.words),
            planes=made.planes,
        )
    )
    return steps


def _load(lowering: Lowering, value: SSAValue, held: SSAValue, time: int, pixels: Span) -> None:
    """One timestep of a tile."""
    info = lowering.plan.train(value)
    words = (0, info.words)
    lowering.emit.copy_train(
        Load, info, lowering.dram_of(value), held, steps=(time, 1), pixels=pixels, words=words, planes=info.planes
    )


def _clear(lowering: Lowering, total: SSAValue, planes: Span, made: TrainInfo, pixels: Span) -> None:
    lowering.emit.clear_train((total, 0), planes=planes, steps=(0, 1), held_steps=1, pixels=pixels[1], words=made.words)


def _add(
    lowering: Lowering, value: SSAValue, held: tuple[SSAValue, SSAValue], time: int, made: TrainInfo, pixels: Span
) -> None:
    """The sum of the timesteps before `time`, and that timestep: only as many planes as they can have."""
    total, spikes = held
    most, last = shaped(value.type).element.bounds[1], time == lowering.plan.live(value) - 1
    lowering.emit.instruction(
        Add,
        {"left": (total, 0), "right": (spikes, 0), "result": (total, 0)},
        left_planes=(most * time).bit_length(),
        right_planes=lowering.plan.train(value).planes,
        planes=made.planes if last else (most * (time + 1)).bit_length(),
        pixels=pixels[1],
        words=made.words,
        plane_stride=pixels[1] * made.pixel_bytes,
    )
