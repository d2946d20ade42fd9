import dataclasses
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from example_comparison import example_comparison

from trtkit.comparison.tables import comparison_frame, concat_by_precision, leading_metrics, primary_metrics

METRICS = {
    "mAP50(B)": 0.9,
    "mAP50-95(B)": 0.7,
    "precision(B)": 0.8,
    "pycocotools/AP": 0.68,
    "pycocotools/AP50": 0.88,
    "pycocotools/APs": 0.5,
}


def test_primary_metrics_are_one_of_each_rule():
    assert primary_metrics(METRICS) == [
        ("mAP50-95(B)", "mAP50-95 by Ultralytics' rule"),
        ("pycocotools/AP", "pycocotools/AP by pycocotools' rule"),
    ]


def test_masks_come_before_boxes():
    primary = primary_metrics({**METRICS, "mAP50-95(M)": 0.6, "pycocotools/AP(M)": 0.5})
    assert [column for column, _ in primary] == ["mAP50-95(M)", "pycocotools/AP(M)", "mAP50-95(B)", "pycocotools/AP"]
    assert [column for column, _ in leading_metrics(primary)] == ["mAP50-95(M)", "pycocotools/AP(M)"]
    assert leading_metrics(primary_metrics(METRICS)) == primary_metrics(METRICS)


def test_exact_overlap_is_listed_beside_the_probabilistic_one():
    primary = primary_metrics({"mAP50-95(B)": 0.7, "mAP50-95(R)": 0.6})
    assert primary == [
        ("mAP50-95(B)", "mAP50-95 by Ultralytics' rule"),
        ("mAP50-95(R)", "mAP50-95(R) by exact overlap"),
    ]
    assert leading_metrics(primary) == primary[:1]


def test_the_primary_metric_of_classify_is_top1():
    assert primary_metrics({"top1": 0.5, "top5": 0.9}) == [("top1", "top-1 accuracy")]


@dataclasses.dataclass
class File:
    path: Path
    size: int
    seconds: float
    build_seconds: float | None = None


def test_accuracy_latency_and_files_are_joined():
    timing = example_comparison(batches=(1, 8)).timing()
    evaluations = {
        "fp32": SimpleNamespace(metrics=METRICS),
        "fp16": SimpleNamespace(metrics=METRICS),
        "int8": SimpleNamespace(metrics={**METRICS, "mAP50-95(B)": 0.69}),
    }
    artifacts = {
        label: {
            "onnx": File(Path("a.onnx"), 10_500_000, 2.0),
            "engine": File(Path("a.engine"), 6_250_000, 5.0, 3.5),
        }
        for label in evaluations
    }
    del artifacts["fp16"]["engine"]
    rows = comparison_frame(artifacts, evaluations, timing, "fp32", ["mAP50-95(B)"])
    assert rows.select("precision", "batch").rows() == [(label, size) for label in evaluations for size in (1, 8)]
    int8 = rows.row(5, named=True)
    assert int8["delta mAP50-95(B)"] == pytest.approx(-0.01)
    assert (int8["onnx_mb"], int8["engine_mb"], int8["build_s"], int8["export_s"]) == (10.5, 6.25, 3.5, 7.0)
    assert rows.row(2, named=True)["engine_mb"] is None
    assert rows["runner"].unique().to_list() == ["ONNX Runtime 1.32.0 CPU"]
    assert rows["p99_ms"].null_count() == 0


def test_the_precision_is_the_first_column():
    frame = concat_by_precision({"a": pl.DataFrame({"x": [1, 2]}), "b": pl.DataFrame({"x": [3], "y": ["z"]})})
    assert frame.columns == ["precision", "x", "y"]
    assert frame["precision"].to_list() == ["a", "a", "b"]
