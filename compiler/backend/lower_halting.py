"""Tokens that halt: totals and weights behind a block, the tokens that go on, and sums by the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Place, Step
from compiler.backend.lower_end import Span, step_bytes
from compiler.backend.memory import StreamInfo, TrainInfo
from compiler.backend.stages import BelowStage, HaltStage, HeadPart
from compiler.backend.tile import MAX_PIXELS, aligned, largest, spans
from isa.instructions import (
    BIAS_ZERO,
    SPIKE_WORD_BYTES,
    STATE_BYTES,
    STREAM_BYTES,
    HaltSpikes,
    HaltValues,
    KeepBelow,
    Load,
    Store,
    WeighSpikes,
    WeighValues,
)
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering

STATE = (0, 2)
"""Channels of a halting state, (first, count)."""


def lower_halt(lowering: Lowering, stage: HaltStage, call: Call) -> None:
    """Tiles of tokens, window by window; what scores have added up to stays, and goes to DRAM between calls."""
    emit, machine = lowering.emit, lowering.machine
    info = lowering.plan.info(stage.inputs[0])
    planes = info.planes if isinstance(info, TrainInfo) else 1

    def fits(tokens: int) -> bool:
        values = aligned(lowering.window * planes * tokens * SPIKE_WORD_BYTES)
        states = 4 * aligned(lowering.window * tokens * STATE_BYTES) + 2 * aligned(tokens * STREAM_BYTES)
        return 2 * values <= 2 * machine.spike_words and 2 * values + states <= machine.output_buffer_bytes

    steps: list[Step] = []
    for tokens in spans(stage.tokens, largest(stage.tokens, fits, stage.where)):
        sums = emit.buffer(Region.OUTPUT, tokens[1] * STREAM_BYTES, f"{stage.label}.sums")
        made = [_halt(lowering, stage, window, tokens, sums) for window in call.windows]
        if not call.is_first:
            made[0].loads.append(lambda t=tokens, s=sums: _move_sums(lowering, stage, Load, t, s))
        if call.stop < stage.timing.steps:
            made[-1].stores.append(lambda t=tokens, s=sums: _move_sums(lowering, stage, Store, t, s))
        steps += made
    emit.pipeline(steps)


def _move_sums(
    lowering: Lowering, stage: HaltStage, kind: type[Load] | type[Store], tokens: Span, sums: SSAValue
) -> None:
    """What scores of a tile have added up to, from or to DRAM."""
    state = lowering.state(f"{stage.label}.sums", stage.tokens * STREAM_BYTES)
    size = tokens[1] * STREAM_BYTES
    place = (state, tokens[0] * STREAM_BYTES)
    lowering.emit.copy(kind, place, (sums, 0), Region.OUTPUT, Traffic.MEMBRANE, size)


def _halt(lowering: Lowering, stage: HaltStage, window: Span, tokens: Span, sums: SSAValue) -> Step:
    """Load channel 0 and the state in front, and store the state behind."""
    emit, plan, step = lowering.emit, lowering.plan, Step()
    value, before = stage.inputs[0], stage.inputs[1] if len(stage.inputs) > 1 else None
    info = plan.info(value)
    size = window[1] * tokens[1] * STATE_BYTES
    state = emit.buffer(Region.OUTPUT, size, f"{stage.label}.state")
    places: dict[str, Place] = {"sums": (sums, 0), "state": (state, 0)}
    if before is not None:
        places["before"] = (state, 0)
        step.loads.append(lambda: _move_state(lowering, Load, before, state, window, tokens))
    fields = {
        "steps": window[1],
        "tokens": tokens[1],
        "multiplier": abs(stage.multiplier),
        "negative": int(stage.multiplier < 0),
        "divisor": stage.divisor,
        "bias": stage.bias + BIAS_ZERO,
        "limit": stage.limit,
        "gives": stage.gives,
        "follows": int(before is not None),
        "start": int(window[0] == 0),
    }
    dram, is_train = lowering.dram_of(value), isinstance(info, TrainInfo)
    if isinstance(info, TrainInfo):
        size, planes = info.planes * window[1] * tokens[1] * SPIKE_WORD_BYTES, info.planes
        held = emit.buffer(Region.SPIKE, size, f"{stage.label}.values")
        step.loads.append(
            lambda: emit.copy_train(Load, info, dram, held, steps=window, pixels=tokens, words=(0, 1), planes=planes)
        )
        fields["planes"] = planes
    else:
        held = emit.buffer(Region.OUTPUT, window[1] * tokens[1] * STREAM_BYTES, f"{stage.label}.values")
        step.loads.append(
            lambda: emit.copy_stream(
                Load, info, dram, held, Region.OUTPUT, steps=window, pixels=tokens, channels=(0, 1)
            )
        )
    places["values_at"] = (held, 0)
    step.works.append(lambda: emit.instruction(HaltSpikes if is_train else HaltValues, places, **fields))
    assert stage.result is not None
    made = stage.result
    step.stores.append(lambda: _move_state(lowering, Store, made, state, window, tokens))
    return step


def _move_state(
    lowering: Lowering, kind: type[Load] | type[Store], value: SSAValue, buffer: SSAValue, window: Span, tokens: Span
) -> None:
    """A tile of a halting state, from or to DRAM."""
    info, dram = lowering.plan.stream(value), lowering.dram_of(value)
    lowering.emit.copy_stream(kind, info, dram, buffer, Region.OUTPUT, steps=window, pixels=tokens, channels=STATE)


def lower_below(lowering: Lowering, stage: BelowStage, call: Call) -> None:
    """Tiles of tokens: the tokens whose total is still below the limit."""
    emit, machine, result = lowering.emit, lowering.machine, stage.result
    assert result is not None
    train, dram = lowering.plan.train(result), lowering.dram_of(result)

    def fits(tokens: int) -> bool:
        spikes = 2 * aligned(lowering.window * tokens * SPIKE_WORD_BYTES)
        states = 2 * aligned(lowering.window * tokens * STATE_BYTES)
        fit = spikes <= 2 * machine.spike_words and states <= machine.output_buffer_bytes
        return fit and tokens <= MAX_PIXELS

    steps: list[Step] = []
    for tokens in spans(stage.tokens, largest(stage.tokens, fits, stage.where)):
        for window in call.windows:
            state = emit.buffer(Region.OUTPUT, window[1] * tokens[1] * STATE_BYTES, f"{stage.label}.state")
            kept = emit.buffer(Region.SPIKE, window[1] * tokens[1] * SPIKE_WORD_BYTES, f"{stage.label}.kept")
            step = Step()
            step.loads.append(lambda s=state, w=window, t=tokens: _move_state(lowering, Load, stage.inputs[0], s, w, t))
            step.works.append(
                lambda s=state, k=kept, w=window, t=tokens: emit.instruction(
                    KeepBelow, {"state": (s, 0), "kept": (k, 0)}, steps=w[1], tokens=t[1], limit=stage.limit
                )
            )
            step.stores.append(lambda k=kept, w=window, t=tokens: emit.copy_kept(Store, train, dram, k, w, t))
            steps.append(step)
    emit.pipeline(steps)


def weigh_tile(
    lowering: Lowering, label: str, value: SSAValue, part: HeadPart, features: SSAValue, window: Span, tokens: Span
) -> Step:
    """Load one window of a tile of tokens and of their weights, and add its products to the features."""
    emit, plan, step = lowering.emit, lowering.plan, Step()
    info, dram = plan.info(value), lowering.dram_of(value)
    weights = part.state
    assert weights is not None
    state = emit.buffer(Region.OUTPUT, window[1] * tokens[1] * STATE_BYTES, f"{label}.weights")
    step.loads.append(lambda: _move_state(lowering, Load, weights, state, window, tokens))
    places: dict[str, Place] = {"features": (features, 0), "state": (state, 0)}
    fields = {"steps": window[1], "tokens": tokens[1], "inputs": part.channels, "drop": part.drop}
    fresh = int(tokens[0] == 0 and window[0] == 0)
    if isinstance(info, StreamInfo):
        held = emit.buffer(Region.OUTPUT, window[1] * tokens[1] * part.channels * STREAM_BYTES, f"{label}.values")
        step.loads.append(
            lambda: emit.copy_stream(
                Load, info, dram, held, Region.OUTPUT, steps=window, pixels=tokens, channels=(0, part.channels)
            )
        )
        step.works.append(lambda: emit.instruction(WeighValues, {**places, "values": (held, 0)}, fresh=fresh, **fields))
        return step
    plane_bytes = window[1] * step_bytes(tokens[1], part.channels)
    held = emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{label}.spikes")
    words = info.words_at((0, part.channels))
    step.loads.append(
        lambda: emit.copy_train(Load, info, dram, held, steps=window, pixels=tokens, words=words, planes=info.planes)
    )
    for plane in range(info.planes):
        step.works.append(
            lambda p=plane: emit.instruction(
                WeighSpikes,
                {**places, "spikes": (held, p * plane_bytes)},
                plane=p + max(part.shift, 0),
                fresh=int(fresh and p == 0),
                **fields,
            )
        )
    return step
