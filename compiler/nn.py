"""What model code imports to be trained with fewer timesteps or tokens, and what reads it off afterwards (torch only).

Datta, Liu, Beerel (DTS-SNN), equations 1 to 8: a trainable score a layer says at which timesteps its spikes count.

    model = with_timesteps(Spikformer(...), 4)
    loss = cross_entropy(model(images), labels) + timestep_loss(model)

The compiler takes the masks as constants; docs/timesteps.md says how to train them. Tokens that halt (STAS) are in
compiler/halting.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from compiler.halting import halting_of as halting_of
from compiler.halting import ponder_loss as ponder_loss
from compiler.halting import token_depths as token_depths
from compiler.halting import tokens_used as tokens_used
from compiler.halting import with_halting as with_halting
from compiler.halting import with_integrated_patch_splitting as with_integrated_patch_splitting
from compiler.zoo.neuron import LIF
from isa.errors import CStepError

TIME_SCORE = "time_score"
"""The parameter's name, on a neuron or in a `DynamicTimeSteps`: its state_dict key ends in it."""
GROUPS = ("sps", "qkv", "attn", "mlp")
"""Groups of neurons that a mask loss can be for (section III-B)."""
PENALISED = ("qkv", "mlp")
"""Those that reached the paper's best accuracy (table III)."""
ROUNDING = 1e-5
"""More than float32 loses in summing a score."""

M = TypeVar("M", bound=nn.Module)


class ScoreThreshold(torch.autograd.Function):
    """Forward: 1 where score >= 1, else 0 (eq. 5). Backward: 1 where 0 < score < 2, else 0 (eq. 6)."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return (score >= 1).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (score,) = ctx.saved_tensors
        return grad_outputs[0] * ((score > 0) & (score < 2))


def time_mask(time_score: Tensor) -> Tensor:
    """TM [T] of 0 and 1 from the parameter TP [T]: TS[t] = sum over s >= t of TP[s], TM[t] = TS[t] >= 1 (eq. 4, 5).

    Summed from the last timestep on, in the parameter's own float type.
    """
    score = time_score.flip(0).cumsum(0).flip(0)
    return cast("Callable[[Tensor], Tensor]", ScoreThreshold.apply)(score)


def first_score(timesteps: int, start: int | None = None) -> Tensor:
    """TP [T], positive, under which the first `start` timesteps count: half of them by default, as the paper advises.

    All of TS lies evenly between 0 and 2, where the threshold has a gradient.
    """
    start = max(1, timesteps // 2) if start is None else start
    if timesteps < 1 or not 1 <= start <= timesteps:
        raise CStepError(f"time score of {timesteps} timesteps, {start} of them at the start; expected 1 <= start <= T")
    score = torch.full((timesteps,), 1 / timesteps)
    score[-1] = 1 + (start - timesteps + 0.5) / timesteps
    return score


def masked(train: Tensor, time_score: Tensor) -> Tensor:
    """A train [T, ...] times its mask (eq. 7). Raises CStepError where the score has another T."""
    steps = time_score.numel()
    if train.shape[0] != steps:
        raise CStepError(f"{TIME_SCORE} of {steps} timesteps on a train {list(train.shape)}; its T must be {steps}")
    return train * time_mask(time_score).to(train.dtype).reshape(-1, *[1] * (train.dim() - 1))


class DynamicTimeSteps(nn.Module):
    """Spikes [T, ...] -> those of the timesteps that count (DTS-SNN, section III-A); stands right behind a neuron.

    `start` timesteps count before training, half of them by default. Neurons that are there already get the same from
    `with_timesteps`, which moves no state_dict key.

    Raises CStepError for a train of another T.
    """

    def __init__(self, timesteps: int, start: int | None = None) -> None:
        super().__init__()
        self.time_score = nn.Parameter(first_score(timesteps, start))

    def forward(self, x: Tensor) -> Tensor:
        return masked(x, self.time_score)

    def extra_repr(self) -> str:
        return f"mask={spelled(mask_of(self))}"


class TriangleSpike(torch.autograd.Function):
    """Forward: 1 where membrane > threshold, else 0.

    Backward: gamma / threshold * max(0, 1 - |membrane / threshold - 1|), a triangle (section II-A).
    """

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: float, gamma: float) -> Tensor:
        ctx.save_for_backward(membrane)
        ctx.threshold, ctx.gamma = threshold, gamma
        return (membrane > threshold).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (membrane,) = ctx.saved_tensors
        slope = (1 - (membrane / ctx.threshold - 1).abs()).clamp(min=0)
        return grad_outputs[0] * (ctx.gamma / ctx.threshold) * slope, None, None


class ThresholdLIF(LIF):
    """DTS-SNN's neuron: currents [T, ...] -> values [T, ...] in {0, V_th} (eq. 1, 2).

        H = lambda * U + x
        O = V_th where H > V_th, else 0
        U = H - O

    lambda is `leak`, V_th is `v_threshold`. lambda * U is evaluated as U - U / tau with tau = 1 / (1 - lambda), as
    `spike.lif` does. The surrogate gradient is a triangle of height gamma / V_th; the paper prints no gamma, 1 is ours.
    The reset is kept out of the gradient, as in the zoo's neuron.

    Raises CStepError for a leak outside 0..1 and a threshold that is not positive.
    """

    def __init__(self, leak: float = 0.5, v_threshold: float = 1.0, gamma: float = 1.0) -> None:
        if not (0 <= leak <= 1 and v_threshold > 0):
            raise CStepError(
                f"ThresholdLIF: leak={leak}, v_threshold={v_threshold}; expected a leak of 0..1, a positive threshold"
            )
        tau = 1 / (1 - leak) if leak < 1 else float("inf")
        super().__init__(tau, v_threshold, v_reset=None, decay_input=False)
        self.gamma = gamma

    def neuronal_fire(self) -> Tensor:
        """V_th where the charged membrane is above it."""
        fire = cast("Callable[[Tensor, float, float], Tensor]", TriangleSpike.apply)
        return fire(self.v, self.v_threshold, self.gamma) * self.v_threshold

    def neuronal_reset(self, spike: Tensor) -> None:
        """Subtract what was emitted."""
        self.v = self.v - spike.detach()


def with_timesteps(model: M, timesteps: int, *, start: int | None = None, layers: Collection[str] | None = None) -> M:
    """Give neurons of a model a time score, in place; what they put out is masked by it from then on.

    Neurons are the compiler's: the zoo's, SpikingJelly's in multi-step mode, `ThresholdLIF`, any that charges and
    fires. Every key of the state_dict stays; `<neuron>.time_score` [T] is added. `start` timesteps count before
    training (half of them by default; T for a model that is trained already). `layers` names the neurons, all by
    default. Those that have a score keep it. Returns the model.

    Raises CStepError for a model without neurons, a name that is no neuron's, single-step mode, and a score that is
    there already with another T.
    """
    from compiler.frontend.neurons import neurons_of, require_multi_step

    neurons = dict(neurons_of(model))
    unknown = [name for name in layers or () if name not in neurons]
    if unknown or not neurons:
        found = ", ".join(neurons) or "none"
        raise CStepError(f"{type(model).__name__}: {', '.join(unknown) or 'it'} has no neuron; its neurons: {found}")
    score = first_score(timesteps, start)
    for name in neurons if layers is None else layers:
        neuron = neurons[name]
        require_multi_step(neuron, name)
        length = score_of(neuron).numel() if has_timesteps(neuron) else timesteps
        if length != timesteps:
            raise CStepError(f"{name}.{TIME_SCORE} has {length} timesteps already, not {timesteps}")
    for name in neurons if layers is None else layers:
        if not has_timesteps(neurons[name]):
            neurons[name].register_parameter(TIME_SCORE, nn.Parameter(score.clone()))
            neurons[name].register_forward_hook(_mask_output)
    return model


def _mask_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The forward hook of a neuron with a score."""
    return masked(output, score_of(module))


def has_timesteps(module: nn.Module) -> bool:
    """Whether `with_timesteps` gave this very neuron a score."""
    return _mask_output in _hooks(module).values()


def unmasked(neuron: nn.Module) -> nn.Module:
    """A copy of a neuron as it was before `with_timesteps`."""
    bare = copy.deepcopy(neuron)
    if has_timesteps(bare):
        hooks = _hooks(bare)
        for key in [key for key, hook in hooks.items() if hook is _mask_output]:
            del hooks[key]
        delattr(bare, TIME_SCORE)
    return bare


def _hooks(module: nn.Module) -> dict[int, Any]:
    return vars(module)["_forward_hooks"]


def score_of(module: nn.Module) -> Tensor:
    """The parameter TP [T] of a neuron with a score, or of a `DynamicTimeSteps`."""
    return module.get_parameter(TIME_SCORE)


def mask_of(module: nn.Module) -> tuple[int, ...]:
    """The mask of such a module, one 0 or 1 a timestep."""
    return tuple(int(kept) for kept in time_mask(score_of(module).detach()).tolist())


def spelled(mask: Collection[int]) -> str:
    """`1100`."""
    return "".join(map(str, mask))


def scored(model: nn.Module) -> dict[str, nn.Module]:
    """What has a time score, by path, in the model's order. Raises CStepError where nothing has."""
    found = {
        path: module
        for path, module in model.named_modules()
        if has_timesteps(module) or isinstance(module, DynamicTimeSteps)
    }
    if not found:
        raise CStepError(f"{type(model).__name__} has no time score; call with_timesteps(model, T) first")
    return found


def timesteps(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The mask of every neuron layer that has one, by the neuron's path: {"block.0.mlp.fc1_lif": (1, 1, 0, 0)}."""
    return {path: mask_of(module) for path, module in scored(model).items()}


def average_timesteps(model: nn.Module) -> float:
    """T_avg (eq. 3): the mean over the layers of the number of timesteps that count."""
    masks = timesteps(model)
    return sum(map(sum, masks.values())) / len(masks)


def timestep_loss(model: nn.Module, weight: float = 1e-6, groups: Collection[str] = PENALISED) -> Tensor:
    """The mask loss (eq. 8): `weight` times the sum of the masks of the layers in `groups`, a scalar with gradient.

    The paper's weight lambda_m is 1e-6 over hundreds of epochs. Raises CStepError for a group that is none of GROUPS,
    and where no layer is in any of them.
    """
    chosen = [module for path, module in scored(model).items() if group_of(path) in groups]
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise CStepError(f"timestep_loss: no group is called {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if not chosen:
        raise CStepError(f"timestep_loss: {type(model).__name__} has no layer with a time score in {', '.join(groups)}")
    return weight * torch.stack([time_mask(score_of(module)).sum() for module in chosen]).sum()


@torch.no_grad()
def keep_prefixes(model: nn.Module, least: int = 0) -> None:
    """Move time scores, in place, to where masks are the first n timesteps, n >= `least`; call it after a step.

    Only a TP below 0 makes holes, timesteps that count behind one that does not; a hole saves nothing, since the
    membrane is needed behind it. `least` 1 keeps layers from being switched off altogether. Both are ours: the paper
    starts from positive scores and leaves the rest to training.
    """
    for module in scored(model).values():
        score = score_of(module)
        score.clamp_(min=0)
        if least:
            score[least - 1] += (1 + ROUNDING - score[least - 1 :].sum()).clamp(min=0)


def group_of(path: str) -> str:
    """The group of a neuron, by its path or label: mlp; in attention qkv or attn; sps for all else.

    Queries, keys and values are told by their names, `q_lif` or `qkv_spike`. Stems, downsampling, convolution blocks
    and neurons before a head count as sps.
    """
    parts = path.lower().split(".")
    if any("mlp" in part for part in parts[:-1]):
        return "mlp"
    for place, part in enumerate(parts[:-1]):
        if "attn" in part or "attention" in part or part.endswith("ssa"):
            return "qkv" if any(re.match(r"[qkv]{1,3}(_|\d|$)", inner) for inner in parts[place + 1 :]) else "attn"
    return "sps"
