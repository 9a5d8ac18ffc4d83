"""Attention: q, k and v of a tile of heads, accumulators, and what these become."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.heads import spread_heads
from compiler.backend.lower_end import EndTile, Part, Share, Span, Tile, end_demand, end_tile, shares, without_sums
from compiler.backend.stages import AttentionStage
from compiler.backend.tile import spans
from compiler.backend.tile_attention import AttentionTiling, choose_attention
from isa.errors import CStepError
from isa.instructions import ACCUMULATOR_BYTES, SPIKE_WORD_BYTES, Attend, KeepTokens, Load, words_of
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


def attention_tiling(lowering: Lowering, stage: AttentionStage) -> AttentionTiling:
    """Heads and queries of a tile."""
    q, k, v = (lowering.plan.train(value) for value in stage.inputs)
    planes, apart = (q.planes, k.planes, v.planes), any(info.run for info in (q, k, v))
    return choose_attention(stage, planes, end_demand(lowering, stage), lowering.machine, apart)


def spread_where_needed(lowering: Lowering) -> None:
    """Lay out heads apart for attention that fits the machine, or could load ahead, only head by head."""
    for stage in lowering.plan.stages:
        if isinstance(stage, AttentionStage):
            try:
                if not attention_tiling(lowering, stage).ahead:
                    spread_heads(lowering.plan, stage)
            except CStepError:
                if not spread_heads(lowering.plan, stage):
                    raise


def lower_attention(lowering: Lowering, stage: AttentionStage, call: Call) -> None:
    """Emit an attention stage for one call: tiles of heads, of queries, and windows."""
    tiling = attention_tiling(lowering, stage)
    channels = tiling.heads * stage.value_width
    part = Part(stage.label, stage.end, channels)
    steps: list[Step] = []
    for head in range(0, stage.heads, tiling.heads):
        for query in spans(stage.tokens, tiling.queries):
            tile = Tile(query, (head * stage.value_width, channels), (0, query[0]))
            end = end_tile(lowering, stage, part, call, tile)
            made = [
                _window(lowering, stage, end, (head, tiling.heads), share, tiling.ahead)
                for share in shares(stage, call)
            ]
            end.load_kept(made[0])
            end.prepare(made[0], None)
            end.conclude(made[-1])
            steps += made
    lowering.emit.pipeline(steps)


def _window(lowering: Lowering, stage: AttentionStage, end: EndTile, heads: Span, share: Share, ahead: bool) -> Step:
    """One window of a tile: loads of q, k and v (before the work of the step in front), the products, and the end."""
    tile, step, window = end.tile, Step(), share.sums
    if window is None:
        return without_sums(end, share)
    loads = step.loads if ahead else step.works
    operands: dict[str, SSAValue] = {}
    for name, value, pixels, width in zip(
        ("q", "k", "v"),
        stage.inputs,
        (tile.pixels, (0, stage.keys), (0, stage.keys)),
        (stage.width, stage.width, stage.value_width),
        strict=True,
    ):
        channels = (heads[0] * width, heads[1] * width)
        operands[name] = _load(lowering, stage, loads, name, value, pixels, channels, window)
    kept = _load_kept(lowering, stage, loads, window) if stage.skips else None
    size = window[1] * tile.pixels[1] * tile.channels[1] * ACCUMULATOR_BYTES
    accumulators = lowering.emit.buffer(Region.OUTPUT, size, f"{stage.label}.accumulators")
    step.works += [lambda w=each: end.begin(w) for each in share.ends]
    step.works.append(lambda: _attend(lowering, stage, window, tile, heads[1], operands, accumulators, kept))
    step.works += [lambda w=each: end.finish(w, (accumulators, 0)) for each in share.ends]
    return step


def _load_kept(lowering: Lowering, stage: AttentionStage, loads: list[Callable[[], None]], window: Span) -> SSAValue:
    """The kept tokens among all keys for one window."""
    assert stage.kept is not None
    info, dram = lowering.plan.train(stage.kept), lowering.dram_of(stage.kept)
    target = lowering.emit.buffer(Region.SPIKE, window[1] * stage.keys * SPIKE_WORD_BYTES, f"{stage.label}.kept_keys")
    loads.append(lambda: lowering.emit.copy_kept(Load, info, dram, target, window, (0, stage.keys)))
    return target


def _load(
    lowering: Lowering,
    stage: AttentionStage,
    loads: list[Callable[[], None]],
    name: str,
    value: SSAValue,
    pixels: Span,
    channels: Span,
    window: Span,
) -> SSAValue:
    """A tile of q, k or v for one window."""
    info = lowering.plan.train(value)
    words = info.words_at(channels)
    size = info.planes * window[1] * pixels[1] * words[1] * SPIKE_WORD_BYTES
    target = lowering.emit.buffer(Region.SPIKE, size, f"{stage.label}.{name}")
    dram = lowering.dram_of(value)
    loads.append(
        lambda: lowering.emit.copy_train(
            Load, info, dram, target, steps=window, pixels=pixels, words=words, planes=info.planes
        )
    )
    return target


def _attend(
    lowering: Lowering,
    stage: AttentionStage,
    window: Span,
    tile: Tile,
    heads: int,
    operands: dict[str, SSAValue],
    accumulators: SSAValue,
    kept: SSAValue | None,
) -> None:
    keeps: dict[str, int] = {}
    if kept is not None:
        lowering.latch(KeepTokens, (kept, 0), window[1], stage.keys)
        keeps = {"first_query": tile.pixels[0], "kept": 1}
    row, value_row = (words_of(heads * width) * SPIKE_WORD_BYTES for width in (stage.width, stage.value_width))
    operand_planes = {
        f"{name}_planes": lowering.plan.train(value).planes for name, value in zip("qkv", stage.inputs, strict=True)
    }
    lowering.emit.instruction(
        Attend,
        {**{name: (buffer, 0) for name, buffer in operands.items()}, "accumulators": (accumulators, 0)},
        steps=window[1],
        queries=tile.pixels[1],
        keys=stage.keys,
        heads=heads,
        width=stage.width,
        value_width=stage.value_width,
        first_bit=0,
        pixel_stride=row,
        value_pixel_stride=value_row,
        query_step_stride=tile.pixels[1] * row,
        key_step_stride=stage.keys * row,
        value_step_stride=stage.keys * value_row,
        values_first=int(stage.values_first),
        **operand_planes,
        **keeps,
    )
