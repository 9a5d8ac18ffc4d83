"""An ONNX file becomes a torch module: operators, neurons as one operator or unrolled over time, and refusals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.frontend.onnx.compare import compare_with_onnxruntime
from compiler.frontend.onnx.model import OnnxModule, open_onnx
from compiler.frontend.onnx.neuron import Neuron
from compiler.ir import spike
from compiler.ir.onnx.real import real_onnx
from compiler.ir.onnx.schema import DOMAIN
from compiler.zoo.level import Level
from isa.errors import CStepError
from tests.families import FAMILIES

Array = NDArray[np.float32]
GENERATOR = np.random.default_rng(3)
ROUNDING = 1e-5


def logits(model: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def by_torch(model: nn.Module, x: Array, path: Path) -> Path:
    """torch's own exporter, which unrolls the neurons' loops."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.from_numpy(x[:1]),), path, dynamo=False)
    return path


def of_cstep(model: nn.Module, x: Array, path: Path, unrolled: bool) -> Path:
    onnx.save(real_onnx(import_model(model, torch.from_numpy(x[:1])), unrolled=unrolled), path)
    return path


@pytest.mark.parametrize("writer", ["torch", "c-step", "c-step unrolled"])
@pytest.mark.parametrize(("name", "steps"), [("spikformer-cifar", 1), ("spikformer-cifar", 3), ("sdt-v3-events", 2)])
def test_a_file_is_the_model_that_it_was_exported_from(name: str, steps: int, writer: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model, x = family.build(steps), family.inputs(2, steps=steps)
    path = tmp_path / "net.onnx"
    module, shape = open_onnx(
        by_torch(model, x, path) if writer == "torch" else of_cstep(model, x, path, "unrolled" in writer)
    )
    assert shape == x.shape[1:]
    assert np.abs(logits(module, x[:1]) - logits(model, x[:1])).max() < ROUNDING
    assert compare_with_onnxruntime(module, x).largest < ROUNDING
    network, imported = (import_model(each, torch.from_numpy(x[:1])) for each in (model, module))
    assert compare_with_eager(module, imported, x) > 0
    assert neurons(imported) == neurons(network)
    assert set(module.state_dict()) <= set(model.state_dict()) or writer == "torch"


def neurons(network: Any) -> list[Any]:
    """Every neuron's label and equation."""
    lifs = [op for op in network.operations() if isinstance(op, spike.Lif)]
    levels = [op for op in network.operations() if isinstance(op, spike.Level)]
    words = ("tau", "threshold", *spike.Lif.DEFAULTS)
    return [
        *((op.label, *(op.get(word) for word in words)) for op in lifs),
        *((op.get("levels"), op.get("norm"), op.get("ties")) for op in levels),
    ]


class One(nn.Module):
    """A neuron on an image of 2 channels, over `steps` timesteps."""

    def __init__(self, neuron: nn.Module, steps: int) -> None:
        super().__init__()
        self.conv, self.neuron, self.steps = nn.Conv2d(1, 2, 1), neuron, steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        return self.neuron(x).flatten(3).mean(3).mean(0)


EQUATIONS = [
    {"tau": tau, "threshold": threshold, "charge": charge, "reset": reset, "fires": fires, "decay": decay}
    for (tau, threshold), charge, reset, fires, decay in product(
        [(2.0, 1.0), (1.5, 0.5)], ["lif", "lif_undecayed"], ["hard", "soft"], ["ge", "gt"], ["divide", "multiply"]
    )
    if (tau, decay) != (2.0, "multiply")  # a half is exact either way
]


@pytest.mark.parametrize(
    "equation", [*EQUATIONS, {"tau": 1.0, "threshold": 0.3, "charge": "if", "reset": "soft"}], ids=str
)
def test_every_equation_is_rolled_back_up(equation: dict[str, Any], tmp_path: Path) -> None:
    x = GENERATOR.standard_normal((1, 1, 4, 4), np.float32)
    module, _ = open_onnx(of_cstep(One(Neuron(**equation), 5), x, tmp_path / "net.onnx", unrolled=True))
    found = [each for each in module.modules() if isinstance(each, Neuron)]
    assert len(found) == 1
    assert vars(Neuron(**equation)).items() >= {
        (key, value) for key, value in vars(found[0]).items() if isinstance(value, str | float)
    }


def test_a_neuron_that_emits_its_threshold_is_rolled_back_up(tmp_path: Path) -> None:
    x = GENERATOR.standard_normal((1, 1, 4, 4), np.float32)
    model = One(Neuron(2.0, 0.5, reset="soft", emits=0.5), 3)
    module, _ = open_onnx(of_cstep(model, x, tmp_path / "net.onnx", unrolled=True))
    assert [each.emits for each in module.modules() if isinstance(each, Neuron)] == [0.5]


@pytest.mark.parametrize("ties", ["even", "up"])
def test_levels_are_rolled_back_up(ties: Any, tmp_path: Path) -> None:
    x = GENERATOR.standard_normal((1, 1, 4, 4), np.float32)
    module, _ = open_onnx(by_torch(One(Level(4, ties), 2), x, tmp_path / "net.onnx"))
    found = [(each.levels, each.norm, each.ties) for each in module.modules() if isinstance(each, Level)]
    assert found == [(4, 4.0, ties)]


# --- graphs written by hand


def graph_of(
    *nodes: onnx.NodeProto,
    shape: Sequence[Any] = (1, 3, 4, 4),
    kind: int = TensorProto.FLOAT,
    opsets: dict[str, int] | None = None,
    **constants: Any,
) -> onnx.ModelProto:
    """From input x to output y; integers become int64."""
    held = [numpy_helper.from_array(np.asarray(value, _kind(value)), name) for name, value in constants.items()]
    image = helper.make_tensor_value_info("x", kind, shape)
    made = helper.make_graph(list(nodes), "by hand", [image], [onnx.ValueInfoProto(name="y")], held)
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 18, DOMAIN: 1}).items()]
    model = helper.make_model(made, opset_imports=imports, ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    model.graph.output[0].CopyFrom(inferred if inferred.type.WhichOneof("value") else image)
    model.graph.output[0].name = "y"
    return model


def _kind(value: Any) -> Any:
    kind = np.asarray(value).dtype
    return kind if kind in (np.int64, np.bool_) else np.float32


def node(text: str, **attributes: Any) -> onnx.NodeProto:
    """`y = Add a b`."""
    outputs, _, call = text.partition(" = ")
    operator, *inputs = call.split(" ")
    domain = DOMAIN if operator in ("Neuron", "Level") else ""
    made = helper.make_node(
        operator, ["" if i == "_" else i for i in inputs], outputs.split(" "), f"at/{outputs[0]}/{operator}"
    )
    made.domain = domain
    made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return made


W = GENERATOR.standard_normal((5, 4)).astype(np.float32)
OPERATORS: dict[str, onnx.ModelProto] = {
    "a linear layer with its bias": graph_of(node("a = MatMul x w"), node("y = Add b a"), w=W.T[:4], b=W[:, 0]),
    "W x": graph_of(node("y = MatMul w x"), w=W),
    "gemm": graph_of(
        node("a = Flatten x", axis=1), node("y = Gemm a w b", alpha=0.5, beta=2.0, transB=1),
        w=GENERATOR.standard_normal((5, 48)), b=W[:, 0],
    ),
    "one constant a channel": graph_of(
        node("a = Mul x c"), node("b = Sub a c"), node("d = Div b c"), node("y = Add d c"),
        c=np.reshape([1.5, -2.0, 0.25], (3, 1, 1)),
    ),
    "one constant a token's channel": graph_of(
        node("a = Reshape x s"), node("y = Mul a c"), s=[2, 1, 3, 4, 2], c=[1.5, -2.0], shape=(1, 3, 4, 4),
    ),
    "numbers": graph_of(node("a = Mul x c"), node("b = Div a d"), node("y = Add b c"), c=0.7, d=3.0),
    "old and new squeezes": graph_of(
        node("a = Unsqueeze x z"), node("b = Squeeze a z"), node("c = Squeeze b"), node("y = Unsqueeze c two"),
        z=[0], two=[0, 2],
    ),
    "pieces": graph_of(
        node("a b = Split x s", axis=1), node("c = Slice x st en ax"), node("d = Gather c i", axis=1),
        node("e = Concat a b c", axis=1), node("f = Slice e st en ax"), node("y = Add d f"),
        s=[1, 2], st=[1], en=[100], ax=[1], i=[0],
    ),
    "reductions": graph_of(
        node("a = ReduceMean x ax"), node("b = ReduceSum x ax", keepdims=0), node("c = Unsqueeze b ax"),
        node("y = Add a c"), ax=[2, 3],
    ),
    "pools": graph_of(
        node("a = MaxPool x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("b = AveragePool a", kernel_shape=[2, 2]), node("c = GlobalAveragePool x"), node("y = Add b c"),
    ),
    "convolutions": graph_of(
        node("a = Conv x v", group=3, pads=[1, 1, 1, 1]), node("s = Reshape a r"), node("y = Conv s u b"),
        v=GENERATOR.standard_normal((3, 1, 3, 3)), r=[0, 0, -1], u=GENERATOR.standard_normal((5, 3, 1)), b=W[:, 0],
    ),
    "a shape computed from the input's": graph_of(
        node("s = Shape x"), node("c = Gather s i"), node("k = Concat c n", axis=0), node("y = Reshape x k"),
        i=[0, 1], n=[-1],
    ),
    "repetition": graph_of(
        node("a = Unsqueeze x z"), node("b = Expand a s"), node("c = Tile a t"), node("d = Concat a a", axis=0),
        node("e = Add b c"), node("y = Add e d"), z=[0], s=[2, 1, 3, 4, 4], t=[2, 1, 1, 1, 1],
    ),
    "nothing": graph_of(
        node("a = Identity x"), node("b = Dropout a"), node("c = Cast b", to=1), node("d = Transpose c"),
        node("y = Transpose d"),
    ),
    "a border": graph_of(
        node("a = Pad x p"), node("b = Where in a v"), node("y = Pad b p"), p=[0, 0, 1, 1, 0, 0, 1, 1],
        **{"in": np.pad(np.ones((1, 1, 4, 4), np.bool_), [(0, 0), (0, 0), (1, 1), (1, 1)])},
        v=np.reshape([0.5, -1.5, 0.0], (1, 3, 1, 1)),
    ),
    "a batch norm": graph_of(
        node("y = BatchNormalization x a b m v", epsilon=1e-3), a=[1.0, 2.0, -0.5], b=[0.0, 1.0, 2.0],
        m=[0.5, -0.5, 0.1], v=[1.0, 0.5, 2.0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OPERATORS)
def test_operators_compute_what_onnxruntime_does(what: str, tmp_path: Path) -> None:
    module, _ = open_onnx(saved(OPERATORS[what], tmp_path))
    x = GENERATOR.standard_normal((2, 3, 4, 4), np.float32)
    agreement = compare_with_onnxruntime(module, x)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x[:1]})[0]
    assert agreement.compared == 2 * found.size
    assert agreement.largest < 1e-6
    assert np.allclose(module.run(torch.from_numpy(x[:1]), ["y"])["y"].numpy(), found, atol=1e-5)


def neuron_by_hand(**changed: str) -> onnx.ModelProto:
    """An integrate-and-fire neuron over dimension 1, two steps, hard reset by Not and Where."""
    lines = {
        "a": "a = Slice x zero one one", "b": "b = Slice x one two one",
        "f": "f = Greater a th", "n": "n = Not f", "v": "v = Where n a nil", "h": "h = Add b v",
        "g": "g = Greater h th", "s": "s = Cast f", "t": "t = Cast g", "y": "y = Concat s t",
    } | changed  # fmt: skip
    extra = {"s": {"to": 1}, "t": {"to": 1}, "y": {"axis": 1} if "Concat" in lines["y"] else {}}
    return graph_of(
        *(node(line, **extra.get(name, {})) for name, line in lines.items()), shape=(1, 2, 3, 4, 4),
        zero=[0], one=[1], two=[2], th=0.75, nil=0.0, sharp=[[[0.5]], [[0.75]], [[1.0]]],
    )  # fmt: skip


def test_a_neuron_unrolled_over_another_dimension_is_rolled_up(tmp_path: Path) -> None:
    module, _ = open_onnx(saved(neuron_by_hand(), tmp_path))
    (neuron,) = (each for each in module.modules() if isinstance(each, Neuron))
    assert (neuron.charge, neuron.fires, neuron.v_threshold, neuron.v_reset) == ("if", "gt", 0.75, 0.0)
    x = GENERATOR.standard_normal((1, 2, 3, 4, 4), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert np.array_equal(logits(module, x), session.run(None, {"x": x})[0])


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "a neuron of another equation": (neuron_by_hand(v="v = Where f a nil"), "net.onnx:10: Concat at/y/Concat: stacks"),
    "thresholds of several neurons": (neuron_by_hand(g="g = Greater h sharp"), "constants [3, 1, 1]; a layer has one"),
    "a step that is missing": (neuron_by_hand(b="b = Slice x zero one one"), "stacks 2 steps of the 2 of x"),
    "a step of something else": (neuron_by_hand(b="b = ReduceMean x one"), "that come from ReduceMean at/b/ReduceMean"),
    "spikes that are not stacked": (neuron_by_hand(y="y = Add s t"), "Greater at/f/Greater: stands outside a neuron"),
    "an operator nobody knows": (graph_of(node("y = Softmax x")), "net.onnx:1: Softmax at/y/Softmax: has no meaning"),
    "uneven padding": (graph_of(node("y = MaxPool x", kernel_shape=[2, 2], pads=[0, 0, 1, 1])), "same on both sides"),
    "a constant for every pixel": (graph_of(node("y = Mul x c"), c=np.ones((3, 4, 4)) * W[0]), "one a channel"),
    "a branch": (graph_of(node("g = Greater x c"), node("y = Where g x c"), c=0.5), "Greater: stands outside a neuron"),
    "a batch of 8": (graph_of(node("y = Identity x"), shape=(8, 3, 4, 4)), "export with a batch of 1"),
    "sizes left open": (graph_of(node("y = Identity x"), shape=(1, 3, "h", "w")), "x [1, 3, h, w]; it must be"),
    "half precision": (graph_of(node("y = Identity x"), kind=TensorProto.FLOAT16), "float16; it must be float32"),
    "a word that is none": (
        graph_of(node("y = Neuron x", tau=2.0, threshold=1.0, reset="soon")), "reset=soon; it must be one of",
    ),
    "a neuron without a threshold": (graph_of(node("y = Neuron x", tau=2.0)), "not a valid ONNX model"),
    "a later version": (
        graph_of(node("y = Neuron x", tau=2.0, threshold=1.0), opsets={"": 18, DOMAIN: 2}), "c-step of version 2",
    ),
    "training": (graph_of(node("y = Dropout x _ t"), t=np.asarray(True)), ""),
}  # fmt: skip


@pytest.mark.parametrize("what", [what for what, (_, words) in REFUSED.items() if words])
def test_what_has_no_meaning_is_refused_by_name_and_place(what: str, tmp_path: Path) -> None:
    model, words = REFUSED[what]
    with pytest.raises(CStepError) as refusal:
        open_onnx(saved(model, tmp_path))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _no_onnx(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 something else entirely, and long enough to look at")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate((1 << 31) + 1)  # a hole: it takes no space


def _gone(path: Path) -> None:
    path.unlink()


def _without_its_data(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


@pytest.mark.parametrize("damage", [_broken, _no_onnx, _empty, _huge, _gone, _without_its_data])
def test_a_damaged_file_is_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = saved(OPERATORS["gemm"], tmp_path)
    damage(path)
    with pytest.raises(CStepError, match=r"net\.onnx") as refusal:
        open_onnx(path)
    assert "\n" not in str(refusal.value)


def test_weights_may_lie_in_external_data(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(OPERATORS["gemm"], path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    module, _ = open_onnx(path)
    assert compare_with_onnxruntime(module, GENERATOR.standard_normal((1, 3, 4, 4), np.float32)).largest < 1e-6


def test_a_module_that_is_not_the_file_is_found(tmp_path: Path) -> None:
    family = FAMILIES["spikformer-cifar"]
    x = family.inputs(1)
    module, _ = open_onnx(by_torch(family.build(2), x, tmp_path / "net.onnx"))
    assert isinstance(module, OnnxModule)
    with torch.no_grad():
        module.get_submodule("block.0.mlp.fc1_bn").get_parameter("weight").mul_(1.001)
    with pytest.raises(CStepError, match=r"net\.onnx:\d+: .*mlp/Reshape_1.*differs between torch and onnxruntime by"):
        compare_with_onnxruntime(module, x)
