"""Layers that several architectures share, with the keys of the published code.

Shapes: T timesteps, B images, C channels, N = H * W tokens; [T, B, C, *] is [T, B, C, H, W] or [T, B, C, N].
"""

from typing import Literal

from torch import Tensor, nn

from compiler.zoo.neuron import LIF
from isa.errors import CStepError

STAGES: tuple[str, ...] = ("", "1", "2", "3")
"""What follows the keys of a stem's four convolutions."""


class Stem(nn.Module):
    """Four convolutions with norms and neurons, and a fifth with a norm as relative position embedding.

    `halved` says which of the four an overlapping max-pool belongs to: "0011" in the CIFAR layouts. The subclasses say
    in which order all this is run.
    """

    def __init__(self, in_channels: int, embed_dims: int, halved: str, tau: float, threshold: float) -> None:
        super().__init__()
        self.halved = dict(zip(STAGES, (mark == "1" for mark in halved), strict=True))
        widths = (in_channels, embed_dims // 8, embed_dims // 4, embed_dims // 2, embed_dims)
        for stage, inputs, outputs in zip(STAGES, widths, widths[1:], strict=False):
            self.add_module(f"proj_conv{stage}", nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False))
            self.add_module(f"proj_bn{stage}", nn.BatchNorm2d(outputs))
            self.add_module(f"proj_lif{stage}", LIF(tau, threshold))
            if self.halved[stage]:
                self.add_module(f"maxpool{stage}", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.rpe_conv = nn.Conv2d(embed_dims, embed_dims, kernel_size=3, padding=1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(embed_dims)

    def current(self, stage: str, x: Tensor) -> Tensor:
        """Convolution and norm of a stage."""
        return self.get_submodule(f"proj_bn{stage}")(self.get_submodule(f"proj_conv{stage}")(x))

    def spikes(self, stage: str, x: Tensor, steps: int) -> Tensor:
        """The neurons of a stage, on currents [T * B, ...]."""
        return self.get_submodule(f"proj_lif{stage}")(over_time(x, steps)).flatten(0, 1)

    def pooled(self, stage: str, x: Tensor) -> Tensor:
        return self.get_submodule(f"maxpool{stage}")(x) if self.halved[stage] else x


class PatchSplitting(Stem):
    """Images [T, B, in_channels, H, W] -> counts {0, 1, 2} [T, B, C, H / r, W / r] (Spikformer, SPS).

    Max-pools are on spikes, so an OR. The position embedding is spikes, added to the spikes that it was made of. Where
    it is `integrated`, the counts are {0, ..., 2 T}, the same at every timestep.
    """

    integrated = False

    def __init__(self, in_channels: int, embed_dims: int, halved: str, tau: float, threshold: float) -> None:
        super().__init__(in_channels, embed_dims, halved, tau, threshold)
        self.rpe_lif = LIF(tau, threshold)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[0]
        x = x.flatten(0, 1)
        for stage in STAGES:
            x = self.pooled(stage, self.spikes(stage, self.current(stage, x), steps))
        position = self.rpe_lif(over_time(self.rpe_bn(self.rpe_conv(x)), steps))
        x = position + over_time(x, steps)
        return at_every_timestep(x) if self.integrated else x


def at_every_timestep(x: Tensor) -> Tensor:
    """Spikes or counts [T, ...] -> at every timestep, their sum over all timesteps [T, ...] (STAS, section 3.1)."""
    return x.sum(0).unsqueeze(0).repeat(x.shape[0], *[1] * (x.dim() - 1))


def over_time(x: Tensor, steps: int) -> Tensor:
    """[T * B, ...] -> [T, B, ...]."""
    return x.reshape(steps, x.shape[0] // steps, *x.shape[1:])


class ConvolutionalAttention(nn.Module):
    """Spikes or counts [T, B, C, N] -> currents [T * B, C, N]: attention without softmax, by 1-d convolutions.

    (q k^T) v * scale ("scores" first) or q (k^T v) * scale ("values" first) per head, a neuron, and the projection with
    its norm. The subclasses say where the projection's neuron is.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        scale: float,
        first: Literal["scores", "values"],
        tau: float,
        threshold: float,
        attention_threshold: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.first = first
        self.q_conv = nn.Conv1d(dim, dim, kernel_size=1, bias=False)
        self.q_bn = nn.BatchNorm1d(dim)
        self.q_lif = LIF(tau, threshold)

        self.k_conv = nn.Conv1d(dim, dim, kernel_size=1, bias=False)
        self.k_bn = nn.BatchNorm1d(dim)
        self.k_lif = LIF(tau, threshold)

        self.v_conv = nn.Conv1d(dim, dim, kernel_size=1, bias=False)
        self.v_bn = nn.BatchNorm1d(dim)
        self.v_lif = LIF(tau, threshold)
        self.attn_lif = LIF(tau, attention_threshold)

        self.proj_conv = nn.Conv1d(dim, dim, kernel_size=1)
        self.proj_bn = nn.BatchNorm1d(dim)
        self.proj_lif = LIF(tau, threshold)

    def attend(self, x: Tensor) -> Tensor:
        steps, batch, channels, tokens = x.shape

        def heads(spikes: Tensor) -> Tensor:
            split = spikes.transpose(-1, -2).reshape(steps, batch, tokens, self.num_heads, channels // self.num_heads)
            return split.permute(0, 1, 3, 2, 4)

        x = x.flatten(0, 1)
        q = heads(self.q_lif(over_time(self.q_bn(self.q_conv(x)), steps)))
        k = heads(self.k_lif(over_time(self.k_bn(self.k_conv(x)), steps)))
        v = heads(self.v_lif(over_time(self.v_bn(self.v_conv(x)), steps)))

        x = q @ (k.transpose(-2, -1) @ v) if self.first == "values" else (q @ k.transpose(-2, -1)) @ v
        x = (x * self.scale).transpose(3, 4).reshape(steps, batch, channels, tokens)
        x = self.attn_lif(x).flatten(0, 1)
        return self.proj_bn(self.proj_conv(x))


def initialise(module: nn.Module) -> None:
    """The published start: narrow linear layers without bias; convolutions stay as torch makes them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def check_sizes(
    architecture: str, img_size_h: int, img_size_w: int, embed_dims: int, num_heads: int, patch_size: int
) -> None:
    """Refuse what a layout with patches of `patch_size` cannot be built for, before torch does so in its own words."""
    sizes = {"img_size_h": img_size_h, "img_size_w": img_size_w, "embed_dims": embed_dims, "num_heads": num_heads}
    for name, size in sizes.items():
        if size < 1:
            raise CStepError(f"{architecture}: {name}={size} must be positive")
    if img_size_h % patch_size or img_size_w % patch_size:
        patch = f"{patch_size}x{patch_size}"
        raise CStepError(f"{architecture}: image {img_size_h}x{img_size_w} does not divide into patches of {patch}")
    if embed_dims % 8 or embed_dims % num_heads:
        raise CStepError(
            f"{architecture}: embed_dims={embed_dims} must be a multiple of 8 and of num_heads={num_heads}"
        )


def check_patch(architecture: str, patch_size: int, layout: str, halved: str) -> None:
    """Refuse a patch size that is not the one the layout's halvings make."""
    times = halved.count("1")
    if patch_size != 2**times:
        often = {2: "twice", 3: "three times", 4: "four times"}[times]
        raise CStepError(
            f"{architecture}: patch_size={patch_size}, but the {layout} layout halves the image {often}: {2**times}"
        )
