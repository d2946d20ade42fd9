"""Files of a comparison: who builds and runs engines, and how files are exported, built, opened and timed.

Everything happens in this process, or, with an executor, whatever concerns engines and timings on its workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.comparison.tables import time_layers
from trtkit.errors import CapabilityError
from trtkit.evaluation.latency import Timing, benchmark
from trtkit.executor import EngineWorkers, SentFile
from trtkit.progress import Plan, Reporter
from trtkit.recipe import Recipe
from trtkit.writing import temporary_folder, write_bytes

if TYPE_CHECKING:
    import polars as pl

    from trtkit.backends import Capabilities
    from trtkit.backends.runner import Runner
    from trtkit.calibration import Calibration
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = ["LAYERS", "EngineSupport", "Export", "find_engine_support", "time_runners", "trace_once", "write_files"]

LAYERS = "time the layers"
"""The step that times the layers of engines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSupport:
    """What can be done with engines, here or on workers.

    Attributes:
        builder: The backend that builds them; None if none does.
        why_not_built: Why none does, "" if one does.
        runs: Whether they run.
        device: The device that they run on, as in `trtkit.open`.
        why_not_run: Why they don't, "" if they do.
    """

    builder: Capabilities | None
    why_not_built: str = ""
    runs: bool = False
    device: int | str | None = None
    why_not_run: str = ""


def find_engine_support(
    build: bool | None, backend: str | None, device: int | str | None, workers: EngineWorkers | None
) -> EngineSupport:
    """Find what can be done with engines.

    Args:
        build: As in `compare`.
        backend: As in `compare`.
        device: As in `compare`.
        workers: Those that build and run; None asks this process.

    Raises:
        CapabilityError: Engines were asked for and can't be built.
        RecipeError: There is no such backend.
    """
    if workers is None:
        return _find_support_here(Reporter(), build, backend, device)
    support = workers.run(_find_support_here, build, backend, device, stage="load")
    if support.runs:
        assert support.builder is not None
        try:
            workers.require_gpu(support.builder.backend)
        except CapabilityError as error:
            return dataclasses.replace(support, runs=False, device=None, why_not_run=error.found)
    return support


def _find_support_here(
    reporter: Reporter, build: bool | None, backend: str | None, device: int | str | None
) -> EngineSupport:
    from trtkit import backends
    from trtkit.backends.devices import parse_device

    if backend is not None:
        backends.get_backend(backend)
    builder, why_not_built = None, "not requested"
    if build is not False and backend != "onnxruntime":
        try:
            builder, why_not_built = backends.require_build(backend, device=device), ""
        except CapabilityError as error:
            if build or backend:
                raise
            why_not_built = error.found
    if builder is None:
        return EngineSupport(builder=None, why_not_built=why_not_built, why_not_run="none was built")
    target = parse_device(device)
    if target.kind == "sm":
        if not _gpu_matches(builder, target.sm):
            return EngineSupport(builder=builder, why_not_run=f"no GPU of {target.sm} was found")
        device = None
    try:
        backends.require_run(builder.backend, device=device)
    except CapabilityError as error:
        return EngineSupport(builder=builder, why_not_run=error.found)
    return EngineSupport(builder=builder, runs=True, device=device)


def _gpu_matches(builder: Capabilities, sm: str) -> bool:
    """Whether the first GPU has the compute capability that engines were built for."""
    return builder.gpu is not None and builder.gpu.sm == sm


def trace_once(model: Model, settings: Mapping[str, Any]) -> Model:
    """The model as its FP32 graph, so that all precisions are made from one graph and tracing runs once.

    Args:
        model: From `load`.
        settings: `imgsz`, `batch`, `dynamic` and `simplify`.
    """
    from trtkit.graph.torch_export import trace

    return model if model.proto is not None else dataclasses.replace(model, module=None, proto=trace(model, **settings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported under one label.

    Attributes:
        name: The label, a precision or a candidate's name.
        precision: "fp32", "fp16" or "int8".
        model: From `trace_once`.
        settings: Fields of `Recipe` that the ONNX file and the engine share.
        calibration: The calibration of INT8, or None.
    """

    name: str
    precision: str
    model: Model
    settings: Mapping[str, Any]
    calibration: Calibration | None = None

    def make_recipe(self, kind: str, stem: Path, **settings: Any) -> Recipe:
        """The recipe of a file.

        Args:
            kind: "onnx" or "engine".
            stem: The comparison's folder with the model's name.
            **settings: Further fields.
        """
        return Recipe(
            model=str(self.model.source or type(self.model).__name__),
            format=kind,
            half=self.precision == "fp16",
            int8=self.precision == "int8",
            end2end=self.model.end2end is True,
            output=str(stem.with_name(f"{stem.name}-{self.name}.{kind}")),
            **self.settings,
            **settings,
        )


def write_files(
    exports: Sequence[Export],
    stem: Path,
    staging: Path,
    *,
    engine_settings: Mapping[str, Any] | None,
    reporter: Reporter,
    workers: EngineWorkers | None,
) -> dict[str, dict[str, Artifact]]:
    """Write the ONNX file and, with `engine_settings`, the engine of each export.

    Args:
        exports: What to export.
        stem: The comparison's folder with the model's name: recipes name the final files, beside it.
        staging: The folder to write into.
        engine_settings: Fields of `Recipe` of engines alone; None builds none.
        reporter: Progress, whose steps begin here, and cancellation.
        workers: Those that build, side by side; None builds here, each engine after its ONNX file.

    Returns:
        Artifacts by label and format.

    Raises:
        TrtkitError: As `export` does.
    """
    artifacts: dict[str, dict[str, Artifact]] = {}
    recipes: dict[str, Recipe] = {}
    for one in exports:
        reporter.begin(f"export {one.name}")
        artifacts[one.name] = {"onnx": _export(reporter, one, one.make_recipe("onnx", stem), staging)}
        if engine_settings is not None:
            recipes[one.name] = one.make_recipe("engine", stem, **engine_settings)
            if workers is None:
                reporter.begin(f"build {one.name} engine")
                artifacts[one.name]["engine"] = _export(reporter, one, recipes[one.name], staging)
    if workers is not None and recipes:
        built = workers.map(
            build_on_worker, list(recipes.items()), common=[{one.name: one for one in exports}], stage="build engines"
        )
        with contextlib.closing(built):
            for name, recipe in recipes.items():
                reporter.begin(f"build {name} engine")
                artifact, content = next(built)
                path = staging / artifact.path.name
                write_bytes(path, content)
                artifacts[name]["engine"] = dataclasses.replace(artifact, path=path, recipe=recipe)
    return artifacts


def _export(reporter: Reporter, export: Export, recipe: Recipe, staging: Path) -> Artifact:
    from trtkit.exporter import export_with_graph

    return export_with_graph(
        export.model,
        recipe,
        calibration=export.calibration,
        # An engine's accuracy is measured next, on more images.
        verify=False,
        path=staging / Path(str(recipe.output)).name,
        progress=reporter.progress,
        cancel=reporter.cancel,
    )[0]


def build_on_worker(
    reporter: Reporter, exports: Mapping[str, Export], shard: tuple[str, Recipe]
) -> tuple[Artifact, bytes]:
    """Build an engine in a worker.

    Args:
        reporter: Progress and cancellation.
        exports: By label.
        shard: A label, and the recipe of its engine.

    Returns:
        The artifact, and its file's content.
    """
    name, recipe = shard
    # TensorRT holds the interpreter while it builds, and may crash: the worker answers, and cancels, all the same.
    recipe = dataclasses.replace(recipe, isolate=True)
    with temporary_folder() as folder:
        artifact = _export(reporter, exports[name], recipe, folder)
        return artifact, artifact.path.read_bytes()


def time_runners(
    runners: Mapping[str, Runner],
    paths: Mapping[str, Path | str],
    settings: Mapping[str, Any],
    *,
    device: int | str | None,
    times_layers: bool,
    reporter: Reporter,
    workers: EngineWorkers | None,
) -> tuple[Timing, dict[str, pl.DataFrame]]:
    """Time runners alike, in one process.

    Args:
        runners: By label, opened.
        paths: What they were opened from, by label: a worker opens it again.
        settings: Arguments of `benchmark`.
        device: The device of engines.
        times_layers: Whether layers are timed too.
        reporter: Progress, whose steps begin here, and cancellation.
        workers: One of them times; None times here.

    Returns:
        Latencies, and timed layers by label.

    Raises:
        TrtkitError: As `benchmark` does.
    """
    if workers is None:
        return _time(reporter, runners, settings, times_layers=times_layers)
    files = {label: SentFile.read(path) for label, path in paths.items()}
    return workers.run(
        time_on_worker, files, settings, device, times_layers, stage="time on a worker",
        progress=reporter.shared_progress,
    )  # fmt: skip


def time_on_worker(
    reporter: Reporter,
    files: Mapping[str, SentFile],
    settings: Mapping[str, Any],
    device: int | str | None,
    times_layers: bool,
) -> tuple[Timing, dict[str, pl.DataFrame]]:
    """As `time_runners`, in a worker.

    Args:
        reporter: Progress and cancellation.
        files: By label.
        settings: Arguments of `benchmark`.
        device: The device of engines.
        times_layers: Whether layers are timed too.
    """
    # As the caller's steps, so that they begin there with the worker's.
    steps = (*(f"benchmark batch {size}" for size in settings["batch"]), LAYERS)
    reporter.start(Plan(verb="compare", steps=steps))
    with contextlib.ExitStack() as stack:
        runners = {label: stack.enter_context(file.open(device=device)) for label, file in files.items()}
        return _time(reporter, runners, settings, times_layers=times_layers)


def _time(
    reporter: Reporter, runners: Mapping[str, Runner], settings: Mapping[str, Any], *, times_layers: bool
) -> tuple[Timing, dict[str, pl.DataFrame]]:
    timing = benchmark(runners, **settings, progress=reporter.shared_progress, cancel=reporter.cancel)
    if not times_layers:
        return timing, {}
    reporter.begin(LAYERS)
    return timing, time_layers(runners)
