"""What `tune` may change in a model: a point is one choice in every dimension, a move is one notch in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from compiler.calibrate.search import SCORES
from compiler.calibrate.timesteps import average_timesteps, longest_train, prefix
from compiler.calibrate.tokens import NOTCH, notch_below
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.nn import group_of
from compiler.passes.blocks import PREFIX, blocks_of
from compiler.settings import (
    NEVER,
    Criterion,
    Exit,
    Guard,
    GuardMode,
    RowSharing,
    Score,
    Settings,
    Timesteps,
    Tokens,
)
from isa.errors import CStepError
from isa.machine import Machine

N = TypeVar("N", int, float)
MOST_PARTS = 12
"""Groups of neuron layers are taken block by block where that gives no more than these."""
MOST_EXITS = 3
THRESHOLDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GUARDS: tuple[GuardMode, ...] = ("both", "rows", "columns")
EPSILONS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Point:
    """One choice in every dimension but sharing; which confidence an exit asks for follows from it and the bound."""

    kept: tuple[int, ...]
    """Timesteps of each part's layers."""
    after: tuple[int, ...] = ()
    guard: tuple[GuardMode, int, int] | None = None
    """Mode, after, threshold."""
    keep: tuple[float, ...] = ()
    """Share of the tokens of each block."""
    score: Score = "paper"
    epsilon: float | None = None


@dataclass(frozen=True)
class Move:
    """A point one notch from another, and what the notch is called."""

    name: str
    point: Point


@dataclass(frozen=True)
class Space:
    """The dimensions that a model and a machine have, and the settings that the model was trained for."""

    base: Settings
    integer: Network = field(repr=False)
    steps: int
    parts: dict[str, tuple[str, ...]]
    """Names of neuron layers by part."""
    masks: dict[str, str]
    """Of each neuron layer: what it was trained with, or all of its timesteps."""
    blocks: int
    """0: no tokens can be left out."""
    sharing: tuple[RowSharing, ...]
    criterion: Criterion
    notes: tuple[str, ...]
    """Dimensions that this model cannot have."""

    @staticmethod
    def of(integer: Network, machine: Machine, base: Settings) -> Space:
        """That of an integer model; `base` says what it was trained for."""
        steps, notes = longest_train(integer), list[str]()
        masks = _own_masks(integer, base)
        if steps == 1:
            notes.append("the model has T=1: no timestep masks, exits or guards")
        blocks = 0
        if base.halting:
            notes.append("the model halts tokens: epsilon is searched, and no tokens are stopped beside")
        else:
            notes.append("the settings have no [halting], so the model was not trained for it: epsilon is not searched")
            try:
                blocks = len(blocks_of(integer))
            except CStepError as error:
                notes.append(f"no tokens are stopped: {error}")
        modes = [RowSharing(mode="none"), *(RowSharing(mode=mode) for mode in machine.sharing)]
        if base.sharing and base.sharing not in modes:
            modes.append(base.sharing)
        return Space(
            base=base.model_copy(update={"data": None, "curve": ()}),
            integer=integer,
            steps=steps,
            parts=_parts(masks, steps),
            masks=masks,
            blocks=blocks,
            sharing=tuple(modes),
            criterion=base.exit.criterion if base.exit else "lightsoftmax",
            notes=tuple(notes),
        )

    @property
    def trained(self) -> Point:
        """Nothing but what the model was trained for."""
        kept = tuple(max(len(self.masks[label]) for label in labels) for labels in self.parts.values())
        epsilon = self.base.halting.epsilon if self.base.halting else None
        return Point(kept, keep=(1.0,) * self.blocks, epsilon=epsilon)

    @property
    def given(self) -> Point:
        """All that the base settings have."""
        base, point = self.base, self.trained
        if base.exit:
            point = replace(point, after=base.exit.after)
        if base.guard:
            point = replace(point, guard=(base.guard.mode, base.guard.after, base.guard.threshold))
        if base.tokens and self.blocks:
            keep = base.tokens.keep * (self.blocks if len(base.tokens.keep) == 1 else 1)
            point = replace(point, keep=keep, score=base.tokens.score)
        return point

    def settings(self, point: Point, sharing: RowSharing) -> Settings:
        """The settings of a point; its exits are never taken."""
        base, tokens = self.base, None
        guard = Guard(mode=point.guard[0], after=point.guard[1], threshold=point.guard[2]) if point.guard else None
        if any(keep < 1 for keep in point.keep):
            like = base.tokens or Tokens(keep=point.keep)
            tokens = Tokens(keep=point.keep, score=point.score, kernel=like.kernel, seed=like.seed)
        halting = base.halting.model_copy(update={"epsilon": point.epsilon, "loss": None}) if base.halting else None
        exits = None
        if point.after:
            exits = Exit(criterion=self.criterion, after=point.after, tau=(NEVER,) * len(point.after))
        tables = {
            "timesteps": self._timesteps(point), "exit": exits, "guard": guard, "tokens": tokens, "halting": halting,
            "sharing": sharing,
        }  # fmt: skip
        return base.model_copy(update=tables)

    def plain(self) -> Settings:
        """The model without any of it, but for a patch splitting that runs once; nothing is shared."""
        tables = dict.fromkeys(("timesteps", "exit", "guard", "tokens", "halting"))
        return self.base.model_copy(update={**tables, "sharing": RowSharing(mode="none")})

    def _timesteps(self, point: Point) -> Timesteps | None:
        trained = self.base.timesteps.masks if self.base.timesteps else {}
        found = dict(trained)
        for labels, kept in zip(self.parts.values(), point.kept, strict=True):
            for label in labels:
                own = self.masks[label]
                mask = own[:kept] + "0" * (len(own) - kept)
                if mask != own:
                    found[label] = mask
        return Timesteps(masks=found, average=average_timesteps(self.integer, found)) if found else None

    def forward(self, point: Point) -> Iterator[Move]:
        """Moves that save something, or change how."""
        if self.steps > 1:
            yield from self._fewer_timesteps(point)
            yield from self._more_exits(point)
            yield from self._more_guard(point)
        yield from self._fewer_tokens(point)
        if point.epsilon is not None and (more := [each for each in EPSILONS if each > point.epsilon]):
            yield Move("epsilon up", replace(point, epsilon=more[0]))

    def backward(self, point: Point) -> Iterator[Move]:
        """Moves that take something back."""
        for index, (name, most) in enumerate(zip(self.parts, self.trained.kept, strict=True)):
            if point.kept[index] < most:
                yield Move(f"T+1 {name}", replace(point, kept=_with(point.kept, index, point.kept[index] + 1)))
        for each in point.after:
            yield Move(f"no exit {each}", replace(point, after=tuple(other for other in point.after if other != each)))
        if point.guard:
            yield Move("no guard", replace(point, guard=None))
            if less := [each for each in THRESHOLDS if each < point.guard[2]]:
                yield Move("guard threshold down", replace(point, guard=(*point.guard[:2], less[-1])))
        for index, keep in enumerate(point.keep):
            if keep < 1:
                more = min(1.0, keep + NOTCH)
                yield Move(f"keep up {index}", replace(point, keep=_with(point.keep, index, more)))
        if point.epsilon is not None and (less := [each for each in EPSILONS if each < point.epsilon]):
            yield Move("epsilon down", replace(point, epsilon=less[-1]))

    def _fewer_timesteps(self, point: Point) -> Iterator[Move]:
        """In a part, in all parts of a group, in all."""
        groups = {name: [name] for name in self.parts}
        for name in self.parts:
            group = name.partition(" ")[0]
            members = [other for other in self.parts if other.partition(" ")[0] == group]
            if len(members) > 1:
                groups[group] = members
        if len(self.parts) > 1:
            groups["all"] = list(self.parts)
        for name, members in groups.items():
            parts = zip(self.parts, point.kept, strict=True)
            kept = tuple(max(1, each - 1) if part in members else each for part, each in parts)
            if kept != point.kept:
                yield Move(f"T-1 {name}", replace(point, kept=kept))

    def _more_exits(self, point: Point) -> Iterator[Move]:
        for each in range(1, self.steps):
            if each not in point.after and len(point.after) < MOST_EXITS:
                score: Score = "paper" if point.score == "code" else point.score
                yield Move(f"exit {each}", replace(point, after=tuple(sorted((*point.after, each))), score=score))

    def _more_guard(self, point: Point) -> Iterator[Move]:
        if point.guard is None:
            for after in range(1, self.steps):
                for mode in GUARDS[:2]:
                    yield Move(f"guard {mode} {after}", replace(point, guard=(mode, after, 0)))
            return
        mode, after, threshold = point.guard
        if more := [each for each in THRESHOLDS if each > threshold]:
            yield Move("guard threshold up", replace(point, guard=(mode, after, more[0])))
        for other in GUARDS:
            if other != mode:
                yield Move(f"guard to {other}", replace(point, guard=(other, after, threshold)))
        for near in (after - 1, after + 1):
            if 1 <= near < self.steps:
                yield Move(f"guard after {near}", replace(point, guard=(mode, near, threshold)))

    def _fewer_tokens(self, point: Point) -> Iterator[Move]:
        lower = tuple(map(notch_below, point.keep))
        for index in range(self.blocks):
            if point.keep[index] > 0:
                yield Move(f"keep down {index}", replace(point, keep=_with(point.keep, index, lower[index])))
        if self.blocks > 1 and lower != point.keep:
            yield Move("keep down all", replace(point, keep=lower))
        if any(keep < 1 for keep in point.keep):
            for score in SCORES:
                if score != point.score and not (score == "code" and point.after):
                    yield Move(f"score {score}", replace(point, score=score))


def _own_masks(integer: Network, base: Settings) -> dict[str, str]:
    """What each neuron layer with a time computes already."""
    found: dict[str, str] = {}
    for op in integer.operations():
        if isinstance(op, NEURONS) and (steps := op.result_type.steps or 1) > 1:
            mask = op.get("mask")
            found[op.label] = "".join(str(int(each)) for each in mask) if mask else prefix(steps, steps)
    given = base.timesteps.masks if base.timesteps else {}
    return {label: given.get(label, mask) for label, mask in found.items()}


def _parts(masks: dict[str, str], steps: int) -> dict[str, tuple[str, ...]]:
    """The layers by group and block, or by group where that makes too many."""
    found: dict[str, list[str]] = {}
    for fine in (True, False):
        found = {}
        for label in masks if steps > 1 else ():
            block = PREFIX.match(f"{label}.")
            name = f"{group_of(label)} {block[1]}" if fine and block else group_of(label)
            found.setdefault(name, []).append(label)
        if len(found) <= MOST_PARTS:
            break
    return {name: tuple(labels) for name, labels in found.items()}


def _with(values: tuple[N, ...], index: int, value: N) -> tuple[N, ...]:
    return (*values[:index], value, *values[index + 1 :])
