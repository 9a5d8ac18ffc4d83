"""Read a downloaded checkpoint without running anything in it, and put its weights into a module, all or none.

A .pth file is a pickle, and a pickle is a program. It is read by torch's restricted unpickler only; there is no way
back to the full one.
"""

import argparse
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from isa.errors import CStepError

TORCH_ENDINGS = (".pth", ".pt", ".pth.tar")

# Where training scripts put the weights, in the order of preference: timm's name and the other scripts', then their
# averages. Who keeps an average writes both; timm's own `load_checkpoint` takes the weights by default.
CONTAINERS = ("state_dict", "model", "state_dict_ema", "model_ema")

# Prefixes that DataParallel and torch.compile put before every key.
WRAPPERS = ("module.", "_orig_mod.")

# What the published training scripts call the constructor's arguments: their argparse.Namespace is often saved beside
# the weights, and holds what no tensor's shape tells (timesteps, heads).
SCRIPT_ARGUMENTS = {
    "T": ("T",),
    "time_step": ("T",),
    "time_steps": ("T",),
    "num_heads": ("num_heads",),
    "img_size": ("img_size_h", "img_size_w"),
    "input_size": ("img_size_h", "img_size_w"),
    "patch_size": ("patch_size",),
    "num_classes": ("num_classes",),
    "layer": ("depths",),
    "dim": ("embed_dims",),
    "mlp_ratio": ("mlp_ratios",),
    "in_channels": ("in_channels",),
    "pooling_stat": ("pooling_stat",),
    "dvs_mode": ("dvs_mode",),
}
PER_CHANNEL = ("mean", "std")  # lists of numbers, under their own names

LISTED = 8  # keys shown per complaint: enough to recognise the cause, few enough for one line


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by key, wrapper prefixes removed, and what the file says of the model, as strings."""

    state: dict[str, Tensor]
    metadata: dict[str, str]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read `.safetensors`, `.pth`, `.pt` or `.pth.tar`.

    Raises CStepError for a missing, truncated or foreign file, for one without weights, and for a pickle that needs
    anything but tensors, plain containers and an argparse.Namespace.
    """
    path = Path(path)
    if not path.is_file():
        raise CStepError(f"{path}: {'a folder, not a checkpoint' if path.is_dir() else 'no such checkpoint'}")
    if path.name.endswith(".safetensors"):
        return read_safetensors(path)
    if path.name.endswith(TORCH_ENDINGS):
        return read_pickle(path)
    raise CStepError(f"{path}: not a checkpoint by its name; expected .safetensors, {', '.join(TORCH_ENDINGS)}")


def read_safetensors(path: Path) -> Checkpoint:
    """A safetensors file; its header carries the metadata."""
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            state: dict[str, Tensor] = {key: file.get_tensor(key) for key in sorted(file.keys())}
            metadata: dict[str, str] = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CStepError(f"{path}: truncated, or not a safetensors file ({one_line(error)})") from None
    return Checkpoint(unwrap(path, state), metadata)


def read_pickle(path: Path) -> Checkpoint:
    """A torch.save file, through the restricted unpickler."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # on old pickle protocols: if they matter, an error follows
            mapped = zipfile.is_zipfile(path)  # read where it is needed; torch's older files cannot be
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CStepError(refusal(path, error)) from None
    except Exception as error:  # a damaged file can make the unpickler fail in any way; the mistake is the file
        raise CStepError(f"{path}: truncated, or not a PyTorch checkpoint ({one_line(error)})") from None
    state, metadata = content, dict[str, str]()
    if isinstance(content, dict):
        fields = cast("dict[object, object]", content)
        container = next((key for key in CONTAINERS if isinstance(fields.get(key), Mapping)), None)
        if container is not None:
            state = fields[container]
            metadata = script_arguments(fields.values())
    if not isinstance(state, Mapping):
        raise CStepError(f"{path}: holds {type(state).__name__}, expected a state_dict; save model.state_dict()")
    return Checkpoint(unwrap(path, cast("Mapping[object, object]", state)), metadata)


def refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """What the restricted unpickler would not do, without torch's advice to switch the restriction off."""
    if found := re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"class (\S+) to be", str(error)):
        name = found[1].rstrip(".,")
    else:
        name = first_global(path)
    if name:
        return f"{path}: refused, loading it would run {name}; save model.state_dict() alone, or use safetensors"
    detail = str(error).rsplit("WeightsUnpickler error:", maxsplit=1)[-1]
    return f"{path}: truncated, or not a PyTorch checkpoint ({one_line(detail)})"


def first_global(path: Path) -> str:
    """The first global that a bare pickle asks for, read without running it; "" where there is none.

    torch's unpickler stops at newer pickle protocols before it comes to the global, and would not name it.
    """
    texts = [""]
    try:
        for operation, argument, _ in pickletools.genops(path.read_bytes()):
            if operation.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if operation.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    except (ValueError, EOFError, IndexError, struct.error):  # no pickle at all, or cut short
        return ""
    return ""


def script_arguments(fields: Iterable[object]) -> dict[str, str]:
    """The constructor's arguments, from the training script's argparse.Namespace among the `fields`, if any.

    Only plain numbers count: an argument that was not given is None, and some scripts call other things by these names
    (timm's `input_size` is a list).
    """
    metadata: dict[str, str] = {}
    for field in fields:
        given: dict[str, object] = dict(vars(field)) if isinstance(field, argparse.Namespace) else {}
        for argument, names in SCRIPT_ARGUMENTS.items():
            if is_number(value := given.get(argument)):
                metadata.update(dict.fromkeys(names, str(value)))
        for argument in PER_CHANNEL:
            value = given.get(argument)
            numbers = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
            if numbers and all(map(is_number, numbers)):
                metadata[argument] = ",".join(map(str, numbers))
    return metadata


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def unwrap(path: Path, state: Mapping[Any, object]) -> dict[str, Tensor]:
    """Tensors under their own keys: a prefix goes only where every key has it."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kinds = f"{type(key).__name__}: {type(value).__name__}"
            raise CStepError(f"{path}: {key!r} is {kinds}, expected name: Tensor; save model.state_dict()")
        tensors[key] = value
    if not tensors:
        raise CStepError(f"{path}: holds no tensor; save model.state_dict()")
    while prefix := next((wrapper for wrapper in WRAPPERS if all(key.startswith(wrapper) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def apply_checkpoint(model: nn.Module, state: Mapping[str, Tensor], dead_keys: Sequence[str], where: str) -> None:
    """Put `state` into `model`; `where` names the file in errors.

    A tensor of the model's own type becomes the model's as it is, without a copy.

    Keys that match one of the `dead_keys` (regular expressions of whole keys) are dropped, unless the model has them.
    All others must be the model's keys, no fewer, no more, with its shapes and kind of number, and finite.

    Raises CStepError listing what differs; the model is then unchanged.
    """
    wanted = model.state_dict()
    given = {
        key: tensor
        for key, tensor in state.items()
        if key in wanted or not any(re.fullmatch(pattern, key) for pattern in dead_keys)
    }
    both = [key for key in wanted if key in given]
    alike = [key for key in both if same_kind(wanted[key], given[key])]
    complaints = [
        complaint("missing", [key for key in wanted if key not in given], str),
        complaint("unknown", [key for key in given if key not in wanted], str),
        complaint(
            "of another shape or type",
            [key for key in both if key not in alike],
            lambda key: f"{key} {described(given[key])}, the model has {described(wanted[key])}",
        ),
        complaint("not finite", [key for key in alike if not finite_as(wanted[key], given[key])], str),
    ]
    if found := [text for text in complaints if text]:
        raise CStepError(f"{where}: does not fit {type(model).__name__}: {'; '.join(found)}")
    fitting = {key: tensor.to(wanted[key].dtype).contiguous() for key, tensor in given.items()}
    model.load_state_dict(fitting, strict=True, assign=True)


def same_kind(wanted: Tensor, given: Tensor) -> bool:
    """Equal shapes, both dense, and both floating point or of the same integer type."""
    kind = given.is_floating_point() if wanted.is_floating_point() else given.dtype == wanted.dtype
    return kind and given.shape == wanted.shape and given.layout == torch.strided and not given.is_meta


def finite_as(wanted: Tensor, given: Tensor) -> bool:
    """No NaN and no infinity, also after the conversion to the model's own type."""
    return bool(torch.isfinite(given.to(wanted.dtype)).all())


def described(tensor: Tensor) -> str:
    """`64x384 float32`, or `scalar int64`."""
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}".replace("torch.", "")
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}".replace("torch.", "") + layout


def complaint(what: str, keys: Sequence[str], say: Callable[[str], str]) -> str:
    """`2 missing (head.weight, head.bias)`, or nothing where no key is to blame."""
    if not keys:
        return ""
    listed = ", ".join(say(key) for key in keys[:LISTED])
    return f"{len(keys)} {what} ({listed}{', ...' if len(keys) > LISTED else ''})"


def one_line(error: object) -> str:
    """The first sentence of a library's message, or its kind where it has no words."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0][:160].strip() if lines else type(error).__name__
