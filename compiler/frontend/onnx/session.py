"""onnxruntime on a model as it stands: one CPU thread, nothing rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

from isa.errors import CStepError

Array = NDArray[Any]


def run_onnx(model: onnx.ModelProto, file: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """One run by onnxruntime, as the graph stands, on one thread."""
    return start(model, file).run(inputs)


@dataclass
class Session:
    """onnxruntime on a model: its outputs by name."""

    session: Any
    names: list[str]
    file: str

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(self.names, self.session.run(self.names, inputs), strict=True))
        except Exception as error:  # its exceptions have no common base but Exception
            raise CStepError(f"{self.file}: onnxruntime fails on it ({_words(error)})") from None


def start(model: onnx.ModelProto, file: str) -> Session:
    """Raises CStepError with what onnxruntime says where it does not take the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        data = model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return Session(session, [output.name for output in session.get_outputs()], file)
    except Exception as error:
        raise CStepError(f"{file}: onnxruntime does not take it ({_words(error)})") from None


def _words(error: Exception) -> str:
    """What onnxruntime says, without its codes: `[ONNXRuntimeError] : 1 : FAIL : ...`."""
    return " ".join(str(error).rsplit(" : ", 1)[-1].split())[:300]
