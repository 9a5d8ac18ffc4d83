"""Spike-Driven Transformer V2, or Meta-SpikeFormer (Yao et al., ICLR 2024), with the published state_dict keys.

Residuals are membranes, see `compiler.zoo.pyramid`.

Shapes: T timesteps, B images, C channels of a stage, N = H * W tokens, h heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.zoo.family import IMAGENET, MEMBRANE_RESIDUALS, Argument, Family, defaults
from compiler.zoo.layers import initialise
from compiler.zoo.neuron import LIF
from compiler.zoo.pyramid import (
    MLP,
    Pyramid,
    check_pyramid,
    join_heads,
    per_frame,
    pyramid_sizes,
    split_heads,
)
from isa.errors import CStepError

ATTENTION_SCALE = 0.125  # whatever the width of a head


class PaddedBatchNorm(nn.Module):
    """[B, C, H, W] -> [B, C, H + 2p, W + 2p]: the norm, framed by what it makes of 0.

    That is the norm of a zero-padded input. It is computed in the published order, which rounds otherwise at the
    border: bias - mean * weight / sqrt(var + eps).
    """

    def __init__(self, channels: int, pad_pixels: int = 1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad_pixels = pad_pixels

    def forward(self, x: Tensor) -> Tensor:
        norm, frame = self.bn, [self.pad_pixels] * 4
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise CStepError("PaddedBatchNorm: its norm keeps no statistics, so it has no value for the border")
        rest = norm.bias.detach() - mean * norm.weight.detach() / torch.sqrt(variance + norm.eps)
        inside = functional.pad(torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device), frame)
        return torch.where(inside, functional.pad(norm(x), frame), rest.view(1, -1, 1, 1))


class RepConv(nn.Module):
    """[B, C, H, W] -> the same form: what training keeps apart and inference may fold into one 3x3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=1, bias=False),
            PaddedBatchNorm(dim),
            nn.Sequential(
                nn.Conv2d(dim, dim, kernel_size=3, groups=dim, bias=False),
                nn.Conv2d(dim, dim, kernel_size=1, bias=False),
                nn.BatchNorm2d(dim),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class SeparableConv(nn.Module):
    """Stream [T, B, C, H, W] -> currents, same form; no neuron stands between depthwise and second 1x1 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 2 * dim
        self.lif1 = LIF()
        self.pwconv1 = nn.Conv2d(dim, wide, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.lif2 = LIF()
        self.dwconv = nn.Conv2d(wide, wide, kernel_size=7, padding=3, groups=wide, bias=False)
        self.pwconv2 = nn.Conv2d(wide, dim, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = per_frame(lambda frames: self.bn1(self.pwconv1(frames)), self.lif1(x))
        return per_frame(lambda frames: self.bn2(self.pwconv2(self.dwconv(frames))), self.lif2(x))


class ConvBlock(nn.Module):
    """Stream [T, B, C, H, W] -> stream: a separable convolution, then two dense 3x3 ones, each added."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.Conv = SeparableConv(dim)
        self.lif1 = LIF()
        self.conv1 = nn.Conv2d(dim, hidden, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.lif2 = LIF()
        self.conv2 = nn.Conv2d(hidden, dim, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.Conv(x)
        y = per_frame(lambda frames: self.bn1(self.conv1(frames)), self.lif1(x))
        return x + per_frame(lambda frames: self.bn2(self.conv2(frames)), self.lif2(y))


class Attention(nn.Module):
    """Stream [T, B, C, H, W] -> currents, same form: q (k^T v) * scale per head, between RepConvs."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_lif = LIF()
        self.q_conv = nn.Sequential(RepConv(dim), nn.BatchNorm2d(dim))
        self.k_conv = nn.Sequential(RepConv(dim), nn.BatchNorm2d(dim))
        self.v_conv = nn.Sequential(RepConv(dim), nn.BatchNorm2d(dim))
        self.q_lif = LIF()
        self.k_lif = LIF()
        self.v_lif = LIF()
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Sequential(RepConv(dim), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = self.head_lif(x)
        q = split_heads(self.q_lif(per_frame(self.q_conv, x)).flatten(3), self.num_heads)
        k = split_heads(self.k_lif(per_frame(self.k_conv, x)).flatten(3), self.num_heads)
        v = split_heads(self.v_lif(per_frame(self.v_conv, x)).flatten(3), self.num_heads)
        x = (q @ (k.transpose(-2, -1) @ v)) * ATTENTION_SCALE
        return per_frame(self.proj_conv, self.attn_lif(join_heads(x)).reshape(shape))


class Block(nn.Module):
    """Stream [T, B, C, H, W] -> stream: attention and MLP, each added."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio), LIF)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x.flatten(3)).reshape(x.shape)


class SDTV2(Pyramid):
    """Images [B, in_channels, H, W] -> logits [B, num_classes], the same image shown at each of T timesteps.

    `embed_dims` is the third stage's width, `last_dims` the fourth's; `depths` counts the blocks with attention, the
    last `last_depths` of them in the fourth stage. `kd` adds the head that was trained by distillation (the published
    models with T = 4 have it): the logits are the mean of both heads'. The defaults are the 31 M model, T = 1.

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 384,
        last_dims: int = 480,
        num_heads: int = 8,
        mlp_ratios: float = 4.0,
        depths: int = 8,
        last_depths: int = 2,
        T: int = 1,  # noqa: N803 - the published name
        kd: bool = False,
    ) -> None:
        check_pyramid("SDTV2", img_size_h, img_size_w, (embed_dims, last_dims), num_heads, depths - last_depths)
        super().__init__(
            in_channels,
            (embed_dims // 4, embed_dims // 2, embed_dims, last_dims),
            (depths - last_depths, last_depths),
            LIF,
            lambda dim: ConvBlock(dim, mlp_ratios),
            lambda dim: Block(dim, num_heads, mlp_ratios),
        )
        self.T = T
        self.kd = kd
        self.lif = LIF()
        self.head = nn.Linear(last_dims, num_classes)
        if kd:
            self.head_kd = nn.Linear(last_dims, num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1))
        x = self.lif(x.flatten(3).mean(3))
        logits = self.head(x).mean(0)
        return (logits + self.head_kd(x).mean(0)) / 2 if self.kd else logits


def sizes(state: Mapping[str, Tensor]) -> Mapping[str, Argument]:
    found = pyramid_sizes(state)
    return {**found, "kd": "head_kd.weight" in state} if state else found


def published(named: Mapping[str, int]) -> Mapping[str, Argument]:
    """As in the published sizes: the fourth stage has a quarter of the blocks, and is a quarter wider."""
    last_depths = max(named["depths"] // 4, min(named["depths"] - 1, 1))
    return defaults(SDTV2, last_dims=named["embed_dims"] * 5 // 4, last_depths=last_depths)


def sized(millions: int, parameters: int, embed_dims: int, last_dims: int) -> Family:
    """The family of one published size."""
    return Family(
        name="sdt-v2",
        pattern=f"sdt-v2-{millions}m",
        examples={f"sdt-v2-{millions}m": parameters},
        construct=SDTV2,
        published=lambda _named: defaults(SDTV2, embed_dims=embed_dims, last_dims=last_dims),
        sizes=sizes,
        dead_keys=(),
        weights=WEIGHTS,
        normalisation=IMAGENET,
        needs_calibration=MEMBRANE_RESIDUALS,
    )


WEIGHTS = (
    "55 M: github.com/BICLab/Spike-Driven-Transformer-V2, link in the README; `model` of the .pth is the state_dict"
)

FAMILIES = (
    sized(31, 31_333_864, 384, 480),
    sized(55, 55_350_248, 512, 640),
    sized(123, 123_741_160, 768, 960),
    Family(
        name="sdt-v2",
        pattern=r"sdt-v2-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples={"sdt-v2-8-384": 31_333_864},
        construct=SDTV2,
        published=published,
        sizes=sizes,
        dead_keys=(),
        weights=WEIGHTS,
        normalisation=IMAGENET,
        needs_calibration=MEMBRANE_RESIDUALS,
    ),
)
