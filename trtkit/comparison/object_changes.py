"""The changes that hurt most, drawn: reference on the left, the other on the right, labels in white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import polars as pl

from trtkit.data import read_image
from trtkit.errors import DataError
from trtkit.tasks.drawing import class_color
from trtkit.tasks.nms import box_iou
from trtkit.tasks.nms import xywhr_to_corners

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.evaluation.bootstrap import EvaluationLike

__all__ = ["COLUMNS", "draw_object_changes", "find_object_changes"]

SIDE = 240
"""Pixels of each drawn image's sides."""

MARGIN = 0.6
"""How much of the object's longer side is shown around it."""

FONT_SCALE = 0.45
"""Size of names, as a share of OpenCV's font."""

WHITE = (255, 255, 255)


def draw_object_changes(
    changed: pl.DataFrame, reference: EvaluationLike, other: EvaluationLike, *, limit: int = 12, conf: float = 0.25
) -> pl.DataFrame:
    """Draw changes: what changed in thick lines, what else each runner found around it in thin ones.

    Args:
        changed: From `find_object_changes`, the rows to draw first.
        reference: The evaluation the changes are told against.
        other: The other one.
        limit: Largest number of rows.
        conf: Smallest score of what else is drawn.

    Returns:
        The first `limit` rows with `png`: a PNG file's bytes, two images side by side. An image that is no longer
        there gives null.
    """
    names = dict(reference.per_class.select("class", "name").iter_rows())
    images = [_draw_change(row, reference, other, names, conf) for row in changed.head(limit).iter_rows(named=True)]
    return changed.head(limit).with_columns(pl.Series("png", images, dtype=pl.Binary))


def _draw_change(
    row: dict[str, Any], reference: EvaluationLike, other: EvaluationLike, names: dict[int, str], conf: float
) -> bytes | None:
    from trtkit.errors import DataError

    try:
        image = read_image(row["path"])
    except DataError:
        return None
    if row["x1"] is None:
        panels = [
            _draw_top_classes(image, judged.detections.filter(pl.col("image") == row["image"]), names)
            for judged in (reference, other)
        ]
    else:
        window, scale = _crop_window(row, (image.shape[0], image.shape[1]))
        labels = _rows_in_window(reference.labels.with_row_index("row"), row["image"], window)
        panels = []
        for judged, found in ((reference, "detection_reference"), (other, "found")):
            every = judged.detections.with_row_index("row")
            near = _rows_in_window(every.filter(pl.col("score") >= conf), row["image"], window)
            near = near.filter(pl.col("row") != (-1 if row[found] is None else row[found]))
            mine = every.row(row[found], named=True) if row[found] is not None else None
            panels.append(_draw_panel(image, window, scale, labels, near, mine, names))
    gap = np.full((SIDE, 6, 3), 128, np.uint8)
    written, data = cv2.imencode(".png", np.concatenate((panels[0], gap, panels[1]), 1))
    return data.tobytes() if written else None


def _crop_window(row: dict[str, Any], shape: tuple[int, int]) -> tuple[tuple[int, int, int, int], float]:
    """The square around an object (left, top, right, bottom), moved into the image, and the enlargement."""
    width, height = row["x2"] - row["x1"], row["y2"] - row["y1"]
    side = max(16, round(max(width, height) * (1 + 2 * MARGIN)))
    left = min(max(0, round((row["x1"] + row["x2"] - side) / 2)), max(0, shape[1] - side))
    top = min(max(0, round((row["y1"] + row["y2"] - side) / 2)), max(0, shape[0] - side))
    return (left, top, left + side, top + side), SIDE / side


def _rows_in_window(frame: pl.DataFrame, image: int, window: tuple[int, int, int, int]) -> pl.DataFrame:
    """Rows of an image whose boxes reach into the window."""
    left, top, right, bottom = window
    x = (pl.col("x2") > left) & (pl.col("x1") < right)
    return frame.filter((pl.col("image") == image) & x & (pl.col("y2") > top) & (pl.col("y1") < bottom))


def _draw_panel(
    image: NDArray[np.uint8],
    window: tuple[int, int, int, int],
    scale: float,
    labels: pl.DataFrame,
    near: pl.DataFrame,
    mine: dict[str, Any] | None,
    names: dict[int, str],
) -> NDArray[np.uint8]:
    """The window with labels in white and detections in their classes' colors, `mine` above the others."""
    left, top, right, bottom = window
    part = np.full((bottom - top, right - left, 3), 114, np.uint8)
    seen = image[top:bottom, left:right]
    part[: seen.shape[0], : seen.shape[1]] = seen
    panel = np.asarray(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)
    move = np.array([left, top], np.float32)

    def shown(points: Any) -> NDArray[np.float32]:
        moved: NDArray[np.float32] = (np.asarray(points, np.float32).reshape(-1, 2) - move) * np.float32(scale)
        return moved

    for label in labels.iter_rows(named=True):
        corners = shown([[label["x1"], label["y1"]], [label["x2"], label["y2"]]])
        if "angle" in label:
            _draw_rotated_box(panel, label, shown, WHITE, width=1)
        else:
            _draw_box(panel, corners, WHITE)
        _draw_tag(panel, str(names.get(label["class"], label["class"])), (corners[0, 0], corners[1, 1]), WHITE)
    shape = (image.shape[0], image.shape[1])
    for found in [*near.sort("score").iter_rows(named=True), *([mine] if mine else [])]:
        ink = class_color(found["class"])
        _draw_detection(panel, found, shown, ink, shape, width=3 if found is mine else 1)
        text = f"{names.get(found['class'], found['class'])} {found['score']:.2f}"
        _draw_tag(panel, text, tuple(shown([found["x1"], found["y1"]])[0]), ink, above=True)
    return panel


def _draw_tag(
    panel: NDArray[np.uint8], text: str, place: tuple[float, float], ink: tuple[int, int, int], *, above: bool = False
) -> None:
    """A name on a patch of color, moved into the panel, below a place or above it."""
    (across, up), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, 1)
    high = up + below
    left = min(max(0, round(float(place[0]))), SIDE - across - 2)
    top = min(max(0, round(float(place[1])) - (high if above else 0)), SIDE - high)
    cv2.rectangle(panel, (left, top), (left + across + 1, top + high), ink, -1)
    # Luma of ITU-R BT.601 decides between black and white letters.
    letters = (0, 0, 0) if 0.299 * ink[2] + 0.587 * ink[1] + 0.114 * ink[0] > 128 else WHITE
    cv2.putText(panel, text, (left + 1, top + up), cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, letters, 1, cv2.LINE_AA)


def _draw_box(panel: NDArray[np.uint8], corners: NDArray[np.float32], ink: tuple[int, int, int]) -> None:
    """An upright box given by two corners, without a name."""
    (left, top), (right, bottom) = np.round(corners).astype(int).tolist()
    cv2.rectangle(panel, (left, top), (right, bottom), ink, 1, cv2.LINE_AA)


def _draw_rotated_box(
    panel: NDArray[np.uint8], row: dict[str, Any], shown: Any, ink: tuple[int, int, int], *, width: int
) -> None:
    """A rotated box given by its center, sides and angle."""
    box = np.array([[row[name] for name in ("x", "y", "width", "height", "angle")]], np.float32)
    cv2.polylines(panel, [np.round(shown(xywhr_to_corners(box)[0])).astype(np.int32)], True, ink, width, cv2.LINE_AA)


def _draw_detection(
    panel: NDArray[np.uint8],
    found: dict[str, Any],
    shown: Any,
    ink: tuple[int, int, int],
    shape: tuple[int, int],
    *,
    width: int,
) -> None:
    """What a detection looks like: a mask's edge, a rotated box, or a box with keypoints where it has them."""
    if "mask" in found:
        from faster_coco_eval import mask as coder

        mask = coder.decode({"size": list(shape), "counts": found["mask"].encode()})
        edges, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        lines = [np.round(shown(edge + 0.5)).astype(np.int32) for edge in edges]
        cv2.polylines(panel, lines, True, ink, width, cv2.LINE_AA)
    elif "angle" in found:
        _draw_rotated_box(panel, found, shown, ink, width=width)
    else:
        left, top, right, bottom = shown([[found["x1"], found["y1"]], [found["x2"], found["y2"]]]).ravel().tolist()
        cv2.rectangle(panel, (round(left), round(top)), (round(right), round(bottom)), ink, width, cv2.LINE_AA)
        points = np.asarray(found.get("keypoints") or [], np.float32).reshape(-1, 3)
        for x, y in shown(points[:, :2]).tolist():
            cv2.circle(panel, (round(x), round(y)), 1 + width, ink, -1, cv2.LINE_AA)


def _draw_top_classes(image: NDArray[np.uint8], ranking: pl.DataFrame, names: dict[int, str]) -> NDArray[np.uint8]:
    """An image with its likeliest classes."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    panel = np.full((SIDE, SIDE, 3), 114, np.uint8)
    panel[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    for place, row in enumerate(ranking.head(3).iter_rows(named=True), 1):
        text = f"{names.get(row['class'], row['class'])} {row['score']:.2f}"
        _draw_tag(panel, text, (2, 2 + 20 * (place - 1)), class_color(row["class"]))
    return panel


# What changed between two runners: the objects one of them found and the other lost, the ones that hurt most first.


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
    "found": pl.Int32,
    "label": pl.Int32,
    "label_class": pl.String,
}

SAME_OBJECT_IOU = 0.5
"""Overlap from which two wrong detections of a class are the same error."""


def find_object_changes(reference: EvaluationLike, other: EvaluationLike, *, conf: float = 0.25) -> pl.DataFrame:
    """Objects won and lost.

    A labeled object is found where a detection of its class matches it at similarity 0.5 with a score of at least
    `conf`. An error is a detection as sure as that which matches no label; it is the same error as one of the other
    runner where class and box agree. For classify an image is won or lost as its likeliest class becomes right or
    wrong.

    Args:
        reference: An evaluation.
        other: An evaluation on the same images.
        conf: Smallest score that counts; what `predict` shows.

    Returns:
        One row a change, the worst first: `change` ("lost", "new error", "gained", "error gone"); `hurt`, how much surer
        the reference was of the right thing, or `other` of the wrong one (negative where it got better); path, image,
        class and name; the box of the label or the error; both scores (of the claim on the label, whatever its
        confidence; null for none); the rows in `detections` (`found_reference`, `found`) and `truths` (`label`) that it
        is about; and `beneath`, the class of the label that an error lies on, null where it lies on none.

    Raises:
        DataError: The two were judged on different images.
    """
    if not reference.per_image["path"].equals(other.per_image["path"]):
        raise DataError(
            "tell what changed between two evaluations",
            "they were judged on different images",
            "judge both on the same split, images and seed",
        )
    names = dict(reference.per_class.select("class", "name").iter_rows())
    if "rank" in reference.labels.columns:
        rows = _find_classification_changes(reference.labels, other.labels)
    else:
        rows = _find_label_changes(reference, other, conf) + _find_false_positive_changes(reference, other, conf)
    paths = reference.per_image["path"].to_list()
    told = [{**row, "path": paths[row["image"]], "name": names.get(row["class"], str(row["class"]))} for row in rows]
    return pl.DataFrame(told, schema=COLUMNS).sort("score_drop", descending=True, maintain_order=True)


def _find_classification_changes(before: pl.DataFrame, after: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for place, (old, new) in enumerate(zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=True)):
        if (old["rank"] == 1) != (new["rank"] == 1):
            rows.append(
                {
                    "change": "lost" if old["rank"] == 1 else "gained",
                    "score_drop": old["score"] - new["score"],
                    **{name: old[name] for name in ("image", "class")},
                    "score_reference": old["score"],
                    "score": new["score"],
                    "label": place,
                }
            )
    return rows


def _find_label_changes(reference: EvaluationLike, other: EvaluationLike, conf: float) -> list[dict[str, Any]]:
    """Labels that one runner finds and the other does not."""
    kind = _object_match_kind(reference)
    claims = [_match_labels(one.detections, one.labels, kind) for one in (reference, other)]
    scores = [_match_scores(one.detections, claim) for one, claim in zip((reference, other), claims, strict=True)]
    found = [score >= conf for score in scores]
    rows = []
    for label in np.flatnonzero(found[0] != found[1]).tolist():
        truth = reference.labels.row(label, named=True)
        rows.append(
            {
                "change": "lost" if found[0][label] else "gained",
                "score_drop": float(scores[0][label] - scores[1][label]),
                **{name: truth[name] for name in ("image", "class", "x1", "y1", "x2", "y2")},
                "score_reference": _value_or_none(scores[0][label], claims[0][label]),
                "score": _value_or_none(scores[1][label], claims[1][label]),
                "detection_reference": _value_or_none(int(claims[0][label]), claims[0][label]),
                "found": _value_or_none(int(claims[1][label]), claims[1][label]),
                "label": label,
            }
        )
    return rows


def _find_false_positive_changes(reference: EvaluationLike, other: EvaluationLike, conf: float) -> list[dict[str, Any]]:
    """Wrong detections that only one runner makes."""
    kind = _object_match_kind(reference)
    mine, theirs = (
        _select_false_positives(reference.detections, kind, conf),
        _select_false_positives(other.detections, kind, conf),
    )
    labels = reference.labels.partition_by("image", as_dict=True)
    names = dict(reference.per_class.select("class", "name").iter_rows())
    rows = []
    for change, ours, others, sign, place in (
        ("new error", theirs, mine, 1, ""),
        ("error gone", mine, theirs, -1, "_reference"),
    ):
        by_image = others.partition_by("image", as_dict=True)
        for row in ours.iter_rows(named=True):
            rest = by_image.get((row["image"],))
            if rest is not None:
                rest = rest.filter(pl.col("class") == row["class"])
                if len(rest) and box_iou(_box_array(pl.DataFrame([row])), _box_array(rest)).max() >= SAME_OBJECT_IOU:
                    continue
            rows.append(
                {
                    "change": change,
                    "score_drop": sign * row["score"],
                    **{name: row[name] for name in ("image", "class", "x1", "y1", "x2", "y2")},
                    f"score{place}": row["score"],
                    f"found{place}": row["row"],
                    "label_class": _find_label_class(row, labels.get((row["image"],)), names),
                }
            )
    return rows


def _find_label_class(error: dict[str, Any], labels: pl.DataFrame | None, names: dict[int, str]) -> str | None:
    """The class of the label that an error's box covers best, if it covers one."""
    if labels is None:
        return None
    overlap = box_iou(_box_array(pl.DataFrame([error])), _box_array(labels))[0]
    best = int(overlap.argmax())
    number = labels["class"][best]
    return names.get(number, str(number)) if overlap[best] >= SAME_OBJECT_IOU else None


def _object_match_kind(judged: EvaluationLike) -> str:
    """What objects are matched by here: the last of "B", "M", "P" that a task has, but "B" for rotated boxes."""
    kinds = [name[len("mAP50-95(") : -1] for name in judged.metrics if name.startswith("mAP50-95(")]
    return next((kind for kind in ("M", "P") if kind in kinds), "B")


def _match_labels(detections: pl.DataFrame, truths: pl.DataFrame, kind: str) -> NDArray[np.int64]:
    """For each label the row of the detection that claimed it at similarity 0.5, or -1."""
    hits = np.flatnonzero((detections[f"matched({kind})"].to_numpy() & 1) == 1)
    first = np.searchsorted(truths["image"].to_numpy(), detections["image"].to_numpy()[hits])
    claimed = np.full(len(truths), -1, np.int64)
    claimed[first + detections[f"object({kind})"].to_numpy()[hits]] = hits
    return claimed


def _match_scores(detections: pl.DataFrame, claims: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score of each label's claim, 0 where there is none."""
    scores = np.append(detections["score"].to_numpy().astype(np.float64), 0.0)
    return scores[claims]


def _select_false_positives(detections: pl.DataFrame, kind: str, conf: float) -> pl.DataFrame:
    """Sure detections that match no label."""
    rows = detections.with_row_index("row")
    return rows.filter((pl.col("score") >= conf) & ((pl.col(f"matched({kind})") & 1) == 0))


def _box_array(frame: pl.DataFrame) -> NDArray[np.float32]:
    return frame.select("x1", "y1", "x2", "y2").to_numpy().astype(np.float32)


def _value_or_none(value: Any, claim: int) -> Any:
    return None if claim < 0 else float(value) if not isinstance(value, int) else value
