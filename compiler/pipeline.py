"""The passes, in one list, and the pipeline: after every pass it verifies, dumps, executes and compares.

What is compared is every neuron's input current, not only the logits: a batch norm scale that is wrong by 0.1 % changes
no logit in 200 inputs and the currents in all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xdsl.utils.arg_spec import parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError

from compiler.backend.allocate import Allocate
from compiler.backend.emit import Normalisation, emit
from compiler.backend.lower import LowerToCstep
from compiler.backend.synchronise import Synchronise
from compiler.calibrate.ranges import image_scale
from compiler.check import Checker, CheckResult, Emulate
from compiler.ir.network import Network
from compiler.passes.canonicalise import Canonicalise
from compiler.passes.factor_common_spikes import FactorCommonSpikes
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.fold_linear_chains import FoldLinearChains
from compiler.passes.fuse_attention import FuseAttention
from compiler.passes.fuse_masks import FuseMasks
from compiler.passes.guard_channels import GuardChannels
from compiler.passes.halt_tokens import HaltTokens
from compiler.passes.hoist_invariant import HoistInvariant
from compiler.passes.insert_exits import InsertExits
from compiler.passes.integrate_patch_splitting import IntegratePatchSplitting
from compiler.passes.join_heads import JoinHeads
from compiler.passes.mask_timesteps import MaskTimesteps
from compiler.passes.network_pass import NetworkPass
from compiler.passes.quantise import Quantise
from compiler.passes.reassociate_attention import ReassociateAttention
from compiler.passes.record_ranges import RecordRanges
from compiler.passes.set_timesteps import SetTimesteps
from compiler.passes.split_channels import SplitChannels
from compiler.passes.stop_tokens import StopTokens
from isa.errors import CStepError
from isa.machine import Machine
from isa.program import Program, Provenance
from isa.verify import verify

PASSES: tuple[type[NetworkPass], ...] = (
    IntegratePatchSplitting,
    FuseAttention,
    Canonicalise,
    SplitChannels,
    FuseMasks,
    FoldBatchNorm,
    FoldLinearChains,
    JoinHeads,
    RecordRanges,
    Quantise,
    ReassociateAttention,
    SetTimesteps,
    MaskTimesteps,
    StopTokens,
    HaltTokens,
    HoistInvariant,
    GuardChannels,
    InsertExits,
    FactorCommonSpikes,
    LowerToCstep,
    Allocate,
    Synchronise,
)

DEFAULT_PASSES = (
    "fuse-attention,canonicalise,split-channels,canonicalise,fuse-masks,canonicalise,"
    "fold-batch-norm,fold-linear-chains,join-heads,record-ranges,"
    "quantise{image-scale=SCALE accumulator-bits=BITS},"
    "reassociate-attention,mask-timesteps,hoist-invariant,"
    "lower-to-cstep{schedule=SCHEDULE},allocate,synchronise"
)
"""SCALE comes from calibration, BITS from the machine, SCHEDULE from the call.

Lossy passes are asked for: integrate-patch-splitting first, set-timesteps in front of mask-timesteps, stop-tokens or
halt-tokens behind it, guard-channels and then insert-exits behind hoist-invariant (compiler/settings.py); and
factor-common-spikes, which is exact, in front of lower-to-cstep.
"""
LARGE = 1 << 16
"""Numbers of an input from which on passes on programs are compared together."""


@dataclass(frozen=True)
class Compiled:
    """What compiling leaves: the last module, the program, and what was compared after every pass."""

    network: Network
    program: Program
    checks: tuple[CheckResult, ...]
    integer: Network
    """The last module of the spike dialect: the integer model that the program computes."""


def parse_passes(passes: str) -> list[NetworkPass]:
    """The passes of a pipeline string, e.g. `canonicalise,quantise{image-scale=0.02}`."""
    known = {kind.name: kind for kind in PASSES}
    try:
        specs = list(parse_pipeline(passes))
    except ArgSpecParseError as error:
        problem = str(error).splitlines()[-1].strip(" ^")
        raise CStepError(f"passes: {passes}: {problem}; it must read like pass,pass{{option=value}}") from None
    made: list[NetworkPass] = []
    for spec in specs:
        if spec.name not in known:
            raise CStepError(f"passes: no pass {spec.name}; there are {', '.join(known)}")
        made.append(known[spec.name].from_spec(spec))
    return made


def run_passes(network: Network, passes: str) -> Network:
    """Apply passes, verifying after each; for `cstep opt`."""
    for each in parse_passes(passes):
        network = each.apply(network)
        network.verify()
    return network


def compile_network(
    network: Network,
    *,
    machine: Machine,
    calibration: NDArray[np.float32],
    check: NDArray[np.float32] | None,
    provenance: Provenance,
    normalisation: Normalisation,
    passes: str | None = None,
    schedule: str = "layers",
    dump_to: Path | None = None,
    emulate: Emulate | None = None,
    progress: Callable[[str], None] | None = None,
) -> Compiled:
    """Compile an imported network to a program.

    `calibration` are images [B, C, H, W] (or events [B, T, C, H, W]) as the model takes them; `check` are the inputs
    that every pass is compared on, None for no comparison. `emulate` runs a program and gives its logits and currents.
    Raises CStepError naming pass, op, source line and element where anything differs.
    """
    text = _pipeline_text(passes, network, machine, calibration, schedule)
    network = replace(network, saved=set(), target=machine)  # the dumps of this call hold all weights
    checker = Checker(check, emulate)
    results: list[CheckResult] = []
    integer: Network | None = None
    made = parse_passes(text)
    postponed, dumps = _postponed(made, check), list[Path | None]()
    for number, each in enumerate([None, *made]):
        name = each.name if each else "import"
        if progress:
            progress(name)
        started = time.perf_counter()
        after = each.apply_with(network, calibration) if each else network
        after.verify()
        path = after.dump(dump_to, f"{number:02d}-{name}") if dump_to else None
        seconds = time.perf_counter() - started
        integer = network if isinstance(each, LowerToCstep) else integer
        network = after  # the module before, and the weights that only it has, go before this one is executed
        if each in postponed[:-1]:
            dumps.append(path)
            results.append(CheckResult(name, 0, f"compared after {postponed[-1].name}", seconds=seconds))
            continue
        try:
            results.append(replace(checker.compare(each, after, path), seconds=seconds))
        except CStepError:
            if postponed and each is postponed[-1] and integer is not None:
                _blame(integer, postponed, dumps, checker)
            raise
    program = emit(network, machine, provenance.model_copy(update={"pipeline": text}), normalisation)
    verify(program)
    return Compiled(network, program, tuple(results), integer or network)


def _postponed(passes: Sequence[NetworkPass], check: NDArray[np.float32] | None) -> list[NetworkPass]:
    """Passes on programs: for large inputs, where a run takes seconds, they are compared together after the last."""
    first = next((at for at, each in enumerate(passes) if isinstance(each, LowerToCstep)), len(passes))
    return list(passes[first:]) if check is not None and check[:1].size > LARGE else []


def _blame(integer: Network, passes: Sequence[NetworkPass], dumps: Sequence[Path | None], checker: Checker) -> None:
    """Repeat passes on programs, compared one by one, so that the one that went wrong is named."""
    network = integer
    for each, dump in zip(passes[:-1], dumps, strict=True):
        network = each.apply(network)
        checker.compare(each, network, dump)


def _pipeline_text(
    passes: str | None, network: Network, machine: Machine, calibration: NDArray[np.float32], schedule: str
) -> str:
    """The pipeline with its blanks filled in."""
    text = passes or DEFAULT_PASSES
    if "SCALE" in text:
        text = text.replace("SCALE", repr(image_scale(calibration)))
    return text.replace("BITS", str(machine.accumulator_bits)).replace("SCHEDULE", schedule)


__all__: Sequence[str] = ("DEFAULT_PASSES", "PASSES", "Compiled", "compile_network", "parse_passes", "run_passes")
