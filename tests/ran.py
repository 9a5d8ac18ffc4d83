"""One instruction run on random memories, and what a test asks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from emulated import both_families, program_of, random_state
from numpy.typing import NDArray

from isa.machine import load_machine
from isa.word import Instruction
from runtime.record import RECORD
from runtime.state import State

Integers = NDArray[np.int64]
RESULT = 20000
STEPS = 2


class Ran:
    """An instruction run on random memories, behind others where it needs them: bytes before and after, its counts."""

    def __init__(
        self,
        each: Instruction,
        prepare: Callable[[State], None] = lambda state: None,
        behind: Sequence[Instruction] = (),
    ) -> None:
        program = program_of([*behind, each], load_machine("c-step").with_changes(accumulator_bits=32))
        state = random_state(program, 5, 0.4)
        prepare(state)
        self.before = {name: region.copy() for name, region in state.regions().items()}
        (self.after, record), (after, _) = both_families(program, state, True)
        assert all(np.array_equal(region, after[name]) for name, region in self.after.items())
        self.record = {name: int(record[-1, column]) for name, column in RECORD._asdict().items()}

    def values(self, region: str, kind: str, address: int, *shape: int, after: bool = False) -> Integers:
        """Numbers that lie packed in a region, before the run or after it."""
        found = (self.after if after else self.before)[region][address:]
        return np.frombuffer(found.tobytes(), kind, int(np.prod(shape))).reshape(shape).astype(np.int64)

    def spikes(self, address: int, channels: int, *shape: int, after: bool = False) -> Integers:
        """Bits [*shape, channels] of spike words that lie packed."""
        words = -(-channels // 16)
        octets = self.values("spike", "u1", address, *shape, 2 * words, after=after).astype(np.uint8)
        return np.unpackbits(octets, axis=-1, bitorder="little")[..., :channels].astype(np.int64)

    def mask(self, address: int, channels: int, after: bool = False) -> Integers:
        """A channel mask as 0 or 1 a channel."""
        octets = self.values("channel", "u1", address, -(-channels // 16) * 2, after=after).astype(np.uint8)
        return np.unpackbits(octets, bitorder="little")[:channels].astype(np.int64)


def put(region: NDArray[np.uint8], address: int, values: Integers, kind: str) -> None:
    octets = values.astype(kind).view(np.uint8)
    region[address : address + len(octets)] = octets


def under_taps(image: Integers, kernel: int, stride: int, padding: int, outside: int = 0) -> Integers:
    """[steps, rows, columns, kernel * kernel, channels] of an image [steps, rows, columns, channels]."""
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    around = np.pad(image, edges, constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(around, (kernel, kernel), axis=(1, 2))
    taps = np.moveaxis(windows[:, ::stride, ::stride], 3, 5)
    return taps.reshape(*taps.shape[:3], -1, image.shape[3])


def window(inputs: int, pixel_bytes: int, side: int = 6, kernel: int = 3, stride: int = 1) -> dict[str, int]:
    """A square image under a square kernel with padding 1."""
    out = (side + 2 - kernel) // stride + 1
    return {
        "steps": STEPS, "rows": out, "columns": out, "input_rows": side, "input_columns": side,
        "kernel_rows": kernel, "kernel_columns": kernel, "stride": stride, "top": 1, "left": 1, "inputs": inputs,
        "pixel_stride": pixel_bytes, "step_stride": side * side * pixel_bytes,
    }  # fmt: skip
