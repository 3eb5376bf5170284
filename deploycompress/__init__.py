"""From a trained PyTorch model to the fastest artefact that still meets its measured budget."""

__version__ = "0.1.0"
