"""Instructions of tokens that halt: what each means and counts, said again token by token beside both families."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from typing import Any

import numpy as np
import pytest
from drawn import fits
from drawn_tokens import belows, halted_blocks, halts, weighs
from emulated import assert_agree
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from programs import small_program, source_map
from ran import RESULT, STEPS, Integers, Ran, put

from isa.errors import CStepError
from isa.footprint import overwritten
from isa.hazards import with_tokens
from isa.instructions import BIAS_ZERO, HaltSpikes, HaltValues, KeepBelow, WeighSpikes, WeighValues
from isa.machine import load_machine
from isa.scores import SIGMOID, WEIGHT_BITS
from isa.verify import verify
from isa.word import Gives, Instruction, encode
from runtime.record import RECORD
from runtime.state import State

MACHINE = load_machine("c-step")
NOTHING = dict.fromkeys(RECORD._asdict(), 0)
ONE = 1 << WEIGHT_BITS
LIMIT = 12000
TOKENS = 23
BEFORE, SUMS, STATE, X = 12000, 8000, 16000, 200


@dataclass
class Token:
    """A token: what its scores of earlier timesteps have added up to."""

    added: int

    def halt(self, x: int, entered: int, each: HaltSpikes | HaltValues) -> tuple[int, int]:
        """Total and weight behind a block at a timestep, the sigmoid in float64."""
        product = x * (-each.multiplier if each.negative else each.multiplier)
        place = (2 * product + 2**each.divisor) // 2 ** (each.divisor + 1) + each.bias - BIAS_ZERO
        score = round(ONE / (1 + exp(-(min(max(place, 0), 255) - 128) / 16)))
        if entered >= each.limit:
            return min(entered + self.added, ONE), 0
        self.added = min(self.added + score, ONE)
        total, rest = min(entered + self.added, ONE), ONE - entered
        return total, {Gives.SCORE: rest if total >= each.limit else score, Gives.REST: rest, Gives.WHOLE: ONE}[
            Gives(each.gives)
        ]


def expected(x: Integers, before: Integers, sums: Integers, each: HaltSpikes | HaltValues) -> tuple[Integers, Integers]:
    """The state [steps, tokens, 2] and the sums [tokens] that an instruction leaves."""
    tokens = [Token(0 if each.start else added) for added in sums.tolist()]
    states = [
        [token.halt(*numbers, each) for token, *numbers in zip(tokens, now, entered, strict=True)]
        for now, entered in zip(x.tolist(), (before * each.follows).tolist(), strict=True)
    ]
    return np.array(states), np.array([token.added for token in tokens])


def halt_values(**changes: int) -> HaltValues:
    """sigmoid(-x / 5.12), x a number of the stream, in its first half of the table mostly."""
    fields: dict[str, int] = {
        "before": BEFORE, "sums": SUMS, "state": STATE, "values_at": X, "steps": STEPS, "tokens": TOKENS,
        "multiplier": 25, "negative": 1, "divisor": 3, "bias": BIAS_ZERO + 100, "limit": LIMIT, "gives": Gives.SCORE,
        "follows": 1, "start": 0,
    }  # fmt: skip
    return HaltValues(**fields | changes)


def halt_spikes(**changes: int) -> HaltSpikes:
    each = halt_values()
    fields = {name: getattr(each, name) for name, _ in each.layout}
    return HaltSpikes(**fields | {"multiplier": 300, "divisor": 4, "planes": 3} | changes)


def moderate(steps: int = STEPS) -> Callable[[State], None]:
    """A stream of small numbers; totals before the block from 0 to 1, weights there of any kind; small sums."""

    def prepare(state: State) -> None:
        random = np.random.default_rng(4)
        put(state.output, X, random.integers(-20, 30, steps * TOKENS), "<i2")
        put(state.output, SUMS, random.integers(0, 3000, TOKENS), "<i2")
        totals = random.choice([0, 700, 8000, LIMIT - 1, LIMIT, LIMIT + 1, ONE], steps * TOKENS)
        weights = random.integers(-ONE, ONE, steps * TOKENS)
        put(state.output, BEFORE, np.stack([totals, weights], axis=-1).reshape(-1), "<i2")

    return prepare


def assert_halts(ran: Ran, x: Integers, each: HaltSpikes | HaltValues) -> Integers:
    """State and sums are those of the tokens one by one; returns the state."""
    before = ran.values("output", "<i2", each.before, each.steps, each.tokens, 2)[..., 0]
    states, sums = expected(x, before, ran.values("output", "<i2", each.sums, each.tokens), each)
    assert np.array_equal(ran.values("output", "<i2", each.state, *states.shape, after=True), states)
    assert np.array_equal(ran.values("output", "<i2", each.sums, each.tokens, after=True), sums)
    assert ran.record == NOTHING
    return states


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("follows", [0, 1])
@pytest.mark.parametrize("gives", Gives)
def test_scores_of_a_stream_add_up_over_blocks_and_timesteps(gives: Gives, follows: int, start: int) -> None:
    each = halt_values(gives=gives, follows=follows, start=start)
    ran = Ran(each, moderate())
    states = assert_halts(ran, ran.values("output", "<i2", X, STEPS, TOKENS), each)
    halted = states[..., 1] == 0
    assert halted.any() == bool(follows) and not halted.all()
    assert len(np.unique(states[..., 0])) > 15 or gives != Gives.SCORE


@pytest.mark.parametrize("planes", [1, 2, 3, 7])
@pytest.mark.parametrize("negative", [0, 1])
def test_scores_of_counts_are_those_of_channel_0(negative: int, planes: int) -> None:
    """The lowest bit of a word in each plane; the random words have others beside it."""
    each = halt_spikes(planes=planes, negative=negative)
    ran = Ran(each, moderate())
    words = ran.values("spike", "<u2", X, planes, STEPS, TOKENS)
    assert (words > 1).any()
    states = assert_halts(ran, np.tensordot(2 ** np.arange(planes), words & 1, axes=1), each)
    assert len(np.unique(states[..., 0])) > 10


@pytest.mark.parametrize("each", [halt_values(state=BEFORE), halt_spikes(state=BEFORE)])
def test_a_state_may_take_the_place_of_the_one_before(each: HaltSpikes | HaltValues) -> None:
    here, apart = Ran(each, moderate()), Ran(replace(each, state=STATE), moderate())
    found = here.values("output", "<i2", BEFORE, STEPS, TOKENS, 2, after=True)
    assert np.array_equal(found, apart.values("output", "<i2", STATE, STEPS, TOKENS, 2, after=True))


def rows(*values: list[int]) -> Callable[[State], None]:
    """A stream of a list of tokens each timestep."""
    return lambda state: put(state.output, X, np.array(values).reshape(-1), "<i2")


def states_of(each: HaltValues, *values: list[int]) -> tuple[list[Any], list[int]]:
    """Totals and weights [step][token], and sums, behind a stream."""
    ran = Ran(replace(each, steps=len(values), tokens=len(values[0])), rows(*values))
    found = ran.values("output", "<i2", STATE, len(values), len(values[0]), 2, after=True)
    return found.tolist(), ran.values("output", "<i2", SUMS, len(values[0]), after=True).tolist()


FIRST = halt_values(follows=0, start=1, multiplier=1, negative=0, divisor=0, bias=BIAS_ZERO + 128)
"""An entry of the table a unit of x, from its middle on."""


def test_totals_and_sums_stop_at_one() -> None:
    """Scores of 0.88 three times, and of a half: a token of one half and another one has 1."""
    most = int(SIGMOID[160])
    states, sums = states_of(FIRST, [32, 0], [32, 0], [32, 0])
    assert states == [
        [[most, ONE], [8192, 8192]], [[ONE, ONE], [ONE, ONE]], [[ONE, ONE], [ONE, ONE]],
    ]  # fmt: skip
    assert sums == [ONE, ONE]


@pytest.mark.parametrize("divisor", [40, 61, 62, 63])
def test_what_is_divided_by_far_more_than_it_is_makes_nothing(divisor: int) -> None:
    """Neither a half of 2^62 nor the largest product of either sign is too large for that."""
    each = replace(FIRST, multiplier=65535, divisor=divisor)
    states, _ = states_of(each, [-32768, -1, 0, 1, 32767])
    assert states == [[[8192, 8192]] * 5]


@pytest.mark.parametrize(("divisor", "places"), [(0, [-3, -2, -1, 0, 1, 2, 3]), (1, [-1, -1, 0, 0, 1, 1, 2])])
def test_what_is_looked_up_is_rounded_half_up(divisor: int, places: list[int]) -> None:
    [states], sums = states_of(replace(FIRST, divisor=divisor), [-3, -2, -1, 0, 1, 2, 3])
    scores = [int(SIGMOID[128 + place]) for place in places]
    assert states == [[score, score] for score in scores] and sums == scores


def test_the_table_ends_at_its_ends() -> None:
    [states], _ = states_of(FIRST, [-32768, -129, -128, 127, 128, 32767])
    assert [total for total, _ in states] == [*[SIGMOID[0]] * 3, *[SIGMOID[255]] * 3]
    assert states[0] == [5, 5] and states[-1] == [16378, ONE]


def test_the_table_is_the_logistic_function() -> None:
    assert SIGMOID[128] == ONE // 2 and (np.diff(SIGMOID) >= 0).all() and (np.diff(SIGMOID[60:196]) > 0).all()
    assert np.array_equal(SIGMOID[1:] + SIGMOID[:0:-1], np.full(255, ONE))


def test_the_weight_of_a_token_that_halts_is_what_is_left_of_one() -> None:
    """Limit 3/4, totals of 1/2 before the block: a score of a quarter reaches it, one less does not."""
    entered = 8192
    quarter = next(place for place, score in enumerate(SIGMOID.tolist()) if score >= LIMIT - entered) - 128
    each = replace(FIRST, follows=1, steps=1, tokens=4)

    def prepare(state: State) -> None:
        rows([quarter - 1, quarter, 0, 0])(state)
        put(state.output, BEFORE, np.array([entered, 1, entered, 2, LIMIT, 3, LIMIT - 1, 4]), "<i2")

    less, reached = int(SIGMOID[127 + quarter]), int(SIGMOID[128 + quarter])
    for gives, weights in ((Gives.SCORE, (less, ONE - entered)), (Gives.REST, (ONE - entered,) * 2)):
        ran = Ran(replace(each, gives=gives), prepare)
        states = ran.values("output", "<i2", STATE, 4, 2, after=True).tolist()
        assert states[:2] == [[entered + less, weights[0]], [entered + reached, weights[1]]]
        assert states[2:] == [[LIMIT, 0], [ONE, ONE - LIMIT + 1]], "a token at the limit is halted, one below is not"
    whole = Ran(replace(each, gives=Gives.WHOLE), prepare).values("output", "<i2", STATE, 4, 2, after=True)
    assert whole[:, 1].tolist() == [ONE, ONE, 0, ONE]


def test_a_halted_token_has_what_earlier_timesteps_added() -> None:
    """It scores nothing more; its total is the one before the block, and the sums of when it went through."""
    each = replace(FIRST, follows=1, start=1, steps=3, tokens=1)

    def prepare(state: State) -> None:
        rows([-32], [-32], [-32])(state)
        put(state.output, BEFORE, np.array([0, 0, LIMIT, 0, 100, 0]), "<i2")

    score = int(SIGMOID[96])
    states = Ran(each, prepare).values("output", "<i2", STATE, 3, 2, after=True).tolist()
    assert states == [[score, score], [LIMIT + score, 0], [100 + 2 * score, score]]


@pytest.mark.parametrize("follows", [0, 1])
def test_sums_go_on_from_one_instruction_to_the_next(follows: int) -> None:
    """Two of two timesteps are one of four."""
    one, size = halt_values(steps=4, start=1, follows=follows), 2 * 2 * TOKENS
    places = {"before": BEFORE + 2 * size, "state": STATE + 2 * size, "values_at": X + size}
    first, second = replace(one, steps=2), replace(one, steps=2, start=0, **places)
    at_once, apart = Ran(one, moderate(4)), Ran(second, moderate(4), behind=[first])
    for address, numbers in ((STATE, 4 * TOKENS * 2), (SUMS, TOKENS)):
        found = apart.values("output", "<i2", address, numbers, after=True)
        assert np.array_equal(found, at_once.values("output", "<i2", address, numbers, after=True))
    anew = Ran(replace(second, start=1), moderate(4), behind=[first])
    assert not np.array_equal(anew.after["output"], apart.after["output"])


def test_what_halting_counts() -> None:
    """A state and sums both ways but where they begin, and the stream or the words of every plane."""
    tokens, values = 2 * TOKENS, 2 * STEPS * TOKENS
    following, first = 2 * 2 * values + 2 * tokens, 2 * values + tokens
    scores = 8 * STEPS * TOKENS
    assert halt_values().counts() == {"token_scores": scores, "output_buffer_bytes": following + values}
    assert FIRST.counts() == {"token_scores": scores, "output_buffer_bytes": first + values}
    assert halt_spikes().counts() == {
        "token_scores": scores, "output_buffer_bytes": following, "spike_buffer_bytes": 3 * values,
    }  # fmt: skip
    for each in (halt_values(), halt_spikes()):
        assert each.cost(MACHINE).cycles(0) == 8 + -(-scores // MACHINE.sfu_multipliers)


def test_tokens_below_the_limit_are_kept() -> None:
    """Every timestep by itself; totals of any int16, the weights beside them are not looked at."""
    each = KeepBelow(state=STATE, kept=RESULT, steps=3, tokens=TOKENS, limit=LIMIT)

    def prepare(state: State) -> None:
        random = np.random.default_rng(8)
        totals = random.choice([-1, 0, LIMIT - 1, LIMIT, LIMIT + 1, ONE, 32767, -32768], 3 * TOKENS)
        put(state.output, STATE, np.stack([totals, totals[::-1]], axis=-1).reshape(-1), "<i2")

    ran = Ran(each, prepare)
    kept = ran.values("output", "<i2", STATE, 3, TOKENS, 2)[..., 0] < LIMIT
    assert np.array_equal(ran.values("spike", "<u2", RESULT, 3, TOKENS, after=True), kept) and 0 < kept.mean() < 1
    mask = np.unpackbits(ran.after["mask"], bitorder="little")[RESULT // 2 : RESULT // 2 + kept.size]
    assert np.array_equal(mask, kept.reshape(-1)), "the word mask follows"
    size = 3 * TOKENS
    assert ran.record == NOTHING
    assert each.counts() == {
        "token_scores": size, "output_buffer_bytes": 4 * size, "spike_buffer_bytes": 2 * size,
    }  # fmt: skip
    assert each.cost(MACHINE).cycles(0) == 8 + -(-size // MACHINE.sfu_multipliers)


CHANNELS = 37
WEIGHED = {"features": RESULT, "state": STATE, "steps": STEPS, "tokens": TOKENS, "inputs": CHANNELS}


def rounded_weights(ran: Ran, drop: int) -> Integers:
    """[steps, tokens, 1], half up."""
    weights = ran.values("output", "<i2", STATE, STEPS, TOKENS, 2)[..., 1:]
    return np.floor(weights / 2**drop + 0.5).astype(np.int64)


def some_weights(state: State) -> None:
    """Of kept and of halted tokens, beside totals that are other numbers; some lie just between two multiples."""
    random = np.random.default_rng(6)
    weights = random.choice([0, 1, 2, 3, 255, 256, 257, 8191, 8192, ONE - 256, ONE], STEPS * TOKENS)
    put(state.output, STATE, np.stack([random.permutation(weights), weights], axis=-1).reshape(-1), "<i2")
    put(state.output, X, random.integers(-900, 900, STEPS * TOKENS * CHANNELS), "<i2")
    put(state.output, RESULT, random.integers(-900, 900, CHANNELS), "<i4")


def assert_weighed(ran: Ran, x: Integers, fresh: int, drop: int) -> None:
    sums = (x * rounded_weights(ran, drop)).sum(axis=(0, 1))
    before = 0 if fresh else ran.values("output", "<i4", RESULT, CHANNELS)
    assert np.array_equal(ran.values("output", "<i4", RESULT, CHANNELS, after=True), before + sums)
    assert len(np.unique(sums)) > 5 and ran.record == NOTHING


@pytest.mark.parametrize("drop", [0, 1, 9, WEIGHT_BITS])
@pytest.mark.parametrize(("plane", "fresh"), [(0, 1), (2, 0)])
def test_spikes_are_summed_by_rounded_weights(plane: int, fresh: int, drop: int) -> None:
    each = WeighSpikes(**WEIGHED, drop=drop, fresh=fresh, spikes=X, plane=plane)
    ran = Ran(each, some_weights)
    assert_weighed(ran, ran.spikes(X, CHANNELS, STEPS, TOKENS) << plane, fresh, drop)
    assert each.counts() == {
        "mac": STEPS * TOKENS * CHANNELS, "output_buffer_bytes": 4 * STEPS * TOKENS + 4 * CHANNELS * (2 - fresh),
        "spike_buffer_bytes": 2 * 3 * STEPS * TOKENS,
    }  # fmt: skip
    assert each.cost(MACHINE).cycles(0) == 8 + -(-STEPS * TOKENS * CHANNELS // MACHINE.sfu_multipliers)


@pytest.mark.parametrize("drop", [0, 1, 9, WEIGHT_BITS])
@pytest.mark.parametrize("fresh", [0, 1])
def test_a_stream_is_summed_by_rounded_weights(fresh: int, drop: int) -> None:
    each = WeighValues(**WEIGHED, drop=drop, fresh=fresh, values=X)
    ran = Ran(each, some_weights)
    assert_weighed(ran, ran.values("output", "<i2", X, STEPS, TOKENS, CHANNELS), fresh, drop)
    macs = STEPS * TOKENS * CHANNELS
    moved = 4 * STEPS * TOKENS + 4 * CHANNELS * (2 - fresh) + 2 * macs
    assert each.counts() == {"mac": macs, "output_buffer_bytes": moved}
    assert each.cost(MACHINE).cycles(0) == 8 + -(-macs // MACHINE.sfu_multipliers)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.one_of(st.one_of(halts(), belows(), weighs()).map(lambda each: [each]), halted_blocks()),
    st.integers(0, 99),
    st.sampled_from([0.2, 1.0]),
)
def test_families_agree_on_halting(code: list[Instruction], seed: int, density: float) -> None:
    """Whatever lies in the memories; more of it than where all instructions are drawn."""
    assume(all(fits(each) for each in code))
    assert_agree(code, MACHINE.with_changes(accumulator_bits=32), seed, density, True)


BELOW = KeepBelow(state=STATE, kept=0, steps=1, tokens=16, limit=LIMIT)
SPIKES = WeighSpikes(**WEIGHED, drop=0, fresh=1, spikes=X, plane=0)
VALUES = WeighValues(**WEIGHED, drop=0, fresh=1, values=X)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (halt_values(limit=ONE + 1), "haltvalues: limit=16385; totals stop at 16384"),
        (halt_spikes(limit=ONE + 1), "haltspikes: limit=16385; totals stop at 16384"),
        (halt_spikes(limit=0), "haltspikes: limit=0 does not fit 15 bits (1..32767)"),
        (halt_spikes(planes=8), "haltspikes: planes=8 does not fit 3 bits (1..7)"),
        (halt_values(divisor=64), "haltvalues: divisor=64 does not fit 6 bits (0..63)"),
        (halt_values(bias=-1), "haltvalues: bias=-1 does not fit 16 bits (0..65535)"),
        (halt_values(gives=3), "haltvalues: gives=3"),
        (halt_values(sums=1), "haltvalues: sums=1 must be a multiple of 2"),
        (replace(BELOW, limit=ONE + 1), "keepbelow: limit=16385; totals stop at 16384"),
        (replace(SPIKES, drop=15), "weighspikes: drop=15; weights have 14 bits"),
        (replace(VALUES, drop=15), "weighvalues: drop=15; weights have 14 bits"),
        (replace(VALUES, features=2), "weighvalues: features=2 must be a multiple of 4"),
    ],
)
def test_words_are_refused(each: Instruction, message: str) -> None:
    for fine in (halt_values(limit=ONE), halt_spikes(limit=1), BELOW, replace(SPIKES, drop=14), VALUES):
        encode(fine)
    with pytest.raises(CStepError, match=f"^{re.escape(message)}"):
        encode(each)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (halt_values(sums=BEFORE + 4), "haltvalues: writes sums 12004..12049 over before 12000..12183; it"),
        (halt_values(sums=X), "haltvalues: writes sums 200..245 over values_at 200..291; it must lie apart"),
        (halt_values(state=SUMS), "haltvalues: writes state 8000..8183 over sums 8000..8045; it must lie apart"),
        (halt_values(state=X + 20), "haltvalues: writes state 220..403 over values_at 200..291; it must lie apart"),
        (halt_spikes(state=BEFORE + 4), "haltspikes: writes state 12004..12187 over before 12000..12183; it must"),
        (halt_spikes(sums=BEFORE), "haltspikes: writes sums 12000..12045 over before 12000..12183; it must lie apart"),
        (replace(SPIKES, features=STATE), "weighspikes: writes features 16000..16147 over state 16000..16183; it"),
        (replace(VALUES, features=STATE), "weighvalues: writes features 16000..16147 over state 16000..16183; it"),
        (replace(VALUES, features=X), "weighvalues: writes features 200..347 over values 200..3603; it must lie"),
    ],
)
def test_results_over_what_is_still_read_are_refused(each: Instruction, message: str) -> None:
    """Which of the tokens would have read what was written there already is nobody's to know."""
    program = small_program()
    code = with_tokens((*program.code[:5], each, *program.code[5:]))
    with pytest.raises(CStepError, match=rf"^code word 5: {re.escape(message)}"):
        verify(replace(program, code=code, source_map=source_map(code)))


def test_spikes_may_have_the_addresses_of_a_state() -> None:
    """They lie in another memory."""
    each = halt_spikes(values_at=STATE, planes=1)
    assert overwritten(each) is None
    ran = Ran(each, moderate())
    assert_halts(ran, ran.values("spike", "<u2", STATE, STEPS, TOKENS) & 1, each)


def test_the_limit_alone_tells_halted_tokens_from_others() -> None:
    """The same scores under ascending limits: weights of 0 become no more, and totals no less."""
    states = [
        Ran(halt_values(limit=limit, start=1), moderate()).values("output", "<i2", STATE, STEPS, TOKENS, 2, after=True)
        for limit in (1, 701, LIMIT, LIMIT + 1, ONE)
    ]
    for low, high in pairwise(states):
        assert (low[..., 1] == 0).sum() > (high[..., 1] == 0).sum()
        assert (low[..., 0] <= high[..., 0]).all()
