"""compare(): export a model in several precisions, evaluate and time all alike."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.arguments import PRECISIONS
from trtkit.calibration import DEFAULTS
from trtkit.codegen import Expression, load_end2end, needs_end2end, render_command, render_python
from trtkit.comparison.candidates import load_candidates
from trtkit.comparison.comparison import Comparison
from trtkit.comparison.tables import (
    comparison_facts,
    comparison_frame,
    concat_by_precision,
    concat_layers,
    time_layers,
)
from trtkit.comparison.thresholds import match_all_thresholds, write_thresholds
from trtkit.comparison.verdict import MAX_DROP
from trtkit.errors import CapabilityError, OutputExistsError, RecipeError
from trtkit.evaluation.latency import Timing, benchmark, estimate_costs
from trtkit.evaluation.significance import compute_all_differences
from trtkit.executor import describe_executor
from trtkit.models.model import ModelInfo
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.recipe import Recipe, round_imgsz
from trtkit.writing import atomic_folder, check_output_folder, find_published, publish_interrupted, write_json

if TYPE_CHECKING:
    from distributed import Client

    from trtkit.backends import Capabilities
    from trtkit.calibration import Calibration
    from trtkit.comparison.candidates import CandidateSource
    from trtkit.data import Dataset
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = ["PRECISIONS", "compare", "join_comparison"]


@verb
def compare(
    model: Model | str | Path,
    data: str | Path | Dataset,
    precisions: Sequence[str] = PRECISIONS,
    *,
    split: str = "val",
    imgsz: int | tuple[int, int] | None = None,
    batch: int | Sequence[int] = 1,
    max_drop: float = MAX_DROP,
    conf: float = 0.25,
    candidates: Mapping[str, CandidateSource] | None = None,
    dynamic: bool | None = None,
    simplify: bool = True,
    workspace: float | None = None,
    keep: Sequence[str] = (),
    calibration: Calibration | str | Path | None = None,
    calibration_images: int = DEFAULTS.calibration_images,
    fraction: float = DEFAULTS.fraction,
    eval_images: int | None = None,
    build: bool | None = None,
    backend: str | None = None,
    device: int | str | None = None,
    runs: int = 100,
    seconds: float = 5.0,
    seed: int = DEFAULTS.seed,
    output: str | Path = "runs/compare",
    overwrite: bool = False,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Export a model in several precisions, measure accuracy, latency and size of each alike, and say which to ship.

    Engines are evaluated and timed if they run here; else ONNX Runtime is, with the same graphs, and the verdicts say
    that latency was not measured. `Comparison.verdicts` has, for each precision, whether accuracy is kept (by the 95 %
    confidence interval of a paired bootstrap), whether it is faster, and what to do. Claims about single classes are
    corrected for the number of classes by Holm's method (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Args:
        model: From `load`, or a file it takes.
        data: A data set's YAML file or folder, with labels.
        precisions: Any of "fp32", "fp16", "int8"; changes refer to "fp32", or to the first one without it.
        split: The split of the evaluation.
        imgsz: Image side, or (height, width), pixels; None takes the model's own.
        batch: Batch sizes to time; engines are built for the largest.
        max_drop: The largest accepted loss of a metric, e.g. 0.005 of mAP50-95; verdicts are decided against it.
        conf: The confidence threshold in use with FP16. `Comparison.thresholds` and the metadata of the other files say
            which threshold gives each of them FP16's precision or recall (the reference's, without FP16).
        candidates: Models or files by name, measured beside the precisions on the same images: a `Model` (such as the
            end-to-end head of the same checkpoint), an ONNX file (with Q/DQ or NMS inside), an engine, or what `export`
            returned. Each runs in its own precision, a checkpoint in FP32.
        dynamic: Leave batch, height and width open in all precisions; None does so if several batches are timed.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        keep: fnmatch patterns of ONNX node names excluded from INT8 (with FP16: kept in FP32).
        calibration: Calibration of INT8 or the folder of a saved one; None calibrates on the split "train" of `data`.
        calibration_images: Maximum number of calibration images.
        fraction: Share of the split that calibration images are drawn from, in (0, 1].
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        build: Build engines; None does so if a backend can, True fails if none can, False never does.
        backend: "tensorrt", "tensorrt_rtx", or "onnxruntime" to build nothing; None takes the best present.
        device: GPU index or name, or "sm89" to build for a GPU that is not here.
        runs: Maximum number of timed runs per precision and batch.
        seconds: Maximum time of timed runs per precision and batch, s.
        seed: Seed of the samples and of the timed inputs.
        output: Folder for the files, `report.html`, `comparison.parquet` and `recipe.json`.
        overwrite: Replace an existing comparison.
        executor: A `distributed.Client` (see `open_executor`), whose workers calibrate and evaluate; results are the
            same. Files are exported and timed in this process, while the workers have nothing to do.
        progress: Receives events.
        cancel: Checked between steps.

    Returns:
        The comparison, saved in `output`.

    Raises:
        RecipeError: A setting is out of range, or a candidate has another task, classes or size.
        OutputExistsError: `output` has a comparison and `overwrite` is false; nothing was computed.
        CapabilityError: `build=True` and no engine can be built here.
        ModelError, DataError, CalibrationError, BuildError: From the steps.
        OutputError: `output` can't be written; nothing was computed.
        CancelledError: The caller cancelled; nothing was written.
    """
    from trtkit import backends
    from trtkit.calibration import calibrate
    from trtkit.calibration.calibration import load_calibration
    from trtkit.calibration.sampling import count_calibration_images
    from trtkit.evaluation.evaluation import evaluate, prepare_evaluation
    from trtkit.graph.prequantized import is_quantized
    from trtkit.graph.torch_export import check_trace
    from trtkit.models import Model, load

    arguments = {name: value for name, value in locals().items() if name in inspect.signature(compare).parameters}
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    precisions = tuple(precisions)
    folder = check_output_folder(output)
    if find_published(folder, "comparison.json").exists() and not overwrite:
        raise OutputExistsError(
            f"write {folder}",
            "it has a comparison, which was kept",
            "allow overwriting (overwrite=True, --overwrite) or name another output",
            code="comparison-exists",
            path=str(folder),
        )
    reporter = Reporter(progress, cancel)
    watch: dict[str, Any] = {"progress": reporter.progress, "cancel": cancel}
    builder, why_not_built = _resolve_builder(build, backend, device)
    reporter.step("load", 0, 1)
    loaded = model if isinstance(model, Model) else load(model)
    size = round_imgsz(loaded.imgsz if imgsz is None else imgsz, loaded.stride)
    if is_quantized(loaded.proto) and precisions != ("int8",):
        raise RecipeError(
            f"compare {', '.join(precisions)} of {loaded.stem}",
            "it holds Q/DQ, so it is INT8 only",
            "pass the float model it was made from, and this one in candidates=",
            code="compare-model-quantized",
            value=precisions,
        )
    shared: dict[str, Any] = {
        "imgsz": size,
        "dynamic": len(batches) > 1 if dynamic is None else dynamic,
        "simplify": simplify,
        "batch": max(batches),
    }
    # Before any slow work: what is wrong with data, calibration, shape or names raises at once.
    prepared = prepare_evaluation(loaded, data, split, eval_images=eval_images, seed=seed)
    dataset, images = prepared.dataset, {"evaluation": len(prepared.paths)}
    needs_calibration = "int8" in precisions and not is_quantized(loaded.proto)
    given = load_calibration(calibration, loaded) if needs_calibration else None
    if needs_calibration and given is None:
        images["calibration"] = count_calibration_images(
            dataset, loaded, calibration_images=calibration_images, fraction=fraction
        )
    check_trace(loaded, keep, imgsz=size, batch=shared["batch"], dynamic=shared["dynamic"])
    engines_run, run_device, why_not_run = _check_run(builder, device)
    suffixes = [".onnx", ".engine"] if builder is not None else [".onnx"]
    written = [folder / f"{loaded.stem}-{name}{end}" for name in (*precisions, *(candidates or {})) for end in suffixes]
    check_output_folder(folder, [*(path.name for path in written), *RESULT_FILES])
    others = load_candidates(
        candidates or {},
        loaded,
        settings=shared,
        written=written,
        builds=builder is not None,
        why_no_engines="" if engines_run else why_not_run,
        device=run_device,
    )
    exported = [*precisions, *(name for name, other in others.items() if other.engine is None)]
    stems = {f"{loaded.stem}-{name}" for name in exported}
    start_work(
        Plan(
            verb="compare",
            settings={
                "model": loaded.stem,
                "imgsz": size,
                "batch": batches,
                "builder": builder.title if builder else f"none: {why_not_built}",
                "runner": builder.title if builder and engines_run else "ONNX Runtime",
            },
            images=images,
            steps=(
                *(["calibrate"] if needs_calibration and given is None else []),
                "trace the graph",
                *(
                    step
                    for name in exported
                    for step in (f"export {name}", *([f"build {name} engine"] if builder is not None else []))
                ),
                *(f"evaluate {name}" for name in (*precisions, *others)),
                *(f"benchmark batch {size}" for size in batches),
                *(["time the layers"] if engines_run else []),
                WRITE,
            ),
            costs={
                "calibrate": Cost(kind="calibrate", images=images.get("calibration", 0)),
                **{f"build {name} engine": Cost(kind="build") for name in exported},
                **{
                    f"evaluate {name}": Cost(kind="evaluate", images=images["evaluation"])
                    for name in (*precisions, *others)
                },
                **estimate_costs(len(precisions) + len(others), batches, runs=runs, seconds=seconds),
                # Its bootstrap takes about half as long as an evaluation on a processor.
                WRITE: Cost(kind="evaluate", images=images["evaluation"] // 2),
            },
            files=(*(path for path in written if path.stem in stems), *(folder / name for name in RESULT_FILES)),
        ),
        reporter,
    )
    publish_interrupted(folder)
    if needs_calibration and given is None:
        reporter.begin("calibrate")
        given = calibrate(
            loaded,
            dataset,
            calibration_images=calibration_images,
            fraction=fraction,
            batch=2 * max(batches),
            seed=seed,
            imgsz=size,
            executor=executor,
            **watch,
        )
    reporter.begin("trace the graph")
    traced = _trace_once(loaded, shared)
    traced_settings = dict(shared)
    shared |= {"overwrite": True, **watch}
    engine_settings = None
    if builder is not None:
        engine_settings = {"backend": builder.backend, "device": device, "workspace": workspace}
    plain = _plain_arguments(loaded, arguments)
    # All files appear together: an interrupted comparison leaves the one before it.
    with atomic_folder(folder, remove=Comparison.list_files(folder)) as staging:
        artifacts = {
            precision: _export_precision(
                traced,
                precision,
                precision,
                folder / f"{loaded.stem}-{precision}",
                staging,
                {**shared, "keep": keep, "calibration": given if precision == "int8" else None},
                engine_settings,
                reporter,
            )
            for precision in precisions
        }
        for name, other in others.items():
            if other.engine is not None:
                artifacts[name] = {other.engine.format: other.engine}
            else:
                assert other.model is not None
                stem = folder / f"{loaded.stem}-{name}"
                graph = _trace_once(other.model, traced_settings)
                artifacts[name] = _export_precision(
                    graph, name, other.precision, stem, staging, shared, engine_settings, reporter
                )
        with contextlib.ExitStack() as stack:
            # Engines for all precisions or for none: different runners can't be compared.
            runners = {
                name: stack.enter_context(
                    backends.open(
                        files["engine" if engines_run else "onnx"].path,
                        device=None if name in others and others[name].is_served else run_device,
                    )
                )
                for name, files in artifacts.items()
            }
            evaluations = {}
            for name, runner in runners.items():
                reporter.begin(f"evaluate {name}")
                evaluations[name] = evaluate(
                    runner, dataset, split, eval_images=eval_images, seed=seed, executor=executor, **watch
                )
            timing = benchmark(
                runners,
                batch=batches,
                runs=runs,
                seconds=seconds,
                images=_choose_timed_images(prepared.paths, evaluations),
                seed=seed,
                progress=reporter.shared_progress,
                cancel=cancel,
            )
            if engines_run:
                reporter.begin("time the layers")
            layers = time_layers(runners) if engines_run else {}
        reporter.begin(WRITE)
        thresholds = match_all_thresholds(evaluations, conf, seed)
        artifacts = write_thresholds(artifacts, thresholds, staging, evaluations, conf)
        comparison = join_comparison(
            loaded,
            _move_artifacts(artifacts, staging, folder),
            evaluations,
            timing,
            layers=layers,
            thresholds=thresholds,
            settings=plain,
            calibration=given,
            candidates={name: other.facts() for name, other in others.items()},
            builder=builder.title if builder else None,
            why_not_built=why_not_built,
            why_not_run=why_not_run,
            python=render_python("compare", compare, {**plain, "model": _describe_candidate(loaded)}),
            command=render_command("compare", compare, _without_expressions(plain), end2end=needs_end2end(loaded)),
        )
        machine = {**comparison.provenance.machine, **describe_executor(executor)}
        comparison = dataclasses.replace(
            comparison, provenance=dataclasses.replace(comparison.provenance, machine=machine)
        )
        _write_files(comparison, staging)
    reporter.finish(f"wrote {folder}")
    return comparison


def _move_artifacts(
    artifacts: Mapping[str, Mapping[str, Artifact]], staging: Path, folder: Path
) -> dict[str, dict[str, Artifact]]:
    """Artifacts by precision and format with the paths that they get when the comparison is published."""
    return {
        precision: {
            kind: dataclasses.replace(file, path=folder / file.path.name) if file.path.parent == staging else file
            for kind, file in files.items()
        }
        for precision, files in artifacts.items()
    }


WRITE = "write the comparison and its report"
"""The last step."""

RESULT_FILES = ("report.html", "recipe.json", "comparison.json", "comparison.parquet")
"""The files of a comparison beside its models and further tables."""


def _resolve_builder(
    build: bool | None, backend: str | None, device: int | str | None
) -> tuple[Capabilities | None, str]:
    """The backend that builds engines, or None and why not."""
    from trtkit import backends

    if backend is not None:
        backends.get_backend(backend)
    if build is False or backend == "onnxruntime":
        return None, "not requested"
    try:
        return backends.require_build(backend, device=device), ""
    except CapabilityError as error:
        if build or backend:
            raise
        return None, error.found


def _gpu_matches(builder: Capabilities, sm: str) -> bool:
    """Whether the first GPU has the compute capability that engines were built for."""
    return builder.gpu is not None and builder.gpu.sm == sm


def _trace_once(model: Model, settings: Mapping[str, Any]) -> Model:
    """The model as its FP32 graph, so that all precisions are made from one graph and tracing runs once."""
    from trtkit.graph.torch_export import trace

    return model if model.proto is not None else dataclasses.replace(model, module=None, proto=trace(model, **settings))


def _export_precision(
    model: Model,
    name: str,
    precision: str,
    stem: Path,
    staging: Path,
    settings: Mapping[str, Any],
    engine_settings: Mapping[str, Any] | None,
    reporter: Reporter,
) -> dict[str, Artifact]:
    """The ONNX file and, with `engine_settings`, the engine of one precision or candidate, by format.

    Their recipes name the final files, beside `stem`; they are written into `staging`.
    """
    from trtkit.exporter import export_with_graph

    fields = [field.name for field in dataclasses.fields(Recipe)]
    shared = {key: value for key, value in settings.items() if key in fields and key != "calibration"}
    others = {key: settings.get(key) for key in ("calibration", "progress", "cancel")}
    artifacts = {}
    for step, kind, more in (
        (f"export {name}", "onnx", {}),
        (f"build {name} engine", "engine", engine_settings),
    ):
        if more is None:
            continue
        reporter.begin(step)
        recipe = Recipe(
            model=str(model.source or type(model).__name__),
            format=kind,
            half=precision == "fp16",
            int8=precision == "int8",
            end2end=model.end2end is True,
            output=str(stem.with_name(f"{stem.name}.{kind}")),
            **shared,
            **more,
        )
        path = staging / Path(str(recipe.output)).name
        # An engine's accuracy is measured next, on more images.
        artifacts[kind], _ = export_with_graph(model, recipe, verify=False, path=path, **others)
    return artifacts


def _check_run(builder: Capabilities | None, device: int | str | None) -> tuple[bool, int | str | None, str]:
    """Whether the engines run here, on which device, and why not."""
    from trtkit import backends
    from trtkit.backends.devices import parse_device

    if builder is None:
        return False, None, "none was built"
    target = parse_device(device)
    if target.kind == "sm" and not _gpu_matches(builder, target.sm):
        return False, None, f"no GPU of {target.sm} was found"
    device = None if target.kind == "sm" else device
    try:
        backends.require_run(builder.backend, device=device)
    except CapabilityError as error:
        return False, None, error.found
    return True, device, ""


TIMED_IMAGES = 64
"""Images that the stages of `predict` are timed on, one after the other."""


def _choose_timed_images(paths: Sequence[Path], evaluations: Mapping[str, Evaluation]) -> tuple[Path, ...] | None:
    """The first images that could be read; None without any."""
    unread = {path for evaluation in evaluations.values() for path in evaluation.skipped}
    return tuple(path for path in paths if str(path) not in unread)[:TIMED_IMAGES] or None


def join_comparison(
    model: Model,
    artifacts: Mapping[str, Mapping[str, Artifact]],
    evaluations: Mapping[str, Evaluation],
    timing: Timing,
    *,
    settings: Mapping[str, Any],
    layers: Mapping[str, pl.DataFrame] | None = None,
    thresholds: Mapping[str, pl.DataFrame] | None = None,
    calibration: Calibration | None = None,
    candidates: Mapping[str, Mapping[str, Any]] | None = None,
    builder: str | None = None,
    why_not_built: str = "",
    why_not_run: str = "",
    python: str = "",
    command: str = "",
) -> Comparison:
    """Join the evaluations, the latency and the files of several precisions into a comparison.

    Args:
        model: The compared model.
        artifacts: Files by precision and format; each precision has an ONNX file.
        evaluations: Accuracy by precision, on the same images.
        timing: Latencies, labeled by precision.
        settings: The arguments behind the numbers, JSON-ready, with "data", "split", "imgsz" and "seed"; "max_drop" if
            it is not the default.
        layers: Timed layers of the engines by precision, which say why one is not faster; None without engines.
        thresholds: `match_thresholds` by precision, for the confidence `settings["conf"]`.
        calibration: The calibration of INT8, if there is one.
        candidates: `Candidate.facts` by name; their artifacts and evaluations stand beside those of the precisions.
        builder: Name and version of the engine builder; None if no engine was built.
        why_not_built: Why no engine was built.
        why_not_run: Why the engines do not run here.
        python: Python that repeats the comparison.
        command: The command line that repeats it.

    Returns:
        The comparison; nothing is written.
    """
    about = {
        **comparison_facts(model, artifacts, evaluations, calibration, settings["imgsz"]),
        **{name: settings[name] for name in ("data", "split")},
        "max_drop": settings.get("max_drop", MAX_DROP),
        "conf": settings.get("conf"),
        "candidates": dict(candidates or {}),
        "builder": builder,
        "why_not_built": why_not_built,
        "why_not_run": why_not_run,
        "python": python,
        "command": command,
    }
    reference = about["reference"]
    differences = compute_all_differences(evaluations, reference, seed=settings["seed"])
    primary = [column for column, _ in about["metrics"]]
    return Comparison(
        rows=comparison_frame(artifacts, evaluations, timing, reference, primary, differences),
        differences=differences,
        classes=concat_by_precision({label: one.per_class for label, one in evaluations.items()}),
        images=concat_by_precision({label: one.per_image for label, one in evaluations.items()}),
        detections=concat_by_precision({label: one.detections for label, one in evaluations.items()}),
        labels=concat_by_precision({label: one.labels for label, one in evaluations.items()}),
        samples=timing.samples,
        rounds=timing.rounds,
        offline=timing.offline,
        stages=timing.stages,
        runners=timing.runners,
        layers=concat_layers(layers or {}),
        thresholds=concat_by_precision(thresholds) if thresholds else pl.DataFrame(),
        about=about,
        provenance=dataclasses.replace(
            timing.provenance,
            model_hash=model.hash,
            data_hash=evaluations[reference].provenance.data_hash,
            settings={name: value for name, value in settings.items() if name not in ("model", "data", "seed")},
        ),
    )


def _plain_arguments(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as JSON-ready data, without what controls the run."""
    plain = {name: value for name, value in settings.items() if name not in ("executor", "progress", "cancel")}
    plain["model"] = str(model.source or model.stem)
    plain["data"] = str(getattr(plain["data"], "path", plain["data"]))
    plain["output"] = str(plain["output"])
    if plain["candidates"] is not None:
        plain["candidates"] = {name: _describe_candidate(value) for name, value in plain["candidates"].items()}
    if plain["calibration"] is not None and not isinstance(plain["calibration"], (str, Path)):
        plain["calibration"] = None
    for name in ("precisions", "batch", "keep", "imgsz"):
        plain[name] = list(plain[name]) if isinstance(plain[name], (list, tuple)) else plain[name]
    return plain


def _without_expressions(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a command line can take: it has no option for the head of a candidate."""
    candidates = plain["candidates"] or {}
    files = {name: value for name, value in candidates.items() if not isinstance(value, Expression)}
    return {**plain, "candidates": files or None}


def _describe_candidate(value: Any) -> str:
    """A candidate's file, as an expression where the file alone does not give the model, or the model's name."""
    if not isinstance(value, ModelInfo):
        return str(getattr(value, "path", value))
    source = getattr(value, "source", None)
    if needs_end2end(value):
        return load_end2end(str(source))
    return str(source or value.architecture or "model")


def _write_files(comparison: Comparison, folder: Path) -> None:
    comparison.report(folder / "report.html")
    write_json(
        folder / "recipe.json",
        {
            "verb": "compare",
            "settings": {
                "model": comparison.about["model"],
                "data": comparison.about["data"],
                **comparison.provenance.settings,
            },
            **{name: comparison.about[name] for name in ("python", "command", "recipes")},
        },
    )
    comparison.write_files(folder)
