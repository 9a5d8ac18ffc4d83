"""What the verifier refuses of exits, and of what channel masks guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from isa.guarded import Guarded
from isa.hazards import with_tokens
from isa.instructions import Accumulate, Depthwise, Guard, Load, Multiply
from isa.program import Program
from isa.verify import verify
from isa.word import Instruction, Region, Traffic
from tests.programs import NEVER, copy, decide, exit_program, window
from tests.test_verify import refused

EXITS = exit_program(NEVER, guarded=True)
"""Words 6, 7: early counts and their mask; 18: the logits; 19, 20: decide and exit; 27, 28: what the mask guards."""


def exits_with(*edits: tuple[int, Instruction | None]) -> Program:
    """The program with an exit, words replaced (or dropped); its tokens derived anew."""
    code = dict(enumerate(EXITS.code)) | dict(edits)
    kept = {number: index for index, number in enumerate(n for n, word in code.items() if word is not None)}
    rows = EXITS.source_map.copy()
    rows[:, 0] = [kept[number] for number in rows[:, 0].tolist()]
    return replace(EXITS, code=with_tokens([word for word in code.values() if word is not None]), source_map=rows)


def with_inserted(number: int, *words: Instruction, changes: Sequence[tuple[int, Instruction]] = ()) -> Program:
    """The program with an exit, words put before one of its own."""
    program = exits_with(*changes)
    rows = program.source_map.copy()
    rows[:, 0] += np.where(rows[:, 0] >= number, len(words), 0)
    code = with_tokens([*program.code[:number], *words, *program.code[number:]])
    return replace(program, code=code, source_map=rows)


def changed(number: int, **changes: int) -> tuple[int, Instruction]:
    return number, replace(EXITS.code[number], **changes)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (exits_with((19, None)), "code word 19: exit: no decide since the exit before it; each exit needs one"),
        (exits_with((20, None)), "code word 35: end: no exit acts on word 19 (decide) before it"),
        (exits_with((21, decide(0))), "code word 36: end: no exit acts on word 21 (decide) before it"),
        (exits_with((20, decide(0))), "code word 20: decide: no exit acts on word 19 (decide) before it"),
        (
            exits_with(changed(20, steps=2)),
            "code word 20: exit: steps=2; it must be 1..1, after the exit before it",
        ),
        (exits_with(changed(19, outputs=2)), "code word 19: decide: outputs=2; the output has 3 classes, and all dec"),
        (
            exits_with((18, None)),
            "code word 19: exit: no word wrote all of the output DRAM[576..587] before it",
        ),
        (
            exits_with((35, None)),
            "code word 35: end: no word wrote all of the output DRAM[576..587] since word 20 (exit)",
        ),
    ],
)
def test_exits_are_checked(program: Program, message: str) -> None:
    refused(program, message)


def test_exits_come_in_order() -> None:
    again = EXITS.code[17:21]
    code = with_tokens([*EXITS.code[:21], *again, *EXITS.code[21:]])
    header = EXITS.header.model_copy(update={"timesteps": 3})
    rows = EXITS.source_map.copy()
    rows[2:, 0] += len(again)
    program = replace(EXITS, header=header, code=code, source_map=rows)
    refused(program, "code word 24: exit: steps=1; it must be 2..2, after the exit before it and before the last")
    later = [*code[:24], replace(code[24], steps=2), *code[25:]]
    verify(replace(program, code=tuple(later)))


AGAIN = Guard(counts_at=0, mask=64, channels=8, threshold=3)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            exits_with((7, None)),
            "code word 26: load: reads row_mask CHANNEL[64..65], but no word before it wrote 64..65",
        ),
        (
            exits_with(changed(6, counts_fresh=0)),
            "code word 6: fire: reads counts_at CHANNEL[0..15], but no word before it wrote 0..15",
        ),
        (
            exits_with(changed(28, row_mask=2), changed(27, row_mask=2)),
            "code word 27: load: reads row_mask CHANNEL[2..3] as a mask, but byte 2 is of counts; a guard makes masks",
        ),
        (
            exits_with((21, replace(AGAIN, counts_at=64, mask=80, channels=1))),
            "code word 21: guard: reads counts_at CHANNEL[64..65] as counts, but byte 64 is of a mask; a guard makes",
        ),
        (
            exits_with(changed(28, masks_rows=0)),
            "code word 28: accumulate: reads WEIGHT[144], which word 27 loaded only if bit 0 of CHANNEL[64] is set; it",
        ),
        (
            exits_with((26, replace(AGAIN, mask=66)), changed(28, row_mask=66)),
            "code word 28: accumulate: reads WEIGHT[144], which word 27 loaded only if bit 0 of CHANNEL[64] is set; it",
        ),
        (
            exits_with(changed(28, masks_rows=0, masks_columns=1, column_mask=64)),
            "code word 28: accumulate: reads WEIGHT[145], which word 27 loaded only if bit 0 of CHANNEL[64] is set; it",
        ),
        (
            exits_with(changed(27, target=145, rows=7)),
            "code word 28: accumulate: reads WEIGHT[152], which word 27 loaded only if bit 0 of CHANNEL[64] is set; it",
        ),
        (
            with_inserted(28, AGAIN),
            "code word 29: accumulate: reads WEIGHT[144], whose channel mask was written again since word 27 loaded it",
        ),
        (
            exits_with(changed(34, weights=144)),
            "code word 34: classify: reads WEIGHT[144], which word 27 loaded only if bit 0 of CHANNEL[64] is set; it",
        ),
    ],
)
def test_channel_masks_are_checked(program: Program, message: str) -> None:
    refused(program, message)


def test_weights_may_be_used_under_more_masks_than_they_were_loaded_under() -> None:
    verify(exits_with(changed(28, masks_columns=1, column_mask=64)))
    verify(exits_with(changed(27, masks_rows=0)))


def test_loading_again_forgets_the_masks() -> None:
    verify(with_inserted(28, replace(EXITS.code[27], masks_rows=0), changes=[changed(28, masks_rows=0)]))
    verify(with_inserted(28, AGAIN, EXITS.code[27]))


def under(**masks: int) -> Load:
    """Two taps of 16 inputs x 32 outputs at WEIGHT[64], loaded under masks."""
    fields = copy(Region.WEIGHT, Traffic.WEIGHT, 32) | {"blocks": 2, "rows": 16}
    strides = {"buffer_block_stride": 512, "buffer_row_stride": 32, "dram_block_stride": 512, "dram_row_stride": 32}
    return Load(**fields | strides, source=0, target=64, **masks)


def reader(kind: type[Accumulate | Multiply], inputs: int = 16, outputs: int = 32, **masks: int) -> Instruction:
    """One that reads two taps of weights there."""
    fields = window(1, 0, inputs, 4, 128) | {"kernel_columns": 2, "columns": 3, "accumulators": 0, "fresh": 1}
    mine = {"spikes": 0, "plane": 0, "sharing": 0} if kind is Accumulate else {"values": 0}
    return kind(**fields | mine, weights=64, outputs=outputs, **masks)


ROWS, COLUMNS = {"masks_rows": 1, "row_mask": 8}, {"masks_columns": 1, "column_mask": 16}


@pytest.mark.parametrize(
    ("load", "read", "right"),
    [
        (under(**ROWS, **COLUMNS), reader(Accumulate, **ROWS, **COLUMNS), True),
        (under(**ROWS, **COLUMNS), reader(Accumulate, **COLUMNS), False),
        (under(**ROWS, **COLUMNS), reader(Accumulate, **ROWS), False),
        (under(**COLUMNS), reader(Multiply, **COLUMNS), True),
        (under(**COLUMNS), reader(Multiply, masks_columns=1, column_mask=18), False),
        (under(**COLUMNS), reader(Multiply), False),
        (under(), reader(Multiply), True),
        (under(**COLUMNS), reader(Accumulate, inputs=32, outputs=16, **COLUMNS), False),
    ],
)
def test_readers_are_guarded_byte_by_byte(load: Load, read: Instruction, right: bool) -> None:
    guarded = Guarded(4096)
    assert guarded.follow(0, load, tuple(load.accesses())) is None
    assert (guarded.follow(1, read, tuple(read.accesses())) is None) == right


def test_depthwise_weights_are_loaded_under_the_mask_of_their_inputs() -> None:
    """A run is all channels of a tap, so the load's columns are the reader's inputs and outputs."""
    load = replace(under(**COLUMNS), rows=1, blocks=4)
    fields = window(2, 1, 32, 4, 64) | {"spikes": 0, "weights": 64, "accumulators": 0, "plane": 0, "fresh": 1}
    for masks, right in (({"masks_rows": 1, "row_mask": 16}, True), (COLUMNS, True), (ROWS, False)):
        read, guarded = Depthwise(**fields, **masks), Guarded(4096)
        assert guarded.follow(0, replace(load, buffer_block_stride=32), ()) is None
        assert (guarded.follow(1, read, tuple(read.accesses())) is None) == right
