"""ONNX files: made, simplified, quantized and run."""
