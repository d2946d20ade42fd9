from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from trtkit.errors import RecipeError
from trtkit.evaluation.average_precision import bits_of, matched_at, score_classes
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.significance import draws_of, interval, loss_interval
from trtkit.results import Origin


def evaluation(seed: int = 0, pictures: int = 30, right: float = 0.7) -> Evaluation:
    """Random matches: enough for metrics, with no picture behind them."""
    random = np.random.default_rng(seed)
    count = pictures * 12
    matched = np.sort(random.random((count, 10)) < right, axis=1)[:, ::-1]
    detections = pl.DataFrame(
        {
            "picture": np.sort(random.integers(0, pictures, count)).astype(np.int32),
            "class": random.integers(0, 3, count).astype(np.int32),
            "score": random.random(count).astype(np.float32),
            "matched(B)": bits_of(matched),
        }
    )
    # A match needs a label of its own: each detection has one, and some labels have no detection.
    missed = pl.DataFrame(
        {
            "picture": random.integers(0, pictures, count // 4).astype(np.int32),
            "class": random.integers(0, 3, count // 4).astype(np.int32),
        }
    )
    truths = pl.concat([detections.select("picture", "class"), missed]).sort("picture", maintain_order=True)
    found = Evaluation(
        task="detect",
        metrics={},
        per_class=pl.DataFrame(),
        per_picture=pl.DataFrame({"picture": np.arange(pictures)}),
        detections=detections,
        truths=truths,
        speed={},
        origin=Origin(model_hash="0"),
    )
    return dataclasses.replace(found, metrics=scores(found).means())


def scores(one: Evaluation, drawn: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    """Judged by the judgement room, with every picture as often as it was drawn."""
    drawn = np.ones(len(one.per_picture), int) if drawn is None else drawn
    found, labels = one.detections, one.truths
    times = drawn[found["picture"].to_numpy()]
    return score_classes(
        np.repeat(matched_at(found["matched(B)"].to_numpy()), times, axis=0),
        np.repeat(found["score"].to_numpy(), times),
        np.repeat(found["class"].to_numpy(), times),
        np.repeat(labels["class"].to_numpy(), drawn[labels["picture"].to_numpy()]),
    )


def test_all_pictures_once_give_the_metric_itself() -> None:
    one = evaluation()
    for metric, name in (("mAP50-95(B)", "mAP50-95"), ("mAP50(B)", "mAP50")):
        assert draws_of(one, metric, draws=1).value == pytest.approx(one.metrics[name], abs=1e-12)


def test_a_draw_is_judging_the_drawn_pictures() -> None:
    one = evaluation(3)
    drawn = draws_of(one, "mAP50-95(B)", draws=5, seed=7)
    count = len(one.per_picture)
    weights = np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=5)
    for value, weight in zip(drawn.values, weights, strict=True):
        # Equal scores of a repeated picture may be sorted either way, which moves a curve by a hair.
        assert value == pytest.approx(scores(one, weight).means()["mAP50-95"], abs=2e-3)


def test_intervals_hold_the_value_and_shrink_with_pictures() -> None:
    few, many = (interval(evaluation(1, pictures), "mAP50-95(B)", draws=200) for pictures in (10, 160))
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert str(many).startswith(f"{many.value:.4f} [")


def test_the_same_draws_cancel_what_is_hard_about_a_picture() -> None:
    one, other = evaluation(1), evaluation(1)
    drawn = draws_of(one, "mAP50-95(B)", draws=50)
    same = loss_interval(drawn, draws_of(other, "mAP50-95(B)", draws=50))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = loss_interval(drawn, draws_of(evaluation(1, right=0.3), "mAP50-95(B)", draws=50))
    assert worse.low > 0


def ranked(pictures: int = 30) -> Evaluation:
    """A classification with random ranks of the true class."""
    ranks = np.random.default_rng(4).integers(1, 8, pictures)
    return dataclasses.replace(
        evaluation(pictures=pictures),
        task="classify",
        detections=pl.DataFrame(),
        truths=pl.DataFrame({"picture": np.arange(pictures, dtype=np.int32), "rank": ranks.astype(np.int32)}),
    )


@pytest.mark.parametrize("most", [1, 5])
def test_shares_of_pictures(most: int) -> None:
    one = ranked()
    drawn = draws_of(one, f"top{most}", draws=400)
    share = float((one.truths["rank"] <= most).mean())  # type: ignore[arg-type]
    assert drawn.value == pytest.approx(share)
    # The standard error of a share.
    assert drawn.values.std() == pytest.approx(np.sqrt(share * (1 - share) / 30), rel=0.15)


def test_what_can_not_be_drawn_is_refused() -> None:
    for one, metric in ((evaluation(), "coco/AP"), (evaluation(), "mAP50(M)"), (evaluation(), "top1")):
        with pytest.raises(RecipeError, match="only mAP by"):
            draws_of(one, metric)


def test_a_class_without_a_match_and_one_without_detections(tmp_path: Path) -> None:
    one = evaluation(5)
    blank = one.detections.with_columns(
        pl.when(pl.col("class") == 0).then(0).otherwise(pl.col("matched(B)")).cast(pl.UInt16).alias("matched(B)")
    ).filter(pl.col("class") != 2)
    found = dataclasses.replace(one, detections=blank)
    assert draws_of(found, "mAP50-95(B)", draws=1).value == pytest.approx(scores(found).means()["mAP50-95"], abs=1e-12)
