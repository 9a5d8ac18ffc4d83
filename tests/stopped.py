"""Networks whose tokens stop: where the blocks of each small family are, the pass, and its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, e, log2, prod

import numpy as np
from exact import program_of
from numpy.typing import NDArray
from stepwise import Stepwise
from token_rules import Stop

from compiler.comparable import Scope
from compiler.ir import spike
from compiler.ir.meaning import Executor, Run
from compiler.ir.network import Network
from compiler.ir.spike import SpikeOperation
from compiler.passes.stop_tokens import StopTokens
from isa.machine import Machine, load_machine
from runtime.interpreter import quantise_input, run

SCORES = ("paper", "spatial", "temporal", "magnitude", "random", "code")


@dataclass(frozen=True)
class Where:
    """A block: the residual that enters, the labels of what tokens go through, and how the tokens lie."""

    entry: str
    parts: tuple[str, ...]
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns


def _whole(name: str, entry: str, rows: int, columns: int) -> Where:
    return Where(entry, (f"{name}.",), rows, columns)


def _chain(name: str, entry: str, last: str, many: int, rows: int, columns: int) -> tuple[Where, ...]:
    """Blocks whose residuals follow each other."""
    entries = [entry, *(f"{name}.{number}.{last}" for number in range(many - 1))]
    return tuple(_whole(f"{name}.{number}", each, rows, columns) for number, each in enumerate(entries))


MLP, ATTENTION_AND_MLP = ("mlp.",), ("attn.", "mlp.")


def _parts(name: str, entry: str, parts: Sequence[str], rows: int, columns: int) -> Where:
    """Of a block whose first branch looks at neighbouring tokens, the others."""
    return Where(f"{name}.{entry}", tuple(f"{name}.{part}" for part in parts), rows, columns)


BLOCKS: dict[str, tuple[Where, ...]] = {
    "spikformer-cifar": _chain("block", "patch_embed.add", "add.2", 1, 4, 4),
    "spikformer-imagenet": _chain("block", "patch_embed.add", "add.2", 2, 2, 3),
    "spikformer-events": _chain("block", "patch_embed.add", "add.2", 1, 2, 2),
    "spikingformer": _chain("block", "patch_embed.block4_conv.stream", "add.2", 1, 4, 4),
    "spikingformer-imagenet": _chain("block", "patch_embed.proj4_conv.stream", "add.2", 1, 2, 3),
    "spikingformer-events": _chain("block", "patch_embed.proj4_conv.stream", "add.2", 1, 2, 2),
    "spikingformer-cml": _chain("block", "patch_embed.proj4_conv.stream", "add.2", 1, 4, 4),
    "spikingformer-cml-imagenet": _chain("block", "patch_embed.proj4_conv.stream", "add.2", 1, 2, 3),
    "spikingformer-cml-events": _chain("block", "patch_embed.proj4_conv.stream", "add.2", 1, 2, 2),
    "sdt-v1": _chain("block", "patch_embed.add", "mlp.add", 1, 2, 3),
    "sdt-v1-cifar": _chain("block", "patch_embed.add", "mlp.add.2", 1, 4, 4),
    "sdt-v1-events": (_parts("block.0", "attn.add", MLP, 4, 4),),
    "sdt-v1-gesture": _chain("block", "patch_embed.add", "mlp.add", 1, 4, 4),
    "qkformer-cifar": (
        _whole("stage1.0", "patch_embed1.add", 16, 16), _whole("stage2.0", "patch_embed2.add", 8, 8),
        *_chain("stage3", "patch_embed3.add", "add.2", 2, 4, 4),
    ),
    "qkformer-imagenet": (
        _whole("stage1.0", "patch_embed1.add", 8, 12), *_chain("stage2", "patch_embed2.add", "add.2", 2, 4, 6),
        _whole("stage3.0", "patch_embed3.add", 2, 3),
    ),
    "qkformer-events": (
        _whole("stage1.0", "patch_embed1.add", 4, 4), _whole("stage2.0", "patch_embed2.add", 2, 2),
    ),
    "sdt-v2": (_parts("block3.0", "add", MLP, 2, 3), _parts("block4.0", "add", MLP, 2, 3)),
    "sdt-v2-kd": (_parts("block3.0", "add", MLP, 2, 3),),
    "sdt-v3": (_parts("block3.0", "add", ATTENTION_AND_MLP, 2, 3), _parts("block4.0", "add", ATTENTION_AND_MLP, 2, 3)),
    "sdt-v3-events": (_parts("block3.0", "add", ATTENTION_AND_MLP, 2, 2),),
    "sdt-v3-large": (_whole("block3.0", "downsample3.encode_conv.stream", 2, 3),),
    "sdt-v3-larger": (_whole("block3.0", "downsample3.encode_conv.stream", 2, 3),),
}  # fmt: skip
"""By family; all of a block but where a branch of it looks at neighbouring tokens (SDT-V2, SepConv, dilation)."""


def stop(
    network: Network, where: Sequence[Where], keep: Sequence[str], score: str = "paper", kernel: int = 3
) -> tuple[Network, list[Stop]]:
    """The network with the pass applied, and what its reference is told; `keep` are shares, written as decimals."""
    stopped = StopTokens(tuple(map(float, keep)), score, kernel, seed=3).apply(network)
    stopped.verify()
    kernel = 1 if score in ("temporal", "magnitude") else kernel  # they look at no neighbours
    shares = list(keep) * len(where) if len(keep) == 1 else keep
    chosen = [op for op in stopped.operations() if isinstance(op, spike.KeepTokens | spike.GivenTokens)]
    stops: list[Stop] = []
    for block, share in zip(where, shares, strict=True):
        kept = ceil(Fraction(share) * block.tokens)
        if kept < block.tokens:
            stops.append(_stop(stopped, block, kept, score, kernel, chosen.pop(0)))
    assert not chosen
    return stopped, stops


def _stop(network: Network, block: Where, kept: int, score: str, kernel: int, op: SpikeOperation) -> Stop:
    shape = (block.entry, block.parts, block.rows, block.columns, kept)
    if isinstance(op, spike.GivenTokens):
        given = network.weights[op.symbol("kept") or ""]
        assert (given.sum(axis=1) == kept).all() and score == "random"
        return Stop(*shape, given=given)
    check_scale(op, kernel)
    scale = (op.get("multiplier"), op.get("divisor"))
    return Stop(*shape, score=score, kernel=kernel, scale=scale, drop=op.get("drop"))


def check_scale(op: SpikeOperation, kernel: int) -> None:
    """A change is a mean over channels of real values, in exponents; values are cut as far as int32 needs."""
    kind, drop = op.operand_type(), op.get("drop")
    real = 2.0 ** (drop - kind.element.fraction.data) / kind.sizes[-1]
    factor = op.get("multiplier") / 2.0 ** op.get("divisor") / round(1024 * log2(e))
    assert abs(factor / real - 1) < 2.0**-14
    largest, near = max(map(abs, kind.element.bounds)), (kind.steps or 1) if op.get("score") == "code" else kernel**2

    def most(bits: int) -> int:
        return kind.sizes[-1] * (near * -(-largest // 2**bits)) ** 2

    assert most(drop) < 2**31 and (drop == 0 or most(drop - 1) >= 2**31)


def assert_stops(
    reference: Stepwise,
    network: Network,
    inputs: NDArray[np.float32],
    schedules: Sequence[str] = ("layers", "windows"),
    machine: Machine | None = None,
) -> float:
    """Module and programs have the reference's integers; returns the share of tokens kept where any stop."""
    executor, machine = Executor(network), machine or load_machine("c-step")
    programs = [program_of(network, inputs.shape[-3], schedule, machine) for schedule in schedules]
    emulated = [(run(made, quantise_input(made, inputs), observe=True), labels) for made, labels in programs]
    shares: list[float] = []
    for index, x in enumerate(inputs):
        expected, seen = reference.run(x), executor.run(x)
        shares += [float(kept.mean()) for kept in reference.kept.values()]
        assert np.array_equal(seen.output, expected.logits)
        assert set(seen.currents) == set(expected.currents)
        for label, steps in expected.currents.items():
            own = np.stack([step.numpy() for step in steps])
            rows = seen.currents[label].reshape(-1, *own.shape[1:])
            assert np.array_equal(rows, own[: len(rows)]), label
        for result, labels in emulated:
            assert np.array_equal(result.logits[index], expected.logits)
            assert (
                result.currents is not None and result.spikes is not None and set(seen.currents) == set(labels.values())
            )
            for layer, label in labels.items():
                its = {"currents": result.currents[layer][index], "spikes": result.spikes[layer][index]}
                _assert_kept(reference, label, seen, its)
    return float(np.mean(shares)) if shares else 1.0


def assert_stops_beside(
    reference: Stepwise, network: Network, inputs: NDArray[np.float32], schedules: Sequence[str], near: float = 0
) -> set[int]:
    """As `assert_stops`, with guards, masks and exits beside; after how many timesteps inputs left.

    Programs are compared with the module in what they compute: not what a guard silences, nor tokens left out.
    """
    executor, machine, scope, left = Executor(network), load_machine("c-step"), Scope.of(network), set[int]()
    programs = [program_of(network, inputs.shape[-3], schedule, machine) for schedule in schedules]
    emulated = [(run(made, quantise_input(made, inputs), observe=True), labels) for made, labels in programs]
    for index, x in enumerate(inputs):
        expected, exits = reference.run(x), reference.exits
        if exits and any(abs(c - tau) < near for c, tau in zip(expected.confidences, exits.tau, strict=False)):
            continue
        left.add(expected.steps)
        seen = executor.run(x)
        assert (seen.steps or reference.total) == expected.steps
        assert np.array_equal(seen.output, expected.logits)
        for label, current in seen.currents.items():
            own = np.stack([step.numpy() for step in expected.currents[label]])
            rows = current.reshape(-1, *own.shape[1:])
            steps = min(len(rows), len(own))
            assert np.array_equal(rows[:steps], own[:steps]), label
        for result, labels in emulated:
            assert np.array_equal(result.logits[index], expected.logits)
            assert result.steps[index] == expected.steps
            assert result.currents is not None and set(seen.currents) == set(labels.values())
            for layer, label in labels.items():
                its = result.currents[layer][index]
                mine, found = scope.both(label, seen, seen.currents[label], its, None)
                assert mine.size and np.array_equal(mine, found), label
    return left


def _assert_kept(reference: Stepwise, label: str, seen: Run, its: dict[str, NDArray[np.int64]]) -> None:
    """Currents of tokens that are kept, and all spikes: those of the others are 0."""
    kept = kept_of(reference, label)
    for name, found in its.items():
        mine = getattr(seen, name)[label]
        mine = mine.reshape(-1, *found.shape[1:])
        found = found[: len(mine)]
        if kept is not None and name == "currents":
            stays = kept[: len(mine)].reshape(*mine.shape[:-1], 1)
            mine, found = mine * stays, found * stays
        assert np.array_equal(mine, found), f"{name} of {label}"


def kept_of(reference: Stepwise, label: str) -> NDArray[np.int64] | None:
    """[T, N] of what goes through neurons, or None where all do."""
    for op, each in reference.stopped.items():
        if op.label == label and prod(op.result_type.sizes[:-1]) == each.rows * each.columns:
            steps = [reference.kept[each, step] for step in range(reference.total) if (each, step) in reference.kept]
            return np.stack([step.numpy() for step in steps]).astype(np.int64)
    return None
