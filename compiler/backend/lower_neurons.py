"""What every stage that ends in neurons shares: constants, membranes, residual, firing, and the result's tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.emitter import Place, Step
from compiler.backend.stages import Neurons, TrainInfo
from isa.instructions import (
    CONSTANT_BYTES,
    MEMBRANE_BYTES,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    Fire,
    Load,
    Store,
    words_of,
)
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.lower import Call, Lowering


@dataclass(frozen=True)
class Tile:
    """A tile of a layer's neurons: runs of pixels and of channels, as (first, count)."""

    pixels: tuple[int, int]
    channels: tuple[int, int]
    place: tuple[int, int]
    """Row and column of the first pixel in the layer."""

    @property
    def words(self) -> tuple[int, int]:
        return self.channels[0] // SPIKES_PER_WORD, words_of(self.channels[1])

    @property
    def step_bytes(self) -> int:
        return self.pixels[1] * self.words[1] * SPIKE_WORD_BYTES


class NeuronTile:
    """Loads what a tile of neurons needs, fires it window by window, and stores its spikes."""

    def __init__(
        self,
        lowering: Lowering,
        label: str,
        neurons: Neurons,
        residual: SSAValue | None,
        result: SSAValue,
        call: Call,
        tile: Tile,
        channel_tile: int,
    ) -> None:
        self.lowering, self.label, self.neurons, self.call, self.tile = lowering, label, neurons, call, tile
        self.channel_tile = channel_tile
        self.info: TrainInfo = lowering.plan.trains[result]
        self.result_dram = lowering.dram_of(result)
        self.residual_info = lowering.plan.trains[lowering.plan.memory(residual)] if residual is not None else None
        self.residual_dram = lowering.dram_of(residual) if residual is not None else None
        self.plane_bytes = call.steps * tile.step_bytes

    def prepare(self, step: Step, constants: SSAValue | None) -> SSAValue:
        """Load constants (unless given), membranes and the residual with `step`; store the result after it."""
        emit, tile = self.lowering.emit, self.tile
        self.result = emit.buffer(Region.SPIKE, self.info.planes * self.plane_bytes, f"{self.label}.result")
        self.membranes = emit.buffer(
            Region.OUTPUT, tile.pixels[1] * tile.channels[1] * MEMBRANE_BYTES, f"{self.label}.membranes"
        )
        if constants is None:
            constants = self._load_constants(step)
        self.constants = constants
        if self.lowering.spills and not self.call.is_first:
            step.loads.append(lambda: self._move_membranes(Load))
        self.residual: SSAValue | None = None
        if self.residual_info is not None and self.residual_dram is not None:
            info, dram = self.residual_info, self.residual_dram
            self.residual = emit.buffer(Region.SPIKE, info.planes * self.plane_bytes, f"{self.label}.residual")
            step.loads.append(lambda: self._move_train(Load, info, dram, self.residual))
        step.stores.append(lambda: self._move_train(Store, self.info, self.result_dram, self.result))
        if self.lowering.spills and not self.call.is_last:
            step.stores.append(lambda: self._move_membranes(Store))
        return constants

    def _load_constants(self, step: Step) -> SSAValue:
        emit, neurons = self.lowering.emit, self.neurons
        source = emit.constant(
            f"{self.label}.constants", lambda: constant_tiles(neurons.bias, neurons.threshold, self.channel_tile)
        )
        first, count = self.tile.channels
        target = emit.buffer(Region.CONSTANT, count * CONSTANT_BYTES, f"{self.label}.constants_tile")
        step.loads.append(
            lambda: emit.copy(
                Load,
                (source, first * CONSTANT_BYTES),
                (target, 0),
                Region.CONSTANT,
                Traffic.CONSTANT,
                count * CONSTANT_BYTES,
            )
        )
        return target

    def _move_train(
        self, kind: type[Load] | type[Store], info: TrainInfo, dram: SSAValue, buffer: SSAValue | None
    ) -> None:
        assert buffer is not None
        self.lowering.emit.copy_train(
            kind,
            info,
            dram,
            buffer,
            steps=(self.call.first, self.call.steps),
            pixels=self.tile.pixels,
            words=self.tile.words,
            planes=info.planes,
        )

    def _move_membranes(self, kind: type[Load] | type[Store]) -> None:
        """The tile's membranes from or to DRAM, [pixel][channel] int16."""
        channels = len(self.neurons.bias)
        state = self.lowering.state(f"{self.label}.state", self.info.pixels * channels * MEMBRANE_BYTES)
        (pixel, pixels), (channel, count) = self.tile.pixels, self.tile.channels
        whole = count == channels
        run = count * MEMBRANE_BYTES
        self.lowering.emit.copy(
            kind,
            (state, (pixel * channels + channel) * MEMBRANE_BYTES),
            (self.membranes, 0),
            Region.OUTPUT,
            Traffic.MEMBRANE,
            run * pixels if whole else run,
            (1, 1 if whole else pixels),
            (0, channels * MEMBRANE_BYTES),
            (0, run),
        )

    def fire(self, window: tuple[int, int], accumulators: Place) -> None:
        """Emit the neuron update of one window of timesteps."""
        first, steps = window
        offset = (first - self.call.first) * self.tile.step_bytes
        places: dict[str, Place] = {
            "accumulators": accumulators,
            "constants": (self.constants, 0),
            "membranes": (self.membranes, 0),
            "result": (self.result, offset),
        }
        if self.residual is not None:
            places["residual"] = (self.residual, offset)
        self.lowering.emit.instruction(
            Fire,
            places,
            residual_planes=self.residual_info.planes if self.residual_info is not None else 0,
            planes=self.info.planes,
            steps=steps,
            pixels=self.tile.pixels[1],
            outputs=self.tile.channels[1],
            drop=self.neurons.drop,
            shift=self.neurons.shift,
            charge=self.neurons.charge,
            multiplier=self.neurons.multiplier,
            divisor=self.neurons.divisor,
            start=int(first == 0),
            soft=int(self.neurons.soft),
            levels=0,
            ties_even=0,
            narrow=0,
            plane_stride=self.plane_bytes,
            step_stride=self.tile.step_bytes,
            pixel_stride=self.tile.words[1] * SPIKE_WORD_BYTES,
            neuron=(first, *self.tile.place, self.tile.channels[0]),
        )


def constant_tiles(bias: NDArray[np.int32], threshold: NDArray[np.int32], tile: int) -> NDArray[np.uint8]:
    """Biases and thresholds in tile order: each tile's int32 biases, then its int32 thresholds."""
    parts = [
        part[start : start + tile].astype("<i4").view(np.uint8)
        for start in range(0, len(bias), tile)
        for part in (bias, threshold)
    ]
    return np.concatenate(parts)
