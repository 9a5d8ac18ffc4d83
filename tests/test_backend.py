"""What is conserved: integers whatever the schedule, sharing or machine; every count against another source."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import BACK_END, Shape, compiled, digits, spikformer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compiler.backend.allocate import allocate
from compiler.backend.lower import lower
from compiler.backend.stages import AttentionStage, Geometry, Neurons
from compiler.backend.tile import EndDemand, choose_pool
from compiler.backend.tile_attention import choose_attention
from compiler.backend.tile_weighted import latency_bytes
from compiler.frontend.importer import import_model
from compiler.ir import spike
from compiler.ir.cstep import InstructionOp, LayerOp
from compiler.ir.meaning import MEANINGS
from compiler.ir.network import Network
from isa.errors import CStepError
from isa.instructions import Load, Store
from isa.machine import Machine, load_machine
from isa.program import Program, save
from isa.word import Traffic
from runtime.counters import INDEX
from runtime.interpreter import RunResult, quantise_input, run

IMAGES = 3
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """An integer network, its program in both schedules, and what a few images gave."""

    integer: Network
    layers: Program
    windows: Program
    images: NDArray[np.float32]
    integers: NDArray[np.int8]
    result: RunResult

    @classmethod
    def of(cls, network: Network, images: NDArray[np.float32], machine: Machine) -> Case:
        layers = compiled(network, images, machine=machine, check=0)
        windows = compiled(layers.integer, images, machine=machine, check=0, passes=BACK_END.format("windows"))
        integers = quantise_input(layers.program, images[:IMAGES])
        result = run(layers.program, integers, observe=True)
        return cls(layers.integer, layers.program, windows.program, images[:IMAGES], integers, result)


def small(shape: Shape) -> tuple[Network, NDArray[np.float32]]:
    model, images = spikformer(shape)
    return import_model(model, torch.from_numpy(images[:1])), images


ODD = Shape(embed_dims=24, num_heads=3, timesteps=5, image=(2, 12, 20), tau=1.5, classes=7, seed=3)
TIGHT = {"weight_buffer_bytes": 5120, "spike_buffer_bytes": 2048, "output_buffer_bytes": 4096}


@pytest.fixture(scope="module", params=["digits", "odd", "odd and tight"])
def case(request: pytest.FixtureRequest) -> Case:
    """The trained digits network, one of odd sizes, and that one on a machine that it does not fit in one tile."""
    machine = load_machine("c-step")
    if request.param == "digits":
        return Case.of(*digits(), machine)
    return Case.of(*small(ODD), machine.with_changes(**TIGHT) if "tight" in request.param else machine)


@pytest.fixture(scope="module")
def odd() -> Case:
    return Case.of(*small(ODD), load_machine("c-step"))


def same_integers(left: RunResult, right: RunResult) -> bool:
    """Logits, currents and spikes."""
    assert left.currents and right.currents and left.spikes and right.spikes
    return np.array_equal(left.logits, right.logits) and all(
        np.array_equal(left.currents[layer], right.currents[layer])
        and np.array_equal(left.spikes[layer], right.spikes[layer])
        for layer in left.currents
    )


def test_sharing_changes_counts_and_no_integer(case: Case) -> None:
    alone = run(case.layers, case.integers, share=False, observe=True)
    assert same_integers(case.result, alone)
    on, off = case.result.counters.totals(), alone.counters.totals()
    for name in ("sop_dense", "sop_bit", "sop_value", "common", "sop_union", "mac", "neuron_updates", "pool_taps"):
        assert np.array_equal(on[name], off[name]), name
    assert (on["common"] > 0).all()
    assert np.array_equal(on["sop_union"], on["sop_bit"] - on["common"])
    assert np.array_equal(on["sop_hw"], on["sop_union"] + on["merges"])
    assert np.array_equal(off["sop_hw"], off["sop_bit"])
    assert not off["merges"].any()


def test_a_program_compiled_without_sharing_counts_as_one_run_without(odd: Case) -> None:
    passes = "lower-to-cstep{share=false},allocate,synchronise"
    program = compiled(odd.integer, odd.images, check=0, passes=passes).program
    alone = run(odd.layers, odd.integers, share=False)
    assert np.array_equal(run(program, odd.integers).counters.values, alone.counters.values)


def test_both_schedules_give_the_same_integers_and_operations(case: Case) -> None:
    windows = run(case.windows, case.integers, observe=True)
    assert case.windows.header.layers == case.layers.header.layers
    assert same_integers(case.result, windows)
    for name in ("sop_dense", "sop_bit", "sop_value", "neuron_updates", "pool_taps"):
        assert np.array_equal(case.result.counters.by_layer(name), windows.counters.by_layer(name)), name


def test_membranes_leave_the_chip_only_between_windows(case: Case) -> None:
    spilled = run(case.windows, case.integers).counters.total("dram_membrane_bytes")
    assert not case.result.counters.total("dram_membrane_bytes").any()
    assert (spilled > 0).all()
    neurons = sum(rows * columns * channels for rows, columns, channels in neuron_shapes(case.windows))
    for op in case.integer.operations():
        if isinstance(op, spike.IntegerLif) and isinstance(op.operands[0].owner, spike.Repeat):
            neurons -= prod(op.result_type.sizes)  # hoisted: they fire for all timesteps in the first window
    heads = [op for op in case.integer.operations() if isinstance(op, spike.Linear) and op.label == "head"]
    features = 4 * heads[0].operand_type().sizes[-1]
    between = -(-case.windows.header.timesteps // case.windows.header.machine.window) - 1
    assert (spilled == 2 * between * (2 * neurons + features)).all()  # stored and loaded, int16 and int32


def neuron_shapes(program: Program) -> list[tuple[int, int, int]]:
    return [layer.neurons for layer in program.header.layers if layer.neurons is not None]


def test_both_kernel_families_agree_on_every_counter(case: Case) -> None:
    for program in (case.layers, case.windows):
        fast, reference = (
            run(program, case.integers[:1], kernels=kernels, observe=True) for kernels in ("fast", "reference")
        )
        assert same_integers(fast, reference)
        for name in INDEX:
            assert np.array_equal(fast.counters.by_layer(name), reference.counters.by_layer(name)), name


def test_infinite_bandwidth_never_waits_for_dram(case: Case) -> None:
    machine = case.layers.header.machine.with_changes(dram_gigabytes_per_second=float("inf"), dram_latency_cycles=0)
    for program in (case.layers, case.windows):
        header = program.header.model_copy(update={"machine": machine})
        usual, ideal = (run(each, case.integers).counters for each in (program, replace(program, header=header)))
        waits = [name for name in INDEX if name.endswith("_dram")]
        assert sum(usual.total(name).sum() for name in waits) > 0
        assert sum(ideal.total(name).sum() for name in waits) == 0
        assert (ideal.total("cycles") < usual.total("cycles")).all()


@torch.no_grad()
def layer_inputs(case: Case, image: int) -> dict[str, tuple[Any, Tensor, Tensor]]:
    """By label: each weighted layer of the integer module, its input and its weight, both as float32."""
    values: dict[Any, Tensor] = {}
    found: dict[str, tuple[Any, Tensor, Tensor]] = {}

    def weight(name: str) -> Tensor:
        return torch.from_numpy(case.integer.weights[name]).to(torch.int64)

    for op in case.integer.operations():
        if isinstance(op, spike.Input):
            values[op.results[0]] = torch.from_numpy(case.images[image])
        elif not isinstance(op, spike.Output):
            operands = [values[operand] for operand in op.operands]
            if isinstance(op, spike.Conv | spike.Linear) and op.result_type.steps is not None:
                found[op.label] = op, operands[0].float(), weight(str(op.symbol("weight"))).float()
            values[op.results[0]] = MEANINGS[type(op)](op, weight, *operands)
    return found


def product(op: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The layer as torch computes it: [T, H, W, C] or [T, N, C]."""
    if isinstance(op, spike.Linear):
        return functional.linear(x, weight)
    return functional.conv2d(x.permute(0, 3, 1, 2), weight, None, op.get("stride"), op.get("padding"))


def test_counts_are_those_of_the_layers(case: Case) -> None:
    """Dense: all inputs set, zero padding taking nothing. Value: the spikes there are. Images: multiplications."""
    for image in range(IMAGES):
        for label, (op, x, weight) in layer_inputs(case, image).items():
            counted = {
                name: int(case.result.counters.by_layer(name)[image, case.result.counters.layers.index(label)])
                for name in ("sop_dense", "sop_value", "sop_bit", "mac")
            }
            dense = int(product(op, torch.ones_like(x), torch.ones_like(weight)).double().sum())
            if op.operand_type().element.bounds[0] < 0:
                assert counted == {"sop_dense": 0, "sop_value": 0, "sop_bit": 0, "mac": dense}, label
                continue
            bits = sum((x.int() >> plane & 1).float() for plane in range(4))
            assert isinstance(bits, Tensor)
            assert counted == {
                "sop_dense": dense,
                "sop_value": int(product(op, x, torch.ones_like(weight)).double().sum()),
                "sop_bit": int(product(op, bits, torch.ones_like(weight)).double().sum()),
                "mac": 0,
            }, label


def test_spikingjelly_counts_the_same_synaptic_operations(case: Case) -> None:
    """`sop_bit` on layers of {0, 1} spikes is what SpikingJelly's SynOpCounter counts."""
    counting = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="spikingjelly is not installed")
    binary = {layer.name for layer in case.layers.header.layers if layer.binary}
    compared = 0
    for image in range(IMAGES):
        for label, (op, x, weight) in layer_inputs(case, image).items():
            if label in binary:
                counter = counting.SynOpCounter()
                with counting.DispatchCounterMode([counter]), torch.no_grad():
                    product(op, x, weight)
                index = case.result.counters.layers.index(label)
                assert counter.get_total() == case.result.counters.by_layer("sop_bit")[image, index], label
                compared += 1
    assert compared >= 3 * IMAGES


BUFFERS = ("weight_buffer_bytes", "spike_buffer_bytes", "output_buffer_bytes", "constant_buffer_bytes")


WEIGHTED = ("conv", "linear", "depthwise")


def dram_time(network: Network, machine: Machine, schedule: str) -> int | None:
    """Bytes before compression, and what DRAM could have moved while copies waited, over all weighted layers.

    Of a program with addresses; None where the network does not fit.
    """
    try:
        lowered = lower(network, machine, schedule)
    except CStepError as error:
        if "buffers" not in str(error):
            raise
        return None
    allocate(lowered, machine)  # what a tiling fits, the allocator must place
    time, operation = 0, ""
    for op in lowered.operations():
        if isinstance(op, LayerOp):
            operation = op.get("operation")
        elif isinstance(op, InstructionOp) and op.INSTRUCTION in (Load, Store) and operation in WEIGHTED:
            moved = op.field_value("blocks") * op.field_value("rows") * op.field_value("bytes")
            time += moved + latency_bytes(machine)
    return time


@pytest.mark.parametrize("buffer", BUFFERS)
def test_dram_time_does_not_grow_when_a_buffer_does(buffer: str, odd: Case) -> None:
    machine = load_machine("c-step").with_changes(**TIGHT, constant_buffer_bytes=512)
    sizes = [int(1024 * 1.8**power) for power in range(8)]
    if buffer == "constant_buffer_bytes":
        sizes = [256, 320, 384, 512, 1024, 4096]
    for schedule in ("layers", "windows"):
        spent = [dram_time(odd.integer, machine.with_changes(**{buffer: size}), schedule) for size in sizes]
        fitting = [each for each in spent if each is not None]
        assert spent[len(spent) - len(fitting) :] == fitting, "a larger buffer must hold what a smaller one held"
        assert len(fitting) > 3
        assert all(before >= after for before, after in pairwise(fitting)), (schedule, spent)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.tuples(*[st.integers(11, 15).flatmap(lambda power: st.integers(1 << power, 2 << power))] * 3),
    constants=st.integers(300, 2000),
    grown=st.sampled_from(BUFFERS),
    times=st.sampled_from([1.05, 1.5, 2, 3]),
    schedule=st.sampled_from(["layers", "windows"]),
)
def test_dram_time_does_not_grow_on_machines_of_any_size(
    odd: Case, sizes: tuple[int, int, int], constants: int, grown: str, times: float, schedule: str
) -> None:
    machine = load_machine("c-step").with_changes(**dict(zip(BUFFERS, (*sizes, constants), strict=True)))
    before = dram_time(odd.integer, machine, schedule)
    larger = machine.with_changes(**{grown: min(int(getattr(machine, grown) * times), 1 << 17)})
    after = dram_time(odd.integer, larger, schedule)
    assert before is None or (after is not None and after <= before)


def test_measured_bytes_are_those_of_the_copies(case: Case) -> None:
    """Nothing but spikes is compressed, and no class of bytes is counted twice or not at all."""
    for program in (case.layers, case.windows):
        counters = run(program, case.integers).counters
        copies = [each for each in program.code if isinstance(each, Load | Store)]
        for traffic in Traffic:
            moved = sum(each.blocks * each.rows * each.bytes for each in copies if each.traffic == traffic)
            measured = counters.total(f"dram_{traffic.name.lower()}_bytes")
            if traffic == Traffic.SPIKE:
                assert (measured <= moved).all()
            else:
                assert (measured == moved).all(), traffic


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("compiler", "xdsl", "torch"):
            raise ImportError("not here: " + name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from isa.program import load
from runtime.interpreter import run
result = run(load(sys.argv[1]), np.load(sys.argv[2]))
np.savez(sys.argv[3], logits=result.logits, counters=result.counters.values)
"""


def test_a_program_file_runs_where_there_is_no_compiler(odd: Case, tmp_path: Path) -> None:
    """The file alone gives the same logits and counts: the runtime needs neither compiler, nor xdsl, nor torch."""
    save(odd.windows, tmp_path / "odd.cstep")
    np.save(tmp_path / "x.npy", odd.integers)
    files = [str(tmp_path / name) for name in ("odd.cstep", "x.npy", "result.npz")]
    done = subprocess.run([sys.executable, "-c", ALONE, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = run(odd.windows, odd.integers)
    with np.load(files[2]) as there:
        assert np.array_equal(there["logits"], here.logits)
        assert np.array_equal(there["counters"], here.counters.values)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 5])
def test_any_number_of_timesteps_fills_windows_or_does_not(timesteps: int) -> None:
    """A last window of one timestep, and a network that is shorter than a window."""
    network, images = small(Shape(timesteps=timesteps, image=(1, 12, 8), seed=timesteps))
    compiled(compiled(network, images).integer, images, passes=BACK_END.format("windows"))


def attention_tiles(machine: Machine) -> tuple[int, int]:
    """Tiles of queries and of heads for 280 tokens in 8 heads of 16 channels."""
    neurons = Neurons("a", np.zeros(128, np.int32), np.ones(128, np.int32), 0, 0, "lif", 1, 1, False)
    stage = AttentionStage("a", "model.py:1", (), None, neurons, None, 8, 280, 280, 16, 16, False)
    end = EndDemand(planes=1, adds=False, has_membrane=True, spill=False, steps=4, window=2)
    tiling = choose_attention(stage, (1, 1, 1), end, machine, heads_apart=False)
    return -(-280 // tiling.queries), 8 // tiling.heads


def test_room_for_more_heads_is_not_paid_with_keys_loaded_again() -> None:
    """More heads at once would leave room for fewer queries, and each tile of queries loads all keys and values."""
    machine = load_machine("c-step").with_changes(spike_buffer_bytes=32768, output_buffer_bytes=12288)
    few, many = (machine.with_changes(constant_buffer_bytes=size) for size in (475, 8192))
    assert attention_tiles(few) == attention_tiles(many)


def test_room_for_more_channels_is_not_paid_with_rows_loaded_again() -> None:
    """A pool's tiles of rows overlap; its tiles of channels do not."""
    geometry = Geometry(14, 14, 28, 28, 3, 2, 1)
    assert choose_pool(8, geometry, lambda words, rows: words * (2 * rows + 1) <= 30, "pool") == (1, 14)
