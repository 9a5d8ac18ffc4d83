"""Writes ops of the cstep dialect: buffers, constants, instructions, and steps that overlap copies with work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.memory import StreamInfo, TrainInfo
from compiler.ir.cstep import BYTES, OPS, BufferOp, ConstantOp, LayerOp
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation, Plain
from isa.instructions import SPIKE_WORD_BYTES, Load, Store
from isa.word import Instruction, Region, Traffic

Place = tuple[SSAValue, int]
"""A buffer and a byte offset into it."""
MOST_RUN = 512
"""Bytes of the spike words of the most channels that a layer has."""


MASKED_BY = {"row_mask": "masks_rows", "column_mask": "masks_columns"}
"""The flag of each channel mask of an instruction."""


@dataclass
class Step:
    """One tile: what it loads, computes and stores. Loads of the next step go before the work of this one."""

    loads: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    works: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    stores: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])


class Emitter:
    """Appends to a network's module."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._constants: dict[str, SSAValue] = {}

    def append(self, op: HouseOperation) -> HouseOperation:
        self.network.module.body.block.add_op(op)
        return op

    def buffer(self, region: Region, size: int, group: str) -> SSAValue:
        """New bytes in a region, for one role of a layer."""
        op = BufferOp.make(result=BYTES, region=region.name.lower(), bytes=size, group=group, hint=group, source="")
        return self.append(op).results[0]

    def constant(self, name: str, content: Callable[[], NDArray[np.uint8]]) -> SSAValue:
        """Bytes that the program file carries, made once under `name`."""
        if name not in self._constants:
            stored = self.network.add_weight(name, content())
            op = ConstantOp.make(result=BYTES, symbols={"content": stored}, hint=name)
            self._constants[name] = self.append(op).results[0]
        return self._constants[name]

    def layer(self, name: str, source: str, operation: str, binary: bool, neurons: tuple[int, ...], fires: str) -> None:
        """Mark the beginning of a layer."""
        self.append(
            LayerOp.make(
                source=source, layer=name, operation=operation, binary=int(binary), neurons=neurons, fires=fires
            )
        )

    def instruction(self, kind: type[Instruction], places: dict[str, Place], **fields: Plain) -> None:
        self.append(OPS[kind].of(places, **fields))

    def copy(
        self,
        kind: type[Load] | type[Store],
        dram: Place,
        buffer: Place,
        region: Region,
        traffic: Traffic,
        run: int,
        counts: tuple[int, int] = (1, 1),
        dram_strides: tuple[int, int] = (0, 0),
        buffer_strides: tuple[int, int] = (0, 0),
        masks: Mapping[str, Place] | None = None,
    ) -> None:
        """blocks x rows runs of `run` bytes; strides of a count of 1 are 0. `masks`: row_mask, column_mask or both."""
        ends = {"source": dram, "target": buffer} if kind is Load else {"source": buffer, "target": dram}
        blocks, rows = counts
        masks = masks or {}
        self.instruction(
            kind,
            {**ends, **masks},
            **{MASKED_BY[name]: 1 for name in masks},
            region=region,
            traffic=traffic,
            blocks=blocks,
            rows=rows,
            bytes=run,
            dram_block_stride=dram_strides[0] if blocks > 1 else 0,
            dram_row_stride=dram_strides[1] if rows > 1 else 0,
            buffer_block_stride=buffer_strides[0] if blocks > 1 else 0,
            buffer_row_stride=buffer_strides[1] if rows > 1 else 0,
        )

    def copy_train(
        self,
        kind: type[Load] | type[Store],
        info: TrainInfo,
        dram: SSAValue,
        buffer: SSAValue | Place,
        *,
        steps: tuple[int, int],
        pixels: tuple[int, int],
        words: tuple[int, int],
        planes: int,
        held_steps: int = 0,
    ) -> None:
        """A tile of a train, [plane][step][pixel][word] packed in the buffer; each pair is (first, count).

        `held_steps` are the timesteps of a plane in the buffer, where they are more than those that are copied.
        """
        held, offset = buffer if isinstance(buffer, tuple) else (buffer, 0)
        run = words[1] * 2
        whole = words[1] == info.words
        rows, length = (1, pixels[1] * run) if whole else (pixels[1], run)
        step_bytes = pixels[1] * run
        plane_bytes = (held_steps or steps[1]) * step_bytes
        start = (0 if info.is_still else steps[0] * info.step_bytes) + pixels[0] * info.pixel_bytes + words[0] * 2
        merged = steps[1] == info.steps == (held_steps or steps[1])  # planes then follow each other as steps do
        step_stride = 0 if info.is_still and not merged else info.step_bytes
        for plane in range(1 if merged else planes):
            self.copy(
                kind,
                (dram, start + plane * info.plane_bytes),
                (held, offset + plane * plane_bytes),
                Region.SPIKE,
                Traffic.SPIKE,
                length,
                (planes * steps[1] if merged else steps[1], rows),
                (step_stride, info.pixel_bytes),
                (step_bytes, run),
            )

    def copy_kept(
        self,
        kind: type[Load] | type[Store],
        info: TrainInfo,
        dram: SSAValue,
        buffer: SSAValue,
        steps: tuple[int, int],
        tokens: tuple[int, int],
    ) -> None:
        """A tile of a kept train, [step][token] one word each in the buffer; each pair is (first, count)."""
        self.copy_train(kind, info, dram, buffer, steps=steps, pixels=tokens, words=(0, 1), planes=1)

    def clear_train(
        self,
        buffer: Place,
        *,
        planes: tuple[int, int],
        steps: tuple[int, int],
        held_steps: int,
        pixels: int,
        words: int,
    ) -> None:
        """Zero some planes and timesteps of a tile of a train in the spike buffer; each pair is (first, count)."""
        if not planes[1]:
            return
        source = self.constant("zeros", lambda: np.zeros(MOST_RUN, np.uint8))
        run = words * SPIKE_WORD_BYTES
        step_bytes = pixels * run
        held, offset = buffer
        for plane in range(planes[0], planes[0] + planes[1]):
            place = (held, offset + (plane * held_steps + steps[0]) * step_bytes)
            counts = (steps[1], pixels)
            self.copy(Load, (source, 0), place, Region.SPIKE, Traffic.SPIKE, run, counts, (0, 0), (step_bytes, run))

    def copy_stream(
        self,
        kind: type[Load] | type[Store],
        info: StreamInfo,
        dram: SSAValue,
        buffer: SSAValue | Place,
        region: Region,
        *,
        steps: tuple[int, int],
        pixels: tuple[int, int],
        channels: tuple[int, int],
        traffic: Traffic = Traffic.STREAM,
    ) -> None:
        """A tile of a stream or of the input, [step][pixel][channel] packed in the buffer; each pair (first, count)."""
        run = channels[1] * info.value_bytes
        whole = channels[1] == info.channels
        rows, length = (1, pixels[1] * run) if whole else (pixels[1], run)
        start = (0 if info.is_still else steps[0] * info.step_bytes) + pixels[0] * info.pixel_bytes
        start += channels[0] * info.value_bytes
        self.copy(
            kind,
            (dram, start),
            buffer if isinstance(buffer, tuple) else (buffer, 0),
            region,
            traffic,
            length,
            (steps[1], rows),
            (0 if info.is_still else info.step_bytes, info.pixel_bytes),
            (pixels[1] * run, run),
        )

    def pipeline(self, steps: Sequence[Step]) -> None:
        """Emit steps so that the loads of each go before the work of the one before it."""
        for index, step in enumerate(steps):
            if index == 0:
                _call(step.loads)
            if index + 1 < len(steps):
                _call(steps[index + 1].loads)
            _call(step.works)
            _call(step.stores)


def _call(actions: Sequence[Callable[[], None]]) -> None:
    for action in actions:
        action()
