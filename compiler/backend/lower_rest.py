"""Pooling, additions and the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.stages import AddStage, HeadStage, PoolStage, TrainInfo
from compiler.backend.tile import MAX_COLUMNS, aligned, choose_pool, halo_rows, largest
from isa.instructions import ACCUMULATOR_BYTES, SPIKE_WORD_BYTES, SPIKES_PER_WORD, Add, Classify, Load, Pool, Store, Sum
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.lower import Call, Lowering

Span = tuple[int, int]


def lower_pool(lowering: Lowering, stage: PoolStage, call: Call) -> None:
    """Tiles of rows and of channel words, one window at a time."""
    assert stage.result is not None
    geometry = stage.geometry
    info, made = lowering.plan.trains[stage.inputs[0]], lowering.plan.trains[stage.result]
    window = min(lowering.machine.window, lowering.plan.timesteps)

    def size(words: int, rows: int) -> int:
        halo = min(geometry.input_rows, (rows - 1) * geometry.stride + geometry.kernel)
        row = window * words * SPIKE_WORD_BYTES
        return 2 * aligned(row * halo * geometry.input_columns) + aligned(row * rows * geometry.columns)

    where = f"{stage.label} ({stage.source})"
    capacity = 2 * lowering.machine.spike_words
    words_tile, rows_tile = choose_pool(info.words, geometry, lambda words, rows: size(words, rows) <= capacity, where)
    steps: list[Step] = []
    for each in call.windows:
        for first_word in range(0, info.words, words_tile):
            words = (first_word, min(words_tile, info.words - first_word))
            for row in range(0, geometry.rows, rows_tile):
                steps.append(
                    _pool_tile(lowering, stage, each, words, (row, min(rows_tile, geometry.rows - row)), info, made)
                )
    lowering.emit.pipeline(steps)


def _pool_tile(
    lowering: Lowering, stage: PoolStage, window: Span, words: Span, rows: Span, info: TrainInfo, made: TrainInfo
) -> Step:
    assert stage.result is not None
    emit, geometry = lowering.emit, stage.geometry
    source, target = lowering.dram_of(stage.inputs[0]), lowering.dram_of(stage.result)
    first, count, top = halo_rows(geometry, *rows)
    pixel_bytes = words[1] * SPIKE_WORD_BYTES
    step_bytes = count * geometry.input_columns * pixel_bytes
    result_bytes = rows[1] * geometry.columns * pixel_bytes
    spikes = emit.buffer(Region.SPIKE, window[1] * step_bytes, f"{stage.label}.spikes")
    result = emit.buffer(Region.SPIKE, window[1] * result_bytes, f"{stage.label}.result")
    inputs = min(stage.channels - words[0] * SPIKES_PER_WORD, words[1] * SPIKES_PER_WORD)
    step = Step()
    step.loads.append(
        lambda: emit.copy_train(
            Load,
            info,
            source,
            spikes,
            steps=window,
            pixels=(first * geometry.input_columns, count * geometry.input_columns),
            words=words,
            planes=1,
        )
    )
    step.works.append(
        lambda: emit.instruction(
            Pool,
            {"spikes": (spikes, 0), "result": (result, 0)},
            steps=window[1],
            rows=rows[1],
            columns=geometry.columns,
            input_rows=count,
            input_columns=geometry.input_columns,
            kernel_rows=geometry.kernel,
            kernel_columns=geometry.kernel,
            stride=geometry.stride,
            top=top,
            left=geometry.padding,
            inputs=inputs,
            pixel_stride=pixel_bytes,
            step_stride=step_bytes,
            result_step_stride=result_bytes,
            planes=1,
        )
    )
    step.stores.append(
        lambda: emit.copy_train(
            Store,
            made,
            target,
            result,
            steps=window,
            pixels=(rows[0] * geometry.columns, rows[1] * geometry.columns),
            words=words,
            planes=1,
        )
    )
    return step


def lower_add(lowering: Lowering, stage: AddStage, call: Call) -> None:
    """Runs of pixels, one timestep at a time."""
    assert stage.result is not None
    emit, made = lowering.emit, lowering.plan.trains[stage.result]
    operands = [lowering.plan.trains[value] for value in stage.inputs]
    live = [*operands, *operands, made]
    tile = largest(
        made.pixels,
        lambda pixels: (
            sum(aligned(pixels * made.pixel_bytes * info.planes) for info in live) <= 2 * lowering.machine.spike_words
        ),
        f"{stage.label} ({stage.source})",
    )
    steps: list[Step] = []
    for time in range(call.first, call.first + call.steps):
        for pixel in range(0, made.pixels, tile):
            steps.append(_add_tile(lowering, stage, time, (pixel, min(tile, made.pixels - pixel))))
    emit.pipeline(steps)


def _add_tile(lowering: Lowering, stage: AddStage, time: int, pixels: Span) -> Step:
    assert stage.result is not None
    emit, trains, step = lowering.emit, lowering.plan.trains, Step()
    made = trains[stage.result]
    plane_bytes = pixels[1] * made.pixel_bytes
    buffers: dict[str, SSAValue] = {}
    for name, value in zip(("left", "right", "result"), (*stage.inputs, stage.result), strict=True):
        info, dram = trains[value], lowering.dram_of(value)
        held = buffers[name] = emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{stage.label}.{name}")

        def move(
            kind: type[Load] | type[Store], info: TrainInfo = info, dram: SSAValue = dram, held: SSAValue = held
        ) -> None:
            emit.copy_train(
                kind,
                info,
                dram,
                held,
                steps=(time, 1),
                pixels=pixels,
                words=(0, info.words),
                planes=info.planes,
            )

        if name == "result":
            step.stores.append(lambda move=move: move(Store))
        else:
            step.loads.append(lambda move=move: move(Load))
    step.works.append(
        lambda: emit.instruction(
            Add,
            {name: (buffer, 0) for name, buffer in buffers.items()},
            left_planes=trains[stage.inputs[0]].planes,
            right_planes=trains[stage.inputs[1]].planes,
            planes=made.planes,
            pixels=pixels[1],
            words=made.words,
            plane_stride=plane_bytes,
        )
    )
    return step


def lower_head(lowering: Lowering, stage: HeadStage, call: Call, logits: SSAValue) -> None:
    """Sum the features over tokens and windows; after the last window, classify."""
    emit, info = lowering.emit, lowering.plan.trains[stage.inputs[0]]
    size = stage.channels * ACCUMULATOR_BYTES
    features = emit.buffer(Region.OUTPUT, size, f"{stage.label}.features")

    def move(kind: type[Load] | type[Store]) -> None:
        state = lowering.state(f"{stage.label}.state", size)
        emit.copy(kind, (state, 0), (features, 0), Region.OUTPUT, Traffic.MEMBRANE, size)

    if not call.is_first:
        move(Load)
    window = min(lowering.machine.window, lowering.plan.timesteps)
    tile = largest(
        info.pixels,
        lambda pixels: (
            2 * aligned(window * info.planes * pixels * info.pixel_bytes) <= 2 * lowering.machine.spike_words
            and pixels <= MAX_COLUMNS
        ),
        f"{stage.label} ({stage.source})",
    )
    steps = [
        _sum_tile(lowering, stage, each, (pixel, min(tile, info.pixels - pixel)), features)
        for each in call.windows
        for pixel in range(0, info.pixels, tile)
    ]
    emit.pipeline(steps)
    if call.is_last:
        _classify(lowering, stage, features, logits)
    else:
        move(Store)


def _sum_tile(lowering: Lowering, stage: HeadStage, window: Span, pixels: Span, features: SSAValue) -> Step:
    emit, info, step = lowering.emit, lowering.plan.trains[stage.inputs[0]], Step()
    dram = lowering.dram_of(stage.inputs[0])
    step_bytes = pixels[1] * info.pixel_bytes
    plane_bytes = window[1] * step_bytes
    spikes = emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{stage.label}.spikes")
    step.loads.append(
        lambda: emit.copy_train(
            Load, info, dram, spikes, steps=window, pixels=pixels, words=(0, info.words), planes=info.planes
        )
    )
    for plane in range(info.planes):
        step.works.append(
            lambda plane=plane: emit.instruction(
                Sum,
                {"spikes": (spikes, plane * plane_bytes), "features": (features, 0)},
                steps=window[1],
                tokens=pixels[1],
                inputs=info.channels,
                pixel_stride=info.pixel_bytes,
                step_stride=step_bytes,
                plane=plane,
                fresh=int(window[0] == 0 and pixels[0] == 0 and plane == 0),
                per_step=0,
                both=0,
            )
        )
    return step


def _classify(lowering: Lowering, stage: HeadStage, features: SSAValue, logits: SSAValue) -> None:
    """Tiles of features and classes; the first tile of features starts from the bias."""
    emit, machine = lowering.emit, lowering.machine
    channels, classes = stage.weight.shape
    where = f"{stage.label} ({stage.source})"
    class_tile = largest(
        classes,
        lambda size: (
            2 * aligned(4 * size) <= machine.constant_buffer_bytes and 2 * aligned(size) <= machine.weight_buffer_bytes
        ),
        where,
    )
    input_tile = largest(channels, lambda size: 2 * aligned(size * class_tile) <= machine.weight_buffer_bytes, where)
    result = emit.buffer(Region.OUTPUT, classes * ACCUMULATOR_BYTES, f"{stage.label}.logits")
    tiles = emit.constant(f"{stage.label}.tiles", lambda: _head_tiles(stage, input_tile, class_tile))
    biases = emit.constant(f"{stage.label}.constants", lambda: stage.bias.astype("<i4").view(np.uint8))
    steps: list[Step] = []
    for first_class in range(0, classes, class_tile):
        count = min(class_tile, classes - first_class)
        constants = emit.buffer(Region.CONSTANT, count * 4, f"{stage.label}.constants_tile")
        for first in range(0, channels, input_tile):
            inputs = min(input_tile, channels - first)
            weights = emit.buffer(Region.WEIGHT, inputs * count, f"{stage.label}.weights")
            start = first_class * channels + first * count
            step = Step()
            if first == 0:
                step.loads.append(
                    lambda f=first_class, c=count, b=constants: emit.copy(
                        Load, (biases, 4 * f), (b, 0), Region.CONSTANT, Traffic.CONSTANT, 4 * c
                    )
                )
            step.loads.append(
                lambda s=start, w=weights, n=inputs * count: emit.copy(
                    Load, (tiles, s), (w, 0), Region.WEIGHT, Traffic.WEIGHT, n
                )
            )
            step.works.append(
                lambda f=first, k=inputs, m=first_class, c=count, w=weights, b=constants: emit.instruction(
                    Classify,
                    {
                        "features": (features, f * ACCUMULATOR_BYTES),
                        "weights": (w, 0),
                        "constants": (b, 0),
                        "logits": (result, m * ACCUMULATOR_BYTES),
                    },
                    inputs=k,
                    outputs=c,
                    fresh=int(f == 0),
                    drop=0,
                )
            )
            steps.append(step)
    steps[-1].stores.append(
        lambda: emit.copy(Store, (logits, 0), (result, 0), Region.OUTPUT, Traffic.OUTPUT, classes * ACCUMULATOR_BYTES)
    )
    emit.pipeline(steps)


def _head_tiles(stage: HeadStage, inputs: int, classes: int) -> np.ndarray:
    """[in, out] weights in tile order: class tiles, in them feature tiles, each [in, out]."""
    weight = stage.weight
    parts = [
        np.ascontiguousarray(weight[k : k + inputs, m : m + classes]).reshape(-1).view(np.uint8)
        for m in range(0, weight.shape[1], classes)
        for k in range(0, weight.shape[0], inputs)
    ]
    return np.concatenate(parts)
