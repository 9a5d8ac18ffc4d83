"""Group the ops of an integer module into stages, in dependence order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import networkx as nx
from xdsl.ir import SSAValue

from compiler.backend.match import (
    geometry_of,
    head_of,
    level_constants,
    lif_constants,
    refuse,
    rescale_constants,
    tokens_summed,
    weights_of,
)
from compiler.backend.memory import ImageInfo, StreamInfo, TrainInfo
from compiler.backend.stages import (
    AddStage,
    AttentionStage,
    DilateStage,
    HeadSumStage,
    MaskStage,
    Neurons,
    Plan,
    PoolStage,
    Rescaling,
    Stage,
    StreamStage,
    SumStage,
    Timing,
    WeightedStage,
)
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import shaped
from isa.errors import CStepError

MAX_PLANES = 7
"""Planes that the instruction set's fields hold."""
STREAM_BOUNDS = {(-(1 << 15), (1 << 15) - 1): 2, (-(1 << 7), (1 << 7) - 1): 1}
"""Bounds of a stream's integers -> bytes of a value."""


def plan_stages(network: Network) -> Plan:
    """Group the ops of an integer module into stages. Raises CStepError for what the machine has no stage for."""
    return _Grouper(network).run()


class _Grouper:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.stages: list[Stage] = []
        self.values: dict[SSAValue, TrainInfo | StreamInfo] = {}
        self.aliases: dict[SSAValue, SSAValue] = {}
        self.image: ImageInfo | None = None
        self.image_value: SSAValue | None = None
        self.fused: dict[SSAValue, spike.Add] = {}
        self.labels: Counter[str] = Counter()

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
        steps = {info.steps for info in self.values.values()}
        if len(steps) != 1:
            raise CStepError(f"the network's trains have T = {sorted(steps)}; one T is supported")
        timesteps = steps.pop()
        timing = Timing(timesteps, timesteps, timesteps)
        ordered = [replace(stage, timing=timing) for stage in _in_dependence_order(self.stages)]
        return Plan(ordered, self.values, self.image, self.image_value, timesteps, self.aliases)

    def _alias(self, value: SSAValue) -> SSAValue:
        while value in self.aliases:
            value = self.aliases[value]
        return value

    def _find_addend(self, add: spike.Add, order: dict[HouseOperation, int]) -> None:
        """An add right behind neurons or a rescale that nothing else reads is done with them; of two, the later."""
        ends = [
            operand
            for operand in add.operands
            if isinstance(operand.owner, spike.IntegerLif | spike.Rescale) and len(list(operand.uses)) == 1
        ]
        if ends:
            last = max(ends, key=lambda value: order[value.owner])  # type: ignore[index]
            self.fused[last] = add

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
            case spike.Add():
                self._add(op)
            case spike.MaxPool():
                self._pool(op)
            case spike.Mask() | spike.Multiply() | spike.Dilate():
                self._mask(op)
            case spike.Output():
                self._head(op)
            case (
                spike.Input() | spike.Repeat() | spike.Align() | spike.Conv() | spike.Linear() | spike.Attention()
                | spike.Sum() | spike.SumTime() | spike.HeadSum()
            ):  # fmt: skip
                pass  # part of what consumes it
            case _:
                raise refuse(op, f"{op.name} has no stage on the machine")

    def _image(self, op: spike.QuantiseImage) -> None:
        kind = op.result_type
        channels, height, width = kind.sizes
        name = "events" if kind.steps is not None else "image"
        self.image = ImageInfo(name, kind.steps or 1, (channels, height, width), op.get("scale"))
        self.image_value = op.results[0]

    def _layout(self, op: spike.Reshape | spike.Transpose) -> None:
        """The image comes with channels last; pixels may be regrouped, nothing else."""
        value = op.operands[0]
        if self._alias(value) is self.image_value and isinstance(op, spike.Transpose):
            if op.get("order") == (1, 2, 0):
                self.aliases[op.results[0]] = value
                return
            raise refuse(op, "the image must go to a convolution as HxWxC")
        if isinstance(op, spike.Reshape) and op.result_type.sizes[-1] == op.operand_type().sizes[-1]:
            self.aliases[op.results[0]] = value
            return
        raise refuse(op, f"moves {op.operand_type()} to {op.result_type}; channels must stay the last dimension")

    def _label(self, op: HouseOperation) -> str:
        """The op's label, numbered where an op before it has the same: layers and buffers go by their names."""
        self.labels[op.label] += 1
        count = self.labels[op.label]
        return op.label if count == 1 else f"{op.label}.{count}"

    def _made(self, value: SSAValue) -> SSAValue:
        """Register the train or stream that a value is."""
        kind, owner = shaped(value.type), value.owner
        assert isinstance(owner, HouseOperation)
        if kind.steps is None:
            raise refuse(owner, f"{kind} has no time; the machine computes trains")
        pixels, channels, element = prod(kind.sizes[:-1]), kind.sizes[-1], kind.element
        if element.is_count:
            if element.planes > MAX_PLANES:
                raise refuse(
                    owner,
                    f"counts up to {element.bounds[1]} need {element.planes} planes; at most {MAX_PLANES}",
                )
            self.values[value] = TrainInfo(owner.label, kind.steps, pixels, channels, element.planes)
        elif element.bounds in STREAM_BOUNDS:
            size = STREAM_BOUNDS[element.bounds]
            self.values[value] = StreamInfo(owner.label, kind.steps, pixels, channels, size)
        else:
            raise refuse(owner, f"{kind} is no train of spikes or counts and no stream of 8 or 16 bits")
        return value

    def _stream_bytes(self, value: SSAValue) -> int:
        """Bytes of a stream's values, 0 for a train; the image has values of one byte."""
        value = self._alias(value)
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
        align = op.operands[0].owner
        if not isinstance(align, spike.Align):
            raise refuse(op, "its current must come from an align")
        constants = lif_constants if isinstance(op, spike.IntegerLif) else level_constants
        self._end(op, align.operands[0], constants(op, align, self.network))  # type: ignore[arg-type]

    def _end(self, op: spike.SpikeOperation, value: SSAValue, end: Neurons | Rescaling) -> None:
        """The stage that makes `value` and ends in `op`, with the add behind it where that is the only reader."""
        result, addend = op.results[0], None
        add = self.fused.get(result)
        if add is not None:
            addend = self._alias(add.operands[1] if add.operands[0] is result else add.operands[0])
            result = add.results[0]
        value = self._alias(value)
        made, maker = self._made(result), value.owner
        if self._stream_bytes(made) == 1 and addend is not None:
            raise refuse(op, "adds to a stream of 8 bits; streams that are added have 16")
        match maker:
            case spike.Conv() | spike.Linear():
                self._weighted(maker, end, addend, made)
            case spike.Attention():
                self._attention(maker, end, addend, made)
            case spike.Sum():
                self._sum(maker, end, addend, made)
            case spike.HeadSum():
                self._expect_spikes(maker, "sums the heads of")
                inputs, heads = (self._alias(maker.operands[0]),), maker.get("heads")
                tokens, channels = maker.operand_type().sizes
                label, width = self._label(maker), channels // heads
                self.stages.append(HeadSumStage(label, maker.source, inputs, made, end, addend, tokens, heads, width))
            case _ if self._stream_bytes(value) == 2:
                pixels = _pixels(op)
                self.stages.append(StreamStage(self._label(op), op.source, (value,), made, end, addend, *pixels))
            case _:
                raise refuse(op, "must come from a conv, linear, attention, sum, head sum or 16-bit stream")

    def _weighted(
        self, op: spike.Conv | spike.Linear, end: Neurons | Rescaling, addend: SSAValue | None, result: SSAValue
    ) -> None:
        value = op.operands[0]
        while isinstance(value.owner, spike.Repeat):
            value = value.owner.operands[0]
        value = self._alias(value)
        stream_bytes = self._stream_bytes(value)
        if stream_bytes > 1:
            raise refuse(op, f"reads {op.operand_type()}; a weighted layer reads spikes, counts or 8-bit values")
        operation, groups, weight = weights_of(op, self.network, is_train=not stream_bytes)
        self.stages.append(
            WeightedStage(
                self._label(op), op.source, (value,), result, end, addend, operation, geometry_of(op), weight, groups
            )
        )

    def _attention(
        self, op: spike.Attention, end: Neurons | Rescaling, addend: SSAValue | None, result: SSAValue
    ) -> None:
        for index in range(3):
            element = op.operand_type(index).element
            if not element.is_count or element.planes > MAX_PLANES:
                raise refuse(op, f"attends to {op.operand_type(index)}; q, k and v must be spikes or counts")
        inputs = tuple(self._alias(operand) for operand in op.operands)
        (tokens, channels), (keys, values) = op.operand_type(0).sizes, op.operand_type(2).sizes
        heads, values_first = op.get("heads"), op.get("order") == "values"
        self.stages.append(
            AttentionStage(
                self._label(op),
                op.source,
                inputs,
                result,
                end,
                addend,
                heads,
                tokens,
                keys,
                channels // heads,
                values // heads,
                values_first,
            )
        )

    def _sum(self, op: spike.Sum, end: Neurons | Rescaling, addend: SSAValue | None, result: SSAValue) -> None:
        value = self._alias(tokens_summed(op, self._alias))
        inputs: tuple[SSAValue, ...] = (value,)
        if isinstance(value.owner, spike.Multiply) and value not in self.values:
            self._expect_spikes(value.owner, "multiplies")
            inputs = tuple(self._alias(operand) for operand in value.owner.operands)
        elif value not in self.values or self._stream_bytes(value) == 1:
            raise refuse(op, f"sums {op.operand_type()}; it must be a train or a 16-bit stream")
        self.stages.append(SumStage(self._label(op), op.source, inputs, result, end, addend))

    def _head(self, op: spike.Output) -> None:
        head = head_of(op, self.network, self._alias)
        for value, part in zip(head.inputs, head.parts, strict=True):
            info = self.values.get(value)
            top = part.shift + info.planes - 1 if isinstance(info, TrainInfo) else part.shift
            if info is None or top > (MAX_PLANES if isinstance(info, TrainInfo) else 0):
                raise refuse(op, "classifies sums of trains, shifted to the left by a few bits, or of 16-bit streams")
        self.stages.append(head)

    def _add(self, op: spike.Add) -> None:
        if op in self.fused.values() or op.result_type.steps is None:  # logits: the head adds them
            return
        result = self._made(op.results[0])
        operands = tuple(self._alias(operand) for operand in op.operands)
        label, kind = self._label(op), op.result_type
        if kind.element.is_count:
            self.stages.append(AddStage(label, op.source, operands, result))
            return
        same = Rescaling.identity(kind.sizes[-1])
        self.stages.append(StreamStage(label, op.source, operands[:1], result, same, operands[1], *_pixels(op)))

    def _pool(self, op: spike.MaxPool) -> None:
        value = self._alias(op.operands[0])
        if value not in self.values or self._stream_bytes(value) == 1:
            raise refuse(op, f"pools {op.operand_type()}; it must be spikes, counts or a 16-bit stream")
        result, channels = self._made(op.results[0]), op.operand_type().sizes[2]
        self.stages.append(PoolStage(self._label(op), op.source, (value,), result, geometry_of(op), channels))

    def _mask(self, op: spike.Mask | spike.Multiply | spike.Dilate) -> None:
        if isinstance(op, spike.Multiply) and all(isinstance(use.operation, spike.Sum) for use in op.results[0].uses):
            return  # the sum multiplies
        self._expect_spikes(op, "works on")
        inputs, result = tuple(self._alias(operand) for operand in op.operands), self._made(op.results[0])
        channels, label = op.result_type.sizes[-1], self._label(op)
        if isinstance(op, spike.Dilate):
            heads = op.get("heads")
            self.stages.append(DilateStage(label, op.source, inputs, result, heads, channels // heads))
            return
        sizes, masks = (op.operand_type(index).sizes for index in range(2))
        if isinstance(op, spike.Multiply):
            if sizes != masks:
                raise refuse(op, f"multiplies {op.operand_type(0)} by {op.operand_type(1)}; shapes must be equal")
            kind, heads = "equal", 1
        else:
            kind, heads = ("tokens", 1) if len(masks) == 1 else ("heads", masks[1])
        self.stages.append(MaskStage(label, op.source, inputs, result, kind, heads, channels // heads))


def _pixels(op: spike.SpikeOperation) -> tuple[int, int]:
    """Pixels of an op's result, and of one of its rows."""
    sizes = op.result_type.sizes
    pixels = prod(sizes[:-1])
    return pixels, sizes[1] if len(sizes) == 3 else pixels


def _in_dependence_order(stages: list[Stage]) -> list[Stage]:
    """Stages such that each comes after those whose results it reads, otherwise as the model has them."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(stages)))
    makes = {stage.result: index for index, stage in enumerate(stages) if stage.result is not None}
    for index, stage in enumerate(stages):
        graph.add_edges_from((makes[value], index) for value in stage.reads if value in makes)
    return [stages[index] for index in nx.lexicographical_topological_sort(graph)]
