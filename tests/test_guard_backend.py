"""Guards on the emulator: every current of a live channel and every logit is the module's, and work falls."""

from __future__ import annotations

import re

import numpy as np
import pytest
from exact import program_of
from forms import COLUMNS, FORMS, IMAGE_CHANNELS, ROWS, form
from models import compiled, digits
from numpy.typing import NDArray

from compiler.backend.group import plan_stages
from compiler.ir import spike
from compiler.ir.meaning import NEURONS, Executor, Run
from compiler.ir.network import Network, parse
from compiler.ir.operation import SpikeOperation
from compiler.passes.guard_channels import GuardChannels
from compiler.passes.hoist_invariant import HoistInvariant
from compiler.passes.insert_exits import InsertExits
from compiler.passes.mask_timesteps import MaskTimesteps
from compiler.passes.set_timesteps import SetTimesteps
from compiler.pipeline import DEFAULT_PASSES
from isa.errors import CStepError
from isa.instructions import Accumulate, Attend, Guard
from isa.machine import Machine, load_machine
from isa.program import Program
from runtime.interpreter import Kernels, RunResult, quantise_input, run

WHOLE = load_machine("c-step")
TIGHT = WHOLE.with_changes(
    weight_buffer_bytes=5120, spike_buffer_bytes=5120, output_buffer_bytes=4096, constant_buffer_bytes=640
)
T = 4


def images(name: str) -> NDArray[np.float32]:
    shape = (2, IMAGE_CHANNELS, ROWS, COLUMNS)
    if "events" in name:
        shape = (2, T, IMAGE_CHANNELS, ROWS, COLUMNS)
    return np.random.default_rng(len(name)).standard_normal(shape, np.float32)


def live(op: spike.Guard, seen: Run) -> NDArray[np.bool_]:
    """The channels of guarded neurons that fired early, by their own account."""
    owner = op.operands[0].owner
    assert isinstance(owner, SpikeOperation)
    early = seen.spikes[owner.label][: op.get("after")].astype(np.uint8)
    bits = np.unpackbits(early[..., None], axis=-1)
    return bits.sum((*range(early.ndim - 1), -1)) > op.get("threshold")


def without_silent(network: Network, seen: Run) -> Run:
    """What a program shows of a run: currents and spikes of neurons' late silent channels are 0."""
    for op in network.operations():
        if isinstance(op, spike.Guard) and op.get("skips") != "rows":
            label = op.operands[0].owner.label  # type: ignore[union-attr]
            late = live(op, seen)
            for values in (seen.currents, seen.spikes):
                values[label] = np.concatenate(
                    [values[label][: op.get("after")], values[label][op.get("after") :] * late]
                )
    return seen


def assert_exact(
    network: Network, x: NDArray[np.float32], schedule: str, machine: Machine = WHOLE, kernels: Kernels = "fast"
) -> tuple[Program, RunResult]:
    program, labels = program_of(network, x.shape[-3], schedule, machine)
    seen = run(program, quantise_input(program, x), kernels=kernels, observe=True)
    assert seen.currents is not None and seen.spikes is not None
    executor = Executor(network)
    for index, each in enumerate(x):
        expected = without_silent(network, executor.run(each))
        assert np.array_equal(expected.output, seen.logits[index])
        assert set(expected.currents) == set(labels.values())
        for layer, label in labels.items():
            for mine, its in ((expected.currents, seen.currents), (expected.spikes, seen.spikes)):
                rows = mine[label].reshape(-1, *its[layer].shape[2:])[: seen.steps[index]]
                assert np.array_equal(rows, its[layer][index][: len(rows)]), label
    return program, seen


def guarded(name: str, mode: str, after: int, threshold: int, x: NDArray[np.float32]) -> Network:
    return GuardChannels(mode=mode, after=after, threshold=threshold).apply(form(name, T, x[0]))


def silent(network: Network, x: NDArray[np.float32]) -> tuple[int, int]:
    """Silent channels of neurons that have a guard of columns, and all their channels."""
    found, total, seen = 0, 0, Executor(network).run(x)
    for op in network.operations():
        if isinstance(op, spike.Guard) and op.get("skips") != "rows":
            found += int((~live(op, seen)).sum())
            total += len(live(op, seen))
    return found, total


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a residual", "rows"),
        ("a residual", "columns"),
        ("groups of whole words", "both"),
        ("depthwise", "both"),
        ("levels with ties up, then even", "both"),
        ("max-pool of spikes and of counts", "rows"),
        ("attention with counts", "both"),
        ("streams added and pooled", "both"),
        ("Hadamard attention of events", "both"),
    ],
)
def test_a_guarded_form_computes_the_same_integers_on_the_emulator(name: str, mode: str) -> None:
    """In one tile a layer, in windows; and in many tiles, layer by layer, its first timestep on its own."""
    x = images(name)
    network = guarded(name, mode, 2, 20, x)
    assert mode == "rows" or 0 < silent(network, x[0])[0] < silent(network, x[0])[1]
    assert_exact(network, x, "windows", WHOLE, "reference")
    assert_exact(guarded(name, mode, 1, 9, x), x, "layers", TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rows", "columns", "both"])
@pytest.mark.parametrize("name", FORMS)
def test_every_guarded_form_computes_the_same_integers_on_the_emulator(name: str, mode: str) -> None:
    """By both kernel families, in both schedules, after 1, 2 and 3 timesteps."""
    x = images(name)
    for after, threshold, schedule in ((1, 9, "layers"), (2, 20, "windows"), (3, 25, "windows")):
        network = guarded(name, mode, after, threshold, x)
        assert_exact(network, x, schedule, WHOLE, "reference")
        assert_exact(network, x, schedule, TIGHT)


def together(name: str, seed: int, x: NDArray[np.float32]) -> Network:
    """A form with timestep masks, hoisting, guards and an exit after two timesteps, drawn at random."""
    random, network = np.random.default_rng(seed), form(name, T, x[0])
    layers = [op for op in network.operations() if isinstance(op, NEURONS)]
    masked = [f"{op.label}={random.choice(['1110', '1100', '1010'])}" for op in layers[1:-1] if random.random() < 0.5]
    for op in network.operations():
        if isinstance(op, spike.Linear) and (bias := op.symbol("bias")):
            network.weights[bias] = T * network.weights[bias].astype(np.int32)  # as `quantise` makes it
    mode, after = str(random.choice(["rows", "columns", "both"])), int(random.integers(1, 4))
    for each in (
        SetTimesteps(masks=tuple(masked)),
        MaskTimesteps(),
        HoistInvariant(),
        GuardChannels(mode=mode, after=after, threshold=9),
        InsertExits(after=(2,), tau=(float(random.choice([0.6, 0.99, 0.9999])),), variance=(0.5,)),
    ):
        network = each.apply(network)
    return network


@pytest.mark.filterwarnings("ignore:")
@pytest.mark.parametrize("name", ["a residual", "token attention", "streams added and pooled"])
def test_guards_stand_beside_masks_hoisting_and_exits(name: str) -> None:
    x = images(name)
    assert_exact(together(name, 1, x), x, "layers", TIGHT)
    assert_exact(together(name, 2, x), x, "windows", WHOLE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:")
@pytest.mark.parametrize("seed", range(3, 6))
@pytest.mark.parametrize("name", FORMS)
def test_guards_stand_beside_masks_hoisting_and_exits_in_every_form(name: str, seed: int) -> None:
    x = images(name)
    network = together(name, seed, x)
    for schedule in ("layers", "windows"):
        assert_exact(network, x, schedule, TIGHT, "reference")
        assert_exact(network, x, schedule, WHOLE)


def test_heads_that_lie_apart_have_masks_that_lie_apart() -> None:
    """A head of 17 channels begins at a spike word of its own, and so do its counts and its mask."""
    name = "attention that fits head by head"
    x = images(name)
    for schedule, size in (("windows", 1792), ("layers", 1024)):
        program, _ = assert_exact(
            guarded(name, "both", 1, 9, x), x, schedule, TIGHT.with_changes(spike_buffer_bytes=size)
        )
        assert {each.heads for each in program.code if isinstance(each, Attend)} == {1}
        assert any(isinstance(each, Guard) and each.channels == 17 for each in program.code)


@pytest.mark.parametrize("mode", ["rows", "columns", "both"])
def test_work_falls_with_what_is_silent(mode: str) -> None:
    """Weights that are not read, accumulations and neuron updates that are not made.

    Rows alone update all neurons; columns alone read all weights here, as runs of 34 bytes are single bursts.
    """
    name = "a residual"
    x = images(name)
    _, whole = assert_exact(form(name, T, x[0]), x, "windows")
    _, part = assert_exact(guarded(name, mode, 2, 20, x), x, "windows")
    for key in ("sop_bit", "cycles") if mode == "columns" else ("sop_bit", "cycles", "dram_weight_bytes"):
        assert (part.counters.total(key) < whole.counters.total(key)).all(), key
    updates = [result.counters.total("neuron_updates") for result in (whole, part)]
    assert (updates[0] == updates[1]).all() if mode == "rows" else (updates[0] > updates[1]).all()
    assert (part.counters.total("guard_compares") > 0).all() and (part.counters.total("guard_counts") > 0).all()
    assert (whole.counters.total("guard_compares") == 0).all() and (whole.counters.total("guard_counts") == 0).all()


def test_membranes_leave_the_chip_only_where_a_mask_waits_for_other_tiles() -> None:
    """Layer by layer, one tile of pixels has its mask in time; of several each ends its early timesteps first."""
    name = "a residual"
    x = images(name)
    for machine, spills in ((WHOLE, False), (TIGHT, True)):
        _, plain = assert_exact(form(name, T, x[0]), x, "layers", machine)
        _, seen = assert_exact(guarded(name, "columns", 2, 20, x), x, "layers", machine)
        assert not plain.counters.total("dram_membrane_bytes").any()
        assert (seen.counters.total("dram_membrane_bytes") > 0).all() == spills


def test_channels_may_all_be_silent_or_none() -> None:
    """A threshold that no count passes leaves no late spikes, one that every count passes all of them."""
    name = "a residual"
    x = images(name)
    network = form(name, T, x[0])
    nothing = GuardChannels(after=2, threshold=65534).apply(network)
    program, seen = assert_exact(nothing, x, "windows")
    assert seen.spikes is not None
    neurons = [index for index, layer in enumerate(program.header.layers) if layer.neurons]
    assert neurons and all(not seen.spikes[layer][:, 2:].any() for layer in neurons)
    for op in network.operations():  # every channel fires at once
        if isinstance(op, spike.IntegerLif):
            symbol = op.symbol("threshold")
            assert symbol is not None
            network.weights[symbol] = np.full_like(network.weights[symbol], -(1 << 20))
    everything = GuardChannels(after=2).apply(network)
    assert silent(everything, x[0])[0] == 0
    assert_exact(everything, x, "windows")


def test_one_count_and_one_mask_serve_neurons_and_their_readers() -> None:
    name = "groups of whole words"
    x = images(name)
    program, _ = assert_exact(guarded(name, "both", 2, 20, x), x, "windows")
    masks = [each.mask for each in program.code if isinstance(each, Guard)]
    read = {each.row_mask for each in program.code if isinstance(each, Accumulate) and each.masks_rows}
    assert len(masks) == len(set(masks)) and read <= {mask + 2 * word for mask in masks for word in range(4)}


def test_too_small_a_channel_buffer_names_the_layer_and_the_size_that_would_do() -> None:
    network, x = digits()
    passes = DEFAULT_PASSES.replace("lower-to-cstep", "guard-channels,lower-to-cstep")

    def build(size: int) -> None:
        compiled(network, x, machine=WHOLE.with_changes(channel_buffer_bytes=size), check=0, passes=passes)

    message = r"block\.\d[\w.]*: counts and masks .* has 256; channel_buffer_bytes=\d+ would do$"
    with pytest.raises(CStepError, match=message) as error:
        build(256)
    build(int(re.findall(r"channel_buffer_bytes=(\d+)", str(error.value))[-1]))


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ("%g = spike.guard %c after=1, skips=both : <5x7x34xcount<2>>", "g: skips=both stands right behind neurons"),
        ("%g = spike.guard %c after=1, skips=rows : <5x7x34xcount<2>>", "g: skips=rows is for convolutions"),
    ],
)
def test_a_guard_that_nothing_can_skip_is_refused(guard: str, message: str) -> None:
    x = images("events")
    network = form("events", T, x[0])
    text = network.text().replace(
        "%h.n = spike.reshape %c", guard.replace("<", "!spike.train<T=4, ", 1) + "\n%h.n = spike.reshape %g"
    )
    with pytest.raises(CStepError, match=message):
        plan_stages(Network(parse(text), network.weights))
