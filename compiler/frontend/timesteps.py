"""Timestep masks of the model (compiler/nn.py) as constants of the IR's neurons."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn
from xdsl.ir import Operation

from compiler.frontend.dimensions import Value, is_time
from compiler.frontend.importer import Importer
from compiler.frontend.neurons import neurons_of
from compiler.ir.meaning import NEURONS
from compiler.ir.spelling import to_attribute
from compiler.nn import TIME_SCORE, DynamicTimeSteps, has_timesteps, mask_of, score_of, spelled, with_timesteps
from isa.errors import CStepError, CStepWarning

Mask = tuple[int, ...]
"""One 0 or 1 a timestep; empty where every timestep counts."""


def neuron_mask(importer: Importer, x: Value, neuron: nn.Module, path: str) -> Mask:
    """The mask of a neuron that reads `x`, where it has a time score."""
    return _mask(importer, x, neuron, path) if has_timesteps(neuron) else ()


def dynamic_timesteps(importer: Importer, x: Value, layer: DynamicTimeSteps, path: str) -> Value:
    """A layer of its own: its mask becomes that of the neuron right before it."""
    before = cast(fx.Node, cast(fx.Node, importer.node).args[0])
    op = x.ssa.owner
    if not isinstance(op, Operation) or not isinstance(op, NEURONS) or len(before.users) != 1:
        raise importer.refuse(
            f"{path}: DynamicTimeSteps must stand right behind a neuron, and alone read it; or use with_timesteps"
        )
    mask = _mask(importer, x, layer, path)
    known = op.get("mask")
    if mask:
        op.properties["mask"] = to_attribute(tuple(a & b for a, b in zip(known, mask, strict=True)) if known else mask)
    return x


def _mask(importer: Importer, x: Value, module: nn.Module, path: str) -> Mask:
    """The mask of a time score on a train; empty where it keeps all. Warns of holes."""
    score, steps = score_of(module).detach(), x.type.steps
    key = f"{path}.{TIME_SCORE}"
    if steps is not None and not is_time(x.dimensions[0]):
        raise importer.refuse(f"{path}: time must be the first dimension of what has a time score")
    if score.dim() != 1 or score.numel() != (steps or 1):
        raise importer.refuse(
            f"{key} has the shape {list(score.shape)}; the neuron has T={steps or 1}, so it must be [{steps or 1}]"
        )
    if not bool(torch.isfinite(score).all()):
        raise importer.refuse(f"{key} holds NaN or infinity")
    mask = mask_of(module)
    if all(mask):
        return ()
    if steps is None:
        raise importer.refuse(f"{key} masks a neuron without timesteps")
    if list(mask) != sorted(mask, reverse=True):
        warnings.warn(
            f"{key}: the mask {spelled(mask)} has holes (a trained score fell below 0); timesteps up to its last 1 "
            "are computed",
            CStepWarning,
            stacklevel=2,
        )
    return mask


def hold_time_scores(model: nn.Module, state: Mapping[str, Tensor], where: str, timesteps: int | None = None) -> None:
    """Give those neurons a time score for which `state` has one, so that it can be put into the model.

    `timesteps` is the model's T, where it is known before the model is run. Raises CStepError, naming the key, where a
    score is of another length; `where` names the file. Keys of what is no neuron are left for the loader to refuse.
    """
    ending = f".{TIME_SCORE}"
    keys = [key for key in state if key.endswith(ending) and key not in model.state_dict()]
    neurons = dict(neurons_of(model)) if keys else {}
    for key in keys:
        score, neuron = state[key], key.removesuffix(ending)
        steps = score.numel() if timesteps is None else timesteps
        if score.dim() != 1 or score.numel() != steps or not steps:
            said = "" if timesteps is None else f", and the model has T={timesteps}"
            raise CStepError(f"{where}: {key} has the shape {list(score.shape)}; it must be [T]{said}")
        if neuron in neurons:
            with_timesteps(model, steps, layers=(neuron,))
