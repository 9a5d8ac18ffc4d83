"""The front door: compile a trained spiking transformer, save and load programs, run them; and the `cstep` command.

    program = cstep.compile(model, example, calibration=images)
    program.save("net.cstep")
    result = cstep.run(cstep.load("net.cstep"), images)

A user's mistake raises `cstep.CStepError`, said in one line. What is heavy is imported where it is used: `cstep --help`
needs none of it.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isa.collector import collector_paused, only_new_collected
from isa.errors import CStepError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from compiler.calibrate.tune import Objective, Tuned
    from compiler.check import Observed
    from compiler.pipeline import Compiled
    from compiler.settings import Criterion, GuardMode, Score, Settings
    from isa.machine import Machine
    from isa.program import Program
    from runtime.counters import Counters
    from runtime.evaluate.evaluation import Evaluation
    from runtime.evaluate.ladder import Ladder

__all__ = [
    "CStepError", "Result", "calibrate", "compile", "evaluate", "export_onnx", "ladder", "load", "main", "run", "tune",
]  # fmt: skip
__version__ = "0.1.0"

Kernels = Literal["fast", "reference"]
Schedule = Literal["layers", "windows"]
CHECK_IMAGES = 4
"""On how many inputs every pass is compared, unless told otherwise."""
CHECK_NUMBERS = 1 << 16
"""On fewer, where that many inputs hold more numbers than this: one 224x224 image is enough to wait for."""


@dataclass(frozen=True)
class Result:
    """What running a program on B inputs gives."""

    logits: NDArray[np.float32]
    """[B, classes], in the model's own scale: of the mean over the timesteps run."""
    labels: NDArray[np.int64]
    """[B]: where the greatest integer logit is."""
    steps: NDArray[np.int64]
    """[B]: timesteps run; fewer than the program's where an exit was taken."""
    counters: Counters
    """Every counter by input and layer (docs/counting.md)."""


def compile(  # noqa: A001 - as in re.compile; nobody imports it by name
    model: nn.Module,
    example: Any,
    *,
    calibration: Any = None,
    machine: str | Machine = "c-step",
    passes: str | None = None,
    dump_to: str | Path | None = None,
    schedule: Schedule = "layers",
    settings: str | Path | Settings | dict[str, Any] | None = None,
    hoist: bool = True,
    check: bool = True,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Program:
    """Compile a model in evaluation mode to a program.

    `example` [1, C, H, W], or [1, T, C, H, W] of events, is what it is traced with; `calibration` [B, C, H, W] or
    [B, T, C, H, W], B >= 8, sets the input's range, and its first images are what every pass is compared on (`check`).
    Both are float32, as the model takes them. `machine` is a preset's name, a TOML file or a Machine. `dump_to` gets
    the IR after every pass. `mean` and `std` say how pixels of 0..1 became the model's inputs, for `cstep run`.

    Without `calibration` the range of an image is what `mean` and `std` make of pixels of 0..1, event counts need
    none, and passes are compared on random inputs. A model whose residuals are membranes needs calibration.

    `settings`, a file, a dict like it or what `calibrate` found, say exits, guards and masks, which change what
    the model computes. `hoist` computes what is the same at every timestep once.

    Raises CStepError for what the machine cannot do, and for a pass that changed a number.
    """
    from compiler.calibrate.without_data import MadeInputs
    from compiler.settings import settings_from
    from isa.machine import load_machine

    target = load_machine(machine) if isinstance(machine, str) else machine
    traced = _float_images(example, "example")
    made = MadeInputs.of(traced.shape[1:], mean, std, CHECK_IMAGES) if calibration is None else None
    images = made.inputs if made else _float_images(calibration, "calibration")
    return compile_checked(
        model,
        traced,
        images[:0] if made else images,
        target,
        check=images[: check_images(traced.shape[1:])] if check else None,
        passes=passes,
        schedule=schedule,
        settings=settings_from(settings) if settings is not None else None,
        hoist=hoist,
        dump_to=Path(dump_to) if dump_to is not None else None,
        origin=(type(model).__name__, "in memory", made.about if made else f"{len(images)} images in memory"),
        normalisation=(tuple(mean), tuple(std)),
        image_scale=made.image_scale if made else None,
    ).program


def check_images(shape: Sequence[int]) -> int:
    """On how many inputs of `shape` [C, H, W] or [T, C, H, W] passes are compared, unless told otherwise."""
    return max(1, min(CHECK_IMAGES, CHECK_NUMBERS // max(1, prod(shape))))


def export_onnx(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    calibration: Any = None,
    unrolled: bool = False,
    currents: bool = False,
) -> None:
    """Write a model as ONNX (docs/onnx.md): with `calibration`, the integer model that `compile` makes of it.

    Without `calibration`, the model in real numbers, its neurons as operators of domain c-step, or `unrolled` over
    time into plain ones. `example` and `calibration` are as for `compile`; `currents` makes every neuron's current an
    output of the integer model, too. Raises CStepError, leaving no file, for what cannot be exported or written.
    """
    import torch

    from compiler.frontend.importer import import_model
    from compiler.ir.onnx.real import real_onnx
    from compiler.ir.onnx.save import integer_onnx, require_onnx_path, save_onnx
    from isa.machine import load_machine

    require_onnx_path(Path(path))
    traced = _float_images(example, "example")
    if calibration is None:
        network = import_model(model, torch.from_numpy(traced))
        save_onnx(real_onnx(network, unrolled=unrolled), Path(path))
        return
    images = _float_images(calibration, "calibration")
    compiled = compile_checked(
        model,
        traced,
        images,
        load_machine("c-step"),
        check=images[:CHECK_IMAGES],
        passes=None,
        schedule="layers",
        dump_to=None,
        origin=(type(model).__name__, "in memory", f"{len(images)} images in memory"),
        normalisation=((), ()),
    )
    save_onnx(integer_onnx(compiled.integer, currents=currents), Path(path))


def load(path: str | Path, machine: str | None = None) -> Program:
    """The program of a file, verified; with `machine`, only one that is made for it. Raises CStepError."""
    from isa.program import load

    return load(path, machine)


def run(
    program: Program,
    inputs: Any,
    *,
    share: bool = True,
    kernels: Kernels = "fast",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Run a program on float32 images [B, C, H, W] as the model takes them, or events [B, T, C, H, W].

    `share` off switches sharing off: the same integers, other counts. `workers` threads take one input each
    (None: one for each core). `progress` hears how many inputs are done.
    """
    import numpy as np

    from runtime.interpreter import run
    from runtime.quantise import quantise_input

    threads = workers or cores()
    integers = quantise_input(program, _array(inputs, "input"))
    done = run(program, integers, kernels=kernels, share=share, workers=threads, progress=progress)
    scale = program.header.output.scale * (program.header.timesteps / done.steps)
    logits = (done.logits * scale[:, None]).astype(np.float32)
    return Result(logits, done.logits.argmax(axis=1), done.steps, done.counters)


def evaluate(
    program_file: str | Path,
    data: str,
    folder: str | Path,
    *,
    resume: bool = False,
    limit: int | None = None,
    shard: int | None = None,
    workers: int | None = None,
    backend: Literal["loky", "dask", "ray"] = "loky",
    address: str | None = None,
    share: bool = True,
    kernels: Kernels = "fast",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a program file on a data set (as for `cstep run`) in parallel processes, or on a cluster at `address`.

    Every finished shard of `shard` inputs is a file of `folder`; with `resume` an evaluation that was killed goes on
    from there. `workers` counts processes (None: one for each core). `progress` hears how many inputs are done, and of
    how many. Raises CStepError for what `run` refuses, and for a folder that holds anything else.
    """
    from runtime.evaluate.evaluation import evaluate

    return evaluate(
        program_file, data, folder, resume=resume, limit=limit, shard=shard, workers=workers or cores(),
        backend=backend, address=address, share=share, kernels=kernels, progress=progress,
    )  # fmt: skip


def calibrate(
    model: nn.Module,
    example: Any,
    images: Any,
    labels: Any,
    *,
    calibration: Any = None,
    machine: str | Machine = "c-step",
    after: Sequence[int] = (2,),
    criterion: Criterion = "lightsoftmax",
    rate: float = 0.4,
    loss: float = 0.1,
    guard: GuardMode | None = "both",
    timesteps: bool = False,
    tokens: bool = False,
    score: Score = "paper",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Settings:
    """Find settings for `compile`: exits `after` timesteps, a guard, with `timesteps` masks of neuron layers, with
    `tokens` the share of them that goes through each block, by `score`.

    `images` [B, C, H, W] (or events) and `labels` [B] are training data that `calibration` does not hold; the rest is
    as for `compile`. At most `rate` of the images that reach an exit leave there, and at most `loss` points of accuracy
    are lost by all together. Raises CStepError for what the model cannot give, and for too few images.
    """
    import numpy as np

    from command.trials import calibrate_model
    from compiler.calibrate.search import Wanted
    from compiler.calibrate.without_data import MadeInputs
    from compiler.settings import Data, Settings
    from compiler.settings import Model as ModelTable
    from isa.machine import load_machine
    from runtime.dataset import Dataset

    target = load_machine(machine) if isinstance(machine, str) else machine
    traced, held_out = _float_images(example, "example"), _float_images(images, "images")
    truth = _array(labels, "labels").astype(np.int64)
    if truth.shape != (len(held_out),):
        raise CStepError(f"labels: shape {list(truth.shape)}; one for each of {len(held_out)} images is wanted")
    made = MadeInputs.of(traced.shape[1:], mean, std, 1) if calibration is None else None
    digest = Dataset("in memory", held_out, truth, None, (), ()).digest
    begun = Settings(
        model=ModelTable(name=type(model).__name__),
        data=Data(source="in memory", images=len(held_out), digest=digest),
    )
    wanted = Wanted(tuple(after), criterion, rate, loss, guard, timesteps=timesteps, tokens=tokens, score=score)
    ranges = held_out[:0] if made else _float_images(calibration, "calibration")
    scale = made.image_scale if made else None
    return calibrate_model(model, traced, ranges, scale, target, held_out, truth, wanted, begun).settings


def tune(
    model: nn.Module,
    example: Any,
    images: Any,
    labels: Any,
    *,
    calibration: Any = None,
    machine: str | Machine = "c-step",
    max_loss: float = 0.1,
    objective: Objective = "operations",
    minutes: float = 10.0,
    trials: int | None = None,
    confirm: int | None = None,
    settings: str | Path | Settings | dict[str, Any] | None = None,
    energy: str = "cacti-28nm-lop",
    folder: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    workers: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Tuned:
    """Search masks, exits, guards, kept tokens, halting and sharing together (docs/tune.md); `.best.settings` compile.

    `images`, `labels` and `calibration` are as for `calibrate`; `settings` are what the model was trained for. It takes
    about `minutes`, or exactly the same `trials` each time. What was found must hold on the last `confirm` images, too,
    which the search does not see: half of them if not said, none of fewer than 200. With a `folder` every trial is kept
    there, and settings and the curve are written; `resume` goes on with it. Raises CStepError.
    """
    from command.tune_files import write_tuned
    from command.tuning import held_out_of, tune_held_out
    from compiler.calibrate.search import LEAST_IMAGES
    from compiler.calibrate.tune import Goal
    from isa.machine import load_machine
    from runtime.report.write import make_directory

    target = load_machine(machine) if isinstance(machine, str) else machine
    given = _float_images(images, "images")
    unseen = confirm if confirm is not None else len(given) // 2 if len(given) >= 2 * LEAST_IMAGES else 0
    goal = Goal(max_loss, objective, minutes, trials, seed, unseen=unseen)
    goal.require()
    held_out = held_out_of(
        _float_images(example, "example"),
        None if calibration is None else _float_images(calibration, "calibration"),
        given,
        _array(labels, "labels").astype("int64"),
        (tuple(mean), tuple(std)),
    )
    if folder is not None:
        make_directory(Path(folder))
    tuned = tune_held_out(
        model, held_out, target, goal, settings, energy=energy, folder=None if folder is None else Path(folder),
        resume=resume, workers=workers,
    )  # fmt: skip
    if folder is not None:
        write_tuned(tuned, Path(folder))
    return tuned


def ladder(
    model: nn.Module,
    example: Any,
    data: str,
    folder: str | Path,
    *,
    settings: str | Path | Settings | dict[str, Any],
    before: nn.Module | None = None,
    calibration: Any = None,
    machine: str | Machine = "c-step",
    resume: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Ladder:
    """What every step of `settings` saves, measured on a data set: the rows of `cstep eval MODEL` (docs/settings.md).

    All is relative to the program without settings: of `model`, or of `before`, the model before it was retrained.
    Programs and results go to `folder`; `resume` as for `evaluate`, the rest as for `compile`. Raises CStepError.
    """
    from command.ladder import Climb, climb
    from compiler.calibrate.without_data import MadeInputs
    from compiler.settings import settings_from
    from isa.machine import load_machine

    target = load_machine(machine) if isinstance(machine, str) else machine
    traced = _float_images(example, "example")
    made = MadeInputs.of(traced.shape[1:], mean, std, CHECK_IMAGES) if calibration is None else None
    images = made.inputs if made else _float_images(calibration, "calibration")
    chosen = settings_from(settings)
    about = made.about if made else f"{len(images)} images in memory"

    def of(module: nn.Module) -> Climb:
        return Climb(
            module, traced, images[:0] if made else images, images[:1], target,
            (type(module).__name__, "in memory", about), (tuple(mean), tuple(std)), made.image_scale if made else None,
        )  # fmt: skip

    return climb(
        of(model), chosen, data, Path(folder), before=of(before) if before is not None else None,
        resume=resume, limit=limit, workers=workers,
    )  # fmt: skip


@collector_paused()
@only_new_collected()
def compile_checked(
    model: nn.Module,
    example: NDArray[np.float32],
    calibration: NDArray[np.float32],
    machine: Machine,
    *,
    check: NDArray[np.float32] | None,
    passes: str | None,
    schedule: Schedule,
    dump_to: Path | None,
    origin: tuple[str, str, str],
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    settings: Settings | None = None,
    hoist: bool = True,
    image_scale: float | None = None,
    consume: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Compiled:
    """Trace, import, compile. `origin`: model, checkpoint and calibration, as the provenance says them.

    `passes` stands for the default pipeline with the parts of `settings` and `hoist`. `calibration` may be empty where
    `image_scale`, the real value of the image's integer 1, is given. With `consume` the model loses its weights once it
    is imported, which saves their memory.
    """
    import torch

    from compiler.frontend.eager import compare_with_eager
    from compiler.frontend.importer import import_model
    from compiler.pipeline import compile_network
    from compiler.settings import Parts
    from isa.program import Provenance

    if schedule not in ("layers", "windows"):
        raise CStepError(f"schedule {schedule}: no such schedule; there are layers and windows")
    if calibration.shape[1:] != example.shape[1:]:
        given, wanted = list(calibration.shape), list(example.shape[1:])
        raise CStepError(f"calibration: shape {given}; it must be the example's, [B, {', '.join(map(str, wanted))}]")
    name, checkpoint, calibrated_on = origin

    def begun(name: str) -> None:
        _give_back_memory()
        if progress is not None:
            progress(name)

    if passes is None:
        passes = (settings.passes() if settings else Parts()).pipeline(hoist)
    elif settings is not None:
        raise CStepError("passes: say what settings say; give one of the two")
    if image_scale is not None:
        passes = passes.replace("SCALE", repr(image_scale))
    networks = [import_model(model, torch.from_numpy(example))]
    _give_back_memory()  # the traced graph, a ring of nodes, holds every value of the example
    equal = compare_with_eager(model, networks[0], check) if check is not None else 0
    note = "== eager model, bit for bit (float32)" + (_beside_onnxruntime(model, check) if check is not None else "")
    if consume:
        model.to("meta")
    compiled = compile_network(
        networks.pop(),  # nothing here holds on to its weights
        machine=machine,
        calibration=calibration,
        check=check,
        provenance=Provenance(
            model=name,
            checkpoint=checkpoint,
            calibration=calibrated_on,
            pipeline="",
            schedule=schedule,
            version=__version__,
            settings=settings.canonical() if settings else "",
        ),
        normalisation=normalisation,
        passes=passes,
        schedule=schedule,
        dump_to=dump_to,
        emulate=emulate,
        progress=begun,
    )
    if not equal:
        return compiled
    imported = replace(compiled.checks[0], compared=equal, note=note)
    return replace(compiled, checks=(imported, *compiled.checks[1:]))


def _beside_onnxruntime(model: nn.Module, inputs: NDArray[np.float32]) -> str:
    """What comparing the module of an ONNX file with onnxruntime found; nothing for other modules."""
    from compiler.frontend.onnx.model import OnnxModule

    if not isinstance(model, OnnxModule):
        return ""
    from compiler.frontend.onnx.compare import compare_with_onnxruntime

    return f"; onnxruntime within {compare_with_onnxruntime(model, inputs).largest:.0e} (relative)"


def emulate(program: Program, inputs: NDArray[np.float32]) -> Observed:
    """Run a program for the compiler's comparison, which must not know the runtime."""
    from compiler.check import Observed
    from runtime.interpreter import run
    from runtime.quantise import quantise_input

    seen = run(program, quantise_input(program, inputs), observe=True, workers=cores())
    assert seen.currents is not None
    return Observed(seen.logits, seen.currents, seen.steps)


def _give_back_memory() -> None:
    """What was freed goes back to the system; glibc would keep it, a gigabyte where inputs are large."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _array(values: Any, what: str) -> NDArray[Any]:
    """An array, tensor or nested list as an array. Raises CStepError for what is none."""
    import numpy as np

    try:
        return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (ValueError, TypeError) as error:
        raise CStepError(f"{what}: {type(values).__name__} is no array of numbers ({error})") from None


def _float_images(values: Any, what: str) -> NDArray[np.float32]:
    """Finite float32 images or events. Raises CStepError for another type or shape, and for NaN."""
    import numpy as np

    images = _array(values, what)
    if images.dtype != np.float32:
        raise CStepError(f"{what}: {images.dtype} values; the model takes float32")
    if images.ndim not in (4, 5):
        raise CStepError(f"{what}: shape {list(images.shape)}; it must be [B, C, H, W], or [B, T, C, H, W] for events")
    if not np.isfinite(images).all():
        raise CStepError(f"{what}: NaN or infinite values; all must be finite")
    return np.ascontiguousarray(images)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `cstep` command; returns its exit code. A user's mistake is one line on stderr and code 2."""
    from command.application import run_command

    return run_command(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
