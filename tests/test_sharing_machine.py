"""Sharing beyond pairs as the machine executes it: the same integers, both families alike, every count in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import accumulate_sides, channel_masks, fits, pairings, windows
from emulated import both_families, copy_of, program_of, random_state
from families import FAMILIES
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models import Shape, spikformer
from numpy.typing import NDArray
from programs import small_program

import cstep
from compiler.backend.tile_weighted import LONGER
from compiler.passes.factor_common_spikes import FactorCommonSpikes
from compiler.pipeline import parse_passes
from isa.errors import CStepError
from isa.instructions import Accumulate, Pair
from isa.machine import Machine, load_machine
from isa.program import Program
from isa.verify import verify
from isa.word import Instruction, Sharing
from runtime.interpreter import Kernels, quantise_input, run
from runtime.record import RECORD
from runtime.sharing.prefix import prefix
from runtime.sharing.reuse import Bits
from runtime.sharing.schedule import ROW_CYCLES, schedule
from runtime.sharing.spent import spent
from runtime.sharing.windows import Pairing, windows_of

REUSING = tuple(mode for mode in Sharing if mode > Sharing.PAIR)
SLOW = [HealthCheck.filter_too_much, HealthCheck.too_slow]
MANY = settings(max_examples=150, deadline=None, suppress_health_check=SLOW, derandomize=True)
DENSITIES = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])

MACHINES = st.builds(
    lambda pairs, window, lanes, rows, sums, narrow, wide, matching: load_machine("c-step-reuse").with_changes(
        accumulator_bits=32, pairs=pairs, window=window, lanes=lanes, reuse_rows=rows, reuse_sums=max(sums, rows),
        prefix_channels=narrow, forest_channels=wide, matching_bits=matching,
    ),
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([5, 16, 512]), st.sampled_from([8, 24, 256]),
    st.sampled_from([8, 64]), st.sampled_from([0, 3, 16]), st.sampled_from([0, 7, 40]), st.sampled_from([1, 64, 4096]),
)  # fmt: skip


@st.composite
def reusing(draw: st.DrawFn) -> list[Instruction]:
    """An Accumulate of any mode beyond pairs, and a pairing of its size or of another in front of it."""
    masks, spikes = draw(channel_masks("row", "column")), 2 * draw(st.integers(0, 100))
    each = Accumulate(**draw(windows(wide=False)), **draw(accumulate_sides(REUSING)), **masks, spikes=spikes)
    latch = draw(pairings(draw(st.sampled_from([0, each.steps, each.rows * each.columns]))))
    assume(fits(each))
    planes = [replace(each, plane=each.plane + 1, fresh=0)] if draw(st.booleans()) else []
    return [latch, each, *planes]


def tables(state_constant: NDArray[np.uint8], seed: int) -> None:
    """Small partners, so that many are mutual."""
    words = state_constant.view("<u2")
    words[:] = np.random.default_rng(seed).integers(0, 12, len(words))
    words[: len(words) // 2] = np.arange(len(words) // 2) ^ 1


@MANY
@given(reusing(), MACHINES, st.integers(0, 99), DENSITIES)
def test_both_families_make_the_sums_of_no_sharing(
    code: list[Instruction], machine: Machine, seed: int, density: float
) -> None:
    program = program_of(code, machine)
    state = random_state(program, seed, density)
    tables(state.constant, seed)
    alone = copy_of(program, state)
    (plain, without), (_, again) = both_families(program, alone, share=False)
    (fast, fast_record), (reference, record) = both_families(program, state, True)
    for name, region in fast.items():
        assert np.array_equal(region, reference[name]), name
        assert np.array_equal(region, plain[name]), name
    assert np.array_equal(fast_record, record)
    assert np.array_equal(without, again)
    for kept in ("sop_bit", "sop_value", "common"):
        assert np.array_equal(record[:, getattr(RECORD, kept)], without[:, getattr(RECORD, kept)]), kept


REUSE = load_machine("c-step-reuse")
ALONE = Pairing(np.zeros(0, np.uint16), False)


@st.composite
def rows_of_bits(draw: st.DrawFn) -> Bits:
    """[steps, pixels, channels], drawn from few patterns; one row, odd rows, silent ones."""
    steps, pixels, channels = draw(st.integers(1, 4)), draw(st.integers(1, 13)), draw(st.sampled_from([1, 7, 20, 40]))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    patterns = (random.random((5, channels)) < draw(DENSITIES)).astype(np.uint8)
    return patterns[random.integers(0, 5, (steps, pixels))]


@MANY
@given(rows_of_bits(), st.sampled_from(REUSING), MACHINES, st.booleans(), st.integers(0, 9))
def test_windows_have_every_row_once_and_pes_do_all_of_it(
    bits: Bits, sharing: Sharing, machine: Machine, timesteps: bool, seed: int
) -> None:
    steps, pixels, _ = bits.shape
    size = steps if timesteps else pixels
    pairing = Pairing((np.arange(size) ^ 1).astype(np.uint16), timesteps)
    kept = np.random.default_rng(seed).random((steps, pixels)) < 0.7
    for selection in (None, kept):
        found = list(windows_of(bits, sharing, machine, pairing, selection))
        wanted = np.arange(steps * pixels) if selection is None else np.flatnonzero(selection)
        assert sorted(np.concatenate([np.zeros(0, int), *(each.rows for each in found)]).tolist()) == wanted.tolist()
        for each in found:
            plan = schedule(each.reuse, machine.processing_elements)
            assert plan.work == each.reuse.charged + ROW_CYCLES * len(each.rows)
            assert plan.work / machine.processing_elements <= plan.cycles <= plan.work
            assert each.reuse.held <= machine.reuse_sums
            assert schedule(each.reuse, 1).cycles == plan.work
        cost = spent(found, machine)
        assert cost.accumulations <= bits.reshape(-1, bits.shape[2])[wanted].sum()
        assert cost.cycles(2) <= cost.finding.sum() + 2 * cost.working.sum()
        assert cost.cycles(2) >= max(cost.finding.sum(), 2 * cost.working.sum())


def test_prefix_has_the_published_windows() -> None:
    """256 rows, all timesteps of a pixel and then the next pixel, 16 channels a tile."""
    bits = (np.random.default_rng(0).random((4, 100, 40)) < 0.2).astype(np.uint8)
    flat = bits.transpose(1, 0, 2).reshape(-1, 40)
    wanted = [prefix(flat[at : at + 256], 16) for at in range(0, 400, 256)]
    found = [each.reuse for each in windows_of(bits, Sharing.PREFIX, REUSE, ALONE)]
    for mine, other in zip(found, wanted, strict=True):
        assert np.array_equal(mine.operands, other.operands)
        assert np.array_equal(mine.starts, other.starts)


def test_prefix_may_have_smaller_windows_than_the_other_modes() -> None:
    """As published, on a machine whose forests have larger ones."""
    large, bits = load_machine("c-step-reuse-large"), np.ones((4, 300, 3), np.uint8)
    assert [len(each.rows) for each in windows_of(bits, Sharing.FOREST, large, ALONE)] == [1024, 176]
    assert [len(each.rows) for each in windows_of(bits, Sharing.PREFIX, large, ALONE)] == [256, 256, 256, 256, 176]


def test_only_mutual_partners_of_the_right_number_pair() -> None:
    pairing = Pairing(np.array([1, 0, 3, 1, 9, 5], np.uint16), False)
    assert pairing.mates(1, 6).tolist() == [1, 0, 2, 3, 4, 5]
    assert pairing.mates(2, 6).tolist() == [1, 0, 2, 3, 4, 5, 7, 6, 8, 9, 10, 11]
    assert pairing.mates(1, 5).tolist() == [0, 1, 2, 3, 4]
    assert Pairing(np.array([1, 0], np.uint16), True).mates(2, 3).tolist() == [3, 4, 5, 0, 1, 2]


def test_a_sum_waits_for_its_terms_and_not_for_those_who_add_it_to_rows() -> None:
    """Two rows of the same three spikes: one sum in three cycles, added to both in two more cycles."""
    bits = np.array([[1, 1, 1], [1, 1, 1]], np.uint8)
    (window,) = windows_of(bits[:, None], Sharing.PREFIX, REUSE, ALONE)
    assert (window.reuse.accumulations, window.reuse.merges) == (3, 2)
    assert schedule(window.reuse, 4).cycles == 5
    assert schedule(window.reuse, 1).cycles == 5 + 2 * ROW_CYCLES


def with_sharing(program: Program, sharing: Sharing, machine: Machine = REUSE) -> Program:
    """The same program with another mode."""
    code = tuple(replace(each, sharing=sharing) if isinstance(each, Accumulate) else each for each in program.code)
    return Program(program.header.model_copy(update={"machine": machine}), code, program.memory, program.source_map)


@pytest.mark.parametrize("sharing", REUSING)
def test_a_program_for_pairs_is_refused_with_what_its_machine_lacks(sharing: Sharing) -> None:
    program = small_program()
    with pytest.raises(CStepError) as caught:
        verify(with_sharing(program, sharing, program.header.machine))
    mode = sharing.name.lower()
    assert str(caught.value) == f"code word 9: accumulate: sharing={mode}; machine c-step has pair"


def test_a_match_needs_a_table_of_its_size() -> None:
    program = with_sharing(small_program(), Sharing.MATCH)
    with pytest.raises(CStepError, match=r"^code word 9: accumulate: sharing=match, but no pair before it latched a t"):
        verify(program)
    first = program.code[9]
    assert isinstance(first, Accumulate)
    for flag, rows, what in ((0, 3, f"output pixels; this one has {first.rows * first.columns}"),
                             (1, 9, f"timesteps; this one has {first.steps}")):  # fmt: skip
        latch = Pair(table=0, rows=rows, timesteps=flag)
        code = (*program.code[:9], latch, *program.code[9:])
        with pytest.raises(CStepError) as caught:
            verify(replace(program, code=code, source_map=shifted(program.source_map, 9), cache={}))
        told = f"code word 10: accumulate: sharing=match: the latched table has {rows} {what}"
        assert str(caught.value) == told


def shifted(source_map: NDArray[np.int32], behind: int) -> NDArray[np.int32]:
    """The source map of a program with one more instruction."""
    moved = source_map.copy()
    moved[:, 0] += moved[:, 0] >= behind
    return moved


def compiled(name: str, mode: str, machine: Machine = REUSE) -> tuple[Program, NDArray[np.int8]]:
    """A small family's program with a mode, and an input."""
    family = FAMILIES[name]
    model, x = family.build(min(family.steps, 4)), family.inputs(9, steps=min(family.steps, 4))
    told = {"schema": "cstep-settings/1", "model": {"name": type(model).__name__}, "sharing": {"mode": mode}}
    program = cstep.compile(model, x[:1], calibration=x[:8], machine=machine, settings=told, check=False)
    return program, quantise_input(program, x[8:])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_mode_gives_every_family_the_same_integers(name: str) -> None:
    """Compiled with match, which has pairings beside; the other modes are put into the same program.

    The reference kernels, which take most of the time, run every other mode of a family.
    """
    program, integers = compiled(name, "match")
    plain = run(program, integers, share=False, observe=True)
    assert plain.currents is not None and plain.spikes is not None
    for sharing in Sharing:
        each = with_sharing(program, sharing)
        verify(each)
        both = (sharing + list(FAMILIES).index(name)) % 2 == 0
        kinds: tuple[Kernels, ...] = ("fast", "reference") if both else ("fast",)
        fast, *reference = (run(each, integers, kernels=kernels, observe=True) for kernels in kinds)
        for other in reference:
            assert np.array_equal(fast.counters.values, other.counters.values)
            assert np.array_equal(fast.partial_sums, other.partial_sums)
        for found in (fast, *reference):
            assert np.array_equal(found.logits, plain.logits)
            assert found.currents is not None and found.spikes is not None
            for layer, currents in plain.currents.items():
                assert np.array_equal(found.currents[layer], currents)
                assert np.array_equal(found.spikes[layer], plain.spikes[layer])
        total = fast.counters.total
        assert total("sop_bit") == plain.counters.total("sop_bit")
        if sharing > Sharing.PAIR:
            assert total("sop_hw") == total("sop_union") + total("merges") + total("copies")
            assert total("sop_union") <= total("sop_bit")
        assert bool(total("matching_bits") > 0) == (sharing > Sharing.PAIR)


def test_rows_fill_the_windows_that_they_share_in_where_dram_time_allows() -> None:
    """fc1 with 256 outputs is computed 16 of 64 tokens at a time where pairs share, and all at once for a forest."""
    model, images = spikformer(
        Shape(image=(3, 32, 32), embed_dims=64, num_heads=4, depths=1, timesteps=4, mlp_ratio=4.0)
    )
    found = dict[str, tuple[list[int], int]]()
    for mode in ("pair", "forest"):
        told = {"schema": "cstep-settings/1", "model": {"name": "Spikformer"}, "sharing": {"mode": mode}}
        program = cstep.compile(model, images[:1], calibration=images, machine=REUSE, settings=told, check=False)
        counters = run(program, quantise_input(program, images[:1])).counters
        layer = counters.layers.index("block.0.mlp.fc1_linear")
        rows = [each.steps * each.rows * each.columns for each in program.code if isinstance(each, Accumulate)]
        moved = sum(int(counters.by_layer(f"dram_{kind}_bytes")[0, layer]) for kind in ("weight", "spike", "mask"))
        found[mode] = rows, moved
    assert 64 in found["pair"][0]
    assert 64 not in found["forest"][0]
    assert found["forest"][1] <= LONGER * found["pair"][1]


def test_compiling_for_a_machine_without_the_mode_names_layer_mode_and_machine() -> None:
    told = r"^patch_embed\.\S+ \(\S+\.py:\d+\): sharing=forest; machine c-step has pair$"
    with pytest.raises(CStepError, match=told):
        compiled("spikformer-cifar", "forest", load_machine("c-step"))
    program, _ = compiled("spikformer-cifar", "pair", load_machine("c-step"))
    assert {each.sharing for each in program.code if isinstance(each, Accumulate)} == {Sharing.PAIR}


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("factor-common-spikes{mode=trees}", "mode=trees; it must be one of none, pair, group4, group8, match, prefix"),
        ('factor-common-spikes{layers="q=trees"}', "mode=trees; it must be one of none"),
        ("factor-common-spikes{layers=forest}", "layers=forest; it must be label=mode"),
        ("factor-common-spikes{images=0}", "images=0; it must be 1 or more"),
    ],
)
def test_a_pass_refuses_modes_that_there_are_not(passes: str, said: str) -> None:
    with pytest.raises(CStepError, match="^factor-common-spikes: " + said):
        parse_passes(passes)[0].apply(golden_network())


def test_matching_needs_calibration_inputs_and_layers_must_be_there() -> None:
    with pytest.raises(CStepError, match=r"^factor-common-spikes: mode=match pairs rows by calibration inputs; none"):
        FactorCommonSpikes("match").apply(golden_network())
    with pytest.raises(CStepError, match=r"^factor-common-spikes: layers=nope; no such layer shares, there are c1, c2"):
        FactorCommonSpikes("forest", ("nope=pair",)).apply(golden_network())


def golden_network() -> object:
    from golden import Golden

    return Golden.read(Path(__file__).parent / "passes" / "factor-common-spikes.spike").network()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sharing": ("pair", "trees")}, "sharing.1: Input should be 'pair', 'group4'"),
        ({"sharing": ("forest",), "reuse_rows": 0}, "sharing: forest needs reuse_rows, reuse_sums and matching_bits"),
        ({"reuse_sums": 8}, "sharing: prefix stores up to a sum a row: reuse_sums must be reuse_rows=256 or more"),
        ({"prefix_rows": 512}, "sharing: prefix stores up to a sum a row: reuse_sums must be prefix_rows=512 or more"),
        ({"reuse_rows": 100}, "reuse_rows: Input should be a multiple of 8"),
    ],
)
def test_a_machine_says_what_it_needs_to_share(changes: dict[str, object], said: str) -> None:
    with pytest.raises(CStepError) as caught:
        REUSE.with_changes(**changes)
    assert str(caught.value).startswith(f"machine c-step-reuse: {said}")
    assert "\n" not in str(caught.value)
