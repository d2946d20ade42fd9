"""The weighted layers of a model, and which of them may run in INT8."""

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
from trtkit.tuning.measurement import ResultCache

if TYPE_CHECKING:
    from pathlib import Path

    from trtkit.models import Model

__all__ = ["QuantizableLayers", "find_quantizable_layers"]

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
        layers: One row per layer, in graph order: `node`, `block`, `operator`, `macs` (multiply-accumulates per image),
            `tensor` (its input), `scale` (the tensors that share its input's scale) and `kept` (why it is excluded from
            INT8 by default; null if it may run in INT8).
        model_hash: SHA-256 of the model.
    """

    layers: pl.DataFrame
    model_hash: str

    @functools.cached_property
    def quantizable(self) -> tuple[str, ...]:
        """Names of the layers that may run in INT8, in graph order."""
        return tuple(self.layers.filter(pl.col("kept").is_null())["node"])

    def int8_share(self, keep: Iterable[str] = ()) -> float:
        """Share of the multiply-accumulates in INT8 if some layers are kept in FP16, 0..1.

        Args:
            keep: Names of layers, not patterns.
        """
        excluded = set(keep)
        total = int8 = 0
        for node, macs, kept in self.layers.select("node", "macs", "kept").iter_rows():
            total += macs
            int8 += macs if kept is None and node not in excluded else 0
        return int8 / total if total else 0.0

    def tensor_of(self, node: str) -> str | None:
        """The input tensor of a layer; None for an unknown layer."""
        return self._tensors.get(node)

    @functools.cached_property
    def readers(self) -> Mapping[str, list[str]]:
        """The layers that read each tensor."""
        readers: dict[str, list[str]] = {}
        for node, tensor in self._tensors.items():
            readers.setdefault(tensor, []).append(node)
        return readers

    def scale_of(self, tensor: str) -> tuple[str, ...]:
        """The tensors that share a tensor's scale; the tensor itself if it is unknown."""
        return self._scales.get(tensor) or (tensor,)

    @functools.cached_property
    def _tensors(self) -> dict[str, str]:
        return dict(self.layers.select("node", "tensor").iter_rows())

    @functools.cached_property
    def _scales(self) -> dict[str, tuple[str, ...]]:
        """By tensor, including tensors that share a scale with a layer's input but are not one."""
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
    """Trace a model and list its weighted layers.

    Args:
        model: From `load`.
        imgsz: Height and width, pixels; None uses the model's own size.
        cache_dir: Cache directory; a cached list needs no trace.
        progress: Progress callback.
        cancel: Cancellation token.

    Raises:
        CancelledError: The caller cancelled.
    """
    from trtkit.graph.torch_export import trace

    reporter, cache, stage = Reporter(progress, cancel), ResultCache(cache_dir), "read the model's layers"
    size = round_imgsz(model.imgsz if imgsz is None else imgsz, model.stride)
    key = hash_parts(model.hash, f"{size}", *SCHEMA)
    reporter.step(stage, 0, 2)
    rows = cache.read("layers", key)
    if rows is None:
        graph = trace(model, imgsz=size, batch=1)
        reporter.step(stage, 1, 2)
        rows = _layer_rows(graph)
        cache.write("layers", key, rows)
    reporter.step(stage, 2, 2)
    return QuantizableLayers(layers=pl.DataFrame(rows, schema=SCHEMA), model_hash=model.hash)


def _layer_rows(graph: onnx.ModelProto) -> list[dict[str, Any]]:
    placement, index = plan_qdq(graph), GraphIndex(graph)
    macs = count_macs(graph, index)
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
        for node in index.weighted
    ]
