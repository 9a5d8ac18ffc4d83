"""Spikformer, ImageNet and event layouts (Zhou et al., ICLR 2023), with the state_dict keys of the published code.

Beside the CIFAR layout: the image is halved four times, and tokens stay behind channels, so that the linear layers of
the blocks are convolutions of kernel 1, `*_conv` instead of `*_linear`, those of q, k and v without bias.

Published event checkpoints also carry `pos_embed` and `norm`, which the published forward never reads.

Shapes: T timesteps, B images, C = embed_dims channels, N = H * W tokens.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from compiler.zoo.family import EVENTS, IMAGENET, Argument, Family, defaults, layout_pattern, read_sizes
from compiler.zoo.layers import ConvolutionalAttention, PatchSplitting, check_patch, check_sizes, initialise, over_time
from compiler.zoo.neuron import LIF

HALVED = "1111"


class SpikingSelfAttention(ConvolutionalAttention):
    """Counts [T, B, C, N] -> spikes [T, B, C, N]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_lif(over_time(self.attend(x), x.shape[0]))


class MLP(nn.Module):
    """Counts [T, B, C, *] -> spikes [T, B, C, *] through `hidden` spiking channels; * is H, W or, of events, N."""

    def __init__(self, dim: int, hidden: int, events: bool, tau: float, threshold: float) -> None:
        super().__init__()
        convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if events else (nn.Conv2d, nn.BatchNorm2d)
        self.fc1_conv = convolution(dim, hidden, kernel_size=1)
        self.fc1_bn = norm(hidden)
        self.fc1_lif = LIF(tau, threshold)

        self.fc2_conv = convolution(hidden, dim, kernel_size=1)
        self.fc2_bn = norm(dim)
        self.fc2_lif = LIF(tau, threshold)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        x = self.fc1_lif(over_time(self.fc1_bn(self.fc1_conv(x.flatten(0, 1))), steps))
        return self.fc2_lif(over_time(self.fc2_bn(self.fc2_conv(x.flatten(0, 1))), steps))


class Block(nn.Module):
    """Attention and MLP, each added to its input [T, B, C, *]: the counts grow by at most one per addition."""

    def __init__(self, attention: SpikingSelfAttention, mlp: MLP) -> None:
        super().__init__()
        self.attn = attention
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x.flatten(3)).reshape(x.shape)
        return x + self.mlp(x)


class ConvolutionalSpikformer(nn.Module):
    """Images [B, in_channels, H, W], the same at each of T timesteps, or event counts [B, T, in_channels, H, W]
    -> logits [B, num_classes].

    The defaults are those of the published ImageNet code (Spikformer-8-512).

    Raises CStepError where the sizes do not fit each other.
    """

    def __init__(
        self,
        img_size_h: int = 224,
        img_size_w: int = 224,
        patch_size: int = 16,
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
        attention_scale: float = 0.125,
        events: bool = False,
    ) -> None:
        super().__init__()
        check_patch("Spikformer", patch_size, "event" if events else "ImageNet", HALVED)
        check_sizes("Spikformer", img_size_h, img_size_w, embed_dims, num_heads, patch_size)
        self.T = T
        self.num_classes = num_classes
        self.depths = depths
        self.events = events
        first = "scores" if events else "values"
        self.patch_embed = PatchSplitting(in_channels, embed_dims, HALVED, tau, threshold)
        self.block = nn.ModuleList(
            Block(
                SpikingSelfAttention(
                    embed_dims, num_heads, attention_scale, first, tau, threshold, attention_threshold
                ),
                MLP(embed_dims, int(embed_dims * mlp_ratios), events, tau, threshold),
            )
            for _ in range(depths)
        )
        self.head = nn.Linear(embed_dims, num_classes)
        self.apply(initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """[T, B, in_channels, H, W] -> the mean over tokens at every timestep [T, B, C]."""
        x = self.patch_embed(x)
        if self.events:
            x = x.flatten(3)
        for block in self.block:
            x = block(x)
        return x.flatten(3).mean(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.events else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.forward_features(x).mean(0))


def published_imagenet(_named: Mapping[str, int]) -> Mapping[str, Argument]:
    """The constructor's defaults: 8 heads at every width."""
    return defaults(ConvolutionalSpikformer)


def published_events(_named: Mapping[str, int]) -> Mapping[str, Argument]:
    """CIFAR10-DVS as published, with its frames of 128x128 and T = 16."""
    size: dict[str, Argument] = {"img_size_h": 128, "img_size_w": 128, "in_channels": 2, "num_classes": 10, "T": 16}
    return defaults(ConvolutionalSpikformer, num_heads=16, attention_scale=0.25, events=True, **size)


def sizes(state: Mapping[str, Tensor]) -> Mapping[str, Argument]:
    return read_sizes(state, "patch_embed.proj_conv.weight", "block.0.mlp.fc1_conv.weight")


NORMS = r"block\.\d+\.norm[12]\.(weight|bias)"

FAMILIES = (
    Family(
        name="spikformer-imagenet",
        pattern=layout_pattern("spikformer", "imagenet", bare=r"8-(?:384|512|768)"),
        examples={"spikformer-8-384": 16_816_024, "spikformer-8-512": 29_689_384, "spikformer-8-768": 66_338_632},
        construct=ConvolutionalSpikformer,
        published=published_imagenet,
        sizes=sizes,
        dead_keys=(NORMS,),
        weights="none published; trained with github.com/ZK-Zhou/spikformer, imagenet/train.py",
        normalisation=IMAGENET,
    ),
    Family(
        name="spikformer-events",
        pattern=r"spikformer-events-(?P<depths>\d+)-(?P<embed_dims>\d+)",
        examples={"spikformer-events-2-256": 2_566_666},
        construct=ConvolutionalSpikformer,
        published=published_events,
        sizes=sizes,
        dead_keys=(NORMS, r"norm\.(weight|bias)", "pos_embed"),
        weights="none published; trained with github.com/ZK-Zhou/spikformer, cifar10dvs/train.py",
        normalisation=EVENTS,
        events=True,
    ),
)
