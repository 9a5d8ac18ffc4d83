"""Every integer form that the back end takes, from text to the emulator: every current and logit is the module's."""

from __future__ import annotations

import numpy as np
import pytest
from exact import assert_exact
from forms import COLUMNS, FORMS, IMAGE_CHANNELS, ROWS, form
from numpy.typing import NDArray

from compiler.ir.meaning import Executor
from isa.instructions import Attend
from isa.machine import load_machine

WHOLE = load_machine("c-step")
TIGHT = WHOLE.with_changes(
    weight_buffer_bytes=5120, spike_buffer_bytes=5120, output_buffer_bytes=4096, constant_buffer_bytes=640
)


def images(name: str, timesteps: int) -> NDArray[np.float32]:
    """Two inputs of a form."""
    shape = (2, IMAGE_CHANNELS, ROWS, COLUMNS)
    if "events" in name:
        shape = (2, timesteps, IMAGE_CHANNELS, ROWS, COLUMNS)
    return np.random.default_rng(timesteps).standard_normal(shape, np.float32)


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_computes_the_same_integers_on_the_emulator(name: str, timesteps: int) -> None:
    """On the whole machine and in many tiles, by both kernel families, with a last window that is shorter."""
    x = images(name, timesteps)
    network = form(name, timesteps, x[0])
    for spikes in Executor(network).run(x[0]).spikes.values():
        assert 0.01 < (spikes > 0).mean() < 0.99, "a layer that always or never fires would prove little"
    for schedule in ("layers", "windows") if timesteps > 2 else ("layers",):
        assert_exact(network, x, schedule, WHOLE, "reference")
        assert_exact(network, x, schedule, TIGHT, "fast")


def test_heads_that_are_no_whole_words_lie_apart_where_all_do_not_fit() -> None:
    """Even where q, k and v of the next head cannot be loaded ahead."""
    name = "attention that fits head by head"
    x = images(name, 3)
    network = form(name, 3, x[0])
    for size in (1792, 1024):
        for schedule in ("layers", "windows"):
            program = assert_exact(network, x, schedule, TIGHT.with_changes(spike_buffer_bytes=size))
            assert {each.heads for each in program.code if isinstance(each, Attend)} == {1}
