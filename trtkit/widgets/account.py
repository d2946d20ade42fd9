"""What the wizard says of what it found: facts, frames and sentences, with no more claimed than was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtkit.origin import processor
from trtkit.recipe import rounded_imgsz

if TYPE_CHECKING:
    import polars as pl

    from trtkit.artifact import Artifact
    from trtkit.calibration.doctor import Diagnosis
    from trtkit.judgement.evaluation import Evaluation
    from trtkit.recipe import Recipe
    from trtkit.sources import Model
    from trtkit.widgets.outcome import Measured

__all__ = [
    "Said",
    "accuracy_frame",
    "accuracy_said",
    "diagnosis_said",
    "engine_facts",
    "latency_frame",
    "latency_said",
    "model_facts",
    "passport_facts",
    "recipe_facts",
]

# Differences of AP below this are told as none: the fourth digit of an AP moves with the order of equal scores.
NOTHING = 0.00005
FEW = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """A sentence with its weight.

    Attributes:
        kind: "good", "note", "warning" or "problem".
        text: The sentence.
        detail: A second one, less important; "" for none.
    """

    kind: str
    text: str
    detail: str = ""


def model_facts(model: Model) -> dict[str, Any]:
    """What was read."""
    names = list(model.names.values())
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    return {
        "Task": model.task,
        "Architecture": model.architecture,
        "Classes": f"{len(names)}: {shown}",
        "Picture size": f"{model.imgsz[0]} x {model.imgsz[1]} pixels",
        "Parameters": model.parameters or None,
        "Stride": f"{model.stride} pixels",
        "Hash": model.hash[:16],
    }


def diagnosis_said(diagnosis: Diagnosis) -> tuple[Said, ...]:
    """The doctor's findings, the worst first, after what they come to."""
    count = sum(name == "calibration" for name in diagnosis.pictures["set"])
    pictures = f"{count} pictures of {diagnosis.split}"
    worst = diagnosis.findings[0].severity if diagnosis.findings else ""
    if worst in ("", "note"):
        whole = Said(kind="good", text=f"The {pictures} are fit to calibrate with.")
    else:
        found = sum(one.severity != "note" for one in diagnosis.findings)
        whole = Said(kind=worst, text=f"The {pictures} have {found} fault{'' if found == 1 else 's'} to look at.")
    return whole, *(
        Said(kind=one.severity, text=f"{one.evidence[:1].upper()}{one.evidence[1:]}.", detail=f"Remedy: {one.remedy}.")
        for one in diagnosis.findings
    )


def recipe_facts(recipe: Recipe, model: Model) -> dict[str, Any]:
    """What a build is about to do."""
    size = rounded_imgsz(recipe.imgsz if recipe.imgsz is not None else model.imgsz, model.stride)
    batch = f"up to {recipe.batch}" if recipe.is_dynamic else str(recipe.batch)
    ranges = None
    if recipe.int8:
        ranges = (
            f"from {recipe.calibration}" if recipe.calibration else f"measured on {recipe.data or 'the example set'}"
        )
    return {
        "Model": recipe.model,
        "Precision": recipe.precision.upper() + (" by TensorRT's own calibrator" if recipe.implicit else ""),
        "Makes": "a TensorRT engine" if recipe.format == "engine" else "an ONNX file",
        "Ranges": ranges,
        "Picture size": f"{size[0]} x {size[1]} pixels" + (", others too" if recipe.is_dynamic else ""),
        "Batch": batch,
        "Kept high": ", ".join(recipe.keep),
        "Writes": recipe.output or "a file beside the model, named after it",
    }


def accuracy_frame(measured: Measured) -> pl.DataFrame:
    """One row a metric: its rule, FP32, the result, the change and the 95 % interval of the change."""
    import polars as pl

    assert measured.evaluation is not None
    frame = measured.evaluation.frame()
    if measured.differences is None:
        return frame.select("metric", "rule", "value")
    whole = measured.differences.filter(pl.col("scope") == "all")
    told = {row["metric"]: row for row in whole.iter_rows(named=True)}
    rows = []
    for row in frame.iter_rows(named=True):
        change = told.get(row["metric"])
        before = measured.baseline.metrics.get(row["metric"]) if measured.baseline is not None else None
        interval = sure = None
        if change is not None and change["low"] is not None:
            interval = f"{change['low']:+.4f} to {change['high']:+.4f}"
            sure = "yes" if change["measurable"] else "no"
        rows.append(
            {
                "metric": row["metric"], "rule": row["rule"], "FP32": before, "value": row["value"],
                "change": None if before is None else row["value"] - before, "interval": interval, "measurable": sure,
            }
        )  # fmt: skip
    return pl.DataFrame(
        rows,
        schema={
            "metric": pl.String, "rule": pl.String, "FP32": pl.Float64, "value": pl.Float64, "change": pl.Float64,
            "interval": pl.String, "measurable": pl.String,
        },
    )  # fmt: skip


def accuracy_said(measured: Measured, precision: str) -> tuple[Said, ...]:
    """What became of the deciding metrics, and what the numbers rest on."""
    from trtkit.judgement.joining import headline

    if measured.evaluation is None:
        return (Said(kind="note", text="Accuracy was not judged: no pictures with labels were named."),)
    judged = measured.evaluation
    said = [_change(measured, metric, name, precision) for metric, name in headline(judged.metrics)]
    return (*said, _evidence(judged, measured))


def _change(measured: Measured, metric: str, name: str, precision: str) -> Said:
    import polars as pl

    assert measured.evaluation is not None
    now, label = measured.evaluation.metrics[metric], precision.upper()
    if measured.differences is None or measured.baseline is None:
        return Said(kind="note", text=f"{label} reaches {now:.4f} {name}.")
    before = measured.baseline.metrics[metric]
    values = f"{before:.4f} to {now:.4f}"
    if abs(now - before) < NOTHING:
        return Said(kind="good", text=f"{label} keeps {name}: {values}.")
    found = measured.differences.filter((pl.col("metric") == metric) & (pl.col("scope") == "all"))
    row = found.row(0, named=True) if len(found) else None
    verb = "gains" if now > before else "loses"
    if row is None or row["low"] is None:
        return Said(kind="note", text=f"{label} {verb} {abs(now - before):.4f} {name}: {values}.")
    interval = f"95 % interval of the change {row['low']:+.4f} to {row['high']:+.4f}"
    if not row["measurable"]:
        return Said(kind="good", text=f"{label} shows no measurable change of {name}: {values}.", detail=interval + ".")
    kind = "warning" if now < before else "good"
    return Said(kind=kind, text=f"{label} {verb} {abs(now - before):.4f} {name}: {values}.", detail=interval + ".")


def _evidence(judged: Evaluation, measured: Measured) -> Said:
    split = judged.origin.settings.get("split")
    text = f"Judged on {judged.pictures} pictures of {split} by {judged.origin.runner}"
    if measured.why_not_engine:
        text += f" on the same graph, since the engine does not run here ({measured.why_not_engine})"
    few = judged.pictures < FEW
    detail = "On so few, differences of a few thousandths can be chance." if few else ""
    return Said(kind="note", text=text + ".", detail=" ".join((detail, *(f"{note}." for note in judged.notes))).strip())


def latency_frame(measured: Measured) -> pl.DataFrame:
    """One row a precision: what ran and how long it took, milliseconds a batch."""
    return measured.timing.frame().select(
        "label", "runner", "clock", "batch", "runs", "p50_ms", "p90_ms", "p99_ms", "pictures_per_s"
    )


def latency_said(measured: Measured) -> tuple[Said, ...]:
    """How long the result takes, and whose time that is."""
    rows = list(measured.timing.frame().iter_rows(named=True))
    row = rows[-1]
    half = f"{row['p50_ms']:.3g} ms a batch of {row['batch']} (median of {row['runs']} runs), by {row['runner']}"
    if row["engine"]:
        clock = "on the GPU's own clock" if row["clock"] == "gpu" else "around the call, copies included"
        return (Said(kind="note", text=f"The engine takes {half}, {clock}."),)
    why = f"The engine does not run here: {measured.why_not_engine}. " if measured.why_not_engine else ""
    return (
        Said(
            kind="warning",
            text=f"The graph takes {half}: not TensorRT's time.",
            detail=f"{why}{processor()} ran it, and that does not say how fast an engine is: a processor gains little "
            "or nothing from FP16 and INT8 graphs that are made for GPUs.",
        ),
    )


def engine_facts(artifact: Artifact) -> dict[str, Any]:
    """The file."""
    return {
        "Path": str(artifact.path),
        "Format": artifact.format,
        "Precision": artifact.precision.upper(),
        "Size": f"{artifact.size / 1e6:.1f} MB",
        "Made in": f"{artifact.seconds:.1f} s"
        + (f", {artifact.build_seconds:.1f} s of it building" if artifact.build_seconds is not None else ""),
        "Calibration": artifact.calibration_hash[:16] if artifact.calibration_hash else None,
    }


def passport_facts(artifact: Artifact) -> dict[str, Any]:
    """Where the engine comes from and where it runs; empty for an ONNX file."""
    from trtkit.backends.surfaces import TITLES
    from trtkit.widgets.choices import GPUS_OF

    passport = artifact.passport
    if passport is None:
        return {}
    layers: Mapping[str, int] = {}
    if passport.layers:
        from trtkit.backends import layer_frame

        counted = layer_frame(passport.layers)["precision"].fill_null("of unknown type").value_counts(sort=True)
        layers = dict(counted.iter_rows())
    gpu = passport.gpu or GPUS_OF.get(passport.sm, "")
    return {
        "Built by": f"{TITLES.get(passport.backend, passport.backend)} {passport.tensorrt}",
        "Runs on": f"{passport.sm} ({gpu})" if gpu else passport.sm,
        "Batch": f"up to {passport.batch}" if passport.dynamic else passport.batch,
        "Picture size": f"{passport.imgsz[0]} x {passport.imgsz[1]}" + (", others too" if passport.dynamic else ""),
        "Layers": ", ".join(f"{count} {name}" for name, count in layers.items()),
        "Driver": passport.driver,
        "Created": passport.created,
        "Model": passport.model_hash[:16],
        "Graph": (passport.graph_hash or "")[:16],
        "Calibration": (passport.calibration_hash or "")[:16],
        "Data": (passport.data_hash or "")[:16],
        "Versions": ", ".join(f"{name} {version}" for name, version in passport.versions.items()),
    }
