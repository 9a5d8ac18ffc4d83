"""Tokens that stop early, for training (torch only): STAS' integrated patch splitting and token halting.

STAS (spatio-temporal adaptive computation time), sections 3.1 to 3.3; equation numbers are its. Neither adds a
parameter: what is trained is the plain model, and a settings file says how it halts.

    model = with_halting(with_integrated_patch_splitting(Spikformer(...)), alpha=-5.0, beta=0.0)
    loss = cross_entropy(model(images), labels) + ponder_loss(model, 1e-3)

docs/halting.md says how to train them. Shapes: T timesteps, B images, N tokens, C channels, L blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, fx, nn

from compiler.zoo.spikformer import Spikformer
from compiler.zoo.spikformer_convolutional import ConvolutionalSpikformer
from compiler.zoo.spikingformer import Spikingformer
from isa.errors import CStepError

Classifies = Literal["weighted", "mean"]
HALTING = "halting"
"""The attribute of a model that halts."""
HALTED = (Spikformer, ConvolutionalSpikformer, Spikingformer)
"""Architectures with `patch_embed`, `block` and `head`."""

M = TypeVar("M", bound=nn.Module)


def with_integrated_patch_splitting(model: M) -> M:
    """Show every block the same at each timestep: what the patch splitting fires, summed over time (section 3.1).

    In place; no key of the state_dict changes. Of a Spikformer, the counts that leave the patch splitting are summed.
    A Spikingformer's leave it as membrane currents, which are no spikes: there the spikes in front of its last
    convolution are, and that convolution runs once. Returns the model.

    Raises CStepError for other architectures, and for events, which are another image at every timestep.
    """
    _require(model, "with_integrated_patch_splitting")
    if getattr(model, "events", False):
        raise CStepError(
            f"{type(model).__name__}: its input is events, another image at every timestep; "
            "only an image that stays the same can be integrated"
        )
    cast(Any, model).patch_embed.integrated = True
    return model


def _require(model: nn.Module, what: str) -> None:
    if not isinstance(model, HALTED):
        known = ", ".join(kind.__name__ for kind in HALTED)
        raise CStepError(f"{what}: {type(model).__name__} is not known; it takes the zoo's {known}")


@dataclass(eq=False)
class Halting:
    """How a model halts tokens, and what it did in its last forward.

    At block l (from 0) and timestep t, with H_0 = 0 and x_l [T, B, N, C] the block's output:

        keep_l = H_l < 1 - epsilon
        h_l = sigmoid(alpha * x_l[channel 0] + beta) * keep_l           (3)
        H_l+1[t] = H_l[t] + sum over t' <= t of h_l[t']                 (4)
        p_l = keep_l * (1 - H_l, where H_l+1 >= 1 - epsilon or l is the last block; else h_l)    (6, 7)

    A halted token is zero: in what the block reads, in what its neurons fire, in what it puts out. Gradients go through
    h and p; the masks are constants.
    """

    alpha: float
    beta: float
    epsilon: float
    output: Classifies
    channels_last: bool
    """Tokens are [T, B, N, C]; else [T, B, C, N] or [T, B, C, H, W]."""
    blocks: int

    keeps: list[Tensor] = field(default_factory=list[Tensor])
    """keep_l [T, B, N] of 0 and 1 for each block."""
    total: Tensor | None = None
    """H on entry of the next block, [T, B, N]."""
    weighted: Tensor | None = None
    """The sum of p_l * x_l over the blocks so far (8), shaped like x_l."""
    ponder: Tensor | None = None
    """Blocks that the token went through, and its remainder, [T, B, N] (9)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Halting:
        """The rules alone: what the last forward left hangs on its graph, and cannot be copied."""
        return Halting(self.alpha, self.beta, self.epsilon, self.output, self.channels_last, self.blocks)

    def begin(self, module: nn.Module, inputs: Any) -> None:
        """Before the model runs: nothing is halted."""
        self.keeps, self.total, self.weighted, self.ponder = [], None, None, None

    def entered(self, x: Tensor) -> Tensor:
        """keep_l [T, B, N] of the block that reads x."""
        if self.total is None:
            self.total = torch.zeros_like(self.first_channel(x))
        keep = (self.total.detach() < 1 - self.epsilon).to(x.dtype)
        self.keeps.append(keep)
        return keep

    def left(self, x: Tensor, keep: Tensor) -> None:
        """Account for a block that put out x, masked by `keep`."""
        before = self.total
        assert before is not None
        score = torch.sigmoid(self.alpha * self.first_channel(x) + self.beta) * keep
        after = before + score.cumsum(0)
        passes = after.detach() >= 1 - self.epsilon
        halts = (keep > 0) & (passes | (len(self.keeps) == self.blocks))
        remainder = torch.where(halts, 1 - before, torch.zeros_like(before))
        part, pondered = x * self.spread(torch.where(halts, remainder, score), x), keep + remainder
        self.weighted = part if self.weighted is None else self.weighted + part
        self.ponder = pondered if self.ponder is None else self.ponder + pondered
        self.total = after

    def classified(self, module: nn.Module, inputs: Any) -> Tensor | None:
        """Before the classifier: the mean of the weighted sum over timesteps and tokens, [B, C] (8)."""
        if self.output == "mean":
            return None
        assert self.weighted is not None
        return self.weighted.mean((0, 2)) if self.channels_last else self.weighted.flatten(3).mean((0, 3))

    def first_channel(self, x: Tensor) -> Tensor:
        """Channel 0 of every token, [T, B, N]."""
        return x[..., 0] if self.channels_last else x[:, :, 0].flatten(2)

    def spread(self, each: Tensor, x: Tensor) -> Tensor:
        """A number a token [T, B, N], shaped so that it multiplies x."""
        return each.unsqueeze(-1) if self.channels_last else each.reshape(*each.shape[:2], 1, *x.shape[3:])


@dataclass(eq=False)
class _HaltedBlock:
    """The hooks of a block and of its neurons."""

    halting: Halting
    keep: Tensor | None = None
    """While the block runs: which tokens go through it, [T, B, N]."""

    def enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0]
        if isinstance(x, fx.Proxy):
            raise CStepError(
                "the model halts tokens (with_halting); compile the plain model with a settings file that has [halting]"
            )
        self.keep = self.halting.entered(x)
        return x * self.halting.spread(self.keep, x)

    def mask(self, module: nn.Module, inputs: Any, spikes: Tensor) -> Tensor | None:
        """Behind a neuron: halted tokens would still fire by the layer's bias."""
        return None if self.keep is None else spikes * self.halting.spread(self.keep, spikes)

    def leave(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Masked once more: where neurons come before the weights, a block puts out biases."""
        assert self.keep is not None
        x = output * self.halting.spread(self.keep, output)
        self.halting.left(x, self.keep)
        self.keep = None
        return x


def with_halting(model: M, *, alpha: float, beta: float, epsilon: float = 0.01, output: Classifies = "weighted") -> M:
    """Let a model halt tokens, in place; its forward gives logits as before, and no key of the state_dict changes.

    `alpha` and `beta` scale the halting score: -5, 0 (Spikformer), 5, -25 (Spikingformer) and 5, -10 (events) in the
    paper. A token halts at 1 - `epsilon`. The classifier reads the weighted mean over blocks, tokens and timesteps
    (eq. 8), with `output` "mean" the last block's mean as in the plain model. A model that halts already gets the new
    rules. Returns the model.

    Raises CStepError for other architectures than the zoo's Spikformers and Spikingformer, and for an epsilon outside
    0 <= epsilon < 1.
    """
    from compiler.frontend.neurons import neurons_of

    _require(model, "with_halting")
    if not 0 <= epsilon < 1 or output not in get_args(Classifies):
        raise CStepError(
            f"with_halting: epsilon={epsilon}, output={output!r}; expected 0 <= epsilon < 1, "
            f"and {' or '.join(get_args(Classifies))}"
        )
    if halts(model):
        halting = halting_of(model)
        halting.alpha, halting.beta, halting.epsilon, halting.output = alpha, beta, epsilon, output
        return model
    parts: Any = model
    halting = Halting(alpha, beta, epsilon, output, isinstance(model, Spikformer), len(parts.block))
    setattr(model, HALTING, halting)
    model.register_forward_pre_hook(halting.begin)
    parts.head.register_forward_pre_hook(halting.classified)
    for block in parts.block:
        halted = _HaltedBlock(halting)
        block.register_forward_pre_hook(halted.enter)
        block.register_forward_hook(halted.leave)
        for _, neuron in neurons_of(block):
            neuron.register_forward_hook(halted.mask)
    return model


def halts(model: nn.Module) -> bool:
    """Whether `with_halting` was given this very model."""
    return isinstance(getattr(model, HALTING, None), Halting)


def halting_of(model: nn.Module) -> Halting:
    """How a model halts. Raises CStepError where it does not."""
    if not halts(model):
        raise CStepError(f"{type(model).__name__} halts no tokens; call with_halting(model, alpha=..., beta=...) first")
    return cast(Halting, getattr(model, HALTING))


def _ran(model: nn.Module) -> Halting:
    halting = halting_of(model)
    if halting.ponder is None:
        raise CStepError(f"{type(model).__name__} was not run since with_halting; call model(images) first")
    return halting


def ponder_loss(model: nn.Module, weight: float = 1e-3) -> Tensor:
    """`weight` times the ponder loss of the last forward (eq. 9), a scalar with gradient.

    The mean over images, timesteps and tokens of the number of blocks that a token goes through, and its remainder. The
    gradient is the remainder's: it raises the scores of the blocks before. The paper's weight delta_p is 1e-3 for
    CIFAR, 1e-4 for ImageNet.
    """
    ponder = _ran(model).ponder
    assert ponder is not None
    return weight * ponder.mean()


def token_depths(model: nn.Module) -> Tensor:
    """How many blocks each token went through in the last forward, [T, B, N], 1 to L."""
    return torch.stack(_ran(model).keeps).sum(0)


def tokens_used(model: nn.Module) -> float:
    """The part of the tokens that blocks worked on in the last forward: 1 where none was halted."""
    return torch.stack(_ran(model).keeps).mean().item()
