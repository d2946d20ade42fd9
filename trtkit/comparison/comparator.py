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
from trtkit.comparison.engines import LAYERS, Export, find_engine_support, time_runners, trace_once, write_files
from trtkit.comparison.tables import (
    comparison_facts,
    comparison_frame,
    concat_by_precision,
    concat_layers,
)
from trtkit.comparison.thresholds import match_all_thresholds, write_thresholds
from trtkit.comparison.verdict import MAX_DROP
from trtkit.errors import OutputExistsError, RecipeError
from trtkit.evaluation.latency import Timing, estimate_costs
from trtkit.evaluation.significance import compute_all_differences
from trtkit.executor import EngineWorkers, describe_executor
from trtkit.models.model import ModelInfo
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.recipe import round_imgsz
from trtkit.writing import atomic_folder, check_output_folder, find_published, publish_interrupted, write_json

if TYPE_CHECKING:
    from distributed import Client

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
    opt_level: int | None = None,
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
        opt_level: TensorRT's optimization level, 0 (fast build) to 5 (slow build); None takes TensorRT's default, 3.
        runs: Maximum number of timed runs per precision and batch.
        seconds: Maximum time of timed runs per precision and batch, s.
        seed: Seed of the samples and of the timed inputs.
        output: Folder for the files, `report.html`, `comparison.parquet` and `recipe.json`.
        overwrite: Replace an existing comparison.
        executor: A `distributed.Client` (see `open_executor`), whose workers calibrate, build engines, evaluate and
            time; accuracy is the same. Engines are those of the workers with a GPU, one build or timing at a time on
            each, and `backend`, `build` and `device` mean these workers; all precisions are timed by one of them.
        progress: Receives events.
        cancel: Checked between steps.

    Returns:
        The comparison, saved in `output`.

    Raises:
        RecipeError: A setting is out of range, or a candidate has another task, classes or size.
        OutputExistsError: `output` has a comparison and `overwrite` is false; nothing was computed.
        CapabilityError: `build=True` and no engine can be built here, or on the workers of `executor`; these are
            missing or lost, or their GPUs differ or are shared.
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
    builds = build is not False and backend != "onnxruntime"
    workers = None if executor is None else EngineWorkers(executor, reporter, engines=builds)
    engines = find_engine_support(build, backend, device, workers)
    builder = engines.builder
    open_file = backends.open if workers is None else workers.open
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
    suffixes = [".onnx", ".engine"] if builder is not None else [".onnx"]
    written = [folder / f"{loaded.stem}-{name}{end}" for name in (*precisions, *(candidates or {})) for end in suffixes]
    check_output_folder(folder, [*(path.name for path in written), *RESULT_FILES])
    others = load_candidates(
        candidates or {},
        loaded,
        settings=shared,
        written=written,
        builds=builder is not None,
        why_no_engines=engines.why_not_run,
        device=engines.device,
        open_file=open_file,
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
                "builder": builder.title if builder else f"none: {engines.why_not_built}",
                "runner": builder.title if builder and engines.runs else "ONNX Runtime",
            },
            images=images,
            steps=(
                *(["calibrate"] if needs_calibration and given is None else []),
                "trace the graph",
                *_list_file_steps(exported, builds=builder is not None, at_once=workers is not None),
                *(f"evaluate {name}" for name in (*precisions, *others)),
                *(f"benchmark batch {size}" for size in batches),
                *([LAYERS] if engines.runs else []),
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
    traced = trace_once(loaded, shared)
    exports = [
        Export(
            name=name,
            precision=name,
            model=traced,
            settings={**shared, "overwrite": True, "keep": keep},
            calibration=given if name == "int8" else None,
        )
        for name in precisions
    ]
    for name, other in others.items():
        if other.model is not None:
            graph = trace_once(other.model, shared)
            exports.append(
                Export(name=name, precision=other.precision, model=graph, settings={**shared, "overwrite": True})
            )
    plain = _plain_arguments(loaded, arguments)
    # All files appear together: an interrupted comparison leaves the one before it.
    with atomic_folder(folder, remove=Comparison.list_files(folder)) as staging:
        artifacts = write_files(
            exports,
            folder / loaded.stem,
            staging,
            engine_settings=(
                {"backend": builder.backend, "device": device, "workspace": workspace, "opt_level": opt_level}
                if builder
                else None
            ),
            reporter=reporter,
            workers=workers,
        )
        for name, other in others.items():
            if other.engine is not None:
                artifacts[name] = {other.engine.format: other.engine}
        # In the order in which they were given.
        artifacts = {name: artifacts[name] for name in (*precisions, *others)}
        with contextlib.ExitStack() as stack:
            # Engines for all precisions or for none: different runners can't be compared.
            paths = {name: files["engine" if engines.runs else "onnx"].path for name, files in artifacts.items()}
            served = {name for name, other in others.items() if other.is_served}
            runners = {
                name: stack.enter_context(open_file(path, device=None if name in served else engines.device))
                for name, path in paths.items()
            }
            evaluations = {}
            for name, runner in runners.items():
                reporter.begin(f"evaluate {name}")
                evaluations[name] = evaluate(
                    runner, dataset, split, eval_images=eval_images, seed=seed, executor=executor, **watch
                )
            timing, layers = time_runners(
                runners,
                paths,
                {
                    "batch": batches,
                    "runs": runs,
                    "seconds": seconds,
                    "images": _choose_timed_images(prepared.paths, evaluations),
                    "seed": seed,
                },
                device=engines.device,
                times_layers=engines.runs,
                reporter=reporter,
                workers=workers,
            )
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
            why_not_built=engines.why_not_built,
            why_not_run=engines.why_not_run,
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


def _list_file_steps(names: Sequence[str], *, builds: bool, at_once: bool) -> list[str]:
    """The steps that write files: each engine after its ONNX file, or all engines `at_once` at the end."""
    steps = [(f"export {name}", f"build {name} engine") for name in names]
    if not builds:
        return [export for export, _ in steps]
    return [step for pair in (zip(*steps, strict=True) if at_once else steps) for step in pair]


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
