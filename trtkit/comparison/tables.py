"""What a comparison says: evaluations, latencies and files of several precisions as one frame, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.backends import get_title
from trtkit.recipe import format_label, round_imgsz

if TYPE_CHECKING:
    from trtkit.backends import Passport
    from trtkit.calibration import Calibration
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = [
    "NEGLIGIBLE_DELTA",
    "comparison_facts",
    "comparison_frame",
    "concat_by_precision",
    "leading_metrics",
    "primary_metrics",
    "verdict_sentences",
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
        "onnx_mb": by_format["onnx"].size / 1e6 if "onnx" in by_format else None,
        "engine_mb": None if engine is None else engine.size / 1e6,
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


# The verdict: accuracy, latency, file sizes, engines and calibration in sentences.

NEGLIGIBLE_DELTA = 0.00005
"""Changes of AP below this are shown as none: the fourth digit depends on the order of equal scores."""

MAX_LATENCY_VARIATION = 0.1
"""Standard deviation over mean from which latencies are unreliable."""

FEW_IMAGES = 500
"""Eval images below which differences of a few thousandths can be noise."""


def verdict_sentences(rows: pl.DataFrame, about: Mapping[str, Any]) -> tuple[str, ...]:
    """The verdict on a comparison.

    Args:
        rows: `Comparison.frame()`.
        about: `Comparison.about`.

    Returns:
        Sentences, the most important first.
    """
    once = rows.unique("precision", keep="first", maintain_order=True)
    reference = once.row(by_predicate=_has_precision(about["reference"]), named=True)
    others = [row for row in once.iter_rows(named=True) if row["precision"] != about["reference"]]
    return (
        *(_describe_accuracy(row, reference, leading_metrics(about["metrics"])) for row in others),
        *_describe_images(about),
        *_describe_latency(rows, about["reference"]),
        _describe_sizes(once, about),
        _describe_engines(rows, about),
        *_describe_calibration(about),
        *_describe_candidates(about),
        *(f"Note: {note}." for note in about["notes"]),
    )


def _has_precision(precision: str) -> pl.Expr:
    import polars as pl

    return pl.col("precision") == precision


def _describe_accuracy(row: Mapping[str, Any], reference: Mapping[str, Any], metrics: Sequence[Sequence[str]]) -> str:
    """One precision against the reference, by every primary metric."""
    parts = []
    for column, name in metrics:
        delta = row[column] - reference[column]
        low, high = row.get(f"delta {column} low"), row.get(f"delta {column} high")
        verb = (
            "keeps" if abs(delta) < NEGLIGIBLE_DELTA else f"loses {-delta:.4f}" if delta < 0 else f"gains {delta:.4f}"
        )
        interval = ""
        if low is not None and high is not None and (low, high) != (0, 0):
            change = f"change {delta:+.4f}, " if abs(delta) >= NEGLIGIBLE_DELTA else ""
            interval = f"; {change}95 % confidence interval {low:+.4f} to {high:+.4f}"
            if low <= 0 <= high and abs(delta) >= NEGLIGIBLE_DELTA:
                verb = "has no significant loss of"
        parts.append(f"{verb} {name} ({reference[column]:.4f} to {row[column]:.4f}{interval})")
    return f"{format_label(row['precision'])} {_join_words(parts)}."


def _describe_images(about: Mapping[str, Any]) -> list[str]:
    images, skipped = about["eval_images"], len(about["skipped"])
    noise = "; with so few, differences of a few thousandths can be noise" if images < FEW_IMAGES else ""
    sentences = [f"Accuracy is measured on {_count_of(images, 'image')} of {about['split']}{noise}."]
    if skipped:
        sentences.append(f"{_count_of(skipped, 'image')} {'was' if skipped == 1 else 'were'} skipped.")
    return sentences


def _describe_latency(rows: pl.DataFrame, reference: str) -> list[str]:
    """Mean latency per image against the reference, by batch."""
    sentences = []
    for size in rows["batch"].unique(maintain_order=True):
        of_batch = list(rows.filter(rows["batch"] == size).iter_rows(named=True))
        base = next(row for row in of_batch if row["precision"] == reference)
        latencies = [
            f"{format_label(row['precision'])} {row['image_ms']:.2f} ms/image{_format_ratio(row, base)}"
            for row in of_batch
        ]
        names = _join_words(list(dict.fromkeys(row["runner"] for row in of_batch)))
        sentences.append(f"Batch {size}, {names}: {', '.join(latencies)}.")
    variation = (rows["std_ms"] / rows["mean_ms"]).fill_null(0).max()
    if isinstance(variation, float) and variation > MAX_LATENCY_VARIATION:
        sentences.append(
            f"Latency varied by up to {100 * variation:.0f} % (std/mean): the machine was busy; "
            "rerun before relying on it."
        )
    if not rows["engine"].all():
        sentences.append(
            "This is not TensorRT's latency and does not predict it: CPUs gain little or nothing from FP16 and INT8 "
            "graphs, which are made for GPUs."
        )
    return sentences


def _format_ratio(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    return "" if row is base else f" ({row['mean_ms'] / base['mean_ms']:.2f}x {format_label(base['precision'])})"


def _describe_sizes(once: pl.DataFrame, about: Mapping[str, Any]) -> str:
    def listed(column: str) -> str:
        sizes = once.filter(once[column].is_not_null()).select("precision", column)
        return ", ".join(f"{format_label(name)} {size:.1f} MB" for name, size in sizes.iter_rows())

    if once["engine_mb"].null_count() == len(once):
        return f"ONNX files: {listed('onnx_mb')}."
    # What makes up its plans: docs/benchmarks.md.
    is_rtx = (about["builder"] or "").startswith(get_title("tensorrt_rtx"))
    note = "; those of TensorRT-RTX hold the source code of their kernels, of which INT8 has the most" if is_rtx else ""
    return f"ONNX files: {listed('onnx_mb')}; engines: {listed('engine_mb')}{note}."


def _describe_engines(rows: pl.DataFrame, about: Mapping[str, Any]) -> str:
    """What was built, and whether it ran."""
    with_engine = rows.filter(rows["engine_mb"].is_not_null())["precision"].unique(maintain_order=True).to_list()
    # An engine of another maker has no ONNX file here.
    foreign = rows.filter(rows["onnx_mb"].is_null())["precision"].to_list()
    built = [label for label in with_engine if label not in foreign]
    if not built:
        return f"No TensorRT engine was built: {about['why_not_built'] or 'not requested'}."
    names = _join_words([format_label(name) for name in built])
    result = "; they ran here" if rows["engine"].all() else f"; they did not run here: {about['why_not_run']}"
    return f"{about['builder']} built the {names} engines for {about['target']}{result}."


def _describe_calibration(about: Mapping[str, Any]) -> list[str]:
    """The calibration of INT8, and whether its images are those of the evaluation."""
    calibration = about["calibration"]
    if calibration is None:
        return []
    percentile = calibration.get("percentile")
    algorithm = calibration["algorithm"] + ("" if percentile is None else f" {percentile:g}")
    images = _count_of(calibration["image_count"], "image")
    sentence = f"INT8 was calibrated on {images} of {calibration['split']} ({algorithm})"
    if calibration["split"] == about["split"]:
        sentence += ": the same split is used for calibration and evaluation, so INT8 accuracy is optimistic"
    return [sentence + "."]


def _describe_candidates(about: Mapping[str, Any]) -> list[str]:
    """What each candidate is, and what in it does not suit TensorRT."""
    sentences = []
    # Comparisons of trtkit 0.1.0 have no candidates.
    for name, facts in about.get("candidates", {}).items():
        output = facts["output_format"].replace("_", " ")
        sentence = f"{name} is {facts['source']} in {facts['precision'].upper()}, with {output} output"
        if facts["placement"]:
            sentence += f"; its Q/DQ does not suit TensorRT: {'; '.join(facts['placement'])}"
        sentences.append(f"{sentence}.")
    return sentences


def _count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _join_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
