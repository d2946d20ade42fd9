"""The bootstrap over images, against metrics of repeated images and textbook standard errors."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import polars as pl
import pytest

from trtkit.errors import RecipeError
from trtkit.evaluation.average_precision import pack_thresholds, score_classes, unpack_thresholds
from trtkit.evaluation.bootstrap import resample_metric, resample_precision_recall
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.significance import compute_interval, compute_loss_interval
from trtkit.results import Provenance


def evaluation(seed: int = 0, images: int = 30, right: float = 0.7) -> Evaluation:
    """Random matches without images: enough for metrics."""
    generator = np.random.default_rng(seed)
    count = images * 12
    matched = np.sort(generator.random((count, 10)) < right, axis=1)[:, ::-1]
    detections = pl.DataFrame(
        {
            "image": np.sort(generator.integers(0, images, count)).astype(np.int32),
            "class": generator.integers(0, 3, count).astype(np.int32),
            "score": generator.random(count).astype(np.float32),
            "matched(B)": pack_thresholds(matched),
        }
    )
    # Each detection has a label of its own, and some labels have no detection.
    missed = pl.DataFrame(
        {
            "image": generator.integers(0, images, count // 4).astype(np.int32),
            "class": generator.integers(0, 3, count // 4).astype(np.int32),
        }
    )
    labels = pl.concat([detections.select("image", "class"), missed]).sort("image", maintain_order=True)
    result = Evaluation(
        task="detect",
        metrics={},
        per_class=pl.DataFrame(),
        per_image=pl.DataFrame({"image": np.arange(images)}),
        detections=detections,
        labels=labels,
        speed={},
        provenance=Provenance(model_hash="0"),
    )
    return dataclasses.replace(result, metrics=scores(result).means())


def scores(one: Evaluation, copies: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    """Class scores, with each image repeated as often as `copies` says."""
    copies = np.ones(len(one.per_image), int) if copies is None else copies
    detections, labels = one.detections, one.labels
    times = copies[detections["image"].to_numpy()]
    return score_classes(
        np.repeat(unpack_thresholds(detections["matched(B)"].to_numpy()), times, axis=0),
        np.repeat(detections["score"].to_numpy(), times),
        np.repeat(detections["class"].to_numpy(), times),
        np.repeat(labels["class"].to_numpy(), copies[labels["image"].to_numpy()]),
    )


def test_the_value_is_the_metric_itself() -> None:
    one = evaluation()
    for metric, name in (("mAP50-95(B)", "mAP50-95"), ("mAP50(B)", "mAP50")):
        assert resample_metric(one, metric, resamples=1).value == pytest.approx(one.metrics[name], abs=1e-12)


def test_a_resample_equals_the_metric_of_repeated_images() -> None:
    one = evaluation(3)
    drawn = resample_metric(one, "mAP50-95(B)", resamples=5, seed=7)
    count = len(one.per_image)
    weights = np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=5)
    for value, weight in zip(drawn.values, weights, strict=True):
        # Equal scores of a repeated image may be sorted either way, which changes the curve slightly.
        assert value == pytest.approx(scores(one, weight).means()["mAP50-95"], abs=2e-3)


def test_intervals_contain_the_value_and_shrink_with_images() -> None:
    few, many = (
        compute_interval(resample_metric(evaluation(1, images), "mAP50-95(B)", resamples=200)) for images in (10, 160)
    )
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert str(many).startswith(f"{many.value:.4f} [")


def test_paired_resamples_cancel_the_difficulty_of_images() -> None:
    one, other = evaluation(1), evaluation(1)
    drawn = resample_metric(one, "mAP50-95(B)", resamples=50)
    same = compute_loss_interval(drawn, resample_metric(other, "mAP50-95(B)", resamples=50))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = compute_loss_interval(drawn, resample_metric(evaluation(1, right=0.3), "mAP50-95(B)", resamples=50))
    assert worse.low > 0


def ranked(images: int = 30) -> Evaluation:
    """A classification with random ranks of the true class."""
    ranks = np.random.default_rng(4).integers(1, 8, images)
    return dataclasses.replace(
        evaluation(images=images),
        task="classify",
        detections=pl.DataFrame(),
        labels=pl.DataFrame({"image": np.arange(images, dtype=np.int32), "rank": ranks.astype(np.int32)}),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy(k: int) -> None:
    one = ranked()
    drawn = resample_metric(one, f"top{k}", resamples=400)
    share = float((one.labels["rank"] <= k).mean())  # type: ignore[arg-type]
    assert drawn.value == pytest.approx(share)
    # The standard error of a proportion.
    assert drawn.values.std() == pytest.approx(np.sqrt(share * (1 - share) / 30), rel=0.15)


def test_unknown_metrics_are_refused() -> None:
    for one, metric in ((evaluation(), "pycocotools/AP"), (evaluation(), "mAP50(M)"), (evaluation(), "top1")):
        with pytest.raises(RecipeError) as caught:
            resample_metric(one, metric, resamples=9)
        assert (caught.value.code, caught.value.fields["metric"]) == ("bootstrap-metric-unknown", metric)


def test_a_class_without_a_match_and_one_without_detections() -> None:
    one = evaluation(5)
    blank = one.detections.with_columns(
        pl.when(pl.col("class") == 0).then(0).otherwise(pl.col("matched(B)")).cast(pl.UInt16).alias("matched(B)")
    ).filter(pl.col("class") != 2)
    changed = dataclasses.replace(one, detections=blank)
    assert resample_metric(changed, "mAP50-95(B)", resamples=1).value == pytest.approx(
        scores(changed).means()["mAP50-95"], abs=1e-12
    )


def test_memory_of_precision_and_recall_does_not_grow_with_the_classes():
    """At COCO's 80 classes and 5000 images, counts of all classes at once took 800 MB."""
    dice = np.random.default_rng(0)

    def measure_peak(classes):
        count = 2000
        detections = pl.DataFrame({
            "image": dice.integers(0, 400, count), "class": dice.integers(0, classes, count),
            "score": dice.random(count).astype(np.float32), "matched(B)": dice.integers(0, 2, count),
        })  # fmt: skip
        labels = pl.DataFrame({"image": np.arange(classes), "class": np.arange(classes)})
        tracemalloc.start()
        resample_precision_recall(detections, labels, "B", np.ones((400, 2), np.float32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert measure_peak(64) < 2 * measure_peak(8)
