"""The model that a command line names: an architecture of the zoo, a factory in Python, or an ONNX file.

spikformer-2-64          a name of the zoo; its checkpoint says the sizes that the name leaves open
model.py:build           the factory `build` of a file
package.models:build     the factory `build` of a module that can be imported
net.onnx                 an ONNX file, which has its own weights
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from compiler import zoo
from compiler.frontend import clock_driven
from compiler.frontend.checkpoint import Checkpoint, apply_checkpoint, load_checkpoint
from compiler.frontend.checkpoint import one_line as first_words
from compiler.frontend.timesteps import hold_time_scores
from isa.errors import CStepError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode, and what its data must look like."""

    name: str
    module: nn.Module
    input: Shape | None
    """Channels, height, width of an image, timesteps before them of events; None where only the data tell."""
    mean: tuple[float, ...] | None
    """Per channel, of pixels scaled to 0..1; None where nothing is known."""
    std: tuple[float, ...] | None
    checkpoint: str
    """The checkpoint's name and digest; without one, where the weights come from."""
    needs_calibration: str = ""
    """Why its integers cannot be found from the weights alone; empty where they can, or where only the passes tell."""


def open_model(spec: str, checkpoint: Path | None) -> Model:
    """The model called `spec`, with the weights of a checkpoint where one is given.

    Raises CStepError for a name that is none of the four kinds, a factory that fails or gives no module, and a
    checkpoint that does not fit.
    """
    if spec.endswith(".onnx"):
        return _onnx(spec, checkpoint)
    loaded = load_checkpoint(checkpoint) if checkpoint is not None else None
    where = str(checkpoint)
    place, colon, factory = spec.rpartition(":")
    if checkpoint is not None:
        origin = f"{checkpoint.name} sha256:{_digest(checkpoint)}"
    else:
        origin = "none, weights as the factory made them" if colon else "none, random weights"
    if not colon and (spec.endswith(".py") or Path(spec).exists()):
        raise CStepError(f"{spec}: name the factory too, {spec}:FACTORY, a function that returns the model")
    if colon:
        module = _made(spec, place, factory)
        mean, std = _normalisation(loaded)
        if loaded is not None:
            hold_time_scores(module, loaded.state, where)
            apply_checkpoint(module, loaded.state, (), where)
        return Model(spec, module.eval(), None, mean, std, origin)
    state, metadata = (loaded.state, loaded.metadata) if loaded is not None else (None, {})
    with torch.device("meta") if loaded is not None else nullcontext():  # weights drawn at random would be for nothing
        module, entry = zoo.build(spec, state, metadata)
    if loaded is not None:
        hold_time_scores(module, loaded.state, where, entry.timesteps)
        apply_checkpoint(module, loaded.state, entry.dead_keys, where)
    return Model(spec, module.eval(), entry.shape, entry.mean, entry.std, origin, entry.needs_calibration)


def _onnx(spec: str, checkpoint: Path | None) -> Model:
    """The model of an ONNX file."""
    from compiler.frontend.onnx.model import open_onnx

    if checkpoint is not None:
        raise CStepError(f"{checkpoint}: an ONNX file has its own weights; leave --checkpoint out")
    module, shape = open_onnx(Path(spec))
    return Model(spec, module, shape, None, None, f"{Path(spec).name} sha256:{_digest(Path(spec))}")


def _digest(path: Path) -> str:
    """The first 16 digits of a file's sha256: enough to tell checkpoints apart."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _normalisation(loaded: Checkpoint | None) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation from the checkpoint's metadata, where it has them."""
    metadata = loaded.metadata if loaded is not None else {}
    if "mean" not in metadata or "std" not in metadata:
        return None, None
    return zoo.normalisation(metadata, len(metadata["mean"].split(",")))


def _made(spec: str, place: str, factory: str) -> nn.Module:
    """What the factory returns. Whatever it raises is the user's own code's, and said in one line with its place."""
    try:
        source, function, made = _called(place, factory)
    except CStepError:
        raise
    except (Exception, SystemExit) as error:
        raise CStepError(f"{spec}: {type(error).__name__}: {first_words(error)}{_line_of(error, place)}") from None
    if not callable(function):
        found = ", ".join(_callables(source)[:8]) or "no function"
        raise CStepError(f"{spec}: {place} has no function {factory}; it has {found}")
    if not isinstance(made, nn.Module):
        raise CStepError(f"{spec}: {factory}() returns {type(made).__name__}; it must return a torch.nn.Module")
    return made


def _called(place: str, factory: str) -> tuple[ModuleType, object, object]:
    """The module of a place, its factory, and what the factory returns; None for either that there is not."""
    try:
        source = _module_of(place)
        function = getattr(source, factory, None)
        return source, function, function() if callable(function) else None
    except ModuleNotFoundError as error:
        if not clock_driven.is_missing(error):
            raise
    clock_driven.install()
    sys.stderr.write(f"cstep: note: {place} imports {clock_driven.OLD}; it gets {clock_driven.NEW} under these names\n")
    return _called(place, factory)


def _module_of(place: str) -> ModuleType:
    """The module of a file, or an importable one; the working directory counts, as with `python -m`."""
    path = Path(place)
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    if not path.is_file():
        raise CStepError(f"{place}: no such file; a model is FILE.py:FACTORY, MODULE:FACTORY or a name of the zoo")
    sys.path.insert(0, str(path.resolve().parent))  # so that it finds the files beside it, as with `python FILE.py`
    description = importlib.util.spec_from_file_location(path.stem, path)
    assert description is not None and description.loader is not None
    module = importlib.util.module_from_spec(description)
    sys.modules[path.stem] = module
    description.loader.exec_module(module)
    return module


def _callables(module: ModuleType) -> Sequence[str]:
    """Names of functions and classes that a module itself defines."""
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
    return sorted(name for name in own if not name.startswith("_"))


def _line_of(error: BaseException, place: str) -> str:
    """` (model.py:12)`, the last line of the user's file that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({Path(error.filename).name}:{error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == Path(place).name
    ]
    return f" ({Path(place).name}:{frames[-1].lineno})" if frames else ""
