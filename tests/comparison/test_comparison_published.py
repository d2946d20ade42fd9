"""Published GPU latencies beside comparisons without a GPU: of the same model only, and never as measurements."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import published_latencies
import pytest
from example_comparison import example_comparison

from trtkit.cli.result_tables import print_comparison
from trtkit.comparison.cards import make_cards
from trtkit.comparison.published import find_published
from trtkit.comparison.report import render_report, render_summary
from trtkit.html import asset

RECORDS = json.loads(asset("comparison/published_latencies.json"))
ROWS = [row for record in RECORDS for row in record["rows"]]
PRECISIONS = ("fp32", "fp16", "int8")
SIZES = {"imgsz": (640, 640), "task": "detect", "precisions": PRECISIONS}
H100 = Path("benchmarks/results/engines-nvidia-h100-80gb-hbm3.json")
UNKNOWN = {"model": "yolo11t", "model_hash": "0" * 64}


def test_the_shipped_file_holds_what_the_records_hold():
    """After a new record: `python tools/published_latencies.py`."""
    assert asset("comparison/published_latencies.json") == published_latencies.render_records()
    saved = json.loads((published_latencies.ROOT / H100).read_text())["rows"]
    expected = {(row["model"], row["precision"], row["batch"]): row["p50_ms"] for row in saved}
    shipped = next(record["rows"] for record in RECORDS if record["record"] == str(H100.with_suffix(".md")))
    assert len(shipped) == 30
    for row in shipped:
        assert row["p50_ms"] == pytest.approx(expected[f"{row['model']}.pt", row["precision"], row["batch"]], abs=1e-4)


def test_a_model_is_found_by_its_hash_whatever_its_name():
    hashes = {row["model_hash"] for row in ROWS if row["model"] == "yolo11n"}
    found = find_published(model="mine", model_hash=hashes.pop(), **SIZES)
    assert found.same_weights
    assert "this model at 640x640" in found.sentence
    # Of two records that of all three precisions at both batch sizes.
    assert found.gpu.startswith("NVIDIA H100")
    assert sorted(found.rows["batch"].unique()) == [1, 8]


def test_a_model_of_the_same_name_task_and_size_is_of_other_weights():
    found = find_published(model="yolo11n", model_hash="0" * 64, **SIZES)
    assert not found.same_weights
    assert "a yolo11n of other weights at 640x640" in found.sentence


def test_latencies_of_these_weights_are_taken_before_more_of_other_weights(monkeypatch):
    few = {**RECORDS[0], "rows": [dict(ROWS[0], model_hash="a" * 64)]}
    more = {**RECORDS[0], "rows": [dict(row, model_hash="b" * 64) for row in ROWS]}
    monkeypatch.setattr("trtkit.comparison.published._read_records", lambda: [more, few])
    row = ROWS[0]
    sizes = {"imgsz": [row["imgsz"]] * 2, "task": row["task"], "precisions": PRECISIONS}
    found = find_published(model=row["model"], model_hash="a" * 64, **sizes)
    assert found.same_weights
    assert len(found.rows) == 1


@pytest.mark.parametrize(
    "change",
    [{"model": "yolo11s"}, {"task": "obb"}, {"imgsz": (320, 320)}, {"imgsz": (640, 320)}, {"precisions": ("qat",)}],
)
def test_nothing_was_published_of_other_models_tasks_and_sizes(change):
    assert find_published(**{"model": "yolo11n", "model_hash": "0" * 64, **SIZES, **change}) is None


def test_the_sentence_names_gpu_versions_batch_and_command():
    sentence = find_published(model="yolo11n", model_hash="0" * 64, **SIZES).sentence
    parts = ("NVIDIA H100 80GB HBM3 (driver", "CUDA 13.0", "TensorRT 8.6.0", "optimization level 2", "batch 1:",
             "batch 8: FP32 0.231, FP16 0.138, INT8 0.112", "python benchmarks/engines.py run", H100.stem)  # fmt: skip
    assert [part for part in parts if part not in sentence] == []
    assert sentence.startswith("Published, not measured here")


def test_figure_card_and_report_show_it_as_published():
    comparison = example_comparison()
    published = comparison.published
    bars = [trace for trace in comparison.plot().data if trace.name and trace.name.startswith("published")]
    assert [trace.name for trace in bars] == ["published, batch 1", "published, batch 8"]
    for trace in bars:
        # Outlined and hatched: in no color that a measurement has.
        assert trace.marker.color == "rgba(0,0,0,0)"
        assert trace.marker.pattern.shape
        assert trace.showlegend
    rows = published.rows.filter(batch=8)
    assert list(bars[1].x) == (rows["p50_ms"] / 8).to_list()
    titles = " ".join(annotation.text for annotation in comparison.plot().layout.annotations)
    assert "no GPU here: not measured" in titles
    assert "NVIDIA H100" in titles
    card = make_cards(comparison)[1]
    assert [row.value for row in card.rows] == ["not measured: no GPU here"]
    assert "Published for a yolo11n of other weights" in card.reference
    report = render_report(comparison)
    assert published.sentence in report
    assert 'class="published"' in report


def test_an_engine_that_ran_needs_no_published_number():
    comparison = example_comparison(where="gpu")
    assert comparison.published is None
    assert not [trace for trace in comparison.plot().data if (trace.name or "").startswith("published")]
    assert all(card.reference == "" for card in make_cards(comparison))


def test_latencies_of_another_runner_are_in_no_headline(capsys):
    comparison = example_comparison(**UNKNOWN, why_not_run="")
    comparison = dataclasses.replace(comparison, about={**comparison.about, **UNKNOWN})
    assert comparison.published is None
    # p50 of the example is 34 ms in FP32.
    numbers = {f"{value:.2f}" for value in comparison.rows["p50_ms"]}
    shown = [render_summary(comparison).partition("<details><summary>Findings")[0]]
    report = render_report(comparison)
    shown += report.split("<details><summary>Findings")[0:1]
    shown.append(report.partition("<h2>Accuracy and cost</h2>")[2].partition("<details>")[0])
    shown.append(report.partition("<h2>Latency</h2>")[2].partition("<details>")[0])
    print_comparison(comparison, "runs")
    shown.append(capsys.readouterr().out)
    for text in shown:
        assert not [number for number in numbers if number in text]
    assert "no GPU here: not measured" in shown[3].lower().replace("gpu", "GPU")
    assert numbers < set(report.replace("<", " ").replace(">", " ").split())
