"""Convolutions and linear layers: weights, spikes or an image, accumulators, neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Place, Step
from compiler.backend.lower_neurons import NeuronTile, Tile
from compiler.backend.stages import ImageInfo, TrainInfo, WeightedStage
from compiler.backend.tile import Demand, Tiling, choose, halo_rows, is_row_of_tokens
from isa.instructions import ACCUMULATOR_BYTES, SPIKE_WORD_BYTES, SPIKES_PER_WORD, Accumulate, Load, Multiply, words_of
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.lower import Call, Lowering

Span = tuple[int, int]
"""First and count."""


def lower_weighted(lowering: Lowering, stage: WeightedStage, call: Call, share: bool) -> None:
    """Emit a weighted stage for one call."""
    _Weighted(lowering, stage, call, share).run()


class _Weighted:
    def __init__(self, lowering: Lowering, stage: WeightedStage, call: Call, share: bool) -> None:
        self.lowering, self.stage, self.call, self.share = lowering, stage, call, share
        self.emit = lowering.emit
        value = lowering.plan.memory(stage.inputs[0])
        self.train: TrainInfo | None = lowering.plan.trains.get(value)
        self.image: ImageInfo = lowering.plan.image
        self.dram = lowering.dram_of(value)
        self.tiling = self._choose()
        self.is_tokens = is_row_of_tokens(stage.geometry)
        self._weight: tuple[Span, Span, SSAValue] | None = None
        self._inputs: dict[tuple[Span, Span], SSAValue] = {}
        self._constants: tuple[Span, SSAValue] | None = None

    def _choose(self) -> Tiling:
        stage, plan = self.stage, self.lowering.plan
        assert stage.result is not None
        residual = plan.trains[plan.memory(stage.residual)] if stage.residual is not None else None
        steps, calls = self.lowering.longest, self.lowering.calls
        still = self.train is None and self.image.kind == "image"  # the same at every timestep
        demand = Demand(
            geometry=stage.geometry,
            inputs=stage.weight.shape[2],
            outputs=stage.weight.shape[3],
            is_image=self.train is None,
            planes=self.train.planes if self.train else 1,
            result_planes=plan.trains[stage.result].planes,
            residual_planes=residual.planes if residual else 0,
            steps=steps,
            input_steps=1 if still else steps,
            window=self.lowering.machine.window,
            spill=self.lowering.spills,
            calls=calls,
            total_steps=calls if still else plan.timesteps,
        )
        return choose(demand, self.lowering.machine, f"{stage.label} ({stage.source})")

    def run(self) -> None:
        geometry, tiling = self.stage.geometry, self.tiling
        pixels = _spans(geometry.columns if self.is_tokens else geometry.rows, tiling.pixels)
        outputs = _spans(self.stage.weight.shape[3], tiling.outputs)
        if tiling.pixels_outermost:
            order = [(p, o) for p in pixels for o in outputs]
        else:
            order = [(p, o) for o in outputs for p in pixels]
        steps: list[Step] = []
        for pixel_span, output_span in order:
            steps += self._tile(pixel_span, output_span)
        self.emit.pipeline(steps)

    def _tile(self, pixels: Span, outputs: Span) -> list[Step]:
        """The steps of one tile of neurons, one for each tile of input channels."""
        stage, call = self.stage, self.call
        assert stage.result is not None
        columns = stage.geometry.columns
        if self.is_tokens:
            tile = Tile(pixels, outputs, (0, pixels[0]))
        else:
            tile = Tile((pixels[0] * columns, pixels[1] * columns), outputs, (pixels[0], 0))
        neurons = NeuronTile(
            self.lowering, stage.label, stage.neurons, stage.residual, stage.result, call, tile, self.tiling.outputs
        )
        accumulated = tile.pixels[1] * outputs[1] * ACCUMULATOR_BYTES
        inputs = _spans(stage.weight.shape[2], self.tiling.inputs)
        shared = (
            self.emit.buffer(Region.OUTPUT, call.steps * accumulated, f"{stage.label}.accumulators")
            if len(inputs) > 1
            else None
        )
        steps: list[Step] = []
        for index, input_span in enumerate(inputs):
            step = Step()
            weights = self._load_weights(step, input_span, outputs)
            values = self._load_inputs(step, pixels, input_span)
            if index == len(inputs) - 1:
                held = self._constants[1] if self._constants and self._constants[0] == outputs else None
                self._constants = (outputs, neurons.prepare(step, held))
            self._work(step, neurons, pixels, input_span, outputs, weights, values, shared, accumulated, index)
            steps.append(step)
        if shared is not None:
            for window in call.windows:
                offset = (window[0] - call.first) * accumulated
                steps[-1].works.append(lambda w=window, o=offset: neurons.fire(w, (shared, o)))
        return steps

    def _work(
        self,
        step: Step,
        neurons: NeuronTile,
        pixels: Span,
        inputs: Span,
        outputs: Span,
        weights: SSAValue,
        values: SSAValue,
        shared: SSAValue | None,
        accumulated: int,
        index: int,
    ) -> None:
        """Accumulate every window; without shared accumulators, fire it right away."""
        for window in self.call.windows:
            if shared is not None:
                place = (shared, (window[0] - self.call.first) * accumulated)
            else:
                group = f"{self.stage.label}.accumulators"
                place = (self.emit.buffer(Region.OUTPUT, window[1] * accumulated, group), 0)
            step.works.append(
                lambda w=window, p=place: self._accumulate(w, pixels, inputs, outputs, weights, values, p, index == 0)
            )
            if shared is None:
                step.works.append(lambda w=window, p=place: neurons.fire(w, p))

    def _input_rows(self, pixels: Span) -> tuple[Span, int]:
        """Input rows of a pixel tile, and the padding above them."""
        if self.is_tokens:
            return (0, 1), 0
        first, count, top = halo_rows(self.stage.geometry, *pixels)
        return (first, count), top

    def _accumulate(
        self,
        window: Span,
        pixels: Span,
        inputs: Span,
        outputs: Span,
        weights: SSAValue,
        values: SSAValue,
        accumulators: Place,
        fresh: bool,
    ) -> None:
        geometry = self.stage.geometry
        rows, top = self._input_rows(pixels)
        columns = pixels[1] if self.is_tokens else geometry.input_columns
        pixel_bytes = inputs[1] if self.train is None else words_of(inputs[1]) * SPIKE_WORD_BYTES
        step_bytes = rows[1] * columns * pixel_bytes
        static = self.train is None and self.image.kind == "image"
        fields = {
            "steps": window[1],
            "rows": 1 if self.is_tokens else pixels[1],
            "columns": pixels[1] if self.is_tokens else geometry.columns,
            "input_rows": rows[1],
            "input_columns": columns,
            "kernel_rows": geometry.kernel,
            "kernel_columns": geometry.kernel,
            "stride": geometry.stride,
            "top": top,
            "left": geometry.padding,
            "inputs": inputs[1],
            "pixel_stride": pixel_bytes,
            "step_stride": 0 if static else step_bytes,
            "outputs": outputs[1],
        }
        offset = 0 if static else (window[0] - self.call.first) * step_bytes
        places: dict[str, Place] = {"weights": (weights, 0), "accumulators": accumulators}
        if self.train is None:
            self.emit.instruction(Multiply, {"values": (values, offset), **places}, fresh=int(fresh), **fields)
            return
        plane_bytes = self.call.steps * step_bytes
        for plane in range(self.train.planes):
            self.emit.instruction(
                Accumulate,
                {"spikes": (values, offset + plane * plane_bytes), **places},
                plane=plane,
                fresh=int(fresh and plane == 0),
                share=int(self.share),
                **fields,
            )

    def _load_weights(self, step: Step, inputs: Span, outputs: Span) -> SSAValue:
        """The weight tile, unless it is the one that was loaded last."""
        if self._weight is not None and self._weight[:2] == (inputs, outputs):
            return self._weight[2]
        weight, tiling = self.stage.weight, self.tiling
        source = self.emit.constant(
            f"{self.stage.label}.tiles", lambda: weight_tiles(weight, tiling.inputs, tiling.outputs)
        )
        taps = weight.shape[0] * weight.shape[1]
        size = taps * inputs[1] * outputs[1]
        start = taps * (outputs[0] * weight.shape[2] + inputs[0] * outputs[1])
        target = self.emit.buffer(Region.WEIGHT, size, f"{self.stage.label}.weights")
        step.loads.append(
            lambda: self.emit.copy(Load, (source, start), (target, 0), Region.WEIGHT, Traffic.WEIGHT, size)
        )
        self._weight = (inputs, outputs, target)
        return target

    def _load_inputs(self, step: Step, pixels: Span, inputs: Span) -> SSAValue:
        """The input tile, all timesteps of the call, unless it is still in the buffer."""
        key = (pixels, inputs)
        if key in self._inputs:
            return self._inputs[key]
        geometry = self.stage.geometry
        rows, _ = self._input_rows(pixels)
        width = geometry.input_columns
        run = pixels if self.is_tokens else (rows[0] * width, rows[1] * width)
        extent = geometry.columns if self.is_tokens else geometry.rows
        resident = self.tiling.pixels_outermost or self.tiling.pixels >= extent
        if not resident or any(held[0] != pixels for held in self._inputs):
            self._inputs.clear()
        target = self._load_image(step, run) if self.train is None else self._load_train(step, run, inputs)
        self._inputs[key] = target
        return target

    def _load_train(self, step: Step, run: Span, inputs: Span) -> SSAValue:
        info = self.train
        assert info is not None
        words = (inputs[0] // SPIKES_PER_WORD, words_of(inputs[1]))
        size = info.planes * self.call.steps * run[1] * words[1] * SPIKE_WORD_BYTES
        target = self.emit.buffer(Region.SPIKE, size, f"{self.stage.label}.spikes")
        step.loads.append(
            lambda: self.emit.copy_train(
                Load,
                info,
                self.dram,
                target,
                steps=(self.call.first, self.call.steps),
                pixels=run,
                words=words,
                planes=info.planes,
            )
        )
        return target

    def _load_image(self, step: Step, run: Span) -> SSAValue:
        channels, height, width = self.image.shape
        static = self.image.kind == "image"
        steps = 1 if static else self.call.steps
        step_bytes = height * width * channels
        first = 0 if static else self.call.first
        size = run[1] * channels
        target = self.emit.buffer(Region.SPIKE, steps * size, f"{self.stage.label}.image")
        step.loads.append(
            lambda: self.emit.copy(
                Load,
                (self.dram, first * step_bytes + run[0] * channels),
                (target, 0),
                Region.SPIKE,
                Traffic.IMAGE,
                size,
                (steps, 1),
                (step_bytes, 0),
                (size, 0),
            )
        )
        return target


def _spans(total: int, size: int) -> list[Span]:
    """0..total-1 in runs of `size`."""
    return [(first, min(size, total - first)) for first in range(0, total, size)]


def weight_tiles(weight: NDArray[np.int8], inputs: int, outputs: int) -> NDArray[np.uint8]:
    """[kernel, kernel, in, out] in tile order: output tiles, in them input tiles, each [kernel, kernel, in, out]."""
    parts = [
        np.ascontiguousarray(weight[:, :, k : k + inputs, n : n + outputs]).reshape(-1).view(np.uint8)
        for n in range(0, weight.shape[3], outputs)
        for k in range(0, weight.shape[2], inputs)
    ]
    return np.concatenate(parts)
