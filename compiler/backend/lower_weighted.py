"""Convolutions and linear layers: weights, what they weigh, accumulators, and what these become."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import MASKED_BY, Place, Step
from compiler.backend.lower_end import (
    EndTile,
    Part,
    Share,
    Span,
    Tile,
    end_demand,
    end_tile,
    shares,
    summed_steps,
    without_sums,
)
from compiler.backend.memory import TrainInfo
from compiler.backend.pairing import Partners, Tables, sharing_on, window_rows
from compiler.backend.stages import Neurons, Rescaling, WeightedStage
from compiler.backend.tile import halo_rows, spans
from compiler.backend.tile_weighted import Demand, Tiling
from isa.instructions import (
    ACCUMULATOR_BYTES,
    SPIKE_WORD_BYTES,
    Accumulate,
    Depthwise,
    KeepRows,
    Load,
    Multiply,
    words_of,
)
from isa.word import Region, Sharing, Traffic

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


def lower_weighted(lowering: Lowering, stage: WeightedStage, call: Call) -> None:
    """Emit a weighted stage for one call, group by group: what fits one group then fits all."""
    for group in range(stage.groups):
        lowering.emit.pipeline(_Weighted(lowering, stage, call, group).steps())


def is_one_tile(lowering: Lowering, stage: WeightedStage) -> bool:
    """Whether all pixels, and all inputs, of a tile of outputs are computed in one go."""
    first = _Weighted(lowering, stage, lowering.calls_of(stage)[0], 0)
    tiling = first.tiling
    return tiling.pixels >= stage.geometry.extent and (first.is_depthwise or tiling.inputs >= first.inputs)


@dataclass(frozen=True)
class _Held:
    """A tile of inputs in the spike buffer: its timesteps are those from `first` on."""

    buffer: SSAValue
    first: int
    steps: int


class _Weighted:
    """One group of a weighted stage in one call."""

    def __init__(self, lowering: Lowering, stage: WeightedStage, call: Call, group: int) -> None:
        self.lowering, self.stage, self.call = lowering, stage, call
        self.emit, self.plan = lowering.emit, lowering.plan
        self.value = self.plan.memory(stage.inputs[0])
        self.input = self.plan.info(self.value)
        self.planes = self.input.planes if isinstance(self.input, TrainInfo) else 0
        self.is_image = self.value is self.plan.image_value
        self.is_still = self.input.is_still
        self.is_depthwise = stage.operation == "depthwise"
        self.is_tokens = stage.geometry.is_row_of_tokens
        outputs = stage.channels // stage.groups
        self.outputs, self.first_output = outputs, group * outputs
        self.weight = stage.weight[..., self.first_output : self.first_output + outputs]
        self.inputs = outputs if self.is_depthwise else self.weight.shape[2]
        self.first_input = group * self.inputs
        self.sharing = sharing_on(lowering.machine, stage) if lowering.share and self.planes else Sharing.NONE
        self.tiling = self._choose()
        name = stage.label if stage.groups == 1 else f"{stage.label}.group.{group}"
        self.part = Part(name, _channels_of(stage, self.first_output, outputs), self.tiling.outputs, self.first_output)
        self.partners = Partners(stage, lowering.emit) if self.sharing == Sharing.MATCH else None
        self._weights: tuple[Span, Span, SSAValue, dict[str, Place]] | None = None
        self._inputs: dict[tuple[Span, Span, int], _Held] = {}
        self._constants: tuple[Span, SSAValue] | None = None

    def _choose(self) -> Tiling:
        lowering, stage = self.lowering, self.stage
        assert stage.result is not None
        made = self.plan.info(stage.result)
        summed = [summed_steps(stage, call) for call in lowering.calls_of(stage)]
        calls = sum(map(bool, summed))
        demand = Demand(
            geometry=stage.geometry,
            inputs=self.inputs,
            outputs=self.outputs,
            is_depthwise=self.is_depthwise,
            planes=self.planes,
            input_steps=1 if self.is_still else max(summed),
            sum_steps=max(summed),
            end=end_demand(lowering, stage),
            calls=calls,
            total_steps=calls if self.is_still else sum(summed),
            timesteps=self.input.steps,
            run=made.run if isinstance(made, TrainInfo) else 0,
            input_run=self.input.run if isinstance(self.input, TrainInfo) else 0,
            shared_rows=window_rows(lowering.machine, self.sharing),
        )
        return lowering.tiling(demand, stage.where)

    def steps(self) -> list[Step]:
        pixels = spans(self.stage.geometry.extent, self.tiling.pixels)
        outputs = spans(self.outputs, self.tiling.outputs)
        if self.tiling.pixels_outermost:
            order = [(p, o) for p in pixels for o in outputs]
        else:
            order = [(p, o) for o in outputs for p in pixels]
        return [step for pixel_span, output_span in order for step in self._tile(pixel_span, output_span)]

    def _tile(self, pixels: Span, outputs: Span) -> list[Step]:
        """The steps of one tile of outputs: one for each tile of input channels, in each round of windows."""
        columns = self.stage.geometry.columns
        if self.is_tokens:
            tile = Tile(pixels, outputs, (0, pixels[0]))
        else:
            tile = Tile((pixels[0] * columns, pixels[1] * columns), outputs, (pixels[0], 0))
        end = end_tile(self.lowering, self.stage, self.part, self.call, tile)
        inputs = [outputs] if self.is_depthwise else spans(self.inputs, self.tiling.inputs)
        all_shares = shares(self.stage, self.call)
        summed = [share for share in all_shares if share.sums is not None]
        rounds = [[share] for share in summed] if self.tiling.by_window else [summed] if summed else []
        made = [self._round(end, tile, pixels, inputs, together) for together in rounds] or [[Step()]]
        end.load_kept(made[0][0])
        held = self._constants[1] if self._constants and self._constants[0] == outputs else None
        constants = end.prepare(made[0][-1], held)  # with the last inputs, so that they stay no longer than they must
        self._constants = (outputs, constants) if constants is not None else None
        steps = [step for each in made for step in each]
        for share in all_shares[len(summed) :]:
            steps[-1].works += without_sums(end, share).works
        end.conclude(steps[-1])
        return steps

    def _round(self, end: EndTile, tile: Tile, pixels: Span, inputs: list[Span], together: list[Share]) -> list[Step]:
        """Accumulate some windows over all inputs, and end them."""
        group = f"{self.stage.label}.accumulators"
        accumulated = tile.pixels[1] * tile.channels[1] * ACCUMULATOR_BYTES
        windows = [(share.sums, share.ends) for share in together if share.sums is not None]
        first, count = windows[0][0][0], sum(window[1] for window, _ in windows)
        shared = self.emit.buffer(Region.OUTPUT, count * accumulated, group) if len(inputs) > 1 else None
        steps: list[Step] = []
        for index, span in enumerate(inputs):
            step = Step()
            weights = self._load_weights(step, span, tile.channels, windows[0][0])
            held = self._load_inputs(step, pixels, span, first, count)
            tables = self.partners.load(step, pixels, [window for window, _ in windows]) if self.partners else {}
            for window, ends in windows:
                if shared is None:
                    place = (self.emit.buffer(Region.OUTPUT, window[1] * accumulated, group), 0)
                else:
                    place = (shared, (window[0] - first) * accumulated)
                if shared is None:
                    step.works += [lambda w=each: end.begin(w) for each in ends]
                step.works.append(
                    lambda w=window, p=place, i=index, s=span, n=weights, h=held, t=tables: self._accumulate(
                        w, pixels, s, tile.channels, n, h, p, i == 0, end, t
                    )
                )
                if shared is None:
                    step.works += [lambda w=each, p=place: end.finish(w, p) for each in ends]
            steps.append(step)
        if shared is not None:
            for window, ends in windows:
                offset = (window[0] - first) * accumulated
                for each in ends:
                    steps[-1].works += [
                        lambda w=each: end.begin(w),
                        lambda w=each, o=offset: end.finish(w, (shared, o)),
                    ]
        return steps

    def _input_rows(self, pixels: Span) -> tuple[Span, int]:
        """Input rows of a pixel tile, and the padding above them."""
        if self.is_tokens:
            return (0, 1), 0
        first, count, top = halo_rows(self.stage.geometry, *pixels)
        return (first, count), top

    def _pixel_bytes(self, inputs: Span) -> int:
        """Bytes of an input pixel in the tile's buffer."""
        return words_of(inputs[1]) * SPIKE_WORD_BYTES if self.planes else inputs[1]

    def _accumulate(
        self,
        window: Span,
        pixels: Span,
        inputs: Span,
        outputs: Span,
        weights: SSAValue,
        held: _Held,
        accumulators: Place,
        fresh: bool,
        end: EndTile,
        tables: Tables,
    ) -> None:
        geometry = self.stage.geometry
        rows, top = self._input_rows(pixels)
        columns = pixels[1] if self.is_tokens else geometry.input_columns
        pixel_bytes = self._pixel_bytes(inputs)
        step_bytes = rows[1] * columns * pixel_bytes
        fields = {
            "steps": window[1],
            "rows": 1 if self.is_tokens else pixels[1],
            "columns": pixels[1] if self.is_tokens else geometry.columns,
            "input_rows": rows[1],
            "input_columns": columns,
            "kernel_rows": geometry.kernel_rows,
            "kernel_columns": geometry.kernel,
            "stride": geometry.stride,
            "top": top,
            "left": geometry.padding,
            "inputs": inputs[1],
            "pixel_stride": pixel_bytes,
            "step_stride": 0 if self.is_still else step_bytes,
        }
        offset = 0 if self.is_still else (window[0] - held.first) * step_bytes
        guards = self._guards(window, inputs, outputs)
        fields |= dict.fromkeys((MASKED_BY[name] for name in guards), 1)
        places: dict[str, Place] = {"weights": (weights, 0), "accumulators": accumulators, **guards}
        instruction = self.emit.instruction
        if not self.planes:
            values = (held.buffer, offset)
            instruction(Multiply, {"values": values, **places}, fresh=int(fresh), outputs=outputs[1], **fields)
            return
        keeps = end.latch(KeepRows, window) if self._skips_tokens else {}
        for plane in range(self.planes):
            spikes = (held.buffer, offset + plane * held.steps * step_bytes)
            now = {"plane": plane, "fresh": int(fresh and plane == 0), **fields}
            if self.is_depthwise:
                instruction(Depthwise, {"spikes": spikes, **places}, **now)
            else:
                if self.partners:
                    self.partners.latch(tables, pixels, window)
                sides = {"outputs": outputs[1], "sharing": self.sharing}
                instruction(Accumulate, {"spikes": spikes, **places}, **sides, **now, **keeps)

    @property
    def _skips_tokens(self) -> bool:
        """Whether tokens that are not kept are left out before their sums are made; still sums serve every timestep."""
        return self.is_tokens and not self.is_depthwise and not self.stage.timing.is_still

    def _guards(self, window: Span, inputs: Span, outputs: Span) -> dict[str, Place]:
        """The masks of a tile's inputs and outputs in a window."""
        masks, guards = self.lowering.masks, dict[str, Place]()
        rows, columns = masks.rows(self.stage, window), masks.columns(self.stage, window)
        if rows is not None:
            guards["row_mask"] = masks.mask(rows, (self.first_input + inputs[0], inputs[1]))
        if columns is not None:
            guards["column_mask"] = masks.mask(columns, (self.first_output + outputs[0], outputs[1]))
        return guards

    def _load_guards(self, window: Span, inputs: Span, outputs: Span) -> dict[str, Place]:
        """The masks under which weights are loaded for a round of windows that begins with `window`.

        The stage's own mask only where an earlier call made it. A depthwise tile has no rows of inputs.
        """
        guards = self._guards(window, inputs, outputs)
        if not self.lowering.masks.columns(self.stage, (self.call.first, 1)):
            guards.pop("column_mask", None)
        if self.is_depthwise and "row_mask" in guards:
            guards = {"column_mask": guards.get("column_mask", guards["row_mask"])}
        return guards

    def _load_weights(self, step: Step, inputs: Span, outputs: Span, window: Span) -> SSAValue:
        """The weight tile, unless it is the one that was loaded last, whole or under the same masks."""
        guards = self._load_guards(window, inputs, outputs)
        held = self._weights
        if held is not None and held[:2] == (inputs, outputs) and held[3] in ({}, guards):
            return held[2]
        weight, tiling, name = self.weight, self.tiling, self.part.name
        source = self.emit.constant(f"{name}.tiles", lambda: weight_tiles(weight, tiling.inputs, tiling.outputs))
        first, count = (0, 1) if self.is_depthwise else inputs
        taps = self.stage.geometry.taps
        size = taps * count * outputs[1]
        start = taps * (outputs[0] * weight.shape[2] + first * outputs[1])
        counts, run = (1, 1), size
        if guards:  # a run is an input of a tap; of a depthwise tile a tap
            counts, run = (1, taps) if self.is_depthwise else (taps, count), outputs[1]
        strides = (counts[1] * run, run)
        target = self.emit.buffer(Region.WEIGHT, size, f"{self.stage.label}.weights")
        step.loads.append(
            lambda: self.emit.copy(
                Load,
                (source, start),
                (target, 0),
                Region.WEIGHT,
                Traffic.WEIGHT,
                run,
                counts,
                strides,
                strides,
                guards,
            )
        )
        self._weights = (inputs, outputs, target, guards)
        return target

    def _load_inputs(self, step: Step, pixels: Span, inputs: Span, first: int, count: int) -> _Held:
        """The input tile, `count` timesteps from `first` on, unless it is still in the buffer."""
        key = (pixels, inputs, first)
        if key in self._inputs:
            return self._inputs[key]
        geometry = self.stage.geometry
        rows, _ = self._input_rows(pixels)
        width = geometry.input_columns
        run = pixels if self.is_tokens else (rows[0] * width, rows[1] * width)
        tiling = self.tiling
        resident = (tiling.pixels_outermost or tiling.pixels >= geometry.extent) and not tiling.by_window
        if not resident or any(held[0] != pixels for held in self._inputs):
            self._inputs.clear()
        first, count = (0, 1) if self.is_still else (first, count)
        size = max(self.planes, 1) * count * run[1] * self._pixel_bytes(inputs)
        held = _Held(self.emit.buffer(Region.SPIKE, size, f"{self.stage.label}.inputs"), first, count)
        channels = (self.first_input + inputs[0], inputs[1])
        step.loads.append(lambda: self._copy_inputs(held, run, channels))
        self._inputs[key] = held
        return held

    def _copy_inputs(self, held: _Held, pixels: Span, channels: Span) -> None:
        dram, steps = self.lowering.dram_of(self.value), (held.first, held.steps)
        if isinstance(self.input, TrainInfo):
            info, words = self.input, self.input.words_at(channels)
            self.emit.copy_train(
                Load, info, dram, held.buffer, steps=steps, pixels=pixels, words=words, planes=info.planes
            )
            return
        traffic = Traffic.IMAGE if self.is_image else Traffic.STREAM
        self.emit.copy_stream(
            Load,
            self.input,
            dram,
            held.buffer,
            Region.SPIKE,
            steps=steps,
            pixels=pixels,
            channels=channels,
            traffic=traffic,
        )


def _channels_of(stage: WeightedStage, first: int, count: int) -> Neurons | Rescaling:
    """A group's part of the constants."""
    part = slice(first, first + count)
    end = stage.end
    if isinstance(end, Neurons):
        return replace(end, bias=end.bias[part], threshold=end.threshold[part])
    return replace(end, bias=end.bias[part], multiplier=end.multiplier[part])


def weight_tiles(weight: NDArray[np.int8], inputs: int, outputs: int) -> NDArray[np.uint8]:
    """[kernel rows, kernel, in, out] in tile order: output tiles, in them input tiles, each in that order."""
    parts = [
        np.ascontiguousarray(weight[:, :, k : k + inputs, n : n + outputs]).reshape(-1).view(np.uint8)
        for n in range(0, weight.shape[3], outputs)
        for k in range(0, weight.shape[2], inputs)
    ]
    return np.concatenate(parts)
