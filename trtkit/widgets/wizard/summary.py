"""What the wizard shows of a model, its images, a recipe, a built file and its measurement: facts, messages, HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtkit.html import facts_html, render, table_html
from trtkit.recipe import Recipe, round_imgsz
from trtkit.results import processor_name
from trtkit.widgets.ui.controls import render_note
from trtkit.widgets.wizard.options import GPU_NAMES

if TYPE_CHECKING:
    import polars as pl
    from markupsafe import Markup

    from trtkit.calibration.diagnosis import Diagnosis
    from trtkit.comparison.comparison import Comparison
    from trtkit.exporter import Artifact
    from trtkit.models import Model
    from trtkit.widgets.wizard.actions import Measurement

__all__ = [
    "Message",
    "accuracy_frame",
    "diagnosis_messages",
    "engine_facts",
    "latency_frame",
    "measurement_messages",
    "model_facts",
    "passport_facts",
    "recipe_facts",
    "render_accuracy",
    "render_engine",
    "render_latency",
    "render_messages",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A sentence with its severity.

    Attributes:
        kind: "good", "note", "warning" or "problem".
        text: The sentence.
        detail: A second, less important sentence; "" for none.
    """

    kind: str
    text: str
    detail: str = ""


def render_messages(*messages: Message) -> Markup:
    """Messages as boxes.

    Args:
        *messages: The messages, in order.
    """
    boxes = [render_note(one.text, kind=one.kind, detail=one.detail) for one in messages]
    return render("widgets/wizard/templates/parts.html.j2", parts=boxes)


# Model, images, recipe


def model_facts(model: Model) -> dict[str, Any]:
    """Facts of a model by readable name.

    Args:
        model: The model.
    """
    names = list(model.names.values())
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    return {
        "Task": model.task,
        "Architecture": model.architecture,
        "Classes": f"{len(names)}: {shown}",
        "Image size": f"{model.imgsz[0]} x {model.imgsz[1]} pixels",
        "Parameters": model.parameters or None,
        "Stride": f"{model.stride} pixels",
        "Hash": model.hash[:16],
    }


def diagnosis_messages(diagnosis: Diagnosis) -> tuple[Message, ...]:
    """A summary of the findings, then each finding, the most severe first.

    Args:
        diagnosis: From `examine`.
    """
    count = sum(name == "calibration" for name in diagnosis.images["set"])
    images = f"{count} calibration images ({diagnosis.split})"
    issues = sum(finding.severity != "note" for finding in diagnosis.findings)
    if issues:
        text = f"{images}: {issues} issue{'' if issues == 1 else 's'} found."
        summary = Message(kind=diagnosis.findings[0].severity, text=text)
    else:
        summary = Message(kind="good", text=f"{images}: no issues found.")
    return summary, *(
        Message(
            kind=finding.severity,
            text=f"{finding.evidence[:1].upper()}{finding.evidence[1:]}.",
            detail=f"Remedy: {finding.remedy}.",
        )
        for finding in diagnosis.findings
    )


def recipe_facts(recipe: Recipe, model: Model) -> dict[str, Any]:
    """What a build with these settings exports, by readable name.

    Args:
        recipe: The settings.
        model: The model.
    """
    size = round_imgsz(recipe.imgsz if recipe.imgsz is not None else model.imgsz, model.stride)
    calibration = None
    if recipe.int8:
        calibration = recipe.calibration or f"on {recipe.data or 'the embedded example set'}"
    return {
        "Model": recipe.model,
        "Precision": recipe.precision.upper() + (" by TensorRT's own calibrator" if recipe.implicit else ""),
        "Format": "TensorRT engine" if recipe.format == "engine" else "ONNX file",
        "Calibration": calibration,
        "Image size": f"{size[0]} x {size[1]} pixels" + (" (dynamic)" if recipe.is_dynamic else ""),
        "Batch": f"up to {recipe.batch}" if recipe.is_dynamic else str(recipe.batch),
        "Kept in FP16" if recipe.int8 else "Kept in FP32": ", ".join(recipe.keep),
        "Output": recipe.output or "beside the model, named after it",
    }


# Built file


def engine_facts(artifact: Artifact) -> dict[str, Any]:
    """Facts of a built file by readable name.

    Args:
        artifact: The file.
    """
    build = f", {artifact.build_seconds:.1f} s of it for the build" if artifact.build_seconds is not None else ""
    return {
        "Path": str(artifact.path),
        "Format": artifact.format,
        "Precision": artifact.precision.upper(),
        "Size": f"{artifact.size / 1e6:.1f} MB",
        "Export time": f"{artifact.seconds:.1f} s{build}",
        "Calibration": artifact.calibration_hash[:16] if artifact.calibration_hash else None,
    }


def passport_facts(artifact: Artifact) -> dict[str, Any]:
    """An engine's passport by readable name; empty for an ONNX file.

    Args:
        artifact: The file.
    """
    from trtkit.backends import get_title

    passport = artifact.passport
    if passport is None:
        return {}
    layers: Mapping[str, int] = {}
    if passport.layers:
        from trtkit.backends import layer_frame
        from trtkit.inspection import count_kinds

        layers = count_kinds(layer_frame(passport.layers))
    gpu = passport.gpu or GPU_NAMES.get(passport.sm, "")
    return {
        "Builder": f"{get_title(passport.backend)} {passport.tensorrt}",
        "GPU": f"{passport.sm} ({gpu})" if gpu else passport.sm,
        "Batch": f"up to {passport.batch}" if passport.dynamic else passport.batch,
        "Image size": f"{passport.imgsz[0]} x {passport.imgsz[1]}" + (" (dynamic)" if passport.dynamic else ""),
        "Layers": ", ".join(f"{count} {name}" for name, count in layers.items()),
        "Driver": passport.driver,
        "Created": passport.created,
        "Model": passport.model_hash[:16],
        "Graph": (passport.graph_hash or "")[:16],
        "Calibration": (passport.calibration_hash or "")[:16],
        "Data": (passport.data_hash or "")[:16],
        "Versions": ", ".join(f"{name} {version}" for name, version in passport.versions.items()),
    }


def render_engine(artifact: Artifact | None, outdated: str = "") -> Markup:
    """The built file and its passport; a note where nothing was built.

    Args:
        artifact: The file, or None.
        outdated: A warning that the form was changed after the build.
    """
    if artifact is None:
        return render_note("Nothing is built yet; the code below builds it.")
    parts = [render_note(outdated, kind="warning")] if outdated else []
    parts.append(facts_html(engine_facts(artifact), caption="File"))
    if artifact.passport is not None:
        parts.append(facts_html(passport_facts(artifact), caption="Passport, stored in the engine file"))
    return render("widgets/wizard/templates/parts.html.j2", parts=parts)


# Measurement


def measurement_messages(measurement: Measurement, precision: str) -> tuple[Message, ...]:
    """The verdict on the built precision, rated by its recommendation, then the findings of the comparison.

    Args:
        measurement: From `measure`.
        precision: The built precision.
    """
    comparison = measurement.comparison
    if comparison is None:
        text = "Latency only: no labeled images are named, so that accuracy was not evaluated."
        return (Message(kind="note", text=text),)
    findings = tuple(Message(kind="note", text=sentence) for sentence in comparison.findings())
    verdict = comparison.verdicts.get(precision)
    if verdict is None:
        return findings
    return Message(kind=_RATINGS[verdict.recommendation], text=str(verdict)), *findings


_RATINGS = {"ship": "good", "don't ship": "warning", "can't tell": "note"}
"""Kinds of messages by recommendation."""


def accuracy_frame(comparison: Comparison, precision: str) -> pl.DataFrame:
    """Every metric of one precision, with its change against the reference and the interval of the change.

    Args:
        comparison: The comparison.
        precision: One of its precisions.

    Returns:
        One row a metric: metric, value; where `precision` is not the reference also reference, delta, low, high
        (ends of the 95 % interval, null where there is none) and significant.
    """
    import polars as pl

    metrics = comparison.evaluation(precision).metrics
    frame = pl.DataFrame({"metric": list(metrics), "value": list(metrics.values())})
    reference = comparison.about["reference"]
    if reference == precision:
        return frame
    baseline = comparison.evaluation(reference).metrics
    intervals = comparison.differences.filter((pl.col("precision") == precision) & (pl.col("scope") == "all"))
    return (
        frame.with_columns(reference=pl.Series([baseline.get(name) for name in metrics], dtype=pl.Float64))
        .with_columns(delta=pl.col("value") - pl.col("reference"))
        .join(intervals.select("metric", "low", "high", "significant"), on="metric", how="left", maintain_order="left")
        .with_columns(significant=pl.when(pl.col("low").is_not_null()).then(pl.col("significant")))
        .select("metric", "reference", "value", "delta", "low", "high", "significant")
    )


def latency_frame(measurement: Measurement) -> pl.DataFrame:
    """Latency of each precision, ms per batch.

    Args:
        measurement: From `measure`.
    """
    return measurement.timing.frame().select(
        "label", "runner", "clock", "batch", "runs", "p50_ms", "p90_ms", "p99_ms", "images_per_s"
    )


def render_accuracy(measurement: Measurement, precision: str) -> Markup:
    """The verdict, the cards and the table of metrics.

    Args:
        measurement: From `measure`.
        precision: The built precision.
    """
    from trtkit.comparison.cards import make_cards

    first, *rest = measurement_messages(measurement, precision)
    table = other = None
    if measurement.comparison is not None:
        frame = accuracy_frame(measurement.comparison, precision)
        headings = {
            "metric": "Metric", "reference": measurement.comparison.about["reference"].upper(),
            "value": precision.upper(), "delta": "Change", "interval": "95 % interval",
            "significant": "Significant (95 %)",
        }  # fmt: skip
        digits = dict.fromkeys(("reference", "value", "delta"), 4)
        has_interval = frame["low"].is_not_null() if "low" in frame.columns else frame["value"].is_not_null()
        table = table_html(_join_interval(frame.filter(has_interval)), headings=headings, digits=digits)
        if not has_interval.all():
            without = frame.filter(~has_interval).select("metric", "reference", "value", "delta")
            other = table_html(without, headings=headings, digits=digits)
    return render(
        "widgets/wizard/templates/accuracy.html.j2",
        verdicts=[] if measurement.comparison is None else list(measurement.comparison.verdicts.values()),
        cards=() if measurement.comparison is None else make_cards(measurement.comparison),
        verdict=render_messages(first),
        sentences=[one.text for one in rest],
        table=table,
        other=other,
    )


def _join_interval(frame: pl.DataFrame) -> pl.DataFrame:
    """The two ends of the interval as one text column."""
    import polars as pl

    if "low" not in frame.columns:
        return frame
    ends = zip(frame["low"], frame["high"], strict=True)
    interval = pl.Series("interval", [f"{low:+.4f} to {high:+.4f}" for low, high in ends], dtype=pl.String)
    return frame.with_columns(interval).select("metric", "reference", "value", "delta", "interval", "significant")


def render_latency(measurement: Measurement) -> Markup:
    """The table of latencies; folded below what was published of the model where no engine was measured.

    Args:
        measurement: From `measure`.
    """
    headings = {
        "label": "Precision", "runner": "Runner", "clock": "Clock", "batch": "Batch", "runs": "Runs",
        "p50_ms": "p50 latency (ms)", "p90_ms": "p90 latency (ms)", "p99_ms": "p99 latency (ms)",
        "images_per_s": "Throughput (images/s)",
    }  # fmt: skip
    digits = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "images_per_s"), 2)
    table = table_html(latency_frame(measurement), headings=headings, digits=digits)
    if measurement.timing.frame()["engine"].any():
        return table
    reason = f"the engine does not run here ({measurement.engine_problem})" if measurement.engine_problem else ""
    published = None if measurement.comparison is None else measurement.comparison.published
    return render(
        "widgets/wizard/templates/unmeasured.html.j2",
        reason=reason or "an ONNX file was built",
        published="" if published is None else published.sentence,
        processor=processor_name(),
        table=table,
    )
