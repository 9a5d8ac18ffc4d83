"""What lies in DRAM between stages: trains, streams, and the input."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from isa.instructions import SPIKE_WORD_BYTES, SPIKES_PER_WORD, words_of


@dataclass(frozen=True)
class TrainInfo:
    """A spike or count train in DRAM."""

    label: str
    steps: int
    pixels: int
    channels: int
    planes: int
    run: int = 0
    """Channels that begin at a spike word of their own (a head's); 0 for all of them."""
    is_still: bool = False
    """Whether its one timestep stands for every timestep."""

    @property
    def words(self) -> int:
        """Spike words a pixel."""
        return self.channels // self.run * words_of(self.run) if self.run else words_of(self.channels)

    def words_at(self, channels: tuple[int, int]) -> tuple[int, int]:
        """First word and words of some channels, (first, count), of which the first begins a word."""
        first, count = channels
        if not self.run:
            return first // SPIKES_PER_WORD, words_of(count)
        begins = first // self.run * words_of(self.run) + first % self.run // SPIKES_PER_WORD
        return begins, count // self.run * words_of(self.run) + words_of(count % self.run)

    @property
    def pixel_bytes(self) -> int:
        return self.words * SPIKE_WORD_BYTES

    @property
    def step_bytes(self) -> int:
        return self.pixels * self.pixel_bytes

    @property
    def plane_bytes(self) -> int:
        return self.steps * self.step_bytes

    @property
    def bytes(self) -> int:
        return self.planes * self.plane_bytes


@dataclass(frozen=True)
class StreamInfo:
    """Integers in DRAM, [step][pixel][channel]: a fixed-point stream of int16 or int8, or the int8 input."""

    label: str
    steps: int
    pixels: int
    channels: int
    value_bytes: int
    is_still: bool = False
    """Whether its one timestep stands for every timestep."""

    @property
    def pixel_bytes(self) -> int:
        return self.channels * self.value_bytes

    @property
    def step_bytes(self) -> int:
        return self.pixels * self.pixel_bytes

    @property
    def bytes(self) -> int:
        return self.steps * self.step_bytes


@dataclass(frozen=True)
class ImageInfo:
    """The input in DRAM: int8 [steps][pixel][channel]; one step for an image."""

    kind: str
    steps: int
    shape: tuple[int, int, int]
    """Channels, height, width."""
    scale: float

    @property
    def bytes(self) -> int:
        return self.steps * prod(self.shape)

    @property
    def is_still(self) -> bool:
        """Whether it is the same at every timestep."""
        return self.kind == "image"

    @property
    def values(self) -> StreamInfo:
        channels, height, width = self.shape
        return StreamInfo("input", self.steps, height * width, channels, 1, self.is_still)
