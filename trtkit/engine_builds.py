"""Engines of an export: built, timed where there are several, and verified."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import BuildError, RecipeError
from trtkit.files import hash_parts
from trtkit.writing import temporary_folder

if TYPE_CHECKING:
    import onnx

    from trtkit.backends import BuildResult, ImplicitCalibration, Passport
    from trtkit.calibration import Calibration
    from trtkit.models import Model
    from trtkit.progress import Reporter
    from trtkit.recipe import Recipe
    from trtkit.verification import Verification

__all__ = ["EngineBuild", "build_engines", "time_builds", "verify_engine"]

RUNS = 200
"""Most timed runs of each build."""

SECONDS = 3.0
"""Most seconds that each build is timed for."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EngineBuild:
    """One build of an engine.

    Attributes:
        result: The engine in memory.
        passport: What it was built with and for.
        p50_ms: Median latency at the largest batch, ms; None if it was not timed.
    """

    result: BuildResult
    passport: Passport
    p50_ms: float | None = None


def build_engines(
    graph: onnx.ModelProto,
    builder: str,
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None,
    size: tuple[int, int],
    reporter: Reporter,
    implicit: ImplicitCalibration | None,
) -> list[EngineBuild]:
    """Build an engine as many times as the recipe says.

    A build chooses kernels by timing them, so that two builds differ. Of several none reads the timing cache, which
    would make them all choose what the first one did.

    Args:
        graph: The graph of the recipe.
        builder: The backend.
        model: From `load`.
        recipe: The settings.
        calibration: The calibration of INT8, else None.
        size: Height and width, pixels.
        reporter: Progress callback and cancellation token.
        implicit: Images for TensorRT's own calibrator, or None.

    Raises:
        BuildError: A build failed.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends
    from trtkit.backends.trt.network import fit_graph

    graph = fit_graph(graph, backends.probe(builder), precision=recipe.precision, space_to_depth=recipe.space_to_depth)
    settings = backends.BuildSettings(
        precision=recipe.precision,
        batch=recipe.batch,
        imgsz=size,
        dynamic=recipe.is_dynamic,
        workspace=recipe.workspace,
        device=recipe.device,
        compatibility=recipe.compatibility,
        weights=recipe.weights,
        opt_level=recipe.opt_level,
        aux_streams=recipe.aux_streams,
        isolate=recipe.isolate,
        timing_cache=recipe.builds == 1,
        implicit=implicit,
    )
    graph_hash = hash_parts(graph.SerializeToString(deterministic=True))
    engines = []
    for number in range(recipe.builds):
        built = backends.build(graph, settings, backend=builder, reporter=reporter)
        passport = backends.Passport.from_build(
            built,
            settings,
            backend=builder,
            model_hash=model.hash,
            recipe=recipe.to_dict(),
            data_hash=calibration.provenance.data_hash if calibration is not None else None,
            calibration_hash=calibration.hash if calibration is not None else None,
            graph_hash=graph_hash,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        engines.append(EngineBuild(result=built, passport=passport))
        if recipe.builds > 1:
            reporter.log(f"build {recipe.precision} engine", f"build {number + 1} of {recipe.builds}")
    return engines


def time_builds(
    builds: Sequence[EngineBuild], metadata: Mapping[str, Any], recipe: Recipe, folder: Path, reporter: Reporter
) -> list[EngineBuild]:
    """Time builds of one engine in turns, at the largest batch.

    Args:
        builds: From `build_engines`.
        metadata: What the engine's file says of the model.
        recipe: The settings.
        folder: Where the engines are written meanwhile.
        reporter: Progress callback and cancellation token.

    Returns:
        The builds with their latency, in the same order.

    Raises:
        EngineError: An engine does not run.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends
    from trtkit.evaluation.latency import benchmark

    with temporary_folder(folder) as temporary:
        files = {
            str(number): backends.write_engine(
                temporary / f"{number}.engine", build.result.plan, metadata, build.passport
            )
            for number, build in enumerate(builds)
        }
        timing = benchmark(
            files,
            batch=recipe.batch,
            runs=RUNS,
            seconds=SECONDS,
            offline_seconds=0,
            stage_runs=0,
            device=recipe.device,
            progress=reporter.progress,
            cancel=reporter.cancel,
        )
    times = dict(timing.frame().select("label", "p50_ms").iter_rows())
    return [dataclasses.replace(build, p50_ms=times[str(number)]) for number, build in enumerate(builds)]


def verify_engine(
    engine: Path, graph: onnx.ModelProto, builder: str, recipe: Recipe, data: Any, path: Path, reporter: Reporter
) -> Verification | None:
    """Compare an engine with its graph; None where that can't be done here.

    Args:
        engine: The engine's file.
        graph: The graph it was built from.
        builder: The backend that built it.
        recipe: The settings of the export.
        data: Images, or None for the embedded ones.
        path: The file that is to be written, for errors.
        reporter: Progress callback and cancellation token; its step is the verification.

    Raises:
        BuildError: The engine differs.
    """
    from trtkit import backends
    from trtkit.errors import CapabilityError, EngineError
    from trtkit.verification import EXPORT_IMAGES, compare_runners

    with contextlib.ExitStack() as stack:
        reason, reference = "", None
        if recipe.weights == "stripped":
            reason = "the engine has no weights yet"
        elif recipe.implicit:
            reason = "TensorRT's calibrator chose its scales, which no graph holds"
        else:
            try:
                backends.require_run(builder, device=recipe.device)
                reference = stack.enter_context(backends.open(graph))
            except (CapabilityError, EngineError, RecipeError) as error:
                # It was built for a GPU elsewhere, this machine can't run it, or ONNX Runtime rejects the graph.
                reason = error.found
        if reference is not None and data is None and reference.info.channels not in (1, 3):
            reason = f"the embedded images have no {reference.info.channels} channels: pass data"
        if reference is None or reason:
            reporter.log("verify", f"not compared with ONNX Runtime: {reason}")
            return None
        runner = stack.enter_context(backends.open(engine, device=recipe.device))
        verification = compare_runners(
            runner, reference, data, EXPORT_IMAGES, progress=reporter.progress, cancel=reporter.cancel
        )
    if verification.verdict != "differs":
        return verification
    bad = verification.images.filter("differs")
    raise BuildError(
        f"export {path}",
        f"the engine that was built differs from its graph in ONNX Runtime: {verification.describe_differences()}",
        "build it at another opt_level or precision; verify=False writes it all the same",
        code="engine-differs",
        images=bad["path"].unique(maintain_order=True).to_list(),
        outputs=bad["output"].unique(maintain_order=True).to_list(),
        batches=bad["batch"].unique().sort().to_list(),
        differences=verification.worst(),
    )
