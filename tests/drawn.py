"""Instructions drawn at random that fit the c-step machine, for tests that execute them on random memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from isa.errors import CStepError
from isa.footprint import overwritten
from isa.instructions import (
    Accumulate,
    Add,
    Attend,
    Classify,
    CountSpikes,
    Decide,
    Depthwise,
    Dilate,
    Fire,
    Guard,
    Load,
    Mask,
    Multiply,
    Pair,
    Pool,
    PoolValues,
    Rescale,
    Store,
    Sum,
    SumHeads,
    SumValues,
    words_of,
)
from isa.machine import load_machine
from isa.word import Charge, Criterion, Instruction, Region, Sharing, Traffic
from runtime.decoded import region_bytes

MEMORY_BYTES = 1500
DRAM_BYTES = 4096
FLAG = st.integers(0, 1)
PLANES = st.sampled_from([1, 1, 2, 3])
CHANNELS = st.sampled_from([1, 5, 7, 16, 17, 20, 32, 33, 40, 64, 65, 70, 80, 130])
SPIKES_AT, RESULT_AT, VALUES_AT = 200, 20000, 12000
MEMBRANES_AT = 60000
COUNTS_AT = 8192
MASK = st.integers(0, 2000).map(lambda word: 2 * word)
COUNTS = st.integers(0, 2000).map(lambda count: COUNTS_AT + 2 * count)
"""Channel masks lie in the channel buffer's first half, counts in its second (see emulated.py)."""
RARELY = st.sampled_from([0, 0, 0, 1])


@st.composite
def windows(draw: st.DrawFn, wide: bool = True) -> dict[str, int]:
    """Geometry of a window: odd widths, strides, padding, input channels that fill words or do not."""
    kernel_rows, kernel_columns, stride = (draw(st.integers(1, 3)) for _ in range(3))
    input_rows, input_columns = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    top, left = draw(st.integers(0, kernel_rows - 1)), draw(st.integers(0, kernel_columns - 1))
    inputs = draw(CHANNELS | st.just(600) if wide and input_rows * input_columns < 8 else CHANNELS)
    pixel_stride = 2 * words_of(inputs) + draw(st.sampled_from([0, 0, 2]))
    return {
        "steps": draw(st.integers(1, 3)),
        "rows": draw(st.integers(1, (input_rows + top - 1) // stride + 1)),
        "columns": draw(st.integers(1, (input_columns + left - 1) // stride + 1)),
        "input_rows": input_rows,
        "input_columns": input_columns,
        "kernel_rows": kernel_rows,
        "kernel_columns": kernel_columns,
        "stride": stride,
        "top": top,
        "left": left,
        "inputs": inputs,
        "pixel_stride": pixel_stride,
        "step_stride": pixel_stride * input_rows * input_columns + draw(st.sampled_from([0, 2])),
    }


@st.composite
def channel_masks(draw: st.DrawFn, *sides: str) -> dict[str, int]:
    """Fields that guard rows or columns, half of the time none."""
    flags = {f"masks_{side}s": draw(FLAG) for side in sides} if draw(FLAG) else {}
    return {f"{side}_mask": draw(MASK) for side in sides} | flags


@st.composite
def accumulates(draw: st.DrawFn) -> Accumulate:
    masks, spikes = draw(channel_masks("row", "column")), 2 * draw(st.integers(0, 100))
    return Accumulate(**draw(windows()), **draw(accumulate_sides()), **masks, spikes=spikes)


@st.composite
def pairings(draw: st.DrawFn, rows: int = 0) -> Pair:
    """A table anywhere in the constant buffer; `rows` of it, or any number."""
    rows = rows or draw(st.integers(1, 40))
    return Pair(table=2 * draw(st.integers(0, 100)), rows=rows, timesteps=draw(FLAG))


@st.composite
def accumulates_of_planes(draw: st.DrawFn) -> list[Accumulate]:
    """The planes of a count train, one Accumulate each, as a layer has them; sometimes one of them is out of order."""
    window, sides, spikes = draw(windows(wide=False)), draw(accumulate_sides()), 2 * draw(st.integers(0, 100))
    window |= draw(channel_masks("row", "column"))
    plane_bytes = window["steps"] * window["step_stride"]
    code = [
        Accumulate(**window, **sides | {"plane": plane, "fresh": sides["fresh"] and not plane}, spikes=spikes + at)
        for plane, at in enumerate(range(0, draw(st.integers(1, 4)) * plane_bytes, plane_bytes))
    ]
    return draw(st.permutations(code)) if draw(FLAG) else code


@st.composite
def accumulate_sides(draw: st.DrawFn, modes: Sequence[Sharing] = (Sharing.NONE, Sharing.PAIR)) -> dict[str, Any]:
    """All of an Accumulate that does not say which spikes it reads."""
    return {
        "weights": draw(st.integers(0, 99)),
        "accumulators": 4 * draw(st.integers(0, 50)),
        "outputs": draw(CHANNELS),
        "plane": draw(st.integers(0, 2)),
        "fresh": draw(FLAG),
        "sharing": draw(st.sampled_from(modes)),
    }


@st.composite
def multiplies(draw: st.DrawFn) -> Multiply:
    window = draw(windows(wide=False))
    window["pixel_stride"] = window["inputs"] + draw(FLAG)
    pixels = window["input_rows"] * window["input_columns"]
    window["step_stride"] = draw(st.sampled_from([0, window["pixel_stride"] * pixels]))
    weights, values = draw(st.integers(0, 99)), draw(st.integers(0, 99))
    accumulators, outputs = 4 * draw(st.integers(0, 50)), draw(CHANNELS)
    return Multiply(
        **window,
        **draw(channel_masks("column")),
        values=values,
        weights=weights,
        accumulators=accumulators,
        outputs=outputs,
        fresh=draw(FLAG),
    )


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    window = draw(windows())
    result_step_stride = window["rows"] * window["columns"] * window["pixel_stride"] + draw(st.sampled_from([0, 2]))
    planes = draw(st.sampled_from([1, 1, 2, 3]))
    return Pool(**window, spikes=0, result=RESULT_AT, result_step_stride=result_step_stride, planes=planes)


@st.composite
def pools_of_values(draw: st.DrawFn) -> PoolValues:
    window = draw(windows(wide=False))
    window["pixel_stride"] = 2 * window["inputs"] + draw(st.sampled_from([0, 2]))
    window["step_stride"] = window["pixel_stride"] * window["input_rows"] * window["input_columns"]
    return PoolValues(**window, values=2 * draw(st.integers(0, 99)), result=MEMBRANES_AT)


@st.composite
def depthwise(draw: st.DrawFn) -> Depthwise:
    return Depthwise(
        **draw(windows()),
        **draw(channel_masks("row", "column")),
        spikes=2 * draw(st.integers(0, 100)),
        weights=draw(st.integers(0, 99)),
        accumulators=4 * draw(st.integers(0, 50)),
        plane=draw(st.integers(0, 2)),
        fresh=draw(FLAG),
    )


@st.composite
def heads_of_spikes(draw: st.DrawFn) -> dict[str, int]:
    """Steps, tokens, heads of a width, and strides."""
    heads, width = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 8, 16, 20, 32, 50, 70]))
    tokens, gap = draw(st.integers(1, 9)), st.sampled_from([0, 0, 2])
    pixel_stride = 2 * words_of(heads * width) + draw(gap)
    shape = {"steps": draw(st.integers(1, 3)), "tokens": tokens, "heads": heads, "width": width}
    return shape | {"pixel_stride": pixel_stride, "step_stride": pixel_stride * tokens + draw(gap)}


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """By channel or by head, a mask a token or one for all, in place or not."""
    shape, by_head = draw(heads_of_spikes()), draw(FLAG)
    row = 2 * words_of(shape["heads"] if by_head else shape["heads"] * shape["width"])
    return Mask(
        **shape,
        spikes=SPIKES_AT,
        mask=VALUES_AT,
        result=draw(st.sampled_from([SPIKES_AT, RESULT_AT])),
        by_head=by_head,
        mask_pixel_stride=draw(st.sampled_from([0, row])),
        mask_step_stride=draw(st.sampled_from([row, row * shape["tokens"]])),
    )


@st.composite
def dilations(draw: st.DrawFn) -> Dilate:
    return Dilate(**draw(heads_of_spikes()), spikes=SPIKES_AT, result=RESULT_AT, reach=draw(st.integers(1, 7)))


@st.composite
def sums_of_heads(draw: st.DrawFn) -> SumHeads:
    return SumHeads(**draw(heads_of_spikes()), spikes=2 * draw(st.integers(0, 50)), accumulators=400)


@st.composite
def sums_of_values(draw: st.DrawFn) -> SumValues:
    shape = {"steps": draw(st.integers(1, 3)), "tokens": draw(st.integers(1, 9)), "inputs": draw(CHANNELS)}
    flags = {"fresh": draw(FLAG), "per_step": draw(FLAG)}
    return SumValues(**shape, **flags, values=2 * draw(st.integers(0, 50)), features=MEMBRANES_AT)


@st.composite
def rescales(draw: st.DrawFn) -> Rescale:
    """From both widths to both, with or without an addend, in place or not, of every step or one or none."""
    absent = draw(RARELY)
    return Rescale(
        accumulators=0,
        constants=4 * draw(st.integers(0, 9)),
        addend=VALUES_AT,
        result=draw(st.sampled_from([0, VALUES_AT, MEMBRANES_AT])),
        steps=draw(st.integers(1, 3)),
        pixels=draw(st.integers(1, 9)),
        outputs=draw(CHANNELS),
        divisor=draw(st.sampled_from([0, 1, 12, 30, 63])),
        adds=draw(FLAG),
        narrow=0 if absent else draw(FLAG),
        small=draw(FLAG),
        still=0 if absent else draw(FLAG),
        absent=absent,
    )


@st.composite
def fires(draw: st.DrawFn) -> Fire:
    """Neurons of every charge and reset, of levels, in place on the residual or not, within 32 bits or far beyond."""
    levels = draw(st.sampled_from([0, 0, 1, 3, 4, 8, 15]))
    outputs, pixels, steps = draw(CHANNELS), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    pixel_stride = 2 * words_of(outputs) + draw(st.sampled_from([0, 0, 4]))
    step_stride = pixel_stride * pixels + draw(st.sampled_from([0, 2]))
    flags = {name: draw(FLAG) for name in ("start", "soft", "ties_even", "counted", "masked")}
    flags |= {name: draw(RARELY) for name in ("narrow", "still", "absent", "mute")}
    flags |= {"narrow": 0, "still": 0} if flags["absent"] else {}
    return Fire(
        **flags,
        counts_fresh=draw(FLAG) & flags["counted"],
        counts_at=draw(COUNTS),
        mask=draw(MASK),
        accumulators=0,
        constants=4 * draw(st.integers(0, 9)),
        membranes=MEMBRANES_AT,
        residual=SPIKES_AT,
        result=draw(st.sampled_from([SPIKES_AT, RESULT_AT])),
        residual_planes=0 if levels else draw(st.integers(0, 3)),
        planes=draw(st.integers(max(levels.bit_length(), 1), 5 if levels else 3)),
        steps=steps,
        pixels=pixels,
        outputs=outputs,
        drop=draw(st.sampled_from([0, 0, 1, 5, 15])),
        shift=draw(st.sampled_from([0, 1, 3, 15])),
        charge=draw(st.sampled_from(Charge)),
        multiplier=draw(st.sampled_from([0, 1, 1, 3, 65535])),
        divisor=draw(st.sampled_from([0, 1, 1, 4, 31])),
        levels=levels,
        plane_stride=step_stride * steps + draw(st.sampled_from([0, 2])),
        step_stride=step_stride,
        pixel_stride=pixel_stride,
    )


@st.composite
def counts_of_spikes(draw: st.DrawFn) -> CountSpikes:
    inputs, tokens, steps = draw(CHANNELS), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    pixel_stride = 2 * words_of(inputs) + draw(st.sampled_from([0, 2]))
    return CountSpikes(
        spikes=2 * draw(st.integers(0, 50)),
        counts_at=draw(COUNTS),
        planes=draw(PLANES),
        steps=steps,
        tokens=tokens,
        inputs=inputs,
        plane_stride=pixel_stride * tokens * steps,
        step_stride=pixel_stride * tokens,
        pixel_stride=pixel_stride,
        fresh=draw(FLAG),
    )


@st.composite
def guards(draw: st.DrawFn) -> Guard:
    threshold = draw(st.sampled_from([0, 1, 3, 5, 60000, 65535]))
    return Guard(counts_at=draw(COUNTS), mask=draw(MASK), channels=draw(CHANNELS), threshold=threshold)


@st.composite
def decides(draw: st.DrawFn) -> Decide:
    """Logits of random sizes; thresholds of all magnitudes."""
    return Decide(
        logits=4 * draw(st.integers(0, 200)),
        outputs=draw(st.integers(2, 20) | st.sampled_from([1000, 4095])),
        criterion=draw(st.sampled_from(Criterion)),
        multiplier=draw(st.sampled_from([0, 1, 300, 65535])),
        divisor=draw(st.sampled_from([0, 3, 20, 63])),
        threshold=draw(st.integers(0, 47).map(lambda bits: 1 << bits) | st.integers(0, 1 << 15)),
    )


@st.composite
def adds(draw: st.DrawFn) -> Add:
    pixels, words = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    planes = [draw(st.integers(1, 5)) for _ in range(3)]
    return Add(
        left=0,
        right=3000,
        result=draw(st.sampled_from([0, 6000])),
        left_planes=planes[0],
        right_planes=planes[1],
        planes=planes[2],
        pixels=pixels,
        words=words,
        plane_stride=pixels * words * 2 + draw(st.sampled_from([0, 2])),
    )


@st.composite
def attends(draw: st.DrawFn) -> Attend:
    """Heads that begin anywhere in a word, and fill words or do not."""
    heads, widths = draw(st.integers(1, 4)), st.sampled_from([3, 8, 16, 20, 32, 50])
    width, value_width = draw(widths), draw(widths)
    first_bit, queries, keys = draw(st.integers(0, 15)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pixel_stride = 2 * words_of(first_bit + heads * width) + draw(st.sampled_from([0, 2]))
    value_pixel_stride = 2 * words_of(first_bit + heads * value_width) + draw(st.sampled_from([0, 2]))
    return Attend(
        q=0,
        k=5000,
        v=draw(st.sampled_from([5000, VALUES_AT])),
        accumulators=100,
        steps=draw(st.integers(1, 3)),
        queries=queries,
        keys=keys,
        heads=heads,
        width=width,
        value_width=value_width,
        first_bit=first_bit,
        pixel_stride=pixel_stride,
        value_pixel_stride=value_pixel_stride,
        query_step_stride=pixel_stride * queries,
        key_step_stride=pixel_stride * keys,
        value_step_stride=value_pixel_stride * keys,
        values_first=draw(FLAG),
        q_planes=draw(PLANES),
        k_planes=draw(PLANES),
        v_planes=draw(PLANES),
    )


@st.composite
def sums(draw: st.DrawFn) -> Sum:
    inputs, tokens = draw(CHANNELS), draw(st.integers(1, 9))
    pixel_stride = 2 * words_of(inputs) + draw(st.sampled_from([0, 2]))
    return Sum(
        spikes=2 * draw(st.integers(0, 50)),
        other=VALUES_AT,
        features=400,
        steps=draw(st.integers(1, 3)),
        tokens=tokens,
        inputs=inputs,
        pixel_stride=pixel_stride,
        step_stride=pixel_stride * tokens,
        plane=draw(st.integers(0, 2)),
        fresh=draw(FLAG),
        per_step=draw(FLAG),
        both=draw(FLAG),
    )


@st.composite
def classifies(draw: st.DrawFn) -> Classify:
    weights, inputs, outputs = draw(st.integers(0, 99)), draw(st.integers(1, 50)), draw(st.integers(1, 30))
    places = {"features": 0, "weights": weights, "constants": 4, "logits": 9000}
    drop = draw(st.sampled_from([0, 0, 3, 31]))
    return Classify(**places, inputs=inputs, outputs=outputs, fresh=draw(FLAG), drop=drop)


@st.composite
def copies(draw: st.DrawFn) -> Load | Store:
    """Copies of every traffic, between DRAM's two halves and every buffer, merged or not."""
    spikes = draw(st.booleans())
    regions = [Region.SPIKE] if spikes else [Region.WEIGHT, Region.SPIKE, Region.OUTPUT, Region.CONSTANT]
    size = draw(st.integers(1, 40)) * (2 if spikes else 1)
    rows, gap = draw(st.integers(1, 4)), st.sampled_from([0, 0, 6])
    dram, buffer = size + draw(gap), size + draw(gap)
    shape = {
        "region": draw(st.sampled_from(regions)),
        "traffic": Traffic.SPIKE if spikes else draw(st.sampled_from([t for t in Traffic if t != Traffic.SPIKE])),
        "blocks": draw(st.integers(1, 4)),
        "rows": rows,
        "bytes": size,
        "dram_row_stride": dram,
        "dram_block_stride": dram * rows + draw(gap),
        "buffer_row_stride": buffer,
        "buffer_block_stride": buffer * rows + draw(gap),
    }
    near = 2 * draw(st.integers(0, 30))
    if draw(st.booleans()):
        guarded = {"region": Region.WEIGHT, "traffic": Traffic.WEIGHT} | draw(channel_masks("row", "column"))
        shape |= {} if spikes or draw(FLAG) else guarded
        return Load(**shape, source=draw(st.sampled_from([0, 2048])), target=near)
    return Store(**shape, source=near, target=2048)


SIZES = region_bytes(load_machine("c-step"), DRAM_BYTES)


def fits(each: Instruction) -> bool:
    """Whether fields and addresses agree with each other, and all lies in its memory, in one half of DRAM."""
    try:
        each.check()
    except CStepError:
        return False
    in_memory = all(access.stop <= SIZES[access.region] for access in each.accesses())
    crosses = isinstance(each, Load) and each.source < MEMORY_BYTES < each.source + each.extents()["source"].span
    return in_memory and not crosses and overwritten(each) is None
