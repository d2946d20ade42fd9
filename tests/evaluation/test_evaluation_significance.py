"""Differences between evaluations: the bootstrap against metrics of repeated images, intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from task_models import CannedRunner, drawn_set, noisy_outputs

from trtkit.data import open_dataset
from trtkit.errors import DataError, RecipeError
from trtkit.evaluation.average_precision import score_classes, unpack_thresholds
from trtkit.evaluation.bootstrap import (
    build_class_curves,
    draw_resamples,
    resample_average_precision,
    resample_metrics,
)
from trtkit.evaluation.evaluation import evaluate
from trtkit.evaluation.metrics import compute_pycocotools_metrics, distinguish_names
from trtkit.evaluation.significance import (
    MIN_IMAGES,
    SampleSize,
    _difference_row,
    compute_class_intervals,
    compute_differences,
    decide_accuracy,
    holm,
    images_to_settle,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(drawn_set(tmp_path_factory.mktemp("set"), "detect", count=24), task="detect")


@pytest.fixture(scope="module")
def fair(dataset):
    return evaluate(CannedRunner("detect", noisy_outputs(dataset, "detect", seed=0)), dataset)


@pytest.fixture(scope="module")
def worse(dataset):
    return evaluate(CannedRunner("detect", noisy_outputs(dataset, "detect", seed=0, shake=0.25)), dataset)


def repeated(frame, copies):
    """Rows of each image repeated by its number of copies, each copy numbered as an image of its own."""
    parts, number = [], 0
    for image, count in enumerate(copies.astype(int)):
        for _ in range(count):
            parts.append(frame.filter(pl.col("image") == image).with_columns(image=pl.lit(number, pl.Int32)))
            number += 1
    return pl.concat(parts)


@pytest.mark.parametrize("column", range(5))
def test_resampled_precisions_are_those_of_repeated_images(fair, column):
    copies = draw_resamples(fair.image_count, 4, seed=1)
    detections, labels = (repeated(frame, copies[:, column]) for frame in (fair.detections, fair.labels))
    scores = score_classes(
        unpack_thresholds(detections["matched(B)"].to_numpy()), detections["score"].to_numpy(),
        detections["class"].to_numpy(), labels["class"].to_numpy(),
    )  # fmt: skip
    found = dict(build_class_curves(fair.detections, fair.labels, "B", fair.image_count))
    for number, expected in zip(scores.classes.tolist(), scores.ap, strict=True):
        ours = resample_average_precision(found[number], copies)[:, column]
        # Rounding may move a recall by one grid point, except for the images themselves.
        np.testing.assert_allclose(ours, expected, atol=1e-9 if column == 0 else 0.01)


@pytest.mark.parametrize("column", range(3))
def test_resampled_pycocotools_precisions_too(fair, column):
    copies = draw_resamples(fair.image_count, 4, seed=2)
    detections, labels = (repeated(frame, copies[:, column]) for frame in (fair.detections, fair.labels))
    rows = [
        [
            {"image_id": row["image"], "category_id": row["class"], "score": row.get("score"),
             "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]],
             "area": (row["x2"] - row["x1"]) * (row["y2"] - row["y1"])}
            for row in frame.iter_rows(named=True)
        ]
        for frame in (labels, detections)
    ]  # fmt: skip
    expected = compute_pycocotools_metrics(
        *rows, shapes=[(200, 200)] * (1 + labels["image"].max()), classes=[0, 1], kind="B", iou_type="bbox"
    )
    ours = [
        resample_average_precision(curve, copies, pycocotools=True)[:, column].mean()
        for _, curve in build_class_curves(fair.detections, fair.labels, "B", fair.image_count, max_det=100)
    ]
    # As above: exact for the images themselves.
    assert np.mean(ours) == pytest.approx(expected["pycocotools/AP"], abs=1e-9 if column == 0 else 0.003)


def test_only_the_highest_scoring_detections_of_an_image_are_counted():
    detections = pl.DataFrame(
        {"image": [0, 0, 0, 1], "class": [0] * 4, "score": [0.9, 0.8, 0.7, 0.6], "matched(B)": [0, 1, 1, 1]}
    )
    labels = pl.DataFrame({"image": [0, 0, 1], "class": [0] * 3})
    for max_det, images in ((None, [0, 0, 1]), (2, [0, 1]), (1, [1])):
        ((_, curve),) = build_class_curves(detections, labels, "B", 2, max_det=max_det)
        assert curve.images.tolist() == images
        assert curve.detections_before[-1].tolist() == [3 if max_det is None else max_det, 1]


def test_an_evaluation_does_not_differ_from_itself(fair):
    found = compute_differences(fair, fair, resamples=50)
    assert not found["significant"].any()
    assert found["delta"].abs().max() == 0
    assert found.filter(scope="all", metric="mAP50-95(B)")["low"].item() == 0


def test_a_clear_loss_is_significant_and_inside_its_interval(fair, worse):
    found = compute_differences(fair, worse, resamples=400)
    row = found.row(by_predicate=(pl.col("metric") == "mAP50-95(B)") & (pl.col("scope") == "all"), named=True)
    assert row["delta"] == pytest.approx(worse.metrics["mAP50-95(B)"] - fair.metrics["mAP50-95(B)"])
    assert row["low"] < row["delta"] < row["high"] < 0
    assert row["significant"]
    back = compute_differences(worse, fair, resamples=400)
    other = back.row(by_predicate=(pl.col("metric") == "mAP50-95(B)") & (pl.col("scope") == "all"), named=True)
    assert (other["low"], other["high"]) == (pytest.approx(-row["high"]), pytest.approx(-row["low"]))
    assert set(found.filter(scope="class")["name"]) == {"bar", "blob"}
    assert {"small"} <= set(found.filter(scope="size")["name"])
    for metric in ("mAP50(B)", "precision(B)", "recall(B)", "pycocotools/AP", "pycocotools/AP50", "pycocotools/AP75"):
        assert len(found.filter(scope="all", metric=metric)) == 1, metric


def test_class_values_are_the_evaluation_s(fair, worse):
    found = compute_differences(fair, worse, resamples=10).filter(scope="class", metric="mAP50-95(B)")
    expected = dict(fair.per_class.select("name", "mAP50-95(B)").iter_rows())
    assert dict(found.select("name", "reference").iter_rows()) == pytest.approx(expected)


def test_classes_of_one_name_are_told_apart(dataset, fair):
    """As the two cranes of ImageNet are."""
    alike = dataclasses.replace(dataset, names=dict.fromkeys(dataset.names, "crane"))
    before, after = (
        evaluate(CannedRunner("detect", noisy_outputs(dataset, "detect", seed=0, shake=shake)), alike)
        for shake in (0.06, 0.25)
    )
    assert before.per_class["name"].to_list() == ["crane (0)", "crane (1)"]
    assert before.per_class.drop("name").equals(fair.per_class.drop("name"))
    found = compute_differences(before, after, resamples=10).filter(scope="class", metric="mAP50-95(B)")
    expected = dict(before.per_class.select("name", "mAP50-95(B)").iter_rows())
    assert dict(found.select("name", "reference").iter_rows()) == pytest.approx(expected)
    assert len(expected) == 2


def test_a_number_behind_a_name_may_be_another_s_name():
    assert distinguish_names({0: "a", 1: "b", 2: "a"}) == {0: "a (0)", 1: "b", 2: "a (2)"}
    names = distinguish_names({0: "a", 1: "a", 2: "a (1)"})
    assert len(set(names.values())) == 3
    assert names[0] == "a (0)"


def test_the_seed_decides(fair, worse):
    once, again, other = (compute_differences(fair, worse, resamples=60, seed=seed) for seed in (3, 3, 4))
    assert once.equals(again)
    assert not once["low"].equals(other["low"])


def test_other_images_and_no_resamples_are_refused(dataset, fair):
    outputs = noisy_outputs(dataset, "detect", seed=0)
    fewer = evaluate(CannedRunner("detect", outputs), dataset, eval_images=5)
    with pytest.raises(DataError) as caught:
        compute_differences(fair, fewer)
    assert (caught.value.code, caught.value.fields["names"]) == ("evaluations-images-differ", ("other",))
    with pytest.raises(RecipeError) as caught:
        compute_differences(fair, fair, resamples=1)
    assert (caught.value.code, caught.value.fields["value"]) == ("argument-invalid", 1)


def test_the_interval_of_paired_accuracies_is_the_textbook_s():
    """top-1 of 400 images of which 40 are lost and 20 gained: delta -0.05, standard error sqrt(p - d^2) / 20."""
    images = pl.DataFrame({"image": range(400), "path": [str(n) for n in range(400)]})
    ranks = [np.where(np.arange(400) < 200, 1, 2), np.where((np.arange(400) < 160) | (np.arange(400) >= 380), 1, 2)]

    class Ranked:
        detections = pl.DataFrame()
        per_image = images
        per_class = pl.DataFrame({"class": [0], "name": ["a"]})

        def __init__(self, rank):
            self.labels = pl.DataFrame({"image": range(400), "class": [0] * 400, "rank": rank})
            self.metrics = {"top1": float((rank == 1).mean()), "top5": 1.0}

    found = compute_differences(Ranked(ranks[0]), Ranked(ranks[1]), resamples=4000)
    row = found.row(by_predicate=(pl.col("metric") == "top1") & (pl.col("scope") == "all"), named=True)
    error = np.sqrt((60 / 400 - 0.05**2) / 400)
    assert row["delta"] == pytest.approx(-0.05)
    assert (row["low"], row["high"]) == (
        pytest.approx(-0.05 - 1.96 * error, abs=0.004),
        pytest.approx(-0.05 + 1.96 * error, abs=0.004),
    )


@pytest.mark.parametrize(("end", "significant"), [(-5.6e-17, False), (0.0, False), (-1e-4, True)])
def test_an_interval_that_ends_at_zero_but_for_rounding_is_not_significant(end, significant):
    changes = np.array([-0.1, *[-0.2] * 50, *[end] * 50])
    row = _difference_row("mAP50-95(B)", "all", "", 0.5, 0.4, changes)
    assert row["high"] == pytest.approx(end)
    assert row["significant"] is significant


class Ranked:
    """A classifier's evaluation: the rank of the right class per image."""

    detections = pl.DataFrame()

    def __init__(self, rank, classes=None):
        classes = np.zeros(len(rank), int) if classes is None else classes
        numbers = np.unique(classes).tolist()
        self.per_image = pl.DataFrame({"image": range(len(rank)), "path": [str(n) for n in range(len(rank))]})
        self.per_class = pl.DataFrame({"class": numbers, "name": [f"c{n}" for n in numbers]})
        self.labels = pl.DataFrame({"image": range(len(rank)), "class": classes, "rank": rank})
        self.metrics = {"top1": float((rank == 1).mean()), "top5": float((rank <= 5).mean())}


@pytest.mark.parametrize(("images", "decision"), [(40, "can't tell"), (400, "kept")])
def test_a_share_that_did_not_change_on_few_images_is_not_kept(images, decision):
    same = Ranked(np.ones(images, int))
    row = compute_differences(same, same, resamples=20).row(
        by_predicate=(pl.col("metric") == "top1") & (pl.col("scope") == "all"), named=True
    )
    assert row["high"] == -row["low"] == pytest.approx(1.96 / (images + 2))
    assert decide_accuracy(row["low"], row["high"], 0.005, images) == decision


def test_an_unchanged_share_asks_for_as_many_images_as_settle_it():
    """Without a changed image the interval is +-1.96 / (n + 2): 3.24 / 0.005 images and no fewer clear the limit."""
    end = 1.96 / 102
    assert images_to_settle(0.0, -end, end, 0.005, 100, is_share=True) == SampleSize(636, False)
    assert images_to_settle(0.0, -end, end, 0.005, 100) == SampleSize(1050, True)


def test_of_many_classes_that_lose_by_chance_none_is_significant():
    """100 classes of 40 images, of which every image may change; and one class that loses half of its images."""
    dice = np.random.default_rng(1)
    classes = np.repeat(np.arange(100), 40)
    before, after = (np.where(dice.random(4000) < 0.8, 1, 2) for _ in range(2))
    before[:40], after[:40] = 1, [1, 2] * 20
    found = compute_differences(Ranked(before, classes), Ranked(after, classes), resamples=20)
    rows = found.filter(scope="class", metric="top1")
    excluded = rows.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    assert len(excluded) > 3
    assert rows.filter("significant")["name"].to_list() == ["c0"]


def test_holm_is_the_textbook_s():
    """Levels 0.05/4, 0.05/3, 0.05/2: 0.01 and 0.005 are rejected, 0.03 is not, nor what comes after it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.01] * 6) == [False] * 6
    assert holm([]) == []


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [(-0.004, 0.001, "kept"), (-0.005, 0.001, "kept"), (-0.006, 0.001, "can't tell"), (-0.02, -0.006, "loses"),
     (-0.02, -0.005, "can't tell"), (0.0, 0.0, "kept"), (None, None, "can't tell")],
)  # fmt: skip
def test_a_metric_is_kept_if_the_whole_interval_is_within_the_tolerance(low, high, decision):
    assert decide_accuracy(low, high, 0.005, 100) == decision
    assert decide_accuracy(low, high, 0.005, MIN_IMAGES - 1) == "can't tell"


def test_the_same_metric_is_kept_at_no_tolerance():
    assert decide_accuracy(0.0, 0.0, 0.0, 100) == "kept"
    assert decide_accuracy(-1e-17, 0.0, 0.0, 100) == "kept"


def test_the_interval_of_a_class_is_that_of_its_resamples(fair):
    intervals = compute_class_intervals(fair, resamples=60, seed=3)
    resampled = resample_metrics(fair, draw_resamples(fair.image_count, 60, 3))
    assert set(fair.per_class.columns) < set(intervals.columns)
    for metric in ("mAP50-95(B)", "mAP50(B)"):
        for row in intervals.iter_rows(named=True):
            values = resampled[metric, "class", row["name"]][1:]
            low, high = np.nanpercentile(values, (2.5, 97.5))
            assert row[f"{metric} low"] == pytest.approx(min(low, row[metric]))
            assert row[f"{metric} high"] == pytest.approx(max(high, row[metric]))
    assert (intervals["mAP50-95(B) low"] < intervals["mAP50-95(B) high"]).all()


def test_the_interval_of_a_share_is_wilsons():
    class Classified:
        per_class = pl.DataFrame({"name": ["all", "most"], "images": [10, 10], "top1": [1.0, 0.8], "top5": [1.0, 1.0]})
        labels = pl.DataFrame({"rank": [1]})

    intervals = compute_class_intervals(Classified())
    # Brown, Cai and DasGupta 2001, and statsmodels' proportion_confint(8, 10, method="wilson").
    assert intervals["top1 low"].to_list() == pytest.approx([0.7225, 0.4902], abs=1e-4)
    assert intervals["top1 high"].to_list() == pytest.approx([1.0, 0.9433], abs=1e-4)
