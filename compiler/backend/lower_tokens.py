"""Kept trains: sums of scores tile by tile, and the tokens with the largest scores, one timestep after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_end import Span
from compiler.backend.memory import StreamInfo, TrainInfo
from compiler.backend.stages import KeepStage
from compiler.backend.tile import aligned, spans, splits
from compiler.ir.token_ops import SPATIAL, TEMPORAL
from isa.errors import CStepError
from isa.instructions import (
    PART_BYTES,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    STREAM_BYTES,
    KeepTop,
    Load,
    ScoreSpikes,
    ScoreValues,
    Store,
    words_of,
)
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


def kept_train(kept: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of a kept train [T, tokens] in DRAM: a spike word a token."""
    return kept.astype("<u2").reshape(-1).view(np.uint8)


def lower_keep(lowering: Lowering, stage: KeepStage, call: Call) -> None:
    """Score all tokens at each timestep (of all of them together where that is asked for), and keep the best."""
    if stage.is_pooled and call.steps < stage.timing.steps:
        raise CStepError(
            f"{stage.where}: score=code looks at all {stage.timing.steps} timesteps, but only {call.steps} are "
            "computed before the program may end or goes on; use score=paper with exits or schedule=windows"
        )
    rows, channels = _tiling(lowering, stage)
    steps: list[Step] = []
    for first in (call.first,) if stage.is_pooled else range(call.first, call.stop):
        steps += _timestep(lowering, stage, first, rows, channels)
    lowering.emit.pipeline(steps)


def _timesteps(stage: KeepStage, step: int) -> Span:
    """What is loaded to score a timestep: it and the one before it where that counts, or all of them."""
    if stage.is_pooled:
        return 0, stage.timing.steps
    return (step, 1) if step == 0 or not stage.looks_back else (step - 1, 2)


def _tiling(lowering: Lowering, stage: KeepStage) -> tuple[int, int]:
    """Rows of tokens and channels of a tile: all channels if a row of them fits, then as many rows as do."""
    info, machine = lowering.plan.info(stage.inputs[0]), lowering.machine
    steps, halo = (
        stage.timing.steps if stage.is_pooled else 1 + stage.looks_back,
        0 if stage.is_pooled else stage.kernel - 1,
    )

    def fits(rows: int, channels: int) -> bool:
        pixels = min(rows + halo, stage.rows) * stage.columns
        kept = 2 * aligned((stage.timing.steps if stage.is_pooled else 1) * stage.tokens * SPIKE_WORD_BYTES)
        sums = 2 * aligned(stage.tokens * PART_BYTES)
        if isinstance(info, StreamInfo):
            tile = 2 * aligned(steps * pixels * channels * STREAM_BYTES)
            return sums + tile <= machine.output_buffer_bytes and kept <= 2 * machine.spike_words
        tile = 2 * aligned(steps * info.planes * pixels * words_of(channels) * SPIKE_WORD_BYTES)
        return sums <= machine.output_buffer_bytes and tile + kept <= 2 * machine.spike_words

    whole = [info.channels] if stage.is_pooled else splits(info.channels, SPIKES_PER_WORD)
    for channels in whole:
        for rows in splits(stage.rows):
            if fits(rows, channels):
                return rows, channels
    raise CStepError(f"{stage.where}: scores of {stage.tokens} tokens do not fit the buffers of machine {machine.name}")


def _timestep(lowering: Lowering, stage: KeepStage, step: int, rows: int, channels: int) -> list[Step]:
    """The steps that score one timestep, the last of which chooses and stores."""
    emit, info, result = lowering.emit, lowering.plan.info(stage.inputs[0]), stage.result
    assert result is not None
    sums = emit.buffer(Region.OUTPUT, stage.tokens * PART_BYTES, f"{stage.label}.sums")
    made = [
        _score(lowering, stage, sums, _timesteps(stage, step), row_span, channel_span)
        for row_span in spans(stage.rows, rows)
        for channel_span in spans(info.channels, channels)
    ]
    times = stage.timing.steps if stage.is_pooled else 1
    kept = emit.buffer(Region.SPIKE, times * stage.tokens * SPIKE_WORD_BYTES, f"{stage.label}.kept")
    made[-1].works.append(
        lambda: emit.instruction(
            KeepTop,
            {"sums": (sums, 0), "kept": (kept, 0)},
            steps=times,
            tokens=stage.tokens,
            keep=stage.keep,
            spatial=int(stage.score in SPATIAL),
            temporal=int(stage.score in TEMPORAL),
            multiplier=stage.multiplier,
            divisor=stage.divisor,
        )
    )
    target, dram = lowering.plan.train(result), lowering.dram_of(result)
    made[-1].stores.append(lambda: emit.copy_kept(Store, target, dram, kept, (step, times), (0, stage.tokens)))
    return made


def _score(lowering: Lowering, stage: KeepStage, sums: SSAValue, steps: Span, rows: Span, channels: Span) -> Step:
    """Load one tile with the rows around it, and add up its sums."""
    emit, value, step = lowering.emit, stage.inputs[0], Step()
    info, dram = lowering.plan.info(value), lowering.dram_of(stage.inputs[0])
    halo = 0 if stage.is_pooled else stage.kernel // 2
    first, stop = max(rows[0] - halo, 0), min(sum(rows) + halo, stage.rows)
    pixels = (first * stage.columns, (stop - first) * stage.columns)
    loaded = (0, 1) if info.is_still else steps
    is_train = isinstance(info, TrainInfo)
    step_bytes = pixels[1] * (words_of(channels[1]) * SPIKE_WORD_BYTES if is_train else channels[1] * STREAM_BYTES)
    size = (info.planes if isinstance(info, TrainInfo) else 1) * loaded[1] * step_bytes
    held = emit.buffer(Region.SPIKE if is_train else Region.OUTPUT, size, f"{stage.label}.values")
    fields = {
        "steps": steps[1],
        "rows": rows[1],
        "columns": stage.columns,
        "input_rows": stop - first,
        "top": rows[0] - first,
        "kernel": stage.kernel,
        "inputs": channels[1],
        "step_stride": 0 if info.is_still else step_bytes,
        "drop": stage.drop,
        "pooled": int(stage.is_pooled),
        "fresh": int(channels[0] == 0),
    }
    places = {"sums": (sums, rows[0] * stage.columns * PART_BYTES), "values": (held, 0)}
    if isinstance(info, TrainInfo):
        words, planes = info.words_at(channels), info.planes
        step.loads.append(
            lambda: emit.copy_train(Load, info, dram, held, steps=loaded, pixels=pixels, words=words, planes=planes)
        )
        strides = {"planes": planes, "plane_stride": loaded[1] * step_bytes}
        step.works.append(lambda: emit.instruction(ScoreSpikes, places, **fields, **strides))
    else:
        step.loads.append(
            lambda: emit.copy_stream(
                Load, info, dram, held, Region.OUTPUT, steps=loaded, pixels=pixels, channels=channels
            )
        )
        step.works.append(lambda: emit.instruction(ScoreValues, places, **fields))
    return step
