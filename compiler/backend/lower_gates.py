"""Masks, dilation, and additions of trains: what runs on the neuron unit, spike word by spike word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span, step_bytes
from compiler.backend.lower_guards import SpikeTile
from compiler.backend.stages import AddStage, DilateStage, MaskStage
from compiler.backend.tile import MAX_COLUMNS, MAX_WIDTH, aligned, largest, spans
from isa.errors import CStepError
from isa.instructions import SPIKE_WORD_BYTES, SPIKES_PER_WORD, Add, Dilate, Load, Mask, Store, words_of
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering

REACH = 1
"""Neighbours to which `spike.dilate` spreads a spike, on each side."""


def _move(
    lowering: Lowering,
    kind: type[Load] | type[Store],
    value: SSAValue,
    buffer: SSAValue,
    window: Span,
    pixels: Span,
    channels: Span,
) -> None:
    """A tile of a train, from or to DRAM."""
    info = lowering.plan.train(value)
    lowering.emit.copy_train(
        kind,
        info,
        lowering.dram_of(value),
        buffer,
        steps=window,
        pixels=pixels,
        words=info.words_at(channels),
        planes=info.planes,
    )


def lower_mask(lowering: Lowering, stage: MaskStage, call: Call) -> None:
    """Tiles of tokens and of channels, one window a step; the spikes that stay take the place of all of them."""
    info, capacity = lowering.plan.train(stage.inputs[0]), 2 * lowering.machine.spike_words
    most = info.channels if stage.kind == "heads" else min(info.channels, MAX_WIDTH)

    def fits(tokens: int) -> bool:
        spikes = aligned(lowering.window * step_bytes(tokens, most))
        return 2 * (spikes + _mask_bytes(lowering.window, stage, tokens, most)) <= capacity and tokens <= MAX_COLUMNS

    tokens = largest(info.pixels, fits, stage.where)
    steps = [
        _mask_tile(lowering, stage, window, pixels, channels)
        for window in call.windows
        for channels in spans(info.channels, most)
        for pixels in spans(info.pixels, tokens)
    ]
    lowering.emit.pipeline(steps)


def _mask_bytes(steps: int, stage: MaskStage, tokens: int, channels: int) -> int:
    """Bytes of a tile's mask."""
    rows = 1 if stage.kind == "tokens" else tokens
    return aligned(steps * step_bytes(rows, stage.heads if stage.kind == "heads" else channels))


def _mask_tile(lowering: Lowering, stage: MaskStage, window: Span, pixels: Span, channels: Span) -> Step:
    assert stage.result is not None
    emit, step, result = lowering.emit, Step(), stage.result
    by_head = stage.kind == "heads"
    masks = (0, stage.heads) if by_head else channels
    rows = (0, 1) if stage.kind == "tokens" else pixels
    row, mask_row = (words_of(count) * SPIKE_WORD_BYTES for count in (channels[1], masks[1]))
    spikes = emit.buffer(Region.SPIKE, window[1] * pixels[1] * row, f"{stage.label}.spikes")
    mask = emit.buffer(Region.SPIKE, window[1] * rows[1] * mask_row, f"{stage.label}.mask")
    step.loads += [
        lambda: _move(lowering, Load, stage.inputs[0], spikes, window, pixels, channels),
        lambda: _move(lowering, Load, stage.inputs[1], mask, window, rows, masks),
    ]
    step.works.append(
        lambda: emit.instruction(
            Mask,
            {"spikes": (spikes, 0), "mask": (mask, 0), "result": (spikes, 0)},
            steps=window[1],
            tokens=pixels[1],
            heads=stage.heads if by_head else 1,
            width=stage.width if by_head else channels[1],
            by_head=int(by_head),
            pixel_stride=row,
            step_stride=pixels[1] * row,
            mask_pixel_stride=0 if stage.kind == "tokens" else mask_row,
            mask_step_stride=rows[1] * mask_row,
        )
    )
    tile = SpikeTile((spikes, 0), pixels[1], channels, 0, pixels[1] * row, row)
    step.works.append(lambda: lowering.masks.count(stage, window, tile))
    step.stores.append(lambda: _move(lowering, Store, result, spikes, window, pixels, channels))
    return step


def lower_dilate(lowering: Lowering, stage: DilateStage, call: Call) -> None:
    """Tiles of tokens, with their neighbours, and of heads that end at a spike word; one window a step."""
    info, capacity = lowering.plan.train(stage.inputs[0]), 2 * lowering.machine.spike_words
    whole = [
        heads
        for heads in range(stage.heads, 0, -1)
        if heads == stage.heads or (stage.heads % heads == 0 and heads * stage.width % SPIKES_PER_WORD == 0)
    ]

    def fits(tokens: int, heads: int) -> bool:
        loaded = min(tokens + 2 * REACH, info.pixels)
        tile = aligned(lowering.window * step_bytes(loaded, heads * stage.width))
        return 3 * tile <= capacity and loaded <= MAX_COLUMNS

    heads = next((each for each in whole if fits(1, each)), 0)
    if not heads:
        raise CStepError(f"{stage.where}: not even its smallest tile fits the machine's buffers")
    heads = next((each for each in whole if fits(info.pixels, each)), heads)
    tokens = largest(info.pixels, lambda size: fits(size, heads), stage.where)
    steps = [
        _dilate_tile(lowering, stage, window, pixels, (first, heads))
        for window in call.windows
        for first in range(0, stage.heads, heads)
        for pixels in spans(info.pixels, tokens)
    ]
    lowering.emit.pipeline(steps)


def _dilate_tile(lowering: Lowering, stage: DilateStage, window: Span, pixels: Span, heads: Span) -> Step:
    """The neighbours of the tile's tokens are loaded and dilated with them, and not stored."""
    assert stage.result is not None
    emit, step, result = lowering.emit, Step(), stage.result
    info = lowering.plan.train(result)
    first = max(pixels[0] - REACH, 0)
    loaded = (first, min(pixels[0] + pixels[1] + REACH, info.pixels) - first)
    channels = (heads[0] * stage.width, heads[1] * stage.width)
    row = words_of(channels[1]) * SPIKE_WORD_BYTES
    size = window[1] * loaded[1] * row
    spikes, spread = (emit.buffer(Region.SPIKE, size, f"{stage.label}.{name}") for name in ("spikes", "result"))
    step.loads.append(lambda: _move(lowering, Load, stage.inputs[0], spikes, window, loaded, channels))
    step.works.append(
        lambda: emit.instruction(
            Dilate,
            {"spikes": (spikes, 0), "result": (spread, 0)},
            steps=window[1],
            tokens=loaded[1],
            heads=heads[1],
            width=stage.width,
            reach=REACH,
            pixel_stride=row,
            step_stride=loaded[1] * row,
        )
    )
    stored = (pixels[0] - first) * row
    tile = SpikeTile((spread, stored), pixels[1], channels, 0, loaded[1] * row, row)
    step.works.append(lambda: lowering.masks.count(stage, window, tile))
    for index in range(window[1]):  # the stored rows of a step do not follow those of the step before
        offset = index * loaded[1] * row + stored
        step.stores.append(
            lambda i=index, o=offset: emit.copy_train(
                Store,
                info,
                lowering.dram_of(result),
                (spread, o),
                steps=(window[0] + i, 1),
                pixels=pixels,
                words=info.words_at(channels),
                planes=1,
            )
        )
    return step


def lower_add(lowering: Lowering, stage: AddStage, call: Call) -> None:
    """Runs of pixels, one timestep at a time."""
    assert stage.result is not None
    made = lowering.plan.train(stage.result)
    operands = [lowering.plan.train(value) for value in stage.inputs]
    live = [*operands, *operands, made]
    tile = largest(
        made.pixels,
        lambda pixels: (
            sum(aligned(pixels * made.pixel_bytes * info.planes) for info in live) <= 2 * lowering.machine.spike_words
        ),
        stage.where,
    )
    steps = [
        _add_tile(lowering, stage, time, pixels)
        for time in range(call.first, call.first + call.steps)
        for pixels in spans(made.pixels, tile)
    ]
    lowering.emit.pipeline(steps)


def _go_on(
    lowering: Lowering, step: Step, values: tuple[SSAValue, SSAValue], held: SSAValue, window: Span, pixels: Span
) -> None:
    """What nothing is added to any more goes on as it is, in the planes of the result."""
    (value, result), emit = values, lowering.emit
    info, made = lowering.plan.train(value), lowering.plan.train(result)
    channels, extra = (0, made.channels), (info.planes, made.planes - info.planes)
    step.loads.append(lambda: _move(lowering, Load, value, held, window, pixels, channels))
    step.loads.append(
        lambda: emit.clear_train(
            (held, 0), planes=extra, steps=(0, 1), held_steps=1, pixels=pixels[1], words=made.words
        )
    )
    step.stores.append(lambda: _move(lowering, Store, result, held, window, pixels, channels))


def _add_tile(lowering: Lowering, stage: AddStage, time: int, pixels: Span) -> Step:
    assert stage.result is not None
    emit, step = lowering.emit, Step()
    names = ("left", "right", "result")
    values: dict[str, SSAValue] = dict(zip(names, (*stage.inputs, stage.result), strict=True))
    trains = {name: lowering.plan.train(value) for name, value in values.items()}
    made = trains["result"]
    plane_bytes = pixels[1] * made.pixel_bytes
    buffers = {
        name: emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{stage.label}.{name}")
        for name, info in trains.items()
    }
    window, channels = (time, 1), (0, made.channels)
    tile = SpikeTile((buffers["result"], 0), pixels[1], channels, plane_bytes, plane_bytes, made.pixel_bytes)
    live = [name for name in ("left", "right") if time < lowering.plan.live(values[name])]
    if len(live) == 1:
        _go_on(lowering, step, (values[live[0]], values["result"]), buffers["result"], window, pixels)
        step.works.append(lambda: lowering.masks.count(stage, window, tile))
        return step
    step.loads += [
        lambda name=name: _move(lowering, Load, values[name], buffers[name], window, pixels, channels)
        for name in ("left", "right")
    ]
    step.works.append(
        lambda: emit.instruction(
            Add,
            {name: (buffer, 0) for name, buffer in buffers.items()},
            left_planes=trains["left"].planes,
            right_planes=trains["right"].planes,
            planes=made.planes,
            pixels=pixels[1],
            words=made.words,
            plane_stride=plane_bytes,
        )
    )
    step.works.append(lambda: lowering.masks.count(stage, window, tile))
    step.stores.append(lambda: _move(lowering, Store, values["result"], buffers["result"], window, pixels, channels))
    return step
