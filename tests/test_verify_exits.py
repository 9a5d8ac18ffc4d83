"""What the verifier refuses of exits, and of what channel masks guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from isa.hazards import with_tokens
from isa.instructions import Guard
from isa.program import Program
from isa.verify import verify
from isa.word import Instruction
from tests.programs import NEVER, decide, exit_program
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
