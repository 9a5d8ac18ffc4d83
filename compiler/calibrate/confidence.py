"""How sure a network is of its logits: the confidences that exits are calibrated on, and what they take of integers.

Logits here are real, in the model's own scale: after n of T timesteps, integers * scale * T / n.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


def margin(logits: Reals) -> Reals:
    """z - m of logits [..., M]: how far the largest lies above the mean of the others."""
    largest = logits.max(axis=-1)
    return largest - (logits.sum(axis=-1) - largest) / (logits.shape[-1] - 1)


def variance_of_others(logits: Reals) -> float:
    """LightSoftmax's sigma squared: the variance of the logits [B, M] that were not predicted.

    Around each input's own mean of them, and then the mean over the inputs: the mean is corrected at run time (C-STEP
    eq. 4), so that only what is left around it belongs in the constant.
    """
    others = np.sort(logits, axis=-1)[:, :-1]
    return float(others.var(axis=-1).mean())


def light_softmax_confidence(logits: Reals, variance: float) -> Reals:
    """cs = 1 / (1 + (M - 1) exp(m - z + variance / 2)) of logits [..., M] (C-STEP eq. 3-5, reduced)."""
    exponent = margin(logits) - log(logits.shape[-1] - 1) - variance / 2
    return 1 / (1 + np.exp(-exponent))


def margin_of(tau: float, variance: float, classes: int) -> float:
    """The z - m at which LightSoftmax's confidence is tau."""
    return log(tau) - log1m(tau) + log(classes - 1) + variance / 2


def tau_of(margin: float, variance: float, classes: int) -> float:
    """LightSoftmax's confidence at z - m = margin; below 1 however large that is."""
    exponent = margin - log(classes - 1) - variance / 2
    return min(1 / (1 + exp(-exponent)) if exponent > -700 else exp(exponent), 1 - 2.0**-53)


def log1m(tau: float) -> float:
    """ln(1 - tau)."""
    return float(np.log1p(-tau))


def softmax_confidence(logits: Reals) -> Reals:
    """The largest probability (C-STEP eq. 1, SEENN-I)."""
    return np.exp(_log_probabilities(logits)).max(axis=-1)


def entropy_confidence(logits: Reals) -> Reals:
    """1 - E, E the entropy of the probabilities over ln M (DT-SNN)."""
    logs = _log_probabilities(logits)
    return 1 + (np.exp(logs) * logs).sum(axis=-1) / log(logits.shape[-1])


def _log_probabilities(logits: Reals) -> Reals:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def confidence(criterion: str, logits: Reals, variance: float) -> Reals:
    """The confidence that a criterion compares with its tau, of logits [..., M]."""
    if criterion == "lightsoftmax":
        return light_softmax_confidence(logits, variance)
    return softmax_confidence(logits) if criterion == "softmax" else entropy_confidence(logits)
