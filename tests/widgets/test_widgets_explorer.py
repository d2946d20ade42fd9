from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trtkit as tk
from trtkit.errors import DataError, EngineError, RecipeError
from trtkit.inspection.layer_table import LayerTable, read_layers
from trtkit.widgets.explorer import explorer as explorer_module
from trtkit.widgets.explorer.explorer import Explorer
from trtkit.widgets.explorer.state import ExplorerState, explain_untimed, find_demo_engines

Pair = tuple[LayerTable, LayerTable]


def figure(live: Any) -> Any:
    return json.loads(live._place.figure)


@pytest.fixture
def state(engines: Pair) -> ExplorerState:
    return ExplorerState(tables=engines)


@pytest.fixture
def made(engines: Pair) -> Explorer:
    return tk.explorer(*engines)


def test_layers_are_listed_by_kind_and_text(state: ExplorerState) -> None:
    assert state.listed()["layer"].to_list() == ["conv0", "conv1", "out"]
    low = state.choosing(side=1)
    assert low.kinds == ["int8", "fp16", "reformat"]
    assert low.choosing(kind="reformat").listed()["layer"].to_list() == ["copy"]
    assert low.choosing(kind="int8").listed()["layer"].to_list() == ["q", "conv0", "mul", "conv1"]
    # Text is looked for in names, types and nodes, whatever its case.
    assert low.choosing(text="/B/").listed()["layer"].to_list() == ["conv1"]
    assert low.choosing(text="KGEN").listed()["layer"].to_list() == ["q", "mul"]
    assert low.choosing(text="kgen", kind="fp16").listed().is_empty()


def test_layers_are_ordered(state: ExplorerState) -> None:
    low = state.choosing(side=1)
    assert low.choosing(order="time").listed()["layer"].to_list() == ["conv1", "conv0", "mul", "out", "copy", "q"]
    assert low.choosing(order="precision").listed()["precision"].to_list()[0] == "fp16"
    with pytest.raises(RecipeError, match="no such order"):
        low.choosing(order="luck")


def test_what_is_not_there_is_refused(state: ExplorerState) -> None:
    for wrong in ({"side": 2}, {"kind": "fp8"}, {"selected": 99}):
        with pytest.raises(RecipeError):
            state.choosing(**wrong)
    with pytest.raises(RecipeError, match="there are 4"):
        state.of_node(9)


def test_another_engine_begins_without_a_selected_layer(state: ExplorerState) -> None:
    chosen = state.choosing(selected=2, kind="fp16")
    other = chosen.choosing(side=1)
    assert other.selected is None
    assert other.kind == "fp16"
    assert other.choosing(kind="int8").choosing(side=0).kind == ""


def test_a_layer_is_told_in_full(state: ExplorerState) -> None:
    assert state.detail() == {}
    told = state.choosing(selected=0).detail()
    assert told["layer"] == "conv0"
    assert told["made of"] == ["/a/Conv", "/a/Mul"]
    assert told["time"] == "0.4000 ms, 50.0%"


def test_groups_lead_to_layers(state: ExplorerState) -> None:
    assert state.of_node(1).selected == 1
    # The first engine has no layer without a node; the second one's is shown.
    loose = state.of_node(3)
    assert (loose.side, loose.selected) == (1, 0)
    assert state.paired()["half"].to_list() == ["fp16", "fp16", "fp16", None]
    assert len(state.choosing(changed=True).paired()) == 2


def test_untimed_tables_hold_no_times(engines: Pair) -> None:
    plain = read_layers(engines[0].frame.with_columns(ms=pl.lit(None, pl.Float64)), name="plain")
    state = ExplorerState(tables=(plain, engines[1]))
    assert "ms" not in state.listed().columns
    assert any("There are no times" in line for line in state.said())
    assert "change, ms" not in state.paired().columns


def test_controls_and_clicks_do_the_same(made: Explorer) -> None:
    made.layers._told({"kind": "click", "data": 1})
    assert made.state is not None
    assert made.state.selected == made.layer.value == 1
    assert "/b/Conv" in made.detail.value
    made.layer.value = 2
    assert made.state.selected == 2
    made.side.value = 1
    assert made.state.side == 1
    assert "6 of 6 layers of low" in made.table.value
    made.kind.value = "reformat"
    assert "1 of 6 layers" in made.table.value
    made.kind.value = ""
    made.text.value = "/b/"
    assert "1 of 6 layers" in made.table.value
    faint = [trace["marker"]["opacity"] for trace in figure(made.layers)["data"] if trace["type"] == "bar"]
    assert sum(value == 1 for part in faint for value in part) == 1
    made.text.value = ""
    made.order.value = "time"
    assert made.table.value.index("conv1") < made.table.value.index("conv0")
    made.changed.value = True
    assert "/c/Conv" not in made.pairs_table.value
    made.pairs._told({"kind": "click", "data": 0})
    assert made.state.selected == 1


def test_an_error_is_shown_and_the_choice_stays(made: Explorer) -> None:
    made.layers._told({"kind": "click", "data": 77})
    assert "there are 3" in made.fault.value
    assert made.state is not None
    assert made.state.selected is None
    made.select(0)
    made.kind.value = "fp16"
    assert made.fault.value == ""


def test_one_engine_has_nothing_beside_it(engines: Pair) -> None:
    alone = tk.explorer(engines[0])
    assert alone.side.layout.display == "none"
    assert alone.pairs not in alone.children
    assert len(alone.figures()) == 2
    assert alone.still_html().count("Plotly.newPlot") == 2


def test_a_saved_frame_and_a_missing_file(engines: Pair, tmp_path: Path) -> None:
    made = tk.explorer(engines[1].save(tmp_path / "h100.parquet"))
    assert made.state is not None
    assert made.state.table.timed
    assert made.timer.disabled
    assert "only an engine file" in made.timer.tooltip
    with pytest.raises(EngineError, match="does not exist"):
        tk.explorer(tmp_path / "none.engine")


def test_times_are_taken_where_the_engine_runs(engines: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_layers(engines[0].frame.with_columns(ms=pl.lit(None, pl.Float64)), name="half")
    monkeypatch.setattr(explorer_module, "read_layers", lambda source, runs=0: plain)
    monkeypatch.setattr(explorer_module, "explain_untimed", lambda source: "")
    monkeypatch.setattr(explorer_module, "time_layers", lambda sources, runs, **watch: (engines[0],))
    made = tk.explorer("half.engine")
    assert made.state is not None
    assert not made.state.table.timed
    made.timer.click()
    assert made.wait(30)
    assert made.state.table.timed


def test_why_an_engine_is_not_timed_here(tmp_path: Path) -> None:
    assert explain_untimed(pl.DataFrame()) == "only an engine file can be timed here"
    assert "does not exist" in explain_untimed(tmp_path / "none.engine")
    (tmp_path / "bare.engine").write_bytes(b"vtrt" + bytes(100))
    assert explain_untimed(tmp_path / "bare.engine") != ""


def test_with_nothing_given_the_demos_engines_are_looked_into(
    engines: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_demo_engines() == ()
    monkeypatch.setattr(explorer_module, "build_demo_engines", lambda **watch: engines)
    made = tk.explorer()
    assert made.wait(30)
    assert made.state is not None
    assert made.state.tables == engines

    def failing(**watch: Any) -> Pair:
        raise DataError("build the demo's engines", "nothing builds here", "install TensorRT-RTX")

    monkeypatch.setattr(explorer_module, "build_demo_engines", failing)
    broken = tk.explorer()
    assert broken.wait(30)
    assert "nothing builds here" in broken.work.fault.value
    with pytest.raises(DataError, match="no engine yet"):
        broken.select(0)
