"""The published architectures, by name.

A name says what a paper's table says, `spikformer-4-384` (4 blocks, 384 channels). What it leaves open (timesteps,
heads, image, classes) comes from the checkpoint's metadata, then from the shapes of its tensors, then from what was
published. A new architecture is one more line in FAMILIES.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature

from torch import Tensor, nn

from compiler.zoo.neuron import LIF
from compiler.zoo.spikformer import Spikformer
from isa.errors import CStepError

__all__ = ["FAMILIES", "LIF", "Entry", "Family", "Spikformer", "build", "names"]

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Entry:
    """What must be known of a model beside its module."""

    name: str
    family: str
    input: tuple[int, int, int]  # channels, height, width of one image
    timesteps: int
    mean: tuple[float, ...]  # per channel, of pixels scaled to 0..1
    std: tuple[float, ...]
    dead_keys: tuple[str, ...]  # regular expressions of whole checkpoint keys that no forward reads
    weights: str  # where trained weights were published


@dataclass(frozen=True)
class Family:
    """One architecture: how its names read, what was published, and how its sizes show in a checkpoint."""

    name: str
    pattern: str  # named groups are constructor arguments
    examples: tuple[str, ...]
    construct: Callable[..., nn.Module]
    published: Callable[[Mapping[str, int]], dict[str, float]]  # the arguments that the name leaves open
    sizes: Callable[[Mapping[str, Tensor]], dict[str, float]]  # the arguments that a checkpoint's shapes give away
    dead_keys: tuple[str, ...]
    weights: str


def spikformer_published(named: Mapping[str, int]) -> dict[str, float]:
    """The constructor's defaults are the published CIFAR-10 settings, where a head is 32 channels wide (384: 12)."""
    defaults = {name: parameter.default for name, parameter in signature(Spikformer).parameters.items()}
    return {**defaults, "num_heads": max(1, named["embed_dims"] // 32)}


def spikformer_sizes(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Constructor arguments read off the shapes; a key that is absent or of another rank says nothing."""
    sizes: dict[str, float] = {}
    head, stem = state.get("head.weight"), state.get("patch_embed.proj_conv.weight")
    hidden = state.get("block.0.mlp.fc1_linear.weight")
    if head is not None and head.dim() == 2:
        sizes["num_classes"], sizes["embed_dims"] = head.shape
    if stem is not None and stem.dim() == 4:
        sizes["in_channels"] = stem.shape[1]
    if hidden is not None and hidden.dim() == 2 and hidden.numel():
        sizes["mlp_ratios"] = hidden.shape[0] / hidden.shape[1]
    blocks = {match[1] for key in state if (match := re.match(r"block\.(\d+)\.", key))}
    if blocks:
        sizes["depths"] = len(blocks)
    return sizes


FAMILIES = (
    Family(
        name="spikformer",
        pattern=r"spikformer-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples=("spikformer-4-384", "spikformer-4-256", "spikformer-2-384", "spikformer-2-256", "spikformer-2-64"),
        construct=Spikformer,
        published=spikformer_published,
        sizes=spikformer_sizes,
        dead_keys=(r"block\.\d+\.norm[12]\.(weight|bias)", r"(patch_embed\.)?pos_embed\d*"),
        weights="none published for CIFAR; trained with github.com/ZK-Zhou/spikformer, cifar10/train.py",
    ),
)


def names() -> list[str]:
    """Examples of names that `build` takes; any other depth and width of the same form will do."""
    return [example for family in FAMILIES for example in family.examples]


def build(name: str, state: Mapping[str, Tensor] | None, metadata: Mapping[str, str]) -> tuple[nn.Module, Entry]:
    """The module called `name`, in evaluation mode, sized for the checkpoint's `state` and `metadata` (maybe empty).

    The weights are not loaded: that is `frontend.checkpoint.apply_checkpoint(model, state, entry.dead_keys, ...)`.
    Without it they are torch's random ones.

    Raises CStepError for an unknown name, and where name, metadata and tensor shapes contradict each other.
    """
    family, named = recognise(name)
    arguments = settle(name, named, family.sizes(state or {}), metadata, family.published(named))
    model = family.construct(**arguments).eval()
    channels = int(arguments["in_channels"])
    mean, std = normalisation(metadata, channels)
    entry = Entry(
        name=name,
        family=family.name,
        input=(channels, int(arguments["img_size_h"]), int(arguments["img_size_w"])),
        timesteps=int(arguments["T"]),
        mean=mean,
        std=std,
        dead_keys=family.dead_keys,
        weights=family.weights,
    )
    return model, entry


def recognise(name: str) -> tuple[Family, dict[str, int]]:
    """The family of a name, and the arguments it spells."""
    for family in FAMILIES:
        if match := re.fullmatch(family.pattern, name):
            return family, {argument: int(value) for argument, value in match.groupdict().items()}
    raise CStepError(f"zoo: no architecture {name!r}; names read like {', '.join(names())}")


def settle(
    name: str,
    named: Mapping[str, int],
    shown: Mapping[str, float],
    metadata: Mapping[str, str],
    published: Mapping[str, float],
) -> dict[str, float]:
    """One value per constructor argument; published values fill in, everything else must agree."""
    arguments: dict[str, float] = {**published, **named}
    origin = dict.fromkeys(named, "the name")
    stated = {key: number(key, metadata[key], published.get(key, 1)) for key in arguments if key in metadata}
    for source, values in (("the checkpoint's metadata", stated), ("the shapes of its tensors", shown)):
        for key, value in values.items():
            if key in origin and arguments[key] != value:
                raise CStepError(f"{name}: {origin[key]} says {key}={arguments[key]}, but {source} say {value}")
            arguments[key] = value
            origin[key] = source
    for key in ("depths", "embed_dims", "T", "num_classes", "in_channels"):
        if arguments[key] < 1:
            raise CStepError(f"{name}: {key}={arguments[key]} must be positive")
    return arguments


def number(key: str, text: str, like: float) -> float:
    """A metadata value as a number of the kind of `like`: metadata are strings."""
    try:
        value = int(text) if isinstance(like, int) else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        kind = "a whole number" if isinstance(like, int) else "a number"
        raise CStepError(f"checkpoint metadata: {key}={text!r} is not {kind}")
    return value


def normalisation(metadata: Mapping[str, str], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel: from `mean` and `std` in the metadata, else CIFAR's, or 0 and 1."""
    mean, std = (CIFAR_MEAN, CIFAR_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
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
