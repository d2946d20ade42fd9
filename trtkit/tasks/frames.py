"""Predictions of several pictures as one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.tasks.base import Detections, Prediction, Task

if TYPE_CHECKING:
    import polars as pl

__all__ = ["prediction_frame"]


def prediction_frame(
    task: Task, paths: Sequence[str], found: Sequence[Prediction], names: Mapping[int, str]
) -> pl.DataFrame:
    """One row an object, or one of the five likeliest classes of a picture.

    Args:
        task: Whose predictions they are.
        paths: What to call each picture.
        found: One prediction a picture, as `Runner.predict` gives them.
        names: The classes' names.

    Returns:
        Columns `path`, `class`, `name` and `score`, and what the task knows beside them: x1, y1, x2, y2 in pixels of
        the original picture; `mask` (COCO's run lengths), `keypoints` (x, y, visibility in turn), or x, y, width,
        height and angle (radians); `rank` for classify. A picture without objects has no row.
    """
    import polars as pl

    parts: list[dict[str, Any]] = []
    for path, one in zip(paths, found, strict=True):
        columns: dict[str, Any] = {}
        if isinstance(one, Detections):
            columns |= {"class": one.classes.astype(np.int32), "score": one.scores}
        columns |= task.columns(one)
        columns = {"class": columns.pop("class"), "score": columns.pop("score"), **columns}
        parts.append({"path": [path] * len(columns["class"]), **columns})
    kinds = {"path": pl.String, "class": pl.Int32, "score": pl.Float32}
    if not any(part["path"] for part in parts):
        return pl.DataFrame(schema={"path": pl.String, "class": pl.Int32, "name": pl.String, "score": pl.Float32})
    whole = pl.concat([pl.DataFrame(part, schema_overrides=kinds) for part in parts if part["path"]])
    named = pl.col("class").replace_strict(names, default=pl.col("class").cast(pl.String), return_dtype=pl.String)
    return whole.select("path", "class", named.alias("name"), pl.exclude("path", "class"))
