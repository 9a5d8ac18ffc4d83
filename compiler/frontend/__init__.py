"""What comes in: checkpoints, torch modules, ONNX."""
