"""Group the ops of an integer module into stages, in dependence order."""

from __future__ import annotations

from math import prod

import networkx as nx
import numpy as np
from xdsl.ir import SSAValue

from compiler.backend.stages import (
    AddStage,
    AttentionStage,
    Geometry,
    HeadStage,
    ImageInfo,
    Neurons,
    Plan,
    PoolStage,
    Stage,
    TrainInfo,
    WeightedStage,
)
from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.spelling import HouseOperation
from compiler.ir.types import shaped
from isa.errors import CStepError

MAX_PLANES = 7
"""Planes that the instruction set's fields hold."""


def refuse(op: HouseOperation, message: str) -> CStepError:
    """An error that names the op and its source line."""
    where = f" ({op.source})" if op.source else ""
    return CStepError(f"{op.label}{where}: {message}")


def plan_stages(network: Network) -> Plan:
    """Group the ops of an integer module into stages. Raises CStepError for what the machine has no stage for."""
    return _Grouper(network).run()


class _Grouper:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.stages: list[Stage] = []
        self.trains: dict[SSAValue, TrainInfo] = {}
        self.aliases: dict[SSAValue, SSAValue] = {}
        self.image: ImageInfo | None = None
        self.image_value: SSAValue | None = None
        self.fused: dict[SSAValue, spike.Add] = {}

    def run(self) -> Plan:
        operations = list(self.network.operations())
        order = {op: index for index, op in enumerate(operations)}
        for op in operations:
            if isinstance(op, spike.Add):
                self._find_residual(op, order)
        for op in operations:
            self._visit(op)
        if self.image is None or self.image_value is None:
            raise CStepError("the network has no input that a layer reads")
        steps = {info.steps for info in self.trains.values()}
        if len(steps) != 1:
            raise CStepError(f"the network's trains have T = {sorted(steps)}; one T is supported")
        ordered = _in_dependence_order(self.stages)
        return Plan(ordered, self.trains, self.image, self.image_value, steps.pop(), self.aliases)

    def _alias(self, value: SSAValue) -> SSAValue:
        while value in self.aliases:
            value = self.aliases[value]
        return value

    def _find_residual(self, add: spike.Add, order: dict[HouseOperation, int]) -> None:
        """An add right behind a neuron that nothing else reads is the neuron's residual; of two, the later one's."""
        neurons = [
            operand
            for operand in add.operands
            if isinstance(operand.owner, spike.IntegerLif) and len(list(operand.uses)) == 1
        ]
        if neurons:
            last = max(neurons, key=lambda value: order[value.owner])  # type: ignore[index]
            self.fused[last] = add

    def _visit(self, op: HouseOperation) -> None:
        if isinstance(op, spike.Input | spike.Repeat | spike.Align | spike.Conv | spike.Linear | spike.Attention):
            return  # part of what consumes it
        if isinstance(op, spike.QuantiseImage):
            self._image(op)
        elif isinstance(op, spike.Reshape | spike.Transpose):
            self._layout(op)
        elif isinstance(op, spike.IntegerLif):
            self._neurons(op)
        elif isinstance(op, spike.Add):
            self._add(op)
        elif isinstance(op, spike.MaxPool):
            self._pool(op)
        elif isinstance(op, spike.Output):
            self._head(op)
        elif not isinstance(op, spike.Sum | spike.SumTime):
            raise refuse(op, f"{op.name} has no stage on the machine")

    def _image(self, op: spike.QuantiseImage) -> None:
        kind = op.result_type
        channels, height, width = kind.sizes
        name = "events" if kind.steps is not None else "image"
        self.image = ImageInfo(name, kind.steps or 1, (channels, height, width), op.get("scale"))
        self.image_value = op.results[0]

    def _layout(self, op: spike.SpikeOperation) -> None:
        """The image comes with channels last; a train's pixels may be regrouped, nothing else."""
        value = op.operands[0]
        if self._alias(value) is self.image_value:
            if isinstance(op, spike.Transpose) and op.get("order") == (1, 2, 0):
                self.aliases[op.results[0]] = value
                return
            raise refuse(op, "the image must go to a convolution as HxWxC")
        if isinstance(op, spike.Reshape) and op.result_type.sizes[-1] == op.operand_type().sizes[-1]:
            self.aliases[op.results[0]] = value
            return
        raise refuse(op, f"moves {op.operand_type()} to {op.result_type}; channels must stay the last dimension")

    def _train(self, value: SSAValue) -> TrainInfo:
        """Register the train that a value is."""
        kind = shaped(value.type)
        owner = value.owner
        label = owner.label if isinstance(owner, HouseOperation) else "train"
        if kind.steps is None or not kind.element.is_count:
            raise CStepError(f"{label}: {kind} is no train of spikes or counts")
        planes = kind.element.planes
        if planes > MAX_PLANES:
            raise CStepError(
                f"{label}: counts up to {kind.element.bounds[1]} need {planes} planes; at most {MAX_PLANES}"
            )
        info = TrainInfo(label, kind.steps, prod(kind.sizes[:-1]), kind.sizes[-1], planes)
        self.trains[value] = info
        return info

    def _neurons(self, op: spike.IntegerLif) -> None:
        align = op.operands[0].owner
        if not isinstance(align, spike.Align):
            raise refuse(op, "its current must come from an align")
        layer = align.operands[0].owner
        add = self.fused.get(op.results[0])
        residual = None
        result = op.results[0]
        if add is not None:
            residual = add.operands[1] if add.operands[0] is op.results[0] else add.operands[0]
            residual, result = self._alias(residual), add.results[0]
        self._train(result)
        neurons = self._constants(op, align)
        if isinstance(layer, spike.Attention):
            self.stages.append(self._attention(layer, neurons, residual, result))
        elif isinstance(layer, spike.Conv | spike.Linear):
            self.stages.append(self._weighted(layer, neurons, residual, result))
        else:
            raise refuse(op, "its current must come from a conv, linear or attention")

    def _constants(self, op: spike.IntegerLif, align: spike.Align) -> Neurons:
        channels = op.result_type.sizes[-1]
        bias_name, threshold_name = align.symbol("bias"), op.symbol("threshold")
        assert threshold_name is not None
        weights = self.network.weights
        bias = np.zeros(channels, np.int32) if bias_name is None else weights[bias_name].astype(np.int32)
        shift = align.get("shift")
        return Neurons(
            op.label,
            bias,
            weights[threshold_name].astype(np.int32),
            max(-shift, 0),
            max(shift, 0),
            op.get("charge"),
            op.get("multiplier"),
            op.get("divisor"),
            op.get("reset") == "soft",
        )

    def _weighted(
        self, op: spike.Conv | spike.Linear, neurons: Neurons, residual: SSAValue | None, result: SSAValue
    ) -> WeightedStage:
        value = op.operands[0]
        while isinstance(value.owner, spike.Repeat):
            value = value.owner.operands[0]
        if op.symbol("bias"):
            raise refuse(op, "has a bias of its own; before a neuron it belongs into the align")
        name = op.symbol("weight")
        assert name is not None
        weight = self.network.weights[name].astype(np.int8)
        sizes, out = op.operand_type().sizes, op.result_type.sizes
        if isinstance(op, spike.Conv):
            if op.get("groups") != 1:
                raise refuse(op, f"groups={op.get('groups')}; grouped convolutions are not supported yet")
            geometry = Geometry(
                out[0], out[1], sizes[0], sizes[1], op.get("kernel"), op.get("stride"), op.get("padding")
            )
            tiles = weight.transpose(2, 3, 1, 0)
        else:
            tokens = prod(sizes[:-1])
            geometry = Geometry(1, tokens, 1, tokens, 1, 1, 0)
            tiles = weight.T[None, None]
        return WeightedStage(
            op.label,
            op.source,
            (self._alias(value),),
            result,
            "conv" if isinstance(op, spike.Conv) else "linear",
            geometry,
            np.ascontiguousarray(tiles),
            neurons,
            residual,
        )

    def _attention(
        self, op: spike.Attention, neurons: Neurons, residual: SSAValue | None, result: SSAValue
    ) -> AttentionStage:
        q, k, v = (self._alias(operand) for operand in op.operands)
        for operand in op.operands:
            if shaped(operand.type).element.planes != 1:
                raise refuse(op, f"attends to {operand.type}; q, k and v must be spikes")
        tokens, channels = op.result_type.sizes
        keys = op.operand_type(1).sizes[0]
        heads = op.get("heads")
        return AttentionStage(
            op.label,
            op.source,
            (q, k, v),
            result,
            heads,
            tokens,
            keys,
            channels,
            op.get("order") == "values",
            neurons,
            residual,
        )

    def _add(self, op: spike.Add) -> None:
        if op in self.fused.values():
            return
        self._train(op.results[0])
        operands = tuple(self._alias(operand) for operand in op.operands)
        self.stages.append(AddStage(op.label, op.source, operands, op.results[0]))

    def _pool(self, op: spike.MaxPool) -> None:
        if op.operand_type().element.planes != 1 or op.operand_type().element.is_real:
            raise refuse(op, f"pools {op.operand_type()}; only spikes can be pooled")
        self._train(op.results[0])
        sizes, out = op.operand_type().sizes, op.result_type.sizes
        geometry = Geometry(out[0], out[1], sizes[0], sizes[1], op.get("kernel"), op.get("stride"), op.get("padding"))
        value = self._alias(op.operands[0])
        self.stages.append(PoolStage(op.label, op.source, (value,), op.results[0], geometry, sizes[2]))

    def _head(self, op: spike.Output) -> None:
        """Sums before and after the linear layer commute with it; the bias counts as often as they sum."""
        value, repeats = op.operands[0], 1
        while isinstance(value.owner, spike.SumTime | spike.Sum):
            repeats *= _summed(value.owner)
            value = value.owner.operands[0]
        linear = value.owner
        if not isinstance(linear, spike.Linear):
            raise refuse(op, "the logits must come from a linear layer")
        value = linear.operands[0]
        while isinstance(value.owner, spike.SumTime | spike.Sum | spike.Reshape):
            value = value.owner.operands[0]
        name, bias = linear.symbol("weight"), linear.symbol("bias")
        assert name is not None
        weight = self.network.weights[name].astype(np.int8)
        biases = self.network.weights[bias].astype(np.int64) if bias else np.zeros(len(weight), np.int64)
        stage = HeadStage(
            linear.label,
            linear.source,
            (self._alias(value),),
            None,
            weight.shape[1],
            np.ascontiguousarray(weight.T),
            (biases * repeats).astype(np.int32),
            op.get("scale"),
        )
        self.stages.append(stage)


def _summed(op: spike.SpikeOperation) -> int:
    """How many values a sum adds."""
    if isinstance(op, spike.SumTime):
        return op.operand_type().steps or 1
    return op.operand_type().sizes[op.get("axis")]


def _in_dependence_order(stages: list[Stage]) -> list[Stage]:
    """Stages such that each comes after those whose trains it reads, otherwise as the model has them."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(stages)))
    makes = {stage.result: index for index, stage in enumerate(stages) if stage.result is not None}
    for index, stage in enumerate(stages):
        reads = [*stage.inputs]
        residual = getattr(stage, "residual", None)
        if residual is not None:
            reads.append(residual)
        graph.add_edges_from((makes[value], index) for value in reads if value in makes)
    return [stages[index] for index in nx.lexicographical_topological_sort(graph)]
