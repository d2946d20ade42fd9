"""Inside an engine: its layers as a table, what stands out in them, and two engines side by side."""

from trtkit.inspection.engine_diff import aligned
from trtkit.inspection.layer_table import LayerTable, layers_of

__all__ = ["LayerTable", "aligned", "layers_of"]
