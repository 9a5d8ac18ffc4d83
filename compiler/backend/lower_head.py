"""The head: sums over tokens and timesteps, the classifier, and the exits behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span
from compiler.backend.lower_halting import weigh_tile
from compiler.backend.lower_sums import sum_tile
from compiler.backend.memory import StreamInfo, TrainInfo
from compiler.backend.stages import HeadPart, HeadStage
from compiler.backend.tile import MAX_COLUMNS, MAX_INPUTS, aligned, largest, spans
from isa.instructions import ACCUMULATOR_BYTES, STATE_BYTES, Classify, Decide, Exit, Load, Store
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


MOST_STEPS = 15
"""Timesteps that one instruction sums."""


def lower_head(lowering: Lowering, stage: HeadStage, call: Call, logits: SSAValue) -> None:
    """Sum the features over tokens and windows; classify after the last window, and where the program may end."""
    features = [_sum_part(lowering, stage, part, call) for part in range(len(stage.parts))]
    if call.stop == stage.timing.steps:
        _classify(lowering, stage, stage.label, features, stage.bias_after(call.stop), logits)
    elif stage.is_exit(call.stop):
        _exit(lowering, stage, call.stop, features, logits)


def has_work(stage: HeadStage, call: Call) -> bool:
    """Whether the head, the exits apart, has anything to do in a call."""
    return call.stop == stage.timing.steps or any(call.first < part.steps for part in stage.parts)


def _exit(lowering: Lowering, stage: HeadStage, steps: int, features: list[SSAValue | None], logits: SSAValue) -> None:
    """Classify what has run so far, as a layer of its own, and end the program where that is decided."""
    exits, emit = stage.exits, lowering.emit
    assert exits is not None
    label, index = f"{stage.label}.exit.{steps}", exits.after.index(steps)
    emit.layer(label, stage.source, "exit", False, (), "")
    result = _classify(lowering, stage, label, features, stage.bias_after(steps), logits)
    emit.instruction(
        Decide,
        {"logits": (result, 0)},
        outputs=stage.classes,
        criterion=exits.criterion,
        multiplier=exits.multipliers[index],
        divisor=exits.divisors[index],
        threshold=exits.thresholds[index],
    )
    emit.instruction(Exit, {}, steps=steps)


def _sum_part(lowering: Lowering, stage: HeadStage, index: int, call: Call) -> SSAValue | None:
    """Add one call's timesteps to the features of a part; between calls they go to DRAM and come back.

    None where a call has no timestep of the part, and no logits come of it.
    """
    emit, part, value = lowering.emit, stage.parts[index], stage.inputs[index]
    info, size = lowering.plan.info(value), part.channels * ACCUMULATOR_BYTES
    name = stage.label if len(stage.parts) == 1 else f"{stage.label}.part.{index}"
    windows = [window for window in call.windows if window[0] < part.steps]
    if not windows and not stage.is_exit(call.stop) and call.stop < stage.timing.steps:
        return None
    features = emit.buffer(Region.OUTPUT, size, f"{name}.features")

    def move(kind: type[Load] | type[Store]) -> None:
        state = lowering.state(f"{name}.state", size)
        emit.copy(kind, (state, 0), (features, 0), Region.OUTPUT, Traffic.MEMBRANE, size)

    if not call.is_first:
        move(Load)
    tile = _part_pixels(lowering, stage, info)
    channels, lift = (0, part.channels), max(part.shift, 0)
    if part.state is None:
        steps = [
            sum_tile(lowering, name, (value,), features, window, pixels, channels, per_step=False, lift=lift)
            for window in _joined(windows, info)
            for pixels in spans(info.pixels, tile)
        ]
    else:
        steps = [
            weigh_tile(lowering, name, value, part, features, window, pixels)
            for window in windows
            for pixels in spans(info.pixels, tile)
        ]
    emit.pipeline(steps)
    if windows and call.stop < stage.timing.steps:
        move(Store)
    return features


def _part_pixels(lowering: Lowering, stage: HeadStage, info: TrainInfo | StreamInfo) -> int:
    """Pixels of a tile of what is summed."""
    room, planes = 2 * lowering.machine.spike_words, 1
    weighs = any(part.state is not None for part in stage.parts)
    if isinstance(info, StreamInfo):
        held = sum(aligned(each.channels * ACCUMULATOR_BYTES) for each in stage.parts)
        room = lowering.machine.output_buffer_bytes - held
    else:
        planes = info.planes

    def fits(pixels: int) -> bool:
        tile = aligned(lowering.window * planes * pixels * info.pixel_bytes)
        states = aligned(lowering.window * pixels * STATE_BYTES) if weighs else 0
        if isinstance(info, StreamInfo):
            tile += states
        return 2 * tile <= room and 4 * states <= lowering.machine.output_buffer_bytes and pixels <= MAX_COLUMNS

    return largest(info.pixels, fits, stage.where)


def _joined(windows: list[Span], info: TrainInfo | StreamInfo) -> list[Span]:
    """The windows, or of a train that is the same at every timestep as few as there can be."""
    if not windows or isinstance(info, StreamInfo) or not info.is_still:
        return windows
    first, stop = windows[0][0], sum(windows[-1])
    return [(first + start, count) for start, count in spans(stop - first, MOST_STEPS)]


def _classify(
    lowering: Lowering,
    stage: HeadStage,
    label: str,
    features: list[SSAValue | None],
    bias: NDArray[np.int32],
    logits: SSAValue,
) -> SSAValue:
    """Tiles of features and classes, part by part; the first tile of features starts from the bias."""
    emit, machine, classes = lowering.emit, lowering.machine, stage.classes
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
    result = emit.buffer(Region.OUTPUT, classes * ACCUMULATOR_BYTES, f"{label}.logits")
    biases = emit.constant(f"{label}.constants", lambda: bias.astype("<i4").view(np.uint8))
    steps: list[Step] = []
    for class_span in spans(classes, class_tile):
        constants = emit.buffer(Region.CONSTANT, class_span[1] * 4, f"{label}.constants_tile")
        first = len(steps)
        for index, part in enumerate(stage.parts):
            tiles = emit.constant(
                f"{stage.label}.tiles.{index}", lambda p=part: _head_tiles(p.weight, input_tile, class_tile)
            )
            for span in spans(part.channels, input_tile):
                held = features[index]
                assert held is not None
                made, fresh = (held, tiles, constants, result), len(steps) == first
                steps.append(_classify_tile(lowering, label, part, span, class_span, *made, fresh=fresh))
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
    return result


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
