"""Evaluations, times and files of several precisions, joined into one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.recipe import round_imgsz

if TYPE_CHECKING:
    from trtkit.backends import Passport
    from trtkit.calibration import Calibration
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = ["comparison_facts", "comparison_frame", "concat_by_precision", "leading_metrics", "primary_metrics"]

# Accuracies that decide, in the order they are told, and the rule each follows: the same detections give two APs that
# differ by up to 0.02, so that none is shown without its rule.
PRIMARY = (
    ("mAP50-95(", "mAP50-95{} by Ultralytics' rule"),
    ("top1", "top-1 accuracy"),
    ("pycocotools/AP", "pycocotools/AP{} by pycocotools' rule"),
)
MATCH_KINDS = ("(M)", "(P)", "(B)", "(R)")
"""What objects are matched by, that which decides a task first: its masks or keypoints before its boxes."""

TIME_COLUMNS = (
    "runs",
    "mean_ms",
    "std_ms",
    "min_ms",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "max_ms",
    "image_ms",
    "images_per_s",
)


def primary_metrics(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Column and readable name of the accuracies that decide, those of the kind that decides first.

    Args:
        metrics: `Evaluation.metrics`.
    """
    found = []
    for prefix, name in PRIMARY:
        for column in metrics:
            tail = column[len(prefix.rstrip("(")) :]
            if column.startswith(prefix) and (not tail or tail.startswith("(")):
                readable = "mAP50-95(R) by exact overlap" if tail == "(R)" else name
                found.append((column, readable.format("" if tail in ("", "(B)") else tail)))
    return sorted(found, key=lambda pair: MATCH_KINDS.index(_match_kind(pair[0])))


def leading_metrics(metrics: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The accuracies of the kind that decides alone: masks of segment, keypoints of pose, else boxes or classes.

    Args:
        metrics: From `primary_metrics`.
    """
    return [(column, name) for column, name in metrics if _match_kind(column) == _match_kind(metrics[0][0])]


def _match_kind(column: str) -> str:
    return column[-3:] if column[-3:] in MATCH_KINDS else "(B)"


def comparison_frame(
    artifacts: Mapping[str, Mapping[str, Artifact]],
    evaluations: Mapping[str, Evaluation],
    timing: Timing,
    reference: str,
    primary: Sequence[str],
    differences: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """One row a precision and batch.

    Args:
        artifacts: Files by precision and format.
        evaluations: Evaluations by precision.
        timing: Times, labeled by precision.
        reference: The precision that changes are told against.
        primary: Metrics to tell changes of.
        differences: `all_differences` of the evaluations, for the ends of the changes' intervals, else null.
    """
    base = evaluations[reference].metrics
    ends = {}
    if differences is not None:
        for row in differences.filter(pl.col("scope") == "all").iter_rows(named=True):
            ends[row["precision"], row["metric"]] = row["low"], row["high"]
    accuracy = pl.DataFrame(
        [
            {
                "label": label,
                **{name: float(value) for name, value in one.metrics.items()},
                **{
                    f"delta {name}{tail}": value
                    for name in primary
                    for tail, value in zip(
                        ("", " low", " high"),
                        (float(one.metrics[name] - base[name]), *ends.get((label, name), (None, None))),
                        strict=True,
                    )
                },
            }
            for label, one in evaluations.items()
        ],
        schema_overrides={f"delta {name} {end}": pl.Float64 for name in primary for end in ("low", "high")},
    )
    files = pl.DataFrame(
        [{"label": label, **_file_facts(files)} for label, files in artifacts.items()], schema=FILE_COLUMNS
    )
    times = timing.frame().select("label", "runner", "engine", "clock", "imgsz", "batch", "padded", *TIME_COLUMNS)
    whole = times.join(accuracy, on="label", maintain_order="left").join(files, on="label", maintain_order="left")
    order = {label: place for place, label in enumerate(artifacts)}
    whole = whole.sort(pl.col("label").replace_strict(order, return_dtype=pl.Int64), "batch")
    front = ["label", "runner", "engine", "clock", "imgsz", "batch", "padded"]
    rest = [name for name in (*accuracy.columns, *TIME_COLUMNS, *FILE_COLUMNS) if name not in front]
    return whole.select(*front, *rest).rename({"label": "precision"})


FILE_COLUMNS = {
    "label": pl.String,
    "onnx_mb": pl.Float64,
    "engine_mb": pl.Float64,
    "build_s": pl.Float64,
    "export_s": pl.Float64,
}


def _file_facts(files: Mapping[str, Artifact]) -> dict[str, Any]:
    engine = files.get("engine")
    return {
        "onnx_mb": files["onnx"].size / 1e6,
        "engine_mb": None if engine is None else engine.size / 1e6,
        "build_s": None if engine is None else engine.build_seconds,
        "export_s": sum(file.seconds for file in files.values()),
    }


def concat_by_precision(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Frames by precision as one, with the precision in front."""
    return pl.concat(
        [frame.select(pl.lit(label).alias("precision"), pl.all()) for label, frame in frames.items()],
        how="diagonal_relaxed",
    )


# What a comparison knows beside its frames: the facts that its verdict and its report tell.


def comparison_facts(
    model: Model,
    artifacts: Mapping[str, Mapping[str, Artifact]],
    evaluations: Mapping[str, Evaluation],
    calibration: Calibration | None,
    imgsz: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """What no frame holds, JSON-ready.

    Args:
        model: What was compared.
        artifacts: Files by precision and format.
        evaluations: Evaluations by precision.
        calibration: The calibration behind INT8, if there was one.
        imgsz: The image size that was asked for, pixels.
    """
    reference = "fp32" if "fp32" in artifacts else next(iter(artifacts))
    first = evaluations[reference]
    passports = {label: files["engine"].passport for label, files in artifacts.items() if "engine" in files}
    calibrated = None
    if calibration is not None:
        calibrated = {
            name: getattr(calibration, name) for name in ("algorithm", "percentile", "images", "split", "hash")
        }
    return {
        "model": model.stem,
        "task": model.task,
        "imgsz": list(artifacts[reference]["onnx"].info.imgsz),
        "eval_images": first.image_count,
        "skipped": list(first.skipped),
        "reference": reference,
        "metrics": [list(pair) for pair in primary_metrics(first.metrics)],
        "all_metrics": list(first.metrics),
        "target": next((passport.gpu or passport.sm for passport in passports.values() if passport), None),
        "engines": {label: _engine_facts(passport) for label, passport in passports.items() if passport},
        "files": {label: {kind: str(file.path) for kind, file in files.items()} for label, files in artifacts.items()},
        "calibration": calibrated,
        "recipes": {
            label: {kind: file.recipe.to_dict() for kind, file in files.items()} for label, files in artifacts.items()
        },
        "notes": _notes(model, imgsz, evaluations),
    }


def _notes(model: Model, imgsz: int | tuple[int, int] | None, judged: Mapping[str, Evaluation]) -> list[str]:
    notes = list(dict.fromkeys(note for one in judged.values() for note in one.notes))
    if imgsz is not None and (size := round_imgsz(imgsz, model.stride)) != round_imgsz(imgsz, 1):
        notes.append(f"imgsz {imgsz} was rounded up to {size[0]}x{size[1]}, a multiple of the stride {model.stride}")
    return notes


def _engine_facts(passport: Passport) -> dict[str, Any]:
    """What a reader asks an engine for; the rest stays in its file."""
    names = ("tensorrt", "sm", "gpu", "driver", "batch", "dynamic", "plan_size", "build_seconds", "created")
    shown = {name: getattr(passport, name) for name in names if getattr(passport, name) not in ("", None)}
    return {**shown, "layers": len(passport.layers)} if passport.layers else shown
