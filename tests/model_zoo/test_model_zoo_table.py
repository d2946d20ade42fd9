"""Rows with engines' latencies: the frame, the guide's tables and zoo.md."""

from __future__ import annotations

import dataclasses

import fake_zoo_child
import polars as pl
import pytest
from test_model_zoo_workers import job

from trtkit.model_zoo.table import Zoo, make_row, make_timings, rows_frame, timings_frame
from trtkit.results import Provenance

INTERVALS = {"value": 0.5, "low": 0.4, "high": 0.6}


@pytest.fixture(scope="module")
def zoo():
    """FP32 and INT8 of one model on two GPUs, and a failure whose text is Markdown."""
    rows, timings = [], []
    for gpu, ms in (("H200", 8.0), ("L4", 16.0)):
        for precision in ("fp32", "int8"):
            one = job("yolov8n.pt", precision, command=f"trtkit zoo yolov8n.pt --precisions={precision}")
            spans = [fake_zoo_child.timing(batch, ms * batch / 8) for batch in (1, 8)]
            facts = {**fake_zoo_child.FACTS, "machine": fake_zoo_child.machine(gpu, f"GPU-{gpu}"), "timings": spans}
            change = {"delta": -0.01, "delta_low": -0.02, "delta_high": 0.005} if precision == "int8" else {}
            rows.append(make_row(one, facts, {**INTERVALS, **change}, "rows/x"))
            timings += make_timings(rows[-1], facts)
    failed = {"error_code": "build-failed", "error": "a | b\n*c* <d>"}
    rows.append(make_row(dataclasses.replace(one, model="broken.pt"), failed, {}, "rows/y"))
    about = {
        "split": "val", "seed": 0, "resamples": 1000, "batch": [1, 8], "is_guide": True, "notes": ["a note"],
        "command": "trtkit zoo", "python": "",
    }  # fmt: skip
    provenance = Provenance(model_hash="a", runner="TensorRT", settings={})
    return Zoo(rows=rows_frame(rows), timings=timings_frame(timings), about=about, provenance=provenance)


def test_rows_have_the_first_batch_and_the_gpu(zoo):
    row = zoo.rows.row(0, named=True)
    assert (row["p50_ms"], row["batch"], row["size_mb"], row["gpu"], row["gpu_uuid"]) == (
        1.0,
        1,
        2.0,
        "H200",
        "GPU-H200",
    )
    assert row["excluded"] == ["/dfl/Conv (dfl)"]
    assert row["clocks"] == '{"sm": 1980, "timed_sm": [1700, 1980]}'


def test_the_guide_s_tables_have_its_columns_in_ms_per_image(zoo):
    tables = zoo.guide_tables()
    assert list(tables) == ["detect, yolov8n at 64x64, H200", "detect, yolov8n at 64x64, L4"]
    table = next(iter(tables.values()))
    assert table.columns == [
        "precision", "test", "mean ms", "min ms", "max ms", "mAP50(B)", "mAP50-95(B)", "batch", "imgsz",
    ]  # fmt: skip
    assert table.rows()[:2] == [
        ("FP32", "predict", 1.0, (8 - 0.1) / 8, 8.5 / 8, None, None, 8, "64x64"),
        ("FP32", "val", 1.0, 0.9, 1.5, 0.75, 0.5, 1, "64x64"),
    ]
    assert table["precision"].to_list() == ["FP32", "FP32", "INT8", "INT8"]


def test_gpus_stand_in_tables_of_their_own_and_no_name_breaks_one(zoo):
    page = zoo.to_markdown()
    assert "## detect, H200" in page
    assert "## detect, L4" in page
    assert "| 0.5000 [0.4000, 0.6000] | -0.0100 [-0.0200, +0.0050] | 1.000 (batch 1) |" in page
    assert r"| a \| b \*c\* \<d\> |" in page
    assert "| FP32 | predict | 1.000 | 0.988 \\| 1.062 |  |  | 8 | 64x64 |" in page
    assert "- a note" in page
    assert "- yolov8n 64x64 FP32 tensorrt, batch 8: throttling" in page
    # Every line of a table has as many cells as its head.
    cells = [line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(cells) == {7, 9, 10}


def test_saved_and_loaded(zoo, tmp_path):
    loaded = Zoo.load(zoo.save(tmp_path))
    assert loaded.timings.equals(zoo.timings)
    assert loaded.to_markdown() == zoo.to_markdown()
    assert len(loaded.failed) == 1
    assert Zoo.list_files(tmp_path) == ["zoo.parquet", "zoo.timings.parquet", "zoo.md"]


def test_the_figure_has_a_panel_per_gpu_over_latency(zoo):
    figure = zoo.plot()
    assert ["p50 latency, ms" in one.text for one in figure.layout.annotations] == [True, True]


def test_a_panel_that_was_not_timed_throughout_is_over_file_size(zoo):
    rows = zoo.rows.with_row_index("row").with_columns(p50_ms=pl.when(pl.col("row") > 0).then("p50_ms")).drop("row")
    figure = dataclasses.replace(zoo, rows=rows).plot()
    assert ["file size, MB" in one.text for one in figure.layout.annotations].count(True) == 1
    shown = [value for trace in figure.data for value in trace.x]
    assert None not in shown
