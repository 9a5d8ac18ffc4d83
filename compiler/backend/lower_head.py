"""The head: sums over tokens and timesteps, and the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span
from compiler.backend.lower_sums import sum_tile
from compiler.backend.stages import HeadStage, StreamInfo
from compiler.backend.tile import MAX_COLUMNS, MAX_INPUTS, aligned, largest, spans
from isa.instructions import ACCUMULATOR_BYTES, Classify, Load, Store
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.lower import Call, Lowering


def lower_head(lowering: Lowering, stage: HeadStage, call: Call, logits: SSAValue) -> None:
    """Sum the features over tokens and windows; after the last window, classify."""
    emit, info = lowering.emit, lowering.plan.info(stage.inputs[0])
    size = stage.channels * ACCUMULATOR_BYTES
    features = emit.buffer(Region.OUTPUT, size, f"{stage.label}.features")

    def move(kind: type[Load] | type[Store]) -> None:
        state = lowering.state(f"{stage.label}.state", size)
        emit.copy(kind, (state, 0), (features, 0), Region.OUTPUT, Traffic.MEMBRANE, size)

    if not call.is_first:
        move(Load)
    machine, is_stream = lowering.machine, isinstance(info, StreamInfo)
    room = machine.output_buffer_bytes - aligned(size) if is_stream else 2 * machine.spike_words
    planes = 1 if isinstance(info, StreamInfo) else info.planes
    tile = largest(
        info.pixels,
        lambda pixels: (
            2 * aligned(lowering.window * planes * pixels * info.pixel_bytes) <= room and pixels <= MAX_COLUMNS
        ),
        stage.where,
    )
    steps = [
        sum_tile(lowering, stage.label, stage.inputs, features, window, pixels, (0, stage.channels), per_step=False)
        for window in call.windows
        for pixels in spans(info.pixels, tile)
    ]
    emit.pipeline(steps)
    if call.is_last:
        _classify(lowering, stage, features, logits)
    else:
        move(Store)


def _classify(lowering: Lowering, stage: HeadStage, features: SSAValue, logits: SSAValue) -> None:
    """Tiles of features and classes; the first tile of features starts from the bias."""
    emit, machine = lowering.emit, lowering.machine
    channels, classes = stage.weight.shape
    class_tile = largest(
        classes,
        lambda size: (
            2 * aligned(4 * size) <= machine.constant_buffer_bytes
            and 2 * aligned(size) <= machine.weight_buffer_bytes
            and size <= MAX_INPUTS
        ),
        stage.where,
    )
    input_tile = largest(
        channels, lambda size: 2 * aligned(size * class_tile) <= machine.weight_buffer_bytes, stage.where
    )
    result = emit.buffer(Region.OUTPUT, classes * ACCUMULATOR_BYTES, f"{stage.label}.logits")
    tiles = emit.constant(f"{stage.label}.tiles", lambda: _head_tiles(stage, input_tile, class_tile))
    biases = emit.constant(f"{stage.label}.constants", lambda: stage.bias.astype("<i4").view(np.uint8))
    steps: list[Step] = []
    for class_span in spans(classes, class_tile):
        constants = emit.buffer(Region.CONSTANT, class_span[1] * 4, f"{stage.label}.constants_tile")
        for span in spans(channels, input_tile):
            step = _classify_tile(lowering, stage, span, class_span, features, tiles, constants, result)
            if span[0] == 0:
                step.loads.insert(
                    0,
                    lambda c=class_span, b=constants: emit.copy(
                        Load, (biases, 4 * c[0]), (b, 0), Region.CONSTANT, Traffic.CONSTANT, 4 * c[1]
                    ),
                )
            steps.append(step)
    steps[-1].stores.append(
        lambda: emit.copy(Store, (logits, 0), (result, 0), Region.OUTPUT, Traffic.OUTPUT, classes * ACCUMULATOR_BYTES)
    )
    emit.pipeline(steps)


def _classify_tile(
    lowering: Lowering,
    stage: HeadStage,
    inputs: Span,
    classes: Span,
    features: SSAValue,
    tiles: SSAValue,
    constants: SSAValue,
    result: SSAValue,
) -> Step:
    """Load a tile of weights, and add its products to the logits."""
    emit, step = lowering.emit, Step()
    size = inputs[1] * classes[1]
    weights = emit.buffer(Region.WEIGHT, size, f"{stage.label}.weights")
    start = classes[0] * stage.channels + inputs[0] * classes[1]
    step.loads.append(lambda: emit.copy(Load, (tiles, start), (weights, 0), Region.WEIGHT, Traffic.WEIGHT, size))
    step.works.append(
        lambda: emit.instruction(
            Classify,
            {
                "features": (features, inputs[0] * ACCUMULATOR_BYTES),
                "weights": (weights, 0),
                "constants": (constants, 0),
                "logits": (result, classes[0] * ACCUMULATOR_BYTES),
            },
            inputs=inputs[1],
            outputs=classes[1],
            fresh=int(inputs[0] == 0),
            drop=stage.drop,
        )
    )
    return step


def _head_tiles(stage: HeadStage, inputs: int, classes: int) -> NDArray[np.uint8]:
    """[in, out] weights in tile order: class tiles, in them feature tiles, each [in, out]."""
    parts = [
        np.ascontiguousarray(stage.weight[k : k + inputs, m : m + classes]).reshape(-1).view(np.uint8)
        for m in range(0, stage.weight.shape[1], classes)
        for k in range(0, stage.weight.shape[0], inputs)
    ]
    return np.concatenate(parts)
