"""What the wizard sets going: read, examine, build and measure; each one call that a job can run."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit import demo
from trtkit.errors import CapabilityError, DataError
from trtkit.progress import Cancel, Progress, Work
from trtkit.recipe import Recipe

if TYPE_CHECKING:
    import onnx
    import polars as pl
    from plotly.graph_objects import Figure

    from trtkit.artifact import Artifact
    from trtkit.backends import Runner
    from trtkit.calibration.doctor import Diagnosis
    from trtkit.judgement.evaluation import Evaluation
    from trtkit.judgement.timing import Timing
    from trtkit.sources import Model

__all__ = ["Examined", "Made", "Measured", "Outcome", "build", "examine_pictures", "measure", "read_model"]

SECONDS = 3.0
"""Most seconds that each runner is timed for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A built file with the graph it was built from.

    Attributes:
        artifact: The file.
        graph: The ONNX graph in it, by which ONNX Runtime judges where the engine does not run.
    """

    artifact: Artifact
    graph: onnx.ModelProto = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Accuracy and latency of a built file.

    Attributes:
        timing: Times of the result, and of FP32 where that was asked for.
        figures: Of accuracy, None without, and of latency; drawn here, where nobody waits for plotly.
        evaluation: Accuracy; None where there were no pictures to judge by.
        baseline: The same of FP32, on the same pictures by the same runner; None where it was not asked for.
        differences: Every metric's change from FP32 with its interval, as `trtkit.judgement.differences` gives it.
        why_not_engine: Why ONNX Runtime stood in for the engine; "" where the engine itself ran, or there is none.
    """

    timing: Timing
    figures: tuple[Figure | None, Figure] = dataclasses.field(repr=False)
    evaluation: Evaluation | None = None
    baseline: Evaluation | None = None
    differences: pl.DataFrame | None = None
    why_not_engine: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined:
    """What the doctor said.

    Attributes:
        diagnosis: The findings.
        figure: The pictures beside those that judge.
    """

    diagnosis: Diagnosis
    figure: Figure = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that the wizard leaves behind.

    Attributes:
        artifact: The engine or ONNX file.
        measured: Its accuracy and latency.
        diagnosis: What the doctor said of the calibration pictures; None where none were used.
    """

    artifact: Artifact
    measured: Measured
    diagnosis: Diagnosis | None = None

    @property
    def evaluation(self) -> Evaluation | None:
        """Accuracy, where there were pictures to judge by."""
        return self.measured.evaluation

    @property
    def timing(self) -> Timing:
        """Latency."""
        return self.measured.timing


def read_model(path: str, *, progress: Progress | None = None, cancel: Cancel | None = None) -> Model:
    """Read a model file.

    Args:
        path: A `.pt` or `.onnx` file.
        progress: Receives events.
        cancel: Asked before and after.

    Raises:
        ModelError: As `trtkit.load`.
        CancelledError: The caller cancelled.
    """
    from trtkit.sources import load

    work = Work(progress, cancel)
    work.step(f"read {Path(path).name}", 0, 1)
    model = load(Path(path).expanduser())
    work.step(f"read {Path(path).name}", 1, 1)
    return model


def examine_pictures(
    data: str, task: str, fraction: float, *, progress: Progress | None = None, cancel: Cancel | None = None
) -> Examined:
    """Examine the pictures that an export calibrates on.

    Args:
        data: A data set; "" stands for the small embedded one, as it does for `export`.
        task: The model's task.
        fraction: The share to draw from.
        progress: Receives events.
        cancel: Asked at each picture.

    Raises:
        DataError: The data set can't be read.
        RecipeError: No data was named and none is embedded for the task.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration.doctor import examine

    found = examine(data or demo.data_path(task), task=task, fraction=fraction, progress=progress, cancel=cancel)
    return Examined(diagnosis=found, figure=found.plot())


def build(model: Model, recipe: Recipe, *, progress: Progress | None = None, cancel: Cancel | None = None) -> Made:
    """Export by a recipe.

    Args:
        model: The recipe's model, read.
        recipe: The settings.
        progress: Receives events.
        cancel: Asked between steps.

    Raises:
        TrtkitError: As `trtkit.export`.
    """
    from trtkit.artifact import exported

    artifact, graph = exported(model, recipe, progress=progress, cancel=cancel)
    return Made(artifact=artifact, graph=graph)


def measure(
    model: Model,
    made: Made,
    data: str,
    *,
    images: int | None = None,
    baseline: bool = True,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Measured:
    """Judge and time a built file, and FP32 beside it.

    The engine itself is measured where it runs, else its graph by ONNX Runtime; FP32 by the same runner as the result,
    since a comparison across runners would compare the runners.

    Args:
        model: What the file was made from.
        made: From `build`.
        data: A data set with labels, judged on `val`; "" leaves accuracy out.
        images: Most pictures, a seeded sample; None takes all.
        baseline: Measure FP32 too, for which an engine is built where engines run.
        progress: Receives events.
        cancel: Asked between steps.

    Raises:
        CapabilityError: The precision is in the engine alone, and the engine does not run here.
        DataError: The data set can't be used.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends
    from trtkit.judgement.differences import differences
    from trtkit.judgement.evaluation import evaluate
    from trtkit.judgement.timing import benchmark

    watch: dict[str, Any] = {"progress": progress, "cancel": cancel}
    work = Work(progress, cancel)
    recipe = made.artifact.recipe
    why_not = _why_not_run(made.artifact)
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
            plain = _plain(model, recipe, made.artifact, folder, engine=runs, watch=watch)
            runners["fp32"] = stack.enter_context(backends.open(plain, device=_device(recipe)))
        source: Any = made.artifact if runs else made.graph
        runners[label] = stack.enter_context(backends.open(source, device=_device(recipe) if runs else None))
        judged = {name: evaluate(runner, data, images=images, **watch) for name, runner in runners.items() if data}
        timing = benchmark(runners, batch=recipe.batch, seconds=SECONDS, **watch)
    reference = judged.get("fp32") if label != "fp32" else None
    changed = None
    if reference is not None:
        work.step("tell the difference from chance", 0, 1)
        changed = differences(reference, judged[label])
    own = judged.get(label)
    return Measured(
        timing=timing,
        figures=(None if own is None else own.plot(), timing.plot()),
        evaluation=own,
        baseline=reference,
        differences=changed,
        why_not_engine=why_not,
    )


def _device(recipe: Recipe) -> int | str | None:
    """Where engines of a recipe run: on its GPU, or on the first one where it names a kind of GPU."""
    from trtkit.backends.gpus import device_of

    return recipe.device if recipe.format == "engine" and device_of(recipe.device).kind in ("cuda", "dla") else None


def _why_not_run(artifact: Artifact) -> str:
    """Why an engine does not run on this machine; "" where it does, and for an ONNX file."""
    from trtkit import backends
    from trtkit.backends.gpus import device_of

    if artifact.passport is None:
        return ""
    device = _device(artifact.recipe)
    try:
        found = backends.require_run(artifact.passport.backend, device=device)
    except CapabilityError as error:
        return error.found
    mismatch = backends.check(artifact.passport, found, device_of(device))
    return "" if mismatch is None else mismatch.found


def _plain(
    model: Model, recipe: Recipe, artifact: Artifact, folder: Path, *, engine: bool, watch: dict[str, Any]
) -> Any:
    """FP32 by the same settings: an engine in `folder`, or a graph."""
    from trtkit.artifact import exported, graph_for

    plain = dataclasses.replace(
        recipe, half=False, int8=False, implicit=False, keep=(), data=None, calibration=None, fraction=1.0,
        dynamic=recipe.is_dynamic, output=str(folder / f"fp32.{recipe.format}"),
    )  # fmt: skip
    if engine:
        return exported(model, plain, **watch)[0]
    return graph_for(model, plain, None, imgsz=artifact.card.imgsz)


def data_to_judge(data: str, model: Model) -> str:
    """The data set that judges: the named one, or the embedded one for the embedded models.

    Raises:
        DataError: The path is named and nothing is there.
    """
    if data and not Path(data).expanduser().exists():
        raise DataError(f"judge by {data}", "there is no such file", "correct the path in the step Pictures")
    embedded = {demo.model_path(task): demo.data_path(task) for task in demo.TASKS}
    if not data and model.source is not None:
        return str(embedded.get(model.source.resolve(), ""))
    return data
