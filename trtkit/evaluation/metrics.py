"""Metrics over all images: detections by Ultralytics' and pycocotools' rules, classification by top-1 and top-5."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.errors import DataError
from trtkit.evaluation.average_precision import (
    ClassScores,
    find_matched_labels,
    match_detections,
    pack_thresholds,
    score_classes,
    unpack_thresholds,
)

if TYPE_CHECKING:
    from trtkit.data import Dataset, Labels
    from trtkit.tasks import Detections, Task
    from trtkit.tasks.classify import Classification

__all__ = [
    "ClassificationEvaluator",
    "DetectionEvaluator",
    "ImageRows",
    "Scores",
    "compute_pycocotools_metrics",
    "concat_columns",
    "distinguish_names",
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Metrics and frames over all images; see `Evaluation` for the frames."""

    metrics: Mapping[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRows:
    """What an evaluator holds of its images, to be added to another one's.

    Attributes:
        images: One mapping per image.
        detections: Columns by image.
        labels: Columns by image, for classify a row.
        coco_detections: COCO results by kind.
        coco_labels: COCO annotations by kind.
    """

    images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    detections: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    labels: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    coco_detections: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    coco_labels: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def extend(self, later: ImageRows) -> None:
        """Append the images of another evaluator, numbered after these.

        Args:
            later: Its rows, which are changed.
        """
        first = len(self.images)
        for row in (*later.images, *later.detections, *later.labels):
            row["image"] = row["image"] + first if isinstance(row["image"], int) else row["image"] + np.int32(first)
        self.images.extend(later.images)
        self.detections.extend(later.detections)
        self.labels.extend(later.labels)
        for ours, theirs in ((self.coco_detections, later.coco_detections), (self.coco_labels, later.coco_labels)):
            for kind, rows in theirs.items():
                for row in rows:
                    row["image_id"] += first
                ours[kind].extend(rows)


# Tasks with objects


class DetectionEvaluator:
    """Matches detections to labels image by image, and scores all of them.

    Memory holds columns of each image's detections and labels, not masks.

    Args:
        task: Computes the similarity of labels and detections, by kind.
        dataset: The data set of the labels.
    """

    def __init__(self, task: Task, dataset: Dataset) -> None:
        self.task = task
        self.dataset = dataset
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        self.labels: list[dict[str, Any]] = []
        self.coco_detections: dict[str, list[dict[str, Any]]] = {kind: [] for kind in task.coco_iou_types}
        self.coco_labels: dict[str, list[dict[str, Any]]] = {kind: [] for kind in task.coco_iou_types}

    def rows(self) -> ImageRows:
        """The rows of all added images."""
        return ImageRows(
            images=self.images,
            detections=self.detections,
            labels=self.labels,
            coco_detections=self.coco_detections,
            coco_labels=self.coco_labels,
        )

    def extend(self, later: ImageRows) -> None:
        """Add the images of another evaluator after these; see `ImageRows.extend`."""
        self.rows().extend(later)

    def add(self, path: Path, labels: Labels, prediction: Detections) -> None:
        """Match the detections of one image.

        Args:
            path: The image file.
            labels: In pixels of the original image.
            prediction: Objects by falling score.
        """
        number = len(self.images)
        detection_columns: dict[str, Any] = {
            "image": np.full(len(prediction), number, np.int32),
            "class": prediction.classes.astype(np.int32),
            "score": prediction.scores,
            **self.task.to_columns(prediction),
        }
        label_columns: dict[str, Any] = {
            "image": np.full(len(labels), number, np.int32),
            "class": labels.classes.astype(np.int32),
            **{name: labels.boxes[:, column] for column, name in enumerate(("x1", "y1", "x2", "y2"))},
            "area": self.task.compute_areas(labels),
            **self.task.to_label_columns(labels),
        }
        for kind, similarity in self.task.compute_similarity(labels, prediction, self.dataset).items():
            matched, claimed = match_detections(similarity, labels.classes, prediction.classes)
            detection_columns[f"matched({kind})"] = pack_thresholds(matched)
            label_columns[f"matched({kind})"] = pack_thresholds(claimed >= 0)
            detection_columns[f"object({kind})"] = find_matched_labels(claimed, len(prediction))
            # A label that no detection matched, index -1, gets NaN.
            scores = np.append(prediction.scores, np.float32(np.nan))
            label_columns[f"score({kind})"] = scores[claimed[:, 0]]
        for kind in self.task.coco_iou_types:
            if labels.annotations is not None:
                # With crowd regions, and the areas and masks as they stand in the file.
                rows = [dict(row) for row in labels.annotations]
            else:
                pairs = zip(self.task.to_coco(labels, kind), labels.classes.tolist(), strict=True)
                rows = [row | {"category_id": class_number} for row, class_number in pairs]
            self.coco_labels[kind] += [row | {"image_id": number} for row in rows]
            scored = zip(prediction.classes.tolist(), prediction.scores.tolist(), strict=True)
            for row, (class_number, score) in zip(self.task.to_coco(prediction, kind), scored, strict=True):
                row |= {"image_id": number, "category_id": class_number, "score": score}
                self.coco_detections[kind].append(row)
        self.detections.append(detection_columns)
        self.labels.append(label_columns)
        self.images.append(
            {
                "image": number,
                "path": str(path),
                "height": prediction.shape[0],
                "width": prediction.shape[1],
                "labels": len(labels),
                "detections": len(prediction),
            }
        )

    def compute_scores(self) -> Scores:
        """Compute metrics and frames over all added images.

        Raises:
            DataError: No image has a labeled object.
        """
        detections, labels = concat_columns(self.detections), concat_columns(self.labels)
        if not len(labels):
            raise DataError(
                f"evaluate on {self.dataset.path}",
                f"the label files of all {len(self.images)} images are empty",
                "use images with labeled objects",
                code="evaluate-labels-empty",
                path=self.dataset.path,
                count=len(self.images),
            )
        labels = labels.with_columns(pl.col("^score.*$").fill_nan(None))
        metrics: dict[str, float] = {}
        per_class = self._count_instances(labels)
        confidence = 0.0
        for index, kind in enumerate(self.task.kinds):
            scores = score_classes(
                unpack_thresholds(detections[f"matched({kind})"].to_numpy()),
                detections["score"].to_numpy(),
                detections["class"].to_numpy(),
                labels["class"].to_numpy(),
            )
            means = scores.means()
            metrics |= {f"{name}({kind})": means[name] for name in ("mAP50", "mAP50-95", "precision", "recall")}
            per_class = per_class.join(_class_frame(scores, kind), on="class", how="left", maintain_order="left")
            confidence = scores.confidence if index == 0 else confidence
        for kind, iou_type in self.task.coco_iou_types.items():
            metrics |= compute_pycocotools_metrics(
                self.coco_labels[kind],
                self.coco_detections[kind],
                shapes=[(row["height"], row["width"]) for row in self.images],
                classes=list(self.dataset.names),
                kind=kind,
                iou_type=iou_type,
                sigmas=self.task.get_sigmas(self.dataset) if iou_type == "keypoints" else (),
            )
        return Scores(
            metrics=metrics,
            per_class=per_class,
            per_image=self._image_frame(detections, confidence),
            detections=detections,
            labels=labels,
            confidence=confidence,
        )

    def _count_instances(self, labels: pl.DataFrame) -> pl.DataFrame:
        """Count the labels of each class, and the images they are in."""
        counts = labels.group_by("class").agg(images=pl.col("image").n_unique(), instances=pl.len())
        return (
            _names_frame(self.dataset)
            .join(counts, on="class", how="inner", maintain_order="left")
            .select("class", "name", pl.col("images", "instances").cast(pl.Int64))
        )

    def _image_frame(self, detections: pl.DataFrame, confidence: float) -> pl.DataFrame:
        """Count true positives, false positives and false negatives per image at `confidence` and similarity 0.5."""
        is_match = (pl.col(f"matched({self.task.kinds[0]})") & 1) == 1
        counts = (
            detections.filter(pl.col("score") >= confidence)
            .group_by("image")
            .agg(tp=is_match.sum().cast(pl.Int64), fp=(~is_match).sum().cast(pl.Int64))
        )
        images = pl.DataFrame(self.images, schema_overrides={"image": pl.Int32})
        return images.join(counts, on="image", how="left", maintain_order="left").with_columns(
            tp=pl.col("tp").fill_null(0),
            fp=pl.col("fp").fill_null(0),
            fn=pl.col("labels") - pl.col("tp").fill_null(0),
        )


def concat_columns(parts: list[dict[str, Any]]) -> pl.DataFrame:
    """Concatenate the columns of many images into one frame."""
    columns: dict[str, Any] = {}
    for name, first in parts[0].items():
        if isinstance(first, np.ndarray):
            columns[name] = np.concatenate([part[name] for part in parts])
        else:
            columns[name] = [value for part in parts for value in part[name]]
    return pl.DataFrame(columns)


def _names_frame(dataset: Dataset) -> pl.DataFrame:
    names = distinguish_names(dataset.names)
    return pl.DataFrame(
        {"class": list(names), "name": list(names.values())}, schema={"class": pl.Int32, "name": pl.String}
    )


def distinguish_names(names: Mapping[int, str]) -> dict[int, str]:
    """Class names with the class's number behind those that several classes have, as two of ImageNet are a "crane".

    Tables and figures by class tell classes apart by their names.

    Args:
        names: By class.
    """
    distinct = dict(names)
    while len(set(distinct.values())) < len(distinct):
        counts = collections.Counter(distinct.values())
        distinct = {number: f"{name} ({number})" if counts[name] > 1 else name for number, name in distinct.items()}
    return distinct


def _class_frame(scores: ClassScores, kind: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "class": scores.classes.astype(np.int32),
            f"mAP50({kind})": scores.ap[:, 0],
            f"mAP50-95({kind})": scores.ap.mean(1),
            f"precision({kind})": scores.precision,
            f"recall({kind})": scores.recall,
        }
    )


# pycocotools' rule, computed by faster-coco-eval

BOX_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def compute_pycocotools_metrics(
    labels: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    *,
    shapes: Sequence[tuple[int, int]],
    classes: Sequence[int],
    kind: str,
    iou_type: str,
    sigmas: Sequence[float] = (),
) -> dict[str, float]:
    """Compute pycocotools' twelve metrics, ten for keypoints, over all images.

    Args:
        labels: COCO annotations: image_id (an index of `shapes`), category_id, bbox, area, ...; ids are added in place,
            and `iscrowd` where it is missing.
        detections: COCO results: the same and score; ids are added in place.
        shapes: (height, width) of each image.
        classes: Class numbers.
        kind: "B", "M" or "P"; the suffix of the names, left out for "B".
        iou_type: "bbox", "segm" or "keypoints".
        sigmas: OKS sigma of each keypoint.

    Returns:
        Values by name, e.g. "pycocotools/AP" or "pycocotools/AP(M)". Sizes are pycocotools': small below 32^2 pixels of
        area, large above 96^2; a size without labels is left out (pycocotools reports -1).
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # The evaluator takes id 0 for "not matched".
    for number, label in enumerate(labels, 1):
        label |= {"id": number, "iscrowd": label.get("iscrowd", 0)}
    ground_truth = COCO(
        {
            "images": [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(shapes)],
            "annotations": labels,
            "categories": [{"id": number, "name": str(number)} for number in classes],
        }
    )
    options = {"kpt_oks_sigmas": list(sigmas)} if sigmas else {}
    evaluator = COCOeval_faster(
        ground_truth, ground_truth.loadRes(detections), iou_type, print_function=_discard, **options
    )
    evaluator.run()
    names = KEYPOINT_METRICS if iou_type == "keypoints" else BOX_METRICS
    suffix = "" if kind == "B" else f"({kind})"
    values = zip(names, evaluator.stats, strict=False)
    return {f"pycocotools/{name}{suffix}": float(value) for name, value in values if value >= 0}


def _discard(*_: object) -> None:
    """Discard the evaluator's own report."""


# Classification


class ClassificationEvaluator:
    """Ranks the true class of each image.

    Args:
        task: Selects the columns of a classification.
        dataset: The data set of the labels.
    """

    def __init__(self, task: Task, dataset: Dataset) -> None:
        self.task = task
        self.dataset = dataset
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        self.labels: list[dict[str, Any]] = []

    def rows(self) -> ImageRows:
        """The rows of all added images."""
        return ImageRows(images=self.images, detections=self.detections, labels=self.labels)

    def extend(self, later: ImageRows) -> None:
        """Add the images of another evaluator after these; see `ImageRows.extend`."""
        self.rows().extend(later)

    def add(self, path: Path, labels: Labels, prediction: Classification) -> None:
        """Rank the true class of one image.

        Args:
            path: The image file.
            labels: Its class.
            prediction: Probabilities of all classes.
        """
        number, true_class = len(self.images), int(labels.classes[0])
        rank = int(np.flatnonzero(prediction.ranked_classes == true_class)[0]) + 1
        columns = self.task.to_columns(prediction)
        self.detections.append(
            {
                "image": np.full(len(columns["rank"]), number, np.int32),
                **columns,
                "correct": columns["class"] == true_class,
            }
        )
        self.labels.append(
            {"image": number, "class": true_class, "rank": rank, "score": float(prediction.probabilities[true_class])}
        )
        self.images.append(
            {
                "image": number,
                "path": str(path),
                "height": prediction.shape[0],
                "width": prediction.shape[1],
                "labels": 1,
                "detections": 1,
                "tp": int(rank == 1),
                "fp": int(rank != 1),
                "fn": int(rank != 1),
            }
        )

    def compute_scores(self) -> Scores:
        """Compute metrics and frames over all added images.

        Raises:
            DataError: No image was added.
        """
        if not self.images:
            raise DataError(
                f"evaluate on {self.dataset.path}",
                "no image was evaluated",
                "check the split",
                code="evaluate-images-missing",
                path=self.dataset.path,
            )
        schema = {"image": pl.Int32, "class": pl.Int32, "rank": pl.Int32, "score": pl.Float32}
        labels = pl.DataFrame(self.labels, schema=schema)
        counts = labels.group_by("class").agg(
            images=pl.len().cast(pl.Int64),
            instances=pl.len().cast(pl.Int64),
            top1=(pl.col("rank") == 1).mean(),
            top5=(pl.col("rank") <= 5).mean(),
        )
        return Scores(
            metrics={
                "top1": float((labels["rank"] == 1).sum() / len(labels)),
                "top5": float((labels["rank"] <= 5).sum() / len(labels)),
            },
            per_class=_names_frame(self.dataset).join(counts, on="class", how="inner", maintain_order="left"),
            per_image=pl.DataFrame(self.images, schema_overrides={"image": pl.Int32}),
            detections=concat_columns(self.detections),
            labels=labels,
            confidence=0.0,
        )
