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
    """From the baseline to everything that the settings have, then each technique alone, and the points of the curve.

    Where the model was `retrained`, what it was before (BEFORE) is the baseline, and its own first step another row.
    Sharing is off but in the steps that are named by it, one a mode that the machine has (`sharing`), and on the curve,
    which has the settings' own: what pairs would save is counted all the same.
    """
    name, kind = ("retrained", "lossy") if retrained else ("baseline", "exact")
    plain = _without(settings)
    none = plain if settings.patch_splitting else None
    yield Step("baseline", name, kind, none, hoist=False)
    yield Step("hoist", "+ hoist", "exact", none)
    yield Step("windows", "windows, no exits", "exact", none, schedule="windows")
    together = list(_together(settings, plain, modes))
    yield from together
    last = next(
        (step for step in reversed(together) if step.kind == "lossy" and step.settings == _all_of(settings)), None
    )
    said, whole = (last.name, last.settings) if last else ("", plain)
    assert whole is not None
    yield from _shared(whole, said, "sharing", sharing, "lossy" if said else "exact")
    seen = [step.settings for step in together]
    for key in TECHNIQUES:
        alone = plain.model_copy(update={key: getattr(settings, key)})
        if getattr(settings, key) is not None and alone not in seen:
            yield Step(f"alone-{key}", f"{TECHNIQUES[key]} alone", "lossy", alone)
    if said:
        yield from _shared(plain, "", "alone-sharing", sharing, "exact")
    masks = plain.model_copy(
        update={"timesteps": settings.timesteps, "tokens": settings.tokens, "sharing": settings.sharing}
    )
    if settings.exit:
        guard = _guard(settings)
        yield from (_curve_step(masks, settings.exit, guard, point) for point in settings.curve)


TECHNIQUES = {"timesteps": "masks", "tokens": "tokens", "halting": "halting", "exit": "exit", "guard": "guards"}
"""Tables of the settings that change what is computed, and what their steps are called."""


def _without(settings: Settings) -> Settings:
    """The settings without anything that changes what the model was trained to compute."""
    return settings.model_copy(update={**dict.fromkeys(TECHNIQUES), "sharing": None, "curve": ()})


def _all_of(settings: Settings) -> Settings:
    """Everything but sharing and the curve."""
    return settings.model_copy(update={"sharing": None, "curve": ()})


def _guard(settings: Settings) -> Guard:
    """The settings' guard, or the plainest one."""
    return settings.guard or Guard(after=settings.exit.after[0] if settings.exit else 2)


def _together(settings: Settings, plain: Settings, modes: Sequence[GuardMode]) -> Iterator[Step]:
    """One technique after the other on top of those before it."""
    said, last = "", plain
    for key in ("timesteps", "tokens", "halting", "exit"):
        table = getattr(settings, key)
        if table is None:
            continue
        before, last = last, last.model_copy(update={key: table})
        said = f"{said} + {TECHNIQUES[key]}".strip()
        yield Step("masks" if key == "timesteps" else key, said, "lossy", last)
        if settings.exit and key == "exit":
            everything = settings.exit.model_copy(update={"tau": (SMALLEST,) * len(settings.exit.after)})
            bound = before.model_copy(update={"exit": everything})
            yield Step("all-exit", "(every input exits)", "bound", bound)
    if settings.guard or settings.exit:
        for mode in modes:
            guarded = last.model_copy(update={"guard": _guard(settings).model_copy(update={"mode": mode})})
            yield Step(mode, f"{said} + guards, {mode}".strip(), "lossy", guarded)


def _shared(
    settings: Settings, said: str, key: str, modes: Sequence[SharingMode], kind: Literal["exact", "lossy"]
) -> Iterator[Step]:
    """The same with rows that share, one step a mode; pairs are the machine's own."""
    for mode in modes:
        shared = settings if mode == "pair" else settings.model_copy(update={"sharing": RowSharing(mode=mode)})
        name = "sharing" if mode == "pair" else f"sharing, {mode}"
        name = f"{said} + {name}" if said else name if key.startswith("alone") else f"+ {name}"
        each = key if mode == "pair" else f"{key}-{mode}"
        yield Step(each, f"{name} alone" if key.startswith("alone") else name, kind, shared, share=True)


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
