"""Findings of a comparison in sentences: accuracy, latency, file sizes, engines and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtkit.backends import get_title
from trtkit.comparison.tables import leading_metrics
from trtkit.comparison.verdict import choose_baseline
from trtkit.recipe import format_label

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NEGLIGIBLE_DELTA", "describe_findings"]

NEGLIGIBLE_DELTA = 0.00005
"""Changes of AP below this are shown as none: the fourth digit depends on the order of equal scores."""

MAX_LATENCY_VARIATION = 0.1
"""Standard deviation over mean from which latencies are unreliable."""


def describe_findings(
    rows: pl.DataFrame, about: Mapping[str, Any], thresholds: pl.DataFrame | None = None
) -> tuple[str, ...]:
    """What a comparison found, in sentences: the evidence behind its verdicts.

    Args:
        rows: `Comparison.frame()`.
        about: `Comparison.about`.
        thresholds: `Comparison.thresholds`; None or an empty frame says nothing of them.

    Returns:
        Sentences, the most important first.
    """
    once = rows.unique("precision", keep="first", maintain_order=True)
    reference = once.row(by_predicate=_has_precision(about["reference"]), named=True)
    others = [row for row in once.iter_rows(named=True) if row["precision"] != about["reference"]]
    return (
        *(_describe_accuracy(row, reference, leading_metrics(about["metrics"])) for row in others),
        *(() if thresholds is None or thresholds.is_empty() else _describe_thresholds(thresholds, about)),
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
            "does not change"
            if abs(delta) < NEGLIGIBLE_DELTA
            else f"loses {-delta:.4f}"
            if delta < 0
            else f"gains {delta:.4f}"
        )
        interval = ""
        if low is not None and high is not None and (low, high) != (0, 0):
            change = f"change {delta:+.4f}, " if abs(delta) >= NEGLIGIBLE_DELTA else ""
            interval = f"; {change}95 % confidence interval {low:+.4f} to {high:+.4f}"
            if low <= 0 <= high and abs(delta) >= NEGLIGIBLE_DELTA:
                verb = "has no significant change of"
        parts.append(f"{verb} {name} ({reference[column]:.4f} to {row[column]:.4f}{interval})")
    return f"{format_label(row['precision'])} {_join_words(parts)}."


def _describe_thresholds(thresholds: pl.DataFrame, about: Mapping[str, Any]) -> list[str]:
    """The confidence thresholds that give a precision FP16's precision and recall, where they differ."""
    conf, sentences = about["conf"], []
    for precision in thresholds["precision"].unique(maintain_order=True):
        mine = thresholds.filter(thresholds["precision"] == precision)
        baseline = format_label(choose_baseline(precision, about["recipes"], about["reference"]))
        label, parts = format_label(precision), []
        for target in ("recall", "precision"):
            rows = [row for row in mine.iter_rows(named=True) if row["target"] == target]
            of_all = next((row for row in rows if not row["name"]), None)
            if of_all is not None and of_all["differs"]:
                parts.append(
                    f"confidence {of_all['threshold']:.3f} gives the {target} that {baseline} has at {conf:g} "
                    f"({of_all['reference']:.4f}; {conf:g} gives {of_all['value']:.4f})"
                )
            classes = [f"{row['name']} {row['threshold']:.3f}" for row in rows if row["name"] and row["differs"]]
            if classes:
                parts.append(f"by class for {target}: {', '.join(classes)}")
        if parts:
            sentences.append(f"{label}: {'; '.join(parts)}.")
        else:
            sentences.append(f"{label} needs no other confidence threshold than {baseline}, {conf:g}.")
    return sentences


def _describe_images(about: Mapping[str, Any]) -> list[str]:
    images, skipped = about["eval_images"], len(about["skipped"])
    sentences = [f"Accuracy is measured on {_count_of(images, 'image')} of {about['split']}."]
    if skipped:
        sentences.append(f"{_count_of(skipped, 'image')} {'was' if skipped == 1 else 'were'} skipped.")
    return sentences


def _describe_latency(rows: pl.DataFrame, reference: str) -> list[str]:
    """Median latency per image against the reference, by batch."""
    sentences = []
    for size in rows["batch"].unique(maintain_order=True):
        of_batch = list(rows.filter(rows["batch"] == size).iter_rows(named=True))
        base = next(row for row in of_batch if row["precision"] == reference)
        latencies = [
            f"{format_label(row['precision'])} {row['p50_ms'] / size:.2f} ms/image{_format_ratio(row, base)}"
            for row in of_batch
        ]
        names = _join_words(list(dict.fromkeys(row["runner"] for row in of_batch)))
        sentences.append(f"Batch {size}, {names}, p50: {', '.join(latencies)}.")
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
    return "" if row is base else f" ({row['p50_ms'] / base['p50_ms']:.2f}x {format_label(base['precision'])})"


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
