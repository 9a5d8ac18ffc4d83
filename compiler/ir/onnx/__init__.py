"""ONNX files out: the integer module as plain ONNX (the oracle), and the real one with neurons as nodes."""
