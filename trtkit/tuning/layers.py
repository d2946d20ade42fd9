"""Which layers of a model may run in INT8, which tensor and scale each reads, and what keeping some high leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import onnx
import polars as pl

from trtkit.files import hash_parts
from trtkit.graph.analysis import GraphIndex, block_of, count_macs
from trtkit.graph.qdq import plan_qdq
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import round_imgsz
from trtkit.tuning.cache import ResultCache

if TYPE_CHECKING:
    from pathlib import Path

    from trtkit.models import Model

__all__ = [
    "QuantizableLayers",
    "find_quantizable_layers",
]


SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("node", "block", "operator"), pl.String),
    "macs": pl.Int64,
    "tensor": pl.String,
    "scale": pl.List(pl.String),
    "kept": pl.String,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuantizableLayers:
    """The weighted layers of one graph.

    Attributes:
        layers: One row a layer, in graph order: `node`, `block`, `operator`, `macs` (multiply-accumulates an image),
            `tensor` (what it reads), `scale` (the tensors whose ranges make up that scale) and `kept` (why it stays
            high whatever is asked; null where it may run in INT8).
        model_hash: Of the model.
    """

    layers: pl.DataFrame
    model_hash: str

    @functools.cached_property
    def quantizable(self) -> tuple[str, ...]:
        """Layers that may run in INT8, in graph order."""
        return tuple(self.layers.filter(pl.col("kept").is_null())["node"])

    def share(self, keep: Iterable[str] = ()) -> float:
        """Share of the multiply-accumulates that run in INT8 with some more layers kept high, 0..1.

        Args:
            keep: Names of layers, not patterns.
        """
        high = set(keep)
        total = lowered = 0
        for node, macs, kept in self.layers.select("node", "macs", "kept").iter_rows():
            total += macs
            lowered += macs if kept is None and node not in high else 0
        return lowered / total if total else 0.0

    def tensor_of(self, node: str) -> str | None:
        """What a layer reads; None for a layer that is not here."""
        return self._tensors.get(node)

    @functools.cached_property
    def readers(self) -> Mapping[str, list[str]]:
        """The layers that read each tensor."""
        readers: dict[str, list[str]] = {}
        for node, tensor in self._tensors.items():
            readers.setdefault(tensor, []).append(node)
        return readers

    def scale_of(self, tensor: str) -> tuple[str, ...]:
        """The tensors whose ranges make up a tensor's scale; itself where none is known."""
        return self._scales.get(tensor) or (tensor,)

    @functools.cached_property
    def _tensors(self) -> dict[str, str]:
        return dict(self.layers.select("node", "tensor").iter_rows())

    @functools.cached_property
    def _scales(self) -> dict[str, tuple[str, ...]]:
        """Of every tensor that shares a scale with what a layer reads, not of these inputs alone."""
        scales: dict[str, tuple[str, ...]] = {}
        for scale in self.layers["scale"].to_list():
            for tensor in scale:
                scales[tensor] = tuple(scale)
        return scales


def find_quantizable_layers(
    model: Model,
    imgsz: int | tuple[int, int] | None = None,
    *,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> QuantizableLayers:
    """Trace a model and look at its layers; takes seconds, but nothing where `state` remembers it.

    Args:
        model: From `load`.
        imgsz: Height and width, pixels; None takes the model's.
        cache_dir: A folder that remembers layouts; None remembers nothing.
        progress: Receives events.
        cancel: Asked between steps.

    Raises:
        CancelledError: The caller cancelled.
    """
    from trtkit.graph.torch_export import trace

    reporter, kept, stage = Reporter(progress, cancel), ResultCache(cache_dir), "read the model's layers"
    size = round_imgsz(model.imgsz if imgsz is None else imgsz, model.stride)
    key = hash_parts(model.hash, f"{size}", *SCHEMA)
    reporter.step(stage, 0, 2)
    rows = kept.read("layouts", key)
    if rows is None:
        graph = trace(model, imgsz=size, batch=1)
        reporter.step(stage, 1, 2)
        rows = _rows(graph)
        kept.write("layouts", key, rows)
    reporter.step(stage, 2, 2)
    return QuantizableLayers(layers=pl.DataFrame(rows, schema=SCHEMA), model_hash=model.hash)


def _rows(graph: onnx.ModelProto) -> list[dict[str, Any]]:
    placement, view = plan_qdq(graph), GraphIndex(graph)
    macs = count_macs(graph, view)
    return [
        {
            "node": node.name,
            "block": block_of(node.name),
            "operator": node.op_type,
            "macs": macs.get(node.name, 0),
            "tensor": node.input[0],
            "scale": list(placement.scale_groups.get(node.input[0], ())),
            "kept": placement.excluded.get(node.name),
        }
        for node in view.weighted
    ]
