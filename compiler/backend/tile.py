"""How a stage is cut to fit the machine's buffers: what all tilings share, and those of stages without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from compiler.backend.stages import Geometry
from isa.errors import CStepError
from isa.instructions import MEMBRANE_BYTES, SPIKE_WORD_BYTES, STREAM_BYTES, words_of

ALIGNMENT = 64
"""Buffers begin at multiples of this: a DRAM burst, a cache line of the emulator."""
MAX_OUTPUTS = 256
MAX_INPUTS = 4080
MAX_PIXELS = 1 << 13
MAX_ROWS, MAX_COLUMNS = 1000, 4000
MAX_WIDTH = 1008
"""Channels of a head that every instruction's fields hold, a multiple of a spike word."""


def aligned(size: int) -> int:
    """The bytes that a buffer of `size` takes up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def spans(total: int, size: int) -> list[tuple[int, int]]:
    """0..total-1 in runs of `size`, each as (first, count)."""
    return [(first, min(size, total - first)) for first in range(0, total, size)]


@dataclass(frozen=True)
class EndDemand:
    """What the end of a stage, neurons or a stream, takes up beside its accumulators."""

    planes: int
    """Planes of the count train that it makes; 0 for a stream."""
    adds: bool
    """Whether a residual train, or a stream, is added."""
    has_membrane: bool
    spill: bool
    """Whether membranes are loaded from and stored to DRAM."""
    steps: int
    """Timesteps of a whole call."""
    window: int
    """Timesteps of a window."""
    copies: int = 0
    """Copies of a tile over all calls: results, what is added, membranes, kept tokens."""
    keeps: bool = False
    """Whether a tile of a kept train goes with it."""

    def spike_bytes(self, pixels: int, channels: int) -> int:
        """The result, and the residuals, and kept tokens, of this tile and of the next."""
        result = aligned(words_of(channels) * SPIKE_WORD_BYTES * pixels * self.steps * self.planes)
        return result * (3 if self.adds else 1) + self.kept_bytes(pixels)

    def kept_bytes(self, pixels: int) -> int:
        """Kept tokens of this tile and of the next."""
        return 2 * aligned(SPIKE_WORD_BYTES * pixels * self.steps) if self.keeps else 0

    def output_bytes(self, pixels: int, channels: int) -> int:
        """Membranes; of a stream, what is added to it (the stream takes the place of that, or of accumulators)."""
        values = pixels * channels
        if not self.planes:
            return aligned(values * self.window * STREAM_BYTES) if self.adds else 0
        return aligned(values * MEMBRANE_BYTES) * (2 if self.spill else 1) if self.has_membrane else 0


def halo_rows(geometry: Geometry, start: int, count: int) -> tuple[int, int, int]:
    """First input row, number of input rows, and rows of padding above, for output rows start .. start+count-1."""
    stride, padding = (1, 0) if geometry.is_flat else (geometry.stride, geometry.padding)
    first = start * stride - padding
    last = (start + count - 1) * stride - padding + geometry.kernel_rows - 1
    top = max(0, -first)
    begin, end = max(first, 0), min(last, geometry.input_rows - 1)
    return begin, end - begin + 1, top


def most_rows(geometry: Geometry, rows: int) -> int:
    """Input rows that a tile of `rows` output rows loads at most."""
    stride = 1 if geometry.is_flat else geometry.stride
    return min(geometry.input_rows, (rows - 1) * stride + geometry.kernel_rows)


@cache
def rows_with_halos(geometry: Geometry, rows: int) -> int:
    """Input rows that all tiles of `rows` output rows load."""
    return sum(halo_rows(geometry, *tile)[1] for tile in spans(geometry.rows, rows))


def splits(total: int, multiple: int = 1, most: int | None = None) -> list[int]:
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


def choose_pool(
    channels: int, geometry: Geometry, fits: Callable[[int, int], bool], where: str, multiple: int = 1
) -> tuple[int, int]:
    """Channels (or spike words) and rows of a tile: the fewest rows loaded twice, then the fewest tiles."""
    candidates = [
        (rows_with_halos(geometry, rows), -(-channels // some) * -(-geometry.rows // rows), some, rows)
        for some in splits(channels, multiple)
        for rows in splits(geometry.rows)
        if fits(some, rows)
    ]
    if not candidates:
        raise CStepError(f"{where}: not even its smallest tile fits the machine's buffers")
    return min(candidates)[2:]


def largest(extent: int, fits: Callable[[int], bool], where: str, multiple: int = 1) -> int:
    """The largest tile of `extent` for which `fits` holds. Raises CStepError where none does."""
    for size in splits(extent, multiple):
        if fits(size):
            return size
    raise CStepError(f"{where}: not even its smallest tile fits the machine's buffers")
