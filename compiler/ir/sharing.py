"""How a weighted layer's rows share what they have in common: the properties that say so, and what they must be.

A row is an output pixel (a token) at a timestep. `sharing` is none, or a mode by the name that every machine has for it
(docs/sharing.md); nothing written is the machine's own, pairs of adjacent tokens. `match` pairs rows by a table:
`partners`, each pixel's or (`over` = timesteps) each timestep's partner, itself where it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from compiler.ir.operation import SpikeOperation, require
from compiler.ir.spelling import Plain
from isa.word import Sharing

MODES = tuple(mode.name.lower() for mode in Sharing)
OVER = ("tokens", "timesteps")
SHARING: Mapping[str, Plain] = {"sharing": "", "over": ""}


def check_sharing(op: SpikeOperation) -> None:
    """Raise VerifyException for a mode that there is not, and for one of pairs without a table."""
    mode, over, table = op.get("sharing"), op.get("over"), op.symbol("partners")
    require(mode in ("", *MODES), op, f"sharing={mode}; it must be one of {', '.join(MODES)}")
    matched = mode == "match"
    require(matched == (table is not None), op, f"sharing={mode or 'pair'} and partners: match has them, nothing else")
    require(over in (OVER if matched else ("",)), op, f"over={over}; of match it must be {' or '.join(OVER)}")


def partner_shapes(op: SpikeOperation) -> dict[str, tuple[int, ...]]:
    """The table's shape, where there is one."""
    if op.symbol("partners") is None:
        return {}
    kind = op.result_type
    return {"partners": ((kind.steps or 1) if op.get("over") == "timesteps" else prod(kind.sizes[:-1]),)}
