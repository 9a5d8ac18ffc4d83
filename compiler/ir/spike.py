"""The spike dialect: what a spiking network computes, before and after quantisation.

An op on trains computes at every timestep by itself; only neurons carry a state from step to step, and only
`repeat`, `mean_time` and `sum_time` change whether there is time at all. What each op computes stands in
compiler/ir/meaning.py, one function an op.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, FloatData, IntAttr, StringAttr, SymbolRefAttr
from xdsl.ir import Dialect, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from compiler.ir.spelling import HouseOperation, Plain
from compiler.ir.types import Element, Shaped, Tensor, Train, shaped

AnyValue = Tensor | Train


def _require(condition: bool, op: HouseOperation, message: str) -> None:
    if not condition:
        raise VerifyException(f"{op.label}: {op.name}: {message}")


class SpikeOperation(HouseOperation):
    """Base of the dialect: types of operands and the result, and the checks that every op shares."""

    KEEPS_TIME: ClassVar[bool] = True
    """Whether operands and result have the same timesteps."""

    def operand_type(self, index: int = 0) -> Shaped:
        return shaped(self.operands[index].type)

    @property
    def result_type(self) -> Shaped:
        return shaped(self.results[0].type)

    @property
    def result_value(self) -> SSAValue:
        return self.results[0]

    def verify_(self) -> None:
        if self.KEEPS_TIME and self.results:
            for index in range(len(self.operands)):
                steps = self.operand_type(index).steps
                _require(
                    steps == self.result_type.steps,
                    self,
                    f"operand {index} has {_time(steps)}, the result {_time(self.result_type.steps)}",
                )
        self.check()

    def check(self) -> None:
        """Raise VerifyException where shapes or kinds do not fit."""

    def expect_positive(self, *keys: str) -> None:
        for key in keys:
            _require(self.get(key) > 0, self, f"{key}={self.get(key)}; it must be positive")

    def expect_pixels(self) -> None:
        sizes = self.operand_type().sizes
        _require(len(sizes) == 3, self, f"the input is {self.operand_type()}; it must be HxWxC")

    def expect_axis(self) -> None:
        axis, rank = self.get("axis"), len(self.operand_type().sizes)
        _require(0 <= axis < rank, self, f"axis={axis}; the input has {rank} dimensions")

    def expect_shape(self, sizes: tuple[int, ...]) -> None:
        _require(self.result_type.sizes == sizes, self, f"the result is {self.result_type}; its shape must be {sizes}")

    def expect_element(self, element: Element) -> None:
        _require(
            self.result_type.element == element, self, f"the result holds {self.result_type.element}, not {element}"
        )


def _time(steps: int | None) -> str:
    return "no time" if steps is None else f"T={steps}"


@irdl_op_definition
class Input(SpikeOperation):
    """The network's input: a tensor for an image, a train for events."""

    name = "spike.input"
    result = result_def(Tensor | Train)


@irdl_op_definition
class Output(SpikeOperation):
    """The logits. After quantisation the model's logits are these integers times `scale`."""

    name = "spike.output"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"scale": 1.0}
    value = operand_def(Tensor)
    scale = opt_prop_def(FloatData)


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
    """2-d convolution of HxWxC by a weight [out, in / groups, kernel, kernel]."""

    name = "spike.conv"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"stride": 1, "padding": 0, "groups": 1}
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    weight = prop_def(SymbolRefAttr)
    bias = opt_prop_def(SymbolRefAttr)
    kernel = prop_def(IntAttr)
    stride = opt_prop_def(IntAttr)
    padding = opt_prop_def(IntAttr)
    groups = opt_prop_def(IntAttr)

    def check(self) -> None:
        self.expect_pixels()
        self.expect_positive("kernel", "stride", "groups")
        sizes = self.operand_type().sizes
        out = self.window(sizes[0]), self.window(sizes[1])
        _require(self.result_type.sizes[:2] == out, self, f"the result is {self.result_type}; its pixels must be {out}")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        inputs, outputs, kernel = self.operand_type().sizes[-1], self.result_type.sizes[-1], self.get("kernel")
        return {"weight": (outputs, inputs // self.get("groups"), kernel, kernel), "bias": (outputs,)}

    def window(self, size: int) -> int:
        """Output pixels along a dimension of `size` input pixels."""
        return (size + 2 * self.get("padding") - self.get("kernel")) // self.get("stride") + 1


@irdl_op_definition
class Linear(SpikeOperation):
    """Linear layer over the last dimension, weight [out, in]."""

    name = "spike.linear"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)
    weight = prop_def(SymbolRefAttr)
    bias = opt_prop_def(SymbolRefAttr)

    def check(self) -> None:
        _require(
            self.operand_type().sizes[:-1] == self.result_type.sizes[:-1],
            self,
            f"{self.operand_type()} becomes {self.result_type}; only the last dimension may change",
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        outputs = self.result_type.sizes[-1]
        return {"weight": (outputs, self.operand_type().sizes[-1]), "bias": (outputs,)}


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
class Lif(SpikeOperation):
    """A neuron in real numbers; `charge`: lif, lif_undecayed, if; `reset`: hard (to 0) or soft; `fires`: ge or gt.

    `decay`: divide by tau, or multiply by 1 / tau (a parametric LIF's sigmoid); they round differently.
    """

    name = "spike.lif"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"charge": "lif", "reset": "hard", "fires": "ge", "decay": "divide"}
    current = operand_def(Train)
    result = result_def(Train)
    tau = prop_def(FloatData)
    threshold = prop_def(FloatData)
    reset = opt_prop_def(StringAttr)
    charge = opt_prop_def(StringAttr)
    fires = opt_prop_def(StringAttr)
    decay = opt_prop_def(StringAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        self.expect_element(Element.spike())
        _check_words(self)


_WORDS = {
    "reset": ("hard", "soft"),
    "charge": ("lif", "lif_undecayed", "if"),
    "fires": ("ge", "gt"),
    "decay": ("divide", "multiply"),
}


def _check_words(op: HouseOperation) -> None:
    for key, words in _WORDS.items():
        if key in op.DEFAULTS:
            _require(op.get(key) in words, op, f"{key}={op.get(key)}; it must be one of {', '.join(words)}")


@irdl_op_definition
class IntegerLif(SpikeOperation):
    """A neuron in integers, `threshold` int32 per channel of the last dimension, membrane clamped to int16.

    Decay by round(d * multiplier / 2^divisor), half up: multiplier=1, divisor=1 is tau = 2.
    """

    name = "spike.integer_lif"
    DEFAULTS: ClassVar[Mapping[str, Plain]] = {"charge": "lif", "reset": "hard"}
    current = operand_def(Train)
    result = result_def(Train)
    threshold = prop_def(SymbolRefAttr)
    multiplier = prop_def(IntAttr)
    divisor = prop_def(IntAttr)
    reset = opt_prop_def(StringAttr)
    charge = opt_prop_def(StringAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)
        self.expect_element(Element.spike())
        _require(not self.operand_type().element.is_real, self, f"the current is {self.operand_type()}; no integers")
        _check_words(self)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"threshold": self.result_type.sizes[-1:]}


@irdl_op_definition
class Align(SpikeOperation):
    """Accumulators in units of the membrane: (x << shift) + bias, `bias` int32 per channel of the last dimension.

    A negative shift goes right and rounds half up.
    """

    name = "spike.align"
    input = operand_def(Train)
    result = result_def(Train)
    bias = opt_prop_def(SymbolRefAttr)
    shift = prop_def(IntAttr)

    def check(self) -> None:
        self.expect_shape(self.operand_type().sizes)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"bias": self.result_type.sizes[-1:]}


@irdl_op_definition
class Add(SpikeOperation):
    """Element by element; of spikes and counts, a count."""

    name = "spike.add"
    left = operand_def(Tensor | Train)
    right = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        left, right = self.operand_type(0), self.operand_type(1)
        _require(left.sizes == right.sizes, self, f"adds {left} to {right}; shapes must be equal")
        self.expect_shape(left.sizes)
        if left.element.is_count and right.element.is_count:
            self.expect_element(Element.count(left.element.bounds[1] + right.element.bounds[1]))


@irdl_op_definition
class MaxPool(SpikeOperation):
    """Maximum over windows of HxWxC; of spikes, an OR. Outside counts as nothing."""

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
class Reshape(SpikeOperation):
    """The same elements in row-major order in another shape; of equal shapes, a copy in memory order."""

    name = "spike.reshape"
    input = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        before, after = self.operand_type(), self.result_type
        _require(_volume(before.sizes) == _volume(after.sizes), self, f"{before} has not as many elements as {after}")


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
        _require(sorted(order) == list(range(len(sizes))), self, f"order={list(order)} is no order of {len(sizes)}")
        self.expect_shape(tuple(sizes[index] for index in order))


@irdl_op_definition
class Matmul(SpikeOperation):
    """Matrix product over the last two dimensions."""

    name = "spike.matmul"
    left = operand_def(Tensor | Train)
    right = operand_def(Tensor | Train)
    result = result_def(Tensor | Train)

    def check(self) -> None:
        left, right = self.operand_type(0).sizes, self.operand_type(1).sizes
        _require(
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
        _require(order in ("scores", "values"), self, f"order={order}; it must be one of scores, values")
        q, k, v = (self.operand_type(index).sizes for index in range(3))
        _require(len(q) == 2 and q[1] == k[1] == v[1] and k[0] == v[0], self, f"q {q}, k {k}, v {v} do not fit")
        self.expect_positive("heads")
        _require(q[1] % self.get("heads") == 0, self, f"{q[1]} channels do not divide into {self.get('heads')} heads")
        self.expect_shape(q)


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


OPERATIONS: tuple[type[SpikeOperation], ...] = (
    Input, Output, Repeat, QuantiseImage, Conv, Linear, BatchNorm, Lif, IntegerLif, Align, Add, MaxPool, Reshape,
    Transpose, Matmul, Scale, Attention, Mean, Sum, MeanTime, SumTime,
)  # fmt: skip

SPIKE = Dialect("spike", list(OPERATIONS), [Tensor, Train])
