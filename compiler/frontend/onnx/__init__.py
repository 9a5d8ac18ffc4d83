"""ONNX files in: a file becomes a torch module, unrolled neurons are rolled back up (docs/onnx.md)."""
