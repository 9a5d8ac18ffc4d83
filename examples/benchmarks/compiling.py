"""`cstep compile` on two cores, from a checkpoint file, as a user runs it: seconds and peak memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figures, progress
from benchmarks.networks import Network, network
from isa.errors import CStepError

MODELS = ("sdt-v1-8-512", "qkformer-10-384", "spikformer-8-768")
CORES = 2
SECONDS = 60
BYTES, TIMES_CHECKPOINT = 10**9, 3
CALIBRATION = 8
EQUAL = "emulator == integer model"
"""What `cstep compile` prints where every current and logit of the program is the integer model's."""


@dataclass(frozen=True)
class Done:
    """What a child process left."""

    code: int
    output: str
    wall: float
    cpu: float
    peak: int
    """Bytes of resident memory at most."""


def child(arguments: list[str]) -> Done:
    """`cstep` with these arguments, in a process of its own on two cores."""
    cores = sorted(os.sched_getaffinity(0))[:CORES] if hasattr(os, "sched_getaffinity") else []
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cstep", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        cpu = usage.ru_utime + usage.ru_stime
        return Done(process.returncode, output.read(), wall, cpu, usage.ru_maxrss * unit)


def measure(name: str, folder: Path, figures: Figures) -> None:
    """One network: compiled with its checks, then run on one input."""
    print(f"compile: {name}, from a checkpoint file, {CORES} cores, every pass compared on one input", flush=True)
    try:
        made = network(name, folder)
    except CStepError as error:
        figures.refuse("compile", name, str(error))
        return
    with tempfile.TemporaryDirectory() as place:
        compile_in(Path(place), made, figures)


def compile_in(place: Path, made: Network, figures: Figures) -> None:
    """Compile and run in a temporary folder."""
    name, program = made.name, place / "net.cstep"
    np.savez(place / "one.npz", x=made.inputs(1, seed=2))
    arguments = ["compile", name, "--checkpoint", str(made.checkpoint), "--output", str(program), "--check-images", "1"]
    if made.entry.needs_calibration:
        np.savez(place / "calibration.npz", x=made.inputs(CALIBRATION, seed=3))
        arguments += ["--calibration", str(place / "calibration.npz")]
    progress(f"{name}: cstep compile")
    done = child(arguments)
    checkpoint = made.checkpoint.stat().st_size
    limit = BYTES + TIMES_CHECKPOINT * checkpoint
    figures.add("compile", name, "wall", done.wall, "s", goal=f"at most {SECONDS}")
    figures.add("compile", name, "CPU", done.cpu, "s")
    figures.add("compile", name, "peak memory", done.peak / 1e6, "MB", goal=f"at most {limit / 1e6:,.0f}")
    figures.add("compile", name, "checkpoint", checkpoint / 1e6, "MB")
    if done.code or EQUAL not in done.output:
        figures.refuse("compile", name, done.output.strip().splitlines()[-1] if done.output.strip() else "no output")
        return
    differing = sum(int(line.split()[2]) for line in done.output.splitlines() if EQUAL in line)
    figures.add("compile", name, "differing integers", differing, "", goal="none")
    ran = child(["run", str(program), str(place / "one.npz")])
    if ran.code:
        figures.refuse("compile", name, ran.output.strip().splitlines()[-1])
        return
    figures.add("compile", name, "cstep run, one input", ran.wall, "s")
