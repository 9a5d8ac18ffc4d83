"""The spike dialect: what a spiking network computes, before and after quantisation.

An op on trains computes at every timestep by itself; only neurons carry a state from step to step, a guard
looks back at the first timesteps, and only `repeat`, `mean_time`, `sum_time`, `exit`, `extend` and `truncate` change
whether or how long there is time (compiler/ir/time_ops.py). What each op computes stands in
compiler/ir/meaning.py, one function an op.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, FloatData, IntAttr, StringAttr, SymbolRefAttr
from xdsl.ir import Dialect
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from compiler.ir.neuron_ops import Align, IntegerLevel, IntegerLif, Level, Lif, Range, Rescale
from compiler.ir.operation import SpikeOperation, require
from compiler.ir.sharing import SHARING, check_sharing, partner_shapes
from compiler.ir.spelling import Plain
from compiler.ir.time_ops import Exit, Extend, Guard, RunningSum, Truncate
from compiler.ir.token_ops import OPERATIONS as TOKEN_OPERATIONS
from compiler.ir.token_ops import Below, GivenTokens, Halt, KeepTokens, Weigh
from compiler.ir.types import Element, Tensor, Train


@irdl_op_definition
class Input(SpikeOperation):
    """The network's input: a tensor for an image, a train for events."""

    name = "spike.input"
    result = result_def(Tensor | Train)


@irdl_op_definition
class Output(SpikeOperation):
    """The logits. After quantisation the model's logits are these integers times `scale`.

    `steps` is the T that `scale` divides sums over time by, where masks have left all of them fewer timesteps.
    """

    name = "spike.output"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"scale": 1.0, "steps": 0}
    value = operand_def(Tensor)
    scale = opt_prop_def(FloatData)
    steps = opt_prop_def(IntAttr)


@irdl_op_definition
class Repeat(SpikeOperation):
    """The same tensor at every timestep."""

    name = "spike.repeat"
    KEEPS_TIME: ClassVar[bool] = False
    value = operand_def(Tensor)
    result = result_def(Train)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)


@irdl_op_definition
class QuantiseImage(SpikeOperation):
    """Image to integers: clip(rint(x / scale), -127, 127)."""

    name = "spike.quantise_image"
    value = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    scale = prop_def(FloatData)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)


@irdl_op_definition
class Conv(SpikeOperation):
    """2-d convolution of HxWxC by a weight [out, in / groups, kernel, kernel].

    `rows` = 1 is a convolution along the columns of every row by itself: a window of 1 x kernel, weight
    [out, in / groups, 1, kernel], nothing padded or skipped between rows (torch's conv1d, on 1xNxC).
    `sharing` says how the machine's rows share sums (compiler/ir/sharing.py); the values are the same.
    """

    name = "spike.conv"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"stride": 1, "padding": 0, "groups": 1, "rows": 0, **SHARING}
    NAMED: ClassVar[tuple[str, ...]] = ("partners",)
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    weight = prop_def(SymbolRefAttr)
    bias = opt_prop_def(SymbolRefAttr)
    kernel = prop_def(IntAttr)
    stride = opt_prop_def(IntAttr)
    padding = opt_prop_def(IntAttr)
    groups = opt_prop_def(IntAttr)
    rows = opt_prop_def(IntAttr)
    sharing = opt_prop_def(StringAttr)
    over = opt_prop_def(StringAttr)
    partners = opt_prop_def(SymbolRefAttr)

    def check(self) -> None:
        check_sharing(self)
        self.expect_pixels()
        self.expect_positive("kernel", "stride", "groups")
        require(self.get("rows") in (0, 1), self, f"rows={self.get('rows')}; it must be 0 (as many as columns) or 1")
        sizes = self.operand_type().sizes
        out = sizes[0] if self.get("rows") else self.window(sizes[0]), self.window(sizes[1])
        require(self.result_type.sizes[:2] == out, self, f"the result is {self.result_type}; its pixels must be {out}")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        inputs, outputs, kernel = self.operand_type().sizes[-1], self.result_type.sizes[-1], self.get("kernel")
        return {
            "weight": (outputs, inputs // self.get("groups"), self.get("rows") or kernel, kernel),
            "bias": (outputs,),
            **partner_shapes(self),
        }

    def window(self, size: int) -> int:
        """Output pixels along a dimension of `size` input pixels."""
        return (size + 2 * self.get("padding") - self.get("kernel")) // self.get("stride") + 1


@irdl_op_definition
class Linear(SpikeOperation):
    """Linear layer over the last dimension, weight [out, in].

    `accrues` = 1: the bias counts once for every timestep so far, (t + 1) * bias at timestep t, as the input is a
    running sum. `sharing` is as for `conv`.
    """

    name = "spike.linear"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"accrues": 0, **SHARING}
    NAMED: ClassVar[tuple[str, ...]] = ("partners",)
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    weight = prop_def(SymbolRefAttr)
    bias = opt_prop_def(SymbolRefAttr)
    accrues = opt_prop_def(IntAttr)
    sharing = opt_prop_def(StringAttr)
    over = opt_prop_def(StringAttr)
    partners = opt_prop_def(SymbolRefAttr)

    def check(self) -> None:
        check_sharing(self)
        accrues = self.get("accrues")
        fits = accrues == 0 or (accrues == 1 and self.result_type.steps is not None)
        require(fits, self, f"accrues={accrues}; it must be 0, or 1 on a train")
        require(
            self.operand_type().sizes[:-1] == self.result_type.sizes[:-1],
            self,
            f"{self.operand_type()} becomes {self.result_type}; only the last dimension may change",
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        outputs = self.result_type.sizes[-1]
        return {"weight": (outputs, self.operand_type().sizes[-1]), "bias": (outputs,), **partner_shapes(self)}


@irdl_op_definition
class BatchNorm(SpikeOperation):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, per channel of dimension `axis`."""

    name = "spike.batch_norm"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    weight = prop_def(SymbolRefAttr)
    bias = prop_def(SymbolRefAttr)
    mean = prop_def(SymbolRefAttr)
    variance = prop_def(SymbolRefAttr)
    epsilon = prop_def(FloatData)
    axis = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        self.expect_axis()

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        channels = self.operand_type().sizes[self.get("axis")]
        return dict.fromkeys(("weight", "bias", "mean", "variance"), (channels,))


@irdl_op_definition
class Add(SpikeOperation):
    """Element by element; of spikes and counts, a count; of fixed-point streams, one of the same scale, clamped."""

    name = "spike.add"
    left = operand_def(Tensor | Train)
    right = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        left, right = self.operand_type(0), self.operand_type(1)
        require(left.sizes == right.sizes, self, f"adds {left} to {right}; shapes must be equal")
        self.expect_shape(left.sizes)
        if left.element.is_count and right.element.is_count:
            self.expect_element(Element.count(left.element.bounds[1] + right.element.bounds[1]))
        elif left.element.is_fixed or right.element.is_fixed:
            require(left.element == right.element, self, f"adds {left} to {right}; streams must have one scale")
            self.expect_element(left.element)


@irdl_op_definition
class MaxPool(SpikeOperation):
    """Maximum over windows of HxWxC; of spikes, an OR. What lies outside does not count."""

    name = "spike.max_pool"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"padding": 0}
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    kernel = prop_def(IntAttr)
    stride = prop_def(IntAttr)
    padding = opt_prop_def(IntAttr)

    def check(self) -> None:
        self.expect_pixels()
        self.expect_positive("kernel", "stride")
        height, width, channels = self.operand_type().sizes
        self.expect_shape((self.window(height), self.window(width), channels))

    def window(self, size: int) -> int:
        """Output pixels along a dimension of `size` input pixels."""
        return (size + 2 * self.get("padding") - self.get("kernel")) // self.get("stride") + 1


@irdl_op_definition
class Pad(SpikeOperation):
    """HxWxC with `padding` more pixels on every side, which hold value[c] (0 where there is none).

    SDT-V2's re-parameterised convolutions pad a normalised tensor with what the norm makes of 0.
    """

    name = "spike.pad"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    value = opt_prop_def(SymbolRefAttr)
    padding = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_pixels()
        self.expect_positive("padding")
        height, width, channels = self.operand_type().sizes
        more = 2 * self.get("padding")
        self.expect_shape((height + more, width + more, channels))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"value": self.result_type.sizes[-1:]}


@irdl_op_definition
class Reshape(SpikeOperation):
    """The same elements in row-major order in another shape; of equal shapes, a copy in memory order."""

    name = "spike.reshape"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        before, after = self.operand_type(), self.result_type
        require(_volume(before.sizes) == _volume(after.sizes), self, f"{before} has not as many elements as {after}")


def _volume(sizes: tuple[int, ...]) -> int:
    volume = 1
    for size in sizes:
        volume *= size
    return volume


@irdl_op_definition
class Transpose(SpikeOperation):
    """Dimension i of the result is dimension order[i] of the input (time stays where it is)."""

    name = "spike.transpose"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    order = prop_def(ArrayAttr[IntAttr])

    def check(self) -> None:
        sizes, order = self.operand_type().sizes, self.get("order")
        require(sorted(order) == list(range(len(sizes))), self, f"order={list(order)} is no order of {len(sizes)}")
        self.expect_shape(tuple(sizes[index] for index in order))


@irdl_op_definition
class Slice(SpikeOperation):
    """Elements start, start + 1, ... along dimension `axis`, as many as the result has: a part of a fused layer."""

    name = "spike.slice"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    axis = prop_def(IntAttr)
    start = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_axis()
        sizes, axis, start = self.operand_type().sizes, self.get("axis"), self.get("start")
        kept = self.result_type.sizes[axis] if len(self.result_type.sizes) == len(sizes) else 0
        fits = 0 <= start < start + kept <= sizes[axis]
        require(fits, self, f"takes {kept} from {start} on along axis {axis} of {self.operand_type()}")
        self.expect_shape((*sizes[:axis], kept, *sizes[axis + 1 :]))
        self.expect_element(self.operand_type().element)


@irdl_op_definition
class Matmul(SpikeOperation):
    """Matrix product over the last two dimensions."""

    name = "spike.matmul"
    left = operand_def(Tensor | Train)
    right = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        left, right = self.operand_type(0).sizes, self.operand_type(1).sizes
        require(
            len(left) == len(right) and left[:-2] == right[:-2] and left[-1] == right[-2],
            self,
            f"{self.operand_type(0)} times {self.operand_type(1)} does not fit",
        )
        self.expect_shape((*left[:-1], right[-1]))


@irdl_op_definition
class Scale(SpikeOperation):
    """x * factor."""

    name = "spike.scale"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    factor = prop_def(FloatData)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)


@irdl_op_definition
class Attention(SpikeOperation):
    """Softmax-free attention of NxC in `heads` heads: (q kT) * scale v, C / heads channels each.

    v may be wider than q and k; its heads, and the result's, are then wider too.
    `order` says which product comes first, scores (q kT) or values (kT v): in integers the result is the same.
    """

    name = "spike.attention"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"scale": 1.0, "order": "scores"}
    q = operand_def(Train)
    k = operand_def(Train)
    v = operand_def(Train)
    result = result_def(Train)
    heads = prop_def(IntAttr)
    scale = opt_prop_def(FloatData)
    order = opt_prop_def(StringAttr)

    def check(self) -> None:
        order = self.get("order")
        require(order in ("scores", "values"), self, f"order={order}; it must be one of scores, values")
        q, k, v = (self.operand_type(index).sizes for index in range(3))
        require(len(q) == 2 and q[1] == k[1] and k[0] == v[0], self, f"q {q}, k {k}, v {v} do not fit")
        self.expect_positive("heads")
        heads = self.get("heads")
        for channels in (q[1], v[1]):
            require(channels % heads == 0, self, f"{channels} channels do not divide into {heads} heads")
        self.expect_shape((q[0], v[1]))


@irdl_op_definition
class Mean(SpikeOperation):
    """Mean over dimension `axis`."""

    name = "spike.mean"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    axis = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_axis()
        self.expect_shape(_without(self.operand_type().sizes, self.get("axis")))


@irdl_op_definition
class Sum(SpikeOperation):
    """Sum over dimension `axis`."""

    name = "spike.sum"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    axis = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_axis()
        self.expect_shape(_without(self.operand_type().sizes, self.get("axis")))


def _without(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return sizes[:axis] + sizes[axis + 1 :]


@irdl_op_definition
class MeanTime(SpikeOperation):
    """Mean over the timesteps."""

    name = "spike.mean_time"
    KEEPS_TIME: ClassVar[bool] = False
    input = operand_def(Train)
    result = result_def(Tensor)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)


@irdl_op_definition
class SumTime(SpikeOperation):
    """Sum over the timesteps."""

    name = "spike.sum_time"
    KEEPS_TIME: ClassVar[bool] = False
    input = operand_def(Train)
    result = result_def(Tensor)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)


@irdl_op_definition
class ChannelScale(SpikeOperation):
    """x * weight[c] along dimension `axis`: layer scale."""

    name = "spike.channel_scale"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    weight = prop_def(SymbolRefAttr)
    axis = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        self.expect_axis()

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.operand_type().sizes[self.get("axis")],)}


@irdl_op_definition
class Multiply(SpikeOperation):
    """Element by element; dimensions of size 1 are repeated. Of spikes, an AND (Spike-Driven Transformer, eq. 13)."""

    name = "spike.multiply"
    left = operand_def(Tensor | Train)
    right = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        left, right = self.operand_type(0), self.operand_type(1)
        fits = len(left.sizes) == len(right.sizes) and all(
            a == b or 1 in (a, b) for a, b in zip(left.sizes, right.sizes, strict=True)
        )
        require(fits, self, f"multiplies {left} by {right}; sizes must be equal or 1")
        self.expect_shape(tuple(max(a, b) for a, b in zip(left.sizes, right.sizes, strict=True)))


@irdl_op_definition
class HeadSum(SpikeOperation):
    """NxC -> Nxheads: every token's sum over the C / heads channels of each head (QKFormer, eq. 5)."""

    name = "spike.head_sum"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    heads = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_positive("heads")
        tokens, channels = self.operand_type().sizes
        require(channels % self.get("heads") == 0, self, f"{channels} channels do not make {self.get('heads')} heads")
        self.expect_shape((tokens, self.get("heads")))


@irdl_op_definition
class Mask(SpikeOperation):
    """NxC spikes where the mask spikes: a mask C for all tokens, or Nxheads for the channels of each head."""

    name = "spike.mask"
    input = operand_def(Tensor | Train)
    mask = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        spikes, mask = self.operand_type(0).sizes, self.operand_type(1).sizes
        fits = len(spikes) == 2 and (
            mask == spikes[1:] or (len(mask) == 2 and mask[0] == spikes[0] and spikes[1] % mask[1] == 0)
        )
        require(fits, self, f"masks {self.operand_type(0)} by {self.operand_type(1)}; a mask is C or Nxheads")
        self.expect_shape(spikes)


@irdl_op_definition
class Dilate(SpikeOperation):
    """NxC spikes, each spread to its neighbours: the OR over 3x3 windows of (token, channel in its head).

    Spike-Driven Transformer's pooling of event data.
    """

    name = "spike.dilate"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    heads = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_positive("heads")
        sizes = self.operand_type().sizes
        require(len(sizes) == 2 and sizes[1] % self.get("heads") == 0, self, f"the input is {self.operand_type()}")
        self.expect_shape(sizes)


OPERATIONS: tuple[type[SpikeOperation], ...] = (
    Input, Output, Repeat, QuantiseImage, Conv, Linear, BatchNorm, ChannelScale, Lif, Level, IntegerLif, IntegerLevel,
    Range, Align, Rescale, Add, Multiply, MaxPool, Pad, Reshape, Transpose, Slice, Matmul, Scale, Attention, HeadSum,
    Mask, Dilate, Mean, Sum, MeanTime, SumTime, Extend, Truncate, RunningSum, Exit, Guard,
    *TOKEN_OPERATIONS,
)  # fmt: skip

SPIKE = Dialect("spike", list(OPERATIONS), [Tensor, Train])

__all__ = [
    "OPERATIONS",
    "SPIKE",
    "Add",
    "Align",
    "Attention",
    "BatchNorm",
    "Below",
    "ChannelScale",
    "Conv",
    "Dilate",
    "Exit",
    "Extend",
    "GivenTokens",
    "Guard",
    "Halt",
    "HeadSum",
    "Input",
    "IntegerLevel",
    "IntegerLif",
    "KeepTokens",
    "Level",
    "Lif",
    "Linear",
    "Mask",
    "Matmul",
    "MaxPool",
    "Mean",
    "MeanTime",
    "Multiply",
    "Output",
    "Pad",
    "QuantiseImage",
    "Range",
    "Repeat",
    "Rescale",
    "Reshape",
    "RunningSum",
    "Scale",
    "Slice",
    "SpikeOperation",
    "Sum",
    "SumTime",
    "Tensor",
    "Train",
    "Transpose",
    "Truncate",
    "Weigh",
]  # fmt: skip
