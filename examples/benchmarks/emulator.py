"""The emulator with full accounting beside SpikingJelly and onnxruntime in float32: one input, one thread."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import cstep
from benchmarks.figures import Figures, progress
from benchmarks.networks import Network, network
from compiler.frontend.importer import import_model
from compiler.frontend.model import open_model
from compiler.ir.onnx.real import real_onnx
from compiler.pipeline import run_passes
from compiler.zoo import LIF
from isa.errors import CStepError
from isa.program import Program, program_bytes
from runtime.interpreter import run
from runtime.quantise import quantise_input

MODELS = ("spikformer-4-384", "sdt-v1-8-512")
GOAL = "at least 5"
FOLDED = "canonicalise,fold-batch-norm"
CALIBRATION = 8
PATIENCE = 30.0
"""CPU seconds of rounds, unless told how many."""
ROUNDS = (5, 25)


def in_spikingjelly(model: nn.Module) -> nn.Module:
    """The same model with SpikingJelly's own LIF neurons, multi-step, torch backend."""
    from spikingjelly.activation_based import neuron

    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LIF):
                node = neuron.LIFNode(
                    tau=child.tau,
                    v_threshold=child.v_threshold,
                    v_reset=child.v_reset,
                    decay_input=child.decay_input,
                    step_mode="m",
                )
                setattr(parent, name, node)
    return twin.eval()


def eager(model: nn.Module, image: Tensor) -> Callable[[], NDArray[np.float32]]:
    """The model in SpikingJelly, float32."""
    from spikingjelly.activation_based import functional

    twin = in_spikingjelly(model)

    def call() -> NDArray[np.float32]:
        functional.reset_net(twin)
        with torch.no_grad():
            return twin(image).numpy()

    return call


def onnx(model: nn.Module, image: Tensor) -> Callable[[], NDArray[np.float32]]:
    """The model in onnxruntime, float32: batch norms folded, neurons unrolled over time into plain operators."""
    folded = run_passes(import_model(model, image), FOLDED)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        real_onnx(folded, unrolled=True).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: np.asarray(session.run(None, feed)[0])


def emulator(program: Program, image: NDArray[np.float32]) -> Callable[[], NDArray[np.int64]]:
    """The program on the emulator: every integer, every count, every cycle."""
    integers = quantise_input(program, image)
    return lambda: run(program, integers).logits


def medians(calls: list[Callable[[], object]], rounds: int | None) -> tuple[list[float], int]:
    """Median CPU seconds of each call, interleaved; and of how many rounds."""
    times: list[list[float]] = [[] for _ in calls]
    least, most = (rounds, rounds) if rounds else ROUNDS
    begun = time.process_time()
    while len(times[0]) < least or (len(times[0]) < most and time.process_time() - begun < PATIENCE):
        progress(f"round {len(times[0]) + 1} of {least} to {most}")
        for call, taken in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            taken.append(time.process_time() - started)
    return [statistics.median(taken) for taken in times], len(times[0])


def measure(name: str, folder: Path, figures: Figures, rounds: int | None) -> None:
    """One network; what refuses it is named, and the others are measured all the same."""
    print(f"emulator: {name}, one input, CPU time on one thread", flush=True)
    torch.set_num_threads(1)
    try:
        made = network(name, folder)
        model = open_model(name, made.checkpoint).module
        program = compiled(made, model)
    except CStepError as error:
        figures.refuse("emulator", name, str(error))
        return
    image = made.inputs(1, seed=2)
    sides: dict[str, Callable[[], object]] = {"emulator": emulator(program, image)}
    for side, make in (("spikingjelly", eager), ("onnxruntime", onnx)):
        try:
            sides[side] = make(model, torch.from_numpy(image))
        except CStepError as error:
            figures.refuse("emulator", name, f"{side}: {error}")
    for call in sides.values():
        call(), call()
    seconds, done = medians(list(sides.values()), rounds)

    def add(what: str, value: float, unit: str, goal: str = "", modelled: bool = False) -> None:
        figures.add("emulator", name, what, value, unit, "modelled" if modelled else "measured", goal)

    add("firing rate", made.rate, "mean")
    add("firing rate, least layer", min(made.rates.values()), "")
    add("firing rate, most", max(made.rates.values()), "")
    add("rounds", done, "")
    for side, taken in zip(sides, seconds, strict=True):
        add(side, taken * 1e3, "ms CPU")
    for side, taken in list(zip(sides, seconds, strict=True))[1:]:
        add(f"{side} / emulator", taken / seconds[0], "times", GOAL if side == "spikingjelly" else "")
    counters = run(program, quantise_input(program, image)).counters
    for counter in ("sop_dense", "sop_bit", "sop_hw"):
        add(counter, int(counters.total(counter)[0]), "operations")
    add("cycles", int(counters.total("cycles")[0]), "cycles", modelled=True)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    add("code", len(program.code), "words")
    add("file bytes / int8 weight", len(program_bytes(program)) / weights, "bytes")


def compiled(made: Network, model: nn.Module) -> Program:
    """The program, without the comparisons; calibrated on random inputs where the family asks for it."""
    progress(f"{made.name}: compiling")
    return cstep.compile(
        model,
        made.inputs(1, seed=2),
        calibration=made.inputs(CALIBRATION, seed=3) if made.entry.needs_calibration else None,
        mean=made.entry.mean,
        std=made.entry.std,
        check=False,
    )
