"""insert-exits: an input whose logits are sure after some timesteps runs no further."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import exp, floor, inf, log, log2
from typing import ClassVar

import numpy as np
from xdsl.ir import SSAValue

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.time_ops import CRITERIA
from compiler.ir.types import Element, Tensor, Train, shaped
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.rewriting import emitter, remake, replace_op, users
from compiler.passes.timesteps import makes_logits, network_steps, sums_of_logits
from isa.errors import CStepError, CStepWarning
from isa.logarithms import LOG_BITS, POWER_BITS, POWER_STEPS, certainty, largest_probability, light_softmax

MULTIPLIER_BITS, MOST_DIVISOR = 16, 63
"""Widths of `isa.instructions.Decide`'s fields."""
NEVER = 1.0
"""The tau of an exit that is not taken."""
MOST_VARIANCE = 1e6
"""No logits vary more; cs would be 0 for all of them."""


@dataclass(frozen=True)
class InsertExits(NetworkPass):
    """Let inputs leave after some of the timesteps, where their cumulative logits are sure (C-STEP, DT-SNN, SEENN).

        %f = spike.sum_time %x                    : !spike.tensor<384xint<0, 1024>>
        %y = spike.linear %f, @head, @bias        : !spike.tensor<10xint<-812, 790>>
        spike.output %y scale=0.001
    becomes
        %f = spike.running_sum %x                 : !spike.train<T=4, 384xint<0, 1024>>
        %y = spike.linear %f, @head, @bias.step accrues=1 : !spike.train<T=4, 10xint<-812, 790>>
        %e = spike.exit %y after=[2], thresholds=[1894] : !spike.tensor<10xint<-812, 790>>
        spike.output %e scale=0.001

    `after`, `tau` and `variance` have one entry an exit (one variance may stand for all). The integers after n of T
    timesteps stand for logits of integer * scale * T / n: head(mean over the timesteps run so far). An exit is taken
    where the confidence is above tau: LightSoftmax's cs, which needs no exponential since

        cs > tau  <=>  M z - S > (M - 1) (ln(tau / (1 - tau)) + ln(M - 1) + variance / 2)

    (C-STEP eq. 3-5; z the largest of the M logits, S their sum), the largest softmax probability, or 1 less the entropy
    over ln M. An input that never exits has the same integers as before, because `quantise` makes the bias behind a sum
    over time a multiple of T.
    """

    name = "insert-exits"
    keeps: ClassVar[Keeps] = Keeps.LOSSY

    after: tuple[int, ...] = (2,)
    """Exits after so many timesteps."""
    criterion: str = "lightsoftmax"
    """What is measured: lightsoftmax, softmax or entropy."""
    tau: tuple[float, ...] = (0.83,)
    """The confidence that must be passed; 1 is never."""
    variance: tuple[float, ...] = (0.0,)
    """Of the logits that are not the largest, in the model's own scale; LightSoftmax alone asks for it."""

    def __post_init__(self) -> None:
        exits = len(self.after)
        if self.criterion not in CRITERIA:
            raise CStepError(f"insert-exits: criterion={self.criterion}; it must be one of {', '.join(CRITERIA)}")
        if list(self.after) != sorted(set(self.after)):
            raise CStepError(f"insert-exits: after={_spelled(self.after)}; exits must ascend, none twice")
        for key, values in (("tau", self.tau), ("variance", self.variance)):
            if len(values) != exits and not (key == "variance" and len(values) == 1):
                raise CStepError(
                    f"insert-exits: {key}={_spelled(values)}; it must be {exits} numbers, one each for "
                    f"after={_spelled(self.after)}"
                )
        if not all(0 < tau <= NEVER for tau in self.tau):
            raise CStepError(f"insert-exits: tau={_spelled(self.tau)}; a confidence is above 0, and 1 at most")
        if not all(0 <= variance <= MOST_VARIANCE for variance in self.variance):
            raise CStepError(f"insert-exits: variance={_spelled(self.variance)}; it must be in 0..{MOST_VARIANCE:.0f}")

    def apply(self, network: Network) -> Network:
        network = network.clone()
        if any(isinstance(op, spike.Exit) for op in network.operations()):
            raise CStepError("insert-exits: the network has exits; give all of them at once")
        output, sums = _output_of(network), _sums_of(network)
        steps = network_steps(network)
        if steps < 2:
            raise CStepError("insert-exits: the network has T=1; there is no earlier timestep to leave after")
        classes = shaped(output.operands[0].type).sizes[-1]
        if classes < 2:
            raise CStepError("insert-exits: the network has one class; an exit compares two or more")
        steps = _cumulative(network, sums, output.get("steps"))
        if not all(0 < n < steps for n in self.after):
            raise CStepError(
                f"insert-exits: after={_spelled(self.after)}; the logits are sums over {steps} timesteps, so exits "
                f"must be after 1..{steps - 1}"
            )
        self._insert(output, steps, classes)
        return network

    def _insert(self, output: spike.Output, steps: int, classes: int) -> None:
        logits, scale = output.operands[0], output.get("scale")
        bounds = shaped(logits.type).element.bounds
        variances = self.variance * len(self.after) if len(self.variance) == 1 else self.variance
        units = [scale * steps / n for n in self.after]
        measures = [_Measure.of(self.criterion, unit, classes, bounds) for unit in units]
        thresholds = [
            measure.threshold(tau, variance, f"insert-exits: exit after {n}")
            for n, measure, tau, variance in zip(self.after, measures, self.tau, variances, strict=True)
        ]
        maker = logits.owner
        assert isinstance(maker, spike.SpikeOperation)
        exponentials = self.criterion != "lightsoftmax"
        leave = spike.Exit.make(
            logits,
            result=_tensor_of(logits),
            source=maker.source,
            hint=f"{maker.label}.exit",
            after=self.after,
            thresholds=tuple(thresholds),
            criterion=self.criterion,
            multipliers=tuple(measure.multiplier for measure in measures) if exponentials else (),
            divisors=tuple(measure.divisor for measure in measures) if exponentials else (),
        )
        output.operands[0] = emitter(output)(leave)


@dataclass(frozen=True)
class _Measure:
    """What an exit compares, in the integers of `isa.instructions.Decide`; logits are integer * `unit`."""

    criterion: str
    unit: float
    classes: int
    bounds: tuple[int, int]
    multiplier: int = 0
    divisor: int = 0

    @classmethod
    def of(cls, criterion: str, unit: float, classes: int, bounds: tuple[int, int]) -> _Measure:
        if criterion == "lightsoftmax":
            return cls(criterion, unit, classes, bounds)
        # A difference of d integers is 2^(-i / 16) of the largest power for i = d * unit * 16 / ln 2.
        per_integer = unit * POWER_STEPS / log(2)
        divisor = floor(MULTIPLIER_BITS - log2(per_integer))
        if divisor < 0:
            raise CStepError(f"insert-exits: an integer of the logits is {unit:.3g}, too coarse for {criterion}")
        divisor = min(divisor, MOST_DIVISOR)
        multiplier = min(round(per_integer * 2.0**divisor), (1 << MULTIPLIER_BITS) - 1)
        return cls(criterion, unit, classes, bounds, multiplier, divisor)

    def threshold(self, tau: float, variance: float, where: str) -> int:
        """The least integer measure that is above tau; one that no input reaches is a warning, and never taken."""
        greatest = self._greatest()
        if tau == NEVER:
            warnings.warn(f"{where}: tau=1 is never passed; no input exits there", CStepWarning, stacklevel=4)
            return greatest + 1
        threshold = max(floor(self._level(tau, variance)) + 1, 0)
        if threshold > greatest:
            most = self._most_confident(variance)
            text = f"{where}: no input can reach tau={tau}; the bounds of the logits allow {most}"
            warnings.warn(text, CStepWarning, stacklevel=4)
            return greatest + 1
        return threshold

    def _level(self, tau: float, variance: float) -> float:
        """What the measure must be above."""
        others = self.classes - 1
        if self.criterion == "lightsoftmax":
            return others * (log(tau / (1 - tau)) + log(others) + variance / 2) / self.unit
        if self.criterion == "softmax":
            return tau * (1 << POWER_BITS)
        return tau * log2(self.classes) * (1 << LOG_BITS)

    def _greatest(self) -> int:
        """The measure of logits as far from each other as their bounds allow."""
        low, high = self.bounds
        farthest = [high, *[low] * (self.classes - 1)]
        if self.criterion == "lightsoftmax":
            return light_softmax(farthest)
        measure = largest_probability if self.criterion == "softmax" else certainty
        return measure(farthest, self.multiplier, self.divisor)

    def _most_confident(self, variance: float) -> str:
        """The confidence of these logits."""
        greatest, others = self._greatest(), self.classes - 1
        if self.criterion == "lightsoftmax":
            exponent = log(others) + variance / 2 - greatest * self.unit / others
            most = 0.0 if exponent == inf else 1 / (1 + exp(min(exponent, 700.0)))
        elif self.criterion == "softmax":
            most = greatest / (1 << POWER_BITS)
        else:
            most = greatest / (1 << LOG_BITS) / log2(self.classes)
        return f"{most:.6g} at most"


def _tensor_of(value: SSAValue) -> Tensor:
    kind = shaped(value.type)
    return Tensor.of(kind.sizes, kind.element)


def _output_of(network: Network) -> spike.Output:
    for op in network.operations():
        if isinstance(op, spike.Output):
            if shaped(op.operands[0].type).element.is_real:
                raise CStepError("insert-exits: the logits are real numbers; exits compare integers (after quantise)")
            return op
    raise CStepError("insert-exits: the network has no output")


def _sums_of(network: Network) -> list[spike.SumTime]:
    """The sums over time that make the logits."""
    sums = sums_of_logits(network)
    if not sums or not all(makes_logits_through_layers(op.results[0]) for op in sums):
        raise CStepError("insert-exits: the logits are no sums over time; there is nothing that an exit could read")
    return sums


def makes_logits_through_layers(value: SSAValue) -> bool:
    """Whether only the classifier stands between a value and the output."""
    return makes_logits(value) or all(
        makes_logits(op.results[0])
        if isinstance(op, spike.Linear)
        else isinstance(op, spike.Align | spike.Reshape) and makes_logits_through_layers(op.results[0])
        for op in users(value)
    )


def _cumulative(network: Network, sums: list[spike.SumTime], unmasked: int) -> int:
    """Make the sums, and all that is behind them, trains of one T; returns it.

    T is that of the longest sum, or `unmasked` where masks have left less of it.
    """
    least = max(unmasked, *(op.operand_type().steps or 0 for op in sums))
    heads = [
        op for op in network.operations() if isinstance(op, spike.Linear) and op.result_type.steps is None
        and makes_logits(op.results[0])
    ]  # fmt: skip
    names = [name for op in heads if (name := op.symbol("bias")) is not None]
    divisor = int(np.gcd.reduce([0, *(int(value) for name in names for value in network.weights[name].reshape(-1))]))
    steps = next((n for n in range(least, max(divisor, least) + 1) if divisor % n == 0), None)
    if steps is None:
        raise CStepError(
            f"insert-exits: {heads[0].label}: its bias is no multiple of T={least}; `quantise` makes it one"
        )
    for op in list(network.operations()):
        if isinstance(op, spike.SumTime):
            if op in sums:
                _run(op, steps)
        elif op.results and isinstance(op, spike.SpikeOperation) and op.result_type.steps is None:
            _lift(network, op, steps)
    return steps


def _run(op: spike.SumTime, steps: int) -> None:
    """sum_time(x) -> running_sum(x), of x extended by what its masks took away."""
    emit, kind = emitter(op), op.operand_type()
    x = op.operands[0]
    if kind.steps != steps:
        longer = Train.of(steps, kind.sizes, kind.element)
        x = emit(spike.Extend.make(x, result=longer, source=op.source, hint=f"{op.label}.extend"))
    result = Train.of(steps, op.result_type.sizes, op.result_type.element)
    replace_op(op, emit(spike.RunningSum.make(x, result=result, source=op.source, hint=op.label)))


def _lift(network: Network, op: spike.SpikeOperation, steps: int) -> None:
    """An op on what has become a train; a classifier's bias counts once a timestep."""
    if not any(isinstance(operand.type, Train) for operand in op.operands) or isinstance(op, spike.Exit):
        return
    assert isinstance(op, spike.Align | spike.Reshape | spike.Linear | spike.Add), op.name
    low, high = op.result_type.element.bounds
    element = Element.integer(min(low, 0), max(high, 0))  # a part of the sums may be nearer to 0 than all of them
    kind = Train.of(steps, op.result_type.sizes, element)
    name = op.symbol("bias")
    if not isinstance(op, spike.Linear) or name is None:
        new = remake(op, list(op.operands), kind)
    else:
        each = network.weights[name].astype(np.int32) // steps
        new = spike.Linear.make(
            op.operands[0],
            result=kind,
            symbols={"weight": op.symbol("weight"), "bias": network.add_weight(f"{name}.step", each)},
            source=op.source,
            hint=op.label,
            accrues=1,
        )
    replace_op(op, emitter(op)(new))


def _spelled(values: tuple[int, ...] | tuple[float, ...]) -> str:
    return ",".join(map(str, values))


__all__ = ["MOST_VARIANCE", "NEVER", "InsertExits"]
