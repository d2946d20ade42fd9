"""The list of quantizable layers, against the Q/DQ placement."""

from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pytest

import trtkit as tk
from trtkit.errors import CancelledError
from trtkit.graph.qdq import plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.tuning.layers import QuantizableLayers, find_quantizable_layers
from trtkit.tuning.noise import LayerNoise

SIDE = 96


@pytest.fixture(scope="module")
def layers(model: tk.Model) -> QuantizableLayers:
    return find_quantizable_layers(model, SIDE)


def test_layers_match_the_placement(layers: QuantizableLayers, model: tk.Model) -> None:
    graph = trace(model, imgsz=(SIDE, SIDE), batch=1)
    placement = plan_qdq(graph)
    assert layers.quantizable == placement.layers
    kept = layers.layers.filter(pl.col("kept").is_not_null())
    assert dict(kept.select("node", "kept").iter_rows()) == dict(placement.excluded)
    for tensor, group in placement.scale_groups.items():
        if tensor in layers.readers and any(node in layers.quantizable for node in layers.readers[tensor]):
            assert set(layers.scale_of(tensor)) == set(group)
    assert layers.scale_of("unknown") == ("unknown",)
    assert layers.tensor_of("unknown") is None


def test_int8_share_matches_layer_noise(layers: QuantizableLayers, model: tk.Model) -> None:
    graph = trace(model, imgsz=(SIDE, SIDE), batch=1)
    layer_noise = LayerNoise(graph, len(model.names))
    assert layers.int8_share() == pytest.approx(layer_noise.int8_share(layer_noise.full_int8))
    excluded = layers.quantizable[3:6]
    assert layers.int8_share(excluded) == pytest.approx(layer_noise.int8_share(layer_noise.plan_without(excluded)))
    assert layers.int8_share(layers.quantizable) == 0


def test_layers_are_cached(model: tk.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_quantizable_layers(model, SIDE, cache_dir=tmp_path)
    monkeypatch.setattr("trtkit.graph.torch_export.trace", None)
    assert find_quantizable_layers(model, SIDE, cache_dir=tmp_path).layers.equals(first.layers)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        find_quantizable_layers(model, SIDE, cancel=cancel)
