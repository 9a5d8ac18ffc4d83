"""Sums that end in neurons: over the tokens of a train, a product of trains or a stream, and over heads' channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import (
    EndTile,
    Part,
    Share,
    Span,
    Tile,
    end_demand,
    end_tile,
    shares,
    step_bytes,
    without_sums,
)
from compiler.backend.memory import StreamInfo
from compiler.backend.stages import HeadSumStage, SumStage
from compiler.backend.tile import MAX_COLUMNS, MAX_OUTPUTS, MAX_PIXELS, aligned, largest, spans, splits
from isa.instructions import (
    ACCUMULATOR_BYTES,
    CONSTANT_BYTES,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    Load,
    Sum,
    SumHeads,
    SumValues,
    words_of,
)
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


def lower_sum(lowering: Lowering, stage: SumStage, call: Call) -> None:
    """Tiles of channels; for each window, tiles of tokens are added up and end in one row."""
    channels, tokens = _sum_tiling(lowering, stage)
    part = Part(stage.label, stage.end, channels)
    pixels = lowering.plan.info(stage.inputs[0]).pixels
    steps: list[Step] = []
    for channel_span in spans(stage.channels, channels):
        end = end_tile(lowering, stage, part, call, Tile((0, 1), channel_span, (0, 0)))
        made: list[Step] = []
        for share in shares(stage, call):
            window = share.sums
            if window is None:
                made.append(without_sums(end, share))
                continue
            size = window[1] * channel_span[1] * ACCUMULATOR_BYTES
            sums = lowering.emit.buffer(Region.OUTPUT, size, f"{stage.label}.sums")
            made += [
                sum_tile(lowering, stage.label, stage.inputs, sums, window, span, channel_span, per_step=True)
                for span in spans(pixels, tokens)
            ]
            for each in share.ends:
                made[-1].works += [
                    lambda w=each, e=end: e.begin(w),
                    lambda w=each, e=end, s=sums: e.finish(w, (s, 0)),
                ]
        end.load_kept(made[0])
        end.prepare(made[0], None)
        end.conclude(made[-1])
        steps += made
    lowering.emit.pipeline(steps)


def _sum_tiling(lowering: Lowering, stage: SumStage) -> tuple[int, int]:
    """Channels and tokens of a tile: as many channels as fit with a single token, then as many tokens as fit."""
    demand, machine, window = end_demand(lowering, stage), lowering.machine, lowering.window
    info, operands = lowering.plan.info(stage.inputs[0]), len(stage.inputs)

    def fits(tokens: int, channels: int) -> bool:
        sums = aligned(window * channels * ACCUMULATOR_BYTES) + demand.output_bytes(1, channels)
        spikes = demand.spike_bytes(1, channels)
        if isinstance(info, StreamInfo):
            sums += 2 * aligned(window * tokens * channels * info.value_bytes)
        else:
            spikes += 2 * operands * aligned(window * info.planes * step_bytes(tokens, channels))
        return (
            sums <= machine.output_buffer_bytes
            and spikes <= 2 * machine.spike_words
            and 2 * aligned(channels * CONSTANT_BYTES) <= machine.constant_buffer_bytes
            and tokens <= MAX_COLUMNS
        )

    channels = next((size for size in splits(stage.channels, SPIKES_PER_WORD, MAX_OUTPUTS) if fits(1, size)), 1)
    return channels, largest(info.pixels, lambda tokens: fits(tokens, channels), stage.where)


def sum_tile(
    lowering: Lowering,
    label: str,
    inputs: tuple[SSAValue, ...],
    sums: SSAValue,
    window: Span,
    pixels: Span,
    channels: Span,
    *,
    per_step: bool,
    lift: int = 0,
) -> Step:
    """Load one window of a tile of tokens, and add it to the sums; the first tile (of each step) starts them.

    `lift` shifts the sums of a train to the left. Trains that are the same at every timestep are loaded once.
    """
    info = lowering.plan.info(inputs[0])
    fresh = int(pixels[0] == 0 and (per_step or window[0] == 0))
    if isinstance(info, StreamInfo):
        return _sum_stream(lowering, label, inputs[0], info, sums, window, pixels, channels, fresh, per_step)
    emit, step = lowering.emit, Step()
    bytes_of_step = step_bytes(pixels[1], channels[1])
    is_still = all(lowering.plan.info(value).is_still for value in inputs)
    loaded = (0, 1) if is_still else window
    plane_bytes = loaded[1] * bytes_of_step
    places = {"features": (sums, 0)}
    for name, value in zip(("spikes", "other"), inputs, strict=False):
        held = emit.buffer(Region.SPIKE, info.planes * plane_bytes, f"{label}.{name}")
        places[name] = (held, 0)
        _load_train(lowering, step, value, held, loaded, pixels, channels)
    for plane in range(info.planes):
        step.works.append(
            lambda plane=plane: emit.instruction(
                Sum,
                {**places, "spikes": (places["spikes"][0], plane * plane_bytes)},
                steps=window[1],
                tokens=pixels[1],
                inputs=channels[1],
                pixel_stride=words_of(channels[1]) * SPIKE_WORD_BYTES,
                step_stride=0 if is_still else bytes_of_step,
                plane=plane + lift,
                fresh=int(fresh and plane == 0),
                per_step=int(per_step),
                both=int(len(inputs) > 1),
            )
        )
    return step


def _load_train(
    lowering: Lowering, step: Step, value: SSAValue, held: SSAValue, window: Span, pixels: Span, channels: Span
) -> None:
    """Load a tile of a train with `step`."""
    info, dram = lowering.plan.train(value), lowering.dram_of(value)
    words = info.words_at(channels)
    step.loads.append(
        lambda: lowering.emit.copy_train(
            Load, info, dram, held, steps=window, pixels=pixels, words=words, planes=info.planes
        )
    )


def _sum_stream(
    lowering: Lowering,
    label: str,
    value: SSAValue,
    info: StreamInfo,
    sums: SSAValue,
    window: Span,
    pixels: Span,
    channels: Span,
    fresh: int,
    per_step: bool,
) -> Step:
    emit, step, dram = lowering.emit, Step(), lowering.dram_of(value)
    size = window[1] * pixels[1] * channels[1] * info.value_bytes
    held = emit.buffer(Region.OUTPUT, size, f"{label}.values")
    step.loads.append(
        lambda: emit.copy_stream(Load, info, dram, held, Region.OUTPUT, steps=window, pixels=pixels, channels=channels)
    )
    step.works.append(
        lambda: emit.instruction(
            SumValues,
            {"values": (held, 0), "features": (sums, 0)},
            steps=window[1],
            tokens=pixels[1],
            inputs=channels[1],
            fresh=fresh,
            per_step=int(per_step),
        )
    )
    return step


def head_sum_tiling(lowering: Lowering, stage: HeadSumStage) -> int:
    """Tokens of a tile."""
    demand, machine, window = end_demand(lowering, stage), lowering.machine, lowering.window
    channels = stage.heads * stage.width

    def fits(tokens: int) -> bool:
        spikes = 2 * aligned(window * step_bytes(tokens, channels)) + demand.spike_bytes(tokens, stage.heads)
        sums = aligned(window * tokens * stage.heads * ACCUMULATOR_BYTES) + demand.output_bytes(tokens, stage.heads)
        return (
            spikes <= 2 * machine.spike_words
            and sums <= machine.output_buffer_bytes
            and tokens <= min(MAX_COLUMNS, MAX_PIXELS)
        )

    return largest(stage.tokens, fits, stage.where)


def lower_head_sum(lowering: Lowering, stage: HeadSumStage, call: Call) -> None:
    """Tiles of tokens; one window a step."""
    part = Part(stage.label, stage.end, stage.heads)
    steps: list[Step] = []
    constants: SSAValue | None = None
    for pixels in spans(stage.tokens, head_sum_tiling(lowering, stage)):
        end = end_tile(lowering, stage, part, call, Tile(pixels, (0, stage.heads), (0, pixels[0])))
        made = [_head_sum(lowering, stage, end, share) for share in shares(stage, call)]
        end.load_kept(made[0])
        constants = end.prepare(made[0], constants)
        end.conclude(made[-1])
        steps += made
    lowering.emit.pipeline(steps)


def _head_sum(lowering: Lowering, stage: HeadSumStage, end: EndTile, share: Share) -> Step:
    """Load one window of a tile of tokens, sum its heads, and fire."""
    emit, step, pixels, window = lowering.emit, Step(), end.tile.pixels, share.sums
    if window is None:
        return without_sums(end, share)
    channels = stage.heads * stage.width
    bytes_of_step = step_bytes(pixels[1], channels)
    held = emit.buffer(Region.SPIKE, window[1] * bytes_of_step, f"{stage.label}.spikes")
    size = window[1] * pixels[1] * stage.heads * ACCUMULATOR_BYTES
    sums = emit.buffer(Region.OUTPUT, size, f"{stage.label}.sums")
    _load_train(lowering, step, stage.inputs[0], held, window, pixels, (0, channels))
    step.works += [lambda w=each: end.begin(w) for each in share.ends]
    step.works.append(
        lambda: emit.instruction(
            SumHeads,
            {"spikes": (held, 0), "accumulators": (sums, 0)},
            steps=window[1],
            tokens=pixels[1],
            heads=stage.heads,
            width=stage.width,
            pixel_stride=words_of(channels) * SPIKE_WORD_BYTES,
            step_stride=bytes_of_step,
        )
    )
    step.works += [lambda w=each: end.finish(w, (sums, 0)) for each in share.ends]
    return step
