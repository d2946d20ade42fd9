"""Classification judged: is the true class the likeliest, or among the five likeliest?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.errors import DataError
from trtkit.judgement.objects import Judged, frame_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Labels
    from trtkit.tasks import Task
    from trtkit.tasks.classify import Ranking

__all__ = ["ClassJudge"]


class ClassJudge:
    """Collects rankings.

    Args:
        task: Says what to keep of a ranking.
        dataset: Whose class names.
    """

    def __init__(self, task: Task, dataset: Dataset) -> None:
        self.task = task
        self.dataset = dataset
        self.pictures: list[dict[str, Any]] = []
        self.found: list[dict[str, NDArray[Any]]] = []
        self.truths: list[dict[str, Any]] = []

    def add(self, path: Path, labels: Labels, prediction: Ranking) -> None:
        """Judge one picture.

        Args:
            path: Its file.
            labels: Its class.
            prediction: Probabilities of all classes.
        """
        number, true = len(self.pictures), int(labels.classes[0])
        rank = int(np.flatnonzero(prediction.order == true)[0]) + 1
        columns = self.task.columns(prediction)
        count = len(columns["rank"])
        self.found.append({"picture": np.full(count, number, np.int32), **columns, "right": columns["class"] == true})
        self.truths.append(
            {"picture": number, "class": true, "rank": rank, "score": float(prediction.probabilities[true])}
        )
        self.pictures.append(
            {
                "picture": number,
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

    def verdict(self) -> Judged:
        """Metrics and frames over all pictures added.

        Raises:
            DataError: There are none.
        """
        if not self.pictures:
            raise DataError(f"judge by {self.dataset.path}", "no picture was judged", "check the split")
        whole = {"picture": pl.Int32, "class": pl.Int32, "rank": pl.Int32, "score": pl.Float32}
        truths = pl.DataFrame(self.truths, schema=whole)
        first, five = pl.col("rank") == 1, pl.col("rank") <= 5
        names = {"class": list(self.dataset.names), "name": list(self.dataset.names.values())}
        per_class = (
            pl.DataFrame(names, schema={"class": pl.Int32, "name": pl.String})
            .join(
                truths.group_by("class").agg(
                    pictures=pl.len().cast(pl.Int64), instances=pl.len().cast(pl.Int64),
                    top1=first.mean(), top5=five.mean(),
                ),
                on="class", how="inner", maintain_order="left",
            )
        )  # fmt: skip
        return Judged(
            metrics={"top1": float((truths["rank"] == 1).sum() / len(truths)),
                     "top5": float((truths["rank"] <= 5).sum() / len(truths))},
            per_class=per_class,
            per_picture=pl.DataFrame(self.pictures, schema_overrides={"picture": pl.Int32}),
            detections=frame_of(self.found),
            truths=truths,
            confidence=0.0,
        )  # fmt: skip
