"""What the wizard says of its findings: never more than was measured, and whose time a time is."""

from __future__ import annotations

import dataclasses
from typing import Any

import plotly.graph_objects as go
import polars as pl
import pytest

import trtkit as tk
from trtkit.backends import Passport
from trtkit.calibration.dataset_checks import Finding
from trtkit.calibration.diagnosis import Diagnosis
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.latency import Timing
from trtkit.recipe import Recipe
from trtkit.results import Provenance
from trtkit.widgets.wizard.actions import (
    Measurement,
    accuracy_frame,
    accuracy_messages,
    diagnosis_messages,
    engine_facts,
    latency_frame,
    latency_messages,
    model_facts,
    passport_facts,
    recipe_facts,
)

RUNTIME = "ONNX Runtime 1.32.0 CPU"


def evaluation(metrics: dict[str, float], images: int = 40, notes: tuple[str, ...] = ()) -> Evaluation:
    empty = pl.DataFrame()
    return Evaluation(
        task="detect", metrics=metrics, per_class=empty, per_image=pl.DataFrame({"image": range(images)}),
        detections=empty, labels=empty, speed={}, notes=notes,
        provenance=Provenance(model_hash="", runner=RUNTIME, settings={"split": "val"}),
    )  # fmt: skip


def timing(engine: bool, clock: str = "wall", runner: str = RUNTIME) -> Timing:
    labels = ["fp32", "int8"]
    samples = pl.DataFrame({"label": ["fp32"] * 5 + ["int8"] * 5, "batch": [2] * 10, "turn": range(10),
                            "ms": [10.0, 11, 12, 13, 14, 20, 21, 22, 23, 24]})  # fmt: skip
    runners = pl.DataFrame(
        {"label": labels, "runner": [runner] * 2, "engine": [engine] * 2, "precision": labels, "clock": [clock] * 2,
         "imgsz": ["640x640"] * 2, "static_batch": [None, None]},
        schema_overrides={"static_batch": pl.Int64},
    )  # fmt: skip
    return Timing(samples=samples, runners=runners, provenance=Provenance(model_hash="", runner=runner))


def change(metric: str, delta: float, low: float | None, high: float | None, measurable: bool) -> dict[str, Any]:
    return {"metric": metric, "scope": "all", "name": "", "reference": 0.8, "value": 0.8 + delta, "delta": delta,
            "low": low, "high": high, "significant": measurable}  # fmt: skip


def measured(after: float = 0.79, *changes: dict[str, Any], images: int = 40, **more: Any) -> Measurement:
    names = ("mAP50-95(B)", "pycocotools/APs")
    differences = (
        pl.DataFrame(list(changes), schema_overrides={"low": pl.Float64, "high": pl.Float64}) if changes else None
    )
    before = evaluation(dict.fromkeys(names, 0.8), images) if changes else None
    return Measurement(
        timing=more.pop("timing", timing(engine=False)),
        figures=(None, go.Figure()),
        evaluation=evaluation({"mAP50-95(B)": after, "pycocotools/APs": 0.7}, images, more.pop("notes", ())),
        baseline=before,
        differences=differences,
        **more,
    )


@pytest.mark.parametrize(
    ("after", "row", "kind", "words"),
    [
        (0.79, change("mAP50-95(B)", -0.01, -0.02, -0.003, True), "warning",
         "INT8 loses 0.0100 mAP50-95 by Ultralytics' rule: 0.8000 to 0.7900."),
        (0.79, change("mAP50-95(B)", -0.01, -0.02, 0.003, False), "good", "no measurable change of mAP50-95"),
        (0.81, change("mAP50-95(B)", 0.01, 0.003, 0.02, True), "good", "INT8 gains 0.0100"),
        (0.80, change("mAP50-95(B)", 0.0, 0.0, 0.0, False), "good", "INT8 keeps mAP50-95"),
        (0.79, change("mAP50-95(B)", -0.01, None, None, False), "note", "INT8 loses 0.0100"),
        (0.79, change("other", -0.01, -0.02, -0.003, True), "note", "INT8 loses 0.0100"),
    ],
)  # fmt: skip
def test_a_change_is_told_with_what_chance_leaves_of_it(
    after: float, row: dict[str, Any], kind: str, words: str
) -> None:
    said = accuracy_messages(measured(after, row), "int8")[0]
    assert said.kind == kind
    assert words in said.text
    assert ("95 % interval" in said.detail) == (row["low"] not in (None, 0.0) and row["metric"] != "other")


def test_without_fp32_a_number_stands_alone() -> None:
    assert accuracy_messages(measured(), "fp16")[0].text == "FP16 reaches 0.7900 mAP50-95 by Ultralytics' rule."
    assert accuracy_frame(measured()).columns == ["metric", "rule", "value"]


def test_accuracy_that_was_not_judged_is_said_so() -> None:
    said = accuracy_messages(dataclasses.replace(measured(), evaluation=None), "int8")
    assert [one.text for one in said] == ["Accuracy was not judged: no images with labels were named."]


@pytest.mark.parametrize(("images", "few"), [(40, True), (500, False)])
def test_the_evidence_names_images_runner_and_how_few_they_are(images: int, few: bool) -> None:
    said = accuracy_messages(measured(images=images, why_not_engine="no GPU", notes=("mind this",)), "int8")[-1]
    assert f"Judged on {images} images of val by {RUNTIME} on the same graph" in said.text
    assert "the engine does not run here (no GPU)" in said.text
    assert ("can be chance" in said.detail) == few
    assert "mind this." in said.detail


def test_where_the_engine_ran_nothing_stands_in_for_it() -> None:
    assert "same graph" not in accuracy_messages(measured(), "int8")[-1].text


def test_the_table_of_accuracy_has_an_interval_only_where_one_was_measured() -> None:
    frame = accuracy_frame(measured(0.79, change("mAP50-95(B)", -0.01, -0.02, 0.003, False)))
    assert frame.rows() == [
        ("mAP50-95(B)", "Ultralytics' rule", 0.8, 0.79, pytest.approx(-0.01), "-0.0200 to +0.0030", "no"),
        ("pycocotools/APs", "pycocotools' rule", 0.8, 0.7, pytest.approx(-0.1), None, None),
    ]


def test_a_time_by_onnx_runtime_is_never_called_tensorrt_s() -> None:
    (said,) = latency_messages(measured(why_not_engine="no NVIDIA driver"))
    assert said.kind == "warning"
    assert said.text == f"The graph takes 22 ms a batch of 2 (median of 5 runs), by {RUNTIME}: not TensorRT's time."
    assert "The engine does not run here: no NVIDIA driver." in said.detail
    assert latency_frame(measured())["runner"].to_list() == [RUNTIME] * 2


@pytest.mark.parametrize(("clock", "words"), [("gpu", "on the GPU's own clock"), ("wall", "around the call")])
def test_an_engine_s_time_says_by_which_clock(clock: str, words: str) -> None:
    name = "TensorRT 11.4.0 NVIDIA H100"
    (said,) = latency_messages(measured(timing=timing(engine=True, clock=clock, runner=name)))
    assert said.kind == "note"
    assert said.text.startswith(f"The engine takes 22 ms a batch of 2 (median of 5 runs), by {name}")
    assert words in said.text


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
        ((), "good", "The 3 images of train are fit to calibrate with."),
        (("note",), "good", "The 3 images of train are fit to calibrate with."),
        (("warning", "note"), "warning", "have 1 fault to look at"),
        (("problem", "warning"), "problem", "have 2 faults to look at"),
    ],
)
def test_the_doctor_s_findings_come_after_what_they_come_to(severities: tuple[str, ...], kind: str, words: str) -> None:
    first, *rest = diagnosis_messages(diagnosis(*severities))
    assert first.kind == kind
    assert words in first.text
    assert [(one.kind, one.text, one.detail) for one in rest] == [
        (severity, "Two are alike.", "Remedy: remove one.") for severity in severities
    ]


def test_a_model_s_facts(model: tk.Model) -> None:
    facts = model_facts(model)
    assert facts["Task"] == "detect"
    assert facts["Classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, … (10 in all)"
    assert facts["Image size"] == "640 x 640 pixels"
    assert model.hash.startswith(facts["Hash"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"int8": True, "data": "d"}, {"Precision": "INT8", "Ranges": "measured on d", "Batch": "up to 1"}),
        ({"int8": True, "calibration": "c"}, {"Ranges": "from c"}),
        ({"int8": True}, {"Ranges": "measured on the example set"}),
        ({"half": True, "imgsz": 100}, {"Precision": "FP16", "Ranges": None, "Image size": "128 x 128 pixels"}),
        ({"format": "onnx", "batch": 4}, {"Makes": "an ONNX file", "Batch": "4"}),
        ({"int8": True, "implicit": True}, {"Precision": "INT8 by TensorRT's own calibrator"}),
    ],
)
def test_what_a_build_is_about_to_do(model: tk.Model, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = recipe_facts(Recipe(model="m.pt", **settings), model)
    assert {name: facts[name] for name in expected} == expected


def test_an_engine_s_facts_and_passport(model: tk.Model) -> None:
    from pathlib import Path

    from trtkit.exporter import Artifact

    passport = Passport(backend="tensorrt_rtx", tensorrt="1.7.1", sm="sm89", precision="int8", batch=4, dynamic=True,
                        layers=({"name": "a", "precision": "int8"},), versions={"trtkit": "0.1"})  # fmt: skip
    artifact = Artifact(
        path=Path("x.engine"), format="engine", precision="int8", info=model.info,
        recipe=Recipe(model="m.pt", int8=True), model_hash=model.hash, calibration_hash="c" * 64, passport=passport,
        seconds=9.0, build_seconds=4.0, size=15_300_000,
    )  # fmt: skip
    facts = engine_facts(artifact)
    assert (facts["Size"], facts["Calibration"]) == ("15.3 MB", "c" * 16)
    assert facts["Made in"] == "9.0 s, 4.0 s of it building"
    told = passport_facts(artifact)
    assert (told["Built by"], told["Runs on"]) == ("TensorRT-RTX 1.7.1", "sm89 (GeForce RTX 40 series, L4, L40)")
    assert told["Batch"] == "up to 4"
    assert told["Layers"] == "1 int8"
    assert passport_facts(dataclasses.replace(artifact, passport=None)) == {}
