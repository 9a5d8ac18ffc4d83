"""In what two runs of integer modules can be compared, where passes took timesteps and channels away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.ir import spike
from compiler.ir.meaning import NEURONS, STREAMS, Run
from compiler.ir.network import Network
from compiler.ir.types import shaped


@dataclass(frozen=True)
class Scope:
    """What of a reference's currents and streams, by label, is not one of every timestep and channel."""

    same: set[str] = field(default_factory=set[str])
    """The same at every timestep."""
    guards: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """`after` and `threshold` of the guard behind a layer of neurons whose silent channels need not be computed."""

    @classmethod
    def of(cls, network: Network) -> Scope:
        """The scope of a module's runs."""
        return cls(the_same(network), _guards_of(network))

    def both(
        self, label: str, run: Run, before: NDArray[Any], after: NDArray[Any], same: set[str] | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both, [T, ...] or what is the same at every timestep, as far as they can be compared.

        That is at timesteps that both have and that ran, in channels that are computed. `run` is the reference's, and
        `same` says what is the same at every timestep in the other module; None: a run on the emulator, where that is
        computed once, and channels that a guard silences, or tokens that are not kept, are not.
        """
        sizes = before.shape if label in self.same else before.shape[1:]
        before, after = before.reshape(-1, *sizes), after.reshape(-1, *sizes)
        steps = min(len(before), len(after))
        if same is not None and label in self.same | same:
            steps = max(len(before), len(after))
            before, after = (np.broadcast_to(each, (steps, *sizes)) for each in (before, after))
        steps = min(steps, run.steps or steps)
        before, after = before[:steps], after[:steps]
        if label in self.guards and same is None:
            silenced = _silenced(run.spikes[label], *self.guards[label])[:steps]
            before, after = (np.where(silenced, 0, each) for each in (before, after))
        if label in run.kept and same is None:
            kept = run.kept[label][:steps].reshape(*before.shape[:-1], 1)
            before, after = (np.where(kept, each, 0) for each in (before, after))
        return before, after


def the_same(network: Network) -> set[str]:
    """Neurons and streams that are the same at every timestep."""
    recorded = (op for op in network.operations() if isinstance(op, NEURONS + STREAMS))
    return {op.label for op in recorded if shaped(op.results[0].type).steps is None}


def _guards_of(network: Network) -> dict[str, tuple[int, int]]:
    """`after` and `threshold` of the guards right behind neurons that skip columns, by the neurons' label."""
    found: dict[str, tuple[int, int]] = {}
    for op in network.operations():
        if isinstance(op, spike.Guard) and op.get("skips") != "rows":
            neurons = op.operands[0].owner
            if isinstance(neurons, NEURONS):
                found[neurons.label] = op.get("after"), op.get("threshold")
    return found


def _silenced(spikes: NDArray[Any], after: int, threshold: int) -> NDArray[np.bool_]:
    """Where a guard of these spikes or counts [T, ..., C] makes them 0, whatever they are: [T, 1..., C]."""
    early = spikes[:after].astype(np.int64).reshape(-1, spikes.shape[-1])
    bits = sum(((early >> plane) & 1).sum(axis=0) for plane in range(int(early.max(initial=1)).bit_length()))
    late = np.arange(len(spikes)).reshape(-1, *[1] * (spikes.ndim - 1)) >= after
    return late & (np.asarray(bits) <= threshold)
