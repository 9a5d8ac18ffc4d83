"""Neurons of the spike dialect, and what brings a current into their units.

A neuron's `mask`, one 0 or 1 a timestep, multiplies its output; its membrane goes on as if there were none (DTS-SNN
eq. 5). Without a mask it is 1 at every timestep.

In integers, neurons and rescales may have a second operand, a kept train Nx1 of spikes, N the tokens of their result:
at a timestep at which a token is not kept its result is 0, and its membranes stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, FloatData, IntAttr, StringAttr, SymbolRefAttr
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from compiler.ir.operation import SpikeOperation, require
from compiler.ir.spelling import HouseOperation, Plain
from compiler.ir.types import Element, Tensor, Train


@irdl_op_definition
class Lif(SpikeOperation):
    """A neuron in real numbers; `charge`: lif, lif_undecayed, if; `reset`: hard (to 0) or soft; `fires`: ge or gt.

    `decay`: divide by tau, or multiply by 1 / tau (a parametric LIF's sigmoid); they round differently.
    `emits`: the value of a spike (DTS-SNN's neurons emit their threshold); other than 1, the result is a real number.
    """

    name = "spike.lif"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {
        "charge": "lif", "reset": "hard", "fires": "ge", "decay": "divide", "emits": 1.0, "mask": (),
    }  # fmt: skip
    current = operand_def(Train)
    result = result_def(Train)
    tau = prop_def(FloatData)
    threshold = prop_def(FloatData)
    reset = opt_prop_def(StringAttr)
    charge = opt_prop_def(StringAttr)
    fires = opt_prop_def(StringAttr)
    decay = opt_prop_def(StringAttr)
    emits = opt_prop_def(FloatData)
    mask = opt_prop_def(ArrayAttr[IntAttr])

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        _check_mask(self)
        if self.get("emits") == 1.0:
            self.expect_element(Element.spike())
        _check_words(self)


@irdl_op_definition
class Level(SpikeOperation):
    """A neuron without membrane: round(clamp(x, 0, levels)) / norm, ties to even or up (SDT-V3)."""

    name = "spike.level"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"ties": "even", "mask": ()}
    current = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    levels = prop_def(IntAttr)
    norm = prop_def(FloatData)
    ties = opt_prop_def(StringAttr)
    mask = opt_prop_def(ArrayAttr[IntAttr])

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        _check_mask(self)
        self.expect_positive("levels", "norm")
        _check_words(self)


def _check_kept(op: SpikeOperation) -> None:
    """A kept train, if there is one: a spike a token."""
    if len(op.operands) < 2:
        return
    kept, tokens = op.operand_type(1), prod(op.result_type.sizes[:-1])
    fits = kept.sizes == (tokens, 1) and kept.element == Element.spike()
    require(fits, op, f"keeps {kept}; the result is {op.result_type}, what is kept must be {tokens}x1xi1")


_WORDS = {
    "reset": ("hard", "soft"),
    "charge": ("lif", "lif_undecayed", "if"),
    "fires": ("ge", "gt"),
    "decay": ("divide", "multiply"),
    "ties": ("even", "up"),
}


def _check_mask(op: SpikeOperation) -> None:
    """A timestep mask (DTS-SNN): one 0 or 1 a timestep, or none at all."""
    mask, steps = op.get("mask"), op.result_type.steps or 0
    fits = not mask or (len(mask) == steps and set(mask) <= {0, 1})
    require(fits, op, f"mask={list(mask)}; it must be {steps} times 0 or 1, one a timestep")


def _check_words(op: HouseOperation) -> None:
    for key, words in _WORDS.items():
        if key in op.DEFAULTS:
            require(op.get(key) in words, op, f"{key}={op.get(key)}; it must be one of {', '.join(words)}")


@irdl_op_definition
class IntegerLif(SpikeOperation):
    """A neuron in integers, `threshold` int32 per channel of the last dimension, membrane clamped to int16.

    Decay by round(d * multiplier / 2^divisor), half up: multiplier=1, divisor=1 is tau = 2.
    """

    name = "spike.integer_lif"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"charge": "lif", "reset": "hard", "mask": ()}
    current = operand_def(Train)
    kept = opt_operand_def(Train)
    result = result_def(Train)
    threshold = prop_def(SymbolRefAttr)
    multiplier = prop_def(IntAttr)
    divisor = prop_def(IntAttr)
    reset = opt_prop_def(StringAttr)
    charge = opt_prop_def(StringAttr)
    mask = opt_prop_def(ArrayAttr[IntAttr])

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        _check_kept(self)
        _check_mask(self)
        self.expect_element(Element.spike())
        require(not self.operand_type().element.is_real, self, f"the current is {self.operand_type()}; no integers")
        _check_words(self)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"threshold": self.result_type.sizes[-1:]}


@irdl_op_definition
class IntegerLevel(SpikeOperation):
    """A level neuron in integers: the number of j in 1..levels with 2 x >= (2 j - 1) threshold[c].

    `ties` even: > for odd j, so that x / threshold is rounded half to even. `threshold` int32 per channel.
    """

    name = "spike.integer_level"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"ties": "even", "mask": ()}
    current = operand_def(Tensor | Train)
    kept = opt_operand_def(Train)
    result = result_def(Tensor | Train)
    threshold = prop_def(SymbolRefAttr)
    levels = prop_def(IntAttr)
    ties = opt_prop_def(StringAttr)
    mask = opt_prop_def(ArrayAttr[IntAttr])

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        _check_kept(self)
        _check_mask(self)
        self.expect_positive("levels")
        self.expect_element(Element.count(self.get("levels")))
        require(not self.operand_type().element.is_real, self, f"the current is {self.operand_type()}; no integers")
        _check_words(self)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"threshold": self.result_type.sizes[-1:]}


@irdl_op_definition
class Range(SpikeOperation):
    """Leaves x as it is, and says what calibration saw of it: |x| <= `most`. It gives a stream its scale."""

    name = "spike.range"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    most = prop_def(FloatData)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        self.expect_positive("most")


@irdl_op_definition
class Align(SpikeOperation):
    """Accumulators in units of the membrane: (x << shift) + bias, `bias` int32 per channel of the last dimension.

    A negative shift goes right and rounds half up.
    """

    name = "spike.align"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    bias = opt_prop_def(SymbolRefAttr)
    shift = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"bias": self.result_type.sizes[-1:]}


@irdl_op_definition
class Rescale(SpikeOperation):
    """Accumulators as a fixed-point stream: clamp(((x * multiplier[c] + half) >> divisor) + bias[c]), half up.

    half = 1 << divisor >> 1; clamped to the bounds of the result, which int16 (or int8) holds. `multiplier` and `bias`
    are int32 per channel of the last dimension. The result is `fixed<16, f>` or `fixed<8, f>`, one scale for all
    channels, or `int<-32768, 32767>`, a current whose channels have scales of their own.
    """

    name = "spike.rescale"
    input = operand_def(Tensor | Train)
    kept = opt_operand_def(Train)
    result = result_def(Tensor | Train)
    multiplier = prop_def(SymbolRefAttr)
    bias = prop_def(SymbolRefAttr)
    divisor = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        _check_kept(self)
        low, high = self.result_type.element.bounds
        require(-(1 << 15) <= low < high < 1 << 15, self, f"the result is {self.result_type}; it must fit int16")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("multiplier", "bias"), self.result_type.sizes[-1:])
