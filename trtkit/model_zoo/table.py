"""Zoo: the rows of many models, sizes, precisions and backends as one result, and the guide's tables of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.comparison.tables import primary_metrics
from trtkit.model_zoo.markdown import NOT_MEASURED, render_markdown
from trtkit.recipe import format_label
from trtkit.results import Provenance, Result
from trtkit.writing import write_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

    from trtkit.model_zoo.rows import RowJob

__all__ = ["Zoo", "make_row", "make_timings", "rows_frame", "timings_frame"]

COLUMNS: Mapping[str, Any] = {
    "model": pl.String, "task": pl.String, "imgsz": pl.String, "precision": pl.String, "backend": pl.String,
    "status": pl.String, "metric": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "delta": pl.Float64, "delta_low": pl.Float64, "delta_high": pl.Float64, "metrics": pl.String,
    "p50_ms": pl.Float64, "batch": pl.Int64, "size_mb": pl.Float64, "build_s": pl.Float64, "eval_images": pl.Int64,
    "skipped": pl.Int64, "keep": pl.List(pl.String), "excluded": pl.List(pl.String), "runner": pl.String,
    "gpu": pl.String, "gpu_uuid": pl.String, "driver": pl.String, "clocks": pl.String, "versions": pl.String,
    "model_hash": pl.String, "data_hash": pl.String, "calibration_hash": pl.String, "file_hash": pl.String,
    "file": pl.String, "command": pl.String, "error_code": pl.String, "error": pl.String,
}  # fmt: skip

TIMING_COLUMNS: Mapping[str, Any] = {
    "model": pl.String, "task": pl.String, "imgsz": pl.String, "precision": pl.String, "backend": pl.String,
    "gpu": pl.String, "batch": pl.Int64, "clock": pl.String, "runs": pl.Int64, "mean_ms": pl.Float64,
    "std_ms": pl.Float64, "min_ms": pl.Float64, "p50_ms": pl.Float64, "p90_ms": pl.Float64, "p99_ms": pl.Float64,
    "max_ms": pl.Float64, "image_ms": pl.Float64, "images_per_s": pl.Float64, "flags": pl.String,
}  # fmt: skip

KEY = ("model", "imgsz", "precision", "backend")
"""Columns that name a row."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Zoo(Result):
    """Accuracy, latency and size of many models, sizes, precisions and backends.

    Attributes:
        rows: One row per model, size, precision and backend: `status` ("done" or "failed", with `error_code` and
            `error`); `metric`, its `value` and 95 % confidence interval (`low`, `high`; bootstrap over images);
            `delta` against FP32 of the same model, size and backend, with its paired interval; all `metrics` as JSON;
            `p50_ms` of the whole batch `batch` (null without a GPU); `size_mb` (10^6 bytes); `keep` (the patterns
            given) and `excluded` (all nodes excluded from INT8, the reason in brackets); `gpu`, `driver`, `clocks`
            (MHz, JSON; `timed_sm` the lowest and highest while timed), `versions` (JSON), SHA-256 hashes, and the
            `command` that repeats the row.
        timings: One row per timed batch size: mean, std, min, p50, p90, p99 and max of the batch (ms), `image_ms`
            (mean / batch), and `flags`, what disturbed it ("" for nothing).
        about: All other facts, JSON-ready: split, seed, resamples, notes, command, python, and `is_guide`.
        provenance: Models, data, machine, versions, settings.
    """

    kind: ClassVar[str] = "zoo"

    rows: pl.DataFrame
    timings: pl.DataFrame
    about: Mapping[str, Any]
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """`rows`."""
        return self.rows

    @property
    def failed(self) -> pl.DataFrame:
        """The rows that failed."""
        return self.rows.filter(pl.col("status") == "failed")

    def plot(self) -> go.Figure:
        """Accuracy over latency, or over file size where no latency was measured, one panel per task."""
        from trtkit.plotting.zoo import zoo_figure

        return zoo_figure(self.rows)

    def guide_tables(self) -> dict[str, pl.DataFrame]:
        """The rows in the layout of Ultralytics' export guide, by "task, model, GPU".

        For each precision a row of the largest batch (there "Predict"), and one of the smallest with the accuracy on
        the split: mean, min and max in ms per image; null where nothing was timed.
        """
        tables: dict[str, pl.DataFrame] = {}
        done = self.rows.filter(pl.col("status") == "done")
        for (task, model, imgsz, backend, gpu), rows in done.group_by(
            "task", "model", "imgsz", "backend", "gpu", maintain_order=True
        ):
            lines = [line for row in rows.iter_rows(named=True) for line in self._guide_rows(row)]
            tables[f"{task}, {model} at {imgsz}, {gpu or backend}"] = pl.DataFrame(lines, infer_schema_length=None)
        return tables

    def _guide_rows(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        key = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(row[name])) for name in (*KEY, "task", "gpu"))
        timings = {one["batch"]: one for one in self.timings.filter(key).iter_rows(named=True)}
        batches = sorted(timings) or sorted({self.about["batch"][0], self.about["batch"][-1]})
        metrics = json.loads(row["metrics"])
        names = [name for name in GUIDE_METRICS if name in metrics]
        lines = []
        for test, batch in (("predict", batches[-1]), (self.about["split"], batches[0])):
            timing = timings.get(batch)
            lines.append(
                {
                    "precision": format_label(row["precision"]),
                    "test": test,
                    **{f"{name} ms": timing and timing[f"{name}_ms"] / batch for name in ("mean", "min", "max")},
                    **{name: None if test == "predict" else metrics[name] for name in names},
                    "batch": batch,
                    "imgsz": row["imgsz"],
                }
            )
        return lines

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Rows and timings."""
        return {"zoo": self.rows, "timings": self.timings}

    def facts(self) -> Mapping[str, Any]:
        """`about`, and rows and timings again, for readers of the JSON."""
        return {
            **self.about,
            "rows": [
                {**row, **{name: row[name] and json.loads(row[name]) for name in JSON_COLUMNS}}
                for row in self.rows.iter_rows(named=True)
            ],
            "timings": self.timings.to_dicts(),
        }

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """The inverse of `tables` and `facts`."""
        about = {name: value for name, value in facts.items() if name not in ("rows", "timings")}
        return cls(rows=tables["zoo"], timings=tables["timings"], about=about, provenance=provenance)

    def write_files(self, folder: Path) -> None:
        """Write JSON and tables, and `zoo.md`."""
        super().write_files(folder)
        write_bytes(folder / MARKDOWN, self.to_markdown().encode())

    @classmethod
    def list_files(cls, folder: str | Path) -> list[str]:
        """As `Result.list_files`, with `zoo.md`."""
        names = super().list_files(folder)
        return [*names, MARKDOWN] if names else []

    def to_markdown(self) -> str:
        """The tables as a page in Markdown."""
        return render_markdown(self)

    def __repr__(self) -> str:
        done = self.rows.filter(pl.col("status") == "done")
        models, failed = self.rows["model"].n_unique(), len(self.failed)
        lines = [f"Zoo of {models} model{'' if models == 1 else 's'}: {len(done)} rows, {failed} failed"]
        for row in self.rows.iter_rows(named=True):
            name = f"{row['model']} {row['imgsz']} {format_label(row['precision'])} {row['backend']}"
            if row["status"] == "failed":
                lines.append(f"  {name}: {row['error_code']}")
                continue
            ms = NOT_MEASURED if row["p50_ms"] is None else f"{row['p50_ms']:.3g} ms"
            lines.append(
                f"  {name}: {row['metric']} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}], p50 {ms}, "
                f"{row['size_mb']:.1f} MB"
            )
        return "\n".join(lines)


MARKDOWN = "zoo.md"
JSON_COLUMNS = ("metrics", "clocks", "versions")
"""Columns of JSON text."""

GUIDE_METRICS = (
    *(f"{name}({kind})" for kind in "BMP" for name in ("mAP50", "mAP50-95")),
    *("top1", "top5"),
)
"""Metrics of the guide's tables, in its order."""


def make_row(
    job: RowJob, facts: Mapping[str, Any], intervals: Mapping[str, float | None], folder: str
) -> dict[str, Any]:
    """One row of `Zoo.rows`.

    Args:
        job: The row's job.
        facts: What `run_row` returned; of a failed row "error_code" and "error".
        intervals: `value`, `low`, `high`, `delta`, `delta_low` and `delta_high` of the metric.
        folder: The row's folder, relative to the zoo's.
    """
    first = {
        "model": job.stem, "task": job.task, "imgsz": job.size, "precision": job.precision, "backend": job.backend,
        "keep": list(job.settings["keep"]), "model_hash": job.model_hash or None, "command": job.command,
    }  # fmt: skip
    if "error_code" in facts:
        return {**first, "status": "failed", **facts}
    gpu = (facts["machine"].get("gpus") or [{}])[0]
    timing = facts["timings"][0] if facts["timings"] else None
    return {
        **first,
        "status": "done",
        "metric": primary_metrics(facts["metrics"])[0][0],
        **intervals,
        "metrics": json.dumps(facts["metrics"]),
        "p50_ms": timing and timing["p50_ms"],
        "batch": timing and timing["batch"],
        "size_mb": facts["bytes"] / 1e6,
        "excluded": [f"{name} ({reason})" for name, reason in sorted(facts["kept"].items())],
        **{name: facts[name] for name in ("build_s", "eval_images", "skipped", "runner", "data_hash", "file_hash")},
        "calibration_hash": facts["calibration_hash"],
        "gpu": gpu.get("name"),
        "gpu_uuid": gpu.get("uuid"),
        "driver": gpu.get("driver"),
        "clocks": json.dumps({**dict(gpu["clocks"]), "timed_sm": facts["timed_sm"]}) if "clocks" in gpu else None,
        "versions": json.dumps(facts["versions"], sort_keys=True),
        "file": f"{folder}/{facts['file']}",
    }


def make_timings(row: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `Zoo.timings` of one row of `Zoo.rows`.

    Args:
        row: From `make_row`.
        facts: What `run_row` returned.
    """
    names = (*KEY, "task", "gpu")
    return [
        {**{name: row.get(name) for name in names}, **{name: one[name] for name in TIMING_COLUMNS if name not in names}}
        for one in facts.get("timings", ())
    ]


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """`Zoo.rows` of rows from `make_row`."""
    return pl.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], schema=dict(COLUMNS))


def timings_frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """`Zoo.timings` of rows from `make_timings`."""
    return pl.DataFrame(list(rows), schema=dict(TIMING_COLUMNS))
