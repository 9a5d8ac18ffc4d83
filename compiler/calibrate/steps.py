"""The steps of a ladder: which settings are compiled, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.calibrate.search import SMALLEST
from compiler.settings import CurvePoint, Exit, Guard, GuardMode, RowSharing, Settings
from isa.machine import SharingMode

Kind = Literal["exact", "lossy", "bound", "curve"]
MODES: tuple[GuardMode, ...] = ("rows", "columns", "both")


@dataclass(frozen=True)
class Step:
    """One program of a ladder, and how it is run."""

    key: str
    name: str
    kind: Kind
    settings: Settings | None
    hoist: bool = True
    schedule: Literal["layers", "windows"] = "layers"
    share: bool = False
    loss_bound: float | None = None


BEFORE = Step("before", "baseline", "exact", None, hoist=False)
"""The model as it was before it was trained for its settings."""


def steps_of(
    settings: Settings,
    modes: Sequence[GuardMode] = MODES,
    retrained: bool = False,
    sharing: Sequence[SharingMode] = ("pair",),
) -> Iterator[Step]:
    """From the baseline to everything that the settings have, and the points of their curve.

    Where the model was `retrained`, what it was before (BEFORE) is the baseline, and its own first step another row.
    Sharing is off but in the last steps, one a mode that the machine has (`sharing`), and on the curve, which has the
    settings' own: what pairs would save is counted all the same.
    """
    name, kind = ("retrained", "lossy") if retrained else ("baseline", "exact")
    yield Step("baseline", name, kind, None, hoist=False)
    yield Step("hoist", "+ hoist", "exact", None)
    yield Step("windows", "windows, no exits", "exact", None, schedule="windows")
    said = ""
    masks = settings.model_copy(update={"exit": None, "guard": None, "sharing": None, "curve": ()})
    if settings.timesteps:
        said += "+ masks"
        yield Step("masks", said, "lossy", masks)
    last, exits = masks, settings.exit
    if exits:
        said = f"{said} + exit".strip()
        last = masks.model_copy(update={"exit": exits})
        yield Step("exit", said, "lossy", last)
        everything = exits.model_copy(update={"tau": (SMALLEST,) * len(exits.after)})
        yield Step("all-exit", "(every input exits)", "bound", masks.model_copy(update={"exit": everything}))
    guard = settings.guard or Guard(after=exits.after[0] if exits else 2)
    if settings.guard or exits:
        for mode in modes:
            guarded = last.model_copy(update={"guard": guard.model_copy(update={"mode": mode})})
            yield Step(mode, f"{said} + guards, {mode}".strip(), "lossy", guarded)
    if settings.guard:
        said, last = f"{said} + guards".strip(), last.model_copy(update={"guard": settings.guard})
    kind = "lossy" if said else "exact"
    for mode in sharing:
        shared = last if mode == "pair" else last.model_copy(update={"sharing": RowSharing(mode=mode)})
        key, name = ("sharing", "sharing") if mode == "pair" else (f"sharing-{mode}", f"sharing, {mode}")
        yield Step(key, f"{said} + {name}".strip(), kind, shared, share=True)
    masks = masks.model_copy(update={"sharing": settings.sharing})
    if exits:
        yield from (_curve_step(masks, exits, guard, point) for point in settings.curve)


def _curve_step(masks: Settings, exits: Exit, guard: Guard, point: CurvePoint) -> Step:
    tables = {
        "exit": exits.model_copy(update={"tau": point.tau}),
        "guard": guard.model_copy(update={"threshold": point.guard_threshold}) if point.guard_threshold >= 0 else None,
    }
    bound = f"{point.loss_bound:g}"
    return Step(
        f"curve-{bound}", f"curve: loss <= {bound}", "curve", masks.model_copy(update=tables), share=True,
        loss_bound=point.loss_bound,
    )  # fmt: skip
