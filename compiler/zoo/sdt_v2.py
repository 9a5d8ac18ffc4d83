"""Spike-Driven Transformer V2, or Meta-SpikeFormer (Yao et al., ICLR 2024), with the published state_dict keys.

Residuals are membranes: every branch ends in a norm, whose currents are added to a stream of real numbers, and begins
with the neurons that turn the stream into spikes.

Shapes: T timesteps, B images, C channels of a stage, N = H * W tokens, h heads.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.zoo.family import IMAGENET, MEMBRANE_RESIDUALS, Argument, Family, defaults
from compiler.zoo.neuron import LIF
from isa.errors import CStepError

ATTENTION_SCALE = 0.125  # whatever the width of a head


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer of frames [TB, ...], applied to [T, B, ...]."""
    y = layer(x.flatten(0, 1))
    return y.reshape(x.shape[0], x.shape[1], *y.shape[1:])


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[T, B, C, N] -> [T, B, h, N, C/h]."""
    steps, batch, channels, tokens = x.shape
    split = x.transpose(-1, -2).reshape(steps, batch, tokens, num_heads, channels // num_heads)
    return split.permute(0, 1, 3, 2, 4)


def join_heads(x: Tensor) -> Tensor:
    """[T, B, h, N, C/h] -> [T, B, C, N]."""
    return x.transpose(3, 4).flatten(2, 3)


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
        x = over_time(lambda frames: self.bn1(self.pwconv1(frames)), self.lif1(x))
        return over_time(lambda frames: self.bn2(self.pwconv2(self.dwconv(frames))), self.lif2(x))


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
        y = over_time(lambda frames: self.bn1(self.conv1(frames)), self.lif1(x))
        return x + over_time(lambda frames: self.bn2(self.conv2(frames)), self.lif2(y))


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
        q = split_heads(self.q_lif(over_time(self.q_conv, x)).flatten(3), self.num_heads)
        k = split_heads(self.k_lif(over_time(self.k_conv, x)).flatten(3), self.num_heads)
        v = split_heads(self.v_lif(over_time(self.v_conv, x)).flatten(3), self.num_heads)
        x = (q @ (k.transpose(-2, -1) @ v)) * ATTENTION_SCALE
        return over_time(self.proj_conv, self.attn_lif(join_heads(x)).reshape(shape))


class MLP(nn.Module):
    """Stream [T, B, C, N] -> currents, same form, through `hidden` channels; `neuron` makes its neurons."""

    def __init__(self, dim: int, hidden: int, neuron: Callable[[], nn.Module] = LIF) -> None:
        super().__init__()
        self.fc1_conv = nn.Conv1d(dim, hidden, kernel_size=1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc1_lif = neuron()
        self.fc2_conv = nn.Conv1d(hidden, dim, kernel_size=1)
        self.fc2_bn = nn.BatchNorm1d(dim)
        self.fc2_lif = neuron()

    def forward(self, x: Tensor) -> Tensor:
        x = over_time(lambda tokens: self.fc1_bn(self.fc1_conv(tokens)), self.fc1_lif(x))
        return over_time(lambda tokens: self.fc2_bn(self.fc2_conv(tokens)), self.fc2_lif(x))


class Block(nn.Module):
    """Stream [T, B, C, H, W] -> stream: attention and MLP, each added."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x.flatten(3)).reshape(x.shape)


class Downsampling(nn.Module):
    """Stream (or image, where there is no neuron) [T, B, in, H, W] -> stream [T, B, C, H', W']."""

    def __init__(
        self, in_channels: int, channels: int, neuron: nn.Module | None, kernel_size: int = 3, stride: int = 2
    ) -> None:
        super().__init__()
        self.encode_lif = neuron
        self.encode_conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2)
        self.encode_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.encode_lif is not None:
            x = self.encode_lif(x)
        return over_time(lambda frames: self.encode_bn(self.encode_conv(frames)), x)


class Pyramid(nn.Module):
    """The stages of Spike-Driven Transformers V2 and V3: [T, B, in_channels, H, W] -> stream [T, B, C, H/16, W/16].

    Two convolutional stages, each of two blocks, then `depths[0]` blocks with attention; where there are four `widths`,
    `depths[1]` more behind a last convolution of stride 1. The blocks' and neurons' makers are arguments.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        neuron: Callable[[], nn.Module],
        conv_block: Callable[[int], nn.Module],
        block: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        first, second, third = widths[:3]
        self.downsample1_1 = Downsampling(in_channels, first // 2, None, kernel_size=7)
        self.ConvBlock1_1 = nn.Sequential(conv_block(first // 2))
        self.downsample1_2 = Downsampling(first // 2, first, neuron())
        self.ConvBlock1_2 = nn.Sequential(conv_block(first))
        self.downsample2 = Downsampling(first, second, neuron())
        self.ConvBlock2_1 = nn.Sequential(conv_block(second))
        self.ConvBlock2_2 = nn.Sequential(conv_block(second))
        self.downsample3 = Downsampling(second, third, neuron())
        self.block3 = nn.Sequential(*(block(third) for _ in range(depths[0])))
        self.last_stage = len(widths) == 4
        if self.last_stage:
            self.downsample4 = Downsampling(third, widths[3], neuron(), stride=1)
            self.block4 = nn.Sequential(*(block(widths[3]) for _ in range(depths[1])))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.ConvBlock1_1(self.downsample1_1(x))
        x = self.ConvBlock1_2(self.downsample1_2(x))
        x = self.ConvBlock2_2(self.ConvBlock2_1(self.downsample2(x)))
        x = self.block3(self.downsample3(x))
        return self.block4(self.downsample4(x)) if self.last_stage else x


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
        self.head = classifier(last_dims, num_classes)
        if kd:
            self.head_kd = classifier(last_dims, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1))
        x = self.lif(x.flatten(3).mean(3))
        logits = self.head(x).mean(0)
        return (logits + self.head_kd(x).mean(0)) / 2 if self.kd else logits


def classifier(dim: int, num_classes: int) -> nn.Linear:
    """A linear layer that starts narrow, as published."""
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def check_pyramid(
    kind: str, img_size_h: int, img_size_w: int, dims: Sequence[int], num_heads: int, depths: int
) -> None:
    """Refuse what the stages cannot be built for; `dims` are the widths of those with attention."""
    for name, size in {"img_size_h": img_size_h, "img_size_w": img_size_w, "num_heads": num_heads}.items():
        if size < 1:
            raise CStepError(f"{kind}: {name}={size} must be positive")
    if dims[0] < 8 or dims[0] % 8:
        raise CStepError(f"{kind}: embed_dims={dims[0]} must be a multiple of 8, the stem has an eighth of it")
    for dim in dims:
        if dim < 1 or dim % num_heads:
            raise CStepError(f"{kind}: a width of {dim} must be a multiple of num_heads={num_heads}")
    if depths < 1:
        raise CStepError(f"{kind}: {depths} blocks in the third stage, expected depths above last_depths")


def pyramid_sizes(state: Mapping[str, Tensor]) -> dict[str, Argument]:
    """Arguments that shapes give away; a key that is absent, or of another rank, says nothing."""
    found: dict[str, Argument] = {}
    for argument, key, rank, axis in (
        ("num_classes", "head.weight", 2, 0),
        ("in_channels", "downsample1_1.encode_conv.weight", 4, 1),
        ("embed_dims", "downsample3.encode_conv.weight", 4, 0),
        ("last_dims", "downsample4.encode_conv.weight", 4, 0),
    ):
        tensor = state.get(key)
        if tensor is not None and tensor.dim() == rank:
            found[argument] = tensor.shape[axis]
    hidden = state.get("block3.0.mlp.fc1_conv.weight")
    if hidden is not None and hidden.dim() == 3 and hidden.numel():
        found["mlp_ratios"] = hidden.shape[0] / hidden.shape[1]
    blocks = {match[0] for key in state if (match := re.match(r"block[34]\.\d+\.", key))}
    if blocks:
        found["depths"] = len(blocks)
        found["last_depths"] = sum(block.startswith("block4") for block in blocks)
    return found


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
