"""lower-to-cstep: stages become instructions over buffers, tile by tile, in one of two schedules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from compiler.backend.calls import Call, calls_of, segments
from compiler.backend.emitter import Emitter, Place
from compiler.backend.group import plan_stages
from compiler.backend.lower_attention import attention_tiling, lower_attention, spread_where_needed
from compiler.backend.lower_gates import lower_add, lower_dilate, lower_mask
from compiler.backend.lower_guards import ChannelMasks
from compiler.backend.lower_halting import lower_below, lower_halt
from compiler.backend.lower_head import has_work, lower_head
from compiler.backend.lower_pool import lower_pool
from compiler.backend.lower_streams import lower_stream, stream_tiling
from compiler.backend.lower_sums import head_sum_tiling, lower_head_sum, lower_sum
from compiler.backend.lower_time_sums import lower_time_sum
from compiler.backend.lower_tokens import kept_train, lower_keep
from compiler.backend.lower_weighted import is_one_tile, lower_weighted
from compiler.backend.memory import TrainInfo
from compiler.backend.stages import (
    AddStage,
    AttentionStage,
    BelowStage,
    DilateStage,
    EndedStage,
    HaltStage,
    HeadStage,
    HeadSumStage,
    KeepStage,
    MaskStage,
    Neurons,
    Plan,
    PoolStage,
    Stage,
    StreamStage,
    SumStage,
    TimeSumStage,
    WeightedStage,
)
from compiler.backend.tile_weighted import Demand, Tiling, choose
from compiler.ir.cstep import OPS, InputOp, OutputOp
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.errors import CStepError
from isa.instructions import End, Keep
from isa.machine import Machine, load_machine
from isa.word import Region

SCHEDULES = ("layers", "windows")


class Lowering:
    """What the stages' lowerings share: the machine, where trains lie in DRAM, and the emitter."""

    def __init__(self, plan: Plan, machine: Machine, emit: Emitter, schedule: str, share: bool) -> None:
        self.plan, self.machine, self.emit, self.share = plan, machine, emit, share
        self._dram: dict[SSAValue, SSAValue] = {}
        self._state: dict[str, SSAValue] = {}
        self._tilings: dict[Demand, Tiling] = {}
        self._latched: dict[type[Keep], tuple[Place, int, int]] = {}
        self.masks = ChannelMasks(self)
        self.window = min(machine.window, plan.timesteps)
        """Timesteps of a window."""
        head = plan.stages[-1]
        exits = head.exits.after if isinstance(head, HeadStage) and head.exits else ()
        self.segments = segments(plan.timesteps, self.window, schedule, exits)
        """What all stages compute before any goes on."""
        self.calls = {stage.label: calls_of(stage.timing, self.segments, self.window) for stage in plan.stages}
        """By label of a stage, in each segment: its calls."""

    def calls_of(self, stage: Stage) -> list[Call]:
        """All calls of a stage; tilings are chosen for the longest and hold for all."""
        return [call for calls in self.calls[stage.label] for call in calls]

    def longest(self, stage: Stage) -> int:
        """Timesteps of the longest call."""
        return max(call.steps for call in self.calls_of(stage))

    def dram_of(self, value: SSAValue) -> SSAValue:
        """The DRAM buffer of a train or stream."""
        value = self.plan.memory(value)
        if value not in self._dram:
            info = self.plan.info(value)
            kind = "train" if isinstance(info, TrainInfo) else "stream"
            self._dram[value] = self.emit.buffer(Region.DRAM, info.bytes, f"{info.label}.{kind}")
        return self._dram[value]

    def place(self, value: SSAValue, buffer: SSAValue) -> None:
        """Say where a value lies in DRAM."""
        self._dram[value] = buffer

    def state(self, name: str, size: int) -> SSAValue:
        """DRAM for what survives from one window to the next."""
        if name not in self._state:
            self._state[name] = self.emit.buffer(Region.DRAM, size, name)
        return self._state[name]

    def latch(self, kind: type[Keep], kept: Place, steps: int, tokens: int) -> None:
        """Have a unit latch a tile of a kept train, unless it has it."""
        if self._latched.get(kind) != (kept, steps, tokens):
            self._latched[kind] = (kept, steps, tokens)
            self.emit.instruction(kind, {"kept": kept}, steps=steps, tokens=tokens)

    def tiling(self, demand: Demand, where: str) -> Tiling:
        """The tiling of a weighted stage; layers that ask for the same share it."""
        if demand not in self._tilings:
            self._tilings[demand] = choose(demand, self.machine, where)
        return self._tilings[demand]


@dataclass(frozen=True)
class LowerToCstep(NetworkPass):
    """Turn every layer into copies, accumulations and neuron updates over tiles that fit the machine's buffers.

        %a = spike.linear %s, @w.int8 ...
        %c = spike.align %a, @b shift=2 ...
        %l = spike.integer_lif %c, @t multiplier=1, divisor=1 ...
    becomes
        cstep.load source=%w.tiles, target=%w, ...
        cstep.load source=%s.train, target=%s, ...
        cstep.accumulate spikes=%s, weights=%w, accumulators=%a, steps=2, ...
        cstep.fire accumulators=%a, constants=%c, membranes=%v, result=%l, ...
        cstep.store source=%l, target=%l.train, ...

    schedule=layers: one layer after another over all windows of timesteps, membranes never leaving the chip.
    schedule=windows: all layers for timesteps 0-1, then for 2-3, ...; membranes go to DRAM and come back.
    """

    name = "lower-to-cstep"
    keeps: ClassVar[Keeps] = Keeps.INTEGERS

    machine: str = ""
    """A preset or a file; the network's own target where nothing is said."""
    schedule: str = "layers"
    share: bool = True

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise CStepError(f"lower-to-cstep: schedule={self.schedule}; it must be {' or '.join(SCHEDULES)}")

    def apply(self, network: Network) -> Network:
        return lower(network, load_machine(self.machine) if self.machine else network.target, self.schedule, self.share)


def lower(network: Network, machine: Machine, schedule: str, share: bool = True) -> Network:
    """The cstep module of an integer module for a machine."""
    plan = plan_stages(network)
    lowered = network.with_module(ModuleOp([]))
    lowered.target = machine
    emit = Emitter(lowered)
    lowering = Lowering(plan, machine, emit, schedule, share)
    spread_where_needed(lowering)
    _join_guarded_calls(lowering)
    image = emit.buffer(Region.DRAM, plan.image.bytes, "input")
    lowering.place(plan.image_value, image)
    emit.append(
        InputOp.make(
            image,
            kind=plan.image.kind,
            shape=plan.image.shape,
            steps=plan.image.steps,
            timesteps=plan.timesteps,
            scale=plan.image.scale,
        )
    )
    for value, kept in plan.given.items():
        lowering.place(value, emit.constant(f"{plan.train(value).label}.train", lambda kept=kept: kept_train(kept)))
    head = plan.stages[-1]
    if not isinstance(head, HeadStage):
        raise CStepError("the network has no head; it must end in a linear layer that makes the logits")
    logits = emit.buffer(Region.DRAM, 4 * head.classes, "logits")
    emit.append(OutputOp.make(logits, classes=head.classes, scale=head.scale))
    for segment in range(len(lowering.segments)):
        for stage in plan.stages:
            for call in lowering.calls[stage.label][segment]:
                _lower_stage(lowering, stage, call, logits)
                lowering.masks.conclude(stage, call)
    emit.append(OPS[End].of({}))
    return lowered


def _join_guarded_calls(lowering: Lowering) -> None:
    """Where early timesteps are one tile of pixels, its mask is there in time for late ones in the same call."""
    for stage in lowering.plan.stages:
        if stage.result in lowering.plan.guards.columns and stage.timing.breaks:
            parted, timing = lowering.calls[stage.label], replace(stage.timing, breaks=())
            lowering.calls[stage.label] = calls_of(timing, lowering.segments, lowering.window)
            if not _is_one_tile(lowering, stage):
                lowering.calls[stage.label] = parted


def _is_one_tile(lowering: Lowering, stage: Stage) -> bool:
    """Whether a stage computes all pixels of a tile of channels in one go."""
    try:
        match stage:
            case WeightedStage():
                return is_one_tile(lowering, stage)
            case AttentionStage():
                tiling = attention_tiling(lowering, stage)
                return tiling.ahead and tiling.queries >= stage.tokens
            case StreamStage():
                return stream_tiling(lowering, stage)[0] >= stage.pixels
            case HeadSumStage():
                return head_sum_tiling(lowering, stage) >= stage.tokens
            case _:
                return isinstance(stage, SumStage)
    except CStepError:  # so many timesteps do not fit at once
        return False


def _lower_stage(lowering: Lowering, stage: Stage, call: Call, logits: SSAValue) -> None:
    """Mark the layer, and emit its instructions."""
    operation = _operation(stage)
    neurons, fires = (), ""
    if isinstance(stage, EndedStage) and isinstance(stage.end, Neurons):
        neurons, fires = (*_pixels(stage), stage.channels), stage.end.label
    inputs = [lowering.plan.info(value) for value in stage.inputs]
    binary = all(isinstance(info, TrainInfo) and info.planes == 1 for info in inputs)
    if not isinstance(stage, HeadStage) or has_work(stage, call):
        lowering.emit.layer(stage.label, stage.source, operation, binary, neurons, fires)
    match stage:
        case WeightedStage():
            lower_weighted(lowering, stage, call)
        case AttentionStage():
            lower_attention(lowering, stage, call)
        case StreamStage():
            lower_stream(lowering, stage, call)
        case SumStage():
            lower_sum(lowering, stage, call)
        case HeadSumStage():
            lower_head_sum(lowering, stage, call)
        case MaskStage():
            lower_mask(lowering, stage, call)
        case DilateStage():
            lower_dilate(lowering, stage, call)
        case PoolStage():
            lower_pool(lowering, stage, call)
        case AddStage():
            lower_add(lowering, stage, call)
        case KeepStage():
            lower_keep(lowering, stage, call)
        case HaltStage():
            lower_halt(lowering, stage, call)
        case BelowStage():
            lower_below(lowering, stage, call)
        case TimeSumStage():
            lower_time_sum(lowering, stage)
        case HeadStage():
            lower_head(lowering, stage, call, logits)
        case _:
            raise TypeError(f"{type(stage).__name__} is no stage")


OPERATIONS: dict[type[Stage], str] = {
    AttentionStage: "attention",
    SumStage: "sum",
    HeadSumStage: "sum",
    MaskStage: "mask",
    DilateStage: "pool",
    PoolStage: "pool",
    AddStage: "add",
    TimeSumStage: "add",
    HeadStage: "head",
    KeepStage: "tokens",
    HaltStage: "tokens",
    BelowStage: "tokens",
}
"""What the layer table calls a stage."""


def _operation(stage: Stage) -> str:
    if isinstance(stage, WeightedStage):
        return stage.operation
    if isinstance(stage, StreamStage):
        return "neurons" if isinstance(stage.end, Neurons) else "add"
    return OPERATIONS[type(stage)]


def _pixels(stage: EndedStage) -> tuple[int, int]:
    """Rows and columns of a stage's neurons."""
    match stage:
        case WeightedStage():
            return stage.geometry.rows, stage.geometry.columns
        case AttentionStage():
            return 1, stage.tokens
        case StreamStage():
            return stage.pixels // stage.columns, stage.columns
        case HeadSumStage():
            return 1, stage.tokens
        case _:
            return 1, 1
