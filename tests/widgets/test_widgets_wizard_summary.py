"""Facts, messages and tables of the wizard: they claim no more than was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trtkit as tk
from trtkit.backends import Passport
from trtkit.calibration.dataset_checks import Finding
from trtkit.calibration.diagnosis import Diagnosis
from trtkit.comparison.comparison import Comparison
from trtkit.evaluation.latency import Timing
from trtkit.exporter import Artifact
from trtkit.recipe import Recipe
from trtkit.results import Provenance
from trtkit.widgets.wizard.actions import Measurement
from trtkit.widgets.wizard.summary import (
    accuracy_frame,
    diagnosis_messages,
    engine_facts,
    latency_frame,
    measurement_messages,
    model_facts,
    passport_facts,
    recipe_facts,
    render_accuracy,
    render_latency,
)


def measurement(comparison: Comparison, **changes: Any) -> Measurement:
    return Measurement(timing=comparison.timing(), figures=(None, None), comparison=comparison, **changes)  # type: ignore[arg-type]


def with_change(comparison: Comparison, low: float, high: float) -> Comparison:
    """The comparison of 400 images in which every metric of INT8 changes by between `low` and `high`."""
    is_int8 = pl.col("precision") == "int8"
    return dataclasses.replace(
        comparison,
        about={**comparison.about, "eval_images": 400},
        differences=comparison.differences.with_columns(
            low=pl.when(is_int8).then(low).otherwise("low"), high=pl.when(is_int8).then(high).otherwise("high")
        ),
    )


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(-0.02, -0.01, "warning"), (-0.02, 0.01, "note"), (-0.004, 0.0, "good")]
)
def test_the_verdict_decides_the_kind_of_message(comparison: Comparison, low: float, high: float, kind: str) -> None:
    first, *rest = measurement_messages(measurement(with_change(comparison, low, high)), "int8")
    assert first.kind == kind
    assert {one.kind for one in rest} == {"note"}


def test_the_messages_are_the_verdict_and_the_findings(comparison: Comparison) -> None:
    messages = tuple(one.text for one in measurement_messages(measurement(comparison), "int8"))
    assert messages == (str(comparison.verdicts["int8"]), *comparison.findings())
    assert measurement_messages(measurement(comparison), "fp32")[0].kind == "note"


def test_without_labeled_images_accuracy_is_not_claimed(comparison: Comparison) -> None:
    latency_only = dataclasses.replace(measurement(comparison), comparison=None)
    (message,) = measurement_messages(latency_only, "int8")
    assert message.kind == "note"
    assert "<table" not in render_accuracy(latency_only, "int8")


def test_the_table_of_accuracy_has_every_metric_and_intervals_where_there_are_some(comparison: Comparison) -> None:
    frame = accuracy_frame(comparison, "int8")
    metrics = comparison.evaluation("int8").metrics
    assert dict(frame.select("metric", "value").iter_rows()) == metrics
    rows = {row["metric"]: row for row in frame.iter_rows(named=True)}
    expected = comparison.differences.filter(
        (pl.col("precision") == "int8") & (pl.col("scope") == "all") & (pl.col("metric") == "mAP50-95(B)")
    ).row(0, named=True)
    assert {name: rows["mAP50-95(B)"][name] for name in ("delta", "low", "high", "significant")} == {
        name: expected[name] if name != "delta" else pytest.approx(expected[name])
        for name in ("delta", "low", "high", "significant")
    }
    without = frame.filter(pl.col("low").is_null())
    assert without["significant"].null_count() == without.height
    assert accuracy_frame(comparison, "fp32").columns == ["metric", "value"]
    assert render_accuracy(measurement(comparison), "fp32").count("<table") == 1


def timing(engine: bool, clock: str = "wall") -> Timing:
    samples = pl.DataFrame({"label": ["int8"] * 5, "batch": [2] * 5, "turn": range(5), "ms": [20.0, 21, 22, 23, 24]})
    runners = pl.DataFrame(
        {"label": ["int8"], "runner": ["the runner"], "engine": [engine], "precision": ["int8"], "clock": [clock],
         "imgsz": ["640x640"], "static_batch": [None]},
        schema_overrides={"static_batch": pl.Int64},
    )  # fmt: skip
    return Timing(samples=samples, runners=runners, provenance=Provenance(model_hash="", runner="the runner"))


@pytest.mark.parametrize("engine", [False, True])
def test_latency_of_onnx_runtime_is_folded_and_not_called_tensorrt_s(comparison: Comparison, engine: bool) -> None:
    one = dataclasses.replace(measurement(comparison, engine_problem="no NVIDIA driver"), timing=timing(engine))
    shown = render_latency(one)
    before = shown.partition("<details>")[0]
    assert ("not measured: the engine does not run here (no NVIDIA driver)" in before) == (not engine)
    assert ("<table" in before) == engine
    assert "<table" in shown
    row = latency_frame(one).row(0, named=True)
    assert (row["label"], row["runner"], row["batch"], row["runs"], row["p50_ms"]) == ("int8", "the runner", 2, 5, 22.0)


def diagnosis(*severities: str) -> Diagnosis:
    findings = tuple(
        Finding(severity=severity, code="x", evidence="two are alike", remedy="remove one") for severity in severities
    )
    images = pl.DataFrame({"set": ["calibration"] * 3 + ["validation"]})
    return Diagnosis(
        findings=findings,
        images=images,
        classes=pl.DataFrame(),
        split="train",
        provenance=Provenance(model_hash=""),
    )


@pytest.mark.parametrize(
    ("severities", "kind", "words"),
    [
        ((), "good", "3 calibration images (train)"),
        (("note",), "good", "3 calibration images (train)"),
        (("warning", "note"), "warning", "1 issue found"),
        (("problem", "warning"), "problem", "2 issues found"),
    ],
)
def test_findings_come_after_their_summary(severities: tuple[str, ...], kind: str, words: str) -> None:
    first, *rest = diagnosis_messages(diagnosis(*severities))
    assert first.kind == kind
    assert words in first.text
    assert [(one.kind, one.text, one.detail) for one in rest] == [
        (severity, "Two are alike.", "Remedy: remove one.") for severity in severities
    ]


def test_the_facts_of_a_model(model: tk.Model) -> None:
    facts = model_facts(model)
    assert facts["Task"] == "detect"
    assert facts["Classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, … (10 in all)"
    assert facts["Image size"] == "640 x 640 pixels"
    assert model.hash.startswith(facts["Hash"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"int8": True, "data": "d"}, {"Precision": "INT8", "Calibration": "on d", "Batch": "up to 1"}),
        ({"int8": True, "calibration": "c"}, {"Calibration": "c"}),
        ({"int8": True}, {"Calibration": "on the embedded example set"}),
        ({"half": True, "imgsz": 100}, {"Precision": "FP16", "Calibration": None, "Image size": "128 x 128 pixels"}),
        ({"format": "onnx", "batch": 4}, {"Format": "ONNX file", "Batch": "4"}),
        ({"int8": True, "implicit": True}, {"Precision": "INT8 by TensorRT's own calibrator"}),
    ],
)
def test_the_facts_of_a_recipe(model: tk.Model, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = recipe_facts(Recipe(model="m.pt", **settings), model)
    assert {name: facts[name] for name in expected} == expected


def test_the_facts_of_an_engine_and_its_passport(model: tk.Model) -> None:
    passport = Passport(backend="tensorrt_rtx", tensorrt="1.7.1", sm="sm89", precision="int8", batch=4, dynamic=True,
                        layers=({"name": "a", "precision": "int8"},), versions={"trtkit": "0.1"})  # fmt: skip
    artifact = Artifact(
        path=Path("x.engine"), format="engine", precision="int8", info=model.info,
        recipe=Recipe(model="m.pt", int8=True), model_hash=model.hash, calibration_hash="c" * 64, passport=passport,
        seconds=9.0, build_seconds=4.0, size=15_300_000,
    )  # fmt: skip
    facts = engine_facts(artifact)
    assert (facts["Size"], facts["Calibration"]) == ("15.3 MB", "c" * 16)
    assert facts["Export time"] == "9.0 s, 4.0 s of it for the build"
    passport_shown = passport_facts(artifact)
    assert (passport_shown["Builder"], passport_shown["GPU"]) == (
        "TensorRT-RTX 1.7.1",
        "sm89 (GeForce RTX 40 series, L4, L40)",
    )
    assert passport_shown["Batch"] == "up to 4"
    assert passport_shown["Layers"] == "1 int8"
    assert passport_facts(dataclasses.replace(artifact, passport=None)) == {}
