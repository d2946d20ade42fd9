"""Confidence thresholds that give INT8 the precision or recall that FP16 has at the user's threshold."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from trtkit.evaluation.thresholds import MIN_LABELS, match_thresholds, threshold_facts

IMAGES, CLASSES, CONF = 120, 3, 0.25
NAMES = ("cat", "dog", "owl")


class Boxes:
    """Two objects of each class an image, most of them detected, and as many false positives of lower scores."""

    def __init__(self, *compress, images=IMAGES):
        dice = np.random.default_rng(0)
        image = np.repeat(np.arange(images), 2 * CLASSES)
        number = np.tile(np.arange(CLASSES), 2 * images)
        found, scores = dice.random(len(image)) < 0.9, dice.beta(3, 2, len(image))
        false = dice.beta(2, 6, len(image))
        factor = np.array(compress or [1.0] * CLASSES)[number]
        self.detections = pl.DataFrame(
            {
                "image": np.concatenate([image[found], image]),
                "class": np.concatenate([number[found], number]),
                "score": np.concatenate([(scores * factor)[found], false * factor]),
                "matched(B)": np.concatenate([np.full(found.sum(), 1), np.zeros(len(image), int)]),
            }
        )
        self.labels = pl.DataFrame({"image": image, "class": number})
        self.per_image = pl.DataFrame({"image": range(images), "path": [str(n) for n in range(images)]})
        self.per_class = pl.DataFrame({"class": range(CLASSES), "name": NAMES})
        self.metrics = {}

    def at(self, conf, name=""):
        """Precision and recall."""
        rows = self.detections.filter(pl.col("score") >= conf)
        labels = self.labels
        if name:
            rows, labels = (one.filter(pl.col("class") == NAMES.index(name)) for one in (rows, labels))
        return rows["matched(B)"].sum() / len(rows), rows["matched(B)"].sum() / len(labels)


def row_of(rows, target, name=""):
    return rows.row(by_predicate=(pl.col("target") == target) & (pl.col("name") == name), named=True)


@pytest.fixture(scope="module")
def compressed():
    """INT8's scores are 0.8 of FP16's in class "dog"."""
    other = Boxes(1.0, 0.8, 1.0)
    return other, match_thresholds(Boxes(), other, conf=CONF)


def test_scores_that_shrink_alike_give_the_threshold_that_shrinks_alike():
    other = Boxes(0.8, 0.8, 0.8)
    rows = match_thresholds(Boxes(), other, conf=CONF)
    for target in ("recall", "precision"):
        row = row_of(rows, target)
        assert row["threshold"] == pytest.approx(0.8 * CONF, abs=0.005)
        assert row["low"] <= row["threshold"] <= row["high"] < CONF
        assert row["differs"]
    precision, recall = Boxes().at(CONF)
    recalled, precise = row_of(rows, "recall"), row_of(rows, "precision")
    assert (recalled["reference"], precise["reference"]) == (pytest.approx(recall), pytest.approx(precision))
    assert (precise["value"], recalled["value"]) == (pytest.approx(other.at(CONF)[0]), pytest.approx(other.at(CONF)[1]))


def test_the_threshold_has_the_reference_s_recall_and_precision(compressed):
    other, rows = compressed
    for name in ("", *NAMES):
        for place, target in enumerate(("precision", "recall")):
            row = row_of(rows, target, name)
            wanted = Boxes().at(CONF, name)[place]
            assert row["reference"] == pytest.approx(wanted)
            assert other.at(row["threshold"], name)[place] == pytest.approx(wanted, abs=0.01)
            assert other.at(row["threshold"], name)[place] >= wanted - 1e-9


def test_only_the_class_that_differs_has_a_threshold_of_its_own(compressed):
    _, rows = compressed
    differing = rows.filter("differs", pl.col("name") != "")
    assert differing.select("target", "name").rows() == [("recall", "dog"), ("precision", "dog")]
    facts = threshold_facts(rows, reference="fp16", conf=CONF, eval_images=IMAGES)
    assert set(facts["recall"]["classes"]) == set(facts["precision"]["classes"]) == {"dog"}
    assert facts["recall"]["classes"]["dog"] == pytest.approx(0.2, abs=0.005)
    assert facts["recall"]["all"] == pytest.approx(row_of(rows, "recall")["threshold"], abs=1e-4)
    assert (facts["reference"], facts["conf"], facts["eval_images"]) == ("fp16", CONF, IMAGES)


def test_the_same_scores_need_no_other_threshold():
    rows = match_thresholds(Boxes(), Boxes(), conf=CONF)
    assert not rows["differs"].any()
    assert rows["threshold"].to_list() == [CONF] * len(rows)


def test_few_labels_decide_nothing():
    images = MIN_LABELS // 2 - 1
    rows = match_thresholds(Boxes(images=images), Boxes(0.5, 0.5, 0.5, images=images), conf=CONF)
    assert rows.filter(pl.col("name") != "")["low"].null_count() == 2 * CLASSES
    assert not rows.filter(pl.col("name") != "")["differs"].any()


def test_what_no_threshold_reaches_has_none():
    other = Boxes()
    other.detections = other.detections.filter(pl.col("matched(B)") == 0)
    rows = match_thresholds(Boxes(), other, conf=CONF)
    assert rows["threshold"].null_count() == len(rows)
    assert threshold_facts(rows, reference="fp16", conf=CONF, eval_images=IMAGES)["recall"] == {
        "all": None,
        "classes": {},
    }
    other.detections = other.detections.clear()
    assert match_thresholds(Boxes(), other, conf=CONF)["threshold"].null_count() == len(rows)


def test_tasks_without_boxes_have_no_thresholds():
    classifier = Boxes()
    classifier.detections = classifier.detections.drop("matched(B)")
    assert match_thresholds(classifier, classifier, conf=CONF).is_empty()


def test_what_the_reference_does_not_find_needs_no_threshold():
    """At a recall of 0 every threshold is as good as any other."""
    reference = Boxes()
    reference.detections = reference.detections.with_columns(pl.lit(0.01).alias("score"))
    rows = match_thresholds(reference, Boxes(), conf=CONF)
    assert rows["reference"].to_list() == [0.0] * len(rows)
    assert rows["threshold"].null_count() == len(rows)


def test_classes_are_corrected_for_their_number(monkeypatch):
    asked = []

    def reject_none(p_values):
        asked.append(p_values)
        return [False] * len(p_values)

    monkeypatch.setattr("trtkit.evaluation.thresholds.holm", reject_none)
    rows = match_thresholds(Boxes(), Boxes(1.0, 0.8, 1.0), conf=CONF)
    assert [len(p_values) for p_values in asked] == [CLASSES, CLASSES]
    assert min(asked[0]) < 0.001
    assert not rows.filter(pl.col("name") != "")["differs"].any()
