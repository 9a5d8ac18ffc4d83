"""Everything that is drawn at random, by the unit that executes it, and sequences of it."""

from __future__ import annotations

from drawn import (
    RARELY,
    accumulate_sides,
    accumulates,
    adds,
    attends,
    channel_masks,
    classifies,
    copies,
    counts_of_spikes,
    decides,
    depthwise,
    dilations,
    fires,
    guards,
    masks,
    multiplies,
    pairings,
    pools,
    pools_of_values,
    rescales,
    sums,
    sums_of_heads,
    sums_of_values,
)
from drawn_tokens import (
    belows,
    choices,
    halted_blocks,
    halts,
    kept_accumulates,
    kept_attention,
    kept_neurons,
    latches,
    scored_choices,
    scores,
    weighs,
)
from hypothesis import strategies as st

from isa.instructions import Accumulate, KeepNeurons, KeepRows, KeepTokens
from isa.word import Instruction, Unit

UNITS: dict[Unit, st.SearchStrategy[Instruction]] = {
    Unit.DMA: copies(),
    Unit.PE: st.one_of(accumulates(), depthwise(), st.one_of(pairings(), latches(KeepRows))),
    Unit.NEURON: st.one_of(
        st.one_of(fires(), counts_of_spikes(), guards(), latches(KeepNeurons)),
        st.one_of(adds(), rescales(), masks(), pools(), pools_of_values(), dilations()),
    ),
    Unit.SFU: st.one_of(
        st.one_of(multiplies(), attends(), sums(), sums_of_heads(), sums_of_values(), classifies(), decides()),
        st.one_of(scores(), choices(), latches(KeepTokens)),
        st.one_of(halts(), belows(), weighs()),
    ),
}
ANY = st.one_of(*UNITS.values())
"""Any instruction that changes the machine's memories."""
KEPT: dict[Unit, st.SearchStrategy[list[Instruction]]] = {
    Unit.PE: kept_accumulates(),
    Unit.NEURON: kept_neurons(),
    Unit.SFU: st.one_of(kept_attention(), scored_choices(), halted_blocks()),
}
"""Instructions that work on kept tokens, behind what latches them."""


@st.composite
def sequences(draw: st.DrawFn) -> list[Instruction]:
    """Several layers on the same spikes, with anything in between that may or may not overwrite these spikes."""
    first = draw(accumulates())
    code: list[Instruction] = [first]
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            code.append(draw(ANY))
        values = {name: getattr(first, name) for name, _ in first.layout}
        values |= draw(channel_masks("row", "column")) if draw(RARELY) else {}
        code.append(Accumulate(**values | draw(accumulate_sides())))
    return code
