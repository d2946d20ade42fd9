"""The version, in one place that packaging and the passports of engines both read."""

__all__ = ["__version__"]

__version__ = "0.1.0"
