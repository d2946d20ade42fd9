"""Versions of the package and of the files it writes; packaging and engine metadata read them here."""

__all__ = ["FORMAT_VERSION", "__version__"]

__version__ = "0.2.0"

FORMAT_VERSION = 2
"""Of saved results and of the metadata in engine and ONNX files; trtkit 0.1.0 wrote none, which is read as 1."""
