"""Verdicts: accuracy against the tolerance, speed, what to do and why, in Python, JSON, text and exit status."""

import dataclasses
import json
import re

import polars as pl
import pytest
from example_comparison import ULTRALYTICS, example_comparison
from layer_rows import layer_rows
from raising import raises

from trtkit import cli
from trtkit.comparison.cards import make_cards
from trtkit.comparison.comparison import Comparison
from trtkit.comparison.report import render_report
from trtkit.comparison.verdict import decisive_metrics
from trtkit.errors import EngineError, RecipeError
from trtkit.inspection import Cause

GOOD, BAD, UNSURE = (-0.001, -0.003, 0.001), (-0.02, -0.026, -0.014), (-0.008, -0.02, 0.004)
FP16 = (0.0, -0.0002, 0.0002)
FASTER = {"fp32": 1.6, "fp16": 1.0, "int8": 0.8}
SLOWER = {"fp32": 1.6, "fp16": 1.0, "int8": 1.05}


def verdict_on(change, precision="int8", **settings):
    settings = {"eval_images": 400, "where": "gpu", "speed": FASTER} | settings
    return example_comparison(changes={"fp16": FP16, "int8": change}, **settings).verdicts[precision]


@pytest.mark.parametrize(
    ("change", "accuracy", "recommendation", "status"),
    [(GOOD, "kept", "ship", 0), (BAD, "loses", "don't ship", 1), (UNSURE, "can't tell", "can't tell", 3)],
)
def test_three_planted_cases(change, accuracy, recommendation, status):
    verdict = verdict_on(change)
    found = (verdict.accuracy, verdict.speed, verdict.recommendation, verdict.exit_status)
    assert found == (accuracy, "faster", recommendation, status)
    assert str(verdict).startswith(f"INT8: {recommendation}. ")


def test_what_is_not_measured_is_said_and_does_not_stop_a_recommendation():
    verdict = verdict_on(GOOD, where="cpu")
    assert (verdict.recommendation, verdict.speed, verdict.latencies) == ("ship", "not measured", ())
    assert verdict.speed_text == "not measured: no GPU here"
    assert verdict.reason.endswith("latency not measured: no GPU here")
    verdict = verdict_on(GOOD, where="cpu", built=False)
    assert verdict.speed_text.startswith("not measured: no engine was built (neither TensorRT")


@pytest.mark.parametrize("change", [GOOD, UNSURE])
def test_what_is_not_faster_is_not_shipped_however_accurate(change):
    verdict = verdict_on(change, speed=SLOWER)
    assert (verdict.recommendation, verdict.speed, verdict.baseline) == ("don't ship", "not faster", "fp16")
    assert verdict.reason.startswith("not faster than FP16 (p50 ")


def test_fp16_is_held_against_the_reference():
    verdict = verdict_on(GOOD, "fp16")
    assert (verdict.recommendation, verdict.baseline, verdict.reference) == ("ship", "fp32", "fp32")
    assert verdict.speed_text.startswith("faster than FP32 (p50 ")
    assert "fp32" not in example_comparison().verdicts


def test_a_gain_within_build_to_build_noise_is_not_faster():
    assert verdict_on(GOOD, speed={**FASTER, "int8": 0.99}).speed == "not faster"


@pytest.mark.parametrize(("gain", "speed"), [(0.015, "not faster"), (0.025, "faster")])
def test_however_certain_a_gain_must_exceed_what_builds_differ_by(gain, speed):
    comparison = example_comparison(changes={"fp16": FP16, "int8": GOOD}, eval_images=400, where="gpu", speed=FASTER)
    exact = pl.col("label").replace_strict({"fp32": 1.6, "fp16": 1.0, "int8": 1.0 - gain})
    verdict = dataclasses.replace(comparison, samples=comparison.samples.with_columns(ms=exact)).verdicts["int8"]
    assert verdict.latencies[0].high < 1
    assert verdict.speed == speed


def test_the_card_says_how_many_times_as_fast_as_the_baseline():
    comparison = example_comparison(changes={"fp16": FP16, "int8": GOOD}, where="gpu", speed=FASTER)
    ratios = {name: one.latencies[0].ratio for name, one in comparison.verdicts.items()}
    assert [row.note for row in make_cards(comparison)[1].rows] == [
        "", f"{1 / ratios['fp16']:.2f}x FP32", f"{1 / ratios['int8']:.2f}x FP16",
    ]  # fmt: skip
    assert max(ratios.values()) < 1


def test_latencies_are_medians_with_an_interval():
    (latency,) = verdict_on(GOOD).latencies
    samples = example_comparison(where="gpu", speed=FASTER).samples
    assert latency.p50_ms == pytest.approx(samples.filter(label="int8")["ms"].median())
    # By rounds, which differs a little from the ratio of the medians of all runs.
    assert latency.ratio == pytest.approx(latency.p50_ms / latency.baseline_p50_ms, rel=0.02)
    assert latency.low < latency.ratio < latency.high < 1


def test_faster_at_one_batch_names_it():
    comparison = example_comparison(changes={"int8": GOOD}, eval_images=400, where="gpu", batches=(1, 8), speed=FASTER)
    slower = comparison.samples["label"].is_in(["int8"]) & (comparison.samples["batch"] == 1)
    samples = comparison.samples.with_columns(ms=comparison.samples["ms"] * (1 + slower.cast(float)))
    verdict = dataclasses.replace(comparison, samples=samples).verdicts["int8"]
    assert [one.faster for one in verdict.latencies] == [False, True]
    assert verdict.speed_text.startswith("faster than FP16 at batch 8 only")


@pytest.mark.parametrize(
    ("change", "images", "needed", "is_lower_bound"),
    [
        # The standard error is 0.024 / 3.92, the gap to -0.005 is 0.010: 400 (3.24 * 0.006122 / 0.010)^2.
        ((-0.015, -0.027, -0.003), 400, 1574, False),
        # A gap of 0.003, below the standard error: 400 * 3.24^2.
        (UNSURE, 400, 4200, True),
    ],
)
def test_the_number_of_images_that_would_settle_it(change, images, needed, is_lower_bound):
    verdict = verdict_on(change, eval_images=images)
    (metric,) = verdict.metrics
    assert (metric.images_needed, metric.is_lower_bound, verdict.images_needed) == (needed, is_lower_bound, needed)
    words = f"not settled with fewer than {needed:,} images" if is_lower_bound else f"about {needed:,} images"
    assert words in verdict.reason


def test_so_few_images_decide_nothing():
    verdict = verdict_on(GOOD, eval_images=12)
    assert verdict.recommendation == "can't tell"
    assert verdict.reason.startswith("12 images are too few")


def test_without_intervals_nothing_is_claimed():
    verdict = example_comparison(where="gpu", speed=FASTER).verdicts["int8"]
    assert (verdict.accuracy, verdict.recommendation, verdict.images_needed) == ("can't tell", "can't tell", None)


@pytest.mark.parametrize(("masks", "accuracy"), [(GOOD, "kept"), (BAD, "loses"), (UNSURE, "can't tell")])
def test_both_metrics_of_a_task_must_be_kept(masks, accuracy):
    metric = "mAP50-95(M)"
    comparison = example_comparison(
        changes={"int8": GOOD}, eval_images=400, metrics=[[metric, "mAP50-95(M)"], [ULTRALYTICS, "mAP50-95"]]
    )
    delta, low, high = (pl.lit(value) for value in masks)
    of_masks = comparison.differences.filter(metric=ULTRALYTICS).with_columns(
        metric=pl.lit(metric), delta=delta, low=low, high=high
    )
    rows = comparison.rows.with_columns(pl.col(ULTRALYTICS).alias(metric))
    differences = pl.concat([comparison.differences, of_masks])
    verdict = dataclasses.replace(comparison, rows=rows, differences=differences).verdicts["int8"]
    assert verdict.accuracy == accuracy
    assert {one.metric: one.accuracy for one in verdict.metrics} == {metric: accuracy, ULTRALYTICS: "kept"}
    if accuracy == "kept":
        assert (
            "loses at most 0.0030 mAP50-95(M) and 0.0030 mAP50-95 (95 %), within the accepted 0.005" in verdict.reason
        )


def test_one_rule_decides():
    assert decisive_metrics(example_comparison().about["metrics"]) == [(ULTRALYTICS, "mAP50-95")]
    assert decisive_metrics([["mAP50-95(B)", "a"], ["mAP50-95(R)", "b by exact overlap"]]) == [("mAP50-95(B)", "a")]
    assert decisive_metrics([["top1", "top-1 accuracy"]]) == [("top1", "top-1 accuracy")]
    assert decisive_metrics([["rmse", "RMSE by us"]]) == [("rmse", "RMSE")]


def test_a_loss_names_its_classes_and_sizes():
    groups = [("int8", "class", "cat", -0.05, -0.06, -0.04), ("int8", "size", "small", -0.03, -0.04, -0.02),
              ("int8", "class", "dog", 0.05, 0.04, 0.06), ("fp16", "class", "cow", -0.05, -0.06, -0.04)]  # fmt: skip
    verdict = verdict_on(BAD, groups=groups)
    assert [(one.scope, one.name) for one in verdict.losing] == [("class", "cat"), ("size", "small")]
    assert "most of all class cat, size small" in verdict.reason
    assert "search(max_drop=0.005)" in verdict.advice[0]
    assert verdict_on(GOOD).advice == ()
    assert verdict_on(UNSURE).advice == ("Evaluate on 4,200 images or more.",)


def timed_layers(**us):
    """Five convolutions in INT8 and FP16, one of them in FP16 in both; latency of each by precision, us."""
    frames = []
    for label, latency in us.items():
        rows = [(f"/{n}/Conv", "conv", f"/{n}/Conv", "fp16" if n == 3 else label, latency / 1000) for n in range(5)]
        frames.append(layer_rows(*rows).select(pl.lit(label).alias("label"), pl.all()))
    return pl.concat(frames)


def test_what_is_not_faster_says_why(tmp_path):
    comparison = dataclasses.replace(
        example_comparison(changes={"fp16": FP16, "int8": GOOD}, eval_images=400, where="gpu", speed=SLOWER),
        layers=timed_layers(int8=50.0, fp16=48.0),
    )
    verdict = comparison.verdicts["int8"]
    assert [cause.code for cause in verdict.causes] == ["kept-layers"]
    assert "1 of 5 layers with weights or products run in fp16, 50 of 250 us: /3/Conv (50.0 us)" in verdict.reason
    assert comparison.why_slow("int8").causes == verdict.causes
    assert verdict.advice == (verdict.causes[0].text,)
    # FP16 is faster than FP32, whose layers were not timed.
    assert comparison.verdicts["fp16"].causes == ()
    again = Comparison.load(comparison.save(tmp_path))
    assert again.verdicts == comparison.verdicts
    saved = json.loads((tmp_path / "comparison.json").read_text())["facts"]["verdicts"]["int8"]["causes"]
    assert Cause.from_dict(saved[0]) == verdict.causes[0]
    assert f"<li>{verdict.causes[0].text}</li>" in render_report(comparison)


def test_without_timed_layers_no_cause_is_claimed():
    comparison = example_comparison(changes={"int8": GOOD}, eval_images=400, where="gpu", speed=SLOWER)
    assert comparison.verdicts["int8"].causes == ()
    with raises(EngineError, "comparison-without-layers", value="int8"):
        comparison.why_slow("int8")
    with raises(RecipeError, "comparison-reference", value="fp32"):
        comparison.why_slow("fp32")


def test_the_tolerance_decides():
    assert verdict_on(GOOD, max_drop=0.002).accuracy == "can't tell"
    assert verdict_on(BAD, max_drop=0.03).accuracy == "kept"


def test_saved_loaded_and_reported_it_is_the_same(tmp_path):
    comparison = example_comparison(changes={"fp16": FP16, "int8": UNSURE}, eval_images=400, max_drop=0.006)
    again = Comparison.load(comparison.save(tmp_path))
    assert again.verdicts == comparison.verdicts
    assert again.verdicts["int8"].max_drop == 0.006
    saved = json.loads((tmp_path / "comparison.json").read_text())["facts"]["verdicts"]["int8"]
    assert saved == json.loads(json.dumps(comparison.verdicts["int8"].to_dict()))
    assert saved["exit_status"] == 3
    page = render_report(comparison).replace("&#39;", "'")
    assert comparison.verdicts["int8"].sentence in page
    assert repr(comparison).count("\n") == 2


@pytest.fixture
def compare_planted(monkeypatch):
    """`trtkit compare` that returns a planted comparison."""

    def plant(change, **settings):
        comparison = example_comparison(changes={"fp16": FP16, "int8": change}, eval_images=400, **settings)
        monkeypatch.setattr("trtkit.cli.model_commands.call_with_options", lambda *words, **more: comparison)
        return comparison

    return plant


@pytest.mark.parametrize(("change", "status"), [(GOOD, 0), (BAD, 1), (UNSURE, 3)])
def test_the_gate_exits_with_the_verdict(compare_planted, capsys, change, status):
    comparison = compare_planted(change)
    assert cli.main(["compare", "a.pt", "b.yaml", "--gate", "int8"]) == status
    assert cli.main(["compare", "a.pt", "b.yaml", "--gate", "fp16"]) == 0
    assert cli.main(["compare", "a.pt", "b.yaml"]) == 0
    assert str(comparison.verdicts["int8"]) in capsys.readouterr().out


@pytest.mark.parametrize("gate", ["fp32", "int4"])
def test_a_gate_on_nothing_is_refused_before_any_work(monkeypatch, capsys, gate):
    monkeypatch.setattr("trtkit.cli.model_commands.call_with_options", lambda *words, **more: pytest.fail("ran"))
    assert cli.main(["compare", "a.pt", "b.yaml", "--gate", gate]) == 2
    assert "choose from fp16, int8" in capsys.readouterr().err


def test_json_has_verdicts_and_rows_alone(compare_planted, capsys):
    comparison = compare_planted(UNSURE)
    assert cli.main(["compare", "a.pt", "b.yaml", "--json", "--gate", "int8"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert content["verdicts"]["int8"] == json.loads(json.dumps(comparison.verdicts["int8"].to_dict()))
    assert [row["precision"] for row in content["rows"]] == ["fp32", "fp16", "int8"]


def test_help_says_what_the_exit_status_means(capsys):
    for words in (["compare", "--help"], ["--help"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "0 ship, 1 don't ship, 3 can't tell" in " ".join(capsys.readouterr().out.split())


def test_verdict_and_cards_fit_a_terminal(compare_planted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    compare_planted(UNSURE)
    cli.main(["compare", "a.pt", "b.yaml"])
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in ("INT8: can't tell.", "p50 latency", "not measured: no GPU here", "3.2 MB", "[-0.0200, +0.0040]"):
        assert words in text
