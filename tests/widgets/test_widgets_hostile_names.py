"""Class, model, layer and file names are escaped wherever a widget shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ipywidgets
import polars as pl
import pytest

import trtkit as tk
from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.comparison.comparison import Comparison
from trtkit.inspection import LayerTable, read_layers
from trtkit.tuning.layers import QuantizableLayers
from trtkit.tuning.sensitivity import Sensitivity
from trtkit.widgets.comparison_state import CHANGES
from trtkit.widgets.tuner.tuner import Tuner

HOSTILE = ("<img src=x onerror=1>", "<!--<script>", "\"><b>'")


def collect_html(widget: Any) -> list[str]:
    """The HTML of every text in a widget, and of its static output."""
    inner = [part for child in getattr(widget, "children", ()) for part in collect_html(child)]
    own = [widget.value] if isinstance(widget, ipywidgets.HTML) else []
    static = [widget.static_html()] if hasattr(widget, "static_html") else []
    return [*own, *static, *inner]


def assert_escaped(widget: Any, names: Sequence[str] = HOSTILE) -> None:
    pages = collect_html(widget)
    for name in names:
        assert not [page for page in pages if name in page], name
    assert any("&lt;img src=x onerror=1&gt;" in page for page in pages)
    assert any("&lt;!--&lt;script&gt;" in page for page in pages)


@pytest.fixture
def hostile_comparison(comparison: Comparison) -> Comparison:
    """The comparison with hostile names of its model, its classes and its files."""
    names = comparison.classes["name"].unique(maintain_order=True).to_list()
    renamed = dict(zip(names, HOSTILE, strict=False))

    def rename(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col("name").replace(renamed)) if "name" in frame.columns else frame

    return dataclasses.replace(
        comparison,
        classes=rename(comparison.classes),
        differences=rename(comparison.differences),
        images=comparison.images.with_columns(path=pl.lit("/missing/<!--<script>") + pl.col("path").str.slice(-8)),
        about={**comparison.about, "model": HOSTILE[0]},
    )


def test_the_dashboard_escapes_names(hostile_comparison: Comparison) -> None:
    widget = tk.dashboard(hostile_comparison)
    assert_escaped(widget)
    widget.choose(class_name=HOSTILE[1])
    assert_escaped(widget)


def test_the_gallery_escapes_names(hostile_comparison: Comparison) -> None:
    widget = tk.gallery(hostile_comparison)
    widget.choose(kinds=tuple(CHANGES), conf=0.05)
    assert_escaped(widget)


def test_the_explorer_escapes_names(engines: tuple[LayerTable, LayerTable]) -> None:
    frame = engines[0].frame.with_columns(pl.Series("name", HOSTILE), pl.lit(HOSTILE[1]).alias("tactic"))
    first = dataclasses.replace(read_layers(frame, name=HOSTILE[0]), facts={"gpu": HOSTILE[1]})
    second = dataclasses.replace(engines[1], name=HOSTILE[2])
    widget = tk.explorer(first, second)
    widget.select(0)
    assert_escaped(widget)


def test_the_tuner_escapes_names(
    algorithm_comparison: AlgorithmComparison, quantizable_layers: QuantizableLayers, layer_sensitivity: Sensitivity
) -> None:
    nodes = quantizable_layers.layers["node"].to_list()
    renamed = dict(zip(nodes, HOSTILE, strict=False))
    layers = dataclasses.replace(
        quantizable_layers,
        layers=quantizable_layers.layers.with_columns(pl.col("node").replace(renamed), kept=pl.lit(None, pl.String)),
    )
    sensitivity = dataclasses.replace(
        layer_sensitivity, layers=layer_sensitivity.layers.with_columns(pl.col("node").replace(renamed))
    )
    widget: Tuner = tk.tuner(calibration=algorithm_comparison.calibration)
    state = dataclasses.replace(widget.state, model=f"models/{HOSTILE[0]}", cache_dir=HOSTILE[2])
    widget._set_state(state.with_layers(layers).with_sensitivity(sensitivity).with_kept(HOSTILE))
    assert_escaped(widget)
