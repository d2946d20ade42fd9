from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from trtkit.errors import RecipeError
from trtkit.evaluation.average_precision import pack_thresholds, score_classes, unpack_thresholds
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.significance import compute_loss_interval, metric_interval, resample_metric
from trtkit.results import Provenance


def evaluation(seed: int = 0, images: int = 30, right: float = 0.7) -> Evaluation:
    """Random matches: enough for metrics, with no image behind them."""
    random = np.random.default_rng(seed)
    count = images * 12
    matched = np.sort(random.random((count, 10)) < right, axis=1)[:, ::-1]
    detections = pl.DataFrame(
        {
            "image": np.sort(random.integers(0, images, count)).astype(np.int32),
            "class": random.integers(0, 3, count).astype(np.int32),
            "score": random.random(count).astype(np.float32),
            "matched(B)": pack_thresholds(matched),
        }
    )
    # A match needs a label of its own: each detection has one, and some labels have no detection.
    missed = pl.DataFrame(
        {
            "image": random.integers(0, images, count // 4).astype(np.int32),
            "class": random.integers(0, 3, count // 4).astype(np.int32),
        }
    )
    truths = pl.concat([detections.select("image", "class"), missed]).sort("image", maintain_order=True)
    found = Evaluation(
        task="detect",
        metrics={},
        per_class=pl.DataFrame(),
        per_image=pl.DataFrame({"image": np.arange(images)}),
        detections=detections,
        labels=truths,
        speed={},
        provenance=Provenance(model_hash="0"),
    )
    return dataclasses.replace(found, metrics=scores(found).means())


def scores(one: Evaluation, drawn: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    """Judged by the judgement room, with every image as often as it was drawn."""
    drawn = np.ones(len(one.per_image), int) if drawn is None else drawn
    found, labels = one.detections, one.labels
    times = drawn[found["image"].to_numpy()]
    return score_classes(
        np.repeat(unpack_thresholds(found["matched(B)"].to_numpy()), times, axis=0),
        np.repeat(found["score"].to_numpy(), times),
        np.repeat(found["class"].to_numpy(), times),
        np.repeat(labels["class"].to_numpy(), drawn[labels["image"].to_numpy()]),
    )


def test_all_images_once_give_the_metric_itself() -> None:
    one = evaluation()
    for metric, name in (("mAP50-95(B)", "mAP50-95"), ("mAP50(B)", "mAP50")):
        assert resample_metric(one, metric, resamples=1).value == pytest.approx(one.metrics[name], abs=1e-12)


def test_a_draw_is_judging_the_drawn_images() -> None:
    one = evaluation(3)
    drawn = resample_metric(one, "mAP50-95(B)", resamples=5, seed=7)
    count = len(one.per_image)
    weights = np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=5)
    for value, weight in zip(drawn.values, weights, strict=True):
        # Equal scores of a repeated image may be sorted either way, which moves a curve by a hair.
        assert value == pytest.approx(scores(one, weight).means()["mAP50-95"], abs=2e-3)


def test_intervals_hold_the_value_and_shrink_with_images() -> None:
    few, many = (metric_interval(evaluation(1, images), "mAP50-95(B)", resamples=200) for images in (10, 160))
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert str(many).startswith(f"{many.value:.4f} [")


def test_the_same_draws_cancel_what_is_hard_about_a_image() -> None:
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


@pytest.mark.parametrize("most", [1, 5])
def test_shares_of_images(most: int) -> None:
    one = ranked()
    drawn = resample_metric(one, f"top{most}", resamples=400)
    share = float((one.labels["rank"] <= most).mean())  # type: ignore[arg-type]
    assert drawn.value == pytest.approx(share)
    # The standard error of a share.
    assert drawn.values.std() == pytest.approx(np.sqrt(share * (1 - share) / 30), rel=0.15)


def test_what_can_not_be_drawn_is_refused() -> None:
    for one, metric in ((evaluation(), "pycocotools/AP"), (evaluation(), "mAP50(M)"), (evaluation(), "top1")):
        with pytest.raises(RecipeError, match="only mAP by"):
            resample_metric(one, metric)


def test_a_class_without_a_match_and_one_without_detections(tmp_path: Path) -> None:
    one = evaluation(5)
    blank = one.detections.with_columns(
        pl.when(pl.col("class") == 0).then(0).otherwise(pl.col("matched(B)")).cast(pl.UInt16).alias("matched(B)")
    ).filter(pl.col("class") != 2)
    found = dataclasses.replace(one, detections=blank)
    assert resample_metric(found, "mAP50-95(B)", resamples=1).value == pytest.approx(
        scores(found).means()["mAP50-95"], abs=1e-12
    )
