"""Time on the emulator: what is hoisted, masked or left early computes the module's integers, and costs less."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from exact import program_of
from forms import COLUMNS, EVENTS, FORMS, IMAGE, IMAGE_CHANNELS, ROWS, STEM, STREAM, network_of
from numpy.typing import NDArray
from xdsl.dialects.builtin import ArrayAttr, IntAttr

from compiler.ir import spike
from compiler.ir.meaning import NEURONS, Executor
from compiler.ir.network import Network
from compiler.ir.types import shaped
from compiler.passes.hoist_invariant import HoistInvariant
from compiler.passes.insert_exits import InsertExits
from compiler.passes.mask_timesteps import MaskTimesteps
from compiler.passes.set_timesteps import SetTimesteps
from isa.instructions import Accumulate, Exit, Fire, Multiply
from isa.logarithms import light_softmax
from isa.machine import Machine, load_machine
from isa.program import Program
from runtime.interpreter import Kernels, RunResult, quantise_input, run

T = 4
WHOLE = load_machine("c-step")
TIGHT = WHOLE.with_changes(
    weight_buffer_bytes=5120, spike_buffer_bytes=5120, output_buffer_bytes=4096, constant_buffer_bytes=640
)
NEVER = 1 << 47
"""A threshold that no logits reach."""
LIF = "multiplier=1, divisor=1"
HEAD = """
%h.s = spike.sum {value} axis=0 : <{channels}xacc>
%h.t = spike.sum_time %h.s : !spike.tensor<{channels}xacc>
%head = spike.linear %h.t, @head.w, @head.b : !spike.tensor<6xacc>
spike.output %head scale=0.1
"""
SHORT = (
    "%ct = spike.truncate %cn : !spike.train<T=2, 35x34xcount<2>>\n"
    "%f = spike.linear %ct, @f.w : !spike.train<T=2, 35x34xacc>\n"
    "%f.a = spike.align %f, @f.b shift=0 : !spike.train<T=2, 35x34xacc>\n"
    f"%y = spike.integer_lif %f.a, @f.t {LIF} : !spike.train<T=2, 35x34xi1>\n"
    "%e = spike.extend %y : <35x34xi1>\n"
)
"""Spikes %y of two timesteps, and %e, with zeros behind them."""
HANDMADE: dict[str, str] = {
    "a linear layer reads zeros at its end": IMAGE + STEM + SHORT + (
        "%g = spike.linear %e, @g.w : <35x34xacc>\n%g.a = spike.align %g, @g.b shift=0 : <35x34xacc>\n"
        f"%z = spike.integer_lif %g.a, @g.t {LIF} : <35x34xi1>\n%o = spike.add %z, %e : <35x34xcount<2>>\n"
    ) + HEAD.format(value="%o", channels=34),
    "pools, masks and sums of zeros at the end": IMAGE + STEM + SHORT + (
        "%ei = spike.reshape %e : <5x7x34xi1>\n"
        "%p = spike.max_pool %ei kernel=3, stride=1, padding=1 : <5x7x34xi1>\n"
        "%pn = spike.reshape %p : <35x34xi1>\n%m = spike.multiply %pn, %sn : <35x34xi1>\n"
        "%o = spike.add %m, %pn : <35x34xcount<2>>\n%i = spike.add %o, %cn : <35x34xcount<4>>\n"
    ) + HEAD.format(value="%i", channels=34),
    "attention of fewer keys in time": IMAGE + STEM + SHORT + (
        "%k = spike.attention %sn, %e, %un heads=2 : <35x34xacc>\n%k.a = spike.align %k, @k.b shift=0 : <35x34xacc>\n"
        f"%z = spike.integer_lif %k.a, @k.t {LIF} : <35x34xi1>\n%o = spike.add %z, %cn : <35x34xcount<3>>\n"
    ) + HEAD.format(value="%o", channels=34),
    "a stream to which less is added": IMAGE + STEM + STREAM + SHORT + (
        "%g = spike.linear %e, @g.w : <35x34xacc>\n%w = spike.rescale %g, @g.m, @g.b divisor=8 : <35x34xstr>\n"
        "%rt = spike.truncate %r : !spike.train<T=3, 5x7x34xstr>\n%re = spike.extend %rt : <5x7x34xstr>\n"
        "%rn = spike.reshape %re : <35x34xstr>\n%o = spike.add %w, %rn : <35x34xstr>\n"
        "%o.a = spike.align %o, @o.b shift=1 : <35x34xacc>\n"
        f"%z = spike.integer_lif %o.a, @o.t {LIF} : <35x34xi1>\n"
    ) + HEAD.format(value="%z", channels=34),
    "what is the same at every timestep is read as a train": IMAGE + (
        "%f = spike.conv %x.t, @f.w kernel=3, padding=1 : !spike.tensor<5x7x34xacc>\n"
        "%f.a = spike.align %f, @f.b shift=-2 : !spike.tensor<5x7x34xacc>\n"
        "%l = spike.integer_level %f.a, @f.t levels=3 : !spike.tensor<5x7x34xcount<3>>\n"
        "%lr = spike.repeat %l : <5x7x34xcount<3>>\n%ln = spike.reshape %lr : <35x34xcount<3>>\n"
        "%fr = spike.repeat %f : <5x7x34xacc>\n%r = spike.rescale %fr, @r.m, @r.b divisor=8 : <5x7x34xstr>\n"
        "%g = spike.conv %lr, @g.w kernel=3, padding=1 : <5x7x34xacc>\n"
        "%g.a = spike.align %g, @g.b shift=0 : <5x7x34xacc>\n"
        f"%s = spike.integer_lif %g.a, @g.t {LIF} : <5x7x34xi1>\n%sn = spike.reshape %s : <35x34xi1>\n"
        "%k = spike.attention %sn, %ln, %ln heads=2 : <35x34xacc>\n%k.a = spike.align %k, @k.b shift=0 : <35x34xacc>\n"
        f"%z = spike.integer_lif %k.a, @k.t {LIF} : <35x34xi1>\n%o = spike.add %z, %ln : <35x34xcount<4>>\n"
        "%r.a = spike.align %r, @ra.b shift=0 : <5x7x34xacc>\n"
        f"%v = spike.integer_lif %r.a, @ra.t {LIF} : <5x7x34xi1>\n%vn = spike.reshape %v : <35x34xi1>\n"
        "%i = spike.add %o, %vn : <35x34xcount<5>>\n"
    ) + HEAD.format(value="%i", channels=34),
    "neurons ahead of time, with holes in their masks": IMAGE + (
        "%f = spike.conv %x.t, @f.w kernel=3, padding=1 : !spike.tensor<5x7x34xacc>\n"
        "%f.a = spike.align %f, @f.b shift=-2 : !spike.tensor<5x7x34xacc>\n%f.r = spike.repeat %f.a : <5x7x34xacc>\n"
        f"%s = spike.integer_lif %f.r, @f.t {LIF}, mask=[0, 1, 0, 1] : <5x7x34xi1>\n"
        "%l = spike.integer_level %f.r, @l.t levels=3, mask=[1, 1, 0, 1] : <5x7x34xcount<3>>\n"
        "%o = spike.add %s, %l : <5x7x34xcount<4>>\n%on = spike.reshape %o : <35x34xcount<4>>\n"
    ) + HEAD.format(value="%on", channels=34),
}  # fmt: skip


def images(text: str) -> NDArray[np.float32]:
    shape = (2, IMAGE_CHANNELS, ROWS, COLUMNS)
    if EVENTS in text:
        shape = (2, T, IMAGE_CHANNELS, ROWS, COLUMNS)
    return np.random.default_rng(len(text)).standard_normal(shape, np.float32)


def made(text: str) -> tuple[Network, NDArray[np.float32]]:
    """A network whose head biases divide by any number of timesteps, and two inputs."""
    x = images(text)
    network = network_of(text, T, x[0])
    for op in network.operations():
        bias = op.symbol("bias") if isinstance(op, spike.Linear) else None
        if bias is not None:
            network.weights[bias] = 12 * network.weights[bias].astype(np.int32)
    return network, x


def masked(network: Network, *drawn: str) -> Network:
    """The network with these masks in turn, hoisted."""
    labels = [op.label for op in network.operations() if isinstance(op, NEURONS)]
    masks = tuple(f"{label}={drawn[index % len(drawn)]}" for index, label in enumerate(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = MaskTimesteps().apply(SetTimesteps(masks=masks).apply(network))
    return HoistInvariant().apply(found)


def with_exits(network: Network, x: NDArray[np.float32], after: tuple[int, ...]) -> Network:
    """The network with exits; each is taken by the inputs whose logits are surest there, by half of them or so."""
    found = InsertExits(after=after, tau=(0.5,) * len(after)).apply(network)
    (op,) = (each for each in found.operations() if isinstance(each, spike.Exit))
    op.properties["thresholds"] = ArrayAttr([IntAttr(NEVER)] * len(after))
    program, _ = program_of(found, x.shape[-3], "layers", WHOLE)
    decisions = run(program, quantise_input(program, x)).decisions
    assert decisions is not None
    measures = np.array([[light_softmax(each) for each in logits] for logits in decisions.tolist()])
    op.properties["thresholds"] = ArrayAttr([IntAttr(int(each)) for each in measures.max(0)])
    return found


def assert_same(
    network: Network, x: NDArray[np.float32], schedule: str, machine: Machine = WHOLE, kernels: Kernels = "fast"
) -> tuple[Program, RunResult]:
    """Every current and spike of the timesteps that ran, every logit, and how many timesteps ran, are the module's."""
    network.verify()
    program, labels = program_of(network, x.shape[-3], schedule, machine)
    seen = run(program, quantise_input(program, x), kernels=kernels, observe=True)
    assert seen.currents is not None and seen.spikes is not None
    executor = Executor(network)
    still = {op.label for op in network.operations() if op.results and shaped(op.results[0].type).steps is None}
    exits = {after for op in network.operations() if isinstance(op, spike.Exit) for after in op.get("after")}
    for index, each in enumerate(x):
        expected = executor.run(each)
        left = expected.steps in exits
        ran = expected.steps if left else program.header.timesteps
        assert seen.steps[index] == ran
        assert np.array_equal(expected.output, seen.logits[index])
        assert set(expected.currents) == set(labels.values())
        for layer, label in labels.items():
            for mine, its in ((expected.currents, seen.currents), (expected.spikes, seen.spikes)):
                values = mine[label][None] if label in still else mine[label][:ran]
                assert np.array_equal(values.ravel(), its[layer][index][: len(values)].ravel()), label
    return program, seen


def assert_same_everywhere(network: Network, x: NDArray[np.float32]) -> None:
    """In both schedules, on the whole machine and in many tiles, by both kernel families."""
    assert_same(network, x, "layers", WHOLE, "reference")
    assert_same(network, x, "windows", TIGHT, "fast")


@pytest.mark.parametrize("name", FORMS)
def test_a_hoisted_form_computes_the_same_integers(name: str) -> None:
    network, x = made(FORMS[name])
    assert_same_everywhere(HoistInvariant().apply(network), x)


MASKS = {
    "prefixes": ("1100", "1110", "1000", "1111"),
    "holes and nothing": ("1010", "1111", "0110", "0000", "1001"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_masked_form_computes_the_same_integers(name: str) -> None:
    network, x = made(FORMS[name])
    assert_same(masked(network, *MASKS["prefixes"]), x, "windows", TIGHT, "fast")
    assert_same(masked(network, *MASKS["holes and nothing"]), x, "layers", WHOLE, "reference")


@pytest.mark.slow
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", FORMS)
def test_a_masked_form_with_exits_computes_the_same_integers(name: str, masks: str) -> None:
    network, x = made(FORMS[name])
    less = masked(network, *MASKS[masks])
    assert_same_everywhere(less, x)
    steps = next(each.operand_type().steps for each in less.operations() if isinstance(each, spike.SumTime)) or 1
    if steps > 1:
        assert_same_everywhere(with_exits(less, x, (steps - 1,)), x)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_with_exits_computes_the_same_integers(name: str) -> None:
    """After any timesteps; of two inputs one leaves, at the latest at the last exit."""
    network, x = made(FORMS[name])
    hoisted = HoistInvariant().apply(network)
    schedule, machine = (("layers", TIGHT), ("windows", WHOLE))[len(name) % 2]
    _, seen = assert_same(with_exits(hoisted, x, (1, 3)), x, schedule, machine)
    assert seen.steps.min() in (1, 3)


@pytest.mark.parametrize("name", HANDMADE)
def test_trains_of_other_lengths_are_read_where_they_end(name: str) -> None:
    """Also what no pass makes: zeros that stand in front of a layer, and repeats that were not hoisted."""
    network, x = made(HANDMADE[name])
    for spikes in Executor(network).run(x[0]).spikes.values():
        assert 0 < (spikes > 0).mean() < 1
    assert_same_everywhere(network, x)
    assert_same_everywhere(with_exits(network, x, (1, 2, 3)), x)


RESIDUAL = FORMS["a residual"]


def of_layer(result: RunResult, name: str, layer: str) -> NDArray[np.int64]:
    return result.counters.by_layer(name)[:, result.counters.layers.index(layer)]


def totals(result: RunResult, name: str) -> NDArray[np.int64]:
    return result.counters.total(name)


def test_hoisting_multiplies_the_stem_once() -> None:
    network, x = made(RESIDUAL)
    for schedule in ("layers", "windows"):
        _, plain = assert_same(network, x, schedule)
        program, hoisted = assert_same(HoistInvariant().apply(network), x, schedule)
        each, once = (of_layer(result, "mac", "stem") for result in (plain, hoisted))
        assert (each == T * once).all() and once.all()
        assert (totals(hoisted, "cycles") < totals(plain, "cycles")).all()
        assert [each.steps for each in program.code if isinstance(each, Multiply)] == [1]
        assert not of_layer(hoisted, "dram_membrane_bytes", "stem").any()


def test_masked_layers_update_fewer_neurons_and_move_fewer_bytes() -> None:
    network, x = made(RESIDUAL)
    for schedule in ("layers", "windows"):
        _, whole = assert_same(network, x, schedule)
        _, less = assert_same(masked(network, "1111", "1111", "1100"), x, schedule)
        for name in ("neuron_updates", "sop_dense", "cycles", "dram_spike_bytes"):
            each, fewer = (of_layer(result, name, "f") for result in (whole, less))
            assert (fewer < each).all(), name
        each, half = (of_layer(result, "neuron_updates", "f") for result in (whole, less))
        assert (each == 2 * half).all()


def test_an_input_that_exits_costs_less_of_everything() -> None:
    network, x = made(RESIDUAL)
    for schedule in ("layers", "windows"):
        found = with_exits(network, x, (2,))
        program, seen = assert_same(found, x, schedule)
        assert sorted(seen.steps.tolist()) == [2, T]
        early, late = int(seen.steps.argmin()), int(seen.steps.argmax())
        for name in ("cycles", "dram_spike_bytes", "sop_bit", "mac", "neuron_updates", "dram_weight_bytes"):
            spent = totals(seen, name)
            assert spent[early] < spent[late], name
        assert (totals(seen, "exit_decisions") > 0).all()
        assert [each.steps for each in program.code if isinstance(each, Exit)] == [2]
        assert "head.exit.2" in seen.counters.layers


def test_events_of_timesteps_that_do_not_run_are_not_loaded() -> None:
    network, x = made(FORMS["events"])
    _, seen = assert_same(with_exits(network, x, (1,)), x, "layers")
    early, late = int(seen.steps.argmin()), int(seen.steps.argmax())
    loaded = totals(seen, "dram_image_bytes")
    assert loaded[late] == T * loaded[early] > 0


def test_windows_are_cut_where_something_ends() -> None:
    """No instruction works on timesteps of both sides of an exit, or of the end of what it reads."""
    network, x = made(RESIDUAL)
    program, _ = program_of(with_exits(network, x, (1,)), x.shape[-3], "layers", WHOLE)
    steps = [(each.steps, each.start) for each in program.code if isinstance(each, Fire)]
    assert [count for count, start in steps if start] == [1] * sum(start for _, start in steps)
    short, _ = program_of(masked(network, "1111", "1110", "1111"), x.shape[-3], "layers", WHOLE)
    assert {each.steps for each in short.code if isinstance(each, Accumulate)} == {1, 2}
