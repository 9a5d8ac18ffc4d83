"""How deep tokens go: which of them a program let through its blocks, input by input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Halt, KeepBelow, KeepTop
from isa.program import Program
from runtime.decoded import decoded
from runtime.interpreter import Machinery
from runtime.state import State

Chooses = KeepTop | KeepBelow


@dataclass(frozen=True, eq=False)
class Depths:
    """What was kept of B inputs, and where the tokens lie."""

    blocks: tuple[str, ...]
    """What chose, in program order: a layer of the layer table each, in front of a block."""
    kept: NDArray[np.uint8]
    """[B, blocks, T, tokens]; 0 where a timestep did not run."""
    halts: bool
    """Whether tokens halt: then all of them go through one block more, the first."""
    rows: int
    columns: int

    @property
    def depth(self) -> NDArray[np.int64]:
        """[B, T, tokens]: the blocks that a token went through: of those that choose, and the first where it halts."""
        return self.kept.sum(axis=1, dtype=np.int64) + int(self.halts)

    @property
    def most(self) -> int:
        """Blocks that a token can go through."""
        return len(self.blocks) + int(self.halts)


def chooses_tokens(program: Program) -> bool:
    """Whether a program lets only some tokens through a block, by what it sees of them."""
    return any(isinstance(each, Chooses) for each in program.code)


def depths_of(program: Program, integers: NDArray[np.int8], progress: Callable[[int], None] | None = None) -> Depths:
    """Run a program on int8 inputs (see `quantise_input`), and look at every choice of tokens.

    Raises CStepError for a program that makes none, and where blocks choose among different numbers of tokens.
    """
    shared = decoded(program)
    at = {index: each for index, each in enumerate(program.code) if isinstance(each, Chooses)}
    if not at:
        raise CStepError("no tokens are stopped or halted in this program; there is no depth to look at")
    layers = sorted({int(shared.layer[index]) for index in at})
    tokens = {each.tokens for each in at.values()}
    if len(tokens) > 1:
        several = ", ".join(map(str, sorted(tokens)))
        raise CStepError(
            f"blocks choose among {several} tokens; a depth is that of one token through blocks of one size"
        )
    count, steps = tokens.pop(), program.header.timesteps
    kept = np.zeros((len(integers), len(layers), steps, count), np.uint8)
    machinery = Machinery(program, "fast", True)
    decisions = np.zeros((len(shared.decides), program.header.output.classes), np.int64)
    for number, each in enumerate(integers):
        watched = _Watched(kept[number], layers, shared.layer)
        machinery.run(each, None, decisions, {index: watched.after(index, choice) for index, choice in at.items()})
        if progress:
            progress(number + 1)
    _, height, width = program.header.input.shape
    rows = max((n for n in range(1, count + 1) if count % n == 0), key=lambda n: -abs(n * n * width - count * height))
    names = tuple(program.header.layers[layer].name for layer in layers)
    return Depths(names, kept, any(isinstance(each, Halt) for each in program.code), rows, count // rows)


class _Watched:
    """Collects the kept trains of one input, timestep after timestep."""

    def __init__(self, kept: NDArray[np.uint8], layers: list[int], layer_of: NDArray[np.int64]) -> None:
        self.kept, self.layers, self.layer_of = kept, layers, layer_of
        self.steps = [0] * len(layers)

    def after(self, index: int, choice: Chooses) -> Callable[[State], None]:
        """What to do behind a choice."""

        def look(state: State) -> None:
            place, size = self.layers.index(int(self.layer_of[index])), 2 * choice.steps * choice.tokens
            words = state.spike[choice.kept : choice.kept + size].view("<u2").reshape(choice.steps, choice.tokens)
            first = self.steps[place]
            self.kept[place, first : first + choice.steps] = words & 1
            self.steps[place] += choice.steps

        return look
