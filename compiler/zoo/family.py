"""What the zoo's architectures have in common: how they are declared, named and sized.

Every architecture's file ends in its FAMILIES. What a name leaves open (timesteps, heads, image, classes) comes from
the checkpoint's metadata, then from the shapes of its tensors, then from what was published.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature

from torch import Tensor, nn

from isa.errors import CStepError

Argument = bool | int | float | str
"""A constructor's argument. Its published value says the kind; metadata, which are strings, are read as that kind."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EVENTS = Normalisation((0.0, 0.0), (1.0, 1.0))

MEMBRANE_RESIDUALS = "its residuals are membranes, real numbers: calibration finds the range of their fixed point"
"""Why the architectures with membrane shortcuts need calibration."""

# Arguments that are counts, wherever a family has them.
COUNTS = ("depths", "embed_dims", "T", "num_classes", "in_channels")


@dataclass(frozen=True)
class Entry:
    """What must be known of a model beside its module."""

    name: str
    family: str
    input: tuple[int, int, int]  # channels, height, width of one image, or of one timestep's event counts
    timesteps: int
    mean: tuple[float, ...]  # per channel, of pixels scaled to 0..1; 0 and 1 for event counts, which stay as they are
    std: tuple[float, ...]
    dead_keys: tuple[str, ...]  # regular expressions of whole checkpoint keys that no forward reads
    weights: str  # where trained weights were published
    events: bool = False  # an input is event counts [T, C, H, W] instead of one image [C, H, W]
    needs_calibration: str = ""  # why integers cannot be found from the weights alone; empty where they can
    parameters: int = 0  # that the module has; dead ones of the published code are not counted

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch: what the module takes after [B]."""
        return (self.timesteps, *self.input) if self.events else self.input


@dataclass(frozen=True)
class Family:
    """One layout of one architecture: how its names read, what was published, how its sizes show in a checkpoint.

    The constructor takes T, num_classes, in_channels, img_size_h, img_size_w, and whatever else it needs.
    """

    name: str
    pattern: str  # of whole names; its named groups are constructor arguments, whole numbers
    examples: Mapping[str, int]  # published names, and how many parameters their modules have
    construct: Callable[..., nn.Module]
    published: Callable[[Mapping[str, int]], Mapping[str, Argument]]  # every argument; given are the name's
    sizes: Callable[[Mapping[str, Tensor]], Mapping[str, Argument]]  # the arguments that shapes give away
    dead_keys: tuple[str, ...]
    weights: str
    normalisation: Normalisation = CIFAR
    events: bool = False
    needs_calibration: str = ""

    def spelled(self, name: str) -> dict[str, int] | None:
        """The arguments that a name of this family says; None for a name of another."""
        match = re.fullmatch(self.pattern, name)
        if match is None:
            return None
        return {argument: int(value) for argument, value in match.groupdict().items() if value is not None}

    def input_of(self, name: str) -> tuple[tuple[int, int, int], int]:
        """Channels, height and width of what the published model called `name` reads, and its timesteps."""
        arguments = self.published(self.spelled(name) or {})
        return image_size(arguments), int(arguments["T"])


def image_size(arguments: Mapping[str, Argument]) -> tuple[int, int, int]:
    """Channels, height and width of one image, from constructor arguments."""
    return int(arguments["in_channels"]), int(arguments["img_size_h"]), int(arguments["img_size_w"])


def layout_pattern(architecture: str, layout: str, bare: str) -> str:
    """`architecture-layout-8-512`, and `architecture-8-512` for the sizes that the expression `bare` matches."""
    return rf"{architecture}-(?:{layout}-(?=\d)|(?={bare}$))(?P<depths>\d+)-(?P<embed_dims>\d+)"


def defaults(construct: Callable[..., nn.Module], **others: Argument) -> dict[str, Argument]:
    """The constructor's default arguments, where `others` does not say otherwise."""
    return {name: parameter.default for name, parameter in signature(construct).parameters.items()} | others


def read_sizes(state: Mapping[str, Tensor], stem: str, hidden: str) -> dict[str, Argument]:
    """Arguments that shapes give away: `stem` is the first convolution's key, `hidden` that of the first block's fc1.

    A key that is absent, or of a rank that no such layer has, says nothing.
    """
    sizes: dict[str, Argument] = {}
    head, first, wide = (state.get(key) for key in ("head.weight", stem, hidden))
    if head is not None and head.dim() == 2:
        sizes["num_classes"], sizes["embed_dims"] = head.shape
    if first is not None and first.dim() == 4:
        sizes["in_channels"] = first.shape[1]
    if wide is not None and 2 <= wide.dim() <= 4 and wide.numel():
        sizes["mlp_ratios"] = wide.shape[0] / wide.shape[1]
    blocks = {match[1] for key in state if (match := re.match(r"block\.(\d+)\.", key))}
    if blocks:
        sizes["depths"] = len(blocks)
    return sizes


def settle(
    name: str,
    named: Mapping[str, int],
    shown: Mapping[str, Argument],
    metadata: Mapping[str, str],
    published: Mapping[str, Argument],
) -> dict[str, Argument]:
    """One value per constructor argument; published values fill in, everything else must agree.

    Raises CStepError where name, metadata and tensor shapes contradict each other.
    """
    arguments: dict[str, Argument] = {**published, **named}
    origin = dict.fromkeys(named, "the name")
    stated = {key: read_argument(key, metadata[key], arguments[key]) for key in arguments if key in metadata}
    for source, values in (("the checkpoint's metadata", stated), ("the shapes of its tensors", shown)):
        for key, value in values.items():
            if key in origin and arguments[key] != value:
                raise CStepError(f"{name}: {origin[key]} says {key}={arguments[key]}, but {source} say {value}")
            arguments[key] = value
            origin[key] = source
    for key in COUNTS:
        if key in arguments and not int(arguments[key]) >= 1:
            raise CStepError(f"{name}: {key}={arguments[key]} must be positive")
    return arguments


def read_argument(key: str, text: str, like: Argument) -> Argument:
    """A metadata value as an argument of the kind of `like`: metadata are strings."""
    if isinstance(like, str):
        return text
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise CStepError(f"checkpoint metadata: {key}={text!r} is neither true nor false")
        return text.lower() == "true"
    return number(key, text, like)


def number(key: str, text: str, like: float) -> float:
    """A metadata value as a number of the kind of `like`."""
    try:
        value = int(text) if isinstance(like, int) else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        kind = "a whole number" if isinstance(like, int) else "a number"
        raise CStepError(f"checkpoint metadata: {key}={text!r} is not {kind}")
    return value


def normalisation(
    metadata: Mapping[str, str], channels: int, published: Normalisation = CIFAR
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel: from `mean` and `std` in the metadata, else those `published`.

    They are 0 and 1 where the published ones are for another number of channels.
    """
    mean, std = published.mean, published.std
    if len(mean) != channels:
        mean, std = (0.0,) * channels, (1.0,) * channels
    if "mean" in metadata:
        mean = per_channel("mean", metadata["mean"], channels)
    if "std" in metadata:
        std = per_channel("std", metadata["std"], channels)
    if min(std) <= 0:
        raise CStepError(f"checkpoint metadata: std={metadata['std']!r} must be positive in every channel")
    return mean, std


def per_channel(key: str, text: str, channels: int) -> tuple[float, ...]:
    """A comma list "0.49,0.48,0.45" with one number per channel."""
    values = tuple(number(key, part, 0.0) for part in text.split(","))
    if len(values) != channels:
        raise CStepError(f"checkpoint metadata: {key}={text!r} has {len(values)} numbers for {channels} channels")
    return values
