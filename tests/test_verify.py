"""What the verifier refuses, each by its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa.errors import CStepError
from isa.footprint import Written, overlaps_itself, simplified
from isa.hazards import with_tokens
from isa.instructions import End, Layer, Store, Sum
from isa.program import Program
from isa.verify import verify
from isa.word import Charge, Instruction, Region, Strided, Traffic
from tests.programs import copy, load, small_program, source_map

PROGRAM = small_program()
CODE = PROGRAM.code


def with_code(code: Sequence[Instruction]) -> Program:
    tokens = with_tokens(code)
    return replace(PROGRAM, code=tokens, source_map=source_map(tokens))


def with_word(index: int, /, **changes: int) -> Program:
    """The small program with fields of one word changed, its tokens derived anew."""
    code = list(CODE)
    code[index] = replace(code[index], **changes)
    return with_code(code)


def with_header(**changes: Any) -> Program:
    """Changes of the header, `input.steps` spelled input_steps."""
    header = PROGRAM.header
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            header = header.model_copy(update={part: getattr(header, part).model_copy(update={field: value})})
        else:
            header = header.model_copy(update={part: value})
    return replace(PROGRAM, header=header)


def refused(program: Program, message: str) -> None:
    with pytest.raises(CStepError) as caught:
        verify(program)
    assert str(caught.value).startswith(message), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_small_program_passes() -> None:
    verify(PROGRAM)
    verify(small_program("c-step-64"))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (replace(PROGRAM, code=()), "code: 0 words and the last is no end; a program ends with one"),
        (with_code(CODE[1:]), "code word 0: load: comes before the first layer mark; a program begins with one"),
        (with_code((CODE[0], End(), *CODE[1:])), "code word 1: end: only the last word (17) may be an end"),
        (with_word(7, index=3), "code word 7: layer: index=3; the layer table has 0..2"),
        (replace(PROGRAM, code=(CODE[0], replace(CODE[1], rows=0), *CODE[2:])), "code word 1: load: rows=0 does not"),
        (
            with_word(1, target=65535),
            "code word 1: load: writes target WEIGHT[65535..65766]; the region ends at 65535",
        ),
        (with_word(1, source=700), "code word 1: load: reads source DRAM[700..931]; the region ends at 703"),
        (
            with_word(1, rows=2, bytes=16, buffer_row_stride=8),
            "code word 1: load: the runs it writes to target WEIGHT[0..23] overlap; each stride must be at least",
        ),
        (
            with_word(5, membranes=512),
            "code word 5: fire: writes membranes 512..767 over accumulators 0..1023; it must lie apart",
        ),
        (
            with_word(10, result=1056),
            "code word 10: fire: writes result 1056..1183 over residual 1024..1087; it must lie apart, or start",
        ),
        (
            with_word(1, bytes=180),
            "code word 9: accumulate: reads weights WEIGHT[144..207], but no word before it wrote 180..207",
        ),
        (
            with_word(5, start=0),
            "code word 5: fire: reads membranes OUTPUT[1024..1279], but no word before it wrote 1024..1279",
        ),
        (
            with_word(9, spikes=0, inputs=1),
            "code word 9: accumulate: reads spikes SPIKE[0..63], but no word before it wrote 32..63",
        ),
        (
            with_word(8, traffic=Traffic.IMAGE),
            "code word 9: accumulate: reads spikes SPIKE[1024..1087], but 1024..1087 has no word mask: it was not",
        ),
        (
            with_word(15, bytes=8),
            "code word 16: end: no word wrote all of the output DRAM[576..587] before it",
        ),
        (
            with_word(6, target=500),
            "code word 6: store: writes target DRAM[500..563] into the input DRAM[512..543]; nothing may",
        ),
        (
            with_word(6, target=370),
            "code word 6: store: writes target DRAM[370..433] into the memory image DRAM[0..371]; nothing may",
        ),
        (
            with_word(8, source=604),
            "code word 8: load: reads source DRAM[604..667], but no word before it wrote 604..639",
        ),
    ],
)
def test_words_are_checked(program: Program, message: str) -> None:
    refused(program, message)


def test_a_result_may_start_where_its_operand_does() -> None:
    """The second neurons' spikes take the place of the residual that they add."""
    sums = [replace(word, spikes=word.spikes - 1024) if isinstance(word, Sum) else word for word in CODE]
    verify(with_code([*sums[:10], replace(CODE[10], result=1024), *sums[11:]]))


def test_neurons_without_a_membrane_read_none() -> None:
    """The same neurons that go on from a membrane that nothing wrote are refused, unless they have none."""
    refused(with_word(5, start=0, membranes=70000), "code word 5: fire: reads membranes OUTPUT[70000..70255], but no")
    verify(with_word(5, start=0, membranes=70000, charge=Charge.NONE))


def test_streams_are_no_spikes() -> None:
    """Bytes loaded as a stream may be multiplied, not accumulated."""
    verify(with_word(3, traffic=Traffic.STREAM))
    refused(
        with_word(8, traffic=Traffic.STREAM),
        "code word 9: accumulate: reads spikes SPIKE[1024..1087], but 1024..1087 has no word mask: it was not written",
    )


def test_the_word_mask_buffer_limits_spikes() -> None:
    machine = PROGRAM.header.machine.with_changes(word_mask_buffer_bytes=66)
    refused(
        with_header(machine=machine),
        "code word 5: fire: writes result SPIKE[1024..1087]; the word mask buffer covers 528 words, SPIKE[0..1055]",
    )


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (5, {"wait": 0}, "code word 5: fire: reads accumulators OUTPUT[0..1023], maybe before word 4 (multiply) has "),
        (5, {"wait": 9}, "code word 5: fire: waits for dma, but no earlier dma instruction has a token left for it"),
        (5, {"wait": 12}, "code word 5: fire: waits for neuron, its own unit; its queue is in order anyway"),
        (5, {"post": 0}, "code word 6: store: waits for neuron, but no earlier neuron instruction has a token left"),
        (5, {"post": 3}, "code word 5: fire: posts to pe, but no pe instruction takes the token (wait=neuron)"),
        (5, {"post": 5}, "code word 5: fire: posts to neuron, its own unit; its queue is in order anyway"),
        (16, {"wait": 0}, "code word 16: end: may come before word 15 (store) has ended; it must wait for dma, with"),
    ],
)
def test_tokens_are_checked(index: int, changes: dict[str, int], message: str) -> None:
    code = list(CODE)
    code[index] = replace(code[index], **changes)
    refused(replace(PROGRAM, code=tuple(code)), message)


def test_the_overwriting_of_what_is_still_read_is_refused() -> None:
    """The second load of weights must wait for the multiplication that reads the first."""
    again = load(Region.WEIGHT, Traffic.WEIGHT, 0, 0, 144)
    code = (*CODE[:5], again, *CODE[5:])
    program = replace(PROGRAM, code=code, source_map=source_map(code))
    refused(program, "code word 5: load: writes target WEIGHT[0..143], maybe before word 4 (multiply) has read WEIGHT")
    verify(with_code(code))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "source map: its 0 rows must name the 2 fire words in order"),
        ([[5, 0, 0, 0, 0, 0], [9, 1, 0, 0, 0, 0]], "source map: its 2 rows must name the 2 fire words in order"),
        ([[10, 0, 0, 0, 0, 0], [5, 1, 0, 0, 0, 0]], "source map: its 2 rows must name the 2 fire words in order"),
        ([[5, 3, 0, 0, 0, 0], [10, 1, 0, 0, 0, 0]], "source map row 0: layer 3; the layer table has 0..2"),
        ([[5, -1, 0, 0, 0, 0], [10, 1, 0, 0, 0, 0]], "source map row 0: layer -1; the layer table has 0..2"),
        ([[5, 0, 0, 0, 0, 0], [10, 2, 0, 0, 0, 0]], "source map row 1: layer 2 (head) has no neurons to fire"),
        ([[5, 0, 1, 0, 0, 0], [10, 1, 0, 0, 0, 0]], "source map row 0: 2 steps x 16 pixels x 8 channels from step 1,"),
        ([[5, 0, 0, 1, 0, 0], [10, 1, 0, 0, 0, 0]], "source map row 0: 2 steps x 16 pixels x 8 channels from step 0,"),
        ([[5, 0, 0, 0, 0, 0], [10, 1, 0, 0, 0, 1]], "source map row 1: 2 steps x 16 pixels x 8 channels from step 0,"),
        ([[5, 0, 0, 0, 0, -1], [10, 1, 0, 0, 0, 0]], "source map row 0: 2 steps x 16 pixels x 8 channels from step"),
    ],
)
def test_the_source_map_is_checked(rows: list[list[int]], message: str) -> None:
    refused(replace(PROGRAM, source_map=np.array(rows, np.int32).reshape(-1, 6)), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": 0}, "header: timesteps=0 must be at least 1"),
        ({"input__steps": 2}, "header: input steps=2; image input has 1 here"),
        ({"input__kind": "events"}, "header: input steps=1; events input has 2 here"),
        ({"input__shape": (2, 0, 4)}, "header: input shape (2, 0, 4) must be positive"),
        ({"input__scale": 0.0}, "header: input scale=0.0 must be a positive number"),
        ({"input__std": (0.0, 1.0)}, "header: input std must be positive numbers"),
        ({"input__std": (1.0,)}, "header: input mean and std must be as many finite numbers"),
        ({"input__address": 371}, "header: the memory image DRAM[0..371] overlaps the input at 371"),
        ({"input__address": -1}, "header: the input begins at DRAM[-1]; addresses begin at 0"),
        ({"output__address": 543}, "header: the input DRAM[512..543] overlaps the output at 543"),
        ({"output__address": 693}, "header: the output DRAM[693..704] passes dram_bytes=704"),
        ({"output__classes": 0}, "header: output classes=0 must be at least 1"),
        ({"output__scale": float("inf")}, "header: output scale=inf must be a positive number"),
        ({"dram_bytes": 0}, "header: dram_bytes=0 not in 1..1073741824"),
        ({"layers": PROGRAM.header.layers[:2]}, "code word 11: layer: index=2; the layer table has 0..1"),
    ],
)
def test_the_header_is_checked(changes: dict[str, Any], message: str) -> None:
    refused(with_header(**changes), message)


def test_gaps_between_rows_hold_nothing() -> None:
    """Footprints are followed byte by byte: what a strided load skips is not written."""
    rows = copy(Region.WEIGHT, Traffic.WEIGHT, 116) | {"rows": 2, "buffer_row_stride": 117, "dram_row_stride": 116}
    refused(
        with_code((CODE[0], replace(CODE[1], **rows), *CODE[2:])),
        "code word 4: multiply: reads weights WEIGHT[0..143], but no word before it wrote 116..116",
    )


def test_a_copy_that_writes_one_byte_many_times_is_refused() -> None:
    many = {"blocks": 100, "rows": 100, "bytes": 1, "buffer_block_stride": 101, "buffer_row_stride": 100}
    wild = Store(**copy(Region.WEIGHT, Traffic.WEIGHT, 1) | many, source=0, target=640)
    apart = {"dram_block_stride": 0, "dram_row_stride": 0}
    program = with_code((*CODE[:-1], replace(wild, **apart), CODE[-1]))
    refused(program, "code word 16: store: the runs it writes to target DRAM[640..640] overlap; each stride must")


def strided(run: int, loops: list[tuple[int, int]]) -> Strided:
    return Strided(run, tuple(count for count, _ in loops), tuple(stride for _, stride in loops))


loops_of_shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), max_size=3)
shapes = st.builds(strided, st.integers(1, 6), loops_of_shapes)


def bytes_of(shape: Strided) -> list[int]:
    starts = [0]
    for count, stride in zip(shape.counts, shape.strides, strict=True):
        starts = [start + i * stride for start in starts for i in range(count)]
    return [start + i for start in starts for i in range(shape.run)]


@settings(max_examples=200, deadline=None)
@given(shapes, shapes)
def test_footprints_are_exact(shape: Strided, other: Strided) -> None:
    simple = simplified(shape)
    assert set(bytes_of(simple)) == set(bytes_of(shape))
    assert simple.span == shape.span
    if len(bytes_of(shape)) != len(set(bytes_of(shape))):
        assert overlaps_itself(shape)
    written = Written(256)
    written.set(3, simple)
    assert np.flatnonzero(written.bytes).tolist() == [3 + byte for byte in sorted(set(bytes_of(shape)))]
    missing = written.missing(3, simplified(other))
    absent = sorted(set(bytes_of(other)) - set(bytes_of(shape)))
    assert (missing is None) == (not absent)
    if missing:
        assert missing[0] - 3 in absent
        assert not written.bytes[missing[0] : missing[1] + 1].any()


def test_a_program_of_marks_only_still_needs_its_output() -> None:
    code = (Layer(index=0), End())
    refused(
        replace(PROGRAM, code=code, source_map=source_map(code)),
        "code word 1: end: no word wrote all of the output DRAM[",
    )
