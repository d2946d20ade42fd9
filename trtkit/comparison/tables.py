"""Evaluations, times and files of several precisions, joined into one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.recipe import rounded_imgsz

if TYPE_CHECKING:
    from trtkit.backends import Passport
    from trtkit.calibration import Calibration
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = ["first_of", "headline", "joined", "labelled", "told"]

# Accuracies that decide, in the order they are told, and the rule each follows: the same detections give two APs that
# differ by up to 0.02, so that none is shown without its rule.
DECIDING = (
    ("mAP50-95(", "mAP50-95{} by Ultralytics' rule"),
    ("top1", "top-1 accuracy"),
    ("coco/AP", "coco/AP{} by pycocotools' rule"),
)
KINDS = ("(M)", "(P)", "(B)", "(R)")
"""What objects are matched by, that which decides a task first: its masks or keypoints before its boxes."""

TIMES = ("runs", "mean_ms", "std_ms", "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "picture_ms", "pictures_per_s")


def headline(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Column and readable name of the accuracies that decide, those of the kind that decides first.

    Args:
        metrics: `Evaluation.metrics`.
    """
    found = []
    for prefix, name in DECIDING:
        for column in metrics:
            tail = column[len(prefix.rstrip("(")) :]
            if column.startswith(prefix) and (not tail or tail.startswith("(")):
                readable = "mAP50-95(R) by exact overlap" if tail == "(R)" else name
                found.append((column, readable.format("" if tail in ("", "(B)") else tail)))
    return sorted(found, key=lambda pair: KINDS.index(_kind(pair[0])))


def first_of(metrics: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The accuracies of the kind that decides alone: masks of segment, keypoints of pose, else boxes or classes.

    Args:
        metrics: From `headline`.
    """
    return [(column, name) for column, name in metrics if _kind(column) == _kind(metrics[0][0])]


def _kind(column: str) -> str:
    return column[-3:] if column[-3:] in KINDS else "(B)"


def joined(
    made: Mapping[str, Mapping[str, Artifact]],
    judged: Mapping[str, Evaluation],
    timing: Timing,
    reference: str,
    deciding: Sequence[str],
    differences: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """One row a precision and batch.

    Args:
        made: Files by precision and format.
        judged: Evaluations by precision.
        timing: Times, labelled by precision.
        reference: The precision that changes are told against.
        deciding: Metrics to tell changes of.
        differences: `all_differences` of the evaluations, for the ends of the changes' intervals, else null.
    """
    base = judged[reference].metrics
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
                    for name in deciding
                    for tail, value in zip(
                        ("", " low", " high"),
                        (float(one.metrics[name] - base[name]), *ends.get((label, name), (None, None))),
                        strict=True,
                    )
                },
            }
            for label, one in judged.items()
        ],
        schema_overrides={f"delta {name} {end}": pl.Float64 for name in deciding for end in ("low", "high")},
    )
    files = pl.DataFrame([{"label": label, **_file_facts(files)} for label, files in made.items()], schema=FILES)
    times = timing.frame().select("label", "runner", "engine", "clock", "imgsz", "batch", "padded", *TIMES)
    whole = times.join(accuracy, on="label", maintain_order="left").join(files, on="label", maintain_order="left")
    order = {label: place for place, label in enumerate(made)}
    whole = whole.sort(pl.col("label").replace_strict(order, return_dtype=pl.Int64), "batch")
    front = ["label", "runner", "engine", "clock", "imgsz", "batch", "padded"]
    rest = [name for name in (*accuracy.columns, *TIMES, *FILES) if name not in front]
    return whole.select(*front, *rest).rename({"label": "precision"})


FILES = {
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


def labelled(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Frames by precision as one, with the precision in front."""
    return pl.concat(
        [frame.select(pl.lit(label).alias("precision"), pl.all()) for label, frame in frames.items()],
        how="diagonal_relaxed",
    )


# What a comparison knows beside its frames: the facts that its verdict and its report tell.


def told(
    model: Model,
    made: Mapping[str, Mapping[str, Artifact]],
    judged: Mapping[str, Evaluation],
    ranges: Calibration | None,
    imgsz: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """What no frame holds, JSON-ready.

    Args:
        model: What was compared.
        made: Files by precision and format.
        judged: Evaluations by precision.
        ranges: The calibration behind INT8, if there was one.
        imgsz: The picture size that was asked for, pixels.
    """
    reference = "fp32" if "fp32" in made else next(iter(made))
    first = judged[reference]
    passports = {label: files["engine"].passport for label, files in made.items() if "engine" in files}
    calibration = None
    if ranges is not None:
        calibration = {name: getattr(ranges, name) for name in ("algorithm", "percentile", "images", "split", "hash")}
    return {
        "model": model.stem,
        "task": model.task,
        "imgsz": list(made[reference]["onnx"].card.imgsz),
        "pictures": first.pictures,
        "skipped": list(first.skipped),
        "reference": reference,
        "metrics": [list(pair) for pair in headline(first.metrics)],
        "all_metrics": list(first.metrics),
        "target": next((passport.gpu or passport.sm for passport in passports.values() if passport), None),
        "engines": {label: _shown(passport) for label, passport in passports.items() if passport},
        "files": {label: {kind: str(file.path) for kind, file in files.items()} for label, files in made.items()},
        "calibration": calibration,
        "recipes": {
            label: {kind: file.recipe.to_dict() for kind, file in files.items()} for label, files in made.items()
        },
        "notes": _notes(model, imgsz, judged),
    }


def _notes(model: Model, imgsz: int | tuple[int, int] | None, judged: Mapping[str, Evaluation]) -> list[str]:
    notes = list(dict.fromkeys(note for one in judged.values() for note in one.notes))
    if imgsz is not None and (size := rounded_imgsz(imgsz, model.stride)) != rounded_imgsz(imgsz, 1):
        notes.append(f"imgsz {imgsz} was rounded up to {size[0]}x{size[1]}, a multiple of the stride {model.stride}")
    return notes


def _shown(passport: Passport) -> dict[str, Any]:
    """What a reader asks an engine for; the rest stays in its file."""
    names = ("tensorrt", "sm", "gpu", "driver", "batch", "dynamic", "plan_size", "build_seconds", "created")
    shown = {name: getattr(passport, name) for name in names if getattr(passport, name) not in ("", None)}
    return {**shown, "layers": len(passport.layers)} if passport.layers else shown
