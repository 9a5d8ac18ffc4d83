"""How a stage is cut to fit the machine's buffers: the tiling that moves the fewest bytes over DRAM.

Every candidate is a choice of output channels, input channels and pixels in a tile, and of the loop that is outermost.
Bytes are counted before compression and whatever is loaded again is counted again. A larger buffer only adds
candidates, so the chosen bytes never grow with a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compiler.backend.stages import AttentionStage, Geometry
from isa.errors import CStepError
from isa.instructions import (
    ACCUMULATOR_BYTES,
    CONSTANT_BYTES,
    MEMBRANE_BYTES,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    words_of,
)
from isa.machine import Machine

ALIGNMENT = 64
"""Buffers begin at multiples of this: a DRAM burst, a cache line of the emulator."""
MAX_OUTPUTS = 256
MAX_INPUTS = 4080
MAX_PIXELS = 1 << 13
MAX_ROWS, MAX_COLUMNS = 1000, 4000


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile, and the order of the loops."""

    outputs: int
    inputs: int
    pixels: int
    """Image rows of a tile; tokens where the geometry is one row."""
    pixels_outermost: bool
    """Loop over pixel tiles outside the loop over output tiles."""
    all_windows: bool
    """Accumulate all windows before the first neuron update, so that weights are loaded once."""
    dram_bytes: int
    steps: int


@dataclass(frozen=True)
class Demand:
    """What a weighted stage asks of a tiling."""

    geometry: Geometry
    inputs: int
    outputs: int
    is_image: bool
    """Whether the input is int8 values (image, events), which are not cut by channel."""
    planes: int
    result_planes: int
    residual_planes: int
    steps: int
    """Timesteps of the whole call."""
    input_steps: int
    """Timesteps that the input has in DRAM: 1 for an image."""
    window: int
    spill: bool
    """Whether membranes are loaded from and stored to DRAM."""
    calls: int
    """How often the stage is computed: once, or once a window."""
    total_steps: int
    """Timesteps of input that all calls load."""

    def step_bytes(self, inputs: int) -> int:
        """Bytes that a pixel's `inputs` channels take at one timestep, all planes."""
        return inputs if self.is_image else words_of(inputs) * SPIKE_WORD_BYTES * self.planes

    def pixel_bytes(self, inputs: int) -> int:
        """Likewise at all timesteps that a buffer holds."""
        return self.step_bytes(inputs) * self.input_steps


def aligned(size: int) -> int:
    """The bytes that a buffer of `size` takes up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def halo_rows(geometry: Geometry, start: int, count: int) -> tuple[int, int, int]:
    """First input row, number of input rows, and rows of padding above, for output rows start .. start+count-1."""
    first = start * geometry.stride - geometry.padding
    last = (start + count - 1) * geometry.stride - geometry.padding + geometry.kernel - 1
    top = max(0, -first)
    begin, end = max(first, 0), min(last, geometry.input_rows - 1)
    return begin, end - begin + 1, top


def is_row_of_tokens(geometry: Geometry) -> bool:
    """Whether tiles are runs of tokens rather than of image rows."""
    return geometry.input_rows == 1 and geometry.rows == 1 and geometry.kernel == 1 and geometry.stride == 1


def _splits(total: int, multiple: int = 1, most: int | None = None) -> list[int]:
    """Tile sizes worth trying: the even splits of `total` into 1, 2, 3, ... parts, rounded up to `multiple`."""
    sizes: set[int] = set()
    parts = 1
    while parts <= total:
        size = -(-total // parts)
        size = min(total, -(-size // multiple) * multiple)
        if most is None or size <= most:
            sizes.add(size)
        parts = parts + 1 if parts < 16 else parts * 2
    if most is None or multiple <= most:
        sizes.add(min(total, multiple))
    return sorted(sizes, reverse=True)


def _tile_pixels(geometry: Geometry, size: int) -> tuple[int, int]:
    """Output and input pixels of the largest tile."""
    if is_row_of_tokens(geometry):
        return size, size
    rows = min(geometry.input_rows, (size - 1) * geometry.stride + geometry.kernel)
    return size * geometry.columns, rows * geometry.input_columns


def choose(demand: Demand, machine: Machine, where: str) -> Tiling:
    """The best tiling of a weighted stage. Raises CStepError where not even the smallest tile fits."""
    best: Tiling | None = None
    for candidate in _candidates(demand, machine):
        if best is None or (candidate.dram_bytes, candidate.steps) < (best.dram_bytes, best.steps):
            best = candidate
    if best is None:
        raise CStepError(f"{where}: not even its smallest tile fits the buffers of machine {machine.name}")
    return best


def _candidates(demand: Demand, machine: Machine) -> Iterator[Tiling]:
    geometry = demand.geometry
    extent = geometry.columns if is_row_of_tokens(geometry) else geometry.rows
    multiple = 2 * machine.pairs if is_row_of_tokens(geometry) else 1
    for outputs in _splits(demand.outputs, SPIKES_PER_WORD, MAX_OUTPUTS):
        for inputs in _splits(demand.inputs, SPIKES_PER_WORD, MAX_INPUTS):
            for pixels in _splits(extent, multiple):
                for pixels_outermost in (False, True):
                    for all_windows in (False, True):
                        tiling = _cost(demand, machine, outputs, inputs, pixels, pixels_outermost, all_windows)
                        if tiling is not None:
                            yield tiling


def _cost(
    demand: Demand,
    machine: Machine,
    outputs: int,
    inputs: int,
    pixels: int,
    pixels_outermost: bool,
    all_windows: bool,
) -> Tiling | None:
    """The tiling with its DRAM bytes, or None where it does not fit."""
    geometry = demand.geometry
    out_pixels, in_pixels = _tile_pixels(geometry, pixels)
    extent = geometry.columns if is_row_of_tokens(geometry) else geometry.rows
    output_tiles, input_tiles = -(-demand.outputs // outputs), -(-demand.inputs // inputs)
    pixel_tiles = -(-extent // pixels)
    if (input_tiles > 1) != all_windows or (input_tiles > 1 and demand.is_image):
        return None
    weight = geometry.kernel * geometry.kernel * inputs * outputs
    weight_tiles = output_tiles * input_tiles
    input_tile = aligned(demand.pixel_bytes(inputs) * in_pixels)
    resident = pixel_tiles == 1 or pixels_outermost
    live_steps = demand.steps if all_windows else min(demand.window, demand.steps)
    live_weights = aligned(weight) * min(2, weight_tiles)
    spikes_live = input_tile * (input_tiles * (2 if pixel_tiles > 1 else 1) if resident else 2)
    result = aligned(words_of(outputs) * SPIKE_WORD_BYTES * out_pixels * demand.steps * demand.result_planes)
    spikes_live += result * (3 if demand.residual_planes else 1)
    neurons = out_pixels * outputs
    output_live = aligned(neurons * live_steps * ACCUMULATOR_BYTES)
    output_live += aligned(neurons * MEMBRANE_BYTES) * (2 if demand.spill else 1)
    fits = (
        live_weights <= machine.weight_buffer_bytes
        and spikes_live <= 2 * machine.spike_words
        and output_live <= machine.output_buffer_bytes
        and 2 * aligned(outputs * CONSTANT_BYTES) <= machine.constant_buffer_bytes
        and out_pixels <= MAX_PIXELS
        and (geometry.columns <= MAX_COLUMNS or (is_row_of_tokens(geometry) and pixels <= MAX_COLUMNS))
        and (is_row_of_tokens(geometry) or pixels <= MAX_ROWS)
    )
    if not fits:
        return None
    weight_loads = 1 if pixel_tiles == 1 or (input_tiles == 1 and not pixels_outermost) else pixel_tiles
    input_loads = 1 if resident else output_tiles
    total_weight = geometry.kernel * geometry.kernel * demand.inputs * demand.outputs
    constants = demand.outputs * CONSTANT_BYTES * (pixel_tiles if pixels_outermost else 1)
    total_input = _input_bytes(demand, pixels) * demand.total_steps
    return Tiling(
        outputs,
        inputs,
        pixels,
        pixels_outermost,
        all_windows,
        (total_weight * weight_loads + constants) * demand.calls + total_input * input_loads,
        output_tiles * input_tiles * pixel_tiles,
    )


def _input_bytes(demand: Demand, pixels: int) -> int:
    """Input bytes of all pixel tiles at one timestep, halos included."""
    geometry = demand.geometry
    per_pixel = demand.step_bytes(demand.inputs)
    if is_row_of_tokens(geometry):
        return geometry.columns * per_pixel
    return _rows_with_halos(geometry, pixels) * geometry.input_columns * per_pixel


def _rows_with_halos(geometry: Geometry, rows: int) -> int:
    """Input rows that all tiles of `rows` output rows load."""
    return sum(
        halo_rows(geometry, start, min(rows, geometry.rows - start))[1] for start in range(0, geometry.rows, rows)
    )


def choose_pool(words: int, geometry: Geometry, fits: Callable[[int, int], bool], where: str) -> tuple[int, int]:
    """Spike words and rows of a tile: the fewest rows loaded twice, then the fewest tiles."""
    candidates = [
        (_rows_with_halos(geometry, rows), -(-words // some) * -(-geometry.rows // rows), some, rows)
        for some in _splits(words)
        for rows in _splits(geometry.rows)
        if fits(some, rows)
    ]
    if not candidates:
        raise CStepError(f"{where}: not even its smallest tile fits the machine's buffers")
    return min(candidates)[2:]


@dataclass(frozen=True)
class AttentionTiling:
    """Heads and queries of a tile."""

    heads: int
    queries: int


def choose_attention(
    stage: AttentionStage, window: int, result_planes: int, steps: int, spill: bool, machine: Machine
) -> AttentionTiling:
    """The fewest tiles of queries, as each loads all keys and values again; a tile of heads ends at a spike word."""
    width = stage.channels // stage.heads
    best: tuple[int, int, AttentionTiling] | None = None
    for heads in range(stage.heads, 0, -1):
        channels = heads * width
        if stage.heads % heads or (heads != stage.heads and channels % SPIKES_PER_WORD) or channels > MAX_OUTPUTS:
            continue
        row = words_of(channels) * SPIKE_WORD_BYTES
        for queries in _splits(stage.tokens, 2 * machine.pairs):
            spikes = 2 * aligned(window * row * queries) + 4 * aligned(window * row * stage.keys)
            spikes += aligned(steps * row * queries * result_planes) * (3 if stage.residual is not None else 1)
            output = aligned(queries * channels * window * ACCUMULATOR_BYTES)
            output += aligned(queries * channels * MEMBRANE_BYTES) * (2 if spill else 1)
            if (
                spikes <= 2 * machine.spike_words
                and output <= machine.output_buffer_bytes
                and 2 * aligned(channels * CONSTANT_BYTES) <= machine.constant_buffer_bytes
                and queries <= MAX_COLUMNS
            ):
                found = (-(-stage.tokens // queries), stage.heads // heads, AttentionTiling(heads, queries))
                best = found if best is None or found[:2] < best[:2] else best
    if best is not None:
        return best[2]
    raise CStepError(
        f"{stage.label} ({stage.source}): attention of {stage.tokens} tokens in {stage.heads} heads of {width} "
        f"channels does not fit the buffers of machine {machine.name}"
    )


def largest(extent: int, fits: Callable[[int], bool], where: str, multiple: int = 1) -> int:
    """The largest tile of `extent` for which `fits` holds. Raises CStepError where none does."""
    for size in _splits(extent, multiple):
        if fits(size):
            return size
    raise CStepError(f"{where}: not even its smallest tile fits the machine's buffers")
