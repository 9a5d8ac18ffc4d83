"""What a test or a report wants to see of every neuron: its input current and its spikes.

Both are read from the state around each `Fire`, by either kernel family: the current from the accumulators before it,
the spike from the result after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from isa.instructions import Fire, words_of
from isa.program import Program
from runtime.reference.neuron import fire_currents
from runtime.reference.spikes import bits_of, word_indices
from runtime.state import State


@dataclass
class Observation:
    """Currents int32 and spikes uint8 by layer index: [inputs, timesteps, rows * columns, channels].

    A neuron with `levels` has its level, 0..levels, for a spike. Spikes are those emitted: none of a muted timestep. A
    current without accumulators is the bias; of a channel that a mask leaves out it is not computed, and 0.
    """

    currents: dict[int, NDArray[np.int32]]
    spikes: dict[int, NDArray[np.uint8]]

    def of_input(self, number: int) -> Observation:
        """The part of one input, without the first dimension."""
        return Observation(
            {layer: values[number] for layer, values in self.currents.items()},
            {layer: values[number] for layer, values in self.spikes.items()},
        )


def empty_observation(program: Program, inputs: int) -> Observation:
    """Zeros for every layer that the source map names."""
    shapes: dict[int, tuple[int, ...]] = {}
    for layer in np.unique(program.source_map[:, 1]).tolist():
        neurons = program.header.layers[layer].neurons
        if neurons is None:
            raise CStepError(f"layer {layer}: the source map names its neurons, the layer table has none")
        shapes[layer] = (inputs, program.header.timesteps, neurons[0] * neurons[1], neurons[2])
    return Observation(
        {layer: np.zeros(shape, np.int32) for layer, shape in shapes.items()},
        {layer: np.zeros(shape, np.uint8) for layer, shape in shapes.items()},
    )


@dataclass
class Before:
    """What has to be read before a `Fire` runs: the result may overwrite the residual."""

    currents: NDArray[np.int64]
    residual: NDArray[np.int64]


def before_fire(each: Fire, state: State) -> Before:
    """Currents and residual values, [steps, pixels, outputs]."""
    return Before(fire_currents(each, state), _values(each, state, each.residual, each.residual_planes))


def after_fire(
    each: Fire, state: State, before: Before, seen: Observation, at: NDArray[np.int32], columns: int
) -> None:
    """Put what a `Fire` computed where its row `at` of the source map says; its layer has `columns` columns."""
    layer, step, row, column, channel = (int(value) for value in at[1:])
    first = row * columns + column
    here = (slice(step, step + each.steps), slice(first, first + each.pixels), slice(channel, channel + each.outputs))
    seen.currents[layer][here] = before.currents
    emitted = _values(each, state, each.result, each.planes) - before.residual
    seen.spikes[layer][here] = emitted if each.levels else emitted & 1


def _values(each: Fire, state: State, address: int, planes: int) -> NDArray[np.int64]:
    """A count train in the spike buffer, [steps, pixels, outputs]."""
    held = state.spike[: len(state.spike) // 2 * 2].view("<u2")
    strides, counts = (each.step_stride, each.pixel_stride), (each.steps, each.pixels)
    total = np.zeros((*counts, each.outputs), np.int64)
    for plane in range(planes):
        words = held[word_indices(address + plane * each.plane_stride, strides, counts, words_of(each.outputs))]
        total += bits_of(words, each.outputs).astype(np.int64) << plane
    return total
