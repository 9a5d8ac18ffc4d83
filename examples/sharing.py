"""How much the spikes of tokens and timesteps have in common, and what each way of sharing saves, on trained networks.

    python examples/sharing.py                          every checkpoint that is there, two images each
    python examples/sharing.py --model digits           the bundled one alone
    python examples/sharing.py --images 8 --output FILE.json

Every weighted layer but the stem and the head, whose inputs are no spikes; counts as bit planes. Bit-sparse is 1, and
of each mode stand the factors uncharged (accumulations alone) and charged (merges and copies, too); docs/sharing.md
says what was found. The trains are those of the integer module, and the emulator's spikes are compared with them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import cstep
from compiler.backend.emit import neuron_labels
from compiler.frontend.model import open_model
from compiler.ir import spike
from compiler.ir.meaning import MEANINGS, NEURONS
from compiler.ir.network import Network
from compiler.pipeline import Compiled
from isa.machine import load_machine
from runtime.dataset import load_dataset
from runtime.interpreter import run
from runtime.quantise import quantise_input
from runtime.sharing.fewest import fewest, fewest_possible
from runtime.sharing.forest import forest, signed_tree
from runtime.sharing.group import group, pair
from runtime.sharing.match import common_bits, match, pairing
from runtime.sharing.prefix import prefix
from runtime.sharing.reuse import Bits, Reuse

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"
CIFAR = (str(SHARED / "data/cifar10-train.parquet"), str(SHARED / "data/cifar10-test.parquet"))
MODELS = {
    "digits": ("spikformer-2-96", HERE / "spikformer-digits.safetensors", ("digits", "digits")),
    **{
        name: (model, SHARED / f"checkpoints/{name}.safetensors", CIFAR)
        for name, model in (
            ("spikformer-cifar10-2-64", "spikformer-2-64"),
            ("spikformer-cifar10-2-64-exit", "spikformer-2-64"),
            ("qkformer-cifar10-4-64", "qkformer-4-64"),
        )
    },
}
KINDS = {
    "patches": "patch_embed",
    "fc1": r"\.mlp\.(fc1|mlp1)",
    "fc2": r"\.mlp\.(fc2|mlp2)",
    "proj": r"\.proj_",
    "qkv": "",
}
"""Layer kinds by label, the first that is found."""
CALIBRATION = 4
"""Training images for `match`."""
WIDTHS = (16, 32, 64, None)
SMALL = (12, 8)
"""Rows and channels of the windows that are searched for the fewest additions."""

Trains = NDArray[np.uint8]
"""[planes, timesteps, tokens, channels] of one layer and image."""
Cut = Callable[[Trains], Iterator[Bits]]
Cost = tuple[NDArray[np.int64], int]


@dataclass(frozen=True)
class Layer:
    """The trains that a weighted layer reads; layers with the same input and window are one."""

    name: str
    kind: str
    outputs: int
    trains: tuple[Trains, ...]
    calibration: tuple[Trains, ...]


@dataclass(frozen=True)
class Mode:
    """How rows are cut into windows, and how they share there; widths to choose from for each layer."""

    cut: Cut
    share: Callable[..., Reuse]
    widths: tuple[int | None, ...] = ()


def steps(trains: Trains) -> Iterator[Bits]:
    """The tokens of one plane and timestep, adjacent ones one after the other."""
    for plane in trains:
        yield from plane


def windows(trains: Trains, rows: int) -> Iterator[Bits]:
    """`rows` rows of one plane: all timesteps of one token, then the next token."""
    for plane in trains:
        flat = plane.transpose(1, 0, 2).reshape(-1, plane.shape[2])
        yield from (flat[at : at + rows] for at in range(0, len(flat), rows))


def joint(trains: Trains, rows: int) -> Iterator[Bits]:
    """`rows` rows: all planes and timesteps of one token, then the next token."""
    flat = trains.transpose(2, 1, 0, 3).reshape(-1, trains.shape[3])
    yield from (flat[at : at + rows] for at in range(0, len(flat), rows))


published = partial(windows, rows=256)
wide = partial(joint, rows=1024)
MODES = {
    "pair": Mode(steps, pair),
    "group 4": Mode(steps, partial(group, size=4)),
    "group 8": Mode(steps, partial(group, size=8)),
    "match": Mode(steps, match),
    "prefix 16": Mode(published, prefix, (16,)),
    "prefix best": Mode(published, prefix, WIDTHS),
    "prefix 16, 1024 rows": Mode(wide, prefix, (16,)),
    "signed tree 16": Mode(published, signed_tree, (16,)),
    "signed tree best": Mode(published, signed_tree, WIDTHS),
    **{f"forest {width or 'all'}": Mode(published, forest, (width,)) for width in WIDTHS},
    "forest best": Mode(published, forest, WIDTHS),
    "forest all, no differences": Mode(published, partial(forest, signed=False), (None,)),
    "forest best, holds 128": Mode(published, partial(forest, held=128), (64, None)),
    "forest, 1024 rows": Mode(wide, forest, (None,)),
    "forest best, 1024 rows, holds 256": Mode(wide, partial(forest, held=256), (64, None)),
}
FIGURES = ("spikes", "accumulations", "additions", "charged", "matching")


def main(
    model: Annotated[list[str] | None, typer.Option(help="A checkpoint's name; again for more.")] = None,
    images: Annotated[int, typer.Option(min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="Write all figures here, as JSON.")] = None,
) -> None:
    """Measure each model and print its table."""
    measured: dict[str, object] = {}
    for name in model or MODELS:
        architecture, checkpoint, sets = MODELS[name]
        missing = [str(path) for path in (checkpoint, *map(Path, sets)) if path.suffix and not path.exists()]
        if missing:
            print(f"\n{name}: skipped, there is no {missing[0]}")
            continue
        started = time.perf_counter()
        layers, emulated = layers_of(architecture, checkpoint, sets, images)
        measured[name] = report(name, layers, images)
        paired_up = sum(cost(layer, steps, pair)[0][:2] for layer in layers)
        print(f"sop_bit and sop_union {emulated}; spikes and accumulations of pair {tuple(paired_up.tolist())}")
        print(f"{images} images, {time.perf_counter() - started:.0f} s")
    if output:
        output.write_text(json.dumps(measured, indent=1) + "\n")


def layers_of(
    architecture: str, checkpoint: Path, sets: tuple[str, str], images: int
) -> tuple[list[Layer], tuple[int, int]]:
    """Compile, run the integer module on test images, and hold its spikes against the emulator's.

    Also returns the emulator's `sop_bit` and `sop_union` of all images.
    """
    opened = open_model(architecture, checkpoint)
    settings = {"shape": opened.input, "mean": opened.mean, "std": opened.std}
    training = load_dataset(sets[0], split="train", **settings).take(256, seed=0)
    test = load_dataset(sets[1], split="test", **settings).take(images, seed=1).images
    compiled = cstep.compile_checked(
        opened.module,
        training.images[:1],
        training.images,
        load_machine("c-step"),
        check=None,
        passes=None,
        schedule="layers",
        dump_to=None,
        origin=(architecture, opened.checkpoint, training.name),
        normalisation=(training.mean, training.std),
    )
    emulated = compare_with_emulator(compiled, test)
    found = [executed(compiled.integer, x)[0] for x in (*test, *training.images[:CALIBRATION])]
    layers = [
        Layer(*key, tuple(each[key] for each in found[:images]), tuple(each[key] for each in found[images:]))
        for key in found[0]
    ]
    return layers, emulated


def executed(network: Network, x: NDArray[np.float32]) -> tuple[dict[tuple[str, str, int], Trains], dict[str, Bits]]:
    """By name, kind and outputs the trains that weighted layers read of an image, and every neuron's spikes."""
    values = {}
    trains: dict[tuple[object, ...], Trains] = {}
    names: dict[tuple[object, ...], tuple[str, str, int]] = {}
    spikes: dict[str, Bits] = {}
    for op in network.operations():
        if isinstance(op, spike.Output):
            break
        if isinstance(op, spike.Input):
            values[op.results[0]] = torch.from_numpy(x)
            continue
        operands = [values[operand] for operand in op.operands]
        result = MEANINGS[type(op)](op, lambda name: torch.from_numpy(network.weights[name]).to(torch.int64), *operands)
        values[op.results[0]] = result
        if isinstance(op, NEURONS):
            spikes[op.label] = result.numpy().astype(np.uint8)
        if isinstance(op, spike.Conv | spike.Linear) and op.operand_type().element.is_count:
            window = tuple(op.get(key) for key in ("kernel", "stride", "padding")) if isinstance(op, spike.Conv) else ()
            name, kind, outputs = names.get((op.operands[0], window), (op.label, kind_of(op.label), 0))
            names[op.operands[0], window] = (name, kind, outputs + op.result_type.sizes[-1])
            planes = op.operand_type().element.planes
            trains[op.operands[0], window] = planes_of(rows_of(operands[0].numpy(), *window), planes)
    return {names[key]: trains[key] for key in names}, spikes


def rows_of(x: NDArray[np.int64], kernel: int = 1, stride: int = 1, padding: int = 0) -> NDArray[np.int64]:
    """[timesteps, tokens, channels] that a layer multiplies by its weights; of a convolution, those under all taps."""
    if kernel == 1 and stride == 1:
        return x.reshape(len(x), -1, x.shape[-1])
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    taps = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    gathered = taps.transpose(0, 1, 2, 4, 5, 3)
    return gathered.reshape(len(x), gathered.shape[1] * gathered.shape[2], -1)


def planes_of(counts: NDArray[np.int64], planes: int) -> Trains:
    """[planes, ...] of counts."""
    return np.stack([(counts >> plane & 1).astype(np.uint8) for plane in range(planes)])


def kind_of(label: str) -> str:
    """The layer kind of a label."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, label))


def compare_with_emulator(compiled: Compiled, images: NDArray[np.float32]) -> tuple[int, int]:
    """Compare every neuron's spikes of all images; returns the emulator's `sop_bit` and `sop_union`."""
    result = run(compiled.program, quantise_input(compiled.program, images), observe=True)
    seen, count = result.spikes, result.counters.total
    assert seen is not None
    differing, compared = 0, 0
    for index, x in enumerate(images):
        _, spikes = executed(compiled.integer, x)
        for layer, label in neuron_labels(compiled.network).items():
            differing += int((seen[layer][index].reshape(-1) != spikes[label].reshape(-1)).sum())
            compared += spikes[label].size
    print(f"\nspikes that differ between integer module and emulator: {differing} of {compared}")
    return int(count("sop_bit").sum()), int(count("sop_union").sum())


def paired(layer: Layer) -> Mode:
    """Pairs of tokens, or of a token's timesteps: those that have more in common on the calibration images."""
    tokens = np.concatenate([trains.reshape(-1, *trains.shape[2:]) for trains in layer.calibration])
    times = np.concatenate([np.concatenate(trains.swapaxes(1, 2)) for trains in layer.calibration])
    by_token, by_time = pairing(tokens), pairing(times)
    if common_bits(tokens, by_token) >= common_bits(times, by_time):
        return Mode(steps, partial(match, pairs=by_token))
    return Mode(
        lambda trains: (bits for plane in trains for bits in plane.swapaxes(0, 1)), partial(match, pairs=by_time)
    )


def cost(layer: Layer, cut: Cut, share: Callable[[Bits], Reuse]) -> Cost:
    """FIGURES of a layer over all images, and the most partial sums held; sums are found once for all outputs."""
    total, held = np.zeros(len(FIGURES), np.int64), 0
    for trains in layer.trains:
        for bits in cut(trains):
            each = share(bits)
            total += np.array([int(bits.sum()), each.accumulations, each.additions, each.charged, each.matching])
            held = max(held, each.held)
    total[:4] *= layer.outputs
    return total, held


def least(layer: Layer, mode: Mode, known: dict[object, Cost]) -> tuple[Cost, int | None]:
    """The cost at the width of least charge, and that width; what was measured for another mode is known."""
    if not mode.widths:
        return cost(layer, mode.cut, mode.share), None
    for width in mode.widths:
        key = layer.name, mode.cut, mode.share, width
        if key not in known:
            known[key] = cost(layer, mode.cut, partial(mode.share, width=width))
    width = min(mode.widths, key=lambda width: known[layer.name, mode.cut, mode.share, width][0][3])
    return known[layer.name, mode.cut, mode.share, width], width


def report(name: str, layers: list[Layer], images: int) -> dict[str, object]:
    """Measure all modes, print factors by kind, and return the figures."""
    kinds = ["all", *(kind for kind in KINDS if any(layer.kind == kind for layer in layers))]
    figures: dict[str, object] = {"images": images, "figures": FIGURES}
    density = sum(t.sum() for layer in layers for t in layer.trains) / sum(
        t.size for layer in layers for t in layer.trains
    )
    print(
        f"{name}: density {density:.3f}; uncharged / charged, measured; matching is bits compared for an accumulation"
    )
    print(" " * 34 + "".join(f"{kind:>13}" for kind in kinds) + " additions  held matching")
    known: dict[object, Cost] = {}
    for mode_name, mode in MODES.items():
        rows = dict.fromkeys(kinds, np.zeros(len(FIGURES), np.int64))
        most, widths = 0, dict[str, int | None]()
        for layer in layers:
            chosen = paired(layer) if mode_name == "match" else mode
            (total, held), widths[layer.name] = least(layer, chosen, known)
            most = max(most, held)
            for kind in ("all", layer.kind):
                rows[kind] = rows[kind] + total
        parts = [f"{r[0] / r[1]:6.2f} /{r[0] / r[3]:5.2f}" for r in rows.values()]
        whole = rows["all"]
        tail = f"{whole[0] / whole[2]:10.2f}{most:6d}{whole[4] / whole[0]:9.2f}"
        print(f"{mode_name:<34}" + "".join(f"{part:>13}" for part in parts) + tail, flush=True)
        figures[mode_name] = {
            "totals": {kind: row.tolist() for kind, row in rows.items()},
            "held": most,
            "widths": widths,
        }
    figures["limits"] = limits(layers)
    return figures


def limits(layers: list[Layer]) -> dict[str, float]:
    """What no sharing goes below: proven for whole windows, searched for in small ones cut out of them."""
    generator = np.random.default_rng(0)
    spikes, bound, ours, fewest_found, proven, searched = 0, 0, 0, 0, 0, 0
    for layer in layers:
        for trains in layer.trains:
            cut = list(published(trains))
            spikes += sum(int(bits.sum()) for bits in cut) * layer.outputs
            bound += sum(fewest_possible(bits) for bits in cut) * layer.outputs
            bits = cut[generator.integers(len(cut))]
            row, channel = (generator.integers(max(bits.shape[at] - SMALL[at], 0) + 1) for at in range(2))
            small = bits[row : row + SMALL[0], channel : channel + SMALL[1]]
            additions, sure = fewest(small, effort=100_000)
            ours, fewest_found = ours + forest(small).additions, fewest_found + additions
            proven, searched = proven + sure, searched + 1
    print(f"no sharing of 256 rows has more than {spikes / bound:.2f} (additions; a bound, not reached)")
    made = f"{ours} additions in forests, at least {fewest_found} ({proven} of them proven the fewest)"
    print(f"{searched} windows of {SMALL[0]} x {SMALL[1]}: {made}")
    return {"bound": spikes / bound, "small forest": ours, "small fewest": fewest_found, "proven": proven}


if __name__ == "__main__":
    typer.run(main)
