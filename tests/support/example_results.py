"""One small result of every kind that can be saved, for which nothing ran."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
from example_comparison import example_comparison

from trtkit.calibration import Calibration
from trtkit.calibration.dataset_checks import Finding
from trtkit.calibration.diagnosis import Diagnosis
from trtkit.comparison.comparison import Comparison
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.latency import Timing
from trtkit.model_zoo.table import Zoo, rows_frame, timings_frame
from trtkit.results import Provenance, Result
from trtkit.tuning.int8_evaluation import Int8Evaluation
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity
from trtkit.tuning.sweep import Sweep

REFERENCES = Path(__file__).resolve().parent.parent
KINDS: tuple[type[Result], ...] = (
    Calibration, Comparison, Diagnosis, Evaluation, Int8Evaluation, Search, Sensitivity, Sweep, Timing, Zoo
)  # fmt: skip
METRIC = "mAP50-95(B)"


def example_results() -> list[Result]:
    """Results of all kinds; comparison and calibration as version 0.1.0 saved them, too."""
    saved = Comparison.load(REFERENCES / "comparison/references/v1")
    calibration = Calibration.load(REFERENCES / "calibration/references/v1/calibration")
    provenance = Provenance(
        model_hash="a", data_hash="b", runner="ONNX Runtime", settings={"imgsz": [64, 64], "split": "val"}
    )

    def of(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(pl.col("precision") == "fp32").drop("precision")

    tables = {"per_class": of(saved.classes), "per_image": of(saved.images)}
    evaluation = Evaluation(
        task="detect", metrics={METRIC: 0.5, "pycocotools/AP": 0.4}, **tables, detections=of(saved.detections),
        labels=of(saved.labels), speed={"inference": 1.0, "wall": 2.0}, skipped=("a.jpg",), notes=("a note",),
        provenance=provenance,
    )  # fmt: skip
    loss = {"value": 0.49, "value_float": 0.5, "loss": 0.01, "loss_low": 0.0, "loss_high": 0.02}
    int8 = Int8Evaluation(
        label="x", algorithm="percentile", keep=("/model.0/*",), kept_layers=1, int8_share=0.9, metric=METRIC,
        image_count=3, provenance=provenance, **loss,
    )  # fmt: skip
    layers = pl.DataFrame(
        {
            "node": ["a", "b"], "block": ["0", "1"], "operator": ["Conv", "Conv"], "macs": [10, 20],
            "sqnr_only": [30.0, 31.0], "sqnr_without": [25.0, 26.0], "gain": [1.0, 0.5],
        }
    )  # fmt: skip
    sensitivity = Sensitivity(
        layers=layers, blocks=layers.select("block"), metric=METRIC, sqnr=24.0, metric_float=0.5, metric_int8=0.49,
        kept={"c": "decoding"}, image_count=2, provenance=provenance,
    )  # fmt: skip
    trial = {
        "assignment": "best ranges", "algorithm": "mse", "bias_corrected": True, "kept_layers": 1, "int8_share": 0.9,
        "sqnr": 20.0, "metric": 0.49, "loss": 0.01, "loss_low": 0.0, "loss_high": 0.02, "cost": 0.5,
        "unit": "relative", "pareto": True, "chosen": True, "keep": ["a"],
    }  # fmt: skip
    trials = [trial, {**trial, "assignment": "all FP16", "algorithm": None, "chosen": False, "cost": 1.0}]
    search = Search(
        trials=pl.DataFrame(trials), layers=layers.select("node", "block", "macs"), keep=("a",),
        calibration=calibration, reached=True, max_drop=0.02, metric=METRIC, value_float=0.5,
        cost_source="synthetic", notes=("a note",), equalized=b"a graph", provenance=provenance,
    )  # fmt: skip
    setting = {
        "algorithm": "minmax", "percentile": math.nan, "calibration_images": 8, "metric": 0.49, "low": 0.4, "high": 0.6,
        "loss": 0.01, "loss_low": 0.0, "loss_high": 0.02, "gap": 0.0, "gap_low": 0.0, "gap_high": 0.0,
        "sufficient": True,
    }  # fmt: skip
    rows = [{**setting, "percentile": None}, {**setting, "algorithm": "percentile", "percentile": 99.999}]
    sweep = Sweep(rows=pl.DataFrame(rows), metric=METRIC, value_float=0.5, image_count=3, provenance=provenance)
    diagnosis = Diagnosis(
        findings=(Finding(severity="warning", code="dark", evidence="two are dark", remedy="add bright ones"),),
        images=pl.DataFrame(
            {"set": ["calibration", "validation"], "path": ["a", "b"], "brightness": [0.1, 0.5],
             "contrast": [0.1, 0.2], "aspect": [1.0, 1.5], "objects": [1, 2]}
        ),
        classes=pl.DataFrame({"name": ["0"], "calibration": [1]}), split="train", provenance=provenance,
    )  # fmt: skip
    comparison = example_comparison()
    timing = Timing(samples=comparison.samples, runners=comparison.runners, provenance=provenance)
    row = {"model": "a", "task": "detect", "precision": "fp32", "backend": "ort", "status": "done", "value": 0.5,
           "low": 0.4, "high": 0.6, "size_mb": 1.0, "metric": METRIC, "metrics": "{}", "versions": "{}", "keep": [],
           "imgsz": "64x64", "command": "trtkit zoo a.pt", "model_hash": "a", "file_hash": "b"}  # fmt: skip
    about = {"split": "val", "seed": 0, "resamples": 9, "batch": [1], "is_guide": False, "notes": [], "command": "zoo"}
    zoo = Zoo(rows=rows_frame([row]), timings=timings_frame([]), about=about, provenance=provenance)
    return [calibration, comparison, diagnosis, evaluation, int8, search, sensitivity, sweep, timing, zoo]
