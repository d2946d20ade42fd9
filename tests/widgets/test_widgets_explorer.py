from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trtkit as tk
from trtkit.errors import DataError, EngineError, RecipeError
from trtkit.inspection import LayerTable, read_layers
from trtkit.widgets import explorer as explorer_module
from trtkit.widgets.explorer import Explorer
from trtkit.widgets.explorer_state import ExplorerState, explain_untimed, find_demo_engines

Pair = tuple[LayerTable, LayerTable]


def figure(live: Any) -> Any:
    return json.loads(live._view.figure)


@pytest.fixture
def state(engines: Pair) -> ExplorerState:
    return ExplorerState(tables=engines)


@pytest.fixture
def widget(engines: Pair) -> Explorer:
    return tk.explorer(*engines)


def test_layers_are_filtered_by_precision_and_text(state: ExplorerState) -> None:
    assert state.layer_frame()["layer"].to_list() == ["conv0", "conv1", "out"]
    low = state.with_choices(engine=1)
    assert low.precisions == ["int8", "fp16", "reformat"]
    assert low.with_choices(precision="reformat").layer_frame()["layer"].to_list() == ["copy"]
    assert low.with_choices(precision="int8").layer_frame()["layer"].to_list() == ["q", "conv0", "mul", "conv1"]
    # The text is searched in names, types and nodes, ignoring case.
    assert low.with_choices(text="/B/").layer_frame()["layer"].to_list() == ["conv1"]
    assert low.with_choices(text="KGEN").layer_frame()["layer"].to_list() == ["q", "mul"]
    assert low.with_choices(text="kgen", precision="fp16").layer_frame().is_empty()


def test_layers_are_ordered(state: ExplorerState) -> None:
    low = state.with_choices(engine=1)
    assert low.with_choices(order="time").layer_frame()["layer"].to_list() == [
        "conv1",
        "conv0",
        "mul",
        "out",
        "copy",
        "q",
    ]
    # A layer that was not timed is the last, not the slowest.
    frame = low.table.frame
    partly = dataclasses.replace(low.table, frame=frame.with_columns(ms=pl.when(pl.col("name") != "conv1").then("ms")))
    ordered = dataclasses.replace(low, tables=(partly,), engine=0).with_choices(order="time").layer_frame()
    assert ordered["layer"].to_list() == ["conv0", "mul", "out", "copy", "q", "conv1"]
    assert low.with_choices(order="precision").layer_frame()["precision"].to_list()[0] == "fp16"
    with pytest.raises(RecipeError) as error:
        low.with_choices(order="luck")
    assert (error.value.code, error.value.fields["value"]) == ("explorer-order-unknown", "luck")


def test_unknown_choices_are_rejected(state: ExplorerState) -> None:
    for wrong in ({"engine": 2}, {"precision": "fp8"}, {"selected": 99}):
        with pytest.raises(RecipeError):
            state.with_choices(**wrong)
    with pytest.raises(RecipeError) as error:
        state.with_group(9)
    assert (error.value.code, error.value.fields["value"]) == ("explorer-group-unknown", 9)


def test_another_engine_starts_without_a_selected_layer(state: ExplorerState) -> None:
    chosen = state.with_choices(selected=2, precision="fp16")
    other = chosen.with_choices(engine=1)
    assert other.selected is None
    assert other.precision == "fp16"
    assert other.with_choices(precision="int8").with_choices(engine=0).precision == ""


def test_the_facts_of_a_layer(state: ExplorerState) -> None:
    assert state.layer_facts() == {}
    facts = state.with_choices(selected=0).layer_facts()
    assert facts["layer"] == "conv0"
    assert facts["ONNX nodes"] == ["/a/Conv", "/a/Mul"]
    assert facts["latency"] == "0.4000 ms, 50.0%"


def test_groups_lead_to_layers(state: ExplorerState) -> None:
    assert state.with_group(1).selected == 1
    # Only the second engine has a layer without a node.
    loose = state.with_group(3)
    assert (loose.engine, loose.selected) == (1, 0)
    assert state.group_frame()["half"].to_list() == ["fp16", "fp16", "fp16", None]
    assert len(state.with_choices(only_differing=True).group_frame()) == 2


def test_untimed_tables_have_no_latencies(engines: Pair) -> None:
    plain = read_layers(engines[0].frame.with_columns(ms=pl.lit(None, pl.Float64)), name="plain")
    state = ExplorerState(tables=(plain, engines[1]))
    assert "ms" not in state.layer_frame().columns
    assert "change, ms" not in state.group_frame().columns


def test_a_click_on_a_share_lists_its_layers_in_every_figure(widget: Explorer) -> None:
    points = [point for trace in figure(widget.shares)["data"] for point in trace["customdata"]]
    point = next(one for one in points if (one["engine"], one["precision"]) == (1, "reformat"))
    widget.shares._on_message({"kind": "click", "data": point})
    assert widget.state is not None
    assert (widget.engine.value, widget.precision.value) == (1, "reformat")
    assert "copy" in widget.table.value
    bright = {trace["name"]: trace["marker"]["opacity"] for trace in figure(widget.shares)["data"]}
    assert bright["reformat"][1] == 1
    assert {shade for name, shades in bright.items() for shade in shades} == {1, bright["reformat"][0]}
    faint = [shade for trace in figure(widget.layers)["data"] if trace["type"] == "bar"
             for shade in trace["marker"]["opacity"]]  # fmt: skip
    assert faint.count(1) == 1
    widget.shares._on_message({"kind": "click", "data": point})
    assert widget.precision.value == ""


def test_controls_and_clicks_do_the_same(widget: Explorer) -> None:
    widget.layers._on_message({"kind": "click", "data": 1})
    assert widget.state is not None
    assert widget.state.selected == widget.layer.value == 1
    assert "/b/Conv" in widget.layer_facts.value
    widget.layer.value = 2
    assert widget.state.selected == 2
    widget.engine.value = 1
    assert widget.state.engine == 1
    assert "6 of 6 layers of low" in widget.table.value
    widget.precision.value = "reformat"
    assert "1 of 6 layers" in widget.table.value
    widget.precision.value = ""
    widget.text.value = "/b/"
    assert "1 of 6 layers" in widget.table.value
    faint = [trace["marker"]["opacity"] for trace in figure(widget.layers)["data"] if trace["type"] == "bar"]
    assert sum(value == 1 for part in faint for value in part) == 1
    widget.text.value = ""
    widget.order.value = "time"
    assert widget.table.value.index("conv1") < widget.table.value.index("conv0")
    widget.only_differing.value = True
    assert "/c/Conv" not in widget.group_table.value
    widget.groups._on_message({"kind": "click", "data": 0})
    assert widget.state.selected == 1


def test_an_error_is_shown_and_keeps_the_selection(widget: Explorer) -> None:
    widget.layers._on_message({"kind": "click", "data": 77})
    assert "77" in widget.error_box.value
    assert widget.state is not None
    assert widget.state.selected is None
    widget.select(0)
    widget.precision.value = "fp16"
    assert widget.error_box.value == ""


def test_one_engine_has_no_second_side(engines: Pair) -> None:
    alone = tk.explorer(engines[0])
    assert alone.engine.layout.display == "none"
    assert alone.groups not in alone.children
    assert len(alone.figures()) == 2
    assert alone.static_html().count("Plotly.newPlot") == 2


def test_a_saved_frame_and_a_missing_file(engines: Pair, tmp_path: Path) -> None:
    widget = tk.explorer(engines[1].save(tmp_path / "h100.parquet"))
    assert widget.state is not None
    assert widget.state.table.timed
    assert widget.timer.disabled
    assert "only an engine file" in widget.timer.tooltip
    with pytest.raises(EngineError):
        tk.explorer(tmp_path / "none.engine")


def test_layers_are_timed_where_engines_run(engines: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_layers(engines[0].frame.with_columns(ms=pl.lit(None, pl.Float64)), name="half")
    monkeypatch.setattr(explorer_module, "read_layers", lambda source, runs=0: plain)
    monkeypatch.setattr(explorer_module, "explain_untimed", lambda source: "")
    monkeypatch.setattr(explorer_module, "time_layers", lambda sources, runs, **watch: (engines[0],))
    widget = tk.explorer("half.engine")
    assert widget.state is not None
    assert not widget.state.table.timed
    widget.timer.click()
    assert widget.wait(30)
    assert widget.state.table.timed


def test_the_reason_why_an_engine_is_not_timed(tmp_path: Path) -> None:
    assert "engine file" in explain_untimed(pl.DataFrame())
    assert "none.engine" in explain_untimed(tmp_path / "none.engine")
    (tmp_path / "bare.engine").write_bytes(b"vtrt" + bytes(100))
    assert explain_untimed(tmp_path / "bare.engine") != ""


def test_without_arguments_the_engines_of_the_demo_are_built(
    engines: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_demo_engines() == ()
    monkeypatch.setattr(explorer_module, "build_demo_engines", lambda **watch: engines)
    widget = tk.explorer()
    assert widget.wait(30)
    assert widget.state is not None
    assert widget.state.tables == engines

    def failing(**watch: Any) -> Pair:
        raise DataError("build the demo's engines", "builder-missing", "install TensorRT-RTX")

    monkeypatch.setattr(explorer_module, "build_demo_engines", failing)
    broken = tk.explorer()
    assert broken.wait(30)
    assert "builder-missing" in broken.job_view.error_box.value
    with pytest.raises(DataError) as error:
        broken.select(0)
    assert error.value.code == "explorer-empty"
