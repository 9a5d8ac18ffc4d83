"""quantise: from real numbers to integers with proven bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.fixed_point import (
    FRACTIONS,
    ORACLE_LIMIT,
    WEIGHT_LIMIT,
    Integer,
    Real,
    by_channel,
    decay,
    product_bounds,
    shifted,
    weight_scales,
)
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import Element, Shaped, shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.errors import CStepError

LOGIT_LIMIT = 1 << 31


@dataclass(frozen=True)
class Quantise(NetworkPass):
    """Weights to int8, currents and membranes to integers in units of scale / 2^f, attention exact, one head scale.

        %c = spike.conv %s, @w, @b kernel=3, padding=1 : !spike.train<T=4, 8x8x64xf32>
        %l = spike.lif %c tau=2.0, threshold=1.0       : !spike.train<T=4, 8x8x64xi1>
    becomes
        %c = spike.conv %s, @w.int8 kernel=3, padding=1                 : !spike.train<T=4, 8x8x64xint<-912, 871>>
        %a = spike.align %c, @b.int32 shift=2                           : !spike.train<T=4, 8x8x64xint<-3641, 3502>>
        %l = spike.integer_lif %a, @w.threshold multiplier=1, divisor=1 : !spike.train<T=4, 8x8x64xi1>

    With scale s of a channel's weights (symmetric min-max, s = max|w| / 127) and s_in of its input, a current is
    x = (sum << f) + round(b 2^f / (s s_in)), and fires at ceil(threshold 2^f / (s s_in)). f is the layer's: the largest
    that keeps the thresholds of nine in ten channels below 2^13 and all currents below 2^24; it is negative (a shift
    right, half up) where the input is an image. A channel whose weights are so small that its threshold would still
    pass 2^13 takes the coarser scale that puts it there.
    """

    name = "quantise"
    keeps: ClassVar[Keeps] = Keeps.NOTHING

    image_scale: float = 0.0
    """Real value of the image's integer 1; from calibration (max |x| / 127)."""
    weights: str = "per-channel"
    """Scale per output channel (per-channel) or per tensor as in the paper (per-tensor)."""
    accumulator_bits: int = 24
    """Width of the machine's accumulators; a layer that could pass it is an error."""

    def __post_init__(self) -> None:
        if self.weights not in ("per-channel", "per-tensor"):
            raise CStepError(f"quantise: weights={self.weights}; it must be per-channel or per-tensor")

    def apply(self, network: Network) -> Network:
        return _Quantiser(network, self).run()


@dataclass
class _Quantised:
    """An integer value of the new module: the real value is the integer times `scale`."""

    ssa: SSAValue
    scale: float

    @property
    def kind(self) -> Shaped:
        return shaped(self.ssa.type)

    @property
    def bounds(self) -> tuple[int, int]:
        return self.kind.element.bounds


@dataclass
class _Quantiser:
    """Builds the integer module op by op."""

    old: Network
    options: Quantise
    values: dict[SSAValue, _Quantised] = field(default_factory=dict[SSAValue, _Quantised])

    def run(self) -> Network:
        self.new = self.old.with_module(ModuleOp([]))
        for op in self.old.operations():
            assert isinstance(op, spike.SpikeOperation)
            handler = _HANDLERS.get(type(op))
            if handler is None:
                raise _refuse(
                    op, f"{op.name} has no integer form; fold or fuse it first (fold-batch-norm, fuse-attention)"
                )
            handler(self, op)
        return self.new

    def make(self, kind: type[spike.SpikeOperation], *operands: SSAValue, **named: Any) -> SSAValue:
        op = kind.make(*operands, **named)
        self.new.module.body.block.add_op(op)
        return op.results[0] if op.results else op.operands[0]

    def of(self, op: HouseOperation, index: int = 0) -> _Quantised:
        return self.values[op.operands[index]]

    def remake(self, op: spike.SpikeOperation, element: Element, scale: float) -> None:
        """The same op on integers."""
        new = type(op)(
            operands=[self.of(op, index).ssa for index in range(len(op.operands))],
            result_types=[op.result_type.with_element(element)],
            properties=dict(op.properties),
            attributes=dict(op.attributes),
        )
        new.results[0].name_hint = op.results[0].name_hint
        self.new.module.body.block.add_op(new)
        self.values[op.results[0]] = _Quantised(new.results[0], scale)

    def weight(self, op: HouseOperation, key: str) -> Real | None:
        name = op.symbol(key)
        return None if name is None else self.old.weights[name].astype(np.float64)


def _refuse(op: HouseOperation, message: str) -> CStepError:
    where = f" ({op.source})" if op.source else ""
    return CStepError(f"{op.label}{where}: {message}")


def _input(q: _Quantiser, op: spike.Input) -> None:
    """The input's integers: images scaled, events as they are."""
    made = q.make(spike.Input, result=op.result_type, source=op.source, hint=op.label)
    events = op.result_type.steps is not None
    scale = 1.0 if events else q.options.image_scale
    if scale <= 0:
        raise CStepError("quantise: image-scale is missing; it is max |x| / 127 over the calibration images")
    kind = op.result_type.with_element(Element.image())
    made = q.make(spike.QuantiseImage, made, result=kind, source=op.source, hint="image", scale=scale)
    q.values[op.results[0]] = _Quantised(made, scale)


def _same(q: _Quantiser, op: spike.SpikeOperation) -> None:
    """Ops that move values and leave them as they are."""
    x = q.of(op)
    q.remake(op, x.kind.element, x.scale)


def _weighted(q: _Quantiser, op: spike.SpikeOperation) -> None:
    """Conv and linear: into a neuron in membrane units, into the output with one scale."""
    if _reaches_output(op.results[0]):
        _head(q, op)
        return
    neuron = _only_neuron(op)
    x, weight, bias = q.of(op), q.weight(op, "weight"), q.weight(op, "bias")
    assert weight is not None
    threshold = neuron.get("threshold")
    scale, shift = weight_scales(weight, q.options.weights, threshold / x.scale, x.bounds, bias)
    integers = np.rint(weight / by_channel(scale, weight)).astype(np.int64)
    low, high = product_bounds(integers, x.bounds)
    _check_accumulator(op, low, high, q.options.accumulator_bits)
    unit = scale * x.scale / 2.0**shift
    biases = np.rint((np.zeros(len(unit)) if bias is None else bias) / unit).astype(np.int64)
    name = str(op.symbol("weight")).removesuffix(".folded")
    element = Element.integer(int(low.min()), int(high.max()))
    properties = {key: op.get(key) for key in op.DEFAULTS}
    if isinstance(op, spike.Conv):
        properties["kernel"] = op.get("kernel")
    accumulated = q.make(
        type(op),
        x.ssa,
        result=op.result_type.with_element(element),
        symbols={"weight": q.new.add_weight(f"{name}.int8", integers.astype(np.int8))},
        source=op.source,
        hint=op.label,
        **properties,
    )
    _fire(q, op, neuron, accumulated, unit, biases, (low, high), shift, name)


def _fire(
    q: _Quantiser,
    op: spike.SpikeOperation,
    neuron: spike.Lif,
    accumulated: SSAValue,
    unit: Real,
    biases: Integer | None,
    bounds: tuple[Integer, Integer],
    shift: int,
    name: str,
) -> None:
    """Align the accumulators with the membrane, and put the current where the neuron will look for it."""
    offset = np.int64(0) if biases is None else biases
    low, high = shifted(bounds[0], shift) + offset, shifted(bounds[1], shift) + offset
    most = int(max(-low.min(), high.max()))
    if most >= ORACLE_LIMIT:
        raise _refuse(op, f"currents could reach {most}; they must stay below 2^24 = {ORACLE_LIMIT}")
    aligned = q.make(
        spike.Align,
        accumulated,
        result=op.result_type.with_element(Element.integer(int(low.min()), int(high.max()))),
        symbols={"bias": None if biases is None else q.new.add_weight(f"{name}.bias.int32", biases.astype(np.int32))},
        source=op.source,
        hint=f"{op.label}.current",
        shift=shift,
    )
    real = neuron.get("threshold") / unit
    strict = neuron.get("fires") == "gt"
    thresholds = (np.floor(real) + 1 if strict else np.ceil(real)).astype(np.int64)
    channels = op.result_type.sizes[-1]
    thresholds = np.broadcast_to(thresholds, (channels,)).astype(np.int32)
    if thresholds.max() >= 1 << 15:
        raise _refuse(neuron, f"its threshold is {thresholds.max()} units; it must fit the 16-bit membrane")
    multiplier, divisor = _decay(neuron)
    made = q.make(
        spike.IntegerLif,
        aligned,
        result=neuron.result_type.with_element(Element.spike()),
        symbols={"threshold": q.new.add_weight(f"{neuron.label}.threshold", thresholds)},
        source=neuron.source,
        hint=neuron.label,
        multiplier=multiplier,
        divisor=divisor,
        reset=neuron.get("reset"),
        charge=neuron.get("charge"),
    )
    q.values[neuron.results[0]] = _Quantised(made, 1.0)


def _decay(neuron: spike.Lif) -> tuple[int, int]:
    """The fields of `spike.integer_lif` for a neuron's time constant."""
    tau = neuron.get("tau")
    if neuron.get("charge") == "if":
        return 1, 0
    if tau < 1:
        raise _refuse(neuron, f"tau={tau}; it must be at least 1")
    return decay(tau)


def _check_accumulator(op: spike.SpikeOperation, low: Integer, high: Integer, bits: int) -> None:
    limit = 1 << (bits - 1)
    if int(low.min()) < -limit or int(high.max()) >= limit:
        raise _refuse(
            op,
            f"its accumulators could reach {int(low.min())}..{int(high.max())}; the machine's {bits} bits hold "
            f"{-limit}..{limit - 1}",
        )


def _only_neuron(op: spike.SpikeOperation) -> spike.Lif:
    """The neuron that a layer's current goes to."""
    users = [use.operation for use in op.results[0].uses]
    if len(users) == 1 and isinstance(users[0], spike.Lif):
        return users[0]
    found = ", ".join(sorted({user.name for user in users})) or "nothing"
    raise _refuse(op, f"its result goes to {found}; it must go to one neuron, or to the output")


_AFTER_HEAD = (spike.Mean, spike.MeanTime, spike.Output, spike.Reshape)


def _reaches_output(value: SSAValue) -> bool:
    """Whether only means stand between a value and the output."""
    users = [use.operation for use in value.uses]
    if len(users) != 1 or not isinstance(users[0], _AFTER_HEAD):
        return False
    return isinstance(users[0], spike.Output) or _reaches_output(users[0].results[0])


def _head(q: _Quantiser, op: spike.SpikeOperation) -> None:
    """The classifier: one scale for all classes, so that comparing integers compares logits."""
    if not isinstance(op, spike.Linear):
        raise _refuse(op, f"{op.name} makes the logits; only a linear head is supported")
    x, weight, bias = q.of(op), q.weight(op, "weight"), q.weight(op, "bias")
    assert weight is not None
    scale = float(np.abs(weight).max()) / WEIGHT_LIMIT or 1.0
    integers = np.rint(weight / scale).astype(np.int64)
    low, high = product_bounds(integers, x.bounds)
    unit = scale * x.scale
    biases = np.rint((np.zeros(len(weight)) if bias is None else bias) / unit).astype(np.int64)
    low, high = low + biases, high + biases
    most = int(max(-low.min(), high.max()))
    if most >= LOGIT_LIMIT:
        raise _refuse(op, f"logits could reach {most}; they must fit 32 bits, below {LOGIT_LIMIT}")
    name = str(op.symbol("weight"))
    made = q.make(
        spike.Linear,
        x.ssa,
        result=op.result_type.with_element(Element.integer(int(low.min()), int(high.max()))),
        symbols={
            "weight": q.new.add_weight(f"{name}.int8", integers.astype(np.int8)),
            "bias": q.new.add_weight(f"{name}.bias.int32", biases.astype(np.int32)),
        },
        source=op.source,
        hint=op.label,
    )
    q.values[op.results[0]] = _Quantised(made, unit)


def _attention(q: _Quantiser, op: spike.Attention) -> None:
    """Exact: the products are integers, and the scale goes into the threshold."""
    neuron = _only_neuron(op)
    operands = [q.of(op, index) for index in range(3)]
    keys, channels = operands[1].kind.sizes
    high = operands[0].bounds[1] * operands[1].bounds[1] * operands[2].bounds[1] * keys * (channels // op.get("heads"))
    bounds = np.array([0]), np.array([high])
    _check_accumulator(op, *bounds, q.options.accumulator_bits)
    scale = op.get("scale") * operands[0].scale * operands[1].scale * operands[2].scale
    shift = max(FRACTIONS)
    while shift and ((high << shift) >= ORACLE_LIMIT or neuron.get("threshold") * (1 << shift) / scale >= 1 << 15):
        shift -= 1
    accumulated = q.make(
        spike.Attention,
        *(operand.ssa for operand in operands),
        result=op.result_type.with_element(Element.integer(0, high)),
        source=op.source,
        hint=op.label,
        heads=op.get("heads"),
    )
    _fire(q, op, neuron, accumulated, np.array([scale / (1 << shift)]), None, bounds, shift, op.label)


def _neuron(q: _Quantiser, op: spike.Lif) -> None:
    """Made together with the layer that feeds it."""
    if op.results[0] not in q.values:
        raise _refuse(op, "its current comes from no conv, linear or attention; there is nothing to quantise it by")


def _add(q: _Quantiser, op: spike.Add) -> None:
    """Counts add up."""
    left, right = q.of(op, 0), q.of(op, 1)
    if not (left.kind.element.is_count and right.kind.element.is_count and left.scale == right.scale):
        raise _refuse(op, f"adds {left.kind.element} to {right.kind.element}; only spikes and counts can be added")
    q.remake(op, Element.count(left.bounds[1] + right.bounds[1]), left.scale)


def _mean(q: _Quantiser, op: spike.SpikeOperation) -> None:
    """A mean is a sum with a smaller scale."""
    x = q.of(op)
    if isinstance(op, spike.Mean):
        count, kind, properties = x.kind.sizes[op.get("axis")], spike.Sum, {"axis": op.get("axis")}
    else:
        assert x.kind.steps is not None
        count, kind, properties = x.kind.steps, spike.SumTime, {}
    low, high = x.bounds
    element = Element.integer(low * count, high * count)
    made = q.make(
        kind,
        x.ssa,
        result=op.result_type.with_element(element),
        source=op.source,
        hint=op.label,
        **properties,
    )
    q.values[op.results[0]] = _Quantised(made, x.scale / count)


def _output(q: _Quantiser, op: spike.Output) -> None:
    x = q.of(op)
    q.make(spike.Output, x.ssa, source=op.source, scale=x.scale)


_HANDLERS: dict[type[spike.SpikeOperation], Any] = {
    spike.Input: _input,
    spike.Repeat: _same,
    spike.Reshape: _same,
    spike.Transpose: _same,
    spike.MaxPool: _same,
    spike.Conv: _weighted,
    spike.Linear: _weighted,
    spike.Attention: _attention,
    spike.Lif: _neuron,
    spike.Add: _add,
    spike.Mean: _mean,
    spike.MeanTime: _mean,
    spike.Output: _output,
}
