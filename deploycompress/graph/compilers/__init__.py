"""How each runtime's artefacts are made from an ONNX file, one file a runtime."""
