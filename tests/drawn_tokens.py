"""Instructions that leave tokens out, drawn at random: latches, scores, choices, halting, and what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from drawn import (
    CHANNELS,
    FLAG,
    MEMBRANES_AT,
    PLANES,
    VALUES_AT,
    accumulate_sides,
    attends,
    channel_masks,
    fires,
    rescales,
)
from hypothesis import strategies as st

from isa.instructions import (
    BIAS_ZERO,
    Accumulate,
    HaltSpikes,
    HaltValues,
    Keep,
    KeepBelow,
    KeepNeurons,
    KeepRows,
    KeepTokens,
    KeepTop,
    ScoreSpikes,
    ScoreValues,
    WeighSpikes,
    WeighValues,
    words_of,
)
from isa.scores import WEIGHT_BITS
from isa.word import Gives, Instruction, Sharing

SUMS_AT, STATE_AT = 8000, 16000
LIMIT = st.integers(1, 1 << WEIGHT_BITS) | st.sampled_from([1, 16221, 1 << WEIGHT_BITS])
DROP = st.sampled_from([0, 0, 1, 9, WEIGHT_BITS])


@st.composite
def latches(draw: st.DrawFn, kind: type[Keep], steps: int = 0, tokens: int = 0) -> Keep:
    """Kept tokens from anywhere in the spike buffer's beginning; so many steps and tokens, or any number."""
    steps, tokens = steps or draw(st.integers(1, 4)), tokens or draw(st.integers(1, 40))
    return kind(kept=2 * draw(st.integers(0, 2000)), steps=steps, tokens=tokens)


@st.composite
def kept_accumulates(draw: st.DrawFn, modes: Sequence[Sharing] = (Sharing.NONE, Sharing.PAIR)) -> list[Instruction]:
    """Kept rows, planes of a linear layer on them, and perhaps the same again for all rows or for other kept ones."""
    inputs, columns, steps = draw(CHANNELS), draw(st.integers(1, 11)), draw(st.integers(1, 4))
    pixel_stride = 2 * words_of(inputs) + draw(st.sampled_from([0, 0, 2]))
    step_stride = pixel_stride * columns + draw(st.sampled_from([0, 0, 2]))
    window = {
        "steps": steps, "rows": 1, "columns": columns, "input_rows": 1, "input_columns": columns, "kernel_rows": 1,
        "kernel_columns": 1, "stride": 1, "top": 0, "left": 0, "inputs": inputs, "pixel_stride": pixel_stride,
        "step_stride": step_stride,
    }  # fmt: skip
    masks, spikes = draw(channel_masks("row", "column")), 2 * draw(st.integers(0, 100))
    first = Accumulate(**window, **draw(accumulate_sides(modes)), **masks, spikes=spikes, kept=1)
    plane_bytes = steps * step_stride
    planes: list[Instruction] = [
        replace(first, plane=first.plane + plane, fresh=first.fresh and not plane, spikes=spikes + plane * plane_bytes)
        for plane in range(draw(st.integers(1, 3)))
    ]
    again = {"kept": draw(FLAG), "weights": draw(st.integers(0, 99)), "outputs": draw(CHANNELS)}
    more: list[Instruction] = [replace(first, **again)] if draw(FLAG) else []
    if more and draw(FLAG):
        more.insert(0, draw(latches(KeepRows, steps, columns)))
    return [draw(latches(KeepRows, steps, columns)), *planes, *more]


@st.composite
def kept_neurons(draw: st.DrawFn) -> list[Instruction]:
    """Kept pixels, and neurons or rescaled values of them."""
    each = replace(draw(st.one_of(fires(), rescales())), kept=1)
    return [draw(latches(KeepNeurons, each.steps, each.pixels)), each]


@st.composite
def kept_attention(draw: st.DrawFn) -> list[Instruction]:
    """Kept tokens, and the attention of a tile of queries of them."""
    each = draw(attends())
    queries = min(each.queries, each.keys)
    first = draw(st.integers(0, each.keys - queries))
    kept = replace(each, queries=queries, first_query=first, kept=1)
    return [draw(latches(KeepTokens, each.steps, each.keys)), kept]


@st.composite
def scores(draw: st.DrawFn) -> ScoreSpikes | ScoreValues:
    """Of spikes, counts or a stream, windows of every side, timesteps that may all be the same one."""
    pooled, is_spikes = draw(FLAG), draw(st.booleans())
    steps, inputs = draw(st.integers(1, 4 if pooled else 2)), draw(CHANNELS)
    columns, input_rows = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    top = draw(st.integers(0, input_rows - 1))
    pixels = input_rows * columns * (2 * words_of(inputs) if is_spikes else 2 * inputs)
    fields = {
        "steps": steps, "rows": draw(st.integers(1, input_rows - top)), "columns": columns, "input_rows": input_rows,
        "top": top, "kernel": draw(st.sampled_from([1, 3, 5, 7])), "inputs": inputs, "pooled": pooled,
        "step_stride": draw(st.sampled_from([0, pixels, pixels, pixels + 2])), "drop": draw(st.sampled_from([0, 1, 9])),
        "fresh": draw(FLAG), "values": 2 * draw(st.integers(0, 99)),
    }  # fmt: skip
    if not is_spikes:
        return ScoreValues(**fields, sums=MEMBRANES_AT + 4 * draw(st.integers(0, 50)))
    plane_stride = max(steps * fields["step_stride"], pixels) + draw(st.sampled_from([0, 2]))
    return ScoreSpikes(**fields, sums=4 * draw(st.integers(0, 50)), planes=draw(PLANES), plane_stride=plane_stride)


@st.composite
def choices(draw: st.DrawFn) -> KeepTop:
    """None, all or some of the tokens, by either share, both or neither (all are equal then)."""
    tokens = draw(st.integers(1, 40))
    return KeepTop(
        sums=4 * draw(st.integers(0, 200)),
        kept=2 * draw(st.integers(0, 2000)),
        steps=draw(st.integers(1, 4)),
        tokens=tokens,
        keep=draw(st.integers(0, tokens) | st.sampled_from([0, tokens])),
        spatial=draw(FLAG),
        temporal=draw(FLAG),
        multiplier=draw(st.sampled_from([0, 1, 300, 65535])),
        divisor=draw(st.sampled_from([0, 3, 20, 63])),
    )


@st.composite
def scored_choices(draw: st.DrawFn) -> list[Instruction]:
    """Scores of a tile, perhaps of more channels, and the choice among its tokens: few spikes give equal scores."""
    first, chosen = draw(scores()), draw(choices())
    more: list[Instruction] = [replace(first, values=first.values + 64, fresh=0)] if draw(FLAG) else []
    tokens, keep = first.tokens, min(chosen.keep, first.tokens)
    return [replace(first, fresh=1), *more, replace(chosen, sums=first.sums, tokens=tokens, keep=keep)]


@st.composite
def halts(draw: st.DrawFn) -> HaltSpikes | HaltValues:
    """Behind any block, of spikes, counts or a stream; the state in place on the one before it, or not.

    What the state and the sums begin with are any int16, halted or not, below zero as well. Operands that lie over each
    other are left to `fits`.
    """
    fields = {
        "before": VALUES_AT, "sums": draw(st.sampled_from([SUMS_AT, SUMS_AT + 2, VALUES_AT + 4, STATE_AT + 4])),
        "state": draw(st.sampled_from([VALUES_AT, STATE_AT, 40])), "steps": draw(st.integers(1, 4)),
        "tokens": draw(st.integers(1, 20)), "multiplier": draw(st.sampled_from([0, 1, 80, 20480, 65535])),
        "negative": draw(FLAG), "divisor": draw(st.integers(0, 63) | st.sampled_from([0, 1, 8, 12, 63])),
        "bias": BIAS_ZERO + draw(st.integers(-300, 500) | st.sampled_from([128, -BIAS_ZERO, BIAS_ZERO - 1])),
        "limit": draw(LIMIT), "gives": draw(st.sampled_from(Gives)), "follows": draw(FLAG), "start": draw(FLAG),
    }  # fmt: skip
    if draw(FLAG):
        return HaltValues(**fields, values_at=2 * draw(st.integers(0, 99)))
    return HaltSpikes(**fields, values_at=2 * draw(st.integers(0, 99)), planes=draw(st.integers(1, 3)))


@st.composite
def belows(draw: st.DrawFn) -> KeepBelow:
    places = {"state": 2 * draw(st.integers(0, 99)), "kept": 2 * draw(st.integers(0, 2000))}
    return KeepBelow(**places, steps=draw(st.integers(1, 4)), tokens=draw(st.integers(1, 40)), limit=draw(LIMIT))


@st.composite
def weighs(draw: st.DrawFn) -> WeighSpikes | WeighValues:
    """One plane of spikes, or a tile of a stream; weights are any int16."""
    fields = {
        "features": draw(st.sampled_from([MEMBRANES_AT, MEMBRANES_AT + 4, STATE_AT, VALUES_AT])),
        "state": STATE_AT,
        "steps": draw(st.integers(1, 4)),
        "tokens": draw(st.integers(1, 20)),
        "inputs": draw(CHANNELS),
        "drop": draw(DROP),
        "fresh": draw(FLAG),
    }
    if draw(FLAG):
        return WeighValues(**fields, values=VALUES_AT + 2 * draw(st.integers(0, 99)))
    return WeighSpikes(**fields, spikes=2 * draw(st.integers(0, 99)), plane=draw(st.integers(0, 7)))


@st.composite
def halted_blocks(draw: st.DrawFn) -> list[Instruction]:
    """Two blocks behind each other, the second in place or not, the tokens that go on, and their weighted sum."""
    first, second = replace(draw(halts()), follows=0, start=1, state=VALUES_AT), draw(halts())
    shape = {"steps": first.steps, "tokens": first.tokens}
    second = replace(second, **shape, limit=first.limit, follows=1, before=VALUES_AT)
    kept = replace(draw(belows()), **shape, state=second.state, limit=first.limit)
    return [first, second, kept, replace(draw(weighs()), **shape, state=second.state)]
