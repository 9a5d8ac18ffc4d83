"""Group the ops of an integer module into stages, in dependence order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.backend.match import (
    geometry_of,
    level_constants,
    lif_constants,
    refuse,
    rescale_constants,
    sharing_of,
    symbol_of,
    tokens_summed,
    weights_of,
)
from compiler.backend.match_guards import guards_of, neurons_behind, with_guards
from compiler.backend.match_head import head_of, logit_adds
from compiler.backend.memory import ImageInfo, StreamInfo, TrainInfo
from compiler.backend.stages import (
    AddStage,
    AttentionStage,
    BelowStage,
    DilateStage,
    EndedStage,
    HaltStage,
    HeadSumStage,
    KeepStage,
    MaskStage,
    Neurons,
    Plan,
    PoolStage,
    Rescaling,
    Stage,
    StreamStage,
    SumStage,
    TimeSumStage,
    WeightedStage,
)
from compiler.backend.timing import Timing, cuts, timing_of_sums, timing_of_trains
from compiler.backend.views import Views
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.operation import SpikeOperation
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import shaped
from compiler.passes.timesteps import makes_features, makes_logits
from isa.errors import CStepError
from isa.word import Gives

MAX_PLANES = 7
"""Planes that the instruction set's fields hold."""
STREAM_BOUNDS = {(-(1 << 15), (1 << 15) - 1): 2, (-(1 << 7), (1 << 7) - 1): 1}
"""Bounds of a stream's integers -> bytes of a value."""
EndedParts = tuple[str, str, tuple[SSAValue, ...], SSAValue, Neurons | Rescaling, SSAValue | None]
"""The fields that all stages with an end have."""


def plan_stages(network: Network) -> Plan:
    """Group the ops of an integer module into stages. Raises CStepError for what the machine has no stage for."""
    return _Grouper(network).run()


class _Grouper:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.stages: list[Stage] = []
        self.values: dict[SSAValue, TrainInfo | StreamInfo] = {}
        self.views = Views.of(network)
        self.logit_adds = logit_adds(network)
        made = [op.result_type for op in network.operations() if isinstance(op, SpikeOperation) and op.results]
        self.timesteps = max((kind.steps or 1 for kind in made), default=1)
        self.image: ImageInfo | None = None
        self.image_value: SSAValue | None = None
        self.fused: dict[SSAValue, tuple[spike.Add, SSAValue]] = {}
        """What neurons or a rescale make -> the add that is done with them, and what it adds to them."""
        self.labels: Counter[str] = Counter()
        self.given: dict[SSAValue, NDArray[np.uint8]] = {}

    def run(self) -> Plan:
        operations = list(self.network.operations())
        order = {op: index for index, op in enumerate(operations)}
        for op in operations:
            if isinstance(op, spike.Add):
                self._find_addend(op, order)
        for op in operations:
            self._visit(op)
        if self.image is None or self.image_value is None:
            raise CStepError("the network has no input that a layer reads")
        guards = guards_of(self.stages, self.views)
        stages = [with_guards(stage, guards) for stage in self._in_order()]
        stages = [self._with_skips(stage) for stage in stages]
        return Plan(stages, self.values, self.image, self.image_value, self.timesteps, self.views, guards, self.given)

    def _find_addend(self, add: spike.Add, order: dict[HouseOperation, int]) -> None:
        """An add right behind neurons or a rescale that nothing else reads is done with them; of two, the later.

        Of neurons with fewer timesteps too: what is added then goes on alone.
        """
        ends = [
            (end.results[0], add.operands[1 - index])
            for index, operand in enumerate(add.operands)
            if (end := _end_behind(operand)) is not None and not self._is_ahead(end, add)
        ]
        if ends:
            last, addend = max(ends, key=lambda found: order[found[0].owner])  # type: ignore[index]
            self.fused[last] = add, addend

    def _is_ahead(self, end: spike.IntegerLif | spike.Rescale, add: spike.Add) -> bool:
        """Whether neurons fire for all timesteps at once, while what is added comes with time."""
        align = self.views.memory(end.operands[0]).owner
        still = isinstance(align, spike.Align) and self.views.is_still(align.operands[0])
        return isinstance(end, spike.IntegerLif) and still and add.result_type.steps is not None

    def _visit(self, op: HouseOperation) -> None:
        match op:
            case spike.QuantiseImage():
                self._image(op)
            case spike.Reshape() | spike.Transpose():
                self._layout(op)
            case spike.IntegerLif() | spike.IntegerLevel():
                self._neurons(op)
            case spike.Rescale():
                self._end(op, op.operands[0], rescale_constants(op, self.network))
            case spike.Extend() | spike.Truncate() | spike.Repeat() | spike.Guard():
                pass  # the same bytes
            case spike.Add():
                self._add(op)
            case spike.MaxPool():
                self._pool(op)
            case spike.SumTime() if not (makes_logits(op.results[0]) or makes_features(op.results[0])):
                self._time_sum(op)
            case spike.Mask() | spike.Multiply() | spike.Dilate():
                self._mask(op)
            case spike.KeepTokens():
                self._keep(op)
            case spike.Halt():
                self._halt(op)
            case spike.Below():
                timing = timing_of_trains(self.views, op.results[0], op.operands)
                base = (self._label(op), op.source, tuple(op.operands), self._made(op.results[0], timing))
                self.stages.append(BelowStage(*base, op.result_type.sizes[0], op.get("limit"), timing=timing))
            case spike.GivenTokens():
                self._given(op)
            case spike.Output():
                self._head(op)
            case (
                spike.Input() | spike.Align() | spike.Conv() | spike.Linear() | spike.Attention()
                | spike.Sum() | spike.SumTime() | spike.RunningSum() | spike.Exit() | spike.HeadSum() | spike.Weigh()
            ):  # fmt: skip
                pass  # part of what consumes it
            case _:
                raise refuse(op, f"{op.name} has no stage on the machine")

    def _image(self, op: spike.QuantiseImage) -> None:
        kind = op.result_type
        channels, height, width = kind.sizes
        name = "events" if kind.steps is not None else "image"
        given = shaped(self.views.memory(op.operands[0]).type)  # of events that are not all read, too
        self.image = ImageInfo(name, given.steps or 1, (channels, height, width), op.get("scale"))
        self.image_value = op.results[0]

    def _layout(self, op: spike.Reshape | spike.Transpose) -> None:
        """The image comes with channels last; pixels may be regrouped, nothing else."""
        value = op.operands[0]
        if isinstance(op, spike.Transpose) and self.views.memory(value) is self.image_value:
            if op.results[0] not in self.views.aliases:
                raise refuse(op, "the image must go to a convolution as HxWxC")
        elif isinstance(op, spike.Transpose) or op.results[0] not in self.views.aliases:
            raise refuse(op, f"moves {op.operand_type()} to {op.result_type}; channels must stay the last dimension")

    def _label(self, op: HouseOperation) -> str:
        """The op's label, numbered where an op before it has the same: layers and buffers go by their names."""
        self.labels[op.label] += 1
        count = self.labels[op.label]
        return op.label if count == 1 else f"{op.label}.{count}"

    def _made(self, value: SSAValue, timing: Timing) -> SSAValue:
        """Register the train or stream that a value is."""
        kind, owner = shaped(value.type), value.owner
        assert isinstance(owner, HouseOperation)
        pixels, channels, element = prod(kind.sizes[:-1]), kind.sizes[-1], kind.element
        is_still = kind.steps is None
        if element.is_count:
            if element.planes > MAX_PLANES:
                raise refuse(
                    owner,
                    f"counts up to {element.bounds[1]} need {element.planes} planes; at most {MAX_PLANES}",
                )
            self.values[value] = TrainInfo(
                owner.label, timing.steps, pixels, channels, element.planes, is_still=is_still
            )
        elif element.bounds in STREAM_BOUNDS:
            size = STREAM_BOUNDS[element.bounds]
            self.values[value] = StreamInfo(owner.label, timing.steps, pixels, channels, size, is_still)
        else:
            raise refuse(owner, f"{kind} is no train of spikes or counts and no stream of 8 or 16 bits")
        return value

    def _stream_bytes(self, value: SSAValue) -> int:
        """Bytes of a stream's values, 0 for a train; the image has values of one byte."""
        value = self.views.memory(value)
        info = self.values.get(value)
        if isinstance(info, StreamInfo):
            return info.value_bytes
        return 1 if value is self.image_value else 0

    def _expect_spikes(self, op: spike.SpikeOperation, what: str) -> None:
        for index in range(len(op.operands)):
            element = op.operand_type(index).element
            if not element.is_count or element.planes != 1:
                raise refuse(op, f"{what} {op.operand_type(index)}; it must be spikes")

    def _neurons(self, op: spike.IntegerLif | spike.IntegerLevel) -> None:
        current = op.operands[0]
        align = self.views.memory(current).owner
        if not isinstance(align, spike.Align):
            raise refuse(op, "its current must come from an align")
        if any(isinstance(value.owner, spike.Extend) for value in self.views.chain(current)):
            raise refuse(op, "its current is extended; what is extended must be what the align in front of it takes")
        constants = lif_constants if isinstance(op, spike.IntegerLif) else level_constants
        self._end(op, align.operands[0], constants(op, align, self.network))  # type: ignore[arg-type]

    def _end(self, op: spike.SpikeOperation, value: SSAValue, end: Neurons | Rescaling) -> None:
        """The stage that makes `value` and ends in `op`, with the add behind it where that is the only reader."""
        result, addend = op.results[0], None
        if result in self.fused:
            add, addend = self.fused[result]
            result = add.results[0]
        sums = self.views.memory(value)
        maker = sums.owner
        assert isinstance(maker, HouseOperation)
        inputs = self._summed(op, maker, value)
        timing = timing_of_sums(self.views, op, value, inputs, result, addend)
        made = self._made(result, timing)
        if self._stream_bytes(made) == 1 and addend is not None:
            raise refuse(op, "adds to a stream of 8 bits; streams that are added have 16")
        first = maker if sums not in self.values else op
        base = (self._label(first), first.source, inputs, made, end, addend)
        kept = op.operands[1] if len(op.operands) > 1 else None
        self.stages.append(replace(self._stage(op, maker, base), timing=timing, kept=kept))

    def _summed(self, op: spike.SpikeOperation, maker: HouseOperation, value: SSAValue) -> tuple[SSAValue, ...]:
        """What the stage reads that makes `value`. Raises CStepError where there is no such stage."""
        match maker:
            case spike.Conv() | spike.Linear() | spike.HeadSum() | spike.Attention():
                return tuple(maker.operands)
            case spike.Sum():
                return self._sum_inputs(maker)
            case _ if self._stream_bytes(value) == 2:
                return (value,)
            case _:
                raise refuse(op, "must come from a conv, linear, attention, sum, head sum or 16-bit stream")

    def _stage(self, op: spike.SpikeOperation, maker: HouseOperation, base: EndedParts) -> EndedStage:
        """The stage whose sums `maker` makes and that ends in `op`."""
        match maker:
            case spike.Conv() | spike.Linear():
                return self._weighted(maker, base)
            case spike.Attention():
                return self._attention(maker, base)
            case spike.Sum():
                return SumStage(*base)
            case spike.HeadSum():
                self._expect_spikes(maker, "sums the heads of")
                tokens, channels = maker.operand_type().sizes
                heads = maker.get("heads")
                return HeadSumStage(*base, tokens, heads, channels // heads)
            case _:
                return StreamStage(*base, *_pixels(op))

    def _weighted(self, op: spike.Conv | spike.Linear, base: EndedParts) -> WeightedStage:
        stream_bytes = self._stream_bytes(op.operands[0])
        if stream_bytes > 1:
            raise refuse(op, f"reads {op.operand_type()}; a weighted layer reads spikes, counts or 8-bit values")
        operation, groups, weight = weights_of(op, self.network, is_train=not stream_bytes)
        sharing = sharing_of(op, self.network)
        return WeightedStage(*base, operation, geometry_of(op), weight, groups, sharing)

    def _attention(self, op: spike.Attention, base: EndedParts) -> AttentionStage:
        for index in range(3):
            element = op.operand_type(index).element
            if not element.is_count or element.planes > MAX_PLANES:
                raise refuse(op, f"attends to {op.operand_type(index)}; q, k and v must be spikes or counts")
        (tokens, channels), (keys, values) = op.operand_type(0).sizes, op.operand_type(2).sizes
        heads, values_first = op.get("heads"), op.get("order") == "values"
        return AttentionStage(*base, heads, tokens, keys, channels // heads, values // heads, values_first)

    def _sum_inputs(self, op: spike.Sum) -> tuple[SSAValue, ...]:
        """What a sum over tokens adds up: a train or a stream, or the product of two trains."""
        value = tokens_summed(op, self.views.memory)
        summed = self.views.memory(value)
        if isinstance(summed.owner, spike.Multiply) and summed not in self.values:
            self._expect_spikes(summed.owner, "multiplies")
            return tuple(summed.owner.operands)
        if summed not in self.values or self._stream_bytes(value) == 1:
            raise refuse(op, f"sums {op.operand_type()}; it must be a train or a 16-bit stream")
        return (value,)

    def _head(self, op: spike.Output) -> None:
        head = head_of(op, self.network, self.views)
        for value, part in zip(head.inputs, head.parts, strict=True):
            info = self.values.get(self.views.memory(value))
            top = part.shift + info.planes - 1 if isinstance(info, TrainInfo) else part.shift
            if info is None or top > (MAX_PLANES if isinstance(info, TrainInfo) else 0):
                raise refuse(op, "classifies sums of trains, shifted to the left by a few bits, or of 16-bit streams")
        ends = cuts((part.steps for part in head.parts), self.timesteps)
        self.stages.append(replace(head, timing=Timing(self.timesteps, self.timesteps, self.timesteps, cuts=ends)))

    def _given(self, op: spike.GivenTokens) -> None:
        """A kept train that the program carries."""
        steps = op.result_type.steps or 1
        made = self._made(op.results[0], Timing(steps, steps, steps))
        self.given[made] = self.network.weights[symbol_of(op, "kept")].astype(np.uint8)

    def _keep(self, op: spike.KeepTokens) -> None:
        """The scores of what tokens a block lets through, and the choice."""
        value, result = op.operands[0], op.results[0]
        if self.views.memory(value) not in self.values or self._stream_bytes(value) == 1:
            raise refuse(op, f"scores {op.operand_type()}; it must be spikes, counts or a 16-bit stream")
        timing = replace(timing_of_trains(self.views, result, ()), is_still=self.views.is_still(value))
        base = (self._label(op), op.source, (value,), self._made(result, timing))
        fields = ("keep", "rows", "columns", "kernel", "score", "multiplier", "divisor", "drop")
        self.stages.append(KeepStage(*base, *(op.get(name) for name in fields), timing=timing))

    def _halt(self, op: spike.Halt) -> None:
        """Halting totals and weights behind a block."""
        if self.views.memory(op.operands[0]) not in self.values or self._stream_bytes(op.operands[0]) == 1:
            raise refuse(op, f"scores {op.operand_type()}; it must be spikes, counts or a 16-bit stream")
        timing = timing_of_trains(self.views, op.results[0], op.operands)
        base = (self._label(op), op.source, tuple(op.operands), self._made(op.results[0], timing))
        fields = (op.get("multiplier"), op.get("divisor"), op.get("bias"), op.get("limit"))
        gives = Gives[op.get("gives").upper()]
        self.stages.append(HaltStage(*base, op.result_type.sizes[0], *fields, gives, timing=timing))

    def _with_skips(self, stage: Stage) -> Stage:
        """Attention whose q, k and v are made of the tokens that it keeps itself skips the others."""
        if not isinstance(stage, AttentionStage) or stage.kept is None:
            return stage
        kept = {
            self.views.memory(each.result): each.kept
            for each in self.stages
            if isinstance(each, EndedStage) and each.result is not None and each.kept is not None
        }
        made = [kept.get(self.views.memory(value)) for value in stage.inputs]
        own = self.views.memory(stage.kept)
        return replace(stage, skips=all(each is not None and self.views.memory(each) is own for each in made))

    def _in_order(self) -> list[Stage]:
        """Stages such that each comes after those whose results it reads, otherwise as the model has them.

        What a sum over time is made of is computed at all timesteps before that.
        """
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(len(self.stages)))
        makes = {stage.result: index for index, stage in enumerate(self.stages) if stage.result is not None}
        for index, stage in enumerate(self.stages):
            read = (self.views.memory(value) for value in stage.reads)
            graph.add_edges_from((makes[value], index) for value in read if value in makes)
        ahead = {each for index, stage in enumerate(self.stages) if isinstance(stage, TimeSumStage)
                 for each in nx.ancestors(graph, index)}  # fmt: skip
        for index in ahead:
            stage = self.stages[index]
            self.stages[index] = replace(stage, timing=replace(stage.timing, is_ahead=True))
        return [self.stages[index] for index in nx.lexicographical_topological_sort(graph)]

    def _add(self, op: spike.Add) -> None:
        operands, kind = tuple(op.operands), op.result_type
        if any(op is add for add, _ in self.fused.values()) or op in self.logit_adds:  # the head adds logits
            return
        if kind.element.is_count:
            timing = timing_of_trains(self.views, op.results[0], operands)
            result = self._made(op.results[0], timing)
            self.stages.append(AddStage(self._label(op), op.source, operands, result, timing=timing))
            return
        same, (value, addend) = Rescaling.identity(kind.sizes[-1]), operands
        timing = timing_of_sums(self.views, op, value, (value,), op.results[0], addend)
        base = (self._label(op), op.source, (value,), self._made(op.results[0], timing), same, addend)
        self.stages.append(StreamStage(*base, *_pixels(op), timing=timing))

    def _pool(self, op: spike.MaxPool) -> None:
        value = op.operands[0]
        if self.views.memory(value) not in self.values or self._stream_bytes(value) == 1:
            raise refuse(op, f"pools {op.operand_type()}; it must be spikes, counts or a 16-bit stream")
        timing = timing_of_trains(self.views, op.results[0], (value,))
        result, channels = self._made(op.results[0], timing), op.operand_type().sizes[2]
        base = (self._label(op), op.source, (value,), result)
        self.stages.append(PoolStage(*base, geometry_of(op), channels, timing=timing))

    def _time_sum(self, op: spike.SumTime) -> None:
        """A sum in the middle of the network; those that the logits are made of are part of the head."""
        value = op.operands[0]
        if not isinstance(self.values.get(self.views.memory(value)), TrainInfo):
            raise refuse(op, f"sums {op.operand_type()} over time; in front of layers it must be spikes or counts")
        result = self._made(op.results[0], Timing())
        self.stages.append(TimeSumStage(self._label(op), op.source, (value,), result))

    def _mask(self, op: spike.Mask | spike.Multiply | spike.Dilate) -> None:
        if isinstance(op, spike.Multiply) and all(isinstance(use.operation, spike.Sum) for use in op.results[0].uses):
            return  # the sum multiplies
        self._expect_spikes(op, "works on")
        inputs, timing = tuple(op.operands), timing_of_trains(self.views, op.results[0], op.operands)
        channels, label, result = op.result_type.sizes[-1], self._label(op), self._made(op.results[0], timing)
        if isinstance(op, spike.Dilate):
            heads = op.get("heads")
            self.stages.append(DilateStage(label, op.source, inputs, result, heads, channels // heads, timing=timing))
            return
        sizes, masks = (op.operand_type(index).sizes for index in range(2))
        if isinstance(op, spike.Multiply):
            if sizes != masks:
                raise refuse(op, f"multiplies {op.operand_type(0)} by {op.operand_type(1)}; shapes must be equal")
            kind, heads = "equal", 1
        else:
            kind, heads = ("tokens", 1) if len(masks) == 1 else ("heads", masks[1])
        self.stages.append(MaskStage(label, op.source, inputs, result, kind, heads, channels // heads, timing=timing))


def _pixels(op: spike.SpikeOperation) -> tuple[int, int]:
    """Pixels of an op's result, and of one of its rows."""
    sizes = op.result_type.sizes
    pixels = prod(sizes[:-1])
    return pixels, sizes[1] if len(sizes) == 3 else pixels


def _end_behind(operand: SSAValue) -> spike.IntegerLif | spike.Rescale | None:
    """The neurons or the rescale right behind which an add reads its operand, if it is the only reader."""
    owner = operand.owner
    if isinstance(owner, spike.Extend) and len(list(operand.uses)) == 1:
        operand, owner = owner.operands[0], owner.operands[0].owner
        if not isinstance(neurons_behind(operand).owner, spike.IntegerLif):
            return None
    if neurons_behind(operand) is not operand and len(list(operand.uses)) == 1:
        operand = neurons_behind(operand)
        owner = operand.owner
    is_end = isinstance(owner, spike.IntegerLif | spike.Rescale) and len(list(operand.uses)) == 1
    return owner if is_end else None  # type: ignore[return-value]
