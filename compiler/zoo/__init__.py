"""The published architectures, by name.

A name says what a paper's table says, `spikformer-4-384` (4 blocks, 384 channels). A new architecture is one more file
that ends in FAMILIES, and one more line here.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from compiler.zoo import (
    qkformer,
    sdt_v1,
    sdt_v2,
    sdt_v3,
    sdt_v3_large,
    spikformer,
    spikformer_convolutional,
    spikingformer,
)
from compiler.zoo.family import Entry, Family, image_size, normalisation, settle
from compiler.zoo.neuron import LIF
from compiler.zoo.spikformer import Spikformer
from isa.errors import CStepError

__all__ = ["FAMILIES", "LIF", "Entry", "Family", "Spikformer", "build", "names", "normalisation", "recognise"]

FAMILIES: tuple[Family, ...] = (
    *spikformer.FAMILIES,
    *spikformer_convolutional.FAMILIES,
    *spikingformer.FAMILIES,
    *sdt_v1.FAMILIES,
    *qkformer.FAMILIES,
    *sdt_v2.FAMILIES,
    *sdt_v3.FAMILIES,
    *sdt_v3_large.FAMILIES,
)


def names() -> list[str]:
    """The published names; `build` also takes other depths and widths of the same forms."""
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
    image = image_size(arguments)
    mean, std = normalisation(metadata, image[0], family.normalisation)
    entry = Entry(
        name=name,
        family=family.name,
        input=image,
        timesteps=int(arguments["T"]),
        mean=mean,
        std=std,
        dead_keys=family.dead_keys,
        weights=family.weights,
        events=family.events,
        needs_calibration=family.needs_calibration,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    return model, entry


def recognise(name: str) -> tuple[Family, dict[str, int]]:
    """The family of a name, and the arguments it spells.

    Raises CStepError for a name of no family.
    """
    for family in FAMILIES:
        named = family.spelled(name)
        if named is not None:
            return family, named
    first = ", ".join(next(iter(family.examples)) for family in FAMILIES)
    raise CStepError(f"zoo: no architecture {name!r}; names read like {first}; `cstep models` lists them")
