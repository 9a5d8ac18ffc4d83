"""Writes ONNX files, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx

from compiler.ir import spike
from compiler.ir.network import Network
from compiler.ir.onnx.integer import LOGITS, to_onnx
from isa.errors import CStepError
from isa.files import require_directory_of, write_whole

LARGEST = (1 << 31) - 1
"""Bytes of a protobuf message."""


def require_onnx_path(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if path.suffix != ".onnx":
        raise CStepError(f"{path}: an ONNX file's name ends in .onnx")
    if path.is_dir():
        raise CStepError(f"{path}: a folder, not a file")
    require_directory_of(path)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Raises CStepError for a model over 2 GB, and for what cannot be written; nothing is then left behind."""
    require_onnx_path(path)
    if model.ByteSize() > LARGEST:
        raise CStepError(f"{path}: the model takes {model.ByteSize():,} bytes; an ONNX file holds less than 2 GB")
    write_whole(path, model.SerializeToString())


def integer_onnx(network: Network, *, currents: bool) -> onnx.ModelProto:
    """The integer module of `network` as plain ONNX: input as the model takes it, output "logits" in integers.

    `currents` keeps what the oracle compares besides: every neuron's current, as integers. The model's metadata
    `logit_scale` says what one unit of the logits is worth.
    """
    model = to_onnx(network)
    if not currents:
        kept = [output for output in model.graph.output if output.name == LOGITS]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        _prune(model.graph)
    for op in network.operations():
        if isinstance(op, spike.Output):
            model.metadata_props.add(key="logit_scale", value=repr(float(op.get("scale"))))
    model.producer_name = "cstep"
    return model


def _prune(graph: onnx.GraphProto) -> None:
    """Drop nodes that no output needs."""
    needed, kept = {output.name for output in graph.output}, list[onnx.NodeProto]()
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend(kept[::-1])
