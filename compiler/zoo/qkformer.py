"""QKFormer (Zhou et al., NeurIPS 2024), with the state_dict keys of the published code.

Three layouts were published: CIFAR (three stages, image / 4), ImageNet (three stages, image / 16) and event data (two
stages, frames / 16). They differ in what the patch embeddings look like, in the number of blocks a stage has and in a
few names, which is what `Layout` says; everything else is shared.

The published self-attention runs its last neuron on [T*B, C, N], so that in a batch its membrane passes from one image
to the next. One image at a time is the meaning given here, whatever the batch: with B = 1 both are the same numbers.

Shapes: T timesteps, B images, C channels of a stage, N = H * W tokens, h heads.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compiler.zoo.family import EVENTS, IMAGENET, Argument, Family, defaults, layout_pattern, read_sizes
from compiler.zoo.layers import ConvolutionalAttention, initialise, over_time
from compiler.zoo.neuron import LIF
from isa.errors import CStepError

ATTENTION_THRESHOLD = 0.5
ATTENTION_SCALE = 0.125  # whatever the width of a head


@dataclass(frozen=True)
class Link:
    """One 3x3 convolution of a patch embedding, with its norm and its neuron."""

    name: str
    share: int = 1  # it has 1/share of the stage's channels
    halves: bool = False  # a 3x3 max-pool of stride 2 on its currents, between norm and neuron


@dataclass(frozen=True)
class Layout:
    """What tells the published variants apart."""

    stem: tuple[Link, ...]
    shortcut: int  # links of the stem before the shortcut leaves
    transition: tuple[Link, ...]  # the patch embedding between stages; its shortcut leaves at once
    token_blocks: tuple[int, ...]  # blocks of every stage with token attention; one stage follows
    attention: str  # the key of self-attention in a block
    hidden: str  # the key of an MLP's layers, before 1 and 2
    events: bool = False

    @property
    def stages(self) -> int:
        return len(self.token_blocks) + 1

    @property
    def reduction(self) -> int:
        """Pixels of the image along an edge of one token."""
        transitions = sum(link.halves for link in self.transition) * len(self.token_blocks)
        return 2 ** (sum(link.halves for link in self.stem) + transitions)


LAYOUTS = {
    "cifar": Layout(
        stem=(Link("proj", 2), Link("proj1")),
        shortcut=1,
        transition=(Link("proj3"), Link("proj4", halves=True)),
        token_blocks=(1, 1),
        attention="ssa",
        hidden="mlp",
    ),
    "imagenet": Layout(
        stem=(Link("proj", 2, halves=True), Link("proj1", halves=True), Link("proj2")),
        shortcut=1,
        transition=(Link("proj3", halves=True), Link("proj4")),
        token_blocks=(1, 2),
        attention="attn",
        hidden="fc",
    ),
    "events": Layout(
        stem=(
            Link("proj", 8),
            Link("proj1", 4, halves=True),
            Link("proj2", 2, halves=True),
            Link("proj3", halves=True),
        ),
        shortcut=2,
        transition=(Link("proj"), Link("proj4", halves=True)),
        token_blocks=(1,),
        attention="ssa",
        hidden="mlp",
        events=True,
    ),
}


class Layers(nn.Module):
    """Named layers of weight, norm, optional max-pool and neuron: `<name>_conv`, `<name>_bn`, ..., `<name>_lif`."""

    def add(self, name: str, weight: nn.Conv1d | nn.Conv2d, halves: bool = False) -> None:
        norm = nn.BatchNorm1d if isinstance(weight, nn.Conv1d) else nn.BatchNorm2d
        self.add_module(f"{name}_conv", weight)
        self.add_module(f"{name}_bn", norm(weight.out_channels))
        if halves:
            self.add_module(f"{name}_maxpool", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.add_module(f"{name}_lif", LIF())

    def current(self, name: str, x: Tensor) -> Tensor:
        """[T, B, C, ...] -> the currents of the layer's neurons, same form."""
        y = self.get_submodule(f"{name}_bn")(self.get_submodule(f"{name}_conv")(x.flatten(0, 1)))
        if hasattr(self, f"{name}_maxpool"):
            y = self.get_submodule(f"{name}_maxpool")(y)
        return y.reshape(x.shape[0], x.shape[1], *y.shape[1:])

    def spikes(self, name: str, x: Tensor) -> Tensor:
        """[T, B, C, ...] -> the layer's spikes, same form."""
        return self.get_submodule(f"{name}_lif")(self.current(name, x))


class PatchEmbedding(Layers):
    """Images or counts [T, B, in, H, W] -> counts {0, 1, 2} [T, B, C, H', W'].

    A chain of convolutions beside a shortcut, one strided 1x1 convolution; both end in neurons, whose spikes are added.
    """

    def __init__(self, in_channels: int, channels: int, chain: Sequence[Link], shortcut: int) -> None:
        super().__init__()
        self.before = [link.name for link in chain[:shortcut]]
        self.beside = [link.name for link in chain[shortcut:]]
        width, branch = in_channels, in_channels
        for position, link in enumerate(chain):
            branch = width if position == shortcut else branch
            out = channels // link.share
            self.add(link.name, nn.Conv2d(width, out, kernel_size=3, padding=1, bias=False), link.halves)
            width = out
        stride = 2 ** sum(link.halves for link in chain[shortcut:])
        self.add("proj_res", nn.Conv2d(branch, channels, kernel_size=1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.before:
            x = self.spikes(name, x)
        y = x
        for name in self.beside:
            y = self.spikes(name, y)
        return y + self.spikes("proj_res", x)


class TokenAttention(Layers):
    """Counts [T, B, C, H, W] -> spikes, same form (the paper's Q-K token attention, QKTA).

    q is summed over a head's channels; a neuron on that sum is a mask of tokens, which lets the head's k through.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.add("q", nn.Conv1d(dim, dim, kernel_size=1, bias=False))
        self.add("k", nn.Conv1d(dim, dim, kernel_size=1, bias=False))
        self.attn_lif = LIF(v_threshold=ATTENTION_THRESHOLD)
        self.add("proj", nn.Conv1d(dim, dim, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, channels, height, width = x.shape
        heads = (steps, batch, self.num_heads, channels // self.num_heads, height * width)
        x = x.flatten(3)
        q = self.spikes("q", x).reshape(heads)
        k = self.spikes("k", x).reshape(heads)
        mask = self.attn_lif(q.sum(3, keepdim=True))
        return self.spikes("proj", (mask * k).flatten(2, 3)).reshape(steps, batch, channels, height, width)


class SelfAttention(ConvolutionalAttention):
    """Counts [T, B, C, H, W] -> spikes, same form: q (k^T v) * scale per head, without softmax, then a neuron."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, ATTENTION_SCALE, "values", 2.0, 1.0, ATTENTION_THRESHOLD)

    def forward(self, x: Tensor) -> Tensor:
        current = over_time(self.attend(x.flatten(3)), x.shape[0])
        return self.proj_lif(current).reshape(x.shape)


class MLP(Layers):
    """Counts [T, B, C, H, W] -> spikes, same form, through `hidden` spiking channels."""

    def __init__(self, dim: int, hidden: int, key: str) -> None:
        super().__init__()
        self.first, self.second = f"{key}1", f"{key}2"
        self.add(self.first, nn.Conv2d(dim, hidden, kernel_size=1))
        self.add(self.second, nn.Conv2d(hidden, dim, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes(self.second, self.spikes(self.first, x))


class Block(nn.Module):
    """Attention and MLP, each added to its input: the counts grow by at most one per addition."""

    def __init__(self, key: str, attention: nn.Module, mlp: MLP) -> None:
        super().__init__()
        self.key = key
        self.add_module(key, attention)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.get_submodule(self.key)(x)
        return x + self.mlp(x)


class QKFormer(nn.Module):
    """Images [B, in_channels, H, W], or events [B, T, in_channels, H, W], -> logits [B, num_classes].

    `depths` counts the blocks of all stages; those that the layout's first stages do not take stand in the last one.
    `embed_dims` is the last stage's width; every stage before has half of the next one's. The defaults are the
    published CIFAR-10 settings (QKFormer-4-384).

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 32,
        img_size_w: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        embed_dims: int = 384,
        num_heads: int = 8,
        mlp_ratios: float = 4.0,
        depths: int = 4,
        T: int = 4,  # noqa: N803 - the published name
        layout: str = "cifar",
    ) -> None:
        super().__init__()
        check_sizes(layout, img_size_h, img_size_w, embed_dims, num_heads, depths)
        self.T = T
        self.layout = form = LAYOUTS[layout]
        blocks = (*form.token_blocks, depths - sum(form.token_blocks))
        channels, last = in_channels, form.stages - 1
        for stage, count in enumerate(blocks):
            dim = embed_dims // 2 ** (last - stage)
            chain, shortcut = (form.transition, 0) if stage else (form.stem, form.shortcut)
            self.add_module(f"patch_embed{stage + 1}", PatchEmbedding(channels, dim, chain, shortcut))
            attention, key = (SelfAttention, form.attention) if stage == last else (TokenAttention, "tssa")
            hidden = int(dim * mlp_ratios)
            self.add_module(
                f"stage{stage + 1}",
                nn.Sequential(
                    *(Block(key, attention(dim, num_heads), MLP(dim, hidden, form.hidden)) for _ in range(count))
                ),
            )
            channels = dim
        self.head = nn.Linear(embed_dims, num_classes)
        self.apply(initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """[T, B, in_channels, H, W] -> the mean over tokens at every timestep [T, B, C]."""
        for stage in range(1, self.layout.stages + 1):
            x = self.get_submodule(f"patch_embed{stage}")(x)
            x = self.get_submodule(f"stage{stage}")(x)
        return x.flatten(3).mean(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 0, 2, 3, 4) if self.layout.events else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.forward_features(x).mean(0))


def check_sizes(layout: str, img_size_h: int, img_size_w: int, embed_dims: int, num_heads: int, depths: int) -> None:
    """Refuse what the layout cannot be built for, before torch does so in its own words."""
    if layout not in LAYOUTS:
        raise CStepError(f"QKFormer: layout={layout!r}, expected one of {', '.join(LAYOUTS)}")
    sizes = {"img_size_h": img_size_h, "img_size_w": img_size_w, "embed_dims": embed_dims, "num_heads": num_heads}
    for name, size in sizes.items():
        if size < 1:
            raise CStepError(f"QKFormer: {name}={size} must be positive")
    form = LAYOUTS[layout]
    edge, first = form.reduction, 2 ** (form.stages - 1)
    if img_size_h % edge or img_size_w % edge:
        raise CStepError(f"QKFormer: image {img_size_h}x{img_size_w} does not divide into tokens of {edge}x{edge}")
    narrowest = first * math.lcm(num_heads, *(link.share for link in form.stem))
    if embed_dims % narrowest:
        raise CStepError(
            f"QKFormer: embed_dims={embed_dims} must be a multiple of {narrowest}: the first of {form.stages} stages "
            f"has {num_heads} heads"
        )
    least = sum(form.token_blocks) + 1
    if depths < least:
        raise CStepError(f"QKFormer: depths={depths}, but the {layout} layout has at least {least} blocks")


def published_cifar(_named: Mapping[str, int]) -> Mapping[str, Argument]:
    return defaults(QKFormer)


def published_imagenet(named: Mapping[str, int]) -> Mapping[str, Argument]:
    """A head is 64 channels wide in the last stage."""
    heads = max(1, named["embed_dims"] // 64)
    return defaults(QKFormer, layout="imagenet", img_size_h=224, img_size_w=224, num_classes=1000, num_heads=heads)


def published_cifar10_dvs(_named: Mapping[str, int]) -> Mapping[str, Argument]:
    return defaults(
        QKFormer, layout="events", img_size_h=128, img_size_w=128, in_channels=2, num_heads=16, mlp_ratios=1.0, T=16
    )


def published_gesture(named: Mapping[str, int]) -> Mapping[str, Argument]:
    return {**published_cifar10_dvs(named), "num_classes": 11, "mlp_ratios": 4.0}


def sizes(state: Mapping[str, Tensor]) -> Mapping[str, Argument]:
    hidden = "fc1" if "stage1.0.mlp.fc1_conv.weight" in state else "mlp1"
    found = read_sizes(state, "patch_embed1.proj_conv.weight", f"stage1.0.mlp.{hidden}_conv.weight")
    blocks = {match[0] for key in state if (match := re.match(r"stage\d+\.\d+\.", key))}
    return {**found, "depths": len(blocks)} if blocks else found


SOURCE = "github.com/zhouchenlin2096/QKFormer"

FAMILIES = (
    Family(
        name="qkformer-imagenet",
        pattern=layout_pattern("qkformer", "imagenet", bare=r"10-(?:384|512|768)"),
        examples={"qkformer-10-384": 16_473_688, "qkformer-10-512": 29_079_336, "qkformer-10-768": 64_962_760},
        construct=QKFormer,
        published=published_imagenet,
        sizes=sizes,
        dead_keys=(),
        weights=f"{SOURCE}, table of the README; `model` of every .pth is the state_dict",
        normalisation=IMAGENET,
    ),
    Family(
        name="qkformer-cifar",
        pattern=layout_pattern("qkformer", "cifar", bare=r"\d+-\d+"),
        examples={"qkformer-4-384": 6_706_234, "qkformer-4-64": 190_994},
        construct=QKFormer,
        published=published_cifar,
        sizes=sizes,
        dead_keys=(),
        weights=f"none published for CIFAR; trained with {SOURCE}, cifar10/train.py",
    ),
    Family(
        name="qkformer-events",
        pattern=r"qkformer-events-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples={"qkformer-events-2-256": 1_504_138},
        construct=QKFormer,
        published=published_cifar10_dvs,
        sizes=sizes,
        dead_keys=(),
        weights=f"none published for CIFAR10-DVS; trained with {SOURCE}, cifar10-dvs/train.py",
        normalisation=EVENTS,
        events=True,
    ),
    Family(
        name="qkformer-gesture",
        pattern=r"qkformer-gesture-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples={"qkformer-gesture-2-256": 1_999_371},
        construct=QKFormer,
        published=published_gesture,
        sizes=sizes,
        dead_keys=(),
        weights=f"none published for DVS128 Gesture; trained with {SOURCE}, dvs128-gesture/train.py",
        normalisation=EVENTS,
        events=True,
    ),
)
