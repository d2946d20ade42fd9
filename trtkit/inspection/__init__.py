"""Inspection of engines: layer tables, two engines side by side, and why one of them is not faster."""

from trtkit.inspection.engine_diff import NO_NODE, align_engines, original_nodes, summarize_diff
from trtkit.inspection.layer_table import (
    WEIGHTED_NODE,
    LayerTable,
    count_kinds,
    layer_kinds,
    precision_shares_figure,
    read_layers,
    summarize_layers,
)
from trtkit.inspection.slowness import Cause, SpeedDiagnosis, diagnose_speed, why_slow

__all__ = [
    "NO_NODE",
    "WEIGHTED_NODE",
    "Cause",
    "LayerTable",
    "SpeedDiagnosis",
    "align_engines",
    "count_kinds",
    "diagnose_speed",
    "layer_kinds",
    "original_nodes",
    "precision_shares_figure",
    "read_layers",
    "summarize_diff",
    "summarize_layers",
    "why_slow",
]
