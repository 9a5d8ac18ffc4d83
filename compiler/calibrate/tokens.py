"""How many tokens each block needs: shares lowered block by block under the bound of the loss, without training."""

from __future__ import annotations

from math import ceil

from compiler.calibrate.search import Search
from compiler.calibrate.trials import Outcome
from compiler.ir.network import Network
from compiler.passes.blocks import blocks_of
from compiler.passes.stop_tokens import StopTokens
from compiler.settings import Score, Tokens
from isa.errors import CStepError

NOTCH = 1 / 8
"""Of the tokens of a block."""


def notch_below(keep: float) -> float:
    """The next share that is a multiple of a notch, 0 at the least: 1 -> 0.875, 0.8 -> 0.75."""
    return max(0.0, (ceil(keep / NOTCH - 1e-9) - 1) * NOTCH)


def require_blocks(network: Network, score: Score) -> None:
    """Raises CStepError for an integer network that `stop-tokens` refuses."""
    try:
        StopTokens(keep=(0.0,), score=score).apply(network)
    except CStepError as error:
        raise CStepError(f"--tokens auto: {error}") from None


def lower_tokens(search: Search, outcome: Outcome) -> Outcome:
    """Fewer tokens block by block, an eighth at a time; returns the outcome of what was found, or the one given.

    Greedy: the next notch is always that of the block whose last one cost least, and of the last block where several
    cost the same, as in the beginning. A block whose notch breaks the bound keeps what it has, and is not tried again:
    at most eight trials a block.
    """
    wanted, findings = search.wanted, search.findings
    blocks = blocks_of(search.trials.integer)
    findings.blocks = tuple(block.name for block in blocks)
    keep, lost = [1.0] * len(blocks), search.loss(search.right(outcome.logits))
    costs = dict.fromkeys(reversed(range(len(blocks))), 0.0)
    while costs:
        number = min(costs, key=lambda each: costs[each])
        before, name, share = findings.settings.tokens, blocks[number].name, _fewer(keep[number], blocks[number].tokens)
        tried = (*keep[:number], share, *keep[number + 1 :])
        tokens = Tokens(keep=tried, score=wanted.score)
        search.found(tokens=tokens)
        try:
            seen = search.run(f"{share:.3g} of the tokens in {name}", search.parts())
        except CStepError as error:  # masks may leave the block's layers other timesteps than what enters it has
            findings.warnings.append(f"tokens: no {share:.3g} of them in {name}: {error}")
            search.found(tokens=before)
            del costs[number]
            continue
        loss = search.loss(search.right(seen.logits))
        if not search.holds(loss):
            search.found(tokens=before)
            del costs[number]
            continue
        search.found(tokens=tokens.model_copy(update={"loss": loss}))
        costs[number], keep[number], lost, outcome = loss - lost, share, loss, seen
        if share == 0:
            del costs[number]
    if findings.settings.tokens is None:
        findings.warnings.append(f"tokens: no block loses at most {wanted.loss:g} points with an eighth fewer of them")
    return outcome


def _fewer(keep: float, tokens: int) -> float:
    """The next share that keeps fewer of so many tokens: of four tokens 7/8 would be all of them."""
    share = notch_below(keep)
    while share > 0 and ceil(share * tokens) == ceil(keep * tokens):
        share = notch_below(share)
    return share
