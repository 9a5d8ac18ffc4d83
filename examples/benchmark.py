"""Benchmark: the emulator with full accounting against the same model in SpikingJelly, eager float32, one image.

CPU time, one thread, A and B interleaved, medians and their ratio. The model is Spikformer-4-384 at 32x32 with random
weights and batch norms calibrated so that neurons fire at 10 to 25 %. `make bench` runs it.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn

import cstep
from compiler.zoo import build
from compiler.zoo.neuron import LIF
from isa.program import program_bytes
from runtime.interpreter import quantise_input, run


def random_spikformer(name: str, seed: int = 0) -> nn.Module:
    """A zoo model with random weights whose batch norms put neurons at 10 to 25 % firing."""
    torch.manual_seed(seed)
    model, entry = build(name, None, {})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average over the calibration batch
        nn.init.constant_(norm.weight, 1.2)
        nn.init.constant_(norm.bias, 0.35)
    model.train()
    with torch.no_grad():
        model(torch.randn(4, *entry.input))
    return model.eval()


def in_spikingjelly(model: nn.Module) -> nn.Module:
    """The same model with SpikingJelly's own LIF neurons, multi-step, torch backend."""
    from spikingjelly.activation_based import neuron

    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LIF):
                node = neuron.LIFNode(
                    tau=child.tau, v_threshold=child.v_threshold, v_reset=child.v_reset, step_mode="m"
                )
                setattr(parent, name, node)
    return twin.eval()


def median_cpu(*calls: Any, rounds: int) -> list[float]:
    """Median CPU seconds of each call, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            taken.append(time.process_time() - started)
    return [statistics.median(taken) for taken in times]


def firing_rate(model: nn.Module, image: torch.Tensor) -> float:
    """Mean spikes a neuron and timestep."""
    rates: list[float] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out: rates.append(float(out.mean())))
        for module in model.modules()
        if isinstance(module, LIF)
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return float(np.mean(rates))


def main(name: str = "spikformer-4-384", rounds: int = 15, output: Path | None = None) -> None:
    """Compile, run both, print medians and the ratio."""
    from spikingjelly.activation_based import functional

    torch.set_num_threads(1)
    model = random_spikformer(name)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    calibration = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(2)).numpy()
    started = time.perf_counter()
    program = cstep.compile(model, image, calibration=calibration)
    compiled = time.perf_counter() - started
    integers = quantise_input(program, image.numpy())
    twin = in_spikingjelly(model)

    def eager() -> None:
        functional.reset_net(twin)
        with torch.no_grad():
            twin(image)

    def emulate() -> None:
        run(program, integers)

    eager(), emulate()
    eager_seconds, emulator_seconds = median_cpu(eager, emulate, rounds=rounds)
    int8 = sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1)
    result = {
        "model": name,
        "firing_rate": round(firing_rate(model, image), 3),
        "spikingjelly_ms": round(eager_seconds * 1e3, 2),
        "emulator_ms": round(emulator_seconds * 1e3, 2),
        "ratio": round(eager_seconds / emulator_seconds, 2),
        "compile_seconds_wall": round(compiled, 2),
        "code_words": len(program.code),
        "file_bytes_per_int8_weight": round(len(program_bytes(program)) / int8, 4),
    }
    for key, value in result.items():
        print(f"{key:28} {value}   (measured)")
    if output:
        output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    typer.run(main)
