"""Spike-driven Transformer, V1 (Yao et al., NeurIPS 2023), with the state_dict keys of the published code.

Residuals add membranes, real numbers, and every weight layer but the stem's first reads spikes. Attention has no
matrix product: a channel of the value passes where some token's key and value spiked together, and the query masks it.

Published checkpoints also carry `talking_heads`, a convolution that the published forward never calls.

Shapes: T timesteps, B images, C = embed_dims channels, N = H * W tokens, h heads of d channels.
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
    defaults,
    layout_pattern,
    read_sizes,
)
from compiler.zoo.layers import STAGES, Stem, check_sizes, initialise, over_time
from compiler.zoo.neuron import LIF
from isa.errors import CStepError


class PatchSplitting(Stem):
    """Images [T, B, in_channels, H, W] -> membranes [T, B, C, H / r, W / r].

    Three stages end in spikes, max-pooled where their halving is wanted (an OR); the fourth pools its currents, and
    these currents, not their spikes, are what the position embedding is added to.
    """

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        x = x.flatten(0, 1)
        for stage in STAGES[:3]:
            x = self.pooled(stage, self.spikes(stage, self.current(stage, x), steps))
        shortcut = self.pooled(STAGES[3], self.current(STAGES[3], x))
        position = self.rpe_bn(self.rpe_conv(self.spikes(STAGES[3], shortcut, steps)))
        return over_time(position + shortcut, steps)


class SpikeDrivenAttention(nn.Module):
    """Membranes [T, B, C, H, W] -> membranes [T, B, C, H, W], the residual among them.

    Per head: q * LIF(sum over tokens of k * v), all elementwise (SDSA, eq. 10 to 12). With `dvs_mode` every operand is
    widened by a 3x3 max-pool: keys and values in the plane, products over (token, channel of the head).
    """

    def __init__(
        self, dim: int, num_heads: int, dvs_mode: bool, tau: float, threshold: float, attention_threshold: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dvs_mode = dvs_mode
        self.shortcut_lif = LIF(tau, threshold)
        self.q_conv = nn.Conv2d(dim, dim, kernel_size=1, bias=False)
        self.q_bn = nn.BatchNorm2d(dim)
        self.q_lif = LIF(tau, threshold)

        self.k_conv = nn.Conv2d(dim, dim, kernel_size=1, bias=False)
        self.k_bn = nn.BatchNorm2d(dim)
        self.k_lif = LIF(tau, threshold)

        self.v_conv = nn.Conv2d(dim, dim, kernel_size=1, bias=False)
        self.v_bn = nn.BatchNorm2d(dim)
        self.v_lif = LIF(tau, threshold)
        self.talking_heads_lif = LIF(tau, attention_threshold)

        self.proj_conv = nn.Conv2d(dim, dim, kernel_size=1)
        self.proj_bn = nn.BatchNorm2d(dim)
        if dvs_mode:
            self.pool = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)

    def widened(self, x: Tensor) -> Tensor:
        """The maximum of 3x3 neighbours over the last two of five dimensions."""
        return over_time(self.pool(x.flatten(0, 1)), x.shape[0]) if self.dvs_mode else x

    def heads(self, spikes: Tensor) -> Tensor:
        """[T, B, C, H, W] -> [T, B, h, N, d]."""
        steps, batch, channels, height, width = spikes.shape
        tokens = spikes.flatten(3).transpose(-1, -2)
        split = tokens.reshape(steps, batch, height * width, self.num_heads, channels // self.num_heads)
        return split.permute(0, 1, 3, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        spikes = self.shortcut_lif(x).flatten(0, 1)
        q = self.heads(self.q_lif(over_time(self.q_bn(self.q_conv(spikes)), steps)))
        k = self.heads(self.widened(self.k_lif(over_time(self.k_bn(self.k_conv(spikes)), steps))))
        v = self.heads(self.widened(self.v_lif(over_time(self.v_bn(self.v_conv(spikes)), steps))))

        both = self.talking_heads_lif(self.widened(k * v).sum(dim=-2, keepdim=True))
        passed = self.widened(q * both).transpose(3, 4).reshape(x.shape)
        return over_time(self.proj_bn(self.proj_conv(passed.flatten(0, 1))), steps) + x


class MLP(nn.Module):
    """Membranes [T, B, C, H, W] -> membranes [T, B, C, H, W], the residual among them, through `hidden` channels.

    Where `hidden` is as wide as the input, the first layer has a residual of its own.
    """

    def __init__(self, dim: int, hidden: int, tau: float, threshold: float) -> None:
        super().__init__()
        self.twice = dim == hidden
        self.fc1_lif = LIF(tau, threshold)
        self.fc1_conv = nn.Conv2d(dim, hidden, kernel_size=1)
        self.fc1_bn = nn.BatchNorm2d(hidden)

        self.fc2_lif = LIF(tau, threshold)
        self.fc2_conv = nn.Conv2d(hidden, dim, kernel_size=1)
        self.fc2_bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        wide = over_time(self.fc1_bn(self.fc1_conv(self.fc1_lif(x).flatten(0, 1))), steps)
        if self.twice:
            x = wide = x + wide
        return over_time(self.fc2_bn(self.fc2_conv(self.fc2_lif(wide).flatten(0, 1))), steps) + x


class Block(nn.Module):
    """Attention, then the MLP; each adds its own input."""

    def __init__(self, attention: SpikeDrivenAttention, mlp: MLP) -> None:
        super().__init__()
        self.attn = attention
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attn(x))


class SpikeDrivenTransformer(nn.Module):
    """Images [B, in_channels, H, W], the same at each of T timesteps, or event counts [B, T, in_channels, H, W]
    -> logits [B, num_classes]: a neuron on the mean membrane of the tokens, the head, and the mean over time.

    The defaults are the published ImageNet settings (8-512). `pooling_stat` says which of the stem's four stages halve
    the image, `dvs_mode` whether attention widens spikes; names and values are those of the published settings.

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 512,
        num_heads: int = 8,
        mlp_ratios: float = 4.0,
        depths: int = 8,
        T: int = 4,  # noqa: N803 - the published name
        tau: float = 2.0,
        threshold: float = 1.0,
        attention_threshold: float = 0.5,
        pooling_stat: str = "1111",
        dvs_mode: bool = False,
    ) -> None:
        super().__init__()
        if len(pooling_stat) != len(STAGES) or set(pooling_stat) - {"0", "1"}:
            raise CStepError(
                f"SpikeDrivenTransformer: pooling_stat={pooling_stat!r}; expected a 0 or 1 for each of four stages"
            )
        patch_size = 2 ** pooling_stat.count("1")
        check_sizes("SpikeDrivenTransformer", img_size_h, img_size_w, embed_dims, num_heads, patch_size)
        self.T = T
        self.num_classes = num_classes
        self.depths = depths
        self.patch_embed = PatchSplitting(in_channels, embed_dims, pooling_stat, tau, threshold)
        self.block = nn.ModuleList(
            Block(
                SpikeDrivenAttention(embed_dims, num_heads, dvs_mode, tau, threshold, attention_threshold),
                MLP(embed_dims, int(embed_dims * mlp_ratios), tau, threshold),
            )
            for _ in range(depths)
        )
        self.head_lif = LIF(tau, threshold)
        self.head = nn.Linear(embed_dims, num_classes)
        self.apply(initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """[T, B, in_channels, H, W] -> the mean membrane of the tokens at every timestep [T, B, C]."""
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        return x.flatten(3).mean(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if x.dim() == 5 else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.head_lif(self.forward_features(x))).mean(0)


def published(_named: Mapping[str, int], **others: Argument) -> Mapping[str, Argument]:
    return defaults(SpikeDrivenTransformer, **others)


def square(size: int, **others: Argument) -> dict[str, Argument]:
    """Settings for images of `size` x `size`."""
    return {"img_size_h": size, "img_size_w": size, **others}


def sizes(state: Mapping[str, Tensor]) -> Mapping[str, Argument]:
    """What shapes give away; here the dead `talking_heads` does tell the number of heads."""
    sizes = read_sizes(state, "patch_embed.proj_conv.weight", "block.0.mlp.fc1_conv.weight")
    mixed = state.get("block.0.attn.talking_heads.weight")
    if mixed is not None and mixed.dim() == 3:
        sizes["num_heads"] = mixed.shape[0]
    return sizes


CODE = "github.com/BICLab/Spike-Driven-Transformer"
CIFAR_SIZES = r"2-(?:256|512)"
DEAD_KEYS = (r"block\.\d+\.attn\.talking_heads\.weight",)

FAMILIES = (
    Family(
        name="sdt-v1",
        pattern=layout_pattern("sdt(?:-v1)?", "imagenet", bare=rf"(?!{CIFAR_SIZES}$)\d+-\d+"),
        examples={
            "sdt-v1-8-384": 16_816_024,
            "sdt-v1-6-512": 23_373_352,
            "sdt-v1-8-512": 29_689_384,
            "sdt-v1-10-512": 36_005_416,
            "sdt-v1-8-768": 66_338_632,
        },
        construct=SpikeDrivenTransformer,
        published=published,
        sizes=sizes,
        dead_keys=DEAD_KEYS,
        weights=f"{CODE}, README",
        normalisation=IMAGENET,
        needs_calibration=MEMBRANE_RESIDUALS,
    ),
    Family(
        name="sdt-v1-cifar",
        pattern=layout_pattern("sdt(?:-v1)?", "cifar", bare=CIFAR_SIZES),
        examples={"sdt-v1-cifar-2-256": 2_566_954, "sdt-v1-cifar-2-512": 10_233_418},
        construct=SpikeDrivenTransformer,
        published=partial(published, **square(32, num_classes=10, pooling_stat="0011")),
        sizes=sizes,
        dead_keys=DEAD_KEYS,
        weights=f"none published; trained with {CODE}, conf/cifar10",
        normalisation=CIFAR,
        needs_calibration=MEMBRANE_RESIDUALS,
    ),
    Family(
        name="sdt-v1-events",  # CIFAR10-DVS
        pattern=r"sdt(?:-v1)?-events-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples={"sdt-v1-events-2-256": 2_566_666},
        construct=SpikeDrivenTransformer,
        published=partial(
            published, **square(64, num_classes=10, in_channels=2, T=10, pooling_stat="0011", dvs_mode=True)
        ),
        sizes=sizes,
        dead_keys=DEAD_KEYS,
        weights=f"none published; trained with {CODE}, conf/cifar10-dvs",
        normalisation=EVENTS,
        events=True,
        needs_calibration=MEMBRANE_RESIDUALS,
    ),
    Family(
        name="sdt-v1-gesture",  # DVS128 Gesture, whose attention widens nothing
        pattern=r"sdt(?:-v1)?-gesture-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples={"sdt-v1-gesture-2-256": 2_566_923},
        construct=SpikeDrivenTransformer,
        published=partial(published, **square(128, num_classes=11, in_channels=2, T=16, pooling_stat="0111")),
        sizes=sizes,
        dead_keys=DEAD_KEYS,
        weights=f"none published; trained with {CODE}, conf/gesture",
        normalisation=EVENTS,
        events=True,
        needs_calibration=MEMBRANE_RESIDUALS,
    ),
)
