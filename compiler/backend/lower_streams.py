"""Tiles that end in a stream, and stages that read one: neurons on it, or another stream added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from compiler.backend.emitter import Place, Step
from compiler.backend.lower_end import EndTile, Part, Share, Span, Tile, end_demand, end_tile, shares, without_sums
from compiler.backend.stages import EndedStage, Rescaling, StreamStage
from compiler.backend.tile import MAX_OUTPUTS, MAX_PIXELS, aligned, largest, spans, splits
from isa.instructions import CONSTANT_BYTES, STREAM_BYTES, KeepNeurons, Load, Rescale, Store
from isa.word import Region

if TYPE_CHECKING:
    from compiler.backend.calls import Call
    from compiler.backend.lower import Lowering


class StreamTile(EndTile):
    """Rescales a tile window by window, each stored at once.

    The stream takes the place of what is added to it, or else of its accumulators.
    """

    def __init__(
        self, lowering: Lowering, stage: EndedStage, part: Part, call: Call, tile: Tile, narrow: bool = False
    ) -> None:
        super().__init__(lowering, stage, part, call, tile, narrow)
        assert isinstance(part.end, Rescaling)
        self.rescaling = part.end
        self.info = lowering.plan.stream(self.result)
        self._added: dict[Span, SSAValue] = {}

    def begin(self, window: Span) -> None:
        """Load what is added in one window."""
        if self.addend is None or window[0] >= self.lowering.plan.live(self.addend):
            return
        self._added[window] = self._buffer(window)
        self._move(Load, self.addend, self._added[window], window)

    def _buffer(self, window: Span) -> SSAValue:
        """A window of a tile of a stream."""
        size = window[1] * self.tile.pixels[1] * self.tile.channels[1] * STREAM_BYTES
        return self.emit.buffer(Region.OUTPUT, size, f"{self.label}.addend")

    def _move(self, kind: type[Load] | type[Store], value: SSAValue, buffer: SSAValue | Place, window: Span) -> None:
        self.emit.copy_stream(
            kind,
            self.lowering.plan.stream(value),
            self.lowering.dram_of(value),
            buffer,
            Region.OUTPUT,
            steps=window,
            pixels=self.tile.pixels,
            channels=self.channels,
        )

    def finish(self, window: Span, accumulators: Place | None) -> None:
        """Emit the rescaling of one window of timesteps, and its store."""
        assert self.constants is not None
        added = self._added.get(window)
        result = accumulators if added is None else (added, 0)
        if result is None:
            result = (self._buffer(window), 0)
        places: dict[str, Place] = {"constants": (self.constants, 0), "result": result}
        if accumulators is not None:
            places = {"accumulators": accumulators, **places}
        if added is not None:
            places["addend"] = (added, 0)
        keeps = self.latch(KeepNeurons, window)
        self.emit.instruction(
            Rescale,
            places,
            steps=window[1],
            pixels=self.tile.pixels[1],
            outputs=self.tile.channels[1],
            divisor=self.rescaling.divisor,
            adds=int(added is not None),
            narrow=int(self.narrow and accumulators is not None),
            absent=int(accumulators is None),
            small=int(self.info.value_bytes == 1),
            **keeps,
        )
        self._move(Store, self.result, result, window)

    def conclude(self, step: Step) -> None:
        """Every window is stored already."""


def stream_tiling(lowering: Lowering, stage: StreamStage) -> tuple[int, int]:
    """Pixels and channels of a tile."""
    info = lowering.plan.stream(stage.inputs[0])
    demand, machine = end_demand(lowering, stage), lowering.machine

    def fits(pixels: int, channels: int) -> bool:
        tile = aligned(demand.window * pixels * channels * STREAM_BYTES)
        ahead = 1 if demand.planes else 2
        return (
            2 * tile + ahead * demand.output_bytes(pixels, channels) <= machine.output_buffer_bytes
            and demand.spike_bytes(pixels, channels) + demand.kept_bytes(pixels) <= 2 * machine.spike_words
            and 2 * aligned(channels * CONSTANT_BYTES) <= machine.constant_buffer_bytes
            and pixels <= MAX_PIXELS
        )

    least = min(splits(info.channels, 16, MAX_OUTPUTS))
    channels = next((size for size in splits(info.channels, 16, MAX_OUTPUTS) if fits(1, size)), least)
    return largest(info.pixels, lambda size: fits(size, channels), stage.where), channels


def lower_stream(lowering: Lowering, stage: StreamStage, call: Call) -> None:
    """Neurons on a stream, or a stream added to it: tiles of pixels and channels, one window a step."""
    info, (pixels, channels) = lowering.plan.stream(stage.inputs[0]), stream_tiling(lowering, stage)
    part = Part(stage.label, stage.end, channels)
    steps: list[Step] = []
    for channel_span in spans(info.channels, channels):
        constants: SSAValue | None = None
        for span in spans(info.pixels, pixels):
            tile = Tile(span, channel_span, divmod(span[0], stage.columns))
            end = end_tile(lowering, stage, part, call, tile, narrow=True)
            made = [_window(lowering, stage, tile, end, share) for share in shares(stage, call)]
            end.load_kept(made[0])
            constants = end.prepare(made[0], constants)
            end.conclude(made[-1])
            steps += made
    lowering.emit.pipeline(steps)


def _window(lowering: Lowering, stage: StreamStage, tile: Tile, end: EndTile, share: Share) -> Step:
    """Load one window of a tile of the stream, and end it."""
    value, emit, step, window = stage.inputs[0], lowering.emit, Step(), share.sums
    if window is None:
        return without_sums(end, share)
    size = window[1] * tile.pixels[1] * tile.channels[1] * STREAM_BYTES
    held = emit.buffer(Region.OUTPUT, size, f"{stage.label}.stream")
    step.loads.append(
        lambda: emit.copy_stream(
            Load,
            lowering.plan.stream(value),
            lowering.dram_of(value),
            held,
            Region.OUTPUT,
            steps=window,
            pixels=tile.pixels,
            channels=tile.channels,
        )
    )
    for each in share.ends:
        step.loads.append(lambda w=each: end.begin(w))
        step.works.append(lambda w=each: end.finish(w, (held, 0)))
    return step
