"""The tiling of a weighted stage that keeps DRAM busy for the shortest time.

Every candidate is a choice of output channels, input channels and pixels in a tile, of the loop that is outermost, and
of whether inputs come window by window. Its cost is the bytes that it moves, before compression, and for each copy as
many bytes as DRAM could have moved while the copy waited for its first; whatever is loaded again is counted again. A
larger buffer only adds candidates, so the cost never grows with a buffer.

Where rows share within windows, a tile that is small cuts windows short: there the tiling of fewest windows is taken
among those that cost at most half as much again as the best (so that a larger buffer may cost more, and share more).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.backend.stages import Geometry
from compiler.backend.tile import (
    MAX_COLUMNS,
    MAX_INPUTS,
    MAX_OUTPUTS,
    MAX_PIXELS,
    MAX_ROWS,
    EndDemand,
    aligned,
    most_rows,
    rows_with_halos,
    spans,
    splits,
)
from isa.errors import CStepError
from isa.instructions import ACCUMULATOR_BYTES, CONSTANT_BYTES, SPIKE_WORD_BYTES, SPIKES_PER_WORD, words_of
from isa.machine import Machine

LONGER = 1.5
"""DRAM time that full windows may cost, times the least.

Measured: `fc1` of a Spikformer on c-step-reuse takes 1.2, and then has windows of 256 rows, not 64; 9 changes nothing.
"""


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile, and the order of the loops."""

    outputs: int
    inputs: int
    pixels: int
    """Image rows of a tile; tokens where the geometry is one row."""
    pixels_outermost: bool
    """Loop over pixel tiles outside the loop over output tiles."""
    by_window: bool
    """Load a tile's inputs window by window; otherwise those of all timesteps at once."""
    dram_bytes: int
    """Bytes of weights, constants and inputs that all calls move."""
    copies: int
    """Copies that all calls make, results and residuals too."""


@dataclass(frozen=True)
class Demand:
    """What a weighted stage asks of a tiling."""

    geometry: Geometry
    inputs: int
    outputs: int
    is_depthwise: bool
    planes: int
    """Bit planes of the input; 0 where it is int8 values."""
    input_steps: int
    """Timesteps of the input of a call: 1 for an image."""
    sum_steps: int
    """Timesteps of a call that are summed: 1 where the sums are the same at every timestep."""
    end: EndDemand
    calls: int
    """How often the stage is computed: once, or once a window."""
    total_steps: int
    """Timesteps of input that all calls load."""
    timesteps: int
    """Timesteps that the input has in DRAM: planes of all of them are one copy."""
    run: int = 0
    """Output channels that begin at a spike word of their own; 0 for all of them."""
    input_run: int = 0
    """Likewise input channels."""
    shared_rows: int = 0
    """Rows of a window that share beyond neighbours; 0 where none do."""

    def step_bytes(self, inputs: int) -> int:
        """Bytes that a pixel's `inputs` channels take at one timestep, all planes."""
        return words_of(inputs) * SPIKE_WORD_BYTES * self.planes if self.planes else inputs

    @property
    def taps(self) -> int:
        return self.geometry.taps


def choose(demand: Demand, machine: Machine, where: str) -> Tiling:
    """The best tiling of a weighted stage. Raises CStepError where not even the smallest tile fits."""
    wait = latency_bytes(machine)
    costs = {tiling: tiling.dram_bytes + wait * tiling.copies for tiling in _candidates(demand, machine)}
    if not costs:
        raise CStepError(f"{where}: not even its smallest tile fits the buffers of machine {machine.name}")
    most = LONGER * min(costs.values())
    return min((t for t in costs if costs[t] <= most), key=lambda tiling: (_windows(demand, tiling), costs[tiling]))


def _windows(demand: Demand, tiling: Tiling) -> int:
    """Windows that a call's rows are cut into, in each tile of inputs again; 0 where rows do not share within them."""
    if not demand.shared_rows:
        return 0
    steps = [count for _, count in spans(demand.sum_steps, demand.end.window)]
    pixels = [_tile_pixels(demand.geometry, count)[0] for _, count in spans(demand.geometry.extent, tiling.pixels)]
    cut = sum(-(-some * each // demand.shared_rows) for some in steps for each in pixels)
    return cut * _input_count(demand, tiling.inputs)


def latency_bytes(machine: Machine) -> int:
    """Bytes that DRAM moves in the time that a copy waits for its first; of an infinite bandwidth, a burst a cycle."""
    numerator, denominator = machine.cycles_per_burst
    return machine.dram_latency * machine.burst_bytes * denominator // (numerator or denominator)


def _candidates(demand: Demand, machine: Machine) -> Iterator[Tiling]:
    multiple = 2 * machine.pairs if demand.geometry.is_row_of_tokens else 1
    orders = (False, True)
    by_window = orders if demand.sum_steps > demand.end.window and demand.input_steps > 1 else (False,)
    pixels = [size for size in splits(demand.geometry.extent, multiple) if _fields_hold(demand, size)]
    for outputs in [demand.run] if demand.run else splits(demand.outputs, SPIKES_PER_WORD, MAX_OUTPUTS):
        if 2 * aligned(outputs * CONSTANT_BYTES) > machine.constant_buffer_bytes:
            continue
        for inputs in _input_tiles(demand, outputs):
            if not _weights_fit(demand, machine, outputs, inputs):
                continue
            for size in pixels:
                for windows in by_window:
                    if _fits(demand, machine, outputs, inputs, size, windows):
                        for outermost in orders:
                            if _inputs_fit(demand, machine, outputs, inputs, size, windows, outermost):
                                yield _tiling(demand, outputs, inputs, size, windows, outermost)


def _input_tiles(demand: Demand, outputs: int) -> list[int]:
    if demand.is_depthwise:
        return [outputs]
    return [demand.input_run] if demand.input_run else splits(demand.inputs, SPIKES_PER_WORD, MAX_INPUTS)


def _fields_hold(demand: Demand, size: int) -> bool:
    """Whether a tile of `size` rows or tokens stays within what an instruction's fields hold."""
    geometry = demand.geometry
    if geometry.is_row_of_tokens:
        return size <= MAX_COLUMNS
    return size <= MAX_ROWS and max(geometry.columns, geometry.input_columns) <= MAX_COLUMNS


def _input_count(demand: Demand, inputs: int) -> int:
    """Tiles of input channels that are accumulated one after the other."""
    return 1 if demand.is_depthwise else -(-demand.inputs // inputs)


def _weights_fit(demand: Demand, machine: Machine, outputs: int, inputs: int) -> bool:
    tiles = -(-demand.outputs // outputs) * _input_count(demand, inputs)
    return aligned(_weight_bytes(demand, outputs, inputs)) * min(2, tiles) <= machine.weight_buffer_bytes


def _weight_bytes(demand: Demand, outputs: int, inputs: int) -> int:
    return demand.taps * outputs * (1 if demand.is_depthwise else inputs)


def _tile_pixels(geometry: Geometry, size: int) -> tuple[int, int]:
    """Output and input pixels of the largest tile."""
    if geometry.is_row_of_tokens:
        return size, size
    return size * geometry.columns, most_rows(geometry, size) * geometry.input_columns


def _fits(demand: Demand, machine: Machine, outputs: int, inputs: int, size: int, windows: bool) -> bool:
    """Whether accumulators and what goes with them fit the output buffer."""
    pixels, _ = _tile_pixels(demand.geometry, size)
    held = _input_count(demand, inputs) > 1 and not windows
    steps = demand.sum_steps if held else min(demand.end.window, demand.sum_steps)
    live = aligned(pixels * outputs * steps * ACCUMULATOR_BYTES) + demand.end.output_bytes(pixels, outputs)
    return pixels <= MAX_PIXELS and live <= machine.output_buffer_bytes


def _is_resident(demand: Demand, size: int, windows: bool, outermost: bool) -> bool:
    """Whether a tile's inputs stay while all tiles of outputs read them."""
    return not demand.is_depthwise and not windows and (outermost or size >= demand.geometry.extent)


def _inputs_fit(
    demand: Demand, machine: Machine, outputs: int, inputs: int, size: int, windows: bool, outermost: bool
) -> bool:
    """Whether inputs, results and residuals fit the spike buffer."""
    pixels, input_pixels = _tile_pixels(demand.geometry, size)
    steps = min(demand.end.window, demand.input_steps) if windows else demand.input_steps
    tile = aligned(demand.step_bytes(inputs) * steps * input_pixels)
    tiles = 2
    if _is_resident(demand, size, windows, outermost):
        tiles = _input_count(demand, inputs) * (2 if size < demand.geometry.extent else 1)
    return tile * tiles + demand.end.spike_bytes(pixels, outputs) <= 2 * machine.spike_words


def _tiling(demand: Demand, outputs: int, inputs: int, size: int, windows: bool, outermost: bool) -> Tiling:
    """The tiling with its bytes and copies."""
    output_tiles, input_tiles = -(-demand.outputs // outputs), _input_count(demand, inputs)
    pixel_tiles = -(-demand.geometry.extent // size)
    tiles = output_tiles * pixel_tiles
    rounds = -(-demand.sum_steps // demand.end.window) if windows else 1
    # How often constants are loaded, and weights that stay while all tiles of pixels pass.
    again = pixel_tiles if outermost and output_tiles > 1 else 1
    weight_loads = pixel_tiles * rounds if input_tiles > 1 else again
    resident = _is_resident(demand, size, windows, outermost)
    input_loads = (pixel_tiles if resident else tiles * rounds) * input_tiles
    moved = (
        demand.calls * _weight_bytes(demand, demand.outputs, demand.inputs) * weight_loads
        + demand.calls * demand.outputs * CONSTANT_BYTES * again
        + demand.total_steps * _input_bytes(demand, size) * (1 if resident or demand.is_depthwise else output_tiles)
    )
    all_steps = not windows and demand.input_steps == demand.timesteps
    copies = (
        demand.calls * output_tiles * (input_tiles * weight_loads + again)
        + demand.calls * input_loads * (1 if all_steps else max(demand.planes, 1))
        + tiles * demand.end.copies
    )
    return Tiling(outputs, inputs, size, outermost, windows, moved, copies)


def _input_bytes(demand: Demand, size: int) -> int:
    """Input bytes of all pixel tiles at one timestep, halos included."""
    geometry, runs = demand.geometry, 1
    inputs = demand.inputs
    if demand.input_run:
        runs, inputs = demand.inputs // demand.input_run, demand.input_run
    per_pixel = demand.step_bytes(inputs) * runs
    if geometry.is_row_of_tokens:
        return geometry.columns * per_pixel
    return rows_with_halos(geometry, size) * geometry.input_columns * per_pixel
