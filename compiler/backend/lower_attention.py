"""Attention: q, k and v of a tile of heads, accumulators, neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Step
from compiler.backend.lower_neurons import NeuronTile, Tile
from compiler.backend.stages import AttentionStage
from compiler.backend.tile import choose_attention
from isa.instructions import ACCUMULATOR_BYTES, SPIKE_WORD_BYTES, Attend, Load
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.lower import Call, Lowering


def lower_attention(lowering: Lowering, stage: AttentionStage, call: Call) -> None:
    """Emit an attention stage for one call: tiles of heads, of queries, and windows."""
    assert stage.result is not None
    planes = lowering.plan.trains[stage.result].planes
    window = min(lowering.machine.window, lowering.plan.timesteps)
    steps_of_result = lowering.longest
    tiling = choose_attention(stage, window, planes, steps_of_result, lowering.spills, lowering.machine)
    width = stage.channels // stage.heads
    steps: list[Step] = []
    for head in range(0, stage.heads, tiling.heads):
        for query in range(0, stage.tokens, tiling.queries):
            queries = min(tiling.queries, stage.tokens - query)
            tile = Tile((query, queries), (head * width, tiling.heads * width), (0, query))
            neurons = NeuronTile(
                lowering,
                stage.label,
                stage.neurons,
                stage.residual,
                stage.result,
                call,
                tile,
                tiling.heads * width,
            )
            steps += _windows(lowering, stage, call, neurons, tiling.heads)
    lowering.emit.pipeline(steps)


def _windows(lowering: Lowering, stage: AttentionStage, call: Call, neurons: NeuronTile, heads: int) -> list[Step]:
    """One step a window; constants, membranes and residual come with the first, the spikes go with the last."""
    emit, tile = lowering.emit, neurons.tile
    steps = [Step() for _ in call.windows]
    whole = Step()
    neurons.prepare(whole, None)
    for window, step in zip(call.windows, steps, strict=True):
        operands: dict[str, SSAValue] = {}
        for name, value, pixels in zip(
            ("q", "k", "v"), stage.inputs, (tile.pixels, (0, stage.keys), (0, stage.keys)), strict=True
        ):
            operands[name] = _load(lowering, stage, step, name, value, pixels, tile.words, window)
        size = window[1] * tile.pixels[1] * tile.channels[1] * ACCUMULATOR_BYTES
        accumulators = emit.buffer(Region.OUTPUT, size, f"{stage.label}.accumulators")
        step.works.append(lambda w=window, o=operands, a=accumulators: _attend(lowering, stage, w, tile, heads, o, a))
        step.works.append(lambda w=window, a=accumulators: neurons.fire(w, (a, 0)))
    steps[0].loads += whole.loads
    steps[-1].stores += whole.stores
    return steps


def _load(
    lowering: Lowering,
    stage: AttentionStage,
    step: Step,
    name: str,
    value: SSAValue,
    pixels: tuple[int, int],
    words: tuple[int, int],
    window: tuple[int, int],
) -> SSAValue:
    """A tile of q, k or v for one window."""
    info = lowering.plan.trains[value]
    size = window[1] * pixels[1] * words[1] * SPIKE_WORD_BYTES
    target = lowering.emit.buffer(Region.SPIKE, size, f"{stage.label}.{name}")
    dram = lowering.dram_of(value)
    step.loads.append(
        lambda: lowering.emit.copy_train(Load, info, dram, target, steps=window, pixels=pixels, words=words, planes=1)
    )
    return target


def _attend(
    lowering: Lowering,
    stage: AttentionStage,
    window: tuple[int, int],
    tile: Tile,
    heads: int,
    operands: dict[str, SSAValue],
    accumulators: SSAValue,
) -> None:
    row = tile.words[1] * SPIKE_WORD_BYTES
    lowering.emit.instruction(
        Attend,
        {**{name: (buffer, 0) for name, buffer in operands.items()}, "accumulators": (accumulators, 0)},
        steps=window[1],
        queries=tile.pixels[1],
        keys=stage.keys,
        heads=heads,
        width=stage.channels // stage.heads,
        first_bit=0,
        pixel_stride=row,
        query_step_stride=tile.pixels[1] * row,
        key_step_stride=stage.keys * row,
        values_first=int(stage.values_first),
        q_planes=1,
        k_planes=1,
        v_planes=1,
    )
