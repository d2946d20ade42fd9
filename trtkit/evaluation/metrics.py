"""Judging tasks that find objects: detections matched to labels, image by image, and scored over all."""

from __future__ import annotations

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
from trtkit.tasks.obb import corners_to_xywhr
from trtkit.tasks.pose import get_sigmas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Labels
    from trtkit.tasks import Detections, Task
    from trtkit.tasks.classify import Classification

__all__ = ["ClassificationEvaluator", "DetectionEvaluator", "Scores", "compute_pycocotools_metrics", "concat_columns"]


# Average precision and recall by pycocotools' rule, computed by faster-coco-eval.


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
    """COCO's twelve numbers (ten for keypoints) over all images.

    Args:
        labels: COCO annotations: image_id (a place in `shapes`), category_id, bbox, area, ...; ids are added in place.
        detections: COCO results: the same and score; ids are added in place.
        shapes: (height, width) of each image.
        classes: The class numbers.
        kind: "B", "M" or "P"; the suffix of the names, left out for "B".
        iou_type: "bbox", "segm" or "keypoints".
        sigmas: Spread of each keypoint.

    Returns:
        Values by name, e.g. "pycocotools/AP" or "pycocotools/AP(M)". Sizes are pycocotools': small below 32^2 pixels of area, large
        above 96^2; a size without labels is left out (pycocotools writes -1 there).
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # The evaluator takes id 0 for "not matched".
    for place, label in enumerate(labels, 1):
        label |= {"id": place, "iscrowd": 0}
    truth = COCO(
        {
            "images": [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(shapes)],
            "annotations": labels,
            "categories": [{"id": number, "name": str(number)} for number in classes],
        }
    )
    options = {"kpt_oks_sigmas": list(sigmas)} if sigmas else {}
    evaluator = COCOeval_faster(truth, truth.loadRes(detections), iou_type, print_function=_discard, **options)
    evaluator.run()
    names = KEYPOINT_METRICS if iou_type == "keypoints" else BOX_METRICS
    tail = "" if kind == "B" else f"({kind})"
    values = zip(names, evaluator.stats, strict=False)
    return {f"pycocotools/{name}{tail}": float(value) for name, value in values if value >= 0}


def _discard(*_: object) -> None:
    """Where the evaluator's own report goes."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a judge says once it has seen every image; the frames are described at `Evaluation`."""

    metrics: Mapping[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame
    confidence: float


class DetectionEvaluator:
    """Collects matches by kind ("B", "M", "P"); what it keeps of an image is small whatever its masks weigh.

    Args:
        task: Says how alike labels and detections are.
        dataset: Whose labels, and whose class names.
    """

    def __init__(self, task: Task, dataset: Dataset) -> None:
        self.task = task
        self.dataset = dataset
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, NDArray[Any]]] = []
        self.labels: list[dict[str, NDArray[Any]]] = []
        self.coco_detections: dict[str, list[dict[str, Any]]] = {kind: [] for kind in task.coco_iou_types}
        self.coco_labels: dict[str, list[dict[str, Any]]] = {kind: [] for kind in task.coco_iou_types}

    def add(self, path: Path, labels: Labels, prediction: Detections) -> None:
        """Judge one image.

        Args:
            path: Its file.
            labels: In pixels of the original image.
            prediction: Objects by falling score.
        """
        number = len(self.images)
        found: dict[str, NDArray[Any]] = {
            "image": np.full(len(prediction), number, np.int32),
            "class": prediction.classes.astype(np.int32),
            "score": prediction.scores,
            **self.task.to_columns(prediction),
        }
        truths: dict[str, NDArray[Any]] = {
            "image": np.full(len(labels), number, np.int32),
            "class": labels.classes.astype(np.int32),
            **{name: labels.boxes[:, place] for place, name in enumerate(("x1", "y1", "x2", "y2"))},
            "area": self.task.areas(labels),
            **_rotated_columns(labels),
        }
        for kind, similarity in self.task.similarity(labels, prediction, self.dataset).items():
            matched, claimed = match_detections(similarity, labels.classes, prediction.classes)
            found[f"matched({kind})"] = pack_thresholds(matched)
            truths[f"matched({kind})"] = pack_thresholds(claimed >= 0)
            found[f"object({kind})"] = find_matched_labels(claimed, len(prediction))
            scores = np.append(prediction.scores, np.float32(np.nan))
            truths[f"score({kind})"] = scores[claimed[:, 0]]
        for kind in self.task.coco_iou_types:
            for row, one in zip(self.task.to_coco(labels, kind), labels.classes.tolist(), strict=True):
                row |= {"image_id": number, "category_id": one}
                self.coco_labels[kind].append(row)
            pairs = zip(prediction.classes.tolist(), prediction.scores.tolist(), strict=True)
            for row, (one, score) in zip(self.task.to_coco(prediction, kind), pairs, strict=True):
                row |= {"image_id": number, "category_id": one, "score": score}
                self.coco_detections[kind].append(row)
        self.detections.append(found)
        self.labels.append(truths)
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
        """Metrics and frames over all images added.

        Raises:
            DataError: No image has a labeled object.
        """
        detections, truths = concat_columns(self.detections), concat_columns(self.labels)
        if not len(truths):
            raise DataError(
                f"judge by {self.dataset.path}",
                f"the label files of all {len(self.images)} images are empty",
                "judge on images with labeled objects",
            )
        # A label that no detection claimed has no score.
        truths = truths.with_columns(pl.col("^score.*$").fill_nan(None))
        metrics: dict[str, float] = {}
        per_class = self._instances(truths)
        confidence = 0.0
        for place, kind in enumerate(self.task.kinds):
            scores = score_classes(
                unpack_thresholds(detections[f"matched({kind})"].to_numpy()),
                detections["score"].to_numpy(),
                detections["class"].to_numpy(),
                truths["class"].to_numpy(),
            )
            means = scores.means()
            metrics |= {f"{name}({kind})": means[name] for name in ("mAP50", "mAP50-95", "precision", "recall")}
            per_class = per_class.join(_class_frame(scores, kind), on="class", how="left", maintain_order="left")
            confidence = scores.confidence if place == 0 else confidence
        for kind, iou_type in self.task.coco_iou_types.items():
            metrics |= compute_pycocotools_metrics(
                self.coco_labels[kind],
                self.coco_detections[kind],
                shapes=[(row["height"], row["width"]) for row in self.images],
                classes=list(self.dataset.names),
                kind=kind,
                iou_type=iou_type,
                sigmas=get_sigmas(self.dataset) if kind == "P" else (),
            )
        return Scores(
            metrics=metrics,
            per_class=per_class,
            per_image=self._image_frame(detections, truths, confidence),
            detections=detections,
            labels=truths,
            confidence=confidence,
        )

    def _instances(self, truths: pl.DataFrame) -> pl.DataFrame:
        """Labels of each class, and the images they are in."""
        counts = truths.group_by("class").agg(images=pl.col("image").n_unique(), instances=pl.len())
        names = pl.DataFrame(
            {"class": list(self.dataset.names), "name": list(self.dataset.names.values())},
            schema={"class": pl.Int32, "name": pl.String},
        )
        return names.join(counts, on="class", how="inner", maintain_order="left").select(
            "class", "name", pl.col("images", "instances").cast(pl.Int64)
        )

    def _image_frame(self, detections: pl.DataFrame, truths: pl.DataFrame, confidence: float) -> pl.DataFrame:
        """Right, wrong and missed objects of each image at the confidence of the best F1, similarity 0.5."""
        matched = f"matched({self.task.kinds[0]})"
        right = (pl.col(matched) & 1) == 1
        sure = detections.filter(pl.col("score") >= confidence)
        counts = sure.group_by("image").agg(tp=right.sum().cast(pl.Int64), fp=(~right).sum().cast(pl.Int64))
        whole = pl.DataFrame(self.images, schema_overrides={"image": pl.Int32})
        return whole.join(counts, on="image", how="left", maintain_order="left").with_columns(
            tp=pl.col("tp").fill_null(0),
            fp=pl.col("fp").fill_null(0),
            fn=pl.col("labels") - pl.col("tp").fill_null(0),
        )


def _rotated_columns(labels: Labels) -> dict[str, NDArray[Any]]:
    """The rotated boxes of labels that have corners, under the names that rotated detections have."""
    if labels.corners is None:
        return {}
    boxes = corners_to_xywhr(labels.corners)
    return {name: boxes[:, place] for place, name in enumerate(("x", "y", "width", "height", "angle"))}


def concat_columns(parts: list[dict[str, Any]]) -> pl.DataFrame:
    """Column arrays of many images as one frame."""
    columns: dict[str, Any] = {}
    for name, first in parts[0].items():
        if isinstance(first, np.ndarray):
            columns[name] = np.concatenate([part[name] for part in parts])
        else:
            columns[name] = [value for part in parts for value in part[name]]
    return pl.DataFrame(columns)


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


# Classification judged: is the true class the likeliest, or among the five likeliest?


class ClassificationEvaluator:
    """Collects rankings.

    Args:
        task: Says what to keep of a ranking.
        dataset: Whose class names.
    """

    def __init__(self, task: Task, dataset: Dataset) -> None:
        self.task = task
        self.dataset = dataset
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, NDArray[Any]]] = []
        self.labels: list[dict[str, Any]] = []

    def add(self, path: Path, labels: Labels, prediction: Classification) -> None:
        """Judge one image.

        Args:
            path: Its file.
            labels: Its class.
            prediction: Probabilities of all classes.
        """
        number, true = len(self.images), int(labels.classes[0])
        rank = int(np.flatnonzero(prediction.ranked_classes == true)[0]) + 1
        columns = self.task.to_columns(prediction)
        count = len(columns["rank"])
        self.detections.append(
            {"image": np.full(count, number, np.int32), **columns, "right": columns["class"] == true}
        )
        self.labels.append(
            {"image": number, "class": true, "rank": rank, "score": float(prediction.probabilities[true])}
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
        """Metrics and frames over all images added.

        Raises:
            DataError: There are none.
        """
        if not self.images:
            raise DataError(f"judge by {self.dataset.path}", "no image was judged", "check the split")
        whole = {"image": pl.Int32, "class": pl.Int32, "rank": pl.Int32, "score": pl.Float32}
        truths = pl.DataFrame(self.labels, schema=whole)
        first, five = pl.col("rank") == 1, pl.col("rank") <= 5
        names = {"class": list(self.dataset.names), "name": list(self.dataset.names.values())}
        per_class = (
            pl.DataFrame(names, schema={"class": pl.Int32, "name": pl.String})
            .join(
                truths.group_by("class").agg(
                    images=pl.len().cast(pl.Int64), instances=pl.len().cast(pl.Int64),
                    top1=first.mean(), top5=five.mean(),
                ),
                on="class", how="inner", maintain_order="left",
            )
        )  # fmt: skip
        return Scores(
            metrics={"top1": float((truths["rank"] == 1).sum() / len(truths)),
                     "top5": float((truths["rank"] <= 5).sum() / len(truths))},
            per_class=per_class,
            per_image=pl.DataFrame(self.images, schema_overrides={"image": pl.Int32}),
            detections=concat_columns(self.detections),
            labels=truths,
            confidence=0.0,
        )  # fmt: skip
