"""Max-pooling of spikes and counts, and of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span, step_bytes
from compiler.backend.lower_guards import SpikeTile
from compiler.backend.memory import StreamInfo, TrainInfo
from compiler.backend.stages import PoolStage
from compiler.backend.tile import MAX_WIDTH, aligned, choose_pool, halo_rows, most_rows, spans
from isa.instructions import SPIKE_WORD_BYTES, SPIKES_PER_WORD, Load, Pool, PoolValues, Store, words_of
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


def lower_pool(lowering: Lowering, stage: PoolStage, call: Call) -> None:
    """Tiles of rows and of channels, one window at a time."""
    geometry, info, machine = stage.geometry, lowering.plan.info(stage.inputs[0]), lowering.machine

    def fits(channels: int, rows: int) -> bool:
        pixels = most_rows(geometry, rows) * geometry.input_columns, rows * geometry.columns
        if isinstance(info, StreamInfo):
            loaded, made = (aligned(lowering.window * size * channels * info.value_bytes) for size in pixels)
            return 2 * loaded + made <= machine.output_buffer_bytes and channels <= MAX_WIDTH
        loaded, made = (aligned(lowering.window * info.planes * step_bytes(size, channels)) for size in pixels)
        return 2 * loaded + made <= 2 * machine.spike_words

    channels, rows = choose_pool(stage.channels, geometry, fits, stage.where, SPIKES_PER_WORD)
    steps: list[Step] = []
    for window in call.windows:
        for channel_span in spans(stage.channels, channels):
            for row_span in spans(geometry.rows, rows):
                if isinstance(info, StreamInfo):
                    steps.append(_pool_stream(lowering, stage, info, window, channel_span, row_span))
                else:
                    steps.append(_pool_train(lowering, stage, info, window, channel_span, row_span))
    lowering.emit.pipeline(steps)


def _fields(stage: PoolStage, window: Span, rows: Span) -> dict[str, int]:
    """The window over one tile of rows."""
    geometry = stage.geometry
    _, count, top = halo_rows(geometry, *rows)
    return {
        "steps": window[1],
        "rows": rows[1],
        "columns": geometry.columns,
        "input_rows": count,
        "input_columns": geometry.input_columns,
        "kernel_rows": geometry.kernel_rows,
        "kernel_columns": geometry.kernel,
        "stride": geometry.stride,
        "top": top,
        "left": geometry.padding,
    }


def _pixels(stage: PoolStage, rows: Span) -> tuple[Span, Span]:
    """The tile's input pixels and output pixels."""
    geometry = stage.geometry
    first, count, _ = halo_rows(geometry, *rows)
    columns = geometry.input_columns
    return (first * columns, count * columns), (rows[0] * geometry.columns, rows[1] * geometry.columns)


def _pool_train(
    lowering: Lowering, stage: PoolStage, info: TrainInfo, window: Span, channels: Span, rows: Span
) -> Step:
    assert stage.result is not None
    emit, made, step = lowering.emit, lowering.plan.train(stage.result), Step()
    source, target = lowering.dram_of(stage.inputs[0]), lowering.dram_of(stage.result)
    (loaded, stored), words = _pixels(stage, rows), info.words_at(channels)
    input_bytes, result_bytes = (step_bytes(pixels[1], channels[1]) for pixels in (loaded, stored))
    planes, row = info.planes, words_of(channels[1]) * SPIKE_WORD_BYTES
    spikes = emit.buffer(Region.SPIKE, planes * window[1] * input_bytes, f"{stage.label}.spikes")
    result = emit.buffer(Region.SPIKE, planes * window[1] * result_bytes, f"{stage.label}.result")
    step.loads.append(
        lambda: emit.copy_train(Load, info, source, spikes, steps=window, pixels=loaded, words=words, planes=planes)
    )
    step.works.append(
        lambda: emit.instruction(
            Pool,
            {"spikes": (spikes, 0), "result": (result, 0)},
            inputs=channels[1],
            pixel_stride=row,
            step_stride=input_bytes,
            result_step_stride=result_bytes,
            planes=planes,
            **_fields(stage, window, rows),
        )
    )
    tile = SpikeTile((result, 0), stored[1], channels, window[1] * result_bytes, result_bytes, row)
    step.works.append(lambda: lowering.masks.count(stage, window, tile))
    step.stores.append(
        lambda: emit.copy_train(Store, made, target, result, steps=window, pixels=stored, words=words, planes=planes)
    )
    return step


def _pool_stream(
    lowering: Lowering, stage: PoolStage, info: StreamInfo, window: Span, channels: Span, rows: Span
) -> Step:
    assert stage.result is not None
    emit, made, step = lowering.emit, lowering.plan.stream(stage.result), Step()
    source, target = lowering.dram_of(stage.inputs[0]), lowering.dram_of(stage.result)
    loaded, stored = _pixels(stage, rows)
    pixel_bytes = channels[1] * info.value_bytes
    values = emit.buffer(Region.OUTPUT, window[1] * loaded[1] * pixel_bytes, f"{stage.label}.values")
    result = emit.buffer(Region.OUTPUT, window[1] * stored[1] * pixel_bytes, f"{stage.label}.result")
    step.loads.append(
        lambda: emit.copy_stream(
            Load, info, source, values, Region.OUTPUT, steps=window, pixels=loaded, channels=channels
        )
    )
    step.works.append(
        lambda: emit.instruction(
            PoolValues,
            {"values": (values, 0), "result": (result, 0)},
            inputs=channels[1],
            pixel_stride=pixel_bytes,
            step_stride=loaded[1] * pixel_bytes,
            **_fields(stage, window, rows),
        )
    )
    step.stores.append(
        lambda: emit.copy_stream(
            Store, made, target, result, Region.OUTPUT, steps=window, pixels=stored, channels=channels
        )
    )
    return step
