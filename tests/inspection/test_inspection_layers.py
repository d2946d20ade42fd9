from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from layer_rows import FP16_LAYERS, INT8_LAYERS, layer_rows

from trtkit.errors import DataError, EngineError
from trtkit.inspection import (
    NO_NODE,
    LayerTable,
    align_engines,
    original_nodes,
    precision_shares_figure,
    read_layers,
    summarize_diff,
    summarize_layers,
)
from trtkit.plotting.engine import engine_diff_figure


@pytest.fixture
def fp16() -> LayerTable:
    return read_layers(FP16_LAYERS, name="fp16")


@pytest.fixture
def int8() -> LayerTable:
    return read_layers(INT8_LAYERS, name="int8")


@pytest.fixture
def untimed() -> LayerTable:
    return read_layers(INT8_LAYERS.with_columns(ms=pl.lit(None, pl.Float64)), name="int8")


def test_a_table_has_latencies_and_shares(fp16: LayerTable, int8: LayerTable, untimed: LayerTable) -> None:
    assert fp16.total == pytest.approx(0.8)
    assert fp16.frame["share"].to_list() == pytest.approx([0.5, 0.375, 0.125])
    assert int8.by_precision().rows() == [
        ("int8", 4, pytest.approx(0.42), pytest.approx(0.7)),
        ("fp16", 1, pytest.approx(0.1), pytest.approx(1 / 6)),
        ("reformat", 1, pytest.approx(0.08), pytest.approx(0.08 / 0.6)),
    ]
    assert not untimed.timed
    assert untimed.total is None
    # Without latencies the share is of the layers.
    assert untimed.by_precision().select("precision", "share").rows()[0] == ("int8", pytest.approx(4 / 6))
    assert untimed.by_precision()["ms"].null_count() == 3
    assert untimed.untimed_reason == "the frame has none"


def test_a_layer_that_the_profiler_left_out_has_latency_0() -> None:
    table = read_layers(layer_rows(("a", "conv", "", "fp16", 1.0), ("b", "shape", "", None, None)))
    assert table.timed
    assert table.frame["ms"].to_list() == [1.0, 0.0]


def test_frames_come_back_from_parquet(int8: LayerTable, tmp_path: Path) -> None:
    again = read_layers(int8.save(tmp_path / "low.parquet"))
    assert again.name == "low"
    assert again.frame.equals(int8.frame)
    # A runner's own frame, saved on the machine with the GPU.
    INT8_LAYERS.with_row_index("index").write_parquet(tmp_path / "theirs.parquet")
    assert read_layers(tmp_path / "theirs.parquet").frame.equals(int8.frame)


@pytest.mark.parametrize("frame", [FP16_LAYERS.drop("onnx_nodes"), FP16_LAYERS.clear()], ids=["no column", "empty"])
def test_a_frame_that_is_not_a_layer_table_is_refused(frame: pl.DataFrame) -> None:
    with pytest.raises(DataError) as e:
        read_layers(frame)
    assert e.value.code == "layers-frame-invalid"
    assert e.value.fields["names"] == ([] if "onnx_nodes" in frame.columns else ["onnx_nodes"])


def test_files_without_a_layer_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "bare.engine").write_bytes(b"ptrt" + bytes(100))
    for name, kind, code in (
        ("none.parquet", DataError, "layers-file-missing"),
        ("bad.parquet", DataError, "layers-file-damaged"),
        ("yolo11n.onnx", EngineError, "layers-not-an-engine"),
        ("bare.engine", EngineError, "layers-foreign-engine"),
    ):
        with pytest.raises(kind) as e:
            read_layers(tmp_path / name)
        assert (e.value.code, e.value.fields["path"]) == (code, str(tmp_path / name))
    with pytest.raises(EngineError):
        read_layers(tmp_path / "none.engine")


def test_an_open_runner_gives_its_layers(fp16: LayerTable) -> None:
    class Runner:
        name, precision, batch = "TensorRT", "fp16", 1

        def layers(self, *, runs: int = 0) -> pl.DataFrame:
            return FP16_LAYERS if runs else FP16_LAYERS.with_columns(ms=pl.lit(None, pl.Float64))

    timed = read_layers(Runner(), runs=50)
    assert timed.frame.equals(fp16.frame)
    assert timed.facts["precision"] == "fp16"
    assert "runs=0" in read_layers(Runner()).untimed_reason


def test_layers_are_aligned_by_node(fp16: LayerTable, int8: LayerTable) -> None:
    rows = align_engines(fp16, int8)
    assert rows["node"].to_list() == ["/a/Conv", "/b/Conv", "/c/Conv", NO_NODE]
    # The quantizer and the split-off product belong to the convolution, the copy to none.
    assert rows["layers"].to_list() == [[0], [1], [2], []]
    assert rows["other_layers"].to_list() == [[1, 2], [3], [5], [0, 4]]
    assert rows["precision"].to_list() == ["fp16", "fp16", "fp16", None]
    assert rows["other_precision"].to_list() == ["int8", "int8", "fp16", "int8"]
    assert rows["delta_ms"].to_list() == pytest.approx([-0.2, -0.1, 0.0, 0.1])
    assert rows["differs"].to_list() == [True, True, False, False]
    assert rows["other_reformats"].to_list() == [0, 0, 0, 1]


def test_a_fused_layer_is_aligned_with_the_two_layers_of_the_other_engine() -> None:
    fused = read_layers(layer_rows(("ab", "conv", "/a/Conv,/b/Conv", "fp16", 1.0)))
    apart = read_layers(layer_rows(("a", "conv", "/a/Conv", "fp16", 0.4), ("b", "conv", "/b/Conv", "fp16", 0.4)))
    rows = align_engines(fused, apart)
    assert rows["other_layers"].to_list() == [[0, 1]]
    assert rows["nodes"].to_list() == [["/a/Conv", "/b/Conv"]]


def test_pieces_of_a_concatenation_do_not_merge_blocks() -> None:
    table = read_layers(
        layer_rows(
            ("a", "fusion", "/a/Conv,/Concat", "fp16", 1.0),
            ("b", "fusion", "/b/Conv,/Concat", "fp16", 1.0),
            ("rest", "kgen", "/Concat", "fp16", 1.0),
        )
    )
    assert align_engines(table, table)["layers"].to_list() == [[0], [1], [2]]


def test_nodes_that_a_precision_adds_are_ignored() -> None:
    nodes = ["/a/Conv", "/a/Conv_weight_QuantizeLinear", "x_DequantizeLinear", "images_half_cast"]
    assert original_nodes(nodes) == ["/a/Conv"]
    assert original_nodes(None) == []


def test_an_engine_aligned_with_itself_does_not_differ(int8: LayerTable) -> None:
    rows = align_engines(int8, int8)
    assert rows["layers"].to_list() == rows["other_layers"].to_list()
    assert rows["delta_ms"].abs().max() == 0
    assert not rows["differs"].any()


def test_the_summary_has_the_numbers_of_the_table(int8: LayerTable, untimed: LayerTable, fp16: LayerTable) -> None:
    precisions, reformats, above, slowest = summarize_layers(int8)
    assert precisions == "6 layers, sum 0.600 ms: 4 int8, 1 fp16, 1 reformat."
    assert reformats.startswith("1 reformat ")
    assert "13.3%" in reformats
    assert above.startswith("1 of 3 layers")
    assert "/c/Conv" in above
    assert slowest.startswith("2 of 6 layers")
    assert "conv1 (33.3%)" in slowest


def test_the_summary_without_latencies_has_no_shares(untimed: LayerTable, fp16: LayerTable) -> None:
    assert untimed.untimed_reason in " ".join(summarize_layers(untimed))
    assert "%" not in " ".join(summarize_layers(untimed))
    assert "INT8" not in " ".join(summarize_layers(fp16))


def test_the_diff_summary_compares_latencies_if_both_were_timed(
    fp16: LayerTable, int8: LayerTable, untimed: LayerTable
) -> None:
    precisions, total, slower = summarize_diff(align_engines(fp16, int8), fp16, int8)
    assert [int(number) for number in re.findall(r"\b\d+\b", precisions)] == [3, 2]
    assert "int8 0.600 ms, fp16 0.800 ms (0.75x)" in total
    assert f"{NO_NODE} (+0.1000 ms)" in slower
    assert "Only fp16 was timed" in " ".join(summarize_diff(align_engines(fp16, untimed), fp16, untimed))


def test_figures_show_precision_by_pattern_too(fp16: LayerTable, int8: LayerTable) -> None:
    bars = [trace for trace in int8.plot().data if trace.type == "bar"]
    assert sum(len(trace.x) for trace in bars) == 6
    looks = [(trace.marker.color, trace.marker.pattern.shape) for trace in bars]
    assert len({shape for _, shape in looks}) == len(looks)
    shares = precision_shares_figure([fp16, int8])
    for table in range(2):
        assert sum(trace.x[table] for trace in shares.data) == pytest.approx(1)


def test_untimed_engines_have_no_latency_axis(untimed: LayerTable, fp16: LayerTable) -> None:
    figure = untimed.plot(selected=2)
    assert not figure.layout.yaxis.visible
    assert {value for trace in figure.data if trace.type == "bar" for value in trace.y} == {1.0}
    mixed = precision_shares_figure([fp16, untimed])
    assert "not of the latency" in mixed.layout.xaxis.title.text
    strips = engine_diff_figure(align_engines(fp16, untimed), ("fp16", "int8"))
    assert {trace.y[0] for trace in strips.data if len(trace.y or ())} == {"fp16", "int8"}


def test_timed_engines_are_drawn_by_largest_change(fp16: LayerTable, int8: LayerTable) -> None:
    figure = engine_diff_figure(align_engines(fp16, int8), ("fp16", "int8"), limit=2)
    markers = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in markers] == ["fp16", "int8"]
    assert len(markers[0].x) == 2
    assert "/a/Conv" in markers[0].y


@pytest.mark.slow
def test_engines_of_tensorrt_rtx_are_read_and_aligned(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import trtkit as tk
    from trtkit import demo

    artifacts = [
        tk.export(
            demo.model_path(), imgsz=64, half=name == "fp16", int8=name == "int8", device=demo.DEVICE, opt_level=0,
            data=demo.data_path() if name == "int8" else None, fraction=0.05, backend="tensorrt_rtx",
            output=tmp_path / f"{name}.engine",
        )
        for name in ("fp16", "int8")
    ]  # fmt: skip
    first, second = (read_layers(one) for one in artifacts)
    assert "GPU" in first.untimed_reason
    assert first.facts["sm"] == "sm89"
    assert "int8" in set(second.frame["precision"])
    rows = align_engines(first, second)
    both = rows.filter((pl.col("layers").list.len() > 0) & (pl.col("other_layers").list.len() > 0))
    assert len(both) > 50
    assert both["differs"].sum() > 30
    placed = [layer for layers in rows["other_layers"].to_list() for layer in layers]
    assert sorted(placed) == list(range(len(second.frame)))
