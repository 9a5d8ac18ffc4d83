"""The run-time knob of a program whose tokens halt: the total at which they do (STAS-epsilon)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import ceil

from isa.errors import CStepError
from isa.instructions import Halt, KeepBelow
from isa.program import Program, Provenance
from isa.scores import WEIGHT_BITS

HALT_TOKENS = re.compile(r"\bhalt-tokens(?:\{([^}]*)\})?")
"""The pass in a pipeline, with its options or without any."""


def limit_of(epsilon: float, where: str = "epsilon=") -> int:
    """The integer total at which a token halts, 1 - epsilon. Raises CStepError outside [0, 1)."""
    if not 0 <= epsilon < 1:
        raise CStepError(f"{where}{epsilon:g}; it must be 0 or more, and less than 1")
    return max(1, ceil((1 - epsilon) * (1 << WEIGHT_BITS) - 1e-9))


def with_epsilon(program: Program, epsilon: float, where: str = "epsilon=") -> Program:
    """The same program whose tokens halt at a total of 1 - epsilon; the provenance says so.

    Raises CStepError outside [0, 1), and for a program without halting.
    """
    limit = limit_of(epsilon, where)
    if not any(isinstance(each, Halt) for each in program.code):
        raise CStepError(f"{where}{epsilon:g}: no tokens halt in this program; compile it with [halting] settings")
    code = tuple(replace(each, limit=limit) if isinstance(each, Halt | KeepBelow) else each for each in program.code)
    header = program.header.model_copy(update={"provenance": _said(program.header.provenance, epsilon)})
    return Program(header, code, program.memory, program.source_map)


def _said(provenance: Provenance, epsilon: float) -> Provenance:
    """The pipeline spelled as compiling spells it, and the settings where there are any."""
    epsilon, settings = float(epsilon), provenance.settings
    option = f"epsilon={epsilon!r}"

    def spelled(found: re.Match[str]) -> str:
        options, replaced = re.subn(r"\bepsilon=\S+", option, found[1] or "")
        return f"halt-tokens{{{options if replaced else f'{options} {option}'.strip()}}}"

    pipeline = HALT_TOKENS.sub(spelled, provenance.pipeline)
    if settings and "halting" in (values := json.loads(settings)):
        values["halting"]["epsilon"] = epsilon
        settings = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return provenance.model_copy(update={"pipeline": pipeline, "settings": settings})
