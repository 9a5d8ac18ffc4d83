"""The head: sums over tokens and timesteps, and the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span
from compiler.backend.lower_sums import sum_tile
from compiler.backend.memory import StreamInfo
from compiler.backend.stages import HeadPart, HeadStage
from compiler.backend.tile import MAX_COLUMNS, MAX_INPUTS, aligned, largest, spans
from isa.instructions import ACCUMULATOR_BYTES, Classify, Load, Store
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


def lower_head(lowering: Lowering, stage: HeadStage, call: Call, logits: SSAValue) -> None:
    """Sum the features over tokens and windows; after the last window, classify."""
    features = [_sum_part(lowering, stage, part, call) for part in range(len(stage.parts))]
    if call.stop == stage.timing.steps:
        _classify(lowering, stage, features, logits)


def _sum_part(lowering: Lowering, stage: HeadStage, index: int, call: Call) -> SSAValue:
    """Add one call's timesteps to the features of a part; between calls they go to DRAM and come back."""
    emit, part, value = lowering.emit, stage.parts[index], stage.inputs[index]
    info, size = lowering.plan.info(value), part.channels * ACCUMULATOR_BYTES
    name = stage.label if len(stage.parts) == 1 else f"{stage.label}.part.{index}"
    features = emit.buffer(Region.OUTPUT, size, f"{name}.features")

    def move(kind: type[Load] | type[Store]) -> None:
        state = lowering.state(f"{name}.state", size)
        emit.copy(kind, (state, 0), (features, 0), Region.OUTPUT, Traffic.MEMBRANE, size)

    if not call.is_first:
        move(Load)
    room, planes = 2 * lowering.machine.spike_words, 1
    if isinstance(info, StreamInfo):
        held = sum(aligned(each.channels * ACCUMULATOR_BYTES) for each in stage.parts)
        room = lowering.machine.output_buffer_bytes - held
    else:
        planes = info.planes
    tile = largest(
        info.pixels,
        lambda pixels: (
            2 * aligned(lowering.window * planes * pixels * info.pixel_bytes) <= room and pixels <= MAX_COLUMNS
        ),
        stage.where,
    )
    channels, lift = (0, part.channels), max(part.shift, 0)
    steps = [
        sum_tile(lowering, name, (value,), features, window, pixels, channels, per_step=False, lift=lift)
        for window in call.windows
        for pixels in spans(info.pixels, tile)
    ]
    emit.pipeline(steps)
    if call.stop < stage.timing.steps:
        move(Store)
    return features


def _classify(lowering: Lowering, stage: HeadStage, features: list[SSAValue], logits: SSAValue) -> None:
    """Tiles of features and classes, part by part; the first tile of features starts from the bias."""
    emit, machine, classes = lowering.emit, lowering.machine, len(stage.bias)
    class_tile = largest(
        classes,
        lambda size: (
            2 * aligned(4 * size) <= machine.constant_buffer_bytes
            and 2 * aligned(size) <= machine.weight_buffer_bytes
            and size <= MAX_INPUTS
        ),
        stage.where,
    )
    most = max(part.channels for part in stage.parts)
    input_tile = largest(most, lambda size: 2 * aligned(size * class_tile) <= machine.weight_buffer_bytes, stage.where)
    result = emit.buffer(Region.OUTPUT, classes * ACCUMULATOR_BYTES, f"{stage.label}.logits")
    biases = emit.constant(f"{stage.label}.constants", lambda: stage.bias.astype("<i4").view(np.uint8))
    steps: list[Step] = []
    for class_span in spans(classes, class_tile):
        constants = emit.buffer(Region.CONSTANT, class_span[1] * 4, f"{stage.label}.constants_tile")
        first = len(steps)
        for index, part in enumerate(stage.parts):
            tiles = emit.constant(
                f"{stage.label}.tiles.{index}", lambda p=part: _head_tiles(p.weight, input_tile, class_tile)
            )
            for span in spans(part.channels, input_tile):
                made = (features[index], tiles, constants, result)
                fresh = len(steps) == first
                steps.append(_classify_tile(lowering, stage.label, part, span, class_span, *made, fresh=fresh))
        steps[first].loads.insert(
            0,
            lambda c=class_span, b=constants: emit.copy(
                Load, (biases, 4 * c[0]), (b, 0), Region.CONSTANT, Traffic.CONSTANT, 4 * c[1]
            ),
        )
    steps[-1].stores.append(
        lambda: emit.copy(Store, (logits, 0), (result, 0), Region.OUTPUT, Traffic.OUTPUT, classes * ACCUMULATOR_BYTES)
    )
    emit.pipeline(steps)


def _classify_tile(
    lowering: Lowering,
    label: str,
    part: HeadPart,
    inputs: Span,
    classes: Span,
    features: SSAValue,
    tiles: SSAValue,
    constants: SSAValue,
    result: SSAValue,
    *,
    fresh: bool,
) -> Step:
    """Load a tile of weights, and add its products to the logits."""
    emit, step = lowering.emit, Step()
    size = inputs[1] * classes[1]
    weights = emit.buffer(Region.WEIGHT, size, f"{label}.weights")
    start = classes[0] * part.channels + inputs[0] * classes[1]
    step.loads.append(lambda: emit.copy(Load, (tiles, start), (weights, 0), Region.WEIGHT, Traffic.WEIGHT, size))
    places = {
        "features": (features, inputs[0] * ACCUMULATOR_BYTES),
        "weights": (weights, 0),
        "logits": (result, classes[0] * ACCUMULATOR_BYTES),
    }
    if fresh:
        places["constants"] = (constants, 0)
    step.works.append(
        lambda: emit.instruction(
            Classify,
            places,
            inputs=inputs[1],
            outputs=classes[1],
            fresh=int(fresh),
            drop=max(-part.shift, 0),
        )
    )
    return step


def _head_tiles(weight: NDArray[np.int8], inputs: int, classes: int) -> NDArray[np.uint8]:
    """[in, out] weights in tile order: class tiles, in them feature tiles, each [in, out]."""
    parts = [
        np.ascontiguousarray(weight[k : k + inputs, m : m + classes]).reshape(-1).view(np.uint8)
        for m in range(0, weight.shape[1], classes)
        for k in range(0, weight.shape[0], inputs)
    ]
    return np.concatenate(parts)
