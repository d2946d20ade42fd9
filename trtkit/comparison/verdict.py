"""What a comparison's numbers say, in sentences that claim no more than the numbers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtkit.comparison.tables import leading_metrics

if TYPE_CHECKING:
    import polars as pl

__all__ = ["verdict_sentences"]

# Differences of AP below this are printed as none: the fourth digit of an AP moves with the order of equal scores.
NEGLIGIBLE_DELTA = 0.00005
# Standard deviation over mean above which times say more about the machine than about the model.
MAX_LATENCY_VARIATION = 0.1


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
    said = [_accuracy(row, reference, leading_metrics(about["metrics"])) for row in others]
    said += _evidence(about)
    said += _speed(rows, about["reference"])
    said.append(_sizes(once))
    said += _engines(rows, about)
    said += _calibration(about)
    said += [f"Note: {note}." for note in about["notes"]]
    return tuple(said)


def _has_precision(precision: str) -> pl.Expr:
    import polars as pl

    return pl.col("precision") == precision


def _accuracy(row: Mapping[str, Any], reference: Mapping[str, Any], metrics: Sequence[Sequence[str]]) -> str:
    """One precision's accuracy against the reference, by every definition."""
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
            interval = f"; {change}95 % interval {low:+.4f} to {high:+.4f}"
            if low <= 0 <= high and abs(delta) >= NEGLIGIBLE_DELTA:
                verb = "shows no measurable loss of"
        parts.append(f"{verb} {name} ({reference[column]:.4f} to {row[column]:.4f}{interval})")
    return f"{row['precision'].upper()} {_join_words(parts)}."


def _evidence(about: Mapping[str, Any]) -> list[str]:
    """How much the accuracy rests on."""
    images, skipped = about["eval_images"], len(about["skipped"])
    told = f"Accuracy is judged on {_count_of(images, 'image')} of {about['split']}"
    if images < 500:
        told += "; on so few, differences of a few thousandths can be chance"
    said = [told + "."]
    if skipped:
        said.append(
            f"{_count_of(skipped, 'image')} could not be read and {'was' if skipped == 1 else 'were'} left out."
        )
    return said


def _speed(rows: pl.DataFrame, reference: str) -> list[str]:
    """Times against the reference, each batch with the name of what ran."""
    said = []
    for size in rows["batch"].unique(maintain_order=True):
        part = list(rows.filter(rows["batch"] == size).iter_rows(named=True))
        base = next(row for row in part if row["precision"] == reference)
        times = [f"{row['image_ms']:.2f} ms with {row['precision'].upper()}{_share(row, base)}" for row in part]
        names = _join_words(list(dict.fromkeys(row["runner"] for row in part)))
        said.append(f"At batch {size}, {names} takes {_join_words(times)} for an image.")
    scatter = (rows["std_ms"] / rows["mean_ms"]).fill_null(0).max()
    if isinstance(scatter, float) and scatter > MAX_LATENCY_VARIATION:
        said.append(
            f"Times scatter by up to {scatter:.0%} of their mean: other work disturbed them; trust them little."
        )
    if not rows["engine"].all():
        said.append(
            "These times are not TensorRT's and do not say how fast an engine is: "
            "a processor gains little or nothing from FP16 and INT8 graphs that are made for GPUs."
        )
    return said


def _share(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The time as a share of the reference's, nothing for the reference itself."""
    return "" if row is base else f" ({row['mean_ms'] / base['mean_ms']:.2f} times {base['precision'].upper()}'s)"


def _sizes(once: pl.DataFrame) -> str:
    """File sizes, in the order of the precisions."""
    labels = _join_words([name.upper() for name in once["precision"]])
    told = f"The ONNX files of {labels} have {_join_words([f'{size:.1f}' for size in once['onnx_mb']])} MB"
    if once["engine_mb"].null_count() == 0:
        told += f", the engines {_join_words([f'{size:.1f}' for size in once['engine_mb']])} MB"
    return told + "."


def _engines(rows: pl.DataFrame, about: Mapping[str, Any]) -> list[str]:
    """What was built, and whether it ran."""
    built = rows.filter(rows["engine_mb"].is_not_null())["precision"].unique(maintain_order=True).to_list()
    if not built:
        return ["No TensorRT engine was built: " + (about["why_not_built"] or "none was asked for") + "."]
    told = (
        f"{about['builder']} built the engines of {_join_words([name.upper() for name in built])} for {about['target']}"
    )
    return [
        told + (" and they ran here." if rows["engine"].all() else f"; they did not run here: {about['why_not_run']}.")
    ]


def _calibration(about: Mapping[str, Any]) -> list[str]:
    """What INT8 was calibrated on, and whether the same images judge it."""
    calibration = about["calibration"]
    if calibration is None:
        return []
    share = calibration.get("percentile")
    told = (
        f"INT8's ranges come from {_count_of(calibration['images'], 'image')} of {calibration['split']} "
        f"({calibration['algorithm']}{'' if share is None else f' {share:g}'})"
    )
    if calibration["split"] == about["split"]:
        told += ": the split that also judges it, which flatters INT8"
    return [told + "."]


def _count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _join_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
