"""Spikformer, CIFAR layout (Zhou et al., ICLR 2023), with the state_dict keys of the published code.

Published checkpoints also carry `block.N.norm1` and `norm2`, two layer norms that the published forward never calls.
They are not built here; the zoo entry names them as dead keys.

Shapes: T timesteps, B images, N tokens, C = embed_dims channels.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from compiler.zoo.family import Argument, Family, defaults, layout_pattern, read_sizes
from compiler.zoo.layers import PatchSplitting, check_patch, check_sizes, initialise
from compiler.zoo.neuron import LIF

HALVED = "0011"


def normalise_tokens(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """BatchNorm over the channels of [TB, N, C], which BatchNorm1d wants in the middle."""
    return norm(x.transpose(-1, -2)).transpose(-1, -2)


class SpikingSelfAttention(nn.Module):
    """Counts [T, B, N, C] -> spikes [T, B, N, C]: (q k^T) * scale v per head, without softmax, then a neuron."""

    def __init__(
        self, dim: int, num_heads: int, scale: float, tau: float, threshold: float, attention_threshold: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.q_linear = nn.Linear(dim, dim)
        self.q_bn = nn.BatchNorm1d(dim)
        self.q_lif = LIF(tau, threshold)

        self.k_linear = nn.Linear(dim, dim)
        self.k_bn = nn.BatchNorm1d(dim)
        self.k_lif = LIF(tau, threshold)

        self.v_linear = nn.Linear(dim, dim)
        self.v_bn = nn.BatchNorm1d(dim)
        self.v_lif = LIF(tau, threshold)
        self.attn_lif = LIF(tau, attention_threshold)

        self.proj_linear = nn.Linear(dim, dim)
        self.proj_bn = nn.BatchNorm1d(dim)
        self.proj_lif = LIF(tau, threshold)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, tokens, channels = x.shape
        shape = (steps, batch, tokens, channels)

        def heads(spikes: Tensor) -> Tensor:
            split = spikes.reshape(steps, batch, tokens, self.num_heads, channels // self.num_heads)
            return split.permute(0, 1, 3, 2, 4)

        x = x.flatten(0, 1)
        q = heads(self.q_lif(normalise_tokens(self.q_bn, self.q_linear(x)).reshape(shape)))
        k = heads(self.k_lif(normalise_tokens(self.k_bn, self.k_linear(x)).reshape(shape)))
        v = heads(self.v_lif(normalise_tokens(self.v_bn, self.v_linear(x)).reshape(shape)))

        attention = (q @ k.transpose(-2, -1)) * self.scale
        x = (attention @ v).transpose(2, 3).reshape(shape)
        x = self.attn_lif(x).flatten(0, 1)
        return self.proj_lif(normalise_tokens(self.proj_bn, self.proj_linear(x)).reshape(shape))


class MLP(nn.Module):
    """Counts [T, B, N, C] -> spikes [T, B, N, C] through `hidden` spiking channels."""

    def __init__(self, dim: int, hidden: int, tau: float, threshold: float) -> None:
        super().__init__()
        self.fc1_linear = nn.Linear(dim, hidden)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc1_lif = LIF(tau, threshold)

        self.fc2_linear = nn.Linear(hidden, dim)
        self.fc2_bn = nn.BatchNorm1d(dim)
        self.fc2_lif = LIF(tau, threshold)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, tokens, _ = x.shape
        x = normalise_tokens(self.fc1_bn, self.fc1_linear(x.flatten(0, 1)))
        x = self.fc1_lif(x.reshape(steps, batch, tokens, -1))
        x = normalise_tokens(self.fc2_bn, self.fc2_linear(x.flatten(0, 1)))
        return self.fc2_lif(x.reshape(steps, batch, tokens, -1))


class Block(nn.Module):
    """Attention and MLP, each added to its input: the counts grow by at most one per addition."""

    def __init__(self, attention: SpikingSelfAttention, mlp: MLP) -> None:
        super().__init__()
        self.attn = attention
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Spikformer(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes], the same image shown at each of T timesteps.

    The defaults are the published CIFAR-10 settings (Spikformer-4-384).

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
    ) -> None:
        super().__init__()
        check_patch("Spikformer", patch_size, "CIFAR", HALVED)
        check_sizes("Spikformer", img_size_h, img_size_w, embed_dims, num_heads, patch_size)
        self.T = T
        self.num_classes = num_classes
        self.depths = depths
        self.patch_embed = PatchSplitting(in_channels, embed_dims, HALVED, tau, threshold)
        self.block = nn.ModuleList(
            Block(
                SpikingSelfAttention(embed_dims, num_heads, attention_scale, tau, threshold, attention_threshold),
                MLP(embed_dims, int(embed_dims * mlp_ratios), tau, threshold),
            )
            for _ in range(depths)
        )
        self.head = nn.Linear(embed_dims, num_classes)
        self.apply(initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """[T, B, in_channels, H, W] -> the mean over tokens at every timestep [T, B, C]."""
        x = self.patch_embed(x).flatten(-2).transpose(-1, -2)
        for block in self.block:
            x = block(x)
        return x.mean(2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.head(self.forward_features(x).mean(0))


def published(named: Mapping[str, int]) -> Mapping[str, Argument]:
    """The constructor's defaults are the published CIFAR-10 settings, where a head is 32 channels wide (384: 12)."""
    return defaults(Spikformer, num_heads=max(1, named["embed_dims"] // 32))


def sizes(state: Mapping[str, Tensor]) -> Mapping[str, Argument]:
    return read_sizes(state, "patch_embed.proj_conv.weight", "block.0.mlp.fc1_linear.weight")


FAMILIES = (
    Family(
        name="spikformer",
        pattern=layout_pattern("spikformer", "cifar", bare=r"(?!8-(?:384|512|768)$)\d+-\d+"),
        examples={
            "spikformer-4-384": 9_324_730,
            "spikformer-4-256": 4_155_178,
            "spikformer-2-384": 5_765_050,
            "spikformer-2-256": 2_568_490,
            "spikformer-2-64": 164_050,
        },
        construct=Spikformer,
        published=published,
        sizes=sizes,
        dead_keys=(r"block\.\d+\.norm[12]\.(weight|bias)", r"(patch_embed\.)?pos_embed\d*"),
        weights="none published for CIFAR; trained with github.com/ZK-Zhou/spikformer, cifar10/train.py",
    ),
)
