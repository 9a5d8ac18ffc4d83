"""set-timesteps: timestep masks for neuron layers, by label."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from xdsl.dialects.builtin import ArrayAttr, IntAttr

from compiler.ir import spike
from compiler.ir.meaning import NEURONS
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from isa.errors import CStepError


@dataclass(frozen=True)
class SetTimesteps(NetworkPass):
    """Give neuron layers constant timestep masks, which multiply their output (DTS-SNN eq. 5).

        %s = spike.integer_lif %a, @threshold ...                    : !spike.train<T=4, 64x384xi1>
    becomes, with masks="s=1100"
        %s = spike.integer_lif %a, @threshold ... mask=[1, 1, 0, 0]  : !spike.train<T=4, 64x384xi1>

    A mask that a layer already has (a trained one) is replaced.
    """

    name = "set-timesteps"
    keeps: ClassVar[Keeps] = Keeps.LOSSY

    masks: tuple[str, ...] = ()
    """Label and mask of each layer: "block.0.mlp.fc1_lif=1100","block.0.mlp.fc2_lif=1000"."""

    def __post_init__(self) -> None:
        labels = [label for label, _ in self._parted()]
        if repeated := next((label for label in labels if labels.count(label) > 1), None):
            raise CStepError(f"set-timesteps: two masks for {repeated}; it takes one")

    def apply(self, network: Network) -> Network:
        network = network.clone()
        layers = {op.label: op for op in network.operations() if isinstance(op, NEURONS)}
        if not layers:
            raise CStepError("set-timesteps: the network has no neuron layers")
        for label, mask in self._parted():
            if label not in layers:
                near = get_close_matches(label, layers) or list(layers)[:3]
                raise CStepError(f"set-timesteps: no neuron layer is called {label}; did you mean {' or '.join(near)}?")
            _set(layers[label], mask)
        return network

    def _parted(self) -> list[tuple[str, str]]:
        """Labels and masks. Raises CStepError for what is neither."""
        parted: list[tuple[str, str]] = []
        for item in self.masks:
            label, _, mask = item.rpartition("=")
            if not label or not mask or set(mask) - {"0", "1"}:
                raise CStepError(f'set-timesteps: masks={item}; it must read "label=1100", a 0 or 1 for every timestep')
            parted.append((label, mask))
        return parted


def _set(op: spike.SpikeOperation, mask: str) -> None:
    steps = op.result_type.steps
    if steps is None:
        raise CStepError(f"set-timesteps: {op.label} is the same at every timestep; mask it before it is hoisted")
    if len(mask) != steps:
        raise CStepError(f"set-timesteps: {op.label}={mask}: {len(mask)} timesteps; the layer has T={steps}")
    if "0" not in mask:
        op.properties.pop("mask", None)
    else:
        op.properties["mask"] = ArrayAttr([IntAttr(int(each)) for each in mask])
