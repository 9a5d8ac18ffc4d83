"""Words, text and manual of every instruction, and the hazards between them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.errors import CStepError
from isa.footprint import overwritten
from isa.hazards import NEVER, dependences, synchronise, with_tokens
from isa.instructions import Accumulate, Add, Decide, Dilate, End, Exit, Fire, Layer, Load, Pool, Rescale
from isa.manual import manual
from isa.ordering import check_order
from isa.text import assemble, assemble_program, disassemble, disassemble_program
from isa.word import Address, Criterion, Instruction, Region, Traffic, Unit, decode, encode, width_of
from tests.programs import copy, fire, instructions, load, small_code, small_program, window

KINDS = [Instruction.registry[opcode] for opcode in sorted(Instruction.registry)]
quick = settings(max_examples=80, deadline=None)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.mnemonic for kind in KINDS])
def test_words_and_text_round_trip(kind: type[Instruction]) -> None:
    @quick
    @given(instructions(kind))
    def round_trip(instruction: Instruction) -> None:
        assert decode(encode(instruction)) == instruction
        line = disassemble(instruction)
        assert "\n" not in line
        assert assemble(line) == (instruction,)

    round_trip()


ALIGNED = [(kind, name) for kind in KINDS for name, spec in kind.layout if isinstance(spec, Address) and spec.align > 1]


@pytest.mark.parametrize(("kind", "name"), ALIGNED, ids=[f"{kind.mnemonic}-{name}" for kind, name in ALIGNED])
def test_an_address_is_encoded_in_units_of_its_alignment(kind: type[Instruction], name: str) -> None:
    """Every multiple comes back, up to the largest that the field's bits can say; all else is refused by name."""
    spec = kind.specs[name]
    assert isinstance(spec, Address)
    last = (1 << spec.bits) - spec.align
    assert width_of(spec) == spec.bits - (spec.align - 1).bit_length()

    @settings(max_examples=8, deadline=None)
    @given(instructions(kind), st.integers(0, last // spec.align) | st.just(last // spec.align))
    def multiples(instruction: Instruction, quotient: int) -> None:
        each = replace(instruction, **{name: quotient * spec.align})
        try:
            each.check()  # some kinds ask for more, or for addresses apart
        except CStepError:
            return
        word = encode(each)
        assert decode(word) == each
        assert assemble(disassemble(each)) == (each,)

    @settings(max_examples=8, deadline=None)
    @given(instructions(kind), st.integers(0, last // spec.align), st.integers(1, spec.align - 1))
    def others(instruction: Instruction, quotient: int, over: int) -> None:
        wrong = quotient * spec.align + over
        message = f"^{kind.mnemonic}: {name}={wrong} must be a multiple of {spec.align}$"
        with pytest.raises(CStepError, match=message):
            encode(replace(instruction, **{name: wrong}))

    multiples()
    others()
    with pytest.raises(CStepError, match=f"^{kind.mnemonic}: {name}={1 << spec.bits} does not fit {spec.bits} bits"):
        encode(replace(instructions_of(kind), **{name: 1 << spec.bits}))


def instructions_of(kind: type[Instruction]) -> Instruction:
    """The least instruction of a kind; its fields may contradict each other."""
    return kind(**{name: getattr(spec, "lowest", 0) for name, spec in kind.layout})


def test_the_text_of_a_program_gives_it_back() -> None:
    program = small_program()
    text = disassemble_program(program)
    again = assemble_program(text, program)
    assert again.code == program.code
    assert (again.source_map == program.source_map).all()
    assert "; 7: block.0.fc, linear, small.py:19" in text


def test_the_source_map_follows_edited_text() -> None:
    program = small_program()
    text = disassemble_program(program).replace("\nload", "\nlayer index=0\nload", 1)
    assert assemble_program(text, program).source_map[:, 0].tolist() == [6, 11]
    with pytest.raises(CStepError, match=r"^a\.s: 0 fire instructions, but the program has 2; the source map needs"):
        assemble_program("end", program, "a.s")


def test_an_accumulate_reads_as_a_line() -> None:
    line = (
        "accumulate spikes=SPIKE[1024] weights=WEIGHT[144] accumulators=OUTPUT[0] steps=2 rows=4 columns=4 "
        "input_rows=4 input_columns=4 kernel_rows=1 kernel_columns=1 stride=1 inputs=8 pixel_stride=2 step_stride=32 "
        "outputs=8 sharing=pair fresh wait=dma post=neuron"
    )
    assert disassemble(small_code()[9]) == line


LOAD = "load source=DRAM[0] target=WEIGHT[0] traffic=weight blocks=1 rows=1 bytes=64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acumulate", "line 1: 'acumulate' is no instruction; did you mean accumulate?"),
        ("\n\nnop", "line 3: 'nop' is no instruction; there are load, store,"),
        (LOAD.replace("rows=1", "row=1"), "line 1: load: 'row=1': no field row; did you mean rows?"),
        (LOAD.replace("rows=1", "rows=16384"), "line 1: load: rows=16384 does not fit 14 bits (1..16383)"),
        (LOAD.replace("rows=1", "rows=0"), "line 1: load: rows=0 does not fit 14 bits (1..16383)"),
        (LOAD.replace("rows=1", ""), "line 1: load: rows is missing; write rows=<number>"),
        (LOAD.replace("rows=1", "rows=-1"), "line 1: load: 'rows=-1': write rows=<number>, decimal or 0x hexadecimal"),
        (LOAD.replace("source=DRAM[0]", ""), "line 1: load: source is missing; write source=DRAM[<byte>]"),
        (LOAD.replace("DRAM", "SPIKE"), "line 1: load: 'source=SPIKE[0]': write source=DRAM[<byte>]"),
        (LOAD.replace("WEIGHT", "DRAM"), "line 1: load: region=0 (dram); a copy goes between DRAM and a buffer"),
        (LOAD.replace("WEIGHT", "WBUF"), "line 1: load: 'target=WBUF[0]': write target=REGION[<byte>]"),
        (LOAD.replace("=weight", "=wieght"), "line 1: load: 'traffic=wieght' is none of weight, constant, spike,"),
        (LOAD.replace("traffic=weight", ""), "line 1: load: traffic is missing; write traffic=<weight|constant|"),
        (f"{LOAD} rows=1", "line 1: load: 'rows=1' says rows a second time"),
        (f"{LOAD} region=weight", "line 1: load: 'region=weight': no field region;"),
        (f"{LOAD} wait=pe,pe", "line 1: load: 'wait=pe,pe': write wait=<units>, each once, of dma,pe,"),
        (f"{LOAD} wait=", "line 1: load: 'wait=': write wait=<units>, each once, of"),
        ("sum fresh=1", "line 1: sum: 'fresh=1': fresh is a flag; write fresh, or leave it out"),
        ("layer index", "line 1: layer: 'index': write index=<number>"),
        (disassemble(fire(64, 0, 0, 64)).replace("residual=SPIKE[64] ", ""), "fire: residual is missing; write"),
        (disassemble(fire(64, 0, 0)).replace("OUTPUT[0]", "OUTPUT[2]"), "accumulators=2 must be a multiple of 4"),
    ],
)
def test_the_assembler_says_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(CStepError, match=re.escape(message)):
        assemble(text)


def test_comments_spaces_and_hexadecimal_are_read() -> None:
    assert assemble(" ; nothing\n\tlayer   index=0x10 ; sixteen\r\n\n") == (Layer(index=16),)


def accumulate(**changes: int) -> Accumulate:
    fields = window(3, 1, 8, 2, 32) | {"spikes": 0, "weights": 0, "accumulators": 0, "outputs": 8}
    return Accumulate(**(fields | {"plane": 0, "fresh": 1, "sharing": 0} | changes))


POOL = Pool(
    **window(2, 0, 8, 2, 32) | {"rows": 2, "columns": 2, "stride": 2},
    spikes=0,
    result=0,
    result_step_stride=8,
    planes=1,
)
ADD = Add(left=0, right=0, result=0, left_planes=1, right_planes=2, planes=2, pixels=1, words=1, plane_stride=2)

RESCALE = Rescale(
    accumulators=4, constants=0, addend=0, result=64, steps=1, pixels=1, outputs=8, divisor=0, adds=0, narrow=0, small=0
)
DILATE = Dilate(spikes=0, result=32, steps=1, tokens=4, heads=1, width=8, reach=1, pixel_stride=2, step_stride=8)


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (accumulate(rows=1024), "accumulate: rows=1024 does not fit 10 bits (1..1023)"),
        (accumulate(spikes=1), "accumulate: spike addresses and strides must be multiples of 2 bytes"),
        (accumulate(top=3), "accumulate: top=3 must be less than kernel_rows=3"),
        (accumulate(left=3), "accumulate: left=3 must be less than kernel_columns=3"),
        (accumulate(rows=6), "accumulate: rows=6 look past input_rows=4; 5 fit"),
        (accumulate(columns=7, rows=1, stride=2), "accumulate: columns=7 look past input_columns=4; 3 fit"),
        (accumulate(accumulators=2), "accumulate: accumulators=2 must be a multiple of 4"),
        (accumulate(wait=32), "accumulate: wait=32 does not fit 5 bits"),
        (replace(POOL, result=1), "pool: spike addresses and strides must be multiples of 2 bytes"),
        (replace(fire(0, 0, 0), start=2), "fire: start=2 does not fit 1 bits (0..1)"),
        (replace(fire(0, 0, 0, 64), residual_planes=3), "fire: planes=2 must be at least residual_planes=3"),
        (
            replace(fire(0, 0, 0), levels=4, planes=2),
            "fire: levels=4 need 3 planes and no residual; planes=2,",
        ),
        (
            replace(fire(0, 0, 0, 64), levels=1),
            "fire: levels=1 need 1 planes and no residual; planes=2,",
        ),
        (replace(fire(0, 0, 0), accumulators=2), "fire: accumulators=2 must be a multiple of 4"),
        (replace(RESCALE, accumulators=6), "rescale: accumulators=6 must be a multiple of 4"),
        (replace(RESCALE, accumulators=7, narrow=1), "rescale: accumulators=7 must be a multiple of 2"),
        (replace(DILATE, reach=0), "dilate: reach=0 does not fit 3 bits (1..7)"),
        (replace(DILATE, result=33), "dilate: spike addresses and strides must be multiples of 2 bytes"),
        (replace(ADD, planes=1), "add: planes=1 must be at least 2, those of its operands"),
        (load(Region.DRAM, Traffic.WEIGHT, 0, 0, 1), "load: region=0 (dram); a copy goes between DRAM and a buffer"),
        (load(Region.SPIKE, Traffic.SPIKE, 0, 0, 3), "load: spikes move in whole words"),
    ],
)
def test_the_encoder_refuses(instruction: Instruction, message: str) -> None:
    with pytest.raises(CStepError, match=f"^{re.escape(message)}"):
        encode(instruction)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (b"\x01", "word: 1 bytes; an instruction has 32"),
        (bytes(32), "word: opcode 0x00 is no instruction"),
        (encode(End())[:31] + b"\x80", "word: end: spare bits above bit 18 are set; they must be 0"),
        (b"\x10" + bytes(31), "word: accumulate: steps=0 does not fit 4 bits (1..15)"),
    ],
)
def test_the_decoder_refuses(word: bytes, message: str) -> None:
    with pytest.raises(CStepError, match=f"^{re.escape(message)}"):
        decode(word)


def test_the_manual_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "isa.md"
    assert page.read_text() == manual(), "run python -m isa.manual > docs/isa.md"


def small_instructions() -> st.SearchStrategy[Instruction]:
    """Instructions of four units that often meet in a few hundred bytes."""
    at = st.integers(0, 60).map(_four_times)
    buffers = st.sampled_from([Region.WEIGHT, Region.SPIKE, Region.OUTPUT])
    return st.one_of(
        st.builds(load, buffers, st.just(Traffic.IMAGE), st.just(0), at, st.integers(1, 64)),
        st.builds(_small_accumulate, at, at, at, st.integers(0, 1)),
        st.builds(_small_fire, at, at),
        st.builds(_small_add, at, at),
        st.builds(_small_rescale, at, at),
        st.builds(_small_decide, at),
        st.just(Exit(steps=1)),
    )


def _four_times(quarter: int) -> int:
    return 4 * quarter


def _small_accumulate(spikes: int, weights: int, accumulators: int, fresh: int) -> Instruction:
    one = dict.fromkeys(("rows", "columns", "outputs", "kernel_rows", "kernel_columns"), 1)
    tile = {"top": 0, "left": 0, "input_rows": 2, "input_columns": 2}
    return accumulate(spikes=spikes, weights=weights, accumulators=accumulators, fresh=fresh, **one, **tile)


def _small_fire(result: int, membranes: int) -> Instruction:
    return replace(fire(result, 0, membranes), pixels=2, outputs=2)


def _small_add(left: int, result: int) -> Instruction:
    return replace(ADD, left=left, result=result)


def _small_rescale(accumulators: int, result: int) -> Instruction:
    return replace(RESCALE, accumulators=accumulators, addend=result, result=result, adds=accumulators % 8 // 4)


def _small_decide(logits: int) -> Instruction:
    return Decide(logits=logits, outputs=2, criterion=Criterion.LIGHTSOFTMAX, multiplier=0, divisor=0, threshold=1)


def brute_force(code: list[Instruction]) -> list[tuple[int, ...]]:
    """The definition of `dependences`, pair by pair."""

    def meet(late: Instruction, early: Instruction) -> bool:
        if isinstance(late, End) or isinstance(early, Exit):
            return True
        if isinstance(late, Exit):
            return isinstance(early, Decide)
        return any(
            a.region == b.region != Region.DRAM
            and max(a.start, b.start) < min(a.stop, b.stop)
            and (a.writes or b.writes)
            for a in late.accesses()
            for b in early.accesses()
        )

    return [
        tuple(
            max((i for i in range(j) if code[i].unit == unit != code[j].unit and meet(code[j], code[i])), default=NEVER)
            for unit in Unit
        )
        for j in range(len(code))
    ]


@quick
@given(st.lists(small_instructions(), max_size=24))
def test_dependences_are_those_of_brute_force(code: list[Instruction]) -> None:
    code.append(End())
    assert dependences(code) == brute_force(code)


@quick
@given(st.lists(small_instructions(), max_size=16))
def test_tokens_order_everything_and_each_is_needed(code: list[Instruction]) -> None:
    ordered = list(with_tokens([*code, End()]))
    check_order(ordered)
    for index, instruction in enumerate(ordered):
        for unit in Unit:
            for name in ("wait", "post"):
                mask = getattr(instruction, name)
                if mask >> unit & 1:
                    weaker: list[Instruction] = ordered.copy()
                    weaker[index] = replace(instruction, **{name: mask & ~(1 << unit)})
                    with pytest.raises(CStepError, match=r"^code word "):
                        check_order(weaker)


@quick
@given(st.lists(small_instructions(), max_size=16))
def test_no_pair_of_wait_and_post_can_go(code: list[Instruction]) -> None:
    ordered = list(with_tokens([*code, End()]))
    for producer in Unit:
        for consumer in Unit:
            posts = [i for i, item in enumerate(ordered) if item.unit == producer and item.post >> consumer & 1]
            waits = [i for i, item in enumerate(ordered) if item.unit == consumer and item.wait >> producer & 1]
            for post, wait in zip(posts, waits, strict=True):
                weaker: list[Instruction] = ordered.copy()
                weaker[post] = replace(weaker[post], post=weaker[post].post & ~(1 << consumer))
                weaker[wait] = replace(weaker[wait], wait=weaker[wait].wait & ~(1 << producer))
                with pytest.raises(CStepError, match=f"^code word {wait}: .* must wait for"):
                    check_order(weaker)


def test_a_chain_needs_no_token_that_another_implies() -> None:
    code: list[Instruction] = [
        load(Region.SPIKE, Traffic.SPIKE, 0, 0, 64),
        accumulate(),
        replace(fire(0, 0, 8192), pixels=1),
        End(),
    ]
    dma, pe, neuron, control = (1 << unit for unit in (Unit.DMA, Unit.PE, Unit.NEURON, Unit.CONTROL))
    assert synchronise(code) == [(0, pe), (dma, neuron), (pe, control), (neuron, 0)]


def test_loads_of_rows_touch_the_bytes_they_say() -> None:
    fields = copy(Region.WEIGHT, Traffic.WEIGHT, 4) | {"rows": 3, "buffer_row_stride": 16, "dram_row_stride": 100}
    source, target = Load(**fields, source=7, target=32).accesses()
    assert (source.start, source.stop, source.reads) == (7, 211, True)
    assert (target.region, target.start, target.stop, target.writes) == (Region.WEIGHT, 32, 68, True)


def test_fire_reads_membranes_unless_it_starts() -> None:
    assert [a.field for a in fire(0, 0, 0).accesses() if a.reads] == ["accumulators", "constants"]
    later: Fire = replace(fire(0, 0, 0), start=0)
    assert [a.field for a in later.accesses() if a.reads] == ["accumulators", "constants", "membranes"]
    without: Fire = replace(later, charge=0)
    assert [a.field for a in without.accesses()] == ["accumulators", "constants", "result"]


def test_an_operand_is_overwritten_in_place_or_not_at_all() -> None:
    assert overwritten(RESCALE) is None and overwritten(replace(RESCALE, result=4)) is None
    assert overwritten(replace(RESCALE, result=34)) == (
        "writes result 34..49 over accumulators 4..35; it must lie apart, or start at 4"
    )
    beside = replace(RESCALE, addend=60)
    assert overwritten(beside) is None and overwritten(replace(beside, result=60, adds=1)) is None
    assert overwritten(replace(beside, adds=1)) == (
        "writes result 64..79 over addend 60..75; it must lie apart, or start at 60"
    )
    assert overwritten(replace(DILATE, result=0)) == "writes result 0..7 over spikes 0..7; it must lie apart"
