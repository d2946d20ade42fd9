"""What changed between two runners: the objects one of them found and the other lost, the ones that hurt most first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.errors import DataError
from trtkit.tasks.boxes import box_iou

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.judgement.differences import Judged

__all__ = ["COLUMNS", "changes"]

COLUMNS = {
    "change": pl.String,
    "hurt": pl.Float64,
    "path": pl.String,
    "picture": pl.Int32,
    "class": pl.Int32,
    "name": pl.String,
    **dict.fromkeys(("x1", "y1", "x2", "y2"), pl.Float32),
    "score_reference": pl.Float32,
    "score": pl.Float32,
    "found_reference": pl.Int32,
    "found": pl.Int32,
    "label": pl.Int32,
    "beneath": pl.String,
}

ALIKE = 0.5
"""Overlap from which two wrong detections of a class are the same error."""


def changes(reference: Judged, other: Judged, *, conf: float = 0.25) -> pl.DataFrame:
    """Objects won and lost.

    A labelled object is found where a detection of its class matches it at similarity 0.5 with a score of at least
    `conf`. An error is a detection as sure as that which matches no label; it is the same error as one of the other
    runner where class and box agree. For classify a picture is won or lost as its likeliest class becomes right or
    wrong.

    Args:
        reference: An evaluation.
        other: An evaluation on the same pictures.
        conf: Smallest score that counts; what `predict` shows.

    Returns:
        One row a change, the worst first: `change` ("lost", "new error", "won", "error gone"); `hurt`, how much surer
        the reference was of the right thing, or `other` of the wrong one (negative where it got better); path, picture,
        class and name; the box of the label or the error; both scores (of the claim on the label, whatever its
        confidence; null for none); the rows in `detections` (`found_reference`, `found`) and `truths` (`label`) that it
        is about; and `beneath`, the class of the label that an error lies on, null where it lies on none.

    Raises:
        DataError: The two were judged on different pictures.
    """
    if not reference.per_picture["path"].equals(other.per_picture["path"]):
        raise DataError(
            "tell what changed between two evaluations",
            "they were judged on different pictures",
            "judge both on the same split, images and seed",
        )
    names = dict(reference.per_class.select("class", "name").iter_rows())
    if "rank" in reference.truths.columns:
        rows = _rankings(reference.truths, other.truths)
    else:
        rows = _objects(reference, other, conf) + _errors(reference, other, conf)
    paths = reference.per_picture["path"].to_list()
    told = [{**row, "path": paths[row["picture"]], "name": names.get(row["class"], str(row["class"]))} for row in rows]
    return pl.DataFrame(told, schema=COLUMNS).sort("hurt", descending=True, maintain_order=True)


def _rankings(before: pl.DataFrame, after: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for place, (old, new) in enumerate(zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=True)):
        if (old["rank"] == 1) != (new["rank"] == 1):
            rows.append(
                {
                    "change": "lost" if old["rank"] == 1 else "won",
                    "hurt": old["score"] - new["score"],
                    **{name: old[name] for name in ("picture", "class")},
                    "score_reference": old["score"],
                    "score": new["score"],
                    "label": place,
                }
            )
    return rows


def _objects(reference: Judged, other: Judged, conf: float) -> list[dict[str, Any]]:
    """Labels that one runner finds and the other does not."""
    kind = _kind(reference)
    claims = [_claims(one.detections, one.truths, kind) for one in (reference, other)]
    scores = [_scores(one.detections, claim) for one, claim in zip((reference, other), claims, strict=True)]
    found = [score >= conf for score in scores]
    rows = []
    for label in np.flatnonzero(found[0] != found[1]).tolist():
        truth = reference.truths.row(label, named=True)
        rows.append(
            {
                "change": "lost" if found[0][label] else "won",
                "hurt": float(scores[0][label] - scores[1][label]),
                **{name: truth[name] for name in ("picture", "class", "x1", "y1", "x2", "y2")},
                "score_reference": _present(scores[0][label], claims[0][label]),
                "score": _present(scores[1][label], claims[1][label]),
                "found_reference": _present(int(claims[0][label]), claims[0][label]),
                "found": _present(int(claims[1][label]), claims[1][label]),
                "label": label,
            }
        )
    return rows


def _errors(reference: Judged, other: Judged, conf: float) -> list[dict[str, Any]]:
    """Wrong detections that only one runner makes."""
    kind = _kind(reference)
    mine, theirs = _wrong(reference.detections, kind, conf), _wrong(other.detections, kind, conf)
    labels = reference.truths.partition_by("picture", as_dict=True)
    names = dict(reference.per_class.select("class", "name").iter_rows())
    rows = []
    for change, ours, others, sign, place in (
        ("new error", theirs, mine, 1, ""),
        ("error gone", mine, theirs, -1, "_reference"),
    ):
        by_picture = others.partition_by("picture", as_dict=True)
        for row in ours.iter_rows(named=True):
            rest = by_picture.get((row["picture"],))
            if rest is not None:
                rest = rest.filter(pl.col("class") == row["class"])
                if len(rest) and box_iou(_boxes(pl.DataFrame([row])), _boxes(rest)).max() >= ALIKE:
                    continue
            rows.append(
                {
                    "change": change,
                    "hurt": sign * row["score"],
                    **{name: row[name] for name in ("picture", "class", "x1", "y1", "x2", "y2")},
                    f"score{place}": row["score"],
                    f"found{place}": row["row"],
                    "beneath": _beneath(row, labels.get((row["picture"],)), names),
                }
            )
    return rows


def _beneath(error: dict[str, Any], labels: pl.DataFrame | None, names: dict[int, str]) -> str | None:
    """The class of the label that an error's box covers best, if it covers one."""
    if labels is None:
        return None
    overlap = box_iou(_boxes(pl.DataFrame([error])), _boxes(labels))[0]
    best = int(overlap.argmax())
    number = labels["class"][best]
    return names.get(number, str(number)) if overlap[best] >= ALIKE else None


def _kind(judged: Judged) -> str:
    """What objects are matched by here: the last of "B", "M", "P" that a task has, but "B" for rotated boxes."""
    kinds = [name[len("mAP50-95(") : -1] for name in judged.metrics if name.startswith("mAP50-95(")]
    return next((kind for kind in ("M", "P") if kind in kinds), "B")


def _claims(detections: pl.DataFrame, truths: pl.DataFrame, kind: str) -> NDArray[np.int64]:
    """For each label the row of the detection that claimed it at similarity 0.5, or -1."""
    hits = np.flatnonzero((detections[f"matched({kind})"].to_numpy() & 1) == 1)
    first = np.searchsorted(truths["picture"].to_numpy(), detections["picture"].to_numpy()[hits])
    claimed = np.full(len(truths), -1, np.int64)
    claimed[first + detections[f"object({kind})"].to_numpy()[hits]] = hits
    return claimed


def _scores(detections: pl.DataFrame, claims: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score of each label's claim, 0 where there is none."""
    scores = np.append(detections["score"].to_numpy().astype(np.float64), 0.0)
    return scores[claims]


def _wrong(detections: pl.DataFrame, kind: str, conf: float) -> pl.DataFrame:
    """Sure detections that match no label."""
    rows = detections.with_row_index("row")
    return rows.filter((pl.col("score") >= conf) & ((pl.col(f"matched({kind})") & 1) == 0))


def _boxes(frame: pl.DataFrame) -> NDArray[np.float32]:
    return frame.select("x1", "y1", "x2", "y2").to_numpy().astype(np.float32)


def _present(value: Any, claim: int) -> Any:
    return None if claim < 0 else float(value) if not isinstance(value, int) else value
