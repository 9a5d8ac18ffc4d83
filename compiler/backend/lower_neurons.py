"""Tiles that end in neurons: membranes, residual, firing, and the spikes' tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Place, Step
from compiler.backend.lower_end import EndTile, Part, Span, Tile, step_bytes
from compiler.backend.lower_guards import SpikeTile
from compiler.backend.memory import TrainInfo
from compiler.backend.stages import EndedStage, Neurons
from isa.instructions import MEMBRANE_BYTES, SPIKE_WORD_BYTES, Fire, KeepNeurons, Load, Store, words_of
from isa.word import Region, Traffic

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


class NeuronTile(EndTile):
    """Fires a tile of neurons window by window; their spikes of all windows are stored at the end."""

    def __init__(
        self, lowering: Lowering, stage: EndedStage, part: Part, call: Call, tile: Tile, narrow: bool = False
    ) -> None:
        super().__init__(lowering, stage, part, call, tile, narrow)
        assert isinstance(part.end, Neurons)
        self.neurons = part.end
        self.info = lowering.plan.train(self.result)
        self.residual_info = lowering.plan.train(self.addend) if self.addend is not None else None
        self.step_bytes = step_bytes(tile.pixels[1], tile.channels[1])
        self.plane_bytes = call.steps * self.step_bytes
        live = lowering.plan.live(self.addend) if self.addend is not None else 0
        self.added = min(live, call.stop) - call.first
        """Timesteps of the call at which something is added."""
        self.goes_on = live > stage.timing.ends
        """Whether what is added goes on where the neurons have no more timesteps."""

    def prepare(self, step: Step, constants: SSAValue | None) -> SSAValue | None:
        """Load constants (unless given), membranes and the residual with `step`."""
        emit, tile, name = self.emit, self.tile, self.label
        self.spikes = emit.buffer(Region.SPIKE, self.info.planes * self.plane_bytes, f"{name}.result")
        self.membranes: SSAValue | None = None
        if self.neurons.has_membrane and self.ends:
            size = tile.pixels[1] * tile.channels[1] * MEMBRANE_BYTES
            self.membranes = emit.buffer(Region.OUTPUT, size, f"{name}.membranes")
        constants = super().prepare(step, constants)
        if self.membranes is not None and not self.call.is_first:
            step.loads.append(lambda: self._move_membranes(Load))
        self.residual: SSAValue | None = None
        if self.residual_info is not None and self.added > 0:
            info = self.residual_info
            self.residual = self.spikes
            if not self.goes_on:
                self.residual = emit.buffer(Region.SPIKE, info.planes * self.plane_bytes, f"{name}.residual")
            step.loads.append(self._load_residual)
        return constants

    def _load_residual(self) -> None:
        """What is added; where it goes on behind the last spikes it lies in its result's place, with zeros above it."""
        info, addend, held, call = self.residual_info, self.addend, self.residual, self.call
        assert info is not None and addend is not None and held is not None
        self._move_train(Load, info, addend, held, self.added)
        alone = max(self.stage.timing.ends - call.first, 0)
        if self.goes_on and alone < call.steps:
            self.emit.clear_train(
                (held, 0),
                planes=(info.planes, self.info.planes - info.planes),
                steps=(alone, call.steps - alone),
                held_steps=call.steps,
                pixels=self.tile.pixels[1],
                words=words_of(self.tile.channels[1]),
            )

    def begin(self, window: Span) -> None:
        """Nothing comes window by window."""

    def conclude(self, step: Step) -> None:
        """Store the spikes, and the membranes where another call goes on from them."""
        step.stores.append(lambda: self._move_train(Store, self.info, self.result, self.spikes, self.call.steps))
        if self.membranes is not None and self.call.stop < self.stage.timing.ends:
            step.stores.append(lambda: self._move_membranes(Store))

    def _move_train(
        self, kind: type[Load] | type[Store], info: TrainInfo, value: SSAValue, buffer: SSAValue, steps: int
    ) -> None:
        self.emit.copy_train(
            kind,
            info,
            self.lowering.dram_of(value),
            buffer,
            steps=(self.call.first, steps),
            pixels=self.tile.pixels,
            words=info.words_at(self.channels),
            planes=info.planes,
            held_steps=self.call.steps,
        )

    def _move_membranes(self, kind: type[Load] | type[Store]) -> None:
        """The tile's membranes from or to DRAM, [pixel][channel] int16."""
        assert self.membranes is not None
        channels = len(self.neurons.bias)
        state = self.lowering.state(f"{self.part.name}.state", self.info.pixels * channels * MEMBRANE_BYTES)
        (pixel, pixels), (channel, count) = self.tile.pixels, self.tile.channels
        whole = count == channels
        run = count * MEMBRANE_BYTES
        self.emit.copy(
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

    def finish(self, window: Span, accumulators: Place | None) -> None:
        """Emit the neuron update of one window of timesteps."""
        first, steps = window
        if first >= self.stage.timing.ends:
            self._count(window)
            return
        assert self.constants is not None
        neurons, offset = self.neurons, (first - self.call.first) * self.step_bytes
        places: dict[str, Place] = {"constants": (self.constants, 0), "result": (self.spikes, offset)}
        if accumulators is not None:
            places = {"accumulators": accumulators, **places}
        if self.membranes is not None:
            places["membranes"] = (self.membranes, 0)
        adds = self.residual_info is not None and first - self.call.first < self.added
        if adds and self.residual is not None:
            places["residual"] = (self.residual, offset)
        guarded, guards = self.lowering.masks.fire(self.stage, window, self.channels)
        guards |= self.latch(KeepNeurons, window)
        self.emit.instruction(
            Fire,
            {**places, **guarded},
            residual_planes=self.residual_info.planes if adds and self.residual_info is not None else 0,
            planes=self.info.planes,
            steps=steps,
            pixels=self.tile.pixels[1],
            outputs=self.tile.channels[1],
            drop=neurons.drop,
            shift=neurons.shift,
            charge=neurons.charge,
            multiplier=neurons.multiplier,
            divisor=neurons.divisor,
            start=int(first == 0 and neurons.has_membrane),
            soft=int(neurons.soft),
            levels=neurons.levels,
            ties_even=int(neurons.ties_even),
            narrow=int(self.narrow and accumulators is not None),
            still=int(self.is_still(window, accumulators)),
            absent=int(accumulators is None),
            mute=int(bool(neurons.mask) and not neurons.mask[first]),
            plane_stride=self.plane_bytes,
            step_stride=self.step_bytes,
            pixel_stride=words_of(self.tile.channels[1]) * SPIKE_WORD_BYTES,
            neuron=(first, *self.tile.place, self.channels[0]),
            **guards,
        )
        self._count(window)
        self.lowering.masks.conclude_tile(self.stage, self.call, window, self.channels)

    def _count(self, window: Span) -> None:
        """Emit the counts of a window's result that firing does not make."""
        place = (self.spikes, (window[0] - self.call.first) * self.step_bytes)
        row = words_of(self.tile.channels[1]) * SPIKE_WORD_BYTES
        tile = SpikeTile(place, self.tile.pixels[1], self.channels, self.plane_bytes, self.step_bytes, row)
        self.lowering.masks.count(self.stage, window, tile)
