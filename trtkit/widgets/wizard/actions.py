"""The wizard's calls, each run as a job: read the model, examine the images, build, measure."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit import demo
from trtkit.data import open_dataset
from trtkit.errors import CapabilityError
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter
from trtkit.recipe import Recipe
from trtkit.writing import temporary_folder

if TYPE_CHECKING:
    import onnx
    from plotly.graph_objects import Figure

    from trtkit.calibration.diagnosis import Diagnosis
    from trtkit.comparison.comparison import Comparison
    from trtkit.deployment import Deployment
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = [
    "BuiltArtifact",
    "Examination",
    "Measurement",
    "WizardResult",
    "build",
    "deploy_built",
    "examine_images",
    "find_eval_data",
    "measure",
    "read_model",
]

SECONDS = 3.0
"""Maximum benchmark time of each runner, s."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltArtifact:
    """A built file with its ONNX graph.

    Attributes:
        artifact: The file.
        graph: The graph in it, which ONNX Runtime evaluates where the engine does not run.
    """

    artifact: Artifact
    graph: onnx.ModelProto = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Accuracy and latency of a built file.

    Attributes:
        timing: Latency of the file, and of FP32 where it was measured too.
        figures: Of the accuracy losses (None without FP32) and of the latency (None without an engine); drawn in
            the job, as plotly imports slowly.
        comparison: The built precision and FP32; of the built precision alone where FP32 was not measured, None where
            there were no labeled images.
        engine_problem: Why the engine does not run here, so that ONNX Runtime ran its graph; "" where it runs, and for
            an ONNX file.
    """

    timing: Timing
    figures: tuple[Figure | None, Figure | None] = dataclasses.field(repr=False)
    comparison: Comparison | None = None
    engine_problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """Findings about the calibration images.

    Attributes:
        diagnosis: The findings.
        figure: Calibration images against validation images.
    """

    diagnosis: Diagnosis
    figure: Figure = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WizardResult:
    """What `Wizard.run` returns.

    Attributes:
        artifact: The engine or ONNX file.
        comparison: Its accuracy, latency and size against FP32; None where there were no labeled images.
        timing: Its latency.
        diagnosis: Findings about the calibration images; None where none were used.
    """

    artifact: Artifact
    comparison: Comparison | None
    timing: Timing
    diagnosis: Diagnosis | None = None

    def __repr__(self) -> str:
        measured = "not compared" if self.comparison is None else "compared with FP32"
        return f"WizardResult({self.artifact.path}: {self.artifact.precision}, {measured})"


def read_model(path: str, *, progress: Progress | None = None, cancel: CancelToken | None = None) -> Model:
    """Read a model file.

    Args:
        path: A `.pt` or `.onnx` file.
        progress: Receives events.
        cancel: Cancellation token.

    Raises:
        ModelError: As `trtkit.load`.
        CancelledError: The caller cancelled.
    """
    from trtkit.models import load

    reporter = Reporter(progress, cancel)
    reporter.step(f"read {Path(path).name}", 0, 1)
    model = load(Path(path).expanduser())
    reporter.step(f"read {Path(path).name}", 1, 1)
    return model


def examine_images(
    data: str, model: Model, fraction: float, *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> Examination:
    """Examine the images that the export calibrates on.

    Args:
        data: Path of the data set; "" for the embedded example set, as in `export`.
        model: The model, whose detections on the images are counted.
        fraction: Share of the split to draw from, (0, 1].
        progress: Receives events.
        cancel: Cancellation token.

    Raises:
        DataError: The data set can't be read.
        RecipeError: No data is named and the task has no embedded set.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration.diagnosis import examine

    data = data or str(demo.data_path(model.task))
    diagnosis = examine(data, model=model, fraction=fraction, progress=progress, cancel=cancel)
    return Examination(diagnosis=diagnosis, figure=diagnosis.plot())


def build(
    model: Model, recipe: Recipe, *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> BuiltArtifact:
    """Export by a recipe and keep the graph.

    Args:
        model: The recipe's model.
        recipe: The settings.
        progress: Receives events.
        cancel: Cancellation token.

    Raises:
        TrtkitError: As `trtkit.export`.
    """
    from trtkit.exporter import export_with_graph

    artifact, graph = export_with_graph(model, recipe, progress=progress, cancel=cancel)
    return BuiltArtifact(artifact=artifact, graph=graph)


def find_eval_data(data: str, model: Model) -> str:
    """The evaluation data: the named set, or for the embedded models their embedded set.

    Args:
        data: Path of a data set; "" where none is named.
        model: The model.

    Returns:
        The path; "" where there is none, or only images without labels.

    Raises:
        DataError: The data can't be opened.
    """
    if data and not open_dataset(data, task=model.task, channels=model.channels, needs_labels=False).labeled:
        return ""
    embedded = model.source is not None and model.source.resolve().parent == demo.model_path().parent
    return str(demo.data_path(model.task)) if not data and embedded else data


def measure(
    model: Model,
    built: BuiltArtifact,
    data: str,
    *,
    eval_images: int | None = None,
    compare_fp32: bool = True,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Measurement:
    """Evaluate and time a built file, and FP32 by the same runner.

    The engine is measured where it runs, otherwise ONNX Runtime runs its graph.

    Args:
        model: The model the file was built from.
        built: From `build`.
        data: Path of a labeled data set, whose `val` split is used; "" measures latency only.
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        compare_fp32: Measure FP32 as well; where engines run, this builds an FP32 engine.
        progress: Receives events.
        cancel: Cancellation token.

    Returns:
        The measurement. The FP32 files and the ONNX file of an engine's graph are temporary: `Comparison.open` finds
        only the built file.

    Raises:
        CapabilityError: The ranges are in the engine only (`implicit`), and the engine does not run here.
        DataError: The data set can't be used.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends
    from trtkit.comparison.comparator import join_comparison
    from trtkit.evaluation.evaluation import evaluate
    from trtkit.evaluation.latency import benchmark

    reporter = Reporter(progress, cancel)
    recipe, label = built.artifact.recipe, built.artifact.precision
    engine_problem = find_engine_problem(built.artifact)
    if engine_problem and recipe.implicit:
        raise CapabilityError(
            "measure INT8 by TensorRT's own calibrator",
            f"its ranges are in the engine only, which does not run here ({engine_problem})",
            "measure it on a machine with that GPU",
            code="engine-implicit-not-runnable",
        )
    kind = "engine" if built.artifact.format == "engine" and not engine_problem else "onnx"
    compare_fp32 = compare_fp32 and label != "fp32"
    reporter.start(_plan_measurement(["fp32", label] if compare_fp32 else [label], recipe.batch, evaluates=bool(data)))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        artifacts: dict[str, dict[str, Artifact]] = {}
        if compare_fp32:
            reporter.begin("export FP32")
            fp32 = build(model, _fp32_recipe(recipe, folder, kind), progress=reporter.progress, cancel=reporter.cancel)
            artifacts["fp32"] = _files_by_format(fp32, folder)
        artifacts[label] = _files_by_format(built, folder)
        runners = {
            name: stack.enter_context(
                backends.open(files[kind].path, device=_run_device(recipe) if kind == "engine" else None)
            )
            for name, files in artifacts.items()
        }
        evaluations = {}
        for name, runner in runners.items() if data else ():
            reporter.begin(f"evaluate {name}")
            evaluations[name] = evaluate(
                runner, data, eval_images=eval_images, progress=reporter.progress, cancel=reporter.cancel
            )
        timing = benchmark(
            runners, batch=recipe.batch, seconds=SECONDS, progress=reporter.shared_progress, cancel=reporter.cancel
        )
    reporter.begin("draw the figures")
    # Another runner's latencies do not predict an engine's: a folded table has them.
    latency = timing.plot() if timing.frame()["engine"].any() else None
    if not evaluations:
        return Measurement(timing=timing, figures=(None, latency), engine_problem=engine_problem)
    is_engine = built.artifact.format == "engine"
    comparison = join_comparison(
        model,
        artifacts,
        evaluations,
        timing,
        settings={**recipe.to_dict(), "data": data, "split": "val", "eval_images": eval_images, "seed": 0},
        builder=_builder_title(built.artifact),
        why_not_built="" if is_engine else "an ONNX file was exported",
        why_not_run=engine_problem if is_engine else "there is none",
        python=f"{recipe.to_python()}artifact = tk.export(**recipe.to_dict())\n",
        command=recipe.to_command(),
    )
    return Measurement(
        timing=timing,
        figures=(comparison.plot_losses() if len(artifacts) > 1 else None, latency),
        comparison=comparison,
        engine_problem=engine_problem,
    )


def _plan_measurement(labels: Sequence[str], batch: int, *, evaluates: bool) -> Plan:
    """The steps of `measure`."""
    evaluations = [f"evaluate {label}" for label in labels if evaluates]
    timing = f"benchmark batch {batch}"
    return Plan(
        verb="measure",
        steps=(*(["export FP32"] if "fp32" in labels[:-1] else []), *evaluations, timing, "draw the figures"),
        # The number of images is not known yet; each evaluation counts as one.
        costs={
            "export FP32": Cost(kind="export"),
            **{step: Cost(kind="evaluate", images=1) for step in evaluations},
            timing: Cost(kind="benchmark", seconds=SECONDS * len(labels)),
        },
    )


def deploy_built(
    built: BuiltArtifact,
    target: str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Deployment:
    """Write a folder that serves a built file; where an engine does not run, its graph gives the expected detections.

    Args:
        built: From `build`.
        target: One of `list_targets()`.
        overwrite: Replace an existing folder.
        progress: Receives events.
        cancel: Cancellation token.

    Raises:
        TrtkitError: As `trtkit.deploy`.
    """
    from trtkit.deployment import deploy

    with temporary_folder() as folder:
        reference = _files_by_format(built, folder)["onnx"] if find_engine_problem(built.artifact) else None
        return deploy(
            built.artifact, target, reference=reference, overwrite=overwrite, progress=progress, cancel=cancel
        )


def find_engine_problem(artifact: Artifact) -> str:
    """Why an engine does not run on this machine; "" where it does, and for an ONNX file.

    Args:
        artifact: The built file.
    """
    from trtkit import backends
    from trtkit.backends.devices import parse_device

    if artifact.passport is None:
        return ""
    device = _run_device(artifact.recipe)
    try:
        capabilities = backends.require_run(artifact.passport.backend, device=device)
    except CapabilityError as error:
        return error.found
    mismatch = backends.check_compatibility(artifact.passport, capabilities, parse_device(device))
    return "" if mismatch is None else mismatch.found


def _run_device(recipe: Recipe) -> int | str | None:
    """The device an engine runs on: the recipe's GPU, or the first one where the recipe names a compute capability."""
    from trtkit.backends.devices import parse_device

    return recipe.device if recipe.format == "engine" and parse_device(recipe.device).kind in ("cuda", "dla") else None


def _fp32_recipe(recipe: Recipe, folder: Path, format: str) -> Recipe:
    """The recipe of FP32 with the same graph settings."""
    fp32 = dataclasses.replace(
        recipe, half=False, int8=False, implicit=False, keep=(), data=None, calibration=None, fraction=1.0,
        dynamic=recipe.is_dynamic, format=format, output=str(folder / f"fp32.{format}"),
    )  # fmt: skip
    return fp32 if format == "engine" else dataclasses.replace(fp32, backend=None, device=None, isolate=False)


def _files_by_format(built: BuiltArtifact, folder: Path) -> dict[str, Artifact]:
    """The built file; of an engine also its graph, written to an ONNX file in `folder`."""
    artifact = built.artifact
    if artifact.format == "onnx":
        return {"onnx": artifact}
    from trtkit.graph.onnx_file import write_onnx

    path = write_onnx(built.graph, folder / f"{artifact.precision}.onnx")
    graph = dataclasses.replace(
        artifact, path=path, format="onnx", passport=None, seconds=0.0, build_seconds=None, size=path.stat().st_size
    )
    return {"onnx": graph, "engine": artifact}


def _builder_title(artifact: Artifact) -> str | None:
    from trtkit.backends import get_title

    passport = artifact.passport
    return None if passport is None else f"{get_title(passport.backend)} {passport.tensorrt}"
