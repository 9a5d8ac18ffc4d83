"""What Spike-Driven Transformers V2 and V3 share: the stages, with the published state_dict keys.

Residuals are membranes: every branch ends in a norm, whose currents are added to a stream of real numbers, and begins
with the neurons that turn the stream into spikes or counts.

Shapes: T timesteps, B images, C channels of a stage, N = H * W tokens, h heads.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from compiler.zoo.family import Argument
from isa.errors import CStepError


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
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


class MLP(nn.Module):
    """Stream [T, B, C, N] -> currents, same form, through `hidden` channels; `neuron` makes its neurons."""

    def __init__(self, dim: int, hidden: int, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1_conv = nn.Conv1d(dim, hidden, kernel_size=1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc1_lif = neuron()
        self.fc2_conv = nn.Conv1d(hidden, dim, kernel_size=1)
        self.fc2_bn = nn.BatchNorm1d(dim)
        self.fc2_lif = neuron()

    def forward(self, x: Tensor) -> Tensor:
        x = per_frame(lambda tokens: self.fc1_bn(self.fc1_conv(tokens)), self.fc1_lif(x))
        return per_frame(lambda tokens: self.fc2_bn(self.fc2_conv(tokens)), self.fc2_lif(x))


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
        return per_frame(lambda frames: self.encode_bn(self.encode_conv(frames)), x)


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
