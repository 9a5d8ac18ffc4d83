"""Random small Spikformers on random small machines: the whole pipeline, and not one integer differs.

Every example is imported, compiled with all comparisons (float64 up to quantisation, then the ONNX oracle, then the
emulator after each back-end pass), and lowered once more in the other schedule. What the long version found stands in
docs/random-spikformers.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from models import BACK_END, Shape, compiled, spikformer
from numpy.typing import NDArray

from compiler.check import CheckResult
from compiler.frontend.importer import import_model
from compiler.ir.network import Network
from compiler.pipeline import Compiled
from isa.errors import CStepError
from isa.machine import Machine, load_machine

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
SHORT = settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
LONG = settings(SHORT, max_examples=200, phases=[Phase.explicit, Phase.generate])

HEADS = {8: (1, 2, 4), 16: (1, 2, 4), 24: (1, 2, 3), 32: (1, 2, 4), 40: (1, 5), 48: (3, 4), 56: (7, 2), 64: (2, 8)}
BUFFERS = ("weight_buffer_bytes", "spike_buffer_bytes", "output_buffer_bytes", "constant_buffer_bytes")


@dataclass(frozen=True)
class Target:
    """A machine to compile for: the c-step with buffers `parts` times smaller, in the order of BUFFERS."""

    parts: tuple[int, int, int, int] = (1, 1, 1, 1)
    window: int = 2
    pairs: int = 4

    def machine(self, times: int) -> Machine:
        """The machine, with buffers that many times larger."""
        base = load_machine("c-step")
        least = (1024, 1024, 1024, 256)
        sizes = {
            name: min(getattr(base, name), max(floor, getattr(base, name) // part * times))
            for name, part, floor in zip(BUFFERS, self.parts, least, strict=True)
        }
        return base.with_changes(window=self.window, pairs=self.pairs, **sizes)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Sizes that divide into words and heads, and sizes that do not."""
    dims = draw(st.sampled_from(sorted(HEADS)))
    scale = draw(st.sampled_from([0.125, 0.25, 0.3]))
    return Shape(
        embed_dims=dims,
        num_heads=draw(st.sampled_from(HEADS[dims])),
        depths=draw(st.sampled_from([1, 1, 1, 2, 3])),
        timesteps=draw(st.integers(1, 6)),
        image=(
            draw(st.integers(1, 3)),
            4 * draw(st.integers(1, 5)),
            4 * draw(st.integers(1, 7)),
        ),
        classes=draw(st.integers(2, 12)),
        mlp_ratio=draw(st.sampled_from([1.0, 1.5, 2.0, 4.0])),
        tau=draw(st.sampled_from([2.0, 1.5, 3.0, 4.0, 1.25])),
        threshold=draw(st.sampled_from([1.0, 0.5, 0.7, 2.0])),
        attention_threshold=draw(st.sampled_from([1, 2, 3, 5])) * scale,
        attention_scale=scale,
        rate=draw(st.sampled_from([0.10, 0.15, 0.20, 0.25])),
        seed=draw(st.integers(0, 1000)),
    )


TARGETS = st.builds(
    Target,
    parts=st.tuples(*[st.sampled_from([1, 4, 16, 32, 64])] * 4),
    window=st.sampled_from([2, 2, 2, 1, 3]),
    pairs=st.sampled_from([4, 1, 2]),
)


def fitted(network: Network, images: NDArray[np.float32], target: Target, passes: str | None = None) -> Compiled:
    """Compile for the smallest multiple of the drawn buffers that the network fits at all."""
    for times in (1, 4, 16, 64):
        try:
            return compiled(network, images, machine=target.machine(times), passes=passes)
        except CStepError as error:
            if "buffers" not in str(error) or times == 64:
                raise
    raise AssertionError


def same_in_both_schedules(shape: Shape, target: Target) -> tuple[CheckResult, ...]:
    """All comparisons of one network; any difference raises."""
    model, images = spikformer(shape)
    network = import_model(model, torch.from_numpy(images[:1]))
    layers = fitted(network, images, target)
    windows = fitted(layers.integer, images, target, BACK_END.format("windows"))
    checks = (*layers.checks, *windows.checks)
    assert [check.name for check in checks if not check.compared] == ["import", "import"]
    return checks


@SHORT
@given(shapes(), TARGETS)
@example(Shape(embed_dims=24, num_heads=3, timesteps=5, image=(2, 12, 20), tau=1.5), Target((64, 32, 64, 32)))
@example(Shape(embed_dims=64, num_heads=8, timesteps=3, image=(3, 12, 28), mlp_ratio=4.0), Target((64, 16, 64, 32)))
def test_no_integer_differs(shape: Shape, target: Target) -> None:
    same_in_both_schedules(shape, target)


@pytest.mark.slow
def test_no_integer_differs_in_two_hundred_networks(capsys: pytest.CaptureFixture[str]) -> None:
    networks, compared = 0, 0

    @LONG
    @given(shapes(), TARGETS)
    def each(shape: Shape, target: Target) -> None:
        nonlocal networks, compared
        compared += sum(check.compared for check in same_in_both_schedules(shape, target))
        networks += 1

    each()
    with capsys.disabled():
        print(f"\n{networks} networks, {compared} currents and logits compared, 0 differ")
