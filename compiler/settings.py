"""The settings file: what `cstep calibrate` found out for the lossy passes, or what somebody wrote by hand.

    schema = "cstep-settings/1"
    [model]       what it is for: name, and the checkpoint's sha256
    [data]        what it was calibrated on
    [timesteps]   masks of neuron layers, by label
    [exit]        exits after how many timesteps, and how sure they must be
    [guard]       pruning of channels that were silent early
    [tokens]      which share of the tokens goes through each block
    [patch_splitting]  the patch splitting runs once, of models trained so
    [halting]     tokens that halt when their scores add up, of models trained for it
    [sharing]     how rows share sums; the values do not depend on it
    [[curve]]     what other bounds of the loss would have given

Only [model] is needed. A program carries its settings as provenance.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from compiler.passes.insert_exits import MOST_VARIANCE, NEVER
from compiler.pipeline import DEFAULT_PASSES
from isa.errors import CStepError
from isa.files import read_text, write_whole
from isa.machine import SharingMode

SCHEMA = "cstep-settings/1"
LOWERING, MASKING, HOISTING = "lower-to-cstep", "mask-timesteps,", "hoist-invariant,"
"""Where in the default pipeline the parts go."""


class Table(BaseModel):
    """Base of the file's tables: no other keys, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Criterion = Literal["lightsoftmax", "softmax", "entropy"]
GuardMode = Literal["rows", "columns", "both"]
Score = Literal["paper", "spatial", "temporal", "magnitude", "code", "random"]
Mode = Literal["none", SharingMode]
Fraction = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(description="points of accuracy; below 0 where it rose")]
Several = BeforeValidator(_as_tuple)
"""One value stands for a list of it."""
Confidence = Annotated[float, Field(gt=0, le=NEVER)]


class Model(Table):
    """Which model the settings are for."""

    name: str
    """As MODEL of `cstep compile`."""
    checkpoint: str = ""
    """The beginning of the checkpoint's sha256; empty: any."""


class Data(Table):
    """What was calibrated on: images of the training part, others than the ranges came from."""

    source: str
    images: int = Field(ge=1)
    digest: str
    """sha256 of what the program sees of them, in the order in which they were drawn."""


class Exit(Table):
    """Exits after `after` timesteps where the confidence is more than `tau`, one entry an exit."""

    criterion: Criterion = "lightsoftmax"
    after: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Several, Field(min_length=1)]
    tau: Annotated[tuple[Confidence, ...], Several, Field(min_length=1)]
    variance: Annotated[tuple[Annotated[float, Field(ge=0, le=MOST_VARIANCE)], ...], Several] = (0.0,)
    """Of the logits that were not predicted (LightSoftmax's sigma squared), in the model's own scale."""
    target_rate: Fraction | None = None
    loss_bound: Points | None = None
    rate: Fraction | None = None
    """Of the images, that exited at all."""
    loss: Points | None = None


class Guard(Table):
    """Channels with at most `threshold` spikes in the first `after` timesteps are left out later."""

    mode: GuardMode = "both"
    after: int = Field(default=2, ge=1)
    threshold: int = Field(default=0, ge=0, lt=(1 << 16) - 1)
    loss: Points | None = None
    """Together with the exits."""


class PatchSplitting(Table):
    """What the patch splitting fires is summed over time and shown at every timestep (STAS, I-SPS)."""

    integrated: Literal[True] = True


class Tokens(Table):
    """Of a block's tokens, those with the largest scores go through it (TP-Spikformer)."""

    keep: Annotated[tuple[Fraction, ...], Several, Field(min_length=1)]
    """One share a block, or one for all."""
    score: Score = "paper"
    kernel: Literal[1, 3, 5, 7] = 3
    seed: int = Field(default=0, ge=0)
    """Of score = random."""
    loss: Points | None = None


class Halting(Table):
    """A token halts where its scores, sigmoid(alpha x + beta) of channel 0, add up to 1 - epsilon (STAS)."""

    alpha: Annotated[float, Field(ge=-1000, le=1000)]
    beta: Annotated[float, Field(ge=-1000, le=1000)]
    epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.01
    output: Literal["weighted", "mean"] = "weighted"
    """What the classifier reads: all blocks by their halting weights, or the last one."""
    loss: Points | None = None


class RowSharing(Table):
    """How rows of weighted layers share sums (docs/sharing.md): a mode for all, and others by layer."""

    mode: Mode = "pair"
    layers: dict[str, Mode] = Field(default_factory=dict)


class Timesteps(Table):
    """Masks of neuron layers: 1100 is the first two timesteps of four."""

    masks: dict[str, Annotated[str, StringConstraints(pattern="^[01]+$")]] = Field(min_length=1)
    average: float | None = Field(default=None, ge=0)
    """Mean over all neuron layers of the timesteps that their masks leave."""
    loss: Points | None = None


class CurvePoint(Table):
    """The most that a bound of the loss allows, whatever the target rate."""

    loss_bound: Points
    tau: Annotated[tuple[Confidence, ...], Several]
    guard_threshold: int = Field(ge=-1)
    """-1 where no guard stays within the bound."""
    rate: Fraction
    loss: Points


@dataclass(frozen=True)
class Parts:
    """Passes of a pipeline, each with a comma behind it, or nothing."""

    patch_splitting: str = ""
    timesteps: str = ""
    tokens: str = ""
    guard: str = ""
    exits: str = ""
    sharing: str = ""

    def pipeline(self, hoist: bool = True) -> str:
        """The default pipeline with these parts in their places, and without `hoist-invariant` where not wanted."""
        front, _, back = DEFAULT_PASSES.partition(LOWERING)
        front = front.replace(MASKING, self.timesteps + MASKING + self.tokens)
        front = front if hoist else front.replace(HOISTING, "")
        return self.patch_splitting + front + self.guard + self.exits + self.sharing + LOWERING + back


class Settings(Table):
    """The whole file."""

    schema_version: Literal["cstep-settings/1"] = Field(default=SCHEMA, alias="schema")
    model: Model
    data: Data | None = None
    timesteps: Timesteps | None = None
    exit: Exit | None = None
    guard: Guard | None = None
    patch_splitting: PatchSplitting | None = None
    tokens: Tokens | None = None
    halting: Halting | None = None
    sharing: RowSharing | None = None
    curve: tuple[CurvePoint, ...] = ()

    def passes(self) -> Parts:
        """The pipeline's parts that apply them."""
        tokens = _tokens(self.tokens) + _halting(self.halting)
        return Parts(
            patch_splitting="integrate-patch-splitting," if self.patch_splitting else "",
            timesteps=_masks(self.timesteps),
            tokens=tokens,
            guard=_guard(self.guard),
            exits=_exits(self.exit),
            sharing=_sharing(self.sharing),
        )

    def canonical(self) -> str:
        """The one spelling as JSON, for the provenance."""
        return json.dumps(
            self.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=True, separators=(",", ":")
        )

    def require_model(self, model: str, where: str) -> None:
        """Refuse settings of another model; `where` is the file."""
        if normpath(self.model.name) != normpath(model):
            raise CStepError(f"{where}: settings for model {self.model.name}, not {model}; calibrate that one")

    def checkpoint_note(self, checkpoint: str) -> str:
        """What to note where `checkpoint`, as `open_model` says it, is another; else nothing."""
        found = checkpoint_digest(checkpoint)
        if not self.model.checkpoint or _same_digest(self.model.checkpoint, found):
            return ""
        return f"the settings were found with checkpoint sha256:{self.model.checkpoint}, this one is {checkpoint}"


def read_settings(path: Path) -> Settings:
    """The settings of a file. Raises CStepError naming the key, and what it must be."""
    try:
        values = tomllib.loads(read_text(path, "a settings file"))
    except tomllib.TOMLDecodeError as error:
        raise CStepError(f"{path}: no TOML: {error}") from None
    return settings_of(values, str(path))


def settings_from(given: object) -> Settings:
    """What a caller in Python gave: settings, a file of them, or a dict as the file holds it. Raises CStepError."""
    if isinstance(given, Settings):
        return given
    if isinstance(given, str | Path):
        return read_settings(Path(given))
    if isinstance(given, dict):
        return settings_of(cast("dict[str, Any]", given), "settings")
    raise CStepError(f"settings: {type(given).__name__}; give a file, what `calibrate` gives, or a dict like the file")


def settings_of(values: dict[str, Any], where: str) -> Settings:
    """Settings of plain values; `where` begins the error's line."""
    if values.get("schema") != SCHEMA:
        raise CStepError(f'{where}: schema {values.get("schema")!r}; this version reads schema = "{SCHEMA}"')
    try:
        made = Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise CStepError(f"{where}: {_said(error)}") from None
    if made.exit is not None:
        _require_exits(made.exit, where)
    if made.tokens is not None and made.halting is not None:
        raise CStepError(f"{where}: [tokens] and [halting]: both leave tokens out; it should have one of them")
    return made


def write_settings(settings: Settings, path: Path) -> None:
    """Write the file, whole or not at all."""
    write_whole(path, as_toml(settings).encode())


def as_toml(settings: Settings) -> str:
    """The file's text: plain keys first, then a table each."""
    values = settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = [f"schema = {_toml(values.pop('schema'))}"]
    curve = values.pop("curve", [])
    for name, table in [*values.items(), *(("[curve]", point) for point in curve)]:
        lines += ["", f"[{name}]" if name != "[curve]" else "[[curve]]"]
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def checkpoint_digest(said: str) -> str:
    """The sha256 of what `open_model` says of a checkpoint; empty where it names none."""
    found = re.search(r"sha256:([0-9a-f]+)", said)
    return found[1] if found else ""


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return _toml(value[0]) if len(value) == 1 else "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _same_digest(one: str, other: str) -> bool:
    """Each may be shortened."""
    return bool(other) and (one.startswith(other) or other.startswith(one))


def _said(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        table = first["loc"][0] if len(first["loc"]) > 1 else ""
        return f"{key}: no such key; there are {', '.join(_keys(str(table)))}"
    if first["type"] == "missing":
        return f"{key}: is missing; it must be given"
    message = first["msg"].removeprefix("Input should ")
    wanted = {"string_pattern_mismatch": "be 0s and 1s, one a timestep", "too_short": "hold one or more"}
    message = wanted.get(first["type"], message)
    return f"{key} = {json.dumps(first['input'], default=str)}: it should {message}"


def _keys(table: str) -> list[str]:
    kinds: dict[str, type[Table]] = {
        "": Settings, "model": Model, "data": Data, "exit": Exit, "guard": Guard, "timesteps": Timesteps,
        "patch_splitting": PatchSplitting, "tokens": Tokens, "halting": Halting, "sharing": RowSharing,
        "curve": CurvePoint,
    }  # fmt: skip
    fields = kinds[table].model_fields
    return [field.alias or name for name, field in fields.items()]


def _require_exits(exits: Exit, where: str) -> None:
    """One tau an exit, one variance an exit or one for all; exits in their order."""
    count = len(exits.after)
    if list(exits.after) != sorted(set(exits.after)):
        raise CStepError(f"{where}: exit.after = {list(exits.after)}: it should ascend, no exit twice")
    if len(exits.tau) != count:
        raise CStepError(
            f"{where}: exit.tau = {list(exits.tau)}: it should be one each for after = {list(exits.after)}"
        )
    if len(exits.variance) not in (1, count):
        raise CStepError(f"{where}: exit.variance = {list(exits.variance)}: it should be one, or one an exit ({count})")


def _exits(exits: Exit | None) -> str:
    if exits is None:
        return ""
    after, tau, variance = (",".join(map(repr, values)) for values in (exits.after, exits.tau, exits.variance))
    return f"insert-exits{{after={after} criterion={exits.criterion} tau={tau} variance={variance}}},"


def _guard(guard: Guard | None) -> str:
    if guard is None:
        return ""
    return f"guard-channels{{mode={guard.mode} after={guard.after} threshold={guard.threshold}}},"


def _tokens(tokens: Tokens | None) -> str:
    if tokens is None:
        return ""
    keep = ",".join(map(repr, tokens.keep))
    return f"stop-tokens{{keep={keep} score={tokens.score} kernel={tokens.kernel} seed={tokens.seed}}},"


def _halting(halting: Halting | None) -> str:
    if halting is None:
        return ""
    values = f"alpha={halting.alpha!r} beta={halting.beta!r} epsilon={halting.epsilon!r} output={halting.output}"
    return f"halt-tokens{{{values}}},"


def _sharing(sharing: RowSharing | None) -> str:
    if sharing is None:
        return ""
    layers = ",".join(f'"{label}={mode}"' for label, mode in sharing.layers.items())
    return f"factor-common-spikes{{mode={sharing.mode}{f' layers={layers}' if layers else ''}}},"


def _masks(timesteps: Timesteps | None) -> str:
    if timesteps is None:
        return ""
    masks = ",".join(f'"{label}={mask}"' for label, mask in timesteps.masks.items())
    return f"set-timesteps{{masks={masks}}},"
