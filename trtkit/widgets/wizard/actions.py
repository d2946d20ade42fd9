"""What the wizard sets going: read, examine, build and measure; each one call that a job can run."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit import demo
from trtkit.errors import CapabilityError, DataError
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import Recipe, round_imgsz
from trtkit.results import processor_name

if TYPE_CHECKING:
    import onnx
    import polars as pl
    from plotly.graph_objects import Figure

    from trtkit.backends import Runner
    from trtkit.calibration.diagnosis import Diagnosis
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model
    from trtkit.recipe import Recipe

__all__ = [
    "BuiltArtifact",
    "Examination",
    "Measurement",
    "Message",
    "WizardResult",
    "accuracy_frame",
    "accuracy_messages",
    "build",
    "diagnosis_messages",
    "engine_facts",
    "examine_images",
    "latency_frame",
    "latency_messages",
    "measure",
    "model_facts",
    "passport_facts",
    "read_model",
    "recipe_facts",
]

SECONDS = 3.0
"""Most seconds that each runner is timed for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltArtifact:
    """A built file with the graph it was built from.

    Attributes:
        artifact: The file.
        graph: The ONNX graph in it, by which ONNX Runtime judges where the engine does not run.
    """

    artifact: Artifact
    graph: onnx.ModelProto = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Accuracy and latency of a built file.

    Attributes:
        timing: Times of the result, and of FP32 where that was asked for.
        figures: Of accuracy, None without, and of latency; drawn here, where nobody waits for plotly.
        evaluation: Accuracy; None where there were no images to judge by.
        baseline: The same of FP32, on the same images by the same runner; None where it was not asked for.
        differences: Every metric's change from FP32 with its interval, as `trtkit.evaluation.significance` gives it.
        why_not_engine: Why ONNX Runtime stood in for the engine; "" where the engine itself ran, or there is none.
    """

    timing: Timing
    figures: tuple[Figure | None, Figure] = dataclasses.field(repr=False)
    evaluation: Evaluation | None = None
    baseline: Evaluation | None = None
    differences: pl.DataFrame | None = None
    why_not_engine: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """What the doctor said.

    Attributes:
        diagnosis: The findings.
        figure: The images beside those that judge.
    """

    diagnosis: Diagnosis
    figure: Figure = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WizardResult:
    """All that the wizard leaves behind.

    Attributes:
        artifact: The engine or ONNX file.
        measured: Its accuracy and latency.
        diagnosis: What the doctor said of the calibration images; None where none were used.
    """

    artifact: Artifact
    measured: Measurement
    diagnosis: Diagnosis | None = None

    @property
    def evaluation(self) -> Evaluation | None:
        """Accuracy, where there were images to judge by."""
        return self.measured.evaluation

    @property
    def timing(self) -> Timing:
        """Latency."""
        return self.measured.timing


def read_model(path: str, *, progress: Progress | None = None, cancel: CancelToken | None = None) -> Model:
    """Read a model file.

    Args:
        path: A `.pt` or `.onnx` file.
        progress: Receives events.
        cancel: Asked before and after.

    Raises:
        ModelError: As `trtkit.load`.
        CancelledError: The caller cancelled.
    """
    from trtkit.models import load

    work = Reporter(progress, cancel)
    work.step(f"read {Path(path).name}", 0, 1)
    model = load(Path(path).expanduser())
    work.step(f"read {Path(path).name}", 1, 1)
    return model


def examine_images(
    data: str, task: str, fraction: float, *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> Examination:
    """Examine the images that an export calibrates on.

    Args:
        data: A data set; "" stands for the small embedded one, as it does for `export`.
        task: The model's task.
        fraction: The share to draw from.
        progress: Receives events.
        cancel: Asked at each image.

    Raises:
        DataError: The data set can't be read.
        RecipeError: No data was named and none is embedded for the task.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration.diagnosis import examine

    found = examine(data or demo.data_path(task), task=task, fraction=fraction, progress=progress, cancel=cancel)
    return Examination(diagnosis=found, figure=found.plot())


def build(
    model: Model, recipe: Recipe, *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> BuiltArtifact:
    """Export by a recipe.

    Args:
        model: The recipe's model, read.
        recipe: The settings.
        progress: Receives events.
        cancel: Asked between steps.

    Raises:
        TrtkitError: As `trtkit.export`.
    """
    from trtkit.exporter import export_with_graph

    artifact, graph = export_with_graph(model, recipe, progress=progress, cancel=cancel)
    return BuiltArtifact(artifact=artifact, graph=graph)


def measure(
    model: Model,
    made: BuiltArtifact,
    data: str,
    *,
    eval_images: int | None = None,
    baseline: bool = True,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Measurement:
    """Judge and time a built file, and FP32 beside it.

    The engine itself is measured where it runs, else its graph by ONNX Runtime; FP32 by the same runner as the result,
    since a comparison across runners would compare the runners.

    Args:
        model: What the file was made from.
        made: From `build`.
        data: A data set with labels, judged on `val`; "" leaves accuracy out.
        eval_images: Most images, a seeded sample; None takes all.
        baseline: Measure FP32 too, for which an engine is built where engines run.
        progress: Receives events.
        cancel: Asked between steps.

    Raises:
        CapabilityError: The precision is in the engine alone, and the engine does not run here.
        DataError: The data set can't be used.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends
    from trtkit.evaluation.evaluator import evaluate
    from trtkit.evaluation.latency import benchmark
    from trtkit.evaluation.significance import compute_differences

    watch: dict[str, Any] = {"progress": progress, "cancel": cancel}
    work = Reporter(progress, cancel)
    recipe = made.artifact.recipe
    why_not = _engine_problem(made.artifact)
    if why_not and recipe.implicit:
        raise CapabilityError(
            "measure INT8 by TensorRT's own calibrator",
            f"its ranges are in the engine alone, and that does not run here ({why_not})",
            "measure it on a machine with that GPU",
        )
    runs = made.artifact.format == "engine" and not why_not
    label = made.artifact.precision
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtkit-")))
        runners: dict[str, Runner] = {}
        if baseline and label != "fp32":
            work.step("make FP32 to compare with", 0, 1)
            plain = _export_fp32(model, recipe, made.artifact, folder, engine=runs, watch=watch)
            runners["fp32"] = stack.enter_context(backends.open(plain, device=_run_device(recipe)))
        source: Any = made.artifact if runs else made.graph
        runners[label] = stack.enter_context(backends.open(source, device=_run_device(recipe) if runs else None))
        judged = {
            name: evaluate(runner, data, eval_images=eval_images, **watch) for name, runner in runners.items() if data
        }
        timing = benchmark(runners, batch=recipe.batch, seconds=SECONDS, **watch)
    reference = judged.get("fp32") if label != "fp32" else None
    changed = None
    if reference is not None:
        work.step("tell the difference from chance", 0, 1)
        changed = compute_differences(reference, judged[label])
    own = judged.get(label)
    return Measurement(
        timing=timing,
        figures=(None if own is None else own.plot(), timing.plot()),
        evaluation=own,
        baseline=reference,
        differences=changed,
        why_not_engine=why_not,
    )


def _run_device(recipe: Recipe) -> int | str | None:
    """Where engines of a recipe run: on its GPU, or on the first one where it names a kind of GPU."""
    from trtkit.backends.devices import parse_device

    return recipe.device if recipe.format == "engine" and parse_device(recipe.device).kind in ("cuda", "dla") else None


def _engine_problem(artifact: Artifact) -> str:
    """Why an engine does not run on this machine; "" where it does, and for an ONNX file."""
    from trtkit import backends
    from trtkit.backends.devices import parse_device

    if artifact.passport is None:
        return ""
    device = _run_device(artifact.recipe)
    try:
        found = backends.require_run(artifact.passport.backend, device=device)
    except CapabilityError as error:
        return error.found
    mismatch = backends.check_compatibility(artifact.passport, found, parse_device(device))
    return "" if mismatch is None else mismatch.found


def _export_fp32(
    model: Model, recipe: Recipe, artifact: Artifact, folder: Path, *, engine: bool, watch: dict[str, Any]
) -> Any:
    """FP32 by the same settings: an engine in `folder`, or a graph."""
    from trtkit.exporter import build_graph, export_with_graph

    plain = dataclasses.replace(
        recipe, half=False, int8=False, implicit=False, keep=(), data=None, calibration=None, fraction=1.0,
        dynamic=recipe.is_dynamic, output=str(folder / f"fp32.{recipe.format}"),
    )  # fmt: skip
    if engine:
        return export_with_graph(model, plain, **watch)[0]
    return build_graph(model, plain, None, imgsz=artifact.info.imgsz)


def resolve_eval_data(data: str, model: Model) -> str:
    """The data set that judges: the named one, or the embedded one for the embedded models.

    Raises:
        DataError: The path is named and nothing is there.
    """
    if data and not Path(data).expanduser().exists():
        raise DataError(f"judge by {data}", "there is no such file", "correct the path in the step Images")
    embedded = {demo.model_path(task): demo.data_path(task) for task in demo.EMBEDDED_TASKS}
    if not data and model.source is not None:
        return str(embedded.get(model.source.resolve(), ""))
    return data


# What the wizard says of what it found: facts, frames and sentences, with no more claimed than was measured.


# Differences of AP below this are told as none: the fourth digit of an AP moves with the order of equal scores.
NOTHING = 0.00005
FEW = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
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
        "Image size": f"{model.imgsz[0]} x {model.imgsz[1]} pixels",
        "Parameters": model.parameters or None,
        "Stride": f"{model.stride} pixels",
        "Hash": model.hash[:16],
    }


def diagnosis_messages(diagnosis: Diagnosis) -> tuple[Message, ...]:
    """The doctor's findings, the worst first, after what they come to."""
    count = sum(name == "calibration" for name in diagnosis.images["set"])
    images = f"{count} images of {diagnosis.split}"
    worst = diagnosis.findings[0].severity if diagnosis.findings else ""
    if worst in ("", "note"):
        whole = Message(kind="good", text=f"The {images} are fit to calibrate with.")
    else:
        found = sum(one.severity != "note" for one in diagnosis.findings)
        whole = Message(kind=worst, text=f"The {images} have {found} fault{'' if found == 1 else 's'} to look at.")
    return whole, *(
        Message(
            kind=one.severity, text=f"{one.evidence[:1].upper()}{one.evidence[1:]}.", detail=f"Remedy: {one.remedy}."
        )
        for one in diagnosis.findings
    )


def recipe_facts(recipe: Recipe, model: Model) -> dict[str, Any]:
    """What a build is about to do."""
    size = round_imgsz(recipe.imgsz if recipe.imgsz is not None else model.imgsz, model.stride)
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
        "Image size": f"{size[0]} x {size[1]} pixels" + (", others too" if recipe.is_dynamic else ""),
        "Batch": batch,
        "Kept high": ", ".join(recipe.keep),
        "Writes": recipe.output or "a file beside the model, named after it",
    }


def accuracy_frame(measured: Measurement) -> pl.DataFrame:
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
            sure = "yes" if change["significant"] else "no"
        rows.append(
            {
                "metric": row["metric"], "rule": row["rule"], "FP32": before, "value": row["value"],
                "change": None if before is None else row["value"] - before, "interval": interval, "significant": sure,
            }
        )  # fmt: skip
    return pl.DataFrame(
        rows,
        schema={
            "metric": pl.String, "rule": pl.String, "FP32": pl.Float64, "value": pl.Float64, "change": pl.Float64,
            "interval": pl.String, "significant": pl.String,
        },
    )  # fmt: skip


def accuracy_messages(measured: Measurement, precision: str) -> tuple[Message, ...]:
    """What became of the deciding metrics, and what the numbers rest on."""
    from trtkit.comparison.tables import primary_metrics

    if measured.evaluation is None:
        return (Message(kind="note", text="Accuracy was not judged: no images with labels were named."),)
    judged = measured.evaluation
    said = [_change(measured, metric, name, precision) for metric, name in primary_metrics(judged.metrics)]
    return (*said, _evidence(judged, measured))


def _change(measured: Measurement, metric: str, name: str, precision: str) -> Message:
    import polars as pl

    assert measured.evaluation is not None
    now, label = measured.evaluation.metrics[metric], precision.upper()
    if measured.differences is None or measured.baseline is None:
        return Message(kind="note", text=f"{label} reaches {now:.4f} {name}.")
    before = measured.baseline.metrics[metric]
    values = f"{before:.4f} to {now:.4f}"
    if abs(now - before) < NOTHING:
        return Message(kind="good", text=f"{label} keeps {name}: {values}.")
    found = measured.differences.filter((pl.col("metric") == metric) & (pl.col("scope") == "all"))
    row = found.row(0, named=True) if len(found) else None
    verb = "gains" if now > before else "loses"
    if row is None or row["low"] is None:
        return Message(kind="note", text=f"{label} {verb} {abs(now - before):.4f} {name}: {values}.")
    interval = f"95 % interval of the change {row['low']:+.4f} to {row['high']:+.4f}"
    if not row["significant"]:
        return Message(
            kind="good", text=f"{label} shows no measurable change of {name}: {values}.", detail=interval + "."
        )
    kind = "warning" if now < before else "good"
    return Message(kind=kind, text=f"{label} {verb} {abs(now - before):.4f} {name}: {values}.", detail=interval + ".")


def _evidence(judged: Evaluation, measured: Measurement) -> Message:
    split = judged.provenance.settings.get("split")
    text = f"Judged on {judged.image_count} images of {split} by {judged.provenance.runner}"
    if measured.why_not_engine:
        text += f" on the same graph, since the engine does not run here ({measured.why_not_engine})"
    few = judged.image_count < FEW
    detail = "On so few, differences of a few thousandths can be chance." if few else ""
    return Message(
        kind="note", text=text + ".", detail=" ".join((detail, *(f"{note}." for note in judged.notes))).strip()
    )


def latency_frame(measured: Measurement) -> pl.DataFrame:
    """One row a precision: what ran and how long it took, milliseconds a batch."""
    return measured.timing.frame().select(
        "label", "runner", "clock", "batch", "runs", "p50_ms", "p90_ms", "p99_ms", "images_per_s"
    )


def latency_messages(measured: Measurement) -> tuple[Message, ...]:
    """How long the result takes, and whose time that is."""
    rows = list(measured.timing.frame().iter_rows(named=True))
    row = rows[-1]
    half = f"{row['p50_ms']:.3g} ms a batch of {row['batch']} (median of {row['runs']} runs), by {row['runner']}"
    if row["engine"]:
        clock = "on the GPU's own clock" if row["clock"] == "gpu" else "around the call, copies included"
        return (Message(kind="note", text=f"The engine takes {half}, {clock}."),)
    why = f"The engine does not run here: {measured.why_not_engine}. " if measured.why_not_engine else ""
    return (
        Message(
            kind="warning",
            text=f"The graph takes {half}: not TensorRT's time.",
            detail=f"{why}{processor_name()} ran it, and that does not say how fast an engine is: a processor gains little "
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
    from trtkit.backends import get_title
    from trtkit.widgets.wizard.options import GPU_NAMES

    passport = artifact.passport
    if passport is None:
        return {}
    layers: Mapping[str, int] = {}
    if passport.layers:
        from trtkit.backends import layer_frame

        counted = layer_frame(passport.layers)["precision"].fill_null("of unknown type").value_counts(sort=True)
        layers = dict(counted.iter_rows())
    gpu = passport.gpu or GPU_NAMES.get(passport.sm, "")
    return {
        "Built by": f"{get_title(passport.backend)} {passport.tensorrt}",
        "Runs on": f"{passport.sm} ({gpu})" if gpu else passport.sm,
        "Batch": f"up to {passport.batch}" if passport.dynamic else passport.batch,
        "Image size": f"{passport.imgsz[0]} x {passport.imgsz[1]}" + (", others too" if passport.dynamic else ""),
        "Layers": ", ".join(f"{count} {name}" for name, count in layers.items()),
        "Driver": passport.driver,
        "Created": passport.created,
        "Model": passport.model_hash[:16],
        "Graph": (passport.graph_hash or "")[:16],
        "Calibration": (passport.calibration_hash or "")[:16],
        "Data": (passport.data_hash or "")[:16],
        "Versions": ", ".join(f"{name} {version}" for name, version in passport.versions.items()),
    }
