"""The torch.fx tracer whose proxies carry an example value.

Shapes, `len`, loops over T and asserts are then plain Python on the example; only tensor computations become nodes. A
large example has a shape and no values, unless the model needs them. Neurons and layers are leaves. Every node keeps
the Python line that made it, and the module it stands in.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

from compiler.frontend.neurons import is_neuron, keeps_state, neurons_of, require_multi_step
from compiler.frontend.padded_norm import pads_norm
from compiler.frontend.shape_run import META, ShapeRun, ValueNeededError, lacks_values
from compiler.nn import DynamicTimeSteps, unmasked
from isa.errors import CStepError

LARGE = 1 << 16
"""Larger examples have a shape only: a 224x224 image makes a gigabyte of values, a 32x32 one less than it takes to load
what torch needs for shapes alone.
"""
_TORCH = str(Path(torch.__file__).parent)
_PLUMBING = ("spikingjelly/activation_based/layer", "spikingjelly/activation_based/functional")
"""Parts of a path: who calls these layers is who is meant."""
_PLAIN = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "is_sparse", "names"}
_ABOUT = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex",
    "is_tensor", "element_size", "get_device", "type", "is_same_size",
}  # fmt: skip
"""Calls that say something about a tensor, not about its values: their results are constants of the trace."""
_OF_DEVICE = {"get_device", "type"}
"""Those of them that another device answers otherwise."""


def _source_line() -> str:
    """File and line of the innermost Python frame that belongs to the model."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if not (name == __file__ or name.startswith((_TORCH, "<")) or any(part in name for part in _PLUMBING)):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class ExampleProxy(fx.Proxy):
    """A proxy that knows an example of its value."""

    example: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "device" and self.example.is_meta:
            return torch.device("cpu")  # where constants get values
        if name in _PLAIN:
            return getattr(self.example, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.example)

    def __iter__(self) -> Iterator[Any]:
        return iter([cast(Any, self)[index] for index in range(len(self.example))])

    def __bool__(self) -> bool:
        raise CStepError(f"{_source_line()}: the model branches on a tensor's value; a program has no such branch")

    def __int__(self) -> int:
        raise CStepError(f"{_source_line()}: the model turns a tensor's value into a number; it must stay a tensor")

    __float__ = __index__ = __complex__ = __int__

    def __iadd__(self, other: Any) -> Any:
        """`x += y`, kept apart from `x + y`: other names of x see it too."""
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise CStepError(f"{_source_line()}: the model assigns into a tensor; build it with stack or cat instead")


class ExampleTracer(fx.Tracer):
    """Traces a module called with example inputs."""

    def __init__(self, example: Tensor) -> None:
        super().__init__(autowrap_modules=())  # pyright: ignore[reportArgumentType]
        self._input = example
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_neuron(m) or keeps_state(m) or pads_norm(m) or isinstance(m, DynamicTimeSteps):
            return True
        if isinstance(m, nn.Sequential | nn.ModuleList):
            return False
        return isinstance(m, LAYERS) or m.__module__.startswith("torch.nn")

    def proxy(self, node: fx.Node) -> ExampleProxy:
        return ExampleProxy(node, self)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The model is called with one input; its other parameters keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "input", (), {})]

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        example = self._example(kind, target, args, kwargs)
        if kind not in ("placeholder", "output") and not isinstance(example, Tensor | tuple | list):
            if kind.startswith("call") and getattr(target, "__name__", target) not in _ABOUT:
                raise CStepError(
                    f"{_source_line()}: the model turns a tensor into {_plain(example)}; it must stay a tensor"
                )
            return example
        made = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        made.node.meta |= {"example": example, "source": _source_line(), "module": self.scope.module_path}
        if isinstance(made, ExampleProxy):
            made.example = example
        return made

    def create_arg(self, a: Any) -> Any:
        """A tensor that is no proxy does not depend on the input: a constant, named after its parameter or buffer."""
        if isinstance(a, Tensor):
            if lacks_values(a):
                raise ValueNeededError
            node = self.create_node("get_attr", self._name_of(a), (), {})
            node.meta["example"] = a
            return node
        if isinstance(a, tuple):  # a namedtuple is a tuple
            return tuple(self.create_arg(item) for item in cast(tuple[Any, ...], a))
        return super().create_arg(a)

    def _name_of(self, tensor: Tensor) -> str:
        """The state dict's name of a tensor, or of the one that it is a view of; empty where there is none."""
        base = tensor._base if tensor._base is not None else tensor
        named = (*self.root.named_parameters(), *self.root.named_buffers())
        return next((name for name, known in named if known is tensor or known is base), "")

    def _example(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._input
        args, kwargs = _examples((args, kwargs))
        if kind == "output":
            return args[0]
        self._evaluating = True
        try:
            with torch.no_grad():
                if not lacks_values((args, kwargs)):
                    return self._called(kind, target, args, kwargs)
                if kind == "call_method" and target in _OF_DEVICE:
                    raise ValueNeededError
                with ShapeRun():
                    return self._called(kind, target, args, kwargs)
        finally:
            self._evaluating = False

    def _called(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "call_module":
            module = operator.attrgetter(target)(self.root)
            if is_neuron(module) and len(args) == 1 and not kwargs and lacks_values(args):
                return torch.empty(args[0].shape, dtype=args[0].dtype, device=META)  # `recognise` makes sure of it
            if is_neuron(module) or keeps_state(module):
                module = unmasked(module)  # a copy: the model's own keeps no membrane of the example
            if isinstance(module, DynamicTimeSteps):
                return args[0].clone()  # the importer says whether its T is the train's
            return module(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if target is operator.iadd:
            return args[0] + args[1]
        return target(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """While an example is computed, modules (which fx has patched) just run."""
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters stay tensors, so that `create_arg` sees where the model computes with one."""
        return attr_val


def _plain(example: Any) -> str:
    return f"the {type(example).__name__} {example}" if isinstance(example, int | float) else type(example).__name__


def _examples(tree: Any) -> Any:
    if isinstance(tree, ExampleProxy):
        return tree.example
    if isinstance(tree, Attribute):
        return getattr(tree.root.example, tree.attr)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tree, list):
        return [_examples(item) for item in cast(list[Any], tree)]
    if isinstance(tree, tuple):
        return tuple(_examples(item) for item in cast(tuple[Any, ...], tree))
    if isinstance(tree, dict):
        return {key: _examples(value) for key, value in tree.items()}
    return tree


LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.Flatten, nn.Dropout, nn.Identity,
)  # fmt: skip
"""Layers, subclasses included, that are leaves wherever they are defined."""


def trace(model: nn.Module, example: Tensor) -> fx.Graph:
    """The graph of `model` called with `example` [1, C, H, W] (or [1, T, C, H, W]); neurons are reset first.

    Every parameter after the first that has a default keeps it.
    """
    for path, module in neurons_of(model):
        require_multi_step(module, path)
    for module in model.modules():  # these run them: not to be done while fx has patched the call of modules
        is_neuron(module)
        pads_norm(module)
    model.eval()
    if example.numel() > LARGE:
        try:
            return _traced(model, example.to(META))
        except Exception:  # it looks at values; or it fails on any: running it on some says where
            pass
    return _traced(model, example.clone())  # the model may write into it


def _traced(model: nn.Module, example: Tensor) -> fx.Graph:
    """The graph. Raises CStepError naming the line where the model cannot be traced or run."""
    reset(model)
    try:
        graph = ExampleTracer(example).trace(model)
    except (CStepError, ValueNeededError):
        raise
    except TraceError as error:
        raise CStepError(f"{_failure_line(error)}: cannot be traced: {_first_line(error)}") from None
    except Exception as error:
        raise CStepError(
            f"{_failure_line(error)}: the model fails on an input {list(example.shape)}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from None
    reset(model)
    return graph


def reset(model: nn.Module) -> None:
    """Neurons at rest: nothing of one input is left for the next."""
    for module in model.modules():
        if (is_neuron(module) or keeps_state(module)) and hasattr(module, "reset"):
            module.reset()  # type: ignore[operator]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _failure_line(error: BaseException) -> str:
    """The innermost line of the model in an error's traceback."""
    traceback, line = error.__traceback__, "model"
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith((_TORCH, "<")):
            line = f"{Path(name).name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line
