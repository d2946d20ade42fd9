"""Object changes between two evaluations: gained and lost objects, false positives, and images of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import polars as pl

from trtkit.data.image_files import read_display_image
from trtkit.errors import DataError
from trtkit.tasks.base import class_color
from trtkit.tasks.nms import box_iou, xywhr_to_corners

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.evaluation.bootstrap import EvaluationLike

__all__ = ["COLUMNS", "draw_object_changes", "find_object_changes"]

COLUMNS = {
    "change": pl.String,
    "score_drop": pl.Float64,
    "path": pl.String,
    "image": pl.Int32,
    "class": pl.Int32,
    "name": pl.String,
    **dict.fromkeys(("x1", "y1", "x2", "y2"), pl.Float32),
    "score_reference": pl.Float32,
    "score": pl.Float32,
    "detection_reference": pl.Int32,
    "detection": pl.Int32,
    "label": pl.Int32,
    "label_class": pl.String,
}
"""Columns of `find_object_changes`."""

SAME_OBJECT_IOU = 0.5
"""IoU from which two false positives of a class are the same one."""

SIDE = 240
"""Side of a drawn image, pixels."""

MARGIN = 0.6
"""Margin drawn around an object, as a share of its longer side."""

FONT_SCALE = 0.45
"""OpenCV's font scale."""

WHITE = (255, 255, 255)
GRAY = 114
"""Gray level of padding."""


def find_object_changes(reference: EvaluationLike, other: EvaluationLike, *, conf: float = 0.25) -> pl.DataFrame:
    """Gained and lost objects, and false positives added and removed.

    A labeled object is detected if a detection of its class matches it at similarity 0.5 with a score of at least
    `conf`. A false positive is a detection with such a score that matches no label; two of one class with IoU >= 0.5
    are the same. For classify an image is gained or lost as its top-1 class becomes right or wrong.

    Args:
        reference: An evaluation.
        other: An evaluation on the same images.
        conf: Score threshold of detections; the default is that of `predict`.

    Returns:
        One row per change, the largest `score_drop` first: `change` ("lost", "gained", "false positive added", "false
        positive removed"); `score_drop`, by how much the score of the right object fell or that of the false positive
        rose (negative for an improvement); path, image, class and name; the box of the label or the false positive,
        pixels; both scores (null for no detection); the rows in `detections` (`detection_reference`, `detection`) and
        in `labels` (`label`); and `label_class`, the class of the label under a false positive, null for none.

    Raises:
        DataError: The evaluations have different images.
    """
    if not reference.per_image["path"].equals(other.per_image["path"]):
        raise DataError(
            "compare the objects of two evaluations",
            "they have different images",
            "evaluate both on the same split, eval_images and seed",
            code="object-changes-different-images",
        )
    names = dict(reference.per_class.select("class", "name").iter_rows())
    if "rank" in reference.labels.columns:
        rows = _find_classification_changes(reference.labels, other.labels)
    else:
        rows = _find_label_changes(reference, other, conf) + _find_false_positive_changes(reference, other, conf)
    paths = reference.per_image["path"].to_list()
    named = [{**row, "path": paths[row["image"]], "name": names.get(row["class"], str(row["class"]))} for row in rows]
    return pl.DataFrame(named, schema=COLUMNS).sort("score_drop", descending=True, maintain_order=True)


def _find_classification_changes(before: pl.DataFrame, after: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for index, (old, new) in enumerate(zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=True)):
        if (old["rank"] == 1) != (new["rank"] == 1):
            rows.append(
                {
                    "change": "lost" if old["rank"] == 1 else "gained",
                    "score_drop": old["score"] - new["score"],
                    **{name: old[name] for name in ("image", "class")},
                    "score_reference": old["score"],
                    "score": new["score"],
                    "label": index,
                }
            )
    return rows


def _find_label_changes(reference: EvaluationLike, other: EvaluationLike, conf: float) -> list[dict[str, Any]]:
    """Labels detected in one evaluation only."""
    kind = _object_match_kind(reference)
    matches = [_match_labels(one.detections, one.labels, kind) for one in (reference, other)]
    before, after = (
        _match_scores(one.detections, match) for one, match in zip((reference, other), matches, strict=True)
    )
    detected_before, detected_after = before >= conf, after >= conf
    rows = []
    for index in np.flatnonzero(detected_before != detected_after).tolist():
        label = reference.labels.row(index, named=True)
        rows.append(
            {
                "change": "lost" if detected_before[index] else "gained",
                "score_drop": float(before[index] - after[index]),
                **{name: label[name] for name in ("image", "class", "x1", "y1", "x2", "y2")},
                "score_reference": _value_or_none(before[index], matches[0][index]),
                "score": _value_or_none(after[index], matches[1][index]),
                "detection_reference": _value_or_none(int(matches[0][index]), matches[0][index]),
                "detection": _value_or_none(int(matches[1][index]), matches[1][index]),
                "label": index,
            }
        )
    return rows


def _find_false_positive_changes(reference: EvaluationLike, other: EvaluationLike, conf: float) -> list[dict[str, Any]]:
    """False positives of one evaluation only."""
    kind = _object_match_kind(reference)
    before, after = (_select_false_positives(one.detections, kind, conf) for one in (reference, other))
    names = dict(reference.per_class.select("class", "name").iter_rows())
    label_classes = reference.labels["class"].to_list()
    rows = []
    for change, candidates, counterparts, sign, suffix in (
        ("false positive added", after, before, 1, ""),
        ("false positive removed", before, after, -1, "_reference"),
    ):
        overlap, _ = _find_nearest(candidates, counterparts, "image", "class")
        changed = candidates.filter(overlap < SAME_OBJECT_IOU)
        overlap, nearest = _find_nearest(changed, reference.labels, "image")
        for row, iou, label in zip(changed.iter_rows(named=True), overlap.tolist(), nearest.tolist(), strict=True):
            number = label_classes[label] if iou >= SAME_OBJECT_IOU else None
            rows.append(
                {
                    "change": change,
                    "score_drop": sign * row["score"],
                    **{name: row[name] for name in ("image", "class", "x1", "y1", "x2", "y2")},
                    f"score{suffix}": row["score"],
                    f"detection{suffix}": row["row"],
                    "label_class": None if number is None else names.get(number, str(number)),
                }
            )
    return rows


def _find_nearest(frame: pl.DataFrame, others: pl.DataFrame, *by: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(rows,) highest IoU of each row's box with one of `others` equal in the columns `by`, 0 for none, and its row."""
    overlap, nearest = np.zeros(len(frame), np.float32), np.full(len(frame), -1, np.int64)
    groups = others.with_row_index("position").partition_by(by, as_dict=True)
    for key, group in frame.with_row_index("position").partition_by(by, as_dict=True).items():
        if key in groups:
            iou = box_iou(_box_array(group), _box_array(groups[key]))
            rows = group["position"].to_numpy()
            overlap[rows] = iou.max(1)
            nearest[rows] = groups[key]["position"].to_numpy()[iou.argmax(1)]
    return overlap, nearest


def _object_match_kind(evaluation: EvaluationLike) -> str:
    """What objects are matched by: "M" (masks) or "P" (poses) if the task has them, else "B" (boxes)."""
    kinds = [name[len("mAP50-95(") : -1] for name in evaluation.metrics if name.startswith("mAP50-95(")]
    return next((kind for kind in ("M", "P") if kind in kinds), "B")


def _match_labels(detections: pl.DataFrame, labels: pl.DataFrame, kind: str) -> NDArray[np.int64]:
    """(labels,) row of the detection that matches each label at similarity 0.5, or -1."""
    matched = np.flatnonzero((detections[f"matched({kind})"].to_numpy() & 1) == 1)
    first = np.searchsorted(labels["image"].to_numpy(), detections["image"].to_numpy()[matched])
    rows = np.full(len(labels), -1, np.int64)
    rows[first + detections[f"object({kind})"].to_numpy()[matched]] = matched
    return rows


def _match_scores(detections: pl.DataFrame, matches: NDArray[np.int64]) -> NDArray[np.float64]:
    """(labels,) score of each label's detection, 0 for none."""
    scores = np.append(detections["score"].to_numpy().astype(np.float64), 0.0)
    return scores[matches]


def _select_false_positives(detections: pl.DataFrame, kind: str, conf: float) -> pl.DataFrame:
    rows = detections.with_row_index("row")
    return rows.filter((pl.col("score") >= conf) & ((pl.col(f"matched({kind})") & 1) == 0))


def _box_array(frame: pl.DataFrame) -> NDArray[np.float32]:
    return frame.select("x1", "y1", "x2", "y2").to_numpy().astype(np.float32)


def _value_or_none(value: Any, match: int) -> Any:
    return None if match < 0 else float(value) if not isinstance(value, int) else value


# Images of changes.


def draw_object_changes(
    changes: pl.DataFrame, reference: EvaluationLike, other: EvaluationLike, *, limit: int = 12, conf: float = 0.25
) -> pl.DataFrame:
    """Draw changes: what changed in thick lines, other detections around it in thin ones, labels in white.

    Args:
        changes: From `find_object_changes`; the first rows are drawn.
        reference: The evaluation on the left.
        other: The evaluation on the right.
        limit: Largest number of rows.
        conf: Score threshold of the other detections.

    Returns:
        The first `limit` rows with `png`: the bytes of a PNG file, two images side by side; null if the image file no
        longer exists.
    """
    names = dict(reference.per_class.select("class", "name").iter_rows())
    images = [_draw_change(row, reference, other, names, conf) for row in changes.head(limit).iter_rows(named=True)]
    return changes.head(limit).with_columns(pl.Series("png", images, dtype=pl.Binary))


def _draw_change(
    row: dict[str, Any], reference: EvaluationLike, other: EvaluationLike, names: dict[int, str], conf: float
) -> bytes | None:
    try:
        image = read_display_image(row["path"])
    except DataError:
        return None
    if row["x1"] is None:
        panels = [
            _draw_top_classes(image, one.detections.filter(pl.col("image") == row["image"]), names)
            for one in (reference, other)
        ]
    else:
        window, scale = _crop_window(row, (image.shape[0], image.shape[1]))
        labels = _rows_in_window(reference.labels.with_row_index("row"), row["image"], window)
        panels = []
        for one, column in ((reference, "detection_reference"), (other, "detection")):
            detections = one.detections.with_row_index("row")
            nearby = _rows_in_window(detections.filter(pl.col("score") >= conf), row["image"], window)
            nearby = nearby.filter(pl.col("row") != (-1 if row[column] is None else row[column]))
            changed = detections.row(row[column], named=True) if row[column] is not None else None
            panels.append(_draw_panel(image, window, scale, labels, nearby, changed, names))
    gap = np.full((SIDE, 6, 3), 128, np.uint8)
    is_encoded, data = cv2.imencode(".png", np.concatenate((panels[0], gap, panels[1]), 1))
    return data.tobytes() if is_encoded else None


def _crop_window(row: dict[str, Any], shape: tuple[int, int]) -> tuple[tuple[int, int, int, int], float]:
    """The square around an object (left, top, right, bottom), moved into the image, and its enlargement."""
    width, height = row["x2"] - row["x1"], row["y2"] - row["y1"]
    side = max(16, round(max(width, height) * (1 + 2 * MARGIN)))
    left = min(max(0, round((row["x1"] + row["x2"] - side) / 2)), max(0, shape[1] - side))
    top = min(max(0, round((row["y1"] + row["y2"] - side) / 2)), max(0, shape[0] - side))
    return (left, top, left + side, top + side), SIDE / side


def _rows_in_window(frame: pl.DataFrame, image: int, window: tuple[int, int, int, int]) -> pl.DataFrame:
    """Rows of an image whose boxes overlap the window."""
    left, top, right, bottom = window
    x = (pl.col("x2") > left) & (pl.col("x1") < right)
    return frame.filter((pl.col("image") == image) & x & (pl.col("y2") > top) & (pl.col("y1") < bottom))


def _draw_panel(
    image: NDArray[np.uint8],
    window: tuple[int, int, int, int],
    scale: float,
    labels: pl.DataFrame,
    nearby: pl.DataFrame,
    changed: dict[str, Any] | None,
    names: dict[int, str],
) -> NDArray[np.uint8]:
    """The window with labels in white and detections in their classes' colors, `changed` on top."""
    left, top, right, bottom = window
    crop = np.full((bottom - top, right - left, 3), GRAY, np.uint8)
    inside = image[top:bottom, left:right]
    crop[: inside.shape[0], : inside.shape[1]] = inside
    panel = np.asarray(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)
    offset = np.array([left, top], np.float32)

    def to_panel(points: Any) -> NDArray[np.float32]:
        moved: NDArray[np.float32] = (np.asarray(points, np.float32).reshape(-1, 2) - offset) * np.float32(scale)
        return moved

    for label in labels.iter_rows(named=True):
        corners = to_panel([[label["x1"], label["y1"]], [label["x2"], label["y2"]]])
        if "angle" in label:
            _draw_rotated_box(panel, label, to_panel, WHITE, width=1)
        else:
            _draw_box(panel, corners, WHITE)
        _draw_tag(panel, str(names.get(label["class"], label["class"])), (corners[0, 0], corners[1, 1]), WHITE)
    shape = (image.shape[0], image.shape[1])
    for detection in [*nearby.sort("score").iter_rows(named=True), *([changed] if changed else [])]:
        color = class_color(detection["class"])
        _draw_detection(panel, detection, to_panel, color, shape, width=3 if detection is changed else 1)
        text = f"{names.get(detection['class'], detection['class'])} {detection['score']:.2f}"
        _draw_tag(panel, text, tuple(to_panel([detection["x1"], detection["y1"]])[0]), color, above=True)
    return panel


def _draw_tag(
    panel: NDArray[np.uint8],
    text: str,
    corner: tuple[float, float],
    color: tuple[int, int, int],
    *,
    above: bool = False,
) -> None:
    """Text on a colored rectangle inside the panel, below a corner or above it."""
    (text_width, ascent), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, 1)
    height = ascent + descent
    # A name that is wider than the panel begins at its edge.
    left = max(0, min(round(float(corner[0])), SIDE - text_width - 2))
    top = min(max(0, round(float(corner[1])) - (height if above else 0)), SIDE - height)
    cv2.rectangle(panel, (left, top), (left + text_width + 1, top + height), color, -1)
    # Luma of ITU-R BT.601 decides between black and white text.
    is_light = 0.299 * color[2] + 0.587 * color[1] + 0.114 * color[0] > 128
    text_color = (0, 0, 0) if is_light else WHITE
    cv2.putText(panel, text, (left + 1, top + ascent), cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, text_color, 1, cv2.LINE_AA)


def _draw_box(panel: NDArray[np.uint8], corners: NDArray[np.float32], color: tuple[int, int, int]) -> None:
    (left, top), (right, bottom) = np.round(corners).astype(int).tolist()
    cv2.rectangle(panel, (left, top), (right, bottom), color, 1, cv2.LINE_AA)


def _draw_rotated_box(
    panel: NDArray[np.uint8],
    row: dict[str, Any],
    to_panel: Callable[[Any], NDArray[np.float32]],
    color: tuple[int, int, int],
    *,
    width: int,
) -> None:
    box = np.array([[row[name] for name in ("x", "y", "width", "height", "angle")]], np.float32)
    cv2.polylines(
        panel, [np.round(to_panel(xywhr_to_corners(box)[0])).astype(np.int32)], True, color, width, cv2.LINE_AA
    )


def _draw_detection(
    panel: NDArray[np.uint8],
    detection: dict[str, Any],
    to_panel: Callable[[Any], NDArray[np.float32]],
    color: tuple[int, int, int],
    shape: tuple[int, int],
    *,
    width: int,
) -> None:
    """The outline of a mask, a rotated box, or a box with its keypoints."""
    if "mask" in detection:
        from faster_coco_eval import mask as coder

        mask = coder.decode({"size": list(shape), "counts": detection["mask"].encode()})
        edges, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        lines = [np.round(to_panel(edge + 0.5)).astype(np.int32) for edge in edges]
        cv2.polylines(panel, lines, True, color, width, cv2.LINE_AA)
    elif "angle" in detection:
        _draw_rotated_box(panel, detection, to_panel, color, width=width)
    else:
        corners = [[detection["x1"], detection["y1"]], [detection["x2"], detection["y2"]]]
        left, top, right, bottom = to_panel(corners).ravel().tolist()
        cv2.rectangle(panel, (round(left), round(top)), (round(right), round(bottom)), color, width, cv2.LINE_AA)
        keypoints = np.asarray(detection.get("keypoints") or [], np.float32).reshape(-1, 3)
        for x, y in to_panel(keypoints[:, :2]).tolist():
            cv2.circle(panel, (round(x), round(y)), 1 + width, color, -1, cv2.LINE_AA)


def _draw_top_classes(image: NDArray[np.uint8], ranking: pl.DataFrame, names: dict[int, str]) -> NDArray[np.uint8]:
    """An image with its top-3 classes."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    panel = np.full((SIDE, SIDE, 3), GRAY, np.uint8)
    panel[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    for index, row in enumerate(ranking.head(3).iter_rows(named=True)):
        text = f"{names.get(row['class'], row['class'])} {row['score']:.2f}"
        _draw_tag(panel, text, (2, 2 + 20 * index), class_color(row["class"]))
    return panel
