"""A small program made by hand, and instructions drawn at random, for tests that need some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from isa.hazards import with_tokens
from isa.instructions import (
    Accumulate,
    Classify,
    Decide,
    End,
    Exit,
    Fire,
    Guard,
    Layer,
    Load,
    Multiply,
    Store,
    Sum,
)
from isa.machine import load_machine
from isa.program import Header, Input, LayerInfo, Output, Program, Provenance
from isa.word import Address, Charge, Choice, Count, Criterion, Instruction, Region, Sharing, Spec, Traffic

STEPS, SIDE, COLORS, CHANNELS, CLASSES = 2, 4, 2, 8, 3
PIXELS = SIDE * SIDE
STEM, LINEAR, HEAD = 9 * COLORS * CHANNELS, CHANNELS * CHANNELS, CHANNELS * CLASSES
CONSTANTS = 8 * CHANNELS
AT = {"stem": 0, "linear": STEM, "head": STEM + LINEAR}
CONSTANTS_AT = STEM + LINEAR + HEAD
MEMORY = CONSTANTS_AT + 2 * CONSTANTS + 4 * CLASSES
INPUT_AT = 512
OUTPUT_AT = 576
ROOM_AT = 640
ACCUMULATORS = STEPS * PIXELS * CHANNELS * 4
SPIKES = STEPS * PIXELS * 2
FIRST, SECOND = 1024, 2048
"""Where the spikes of the two neuron layers lie in the spike buffer."""


def small_memory() -> NDArray[np.uint8]:
    """int8 weights of the three layers, then bias and threshold of both neuron layers, then the head's bias."""
    random = np.random.default_rng(1)
    weights = random.integers(-127, 128, STEM + LINEAR + HEAD, np.int8)
    neurons = [
        np.concatenate([random.integers(-50, 50, CHANNELS), random.integers(100, 400, CHANNELS)]) for _ in range(2)
    ]
    constants = np.concatenate([*neurons, random.integers(-50, 50, CLASSES)]).astype("<i4")
    return np.concatenate([weights.view(np.uint8), constants.view(np.uint8)])


def small_code() -> tuple[Instruction, ...]:
    """Stem convolution from the image, a linear layer with residual, sum and classify; with its tokens."""
    return with_tokens(
        (
            Layer(index=0),
            load(Region.WEIGHT, Traffic.WEIGHT, 0, 0, CONSTANTS_AT),
            load(Region.CONSTANT, Traffic.CONSTANT, CONSTANTS_AT, 0, MEMORY - CONSTANTS_AT),
            load(Region.SPIKE, Traffic.IMAGE, INPUT_AT, 0, PIXELS * COLORS),
            Multiply(
                **window(3, 1, COLORS, COLORS, 0), values=0, weights=0, accumulators=0, outputs=CHANNELS, fresh=1
            ),
            fire(FIRST, 0, ACCUMULATORS),
            Store(
                **copy(Region.SPIKE, Traffic.SPIKE, SPIKES), source=FIRST, target=ROOM_AT
            ),
            Layer(index=1),
            load(Region.SPIKE, Traffic.SPIKE, ROOM_AT, FIRST, SPIKES),
            Accumulate(
                **window(1, 0, CHANNELS, 2, PIXELS * 2),
                spikes=FIRST, weights=AT["linear"], accumulators=0, outputs=CHANNELS, plane=0, fresh=1,
                sharing=Sharing.PAIR,
            ),
            fire(SECOND, CONSTANTS, ACCUMULATORS + 2 * PIXELS * CHANNELS, residual=FIRST),
            Layer(index=2),
            *(head_sum(plane) for plane in range(2)),
            Classify(
                features=8192, weights=AT["head"], constants=2 * CONSTANTS, logits=8448, inputs=CHANNELS,
                outputs=CLASSES, fresh=1, drop=0,
            ),
            Store(**copy(Region.OUTPUT, Traffic.OUTPUT, 4 * CLASSES), source=8448, target=OUTPUT_AT),
            End(),
        )
    )  # fmt: skip


def copy(region: Region, traffic: Traffic, size: int) -> dict[str, int]:
    """The fields of one contiguous run."""
    return {
        "region": region, "traffic": traffic, "blocks": 1, "rows": 1, "bytes": size, "dram_block_stride": 0,
        "dram_row_stride": 0, "buffer_block_stride": 0, "buffer_row_stride": 0,
    }  # fmt: skip


def load(region: Region, traffic: Traffic, source: int, target: int, size: int) -> Load:
    return Load(**copy(region, traffic, size), source=source, target=target)


def window(kernel: int, padding: int, inputs: int, pixel_stride: int, step_stride: int) -> dict[str, int]:
    """The fields of a square window that keeps the image's size."""
    return {
        "steps": STEPS, "rows": SIDE, "columns": SIDE, "input_rows": SIDE, "input_columns": SIDE,
        "kernel_rows": kernel, "kernel_columns": kernel, "stride": 1, "top": padding, "left": padding,
        "inputs": inputs, "pixel_stride": pixel_stride, "step_stride": step_stride,
    }  # fmt: skip


def fire(result: int, constants: int, membranes: int, residual: int = 0) -> Fire:
    """Neurons of a layer of the small program; with a residual, two planes come out."""
    return Fire(
        accumulators=0, constants=constants, membranes=membranes, residual=residual, result=result,
        residual_planes=1 if residual else 0, planes=2 if residual else 1, steps=STEPS, pixels=PIXELS,
        outputs=CHANNELS, drop=0, shift=0, charge=Charge.LIF, multiplier=1, divisor=1, start=1, soft=0,
        levels=0, ties_even=0, narrow=0, plane_stride=SPIKES, step_stride=PIXELS * 2, pixel_stride=2,
    )  # fmt: skip


def head_sum(plane: int) -> Sum:
    return Sum(
        spikes=SECOND + plane * SPIKES, other=0, features=8192, steps=STEPS, tokens=PIXELS, inputs=CHANNELS,
        pixel_stride=2, step_stride=PIXELS * 2, plane=plane, fresh=1 - plane, per_step=0, both=0,
    )  # fmt: skip


def small_header(machine: str = "c-step") -> Header:
    neurons = (SIDE, SIDE, CHANNELS)
    return Header(
        machine=load_machine(machine),
        timesteps=STEPS,
        dram_bytes=ROOM_AT + SPIKES,
        input=Input(
            kind="image", shape=(COLORS, SIDE, SIDE), steps=1, address=INPUT_AT, scale=0.02, mean=(0.5, 0.4),
            std=(0.2, 0.3),
        ),
        output=Output(address=OUTPUT_AT, classes=CLASSES, scale=0.25),
        layers=(
            LayerInfo(name="stem", operation="conv", source="small.py:12", binary=False, neurons=neurons),
            LayerInfo(name="block.0.fc", operation="linear", source="small.py:19", binary=True, neurons=neurons),
            LayerInfo(name="head", operation="head", source="small.py:31", binary=False, neurons=None),
        ),
        provenance=Provenance(
            model="small", checkpoint="by hand", calibration="none", pipeline="none", schedule="by hand", version="1"
        ),
    )  # fmt: skip


def source_map(code: tuple[Instruction, ...]) -> NDArray[np.int32]:
    """Each fire of the small program is all neurons of its layer."""
    fires = [index for index, instruction in enumerate(code) if isinstance(instruction, Fire)]
    rows = [(index, layer, 0, 0, 0, 0) for layer, index in enumerate(fires)]
    return np.array(rows, np.int32).reshape(-1, 6)


GUARD_COUNTS, GUARD_MASK = 0, 64
"""Where the early counts and the mask of the first neurons lie in the channel buffer."""
NEVER = (1 << 48) - 1
"""A threshold that no decision reaches; 0 is one that each does."""


def decide(threshold: int) -> Decide:
    return Decide(
        logits=8448, outputs=CLASSES, criterion=Criterion.LIGHTSOFTMAX, multiplier=0, divisor=0, threshold=threshold
    )


def step_code(step: int, guarded: bool, head: int = 2) -> list[Instruction]:
    """One timestep of the small program, membranes kept on chip, up to logits of all timesteps so far in the output.

    `guarded`: the first neurons' spikes of timestep 0 are counted, and what never spiked then guards the linear layer.
    `head` is the layer that the classifier counts for.
    """
    first, one = step == 0, {"steps": 1}
    counts = {"counted": 1, "counts_fresh": 1, "counts_at": GUARD_COUNTS} if guarded and first else {}
    masks = {"masks_rows": 1, "row_mask": GUARD_MASK} if guarded and not first else {}
    spikes = copy(Region.SPIKE, Traffic.SPIKE, PIXELS * 2)
    rows = copy(Region.WEIGHT, Traffic.WEIGHT, CHANNELS) | {
        "rows": CHANNELS,
        "dram_row_stride": CHANNELS,
        "buffer_row_stride": CHANNELS,
    }
    return [
        Layer(index=0),
        Multiply(
            **window(3, 1, COLORS, COLORS, 0) | one, values=0, weights=0, accumulators=0, outputs=CHANNELS, fresh=1
        ),
        replace(fire(FIRST, 0, ACCUMULATORS), **one, start=int(first), **counts),
        *([Guard(counts_at=GUARD_COUNTS, mask=GUARD_MASK, channels=CHANNELS, threshold=0)] if counts else []),
        Store(**spikes, source=FIRST, target=ROOM_AT),
        Layer(index=1),
        Load(**spikes, source=ROOM_AT, target=FIRST),
        *([Load(**rows, source=AT["linear"], target=AT["linear"], **masks)] if masks else []),
        Accumulate(
            **window(1, 0, CHANNELS, 2, PIXELS * 2) | one,
            spikes=FIRST, weights=AT["linear"], accumulators=0, outputs=CHANNELS, plane=0, fresh=1,
            sharing=Sharing.PAIR, **masks,
        ),
        replace(
            fire(SECOND, CONSTANTS, ACCUMULATORS + 2 * PIXELS * CHANNELS, residual=FIRST), **one, start=int(first)
        ),
        Layer(index=2),
        *(replace(head_sum(plane), **one, fresh=int(first and plane == 0)) for plane in range(2)),
        Layer(index=head),
        Classify(
            features=8192, weights=AT["head"], constants=2 * CONSTANTS, logits=8448, inputs=CHANNELS,
            outputs=CLASSES, fresh=1, drop=0,
        ),
        Store(**copy(Region.OUTPUT, Traffic.OUTPUT, 4 * CLASSES), source=8448, target=OUTPUT_AT),
    ]  # fmt: skip


def exit_program(threshold: int, guarded: bool = False, exits: bool = True) -> Program:
    """The small program timestep by timestep, with an exit behind the first one (unless told otherwise)."""
    code = with_tokens(
        [
            *small_code()[:4],
            *step_code(0, guarded, head=3 if exits else 2),
            *([decide(threshold), Exit(steps=1)] if exits else []),
            *step_code(1, guarded),
            End(),
        ]
    )
    header = small_header()
    mark = LayerInfo(name="head.exit.1", operation="exit", source="small.py:31", binary=False, neurons=None)
    header = header.model_copy(update={"layers": (*header.layers, mark)})
    fires = [index for index, instruction in enumerate(code) if isinstance(instruction, Fire)]
    rows = [(index, number % 2, number // 2, 0, 0, 0) for number, index in enumerate(fires)]
    return Program(header, code, small_memory(), np.array(rows, np.int32))


def small_program(machine: str = "c-step") -> Program:
    """A valid program of three layers for 2-step 4x4 images of two colors."""
    code = small_code()
    return Program(small_header(machine), code, small_memory(), source_map(code))


def _field(name: str, spec: Spec) -> st.SearchStrategy[int]:
    """Any value of a field; addresses and strides at multiples of 4, as most of them must be."""
    top = (1 << spec.bits) - 1
    if isinstance(spec, Choice):
        return st.sampled_from([int(member) for member in spec.of])
    lowest = spec.lowest if isinstance(spec, Count) else 0
    if isinstance(spec, Address) or name.endswith("stride") or name == "bytes":
        return st.integers(-(-lowest // 4), top // 4).map(lambda quarter: quarter * 4)
    return st.integers(lowest, top) | st.sampled_from([lowest, top])


def _fitting(fields: dict[str, int]) -> dict[str, int]:
    """The same fields where they do not contradict each other."""
    result = dict(fields)
    for side, edge in (("rows", "top"), ("columns", "left")):
        if f"kernel_{side}" in fields:
            result[edge] %= fields[f"kernel_{side}"]
            most = (fields[f"input_{side}"] + result[edge] - 1) // fields["stride"] + 1
            result[side] = 1 + (fields[side] - 1) % most
    if fields.get("levels"):
        result["residual_planes"], result["planes"] = 0, max(fields["planes"], fields["levels"].bit_length())
    elif "planes" in fields:
        result["planes"] = max(value for name, value in fields.items() if name.endswith("planes"))
    masked = fields.get("masks_rows") or fields.get("masks_columns")
    if masked and "traffic" in fields:
        result["traffic"], result["region"] = Traffic.WEIGHT, Region.WEIGHT
    elif fields.get("traffic") == Traffic.SPIKE:
        result["region"] = Region.SPIKE
    elif fields.get("region") in (Region.DRAM, Region.CHANNEL):
        result["region"] = Region.WEIGHT
    if fields.get("absent"):
        result["still"] = result["narrow"] = 0
    if fields.get("still") and fields["accumulators"] == fields["result"]:
        result["still"] = 0
    if fields.get("kept") and "kernel_rows" in fields:
        result |= {"rows": 1, "kernel_rows": 1, "kernel_columns": 1, "stride": 1, "top": 0, "left": 0}
        result["columns"] = fields["input_columns"]
    if "queries" in fields:
        result["kept"] = int(fields["kept"] and fields["first_query"] + fields["queries"] <= fields["keys"])
    if "pooled" in fields:
        result |= {"kernel": fields["kernel"] | 1, "steps": fields["steps"] if fields["pooled"] else 1}
        result["input_rows"] = min(max(fields["input_rows"], fields["top"] + 1), 1023)
        result["rows"] = 1 + (fields["rows"] - 1) % (result["input_rows"] - fields["top"])
    if "limit" in fields:
        result["limit"] = min(fields["limit"], 1 << 14)
    if "drop" in fields and "state" in fields:
        result["drop"] = min(fields["drop"], 14)
    if "keep" in fields:
        result["keep"] = min(fields["keep"], fields["tokens"])
    if "counted" in fields:
        result["counts_fresh"] = fields["counts_fresh"] & fields["counted"]
    return result


def instructions(kind: type[Instruction]) -> st.SearchStrategy[Instruction]:
    """Any encodable instruction of a class."""
    fields = {name: _field(name, spec) for name, spec in kind.layout}
    masks = {"wait": st.integers(0, 31), "post": st.integers(0, 31)}
    return st.fixed_dictionaries(fields | masks).map(_fitting).map(lambda values: kind(**values))
