"""Spikingformer (Zhou et al., arXiv 2304.11954) and its CML variant (Zhou et al., arXiv 2305.05954), with the
state_dict keys of the published code.

Neurons come before the weights instead of after, so that residuals add membranes, real numbers, and every weight
layer but the stem reads spikes. CML ("convolution, batch norm, max-pool, neuron") halves the image before the neuron,
on currents. The head reads the mean membrane, without a neuron. But for CIFAR, both variants have the same keys: a
checkpoint does not tell which one it is of.

Shapes: T timesteps, B images, C = embed_dims channels, H, W of the patches.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from compiler.zoo.family import (
    CIFAR,
    EVENTS,
    IMAGENET,
    MEMBRANE_RESIDUALS,
    Argument,
    Family,
    Normalisation,
    defaults,
    layout_pattern,
    read_sizes,
)
from compiler.zoo.layers import (
    ConvolutionalAttention,
    at_every_timestep,
    check_patch,
    check_sizes,
    initialise,
    over_time,
)
from compiler.zoo.neuron import LIF
from isa.errors import CStepError

# Which of the stem's last four convolutions have a max-pool before them.
HALVED: Mapping[str, str] = {"cifar": "0011", "imagenet": "1111", "events": "1111"}


class SpikingTokenizer(nn.Module):
    """Images [T, B, in_channels, H, W] -> membrane currents [T, B, C, H / r, W / r], r = 4 or 16.

    A convolution with its norm, then four times a neuron, a convolution and a norm; the max-pools stand behind the
    neurons (an OR of spikes), or with `pooled_currents` before them (CML). The keys of the CIFAR layout without CML
    read block0_conv, block1_conv, ..., all others proj_conv, proj1_conv, ... Where it is `integrated`, the last
    convolution reads the sum over time of its spikes, at every timestep.
    """

    integrated = False

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        halved: str,
        stages: tuple[str, ...],
        pooled_currents: bool,
        tau: float,
        threshold: float,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.halved = dict(zip(stages[1:], (mark == "1" for mark in halved), strict=True))
        self.pooled_currents = pooled_currents
        widths = (in_channels, embed_dims // 8, embed_dims // 4, embed_dims // 2, embed_dims, embed_dims)
        for stage, inputs, outputs in zip(stages, widths, widths[1:], strict=False):
            if stage != stages[0]:
                self.add_module(f"{stage}_lif", LIF(tau, threshold))
            self.add_module(f"{stage}_conv", nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False))
            self.add_module(f"{stage}_bn", nn.BatchNorm2d(outputs))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def current(self, stage: str, x: Tensor) -> Tensor:
        return self.get_submodule(f"{stage}_bn")(self.get_submodule(f"{stage}_conv")(x))

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        x = self.current(self.stages[0], x.flatten(0, 1))
        for stage in self.stages[1:]:
            if self.halved[stage] and self.pooled_currents:
                x = self.maxpool(x)
            x = self.get_submodule(f"{stage}_lif")(over_time(x, steps)).flatten(0, 1)
            if self.halved[stage] and not self.pooled_currents:
                x = self.maxpool(x)
            if self.integrated and stage == self.stages[-1]:
                x = at_every_timestep(over_time(x, steps)).flatten(0, 1)
            x = self.current(stage, x)
        return over_time(x, steps)


class SpikingSelfAttention(ConvolutionalAttention):
    """Membranes [T, B, C, H, W] -> currents [T, B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self.proj_lif(x).flatten(3)).reshape(x.shape)


class MLP(nn.Module):
    """Membranes [T, B, C, H, W] -> currents [T, B, C, H, W] through `hidden` spiking channels."""

    def __init__(self, dim: int, hidden: int, tau: float, threshold: float) -> None:
        super().__init__()
        self.mlp1_lif = LIF(tau, threshold)
        self.mlp1_conv = nn.Conv2d(dim, hidden, kernel_size=1)
        self.mlp1_bn = nn.BatchNorm2d(hidden)

        self.mlp2_lif = LIF(tau, threshold)
        self.mlp2_conv = nn.Conv2d(hidden, dim, kernel_size=1)
        self.mlp2_bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        x = self.mlp1_bn(self.mlp1_conv(self.mlp1_lif(x).flatten(0, 1)))
        x = self.mlp2_bn(self.mlp2_conv(self.mlp2_lif(over_time(x, steps)).flatten(0, 1)))
        return over_time(x, steps)


class SpikingTransformer(nn.Module):
    """Attention and MLP, each added to its input: a membrane that grows with every addition."""

    def __init__(self, attention: SpikingSelfAttention, mlp: MLP) -> None:
        super().__init__()
        self.attn = attention
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Spikingformer(nn.Module):
    """Images [B, in_channels, H, W], the same at each of T timesteps, or event counts [B, T, in_channels, H, W]
    -> logits [B, num_classes].

    The defaults are the published CIFAR-10 settings (Spikingformer-4-384).

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 32,
        img_size_w: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 10,
        embed_dims: int = 384,
        num_heads: int = 12,
        mlp_ratios: float = 4.0,
        depths: int = 4,
        T: int = 4,  # noqa: N803 - the published name
        tau: float = 2.0,
        threshold: float = 1.0,
        attention_threshold: float = 0.5,
        attention_scale: float = 0.125,
        layout: str = "cifar",
        cml: bool = False,
    ) -> None:
        super().__init__()
        if layout not in HALVED:
            raise CStepError(f"Spikingformer: no layout {layout!r}; there are {', '.join(HALVED)}")
        check_patch("Spikingformer", patch_size, layout, HALVED[layout])
        check_sizes("Spikingformer", img_size_h, img_size_w, embed_dims, num_heads, patch_size)
        self.T = T
        self.num_classes = num_classes
        self.depths = depths
        self.events = layout == "events"
        first = "values" if layout == "imagenet" else "scores"
        block = layout == "cifar" and not cml
        stages = tuple(f"block{stage}" if block else f"proj{stage or ''}" for stage in range(5))
        self.patch_embed = SpikingTokenizer(in_channels, embed_dims, HALVED[layout], stages, cml, tau, threshold)
        self.block = nn.ModuleList(
            SpikingTransformer(
                SpikingSelfAttention(
                    embed_dims, num_heads, attention_scale, first, tau, threshold, attention_threshold
                ),
                MLP(embed_dims, int(embed_dims * mlp_ratios), tau, threshold),
            )
            for _ in range(depths)
        )
        self.head = nn.Linear(embed_dims, num_classes)
        self.apply(initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """[T, B, in_channels, H, W] -> the mean membrane of the tokens at every timestep [T, B, C]."""
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        return x.flatten(3).mean(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.events else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.forward_features(x).mean(0))


def published(named: Mapping[str, int], layout: str, cml: bool) -> Mapping[str, Argument]:
    """CIFAR-10: heads 32 channels wide (384: 12). ImageNet: 8 heads. CIFAR10-DVS: 16 heads, a shorter memory."""
    if layout == "cifar":
        return defaults(Spikingformer, num_heads=max(1, named["embed_dims"] // 32), cml=cml)
    others: dict[str, Argument] = {"patch_size": 16, "layout": layout, "cml": cml}
    if layout == "imagenet":
        return defaults(Spikingformer, img_size_h=224, img_size_w=224, num_classes=1000, num_heads=8, **others)
    size: dict[str, Argument] = {"img_size_h": 128, "img_size_w": 128, "in_channels": 2, "T": 16}
    return defaults(Spikingformer, num_heads=16, tau=1.75 if cml else 1.5, **size, **others)


def sizes(state: Mapping[str, Tensor], stem: str) -> Mapping[str, Argument]:
    return read_sizes(state, f"patch_embed.{stem}_conv.weight", "block.0.mlp.mlp1_conv.weight")


def family(layout: str, cml: bool, bare: str, examples: dict[str, int], weights: str) -> Family:
    """One layout, with or without CML; `bare` are the sizes that need not name it."""
    architecture = "spikingformer-cml" if cml else "spikingformer"
    normalisations: Mapping[str, Normalisation] = {"cifar": CIFAR, "imagenet": IMAGENET, "events": EVENTS}
    return Family(
        name=architecture if layout == "cifar" else f"{architecture}-{layout}",
        pattern=layout_pattern(architecture, layout, bare),
        examples=examples,
        construct=Spikingformer,
        published=partial(published, layout=layout, cml=cml),
        sizes=partial(sizes, stem="block0" if layout == "cifar" and not cml else "proj"),
        dead_keys=(r"block\.\d+\.norm[12]\.(weight|bias)",),
        weights=weights,
        normalisation=normalisations[layout],
        events=layout == "events",
        needs_calibration=MEMBRANE_RESIDUALS,
    )


IMAGENET_SIZES = r"8-(?:384|512|768)"
OTHER_SIZES = rf"(?!{IMAGENET_SIZES}$)\d+-\d+"
NO_SIZES = r"(?!)"
CIFAR_SIZES = {"4-384": 9_320_122, "4-256": 4_152_106, "2-384": 5_762_746, "2-256": 2_566_954}


def families(cml: bool) -> tuple[Family, ...]:
    """CIFAR, ImageNet and event layouts; their parameters are as many with CML as without."""
    code = "github.com/zhouchenlin2096/Spikingformer" + "-CML" * cml
    prefix = "spikingformer-" + "cml-" * cml
    cifar = {prefix + size: count for size, count in CIFAR_SIZES.items()}
    imagenet = {prefix + "8-384": 16_816_024, prefix + "8-512": 29_689_384, prefix + "8-768": 66_338_632}
    events = {prefix + "events-2-256": 2_566_666}
    return (
        family("cifar", cml, OTHER_SIZES, cifar, f"4-384 after 400 epochs: {code}, README"),
        family("imagenet", cml, IMAGENET_SIZES, imagenet, f"8-768: {code}, README"),
        family("events", cml, NO_SIZES, events, f"none published; trained with {code}, cifar10-dvs/train.py"),
    )


FAMILIES = (*families(cml=False), *families(cml=True))
