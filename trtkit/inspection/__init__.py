"""Inspection of engines: layer tables, their summary, and two engines side by side."""

from trtkit.inspection.engine_diff import align_engines
from trtkit.inspection.layer_table import LayerTable, read_layers

__all__ = ["LayerTable", "align_engines", "read_layers"]
