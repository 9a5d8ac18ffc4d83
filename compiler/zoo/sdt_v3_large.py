"""Spike-Driven Transformer V3 (Yao et al., TPAMI 2025), Large models, with the published state_dict keys.

Residuals are membranes, as in V2; neurons are `Level`s, which round half up here.

The published 83 M model cannot run as it stands: the branch that it has beside the 171 M model's reshapes to sizes that
nobody set. It is read here as the comment above it says, with the sizes of its input.

Shapes: T timesteps, B images, C channels of a stage, N = H * W tokens, h heads.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compiler.zoo.family import IMAGENET, MEMBRANE_RESIDUALS, Argument, Family, defaults
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
from isa.errors import CStepError

Neuron = Callable[[], Level]

ATTENTION_SCALE = 0.125  # whatever the width of a head
LAYER_SCALE = 1e-6  # what layer scales start from


class ConvBlock(nn.Module):
    """Stream [T, B, C, H, W] -> stream: two dense 3x3 convolutions, added."""

    def __init__(self, dim: int, mlp_ratio: float, neuron: Neuron) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.neuron1 = neuron()
        self.conv1 = nn.Sequential(
            nn.Sequential(nn.Conv2d(dim, hidden, kernel_size=3, padding=1), nn.BatchNorm2d(hidden))
        )
        self.neuron2 = neuron()
        self.conv2 = nn.Sequential(nn.Sequential(nn.Conv2d(hidden, dim, kernel_size=3, padding=1), nn.BatchNorm2d(dim)))

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self.conv2, self.neuron2(per_frame(self.conv1, self.neuron1(x))))


class TokenRepConv(nn.Module):
    """[B, C, N] -> [B, C, N]: two 1x1 convolutions with their norms, which inference may fold into one."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(dim, hidden, kernel_size=1, bias=False), nn.BatchNorm1d(hidden))
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, dim, kernel_size=1, bias=False), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Attention(nn.Module):
    """Stream [T, B, C, N] -> currents, same form: q (k^T v) * 0.125 per head, between TokenRepConvs."""

    def __init__(self, dim: int, num_heads: int, neuron: Neuron) -> None:
        super().__init__()
        self.num_heads = num_heads
        wide = int(dim * 1.5)
        self.head_lif = neuron()
        self.q_conv = nn.Sequential(TokenRepConv(dim, wide), nn.BatchNorm1d(dim))
        self.k_conv = nn.Sequential(TokenRepConv(dim, wide), nn.BatchNorm1d(dim))
        self.v_conv = nn.Sequential(TokenRepConv(dim, wide), nn.BatchNorm1d(dim))
        self.q_lif = neuron()
        self.k_lif = neuron()
        self.v_lif = neuron()
        self.attn_lif = neuron()
        self.proj_conv = nn.Sequential(TokenRepConv(dim, wide), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head_lif(x)
        q = split_heads(self.q_lif(per_frame(self.q_conv, x)), self.num_heads)
        k = split_heads(self.k_lif(per_frame(self.k_conv, x)), self.num_heads)
        v = split_heads(self.v_lif(per_frame(self.v_conv, x)), self.num_heads)
        x = (q @ (k.transpose(-2, -1) @ v)) * ATTENTION_SCALE
        return per_frame(self.proj_conv, self.attn_lif(join_heads(x)))


class Block(nn.Module):
    """Stream [T, B, C, H, W] -> stream: attention and MLP, each scaled per channel and added.

    With `rep_conv` (83 M) a third branch, two 1x1 convolutions, comes first.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, neuron: Neuron, rep_conv: bool) -> None:
        super().__init__()
        self.lif = neuron()
        self.rep_conv = TokenRepConv(dim, dim) if rep_conv else None
        self.attn = Attention(dim, num_heads, neuron)
        self.mlp = MLP(dim, int(dim * mlp_ratio), neuron)
        self.layer_scale1 = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.layer_scale2 = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.flatten(3)
        if self.rep_conv is not None:
            x = x + per_frame(self.rep_conv, self.lif(x))
        x = x + self.attn(x) * self.layer_scale1.view(-1, 1)
        x = x + self.mlp(x) * self.layer_scale2.view(-1, 1)
        return x.reshape(shape)


class SDTV3Large(Pyramid):
    """Images [B, in_channels, H, W] -> logits [B, num_classes].

    `first_dims` and `embed_dims` are the widths of the first and third stage; the second has half of the third's. There
    is no fourth stage; `depths` counts the third's blocks. `rep_conv` gives every block its third branch. A neuron
    emits counts of up to `levels`, divided by as many: 4 in the published 1x4 models, 8 in the 1x8 ones.

    `head` reads the stream's mean as it is. `kd` adds the head that was trained by distillation; it reads that mean's
    counts, and the logits are the mean of both heads'. The defaults are the 83 M model.

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        first_dims: int = 128,
        embed_dims: int = 512,
        num_heads: int = 8,
        mlp_ratios: float = 4.0,
        depths: int = 12,
        T: int = 1,  # noqa: N803 - the published name
        levels: int = 4,
        rep_conv: bool = True,
        kd: bool = True,
    ) -> None:
        check_pyramid("SDTV3Large", img_size_h, img_size_w, (embed_dims,), num_heads, depths)
        if first_dims < 2 or first_dims % 2:
            raise CStepError(f"SDTV3Large: first_dims={first_dims} must be even, the stem has half of it")
        neuron = partial(Level, levels, "up")
        super().__init__(
            in_channels,
            (first_dims, embed_dims // 2, embed_dims),
            (depths,),
            neuron,
            lambda dim: ConvBlock(dim, mlp_ratios, neuron),
            lambda dim: Block(dim, num_heads, mlp_ratios, neuron, rep_conv),
        )
        self.T = T
        self.kd = kd
        self.head = nn.Linear(embed_dims, num_classes)
        if kd:
            self.lif = Level(levels, "up", norm=1.0)
            self.head_kd = nn.Linear(embed_dims, num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).flatten(3).mean(3)
        logits = self.head(x).mean(0)
        return (logits + self.head_kd(self.lif(x)).mean(0)) / 2 if self.kd else logits


def sizes(state: Mapping[str, Tensor]) -> Mapping[str, Argument]:
    found = pyramid_sizes(state)
    found.pop("last_depths", None)
    first = state.get("downsample1_2.encode_conv.weight")
    if first is not None and first.dim() == 4:
        found["first_dims"] = first.shape[0]
    if state:
        found["kd"] = "head_kd.weight" in state
        found["rep_conv"] = "block3.0.rep_conv.conv1.0.weight" in state
    return found


def published(named: Mapping[str, int]) -> Mapping[str, Argument]:
    return defaults(SDTV3Large, first_dims=named["embed_dims"] // 4)


def family(
    pattern: str, examples: Mapping[str, int], settings: Callable[[Mapping[str, int]], Mapping[str, Argument]]
) -> Family:
    return Family(
        name="sdt-v3-large",
        pattern=pattern,
        examples=examples,
        construct=SDTV3Large,
        published=settings,
        sizes=sizes,
        dead_keys=(),
        weights="github.com/BICLab/Spike-Driven-Transformer-V3, links in Model_Large/Train_Large.md; `model` of every "
        ".pth is the state_dict",
        normalisation=IMAGENET,
        needs_calibration=MEMBRANE_RESIDUALS,
    )


# A name says the published levels after 1x: sdt-v3-83m is sdt-v3-83m-1x4. The published models have both heads.
FAMILIES = (
    family(r"sdt-v3-83m(?:-1x(?P<levels>\d+))?", {"sdt-v3-83m": 83_015_952}, lambda _: defaults(SDTV3Large)),
    family(
        r"sdt-v3-171m(?:-1x(?P<levels>\d+))?",
        {"sdt-v3-171m": 171_740_714},
        lambda _: defaults(SDTV3Large, first_dims=196, embed_dims=768, rep_conv=False),
    ),
    family(r"sdt-v3-large-(?P<depths>\d+)-(?P<embed_dims>\d+)", {"sdt-v3-large-12-512": 83_015_952}, published),
)
