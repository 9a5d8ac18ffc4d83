"""quantise: from real numbers to integers with proven bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.passes.network_pass import Keeps, NetworkPass
from compiler.passes.quantise import features, neurons, values, weighted
from compiler.passes.quantise.quantiser import Options, Quantiser
from compiler.passes.rewriting import refuse
from isa.errors import CStepError


@dataclass(frozen=True)
class Quantise(NetworkPass):
    """Weights to int8, currents and membranes to integers in units of scale / 2^f, attention exact, one head scale.

        %c = spike.conv %s, @w, @b kernel=3, padding=1 : !spike.train<T=4, 8x8x64xf32>
        %l = spike.lif %c tau=2.0, threshold=1.0       : !spike.train<T=4, 8x8x64xi1>
    becomes
        %c = spike.conv %s, @w.int8 kernel=3, padding=1                 : !spike.train<T=4, 8x8x64xint<-912, 871>>
        %a = spike.align %c, @b.int32 shift=2                           : !spike.train<T=4, 8x8x64xint<-3641, 3502>>
        %l = spike.integer_lif %a, @w.threshold multiplier=1, divisor=1 : !spike.train<T=4, 8x8x64xi1>

    With scale s of a channel's weights (symmetric min-max, s = max|w| / 127) and s_in of its input, a current is
    x = (sum << f) + round(b 2^f / (s s_in)), and fires at ceil(threshold 2^f / (s s_in)). f is the layer's: the largest
    that keeps the thresholds of nine in ten channels below 2^13 and all currents below 2^24; it is negative (a shift
    right, half up) where the input is an image. A channel whose weights are so small that its threshold would still
    pass 2^13 takes the coarser scale that puts it there.

    A membrane stream is `fixed<16, f>`, integers of 2^-f for all channels, with f from its recorded range: sums become
    stream values by `spike.rescale`, a multiplication per channel, and a neuron that reads the stream aligns it with
    its membrane by a shift. See docs/design.md, "Numbers".
    """

    name = "quantise"
    keeps: ClassVar[Keeps] = Keeps.NOTHING

    image_scale: float = 0.0
    """Real value of the image's integer 1; from calibration (max |x| / 127)."""
    weights: str = "per-channel"
    """Scale per output channel (per-channel) or per tensor as in the paper (per-tensor)."""
    accumulator_bits: int = 24
    """Width of the machine's accumulators; a layer that could pass it is an error."""

    def __post_init__(self) -> None:
        if self.weights not in ("per-channel", "per-tensor"):
            raise CStepError(f"quantise: weights={self.weights}; it must be per-channel or per-tensor")

    def apply(self, network: Network) -> Network:
        q = Quantiser(network, Options(self.image_scale, self.weights, self.accumulator_bits))
        for op in network.operations():
            assert isinstance(op, spike.SpikeOperation)
            handler = HANDLERS.get(type(op))
            if handler is None:
                raise refuse(op, f"{op.name} has no integer form; fold or fuse it first ({FIRST})")
            handler(q, op)
        return q.new


FIRST = "fold-batch-norm, fold-linear-chains, fuse-attention, fuse-masks"

HANDLERS: dict[type[spike.SpikeOperation], Any] = {
    spike.Input: values.image,
    spike.Repeat: values.same,
    spike.Reshape: values.same,
    spike.Transpose: values.same,
    spike.MaxPool: values.same,
    spike.Dilate: values.same,
    spike.Range: values.passed_on,
    spike.Scale: values.scaled,
    spike.Add: values.added,
    spike.Multiply: values.multiplied,
    spike.Mask: values.masked,
    spike.Conv: weighted.weighted,
    spike.Linear: weighted.weighted,
    spike.Attention: weighted.attention,
    spike.Lif: neurons.neuron,
    spike.Level: neurons.neuron,
    spike.Sum: features.summed,
    spike.Mean: features.summed,
    spike.MeanTime: features.summed,
    spike.SumTime: features.summed,
    spike.HeadSum: features.summed,
    spike.Output: features.output,
}
