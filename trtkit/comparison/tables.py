"""Tables of a comparison: evaluations, latencies and files of several precisions as one frame, and its facts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.errors import DataError, EngineError
from trtkit.recipe import format_label, round_imgsz

if TYPE_CHECKING:
    from trtkit.backends import Passport, Runner
    from trtkit.calibration import Calibration
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = [
    "comparison_facts",
    "comparison_frame",
    "concat_by_precision",
    "concat_layers",
    "leading_metrics",
    "primary_metrics",
    "time_layers",
]

# Primary metrics in the order of display, each named with its rule: two rules give APs that differ by up to 0.02 on the
# same detections.
PRIMARY = (
    ("mAP50-95(", "mAP50-95{} by Ultralytics' rule"),
    ("top1", "top-1 accuracy"),
    ("pycocotools/AP", "pycocotools/AP{} by pycocotools' rule"),
)
MATCH_KINDS = ("(M)", "(P)", "(B)", "(R)")
"""What objects are matched by; masks and keypoints are more important than boxes."""

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

FILE_COLUMNS = {
    "label": pl.String,
    "onnx_mb": pl.Float64,
    "engine_mb": pl.Float64,
    "build_s": pl.Float64,
    "export_s": pl.Float64,
}


def primary_metrics(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Column and readable name of the primary metrics, the most important match kind first.

    Args:
        metrics: `Evaluation.metrics`.
    """
    primary = []
    for prefix, name in PRIMARY:
        for column in metrics:
            suffix = column[len(prefix.rstrip("(")) :]
            if column.startswith(prefix) and (not suffix or suffix.startswith("(")):
                readable = "mAP50-95(R) by exact overlap" if suffix == "(R)" else name
                primary.append((column, readable.format("" if suffix in ("", "(B)") else suffix)))
    return sorted(primary, key=lambda pair: MATCH_KINDS.index(_match_kind(pair[0])))


def leading_metrics(metrics: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The primary metrics of the first match kind: masks of segment, keypoints of pose, else boxes or classes.

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
    """One row per precision and batch, as `Comparison.rows`.

    Args:
        artifacts: Files by precision and format; an engine of another maker has no ONNX file.
        evaluations: Evaluations by precision.
        timing: Latencies, labeled by precision.
        reference: The precision that changes refer to.
        primary: Columns of the metrics whose changes are listed.
        differences: `compute_all_differences` of the evaluations, for confidence intervals; None leaves them null.
    """
    base = evaluations[reference].metrics
    intervals = {}
    if differences is not None:
        for row in differences.filter(pl.col("scope") == "all").iter_rows(named=True):
            intervals[row["precision"], row["metric"]] = row["low"], row["high"]
    accuracy = pl.DataFrame(
        [
            {
                "label": label,
                **{name: float(value) for name, value in evaluation.metrics.items()},
                **{
                    f"delta {name}{suffix}": value
                    for name in primary
                    for suffix, value in zip(
                        ("", " low", " high"),
                        (float(evaluation.metrics[name] - base[name]), *intervals.get((label, name), (None, None))),
                        strict=True,
                    )
                },
            }
            for label, evaluation in evaluations.items()
        ],
        schema_overrides={f"delta {name} {end}": pl.Float64 for name in primary for end in ("low", "high")},
    )
    files = pl.DataFrame(
        [{"label": label, **_file_facts(by_format)} for label, by_format in artifacts.items()], schema=FILE_COLUMNS
    )
    latencies = timing.frame().select("label", "runner", "engine", "clock", "imgsz", "batch", "padded", *TIME_COLUMNS)
    joined = latencies.join(accuracy, on="label", maintain_order="left").join(files, on="label", maintain_order="left")
    order = {label: position for position, label in enumerate(artifacts)}
    joined = joined.sort(pl.col("label").replace_strict(order, return_dtype=pl.Int64), "batch")
    first = ["label", "runner", "engine", "clock", "imgsz", "batch", "padded"]
    rest = [name for name in (*accuracy.columns, *TIME_COLUMNS, *FILE_COLUMNS) if name not in first]
    return joined.select(*first, *rest).rename({"label": "precision"})


def _file_facts(by_format: Mapping[str, Artifact]) -> dict[str, Any]:
    engine = by_format.get("engine")
    return {
        "onnx_mb": (by_format["onnx"].size / 1e6 or None) if "onnx" in by_format else None,
        "engine_mb": None if engine is None else engine.size / 1e6 or None,
        "build_s": None if engine is None else engine.build_seconds,
        "export_s": sum(file.seconds for file in by_format.values()),
    }


def concat_by_precision(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Frames by precision as one frame whose first column is the precision.

    Args:
        frames: Frames by precision.
    """
    return pl.concat(
        [frame.select(pl.lit(label).alias("precision"), pl.all()) for label, frame in frames.items()],
        how="diagonal_relaxed",
    )


LAYER_RUNS = 20
"""Runs over which the layers of an engine are timed."""


def time_layers(runners: Mapping[str, Runner]) -> dict[str, pl.DataFrame]:
    """Time the layers of engines.

    Args:
        runners: Engines by precision; those without a layer table are left out, with a warning.

    Returns:
        `LayerTable.frame` without `share`, by precision.
    """
    from trtkit.inspection import read_layers

    layers = {}
    for precision, runner in runners.items():
        if not callable(getattr(runner, "layers", None)):
            continue
        try:
            layers[precision] = read_layers(runner, runs=LAYER_RUNS).frame.drop("share")
        except (DataError, EngineError) as error:
            # Other makers' engines may hold no layer names; the comparison is complete without them.
            warnings.warn(f"the layers of {format_label(precision)} can't be read: {error}", UserWarning, stacklevel=2)
    return layers


def concat_layers(layers: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Layers as one frame whose first column, `label`, is the precision of the engine; `precision` is that of a layer.

    Args:
        layers: From `time_layers`.
    """
    labeled = [frame.select(pl.lit(label).alias("label"), pl.all()) for label, frame in layers.items()]
    return pl.concat(labeled, how="diagonal_relaxed") if labeled else pl.DataFrame()


def comparison_facts(
    model: Model,
    artifacts: Mapping[str, Mapping[str, Artifact]],
    evaluations: Mapping[str, Evaluation],
    calibration: Calibration | None,
    imgsz: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """The facts of a comparison that no frame holds, JSON-ready.

    Args:
        model: The compared model.
        artifacts: Files by precision and format.
        evaluations: Evaluations by precision.
        calibration: The calibration of INT8, if there is one.
        imgsz: The requested image size, pixels.
    """
    reference = "fp32" if "fp32" in artifacts else next(iter(artifacts))
    first = evaluations[reference]
    passports = {label: files["engine"].passport for label, files in artifacts.items() if "engine" in files}
    calibration_facts = None
    if calibration is not None:
        names = ("algorithm", "percentile", "image_count", "split", "hash")
        calibration_facts = {name: getattr(calibration, name) for name in names}
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
        "calibration": calibration_facts,
        "recipes": {
            label: {kind: file.recipe.to_dict() for kind, file in files.items()} for label, files in artifacts.items()
        },
        "notes": _notes(model, imgsz, evaluations),
    }


def _notes(model: Model, imgsz: int | tuple[int, int] | None, evaluations: Mapping[str, Evaluation]) -> list[str]:
    notes = list(dict.fromkeys(note for evaluation in evaluations.values() for note in evaluation.notes))
    if imgsz is not None and (size := round_imgsz(imgsz, model.stride)) != round_imgsz(imgsz, 1):
        notes.append(f"imgsz {imgsz} was rounded up to {size[0]}x{size[1]}, a multiple of the stride {model.stride}")
    return notes


def _engine_facts(passport: Passport) -> dict[str, Any]:
    """The main facts of an engine; its file has the rest."""
    names = ("tensorrt", "sm", "gpu", "driver", "batch", "dynamic", "plan_size", "build_seconds", "created")
    facts = {name: getattr(passport, name) for name in names if getattr(passport, name) not in ("", None)}
    return {**facts, "layers": len(passport.layers)} if passport.layers else facts
