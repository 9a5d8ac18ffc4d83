"""Spike-Driven Transformer V3 (Yao et al., TPAMI 2025), Base and event models, with the published state_dict keys.

Residuals are membranes, as in V2; neurons are `Level`s, which emit counts and remember nothing. The published event
model has an integrate-and-fire neuron with soft reset, but calls it once for all timesteps of an input and then resets
it, so that no membrane ever meets a second current: what it computes is a `Level`.

Shapes: T timesteps, B images, C channels of a stage, N = H * W tokens, h heads.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compiler.zoo.family import EVENTS, IMAGENET, MEMBRANE_RESIDUALS, Argument, Family, defaults
from compiler.zoo.layers import initialise
from compiler.zoo.level import Level
from compiler.zoo.pyramid import (
    MLP,
    Pyramid,
    check_pyramid,
    join_heads,
    per_frame,
    pyramid_sizes,
    split_heads,
)

Neuron = Callable[[], Level]

VALUE_RATIO = 4  # v has so many times the channels of q and k
LAYER_SCALE = 1e-6  # what layer scales start from


class SeparableConv(nn.Module):
    """Stream [T, B, C, H, W] -> currents, same form, through 2C channels."""

    def __init__(self, dim: int, kernel_size: int, neuron: Neuron) -> None:
        super().__init__()
        wide, padding = 2 * dim, kernel_size // 2
        self.spike1 = neuron()
        self.pwconv1 = nn.Sequential(nn.Conv2d(dim, wide, kernel_size=1, bias=False), nn.BatchNorm2d(wide))
        self.spike2 = neuron()
        self.dwconv = nn.Sequential(
            nn.Conv2d(wide, wide, kernel_size, padding=padding, groups=wide, bias=False), nn.BatchNorm2d(wide)
        )
        self.spike3 = neuron()
        self.pwconv2 = nn.Sequential(nn.Conv2d(wide, dim, kernel_size=1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = per_frame(self.pwconv1, self.spike1(x))
        x = per_frame(self.dwconv, self.spike2(x))
        return per_frame(self.pwconv2, self.spike3(x))


class ConvBlock(nn.Module):
    """Stream [T, B, C, H, W] -> stream: a separable convolution, then two dense 3x3 ones, each added."""

    def __init__(self, dim: int, mlp_ratio: float, neuron: Neuron) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.Conv = SeparableConv(dim, 7, neuron)
        self.spike1 = neuron()
        self.conv1 = nn.Conv2d(dim, hidden, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.spike2 = neuron()
        self.conv2 = nn.Conv2d(hidden, dim, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.Conv(x)
        y = per_frame(lambda frames: self.bn1(self.conv1(frames)), self.spike1(x))
        return x + per_frame(lambda frames: self.bn2(self.conv2(frames)), self.spike2(y))


class Attention(nn.Module):
    """Stream [T, B, C, H, W] -> currents, same form: (q k^T) v * 2 / sqrt(C/h) per head, v four times as wide."""

    def __init__(self, dim: int, num_heads: int, neuron: Neuron) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 * 2
        wide = VALUE_RATIO * dim
        self.head_spike = neuron()
        self.q_conv = nn.Sequential(nn.Conv2d(dim, dim, kernel_size=1, bias=False), nn.BatchNorm2d(dim))
        self.q_spike = neuron()
        self.k_conv = nn.Sequential(nn.Conv2d(dim, dim, kernel_size=1, bias=False), nn.BatchNorm2d(dim))
        self.k_spike = neuron()
        self.v_conv = nn.Sequential(nn.Conv2d(dim, wide, kernel_size=1, bias=False), nn.BatchNorm2d(wide))
        self.v_spike = neuron()
        self.attn_spike = neuron()
        self.proj_conv = nn.Sequential(nn.Conv2d(wide, dim, kernel_size=1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        frame = x.shape[-2:]
        x = self.head_spike(x)
        q = split_heads(self.q_spike(per_frame(self.q_conv, x)).flatten(3), self.num_heads)
        k = split_heads(self.k_spike(per_frame(self.k_conv, x)).flatten(3), self.num_heads)
        v = split_heads(self.v_spike(per_frame(self.v_conv, x)).flatten(3), self.num_heads)
        x = ((q @ k.transpose(-2, -1)) @ v) * self.scale
        x = self.attn_spike(join_heads(x))
        return per_frame(self.proj_conv, x.reshape(*x.shape[:3], *frame))


class Block(nn.Module):
    """Stream [T, B, C, H, W] -> stream: separable convolution, attention and MLP, each added.

    With `layer_scales` (event data) each branch is scaled per channel before it is added.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, neuron: Neuron, layer_scales: bool) -> None:
        super().__init__()
        self.conv = SeparableConv(dim, 3, neuron)
        self.attn = Attention(dim, num_heads, neuron)
        self.mlp = MLP(dim, int(dim * mlp_ratio), neuron)
        self.layer_scales = layer_scales
        if layer_scales:
            self.layer_scale1 = nn.Parameter(torch.full((dim,), LAYER_SCALE))
            self.layer_scale2 = nn.Parameter(torch.full((dim,), LAYER_SCALE))
            self.layer_scale3 = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        if self.layer_scales:
            x = x + self.conv(x) * self.layer_scale1.view(1, -1, 1, 1)
            x = x + self.attn(x) * self.layer_scale2.view(1, -1, 1, 1)
            return x + self.mlp(x.flatten(3)).reshape(x.shape) * self.layer_scale3.view(1, -1, 1, 1)
        x = x + self.conv(x)
        x = x + self.attn(x)
        return x + self.mlp(x.flatten(3)).reshape(x.shape)


class SDTV3(Pyramid):
    """Base: images [B, in_channels, H, W], or events [B, T, in_channels, H, W], -> logits [B, num_classes].

    `embed_dims` is the third stage's width, `last_dims` the fourth's; `depths` counts the blocks with attention, the
    last `last_depths` of them in the fourth stage. A neuron emits counts of up to `levels`, divided by `norm`; the one
    before the head emits the counts themselves. The defaults are the 5 M model. Images have one timestep; were there
    more, all would be the same.

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 128,
        last_dims: int = 192,
        num_heads: int = 8,
        mlp_ratios: float = 4.0,
        depths: int = 8,
        last_depths: int = 2,
        T: int = 1,  # noqa: N803 - the published name
        levels: int = 4,
        norm: float = 4.0,
        events: bool = False,
    ) -> None:
        check_pyramid("SDTV3", img_size_h, img_size_w, (embed_dims, last_dims), num_heads, depths - last_depths)
        neuron = partial(Level, levels, norm=norm)
        super().__init__(
            in_channels,
            (embed_dims // 4, embed_dims // 2, embed_dims, last_dims),
            (depths - last_depths, last_depths),
            neuron,
            lambda dim: ConvBlock(dim, mlp_ratios, neuron),
            lambda dim: Block(dim, num_heads, mlp_ratios, neuron, layer_scales=events),
        )
        self.T = T
        self.events = events
        self.spike = Level(levels, norm=1.0)
        self.head = nn.Linear(last_dims, num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 0, 2, 3, 4) if self.events else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.forward_features(x).flatten(3).mean(3)
        return self.head(self.spike(x)).mean(0)


WIDTHS = {96: 128, 128: 192, 192: 240, 256: 360}
"""The published widths of the third stage, and of the fourth with it."""


def published_of(depths: int, embed_dims: int) -> dict[str, Argument]:
    """As in the published sizes: a quarter of the blocks stand in the fourth stage, which is wider than the third."""
    last_dims, last_depths = WIDTHS.get(embed_dims, embed_dims * 5 // 4), max(depths // 4, min(depths - 1, 1))
    return defaults(SDTV3, embed_dims=embed_dims, last_dims=last_dims, depths=depths, last_depths=last_depths)


def published(named: Mapping[str, int]) -> Mapping[str, Argument]:
    return published_of(named["depths"], named["embed_dims"])


def published_hardvs(named: Mapping[str, int]) -> Mapping[str, Argument]:
    """HAR-DVS: counts are not divided."""
    return {**published(named), "in_channels": 2, "num_classes": 300, "T": 8, "norm": 1.0, "events": True}


def published_gesture(named: Mapping[str, int]) -> Mapping[str, Argument]:
    """DVS128 Gesture: counts of up to 4 are divided by 8. The published model's fourth stage has no blocks."""
    last_depths = named["depths"] // 4
    frames = {"img_size_h": 128, "img_size_w": 128, "num_classes": 11, "norm": 8.0, "last_depths": last_depths}
    return {**published_hardvs(named), **frames}


def family(
    pattern: str,
    examples: Mapping[str, int],
    settings: Callable[[Mapping[str, int]], Mapping[str, Argument]],
    weights: str,
    events: bool = False,
) -> Family:
    return Family(
        name="sdt-v3-events" if events else "sdt-v3",
        pattern=pattern,
        examples=examples,
        construct=SDTV3,
        published=settings,
        sizes=pyramid_sizes,
        dead_keys=(),
        weights=weights,
        normalisation=EVENTS if events else IMAGENET,
        events=events,
        needs_calibration=MEMBRANE_RESIDUALS,
    )


def sized(millions: int, parameters: int, embed_dims: int) -> Family:
    """The family of one published size."""
    name = f"sdt-v3-{millions}m"
    return family(name, {name: parameters}, lambda _: published_of(8, embed_dims), WEIGHTS)


SOURCE = "github.com/BICLab/Spike-Driven-Transformer-V3"
WEIGHTS = f"{SOURCE}, links in Model_Base/Train_Base.md; `model` of every .pth is the state_dict"

FAMILIES = (
    sized(5, 5_105_608, 128),
    sized(10, 10_023_112, 192),
    sized(19, 18_987_504, 256),
    family(r"sdt-v3-(?P<depths>\d+)-(?P<embed_dims>\d+)", {"sdt-v3-8-128": 5_105_608}, published, WEIGHTS),
    family(
        r"sdt-v3-events-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        {"sdt-v3-events-8-256": 18_740_004},
        published_hardvs,
        f"none published for HAR-DVS; trained with {SOURCE}, DVS/Hardvs/main_finetune.py",
        events=True,
    ),
    family(
        r"sdt-v3-gesture-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        {"sdt-v3-gesture-1-256": 5_604_315},
        published_gesture,
        f"none published for DVS128 Gesture; trained with {SOURCE}, DVS/Hardvs/main_finetune.py",
        events=True,
    ),
)
