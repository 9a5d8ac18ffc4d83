"""Ops of the spike dialect that act on time: fewer timesteps, exits, and guards that earlier timesteps set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, IntAttr, StringAttr
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from compiler.ir.operation import SpikeOperation, require
from compiler.ir.spelling import Plain
from compiler.ir.types import Tensor, Train

CRITERIA = ("lightsoftmax", "softmax", "entropy")
SKIPS = ("rows", "columns", "both")


@irdl_op_definition
class Extend(SpikeOperation):
    """The train, and zeros at the timesteps behind its last."""

    name = "spike.extend"
    KEEPS_TIME: ClassVar[bool] = False
    input = operand_def(Train)
    result = result_def(Train)

    def check(self) -> None:
        before, after = self.operand_type(), self.result_type
        self.expect_shape(before.sizes)
        require((before.steps or 0) < (after.steps or 0), self, f"{before} becomes {after}; T must grow")
        low, high = after.element.bounds
        require(low <= 0 <= high or after.element.is_real, self, f"the result is {after}; its bounds must hold 0")


@irdl_op_definition
class Truncate(SpikeOperation):
    """The first timesteps of a train."""

    name = "spike.truncate"
    KEEPS_TIME: ClassVar[bool] = False
    input = operand_def(Train)
    result = result_def(Train)

    def check(self) -> None:
        before, after = self.operand_type(), self.result_type
        self.expect_shape(before.sizes)
        self.expect_element(before.element)
        require(
            0 < (after.steps or 0) < (before.steps or 0),
            self,
            f"{before} becomes {after}; T must shrink",
        )


@irdl_op_definition
class RunningSum(SpikeOperation):
    """At every timestep, the sum of this timestep and all before it."""

    name = "spike.running_sum"
    input = operand_def(Train)
    result = result_def(Train)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)


@irdl_op_definition
class Exit(SpikeOperation):
    """Logits of the first exit that is taken, or of the last timestep: cumulative logits M a timestep become M.

    After n timesteps, n in `after` (ascending, below T), the exit is taken where the measure of `criterion` on the
    logits of timestep n - 1 is at least its entry of `thresholds`. Measures are those of `isa.instructions.Decide`:
    `multipliers` and `divisors`, one an exit, bring logits into its units where the criterion has exponentials. What
    happens at the timesteps behind the exit that is taken does not count: the program does not run them.
    """

    name = "spike.exit"
    KEEPS_TIME: ClassVar[bool] = False
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"criterion": "lightsoftmax", "multipliers": (), "divisors": ()}
    logits = operand_def(Train)
    result = result_def(Tensor)
    after = prop_def(ArrayAttr[IntAttr])
    thresholds = prop_def(ArrayAttr[IntAttr])
    criterion = opt_prop_def(StringAttr)
    multipliers = opt_prop_def(ArrayAttr[IntAttr])
    divisors = opt_prop_def(ArrayAttr[IntAttr])

    def check(self) -> None:
        kind, after, criterion = self.operand_type(), self.get("after"), self.get("criterion")
        steps = kind.steps or 0
        self.expect_shape(kind.sizes)
        self.expect_element(kind.element)
        require(len(kind.sizes) == 1 and kind.sizes[0] > 1, self, f"the logits are {kind}; there must be two or more")
        fits = all(0 < n < steps for n in after) and list(after) == sorted(set(after))
        require(bool(after) and fits, self, f"after={list(after)}; exits are after 1..{steps - 1} timesteps")
        require(
            self.get("criterion") in CRITERIA, self, f"criterion={self.get('criterion')}; it must be one of {CRITERIA}"
        )
        each = ["thresholds"] if criterion == "lightsoftmax" else ["thresholds", "multipliers", "divisors"]
        for key in each:
            require(
                len(self.get(key)) == len(after), self, f"{key}={list(self.get(key))}; one each for after={list(after)}"
            )


@irdl_op_definition
class Guard(SpikeOperation):
    """Spikes or counts without the channels that were silent early (C-STEP's early-guided channel pruning).

    A channel is silent where, over the first `after` timesteps and all tokens and bit planes, at most `threshold` bits
    are set; from timestep `after` on it is 0. `skips` says what the machine saves by it: rows (a weighted layer that
    reads it does not read the weights of silent channels), columns (the weighted layer whose neurons it guards does not
    compute silent channels), or both. The values are the same.
    """

    name = "spike.guard"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"threshold": 0, "skips": "both"}
    input = operand_def(Train)
    result = result_def(Train)
    after = prop_def(IntAttr)
    threshold = opt_prop_def(IntAttr)
    skips = opt_prop_def(StringAttr)

    def check(self) -> None:
        kind, after, threshold = self.operand_type(), self.get("after"), self.get("threshold")
        self.expect_shape(kind.sizes)
        self.expect_element(kind.element)
        require(kind.element.is_count, self, f"guards {kind}; only spikes and counts are guarded")
        require(0 < after < (kind.steps or 0), self, f"after={after}; it must be in 1..{(kind.steps or 0) - 1}")
        require(0 <= threshold < (1 << 16) - 1, self, f"threshold={threshold}; it must be in 0..65534")
        require(self.get("skips") in SKIPS, self, f"skips={self.get('skips')}; it must be one of {', '.join(SKIPS)}")


__all__ = ["CRITERIA", "SKIPS", "Exit", "Extend", "Guard", "RunningSum", "Truncate"]
