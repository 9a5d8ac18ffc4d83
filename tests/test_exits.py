"""A taken exit ends a run: nothing behind it is started, loaded or counted; one that is not taken changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import NEVER, exit_program, small_program

import cstep
from isa.errors import CStepError
from isa.instructions import Exit
from isa.program import Program
from isa.text import assemble_program, disassemble_program
from isa.verify import verify
from isa.word import Unit
from runtime.counters import INDEX
from runtime.decoded import decoded
from runtime.interpreter import Machinery, RunResult, quantise_input, run
from runtime.record import RECORD
from runtime.timeline import timeline

INPUTS = 6
INTEGERS = np.random.default_rng(3).integers(-127, 128, (INPUTS, 1, 4, 4, 2), np.int8)
TAKEN = 0
FAMILIES = ("fast", "reference")
Family = Literal["fast", "reference"]


def exit_of(program: Program) -> int:
    return next(index for index, each in enumerate(program.code) if isinstance(each, Exit))


def median_threshold() -> int:
    """A threshold that some inputs reach and others do not, from what the decisions saw."""
    logits = run(exit_program(NEVER), INTEGERS).decisions[:, 0]
    return int(np.median(3 * logits.max(axis=1) - logits.sum(axis=1))) + 1


def same(a: RunResult, b: RunResult) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("logits", "steps", "decisions"))


@pytest.mark.parametrize("guarded", [False, True])
def test_the_programs_verify_and_read_back_as_text(guarded: bool) -> None:
    program = exit_program(TAKEN, guarded)
    verify(program)
    assert assemble_program(disassemble_program(program), program).code == program.code


@pytest.mark.parametrize("kernels", FAMILIES)
def test_a_taken_exit_runs_no_instruction_behind_it(kernels: Family) -> None:
    program = exit_program(TAKEN)
    machinery = Machinery(program, kernels, True)
    decisions = np.zeros((1, 3), np.int64)
    stop = machinery.run(INTEGERS[0], None, decisions)
    assert stop == exit_of(program) + 1
    assert machinery.record[:stop].any() and not machinery.record[stop:].any()
    assert np.array_equal(decisions[0], machinery.logits())


def test_a_taken_exit_is_a_shorter_run_in_every_counter() -> None:
    whole, left = run(exit_program(NEVER), INTEGERS), run(exit_program(TAKEN), INTEGERS)
    assert left.steps.tolist() == [1] * INPUTS and whole.steps.tolist() == [2] * INPUTS
    assert np.array_equal(left.decisions[:, 0], left.logits) and np.array_equal(left.decisions, whole.decisions)
    for name in ("cycles", "sop_bit", "mac", "neuron_updates", "dram_spike_bytes", "spike_buffer_bytes"):
        assert (left.counters.total(name) < whole.counters.total(name)).all(), name
    assert np.array_equal(2 * left.counters.total("neuron_updates"), whole.counters.total("neuron_updates"))
    assert (left.counters.values <= whole.counters.values).all()


def test_what_is_counted_up_to_an_exit_is_what_its_instructions_count() -> None:
    program = exit_program(TAKEN)
    stop, done = exit_of(program) + 1, run(program, INTEGERS).counters
    for name in ("neuron_updates", "mac", "exit_decisions", "output_buffer_bytes", "dram_output_bytes"):
        assert done.total(name).tolist() == [sum(each.counts().get(name, 0) for each in program.code[:stop])] * INPUTS
    assert done.by_layer("exit_decisions")[0].tolist() == [0, 0, 0, 2 * 3 + 1]


def test_an_exit_that_is_never_taken_changes_no_integer() -> None:
    without, small = run(exit_program(NEVER, exits=False), INTEGERS), run(small_program(), INTEGERS)
    never = run(exit_program(NEVER), INTEGERS)
    assert np.array_equal(never.logits, without.logits) and np.array_equal(never.logits, small.logits)
    assert without.decisions.shape == (INPUTS, 0, 3)
    more = {name for name in INDEX if (never.counters.total(name) != without.counters.total(name)).any()}
    assert {"exit_decisions", "output_buffer_bytes", "busy_sfu"} <= more
    assert all(
        name in ("exit_decisions", "output_buffer_bytes", "cycles", "busy_sfu") or "stall" in name for name in more
    )
    assert (never.counters.total("cycles") >= without.counters.total("cycles")).all()


@pytest.mark.parametrize("guarded", [False, True])
def test_families_agree_where_some_inputs_leave(guarded: bool) -> None:
    program = exit_program(median_threshold(), guarded)
    fast, reference = (run(program, INTEGERS, kernels=kernels, observe=True, workers=2) for kernels in FAMILIES)
    assert 0 < (fast.steps == 1).sum() < INPUTS
    assert same(fast, reference) and np.array_equal(fast.counters.values, reference.counters.values)
    assert fast.currents and reference.currents and fast.spikes
    for layer, currents in fast.currents.items():
        assert np.array_equal(currents, reference.currents[layer])
        left = fast.steps == 1
        assert currents[:, 0].any() and currents[~left, 1].any()
        assert not currents[left, 1].any() and not fast.spikes[layer][left, 1].any()


def test_observing_changes_nothing() -> None:
    program = exit_program(median_threshold())
    seen, alone = run(program, INTEGERS, observe=True), run(program, INTEGERS)
    assert same(seen, alone) and np.array_equal(seen.counters.values, alone.counters.values)


def test_real_logits_are_those_of_the_mean_over_the_timesteps_run() -> None:
    program = exit_program(median_threshold())
    images = np.random.default_rng(0).standard_normal((INPUTS, 2, 4, 4)).astype(np.float32)
    result = cstep.run(program, images, kernels="reference")
    integers = run(program, quantise_input(program, images)).logits
    scale = program.header.output.scale * 2 / result.steps
    assert result.logits == pytest.approx(integers * scale[:, None])


def starts_and_ends(program: Program, work: NDArray[np.int64]) -> list[tuple[int, int]]:
    """When each instruction starts and ends: units in order, tokens first in, first out."""
    free = dict.fromkeys(Unit, 0)
    tokens: dict[tuple[Unit, Unit], list[int]] = {(a, b): [] for a in Unit for b in Unit}
    result: list[tuple[int, int]] = []
    for each, measured in zip(program.code, work.tolist(), strict=False):
        ready = [tokens[unit, each.unit].pop(0) for unit in Unit if each.wait >> unit & 1]
        start = max([free[each.unit], *ready])
        end = start + each.cost(program.header.machine).cycles(measured)
        free[each.unit] = end
        for unit in Unit:
            if each.post >> unit & 1:
                tokens[each.unit, unit].append(end)
        result.append((start, end))
    return result


def test_nothing_behind_an_exit_starts_before_it_is_decided() -> None:
    program = exit_program(NEVER)
    machinery = Machinery(program, "reference", True)
    machinery.run(INTEGERS[0], None, np.zeros((1, 3), np.int64))
    work, at = machinery.record[:, RECORD.work], exit_of(program)
    times = starts_and_ends(program, work)
    assert times[at][0] >= times[at - 1][1] and times[at][1] == times[at][0] + 1
    assert min(start for start, _ in times[at + 1 :]) >= times[at][1]
    assert timeline(decoded(program), work).cycles == max(end for _, end in times)
    assert timeline(decoded(program), work[: at + 1]).cycles == max(end for _, end in times[: at + 1])


def test_a_fence_without_its_tokens_is_refused() -> None:
    program = exit_program(NEVER)
    at = exit_of(program)
    code = list(program.code)
    behind = next(index for index in range(at + 1, len(code)) if code[index].wait >> Unit.CONTROL & 1)
    code[at] = replace(code[at], post=0)
    code[behind] = replace(code[behind], wait=code[behind].wait & ~(1 << Unit.CONTROL))
    with pytest.raises(
        CStepError, match=rf"^code word {behind}: multiply: may come before word {at} \(exit\) has ended"
    ):
        verify(replace(program, code=tuple(code)))
