from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from layer_rows import HALF, LOW, layer_rows

from trtkit.errors import DataError, EngineError
from trtkit.inspection import LayerTable, align_engines, read_layers
from trtkit.inspection.engine_diff import NO_NODE, original_nodes, summarize_diff, summarize_layers
from trtkit.plotting.engine import engine_diff_figure, layers_figure, precision_shares_figure


@pytest.fixture
def half() -> LayerTable:
    return read_layers(HALF, name="half")


@pytest.fixture
def low() -> LayerTable:
    return read_layers(LOW, name="low")


@pytest.fixture
def untimed() -> LayerTable:
    return read_layers(LOW.with_columns(ms=pl.lit(None, pl.Float64)), name="low")


def test_a_table_knows_its_times(half: LayerTable, low: LayerTable, untimed: LayerTable) -> None:
    assert half.total == pytest.approx(0.8)
    assert half.frame["share"].to_list() == pytest.approx([0.5, 0.375, 0.125])
    assert low.by_precision().rows() == [
        ("int8", 4, pytest.approx(0.42), pytest.approx(0.7)),
        ("fp16", 1, pytest.approx(0.1), pytest.approx(1 / 6)),
        ("reformat", 1, pytest.approx(0.08), pytest.approx(0.08 / 0.6)),
    ]
    assert not untimed.timed
    assert untimed.total is None
    # Without times the share is of the layers, and no time is made up.
    assert untimed.by_precision().select("precision", "share").rows()[0] == ("int8", pytest.approx(4 / 6))
    assert untimed.by_precision()["ms"].null_count() == 3
    assert untimed.untimed_reason == "the frame holds none"


def test_a_layer_that_the_profiler_left_out_took_no_time() -> None:
    table = read_layers(layer_rows(("a", "conv", "", "fp16", 1.0), ("b", "shape", "", None, None)))
    assert table.timed
    assert table.frame["ms"].to_list() == [1.0, 0.0]


def test_frames_come_back_from_parquet(low: LayerTable, tmp_path: Path) -> None:
    again = read_layers(low.save(tmp_path / "low.parquet"))
    assert again.name == "low"
    assert again.frame.equals(low.frame)
    # As a runner's own frame, saved on the machine with the GPU, has it.
    LOW.with_row_index("index").write_parquet(tmp_path / "theirs.parquet")
    assert read_layers(tmp_path / "theirs.parquet").frame.equals(low.frame)


def test_what_is_no_layer_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'onnx_nodes'"):
        read_layers(HALF.drop("onnx_nodes"))
    with pytest.raises(DataError, match="is empty"):
        read_layers(HALF.clear())
    with pytest.raises(DataError, match="does not exist"):
        read_layers(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="no parquet file"):
        read_layers(tmp_path / "bad.parquet")
    with pytest.raises(EngineError, match="it is no engine"):
        read_layers("yolo11n.onnx")
    with pytest.raises(EngineError, match="does not exist"):
        read_layers(tmp_path / "none.engine")


def test_a_bare_plan_tells_no_layers(tmp_path: Path) -> None:
    (tmp_path / "bare.engine").write_bytes(b"ptrt" + bytes(100))
    with pytest.raises(EngineError, match="holds no layer table"):
        read_layers(tmp_path / "bare.engine")


def test_an_open_runner_is_asked(half: LayerTable) -> None:
    class Runner:
        name, precision, batch = "TensorRT", "fp16", 1

        def layers(self, *, runs: int = 0) -> pl.DataFrame:
            return HALF if runs else HALF.with_columns(ms=pl.lit(None, pl.Float64))

    timed = read_layers(Runner(), runs=50)
    assert timed.frame.equals(half.frame)
    assert timed.facts["precision"] == "fp16"
    assert read_layers(Runner()).untimed_reason == "they were not asked for (runs=0)"


def test_layers_are_joined_by_node(half: LayerTable, low: LayerTable) -> None:
    rows = align_engines(half, low)
    assert rows["node"].to_list() == ["/a/Conv", "/b/Conv", "/c/Conv", NO_NODE]
    # The quantizer and the split-off product belong to the convolution; the copy to none.
    assert rows["layers"].to_list() == [[0], [1], [2], []]
    assert rows["other_layers"].to_list() == [[1, 2], [3], [5], [0, 4]]
    assert rows["precision"].to_list() == ["fp16", "fp16", "fp16", None]
    assert rows["other_precision"].to_list() == ["int8", "int8", "fp16", "int8"]
    assert rows["delta_ms"].to_list() == pytest.approx([-0.2, -0.1, 0.0, 0.1])
    assert rows["differs"].to_list() == [True, True, False, False]
    assert rows["other_reformats"].to_list() == [0, 0, 0, 1]


def test_a_layer_that_fuses_two_joins_what_the_other_engine_has_apart() -> None:
    fused = read_layers(layer_rows(("ab", "conv", "/a/Conv,/b/Conv", "fp16", 1.0)))
    apart = read_layers(layer_rows(("a", "conv", "/a/Conv", "fp16", 0.4), ("b", "conv", "/b/Conv", "fp16", 0.4)))
    rows = align_engines(fused, apart)
    assert rows["other_layers"].to_list() == [[0, 1]]
    assert rows["nodes"].to_list() == [["/a/Conv", "/b/Conv"]]


def test_pieces_of_a_concatenation_do_not_join_blocks() -> None:
    table = read_layers(
        layer_rows(
            ("a", "fusion", "/a/Conv,/Concat", "fp16", 1.0),
            ("b", "fusion", "/b/Conv,/Concat", "fp16", 1.0),
            ("rest", "kgen", "/Concat", "fp16", 1.0),
        )
    )
    assert align_engines(table, table)["layers"].to_list() == [[0], [1], [2]]


def test_nodes_that_a_precision_adds_join_nothing() -> None:
    nodes = ["/a/Conv", "/a/Conv_weight_QuantizeLinear", "x_DequantizeLinear", "images_half_cast"]
    assert original_nodes(nodes) == ["/a/Conv"]
    assert original_nodes(None) == []


def test_an_engine_aligned_with_itself_does_not_differ(low: LayerTable) -> None:
    rows = align_engines(low, low)
    assert rows["layers"].to_list() == rows["other_layers"].to_list()
    assert rows["delta_ms"].abs().max() == 0
    assert not rows["differs"].any()


def test_findings_say_what_is_there_and_no_more(low: LayerTable, untimed: LayerTable, half: LayerTable) -> None:
    said = " ".join(summarize_layers(low))
    assert "6 layers, 0.600 ms together: 4 int8, 1 fp16, 1 reformat." in said
    assert "1 layers only change layout or type (reformats), 13.3% of the time." in said
    assert "1 of 3 layers with weights or products stay above INT8: /c/Conv." in said
    assert "the slowest: conv1 (33.3%)" in said
    quiet = " ".join(summarize_layers(untimed))
    assert "There are no times: the frame holds none." in quiet
    assert "%" not in quiet
    assert "INT8" not in " ".join(summarize_layers(half))


def test_differences_are_told_where_both_were_timed(half: LayerTable, low: LayerTable, untimed: LayerTable) -> None:
    said = " ".join(summarize_diff(align_engines(half, low), half, low))
    assert "3 groups of layers compute the same ONNX nodes in both engines, 2 of them in other precisions." in said
    assert "0.600 ms, 0.75 times the 0.800 ms of half" in said
    assert "1 groups are slower in low, most of all (no ONNX node) (+0.1000 ms)." in said
    assert "Only half was timed" in " ".join(summarize_diff(align_engines(half, untimed), half, untimed))


def test_figures_tell_precision_by_pattern_too(half: LayerTable, low: LayerTable) -> None:
    bars = [trace for trace in layers_figure(low).data if trace.type == "bar"]
    assert sum(len(trace.x) for trace in bars) == 6
    looks = [(trace.marker.color, trace.marker.pattern.shape) for trace in bars]
    assert len({shape for _, shape in looks}) == len(looks)
    shares = precision_shares_figure([half, low])
    for table in range(2):
        assert sum(trace.x[table] for trace in shares.data) == pytest.approx(1)


def test_untimed_engines_show_no_time(untimed: LayerTable, half: LayerTable) -> None:
    figure = layers_figure(untimed, selected=2)
    assert not figure.layout.yaxis.visible
    assert {value for trace in figure.data if trace.type == "bar" for value in trace.y} == {1.0}
    mixed = precision_shares_figure([half, untimed])
    assert "not of time" in mixed.layout.xaxis.title.text
    strips = engine_diff_figure(align_engines(half, untimed), ("half", "low"))
    assert {trace.y[0] for trace in strips.data if len(trace.y or ())} == {"half", "low"}


def test_timed_engines_are_drawn_by_what_changes_most(half: LayerTable, low: LayerTable) -> None:
    figure = engine_diff_figure(align_engines(half, low), ("half", "low"), most=2)
    markers = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in markers] == ["half", "low"]
    assert len(markers[0].x) == 2
    assert "/a/Conv" in markers[0].y


@pytest.mark.slow
def test_engines_that_tensorrt_rtx_built_are_read_and_aligned(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import trtkit as tk
    from trtkit import demo

    made = [
        tk.export(
            demo.model_path(), imgsz=64, half=name == "fp16", int8=name == "int8", device=demo.DEVICE, opt_level=0,
            data=demo.data_path() if name == "int8" else None, fraction=0.05, backend="tensorrt_rtx",
            output=tmp_path / f"{name}.engine",
        )
        for name in ("fp16", "int8")
    ]  # fmt: skip
    first, second = (read_layers(one) for one in made)
    assert "its GPU" in first.untimed_reason
    assert first.facts["sm"] == "sm89"
    assert "int8" in set(second.frame["precision"])
    rows = align_engines(first, second)
    both = rows.filter((pl.col("layers").list.len() > 0) & (pl.col("other_layers").list.len() > 0))
    assert len(both) > 50
    assert both["differs"].sum() > 30
    placed = [layer for layers in rows["other_layers"].to_list() for layer in layers]
    assert sorted(placed) == list(range(len(second.frame)))
