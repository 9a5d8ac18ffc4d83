"""The emulator: two kernel families that agree, counts that add up, and a runtime that needs nobody else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from drawn import accumulates, accumulates_of_planes, fits
from drawn_units import KEPT, UNITS, sequences
from emulated import assert_agree, both_families, program_of, random_state
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from programs import small_program

from isa.errors import CStepError
from isa.instructions import Accumulate, Copy, End, Layer, Load, words_of
from isa.machine import Machine, load_machine
from isa.program import Program
from isa.word import Charge, Instruction, Sharing, Unit
from runtime.counters import COUNTERS, INDEX, Counters, count, static_counts
from runtime.decoded import PORTS, decoded
from runtime.energy import energy, energy_table, energy_tables
from runtime.fast.walk import Workspace
from runtime.fast.walk import walk as fast_walk
from runtime.interpreter import quantise_input, run
from runtime.record import RECORD
from runtime.reference.walk import walk as reference_walk
from runtime.state import State
from runtime.timeline import timeline

SLOW = [HealthCheck.filter_too_much, HealthCheck.too_slow]
DENSITIES = [0.02, 0.2, 0.5, 1.0]
MANY = settings(max_examples=300, deadline=None, suppress_health_check=SLOW, derandomize=True)

MACHINES = st.builds(
    lambda port, pairs, window, lanes, burst: load_machine("c-step").with_changes(
        accumulator_bits=32,
        weight_port=port,
        pairs=pairs,
        window=window,
        lanes=lanes[0],
        neuron_lanes=lanes[1],
        burst_bytes=burst,
    ),
    st.sampled_from(PORTS),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([(512, 64), (5, 16), (64, 7), (128, 100)]),
    st.sampled_from([64, 7, 16]),
)


@pytest.mark.parametrize("unit", UNITS)
def test_families_agree_on_one_instruction(unit: Unit) -> None:
    @MANY
    @given(UNITS[unit].filter(fits), MACHINES, st.integers(0, 99), st.sampled_from(DENSITIES), st.booleans())
    def agree(each: Instruction, machine: Machine, seed: int, density: float, share: bool) -> None:
        assert_agree([each], machine, seed, density, share)

    agree()


@pytest.mark.parametrize("unit", KEPT)
def test_families_agree_on_kept_tokens(unit: Unit) -> None:
    @settings(MANY, max_examples=100)
    @given(KEPT[unit], MACHINES, st.integers(0, 99), st.sampled_from(DENSITIES), st.booleans())
    def agree(code: list[Instruction], machine: Machine, seed: int, density: float, share: bool) -> None:
        assume(all(fits(each) for each in code))
        assert_agree(code, machine, seed, density, share)

    agree()


@MANY
@given(sequences(), MACHINES, st.integers(0, 99), st.sampled_from([0.02, 0.2, 0.5]), st.booleans())
def test_families_agree_on_several_layers_of_the_same_spikes(
    code: list[Instruction], machine: Machine, seed: int, density: float, share: bool
) -> None:
    assume(all(fits(each) for each in code))
    assert_agree(code, machine, seed, density, share)


@settings(MANY, max_examples=100)
@given(accumulates_of_planes(), MACHINES, st.integers(0, 99), st.sampled_from(DENSITIES), st.booleans())
def test_families_agree_on_the_planes_of_counts(
    code: list[Accumulate], machine: Machine, seed: int, density: float, share: bool
) -> None:
    """The fast family takes planes that follow each other together."""
    assume(all(fits(each) for each in code))
    assert_agree(list(code), machine, seed, density, share)


@settings(MANY, max_examples=40)
@given(accumulates().filter(lambda a: a.inputs <= 40 and fits(a)), st.integers(0, 99), st.booleans())
def test_accumulate_counts_by_hand(each: Accumulate, seed: int, share: bool) -> None:
    """Sets of (tap, channel) in plain Python: what every count of the record says."""
    machine = load_machine("c-step").with_changes(accumulator_bits=32)
    program = program_of([each], machine)
    state = random_state(program, seed, 0.3)
    spikes, channels, sharing_on = state.spike.copy(), state.channel.copy(), share and bool(each.sharing)
    (_, record), _ = both_families(program, state, share)
    found = {name: int(record[0, column]) for name, column in RECORD._asdict().items()}
    assert found == counts_by_hand(each, spikes, channels, sharing_on, machine)


def live(channels: NDArray[np.uint8], masked: int, mask: int, count: int) -> set[int]:
    """Channels that a mask has, or all."""
    return {c for c in range(count) if not masked or channels[mask + c // 8] >> c % 8 & 1}


def events_of(
    each: Accumulate, spikes: NDArray[np.uint8], rows: set[int], step: int, row: int, column: int
) -> set[tuple[int, int]]:
    """(tap, channel) of every spike under one output pixel, channels in `rows` only."""
    events: set[tuple[int, int]] = set()
    for tap in taps_inside(each, row, column):
        i, j = divmod(tap, each.kernel_columns)
        y, x = row * each.stride + i - each.top, column * each.stride + j - each.left
        pixel = each.spikes + step * each.step_stride + (y * each.input_columns + x) * each.pixel_stride
        events |= {(tap, c) for c in rows if spikes[pixel + c // 8] >> c % 8 & 1}
    return events


def taps_inside(each: Accumulate, row: int, column: int) -> set[int]:
    inside: set[int] = set()
    for i in range(each.kernel_rows):
        for j in range(each.kernel_columns):
            y, x = row * each.stride + i - each.top, column * each.stride + j - each.left
            if 0 <= y < each.input_rows and 0 <= x < each.input_columns:
                inside.add(i * each.kernel_columns + j)
    return inside


def counts_by_hand(
    each: Accumulate, spikes: NDArray[np.uint8], channels: NDArray[np.uint8], share: bool, machine: Machine
) -> dict[str, int]:
    rows = live(channels, each.masks_rows, each.row_mask, each.inputs)
    columns = live(channels, each.masks_columns, each.column_mask, each.outputs)
    outputs, passes = len(columns), len({c // machine.lanes for c in columns})
    accumulated = 4 * each.steps * each.rows * each.columns * outputs * (1 if each.fresh else 2)
    bits = common = pairs_with_common = read = words = 0
    cycles: dict[tuple[int, int], int] = {}
    for step in range(each.steps):
        corners = [(row, column) for row in range(each.rows) for column in range(0, each.columns, 2)]
        for number, (row, column) in enumerate(corners):
            left = events_of(each, spikes, rows, step, row, column)
            has_right = column + 1 < each.columns
            right = events_of(each, spikes, rows, step, row, column + 1) if has_right else set[tuple[int, int]]()
            taps = taps_inside(each, row, column) | (taps_inside(each, row, column + 1) if has_right else set[int]())
            bits += len(left) + len(right)
            common += len(left & right)
            pairs_with_common += bool(left & right)
            read += len({(tap, channel // 16) for tap, channel in left | right})
            words += len(taps) * words_of(each.inputs)
            merging = 2 if left & right else 0
            busy = len(left | right) + merging + 4 if share else len(left) + len(right) + 4
            round_number = (step // machine.window) * len(corners) + number // machine.pairs
            key = (round_number, 0)
            cycles[key] = max(cycles.get(key, 0), busy)
    fetched = bits - common if share else bits
    return dict.fromkeys(RECORD._asdict(), 0) | {
        "work": sum(cycles.values()) * (passes if each.masks_columns else 1),
        "sop_bit": bits * outputs,
        "sop_value": (bits * outputs) << each.plane,
        "common": common * outputs,
        "sop_union": (bits - common) * outputs,
        "merges": 2 * outputs * pairs_with_common if share else 0,
        "words_read": read,
        "words_skipped": words - read,
        "weight_buffer_bytes": fetched * outputs,
        "spike_buffer_bytes": 2 * read,
        "output_buffer_bytes": accumulated if each.masks_columns else 0,
    }


def random_inputs(program: Program, inputs: int) -> NDArray[np.int8]:
    wanted = program.header.input
    channels, height, width = wanted.shape
    shape = (inputs, wanted.steps, height, width, channels)
    return np.random.default_rng(3).integers(-127, 128, shape, np.int8)


def test_families_agree_on_a_whole_program() -> None:
    program = small_program()
    integers = random_inputs(program, 5)
    fast = run(program, integers, observe=True)
    reference = run(program, integers, kernels="reference", observe=True, workers=2)
    assert np.array_equal(fast.logits, reference.logits)
    assert np.array_equal(fast.counters.values, reference.counters.values)
    assert fast.currents and fast.spikes and reference.currents and reference.spikes
    for layer in fast.currents:
        assert fast.spikes[layer].any() and fast.currents[layer].any()
        assert np.array_equal(fast.currents[layer], reference.currents[layer])
        assert np.array_equal(fast.spikes[layer], reference.spikes[layer])


@pytest.mark.parametrize("narrow", [0, 1])
def test_levels_are_observed_beside_their_currents(narrow: int) -> None:
    """The second layer's neurons become levels of 0..3, from int32 or int16 currents."""
    program = small_program()
    levels = {"levels": 3, "planes": 2, "residual_planes": 0, "charge": Charge.NONE, "narrow": narrow, "shift": 2}
    code = (*program.code[:10], replace(program.code[10], **levels), *program.code[11:])
    for kernels in ("fast", "reference"):
        seen = run(replace(program, code=code), random_inputs(program, 3), kernels=kernels, observe=True)
        assert seen.currents and seen.spikes
        thresholds = program.memory[-12 - 32 : -12].view("<i4")
        level = np.clip(np.floor(seen.currents[1] / thresholds + 0.5), 0, 3)
        assert np.array_equal(seen.spikes[1], level) and len(np.unique(level)) == 4


def test_an_input_leaves_nothing_behind() -> None:
    program = small_program()
    integers, heard = random_inputs(program, 6), []
    together = run(program, integers, workers=3, progress=heard.append)
    assert heard == [1, 2, 3, 4, 5, 6]
    for number in range(len(integers)):
        alone = run(program, integers[number : number + 1])
        assert np.array_equal(alone.logits[0], together.logits[number])
        assert np.array_equal(alone.counters.values[0], together.counters.values[number])


def test_sharing_changes_counts_and_no_integer() -> None:
    program = small_program()
    integers = random_inputs(program, 4)
    shared, alone = run(program, integers), run(program, integers, share=False)
    assert np.array_equal(shared.logits, alone.logits)
    on, off = shared.counters.totals(), alone.counters.totals()
    for name in ("sop_dense", "sop_bit", "sop_value", "common", "sop_union", "mac", "neuron_updates"):
        assert np.array_equal(on[name], off[name])
    assert (on["common"] > 0).all()
    assert np.array_equal(on["sop_union"], on["sop_bit"] - on["common"])
    assert np.array_equal(on["sop_hw"], on["sop_union"] + on["merges"])
    assert np.array_equal(off["sop_hw"], off["sop_bit"]) and not off["merges"].any()


def test_infinite_bandwidth_never_waits_for_dram() -> None:
    program = small_program()
    integers = random_inputs(program, 2)
    usual = run(program, integers).counters
    machine = program.header.machine.with_changes(dram_gigabytes_per_second=float("inf"), dram_latency_cycles=0)
    ideal = run(replace(program, header=program.header.model_copy(update={"machine": machine})), integers).counters
    waits = [name for name in INDEX if name.endswith("_dram")]
    assert sum(usual.total(name).sum() for name in waits) > 0
    assert sum(ideal.total(name).sum() for name in waits) == 0
    assert (ideal.total("cycles") < usual.total("cycles")).all()


def test_cycles_of_a_unit_are_work_and_waiting() -> None:
    """No unit is busy and stalled for longer than the program runs, and the last one to end is never later."""
    totals = run(small_program(), random_inputs(small_program(), 3)).counters.totals()
    for unit in ("dma", "pe", "neuron", "sfu"):
        stalls = sum(values for name, values in totals.items() if name.startswith(f"stall_{unit}_"))
        assert (totals[f"busy_{unit}"] + stalls <= totals["cycles"]).all()


def test_a_wait_for_dma_is_split_between_transfer_and_order() -> None:
    """Two copies of 110 cycles; the PEs wait for the second one: its own 110 cycles are `dram`, the rest is order."""
    machine = load_machine("c-step").with_changes(dram_gigabytes_per_second=3.2, dram_latency_cycles=100)
    copies = {"traffic": 0, "blocks": 1, "rows": 1, "bytes": 64, "source": 0, "target": 0}
    strides = {f"{side}_{loop}_stride": 0 for side in ("dram", "buffer") for loop in ("block", "row")}
    load = Load(region=1, **copies, **strides)
    window = {"rows": 1, "columns": 2, "input_rows": 1, "input_columns": 2, "kernel_rows": 1, "kernel_columns": 1}
    places = {"spikes": 0, "weights": 0, "accumulators": 0, "pixel_stride": 2, "step_stride": 4}
    shape = {"steps": 1, "stride": 1, "top": 0, "left": 0, "inputs": 16, "outputs": 20, "plane": 0}
    waiting = Accumulate(wait=1 << Unit.DMA, fresh=1, sharing=Sharing.PAIR, **window, **places, **shape)
    program = program_of([load, replace(load, post=1 << Unit.PE), waiting, End()], machine)
    times = timeline(decoded(program), np.array([0, 0, 7, 0]))
    assert load.cost(machine).cycles(0) == 110
    assert times.stalls[0, Unit.PE].tolist() == [110, 0, 0, 0, 0, 110]
    assert times.busy[0].tolist() == [220, 14, 0, 0, 0] and times.cycles == 234


def test_a_missing_token_is_named() -> None:
    program = program_of([replace(Layer(index=0), wait=1)], load_machine("c-step"))
    with pytest.raises(CStepError, match="code word 0: layer waits for a token"):
        timeline(decoded(program), np.zeros(1, np.int64))


def test_every_static_count_has_a_definition() -> None:
    assert len(INDEX) == len(COUNTERS)
    assert all(counter.definition and counter.unit for counter in COUNTERS)
    for each in small_program().code:
        assert set(each.counts()) <= set(INDEX)
    assert set(RECORD._asdict()) - {"work", "partial_sums"} <= set(INDEX)


@pytest.mark.parametrize("name", energy_tables())
def test_energy_is_counts_times_table(name: str) -> None:
    counters, table = run(small_program(), random_inputs(small_program(), 2)).counters, energy_table(name)
    expected = np.zeros(counters.values.shape[:2])
    for entry in table.entries:
        for counter in entry.counters:
            expected += counters.values[:, :, INDEX[counter]] * entry.picojoules / entry.per
    assert np.allclose(energy(counters, table), expected, rtol=1e-12, atol=0) and expected.sum() > 0
    assert table.leaves_out and all(entry.source for entry in table.entries)


SUMMED = {"sop_dense", "sop_bit", "sop_value", "common", "sop_union", "merges", "copies"}
"""What would be done otherwise, or is part of sop_hw."""
LEFT_OUT = {"pool_taps": "pooling", "gates": "gates", "neuron_updates": "neuron updates"}


@pytest.mark.parametrize("name", energy_tables())
def test_every_operation_has_a_price_or_is_said_to_be_left_out(name: str) -> None:
    table = energy_table(name)
    priced = {counter for entry in table.entries for counter in entry.counters}
    for counter in COUNTERS:
        if counter.unit in ("operations", "bits") and counter.name not in priced | SUMMED:
            assert LEFT_OUT[counter.name] in table.leaves_out, counter.name


def test_counters_of_a_record_add_up() -> None:
    """Counting by hand over the records of a run gives the same totals."""
    program = small_program()
    shared, state = decoded(program), State.of(program)
    record = np.zeros((len(program.code), len(RECORD)), np.int64)
    fast_walk(shared, state, Workspace(shared), record, True)
    times = timeline(shared, record[:, RECORD.work])
    values = count(shared, static_counts(program), True, record, times)
    counters = Counters(("",) * shared.layers, values[None])
    static = sum(each.counts().get("dram_weight_bytes", 0) for each in program.code)
    assert counters.total("dram_weight_bytes")[0] == static > 0
    spike_bytes = sum(
        record[i, RECORD.dram_spike_bytes] for i, each in enumerate(program.code) if isinstance(each, Copy)
    )
    assert counters.total("dram_spike_bytes")[0] == spike_bytes
    assert times.cycles == counters.total("cycles")[0]


def test_addresses_outside_a_memory_are_refused() -> None:
    each = next(each for each in small_program().code if isinstance(each, Accumulate))
    program = program_of([replace(each, weights=65536)], load_machine("c-step"))
    with pytest.raises(CStepError, match=r"code word 0: accumulate: weights 65536.* leaves WEIGHT"):
        decoded(program)


def test_the_reference_family_sees_an_accumulator_too_wide() -> None:
    each = next(each for each in small_program().code if isinstance(each, Accumulate))
    machine = load_machine("c-step").with_changes(accumulator_bits=8)
    program = program_of([replace(each, fresh=1)], machine)
    state = random_state(program, 1, 1.0)
    state.weight[:] = 127
    with pytest.raises(CStepError, match=r"code word 0: accumulate: accumulators .* do not fit 8 bits"):
        reference_walk(decoded(program), state, np.zeros((1, len(RECORD)), np.int64), True)


def test_inputs_are_rounded_and_checked() -> None:
    program = small_program()
    wanted = program.header.input
    x = np.random.default_rng(0).normal(size=(2, *wanted.shape)).astype(np.float32)
    integers = quantise_input(program, x)
    assert integers.shape == (2, wanted.steps, *wanted.shape[1:], wanted.shape[0]) and integers.dtype == np.int8
    expected = np.clip(np.rint(x.astype(np.float64) / wanted.scale), -127, 127)
    assert np.array_equal(integers[:, 0].transpose(0, 3, 1, 2), expected)
    for wrong, said in ((x[:, :, 1:], "the program takes inputs x"), (x.astype(np.float64), "float32")):
        with pytest.raises(CStepError, match=said):
            quantise_input(program, wrong)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(CStepError, match="NaN"):
        quantise_input(program, x)
    with pytest.raises(CStepError, match="the program takes int8"):
        run(program, integers[:, :, 1:])


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("compiler", "xdsl", "torch"):
            raise ImportError("not here: " + name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, "tests")
from programs import small_program
from runtime.interpreter import run
import numpy as np
program = small_program()
channels, height, width = program.header.input.shape
print(run(program, np.ones((1, program.header.input.steps, height, width, channels), np.int8)).logits.tolist())
"""


def test_the_runtime_needs_neither_compiler_nor_torch() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    program = small_program()
    ones = np.ones_like(random_inputs(program, 1))
    assert done.stdout.strip() == str(run(program, ones).logits.tolist())
