"""Published GPU latencies of the same model, for comparisons that ran no engine: a reference, never a measurement.

The records of `benchmarks/engines.py` are shipped as `published_latencies.json`. A model has a record if its hash has
one, or else if its name, task and image size have; then other weights of the same network were timed, which is said.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.comparison.verdict import explain_unmeasured
from trtkit.html import asset
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from trtkit.comparison.comparison import Comparison

__all__ = ["PublishedLatencies", "describe_unmeasured", "find_published"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PublishedLatencies:
    """Latencies of a model that were published.

    Attributes:
        model: Name of the timed model.
        same_weights: Whether the very weights were timed; False for a model of the same name, task and image size.
        imgsz: Side of its images, pixels.
        gpu: The GPU, with driver and CUDA version.
        versions: Versions of TensorRT and trtkit.
        command: The command that measured.
        record: The record in trtkit's repository.
        rows: One row per precision and batch: precision, batch, opt_level, runs, p50_ms and p99_ms (per batch).
    """

    model: str
    same_weights: bool
    imgsz: int
    gpu: str
    versions: Mapping[str, str]
    command: str
    record: str
    rows: pl.DataFrame

    @property
    def source(self) -> str:
        """GPU and TensorRT in a few words, for legends."""
        return f"{self.gpu.partition(' (')[0]}, TensorRT {self.versions['TensorRT']}"

    @property
    def subject(self) -> str:
        """What was timed."""
        whose = "this model" if self.same_weights else f"a {self.model} of other weights"
        return f"{whose} at {self.imgsz}x{self.imgsz}"

    @property
    def latencies(self) -> str:
        """The medians in words."""
        parts = []
        for batch in self.rows["batch"].unique().sort():
            values = self.rows.filter(pl.col("batch") == batch).select("precision", pl.col("p50_ms") / batch).rows()
            parts.append(f"batch {batch}: {', '.join(f'{format_label(name)} {ms:.3g}' for name, ms in values)}")
        return f"p50 ms/image at {'; '.join(parts)}"

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        levels = ", ".join(str(level) for level in self.rows["opt_level"].unique().sort())
        return (
            f"Published, not measured here: {self.subject} on {self.gpu}, TensorRT {self.versions['TensorRT']}, "
            f"optimization level {levels}, {self.latencies}; {self.command} ({self.record})."
        )


def find_published(
    *, model: str, task: str, imgsz: Sequence[int], model_hash: str, precisions: Sequence[str]
) -> PublishedLatencies | None:
    """Find the published latencies of a model: by its hash, or else by name, task and image size.

    Of several records the one with the most latencies is taken, so that all are of one GPU.

    Args:
        model: Name of the model, without suffix.
        task: Its task.
        imgsz: (height, width), pixels.
        model_hash: `Model.hash`.
        precisions: The precisions to find.

    Returns:
        None if nothing of it was published.
    """
    found: list[PublishedLatencies] = []
    for record in _read_records():
        for same_weights in (True, False):
            rows = [
                row
                for row in record["rows"]
                if row["precision"] in precisions
                and [row["imgsz"]] * 2 == list(imgsz)
                and (row["model_hash"] == model_hash if same_weights else (row["model"], row["task"]) == (model, task))
            ]
            if not rows:
                continue
            columns = ("precision", "batch", "opt_level", "runs", "p50_ms", "p99_ms")
            order = {name: place for place, name in enumerate(precisions)}
            rows.sort(key=lambda row: (row["batch"], order[row["precision"]]))
            facts = {name: record[name] for name in ("gpu", "versions", "command", "record")}
            found.append(
                PublishedLatencies(
                    model=rows[0]["model"],
                    same_weights=same_weights,
                    imgsz=rows[0]["imgsz"],
                    rows=pl.DataFrame([{name: row[name] for name in columns} for row in rows]),
                    **facts,
                )
            )
            break
    return max(found, key=lambda one: (one.same_weights, len(one.rows)), default=None)


def describe_unmeasured(comparison: Comparison) -> dict[str, Any]:
    """Why a comparison has no latencies of engines, and published ones instead: keyword arguments of its figures.

    Args:
        comparison: The comparison.
    """
    published = comparison.published
    return {
        "unmeasured": explain_unmeasured(comparison.about),
        "published": None if published is None else published.rows,
        "source": "" if published is None else f"{published.subject}, {published.source}",
    }


@functools.cache
def _read_records() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(asset("comparison/published_latencies.json"))
    return records
