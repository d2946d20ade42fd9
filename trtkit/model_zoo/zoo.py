"""zoo(): measure many models, sizes, precisions and backends alike, and keep each row as soon as it is done."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.arguments import PRECISIONS
from trtkit.calibration import DEFAULTS
from trtkit.codegen import non_default_arguments
from trtkit.errors import DataError, ModelError, TrtkitError
from trtkit.evaluation.bootstrap import resample_metric
from trtkit.evaluation.significance import RESAMPLES, compute_interval, compute_loss_interval
from trtkit.files import hash_parts
from trtkit.model_zoo.jobs import (
    ZooData,
    as_tuple,
    check_names,
    choose_backends,
    list_models,
    make_jobs,
    read_model,
)
from trtkit.model_zoo.rows import ROW_FILE, RowJob, load_evaluation, load_row, row_folder
from trtkit.model_zoo.table import Zoo, make_row, make_timings, rows_frame, timings_frame
from trtkit.model_zoo.workers import Facts, describe_error, find_slots, run_jobs, run_on_executor
from trtkit.progress import CancelToken, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.recipe import command_words
from trtkit.results import Provenance
from trtkit.writing import check_output_folder

if TYPE_CHECKING:
    from distributed import Client

    from trtkit.evaluation.bootstrap import ResampledMetric
    from trtkit.model_zoo.jobs import ZooModel

__all__ = ["zoo"]

GUIDE_SIZE = 640
"""The guide's image side for all of them, classify included."""

GUIDE_BATCHES = (1, 8)
"""The guide's batches: 1 for the split, 8 for predict."""


@verb
def zoo(
    models: ZooModel | Sequence[ZooModel] | None = None,
    data: Mapping[str, str | Path] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    *,
    sizes: int | Sequence[int] | None = None,
    backends: str | Sequence[str] | None = None,
    split: str = "val",
    batch: int | Sequence[int] | None = None,
    dynamic: bool | None = None,
    simplify: bool = True,
    workspace: float | None = None,
    keep: Sequence[str] = (),
    calibration_images: int = DEFAULTS.calibration_images,
    fraction: float = DEFAULTS.fraction,
    eval_images: int | None = None,
    opt_level: int | None = None,
    device: int | str | None = None,
    runs: int = 100,
    seconds: float = 5.0,
    resamples: int = RESAMPLES,
    seed: int = DEFAULTS.seed,
    output: str | Path = "runs/zoo",
    overwrite: bool = False,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Zoo:
    """Measure models in several sizes, precisions and backends alike, into one table.

    Each row is one model, size, precision and backend: it is calibrated, exported, evaluated and, as an engine, timed
    by the verbs of these names. All rows of a task share images, preprocessing, NMS and metric. A row is kept in
    `output` as soon as it is done: an interrupted zoo goes on there, and a row whose files are damaged, or whose model,
    data, settings or package versions changed, is measured again. A model that fails is a row with its error.

    Engines are built and timed in one process per GPU, one row at a time; rows of several kinds of GPUs stand apart.

    Args:
        models: Files that `load` takes, folders of them, or models from `load`. None takes the models of Ultralytics'
            TensorRT export guide, YOLOv8n of each task in `data`, at its 640 pixels, batches 1 and 8.
        data: A data set's YAML file or folder, with labels, by task: {"detect": "coco.yaml"}. None takes the embedded
            set of each task, and warns.
        precisions: Any of "fp32", "fp16", "int8"; changes refer to "fp32". A file that holds Q/DQ is INT8 only.
        sizes: Image sides, pixels; None takes each model's own.
        backends: "onnxruntime", "tensorrt" or "tensorrt_rtx", or several; None takes the best that builds and runs
            engines here, else ONNX Runtime.
        split: The split of the evaluation.
        batch: Batch sizes to time; files are made for the largest. None takes 1.
        dynamic: Leave batch, height and width open; None does so if several batches are timed.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        keep: fnmatch patterns of ONNX node names excluded from INT8 (with FP16: kept in FP32), in every model.
        calibration_images: Maximum number of calibration images.
        fraction: Share of the split that calibration images are drawn from, in (0, 1].
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        opt_level: TensorRT's optimization level, 0 (fast build) to 5 (slow build); None takes TensorRT's default, 3.
        device: The GPU of engines; None takes all GPUs of this machine.
        runs: Maximum number of timed runs per row and batch.
        seconds: Maximum time of timed runs per row and batch, s.
        resamples: Number of bootstrap resamples.
        seed: Seed of the samples and of the timed inputs.
        output: Folder for the rows with their files, `zoo.md`, `zoo.json` and the tables.
        overwrite: Measure rows again that are done.
        executor: A `distributed.Client` (see `open_executor`): its workers measure the rows, those of engines one at a
            time on each GPU. They read models and data, and write `output`, at the same paths. Rows of ONNX Runtime
            equal those of this process on the same type of processor.
        progress: Receives events.
        cancel: Checked between steps.

    Returns:
        The table, saved in `output`.

    Raises:
        RecipeError: A setting is out of range, there are no models, a task has no data, or two models share a name.
        TrtkitError: No model can be read or fits its data and the settings: the first one's error.
        CapabilityError: A backend can't build and run engines here, or the workers of `executor` don't fit.
        ModelError, DownloadError: A model's file is missing.
        DataError: A data set can't be used.
        OutputError: `output` can't be written.
        CancelledError: The caller cancelled; finished rows are kept.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("executor", "progress", "cancel")}
    is_guide = models is None
    sources = list_models(models, data)
    sides = as_tuple(sizes) or ((GUIDE_SIZE,) if is_guide else (None,))
    batches = tuple(as_tuple(batch) or (GUIDE_BATCHES if is_guide else (1,)))
    chosen = choose_backends(backends, device, elsewhere=executor is not None)
    folder = check_output_folder(output)
    reporter = Reporter(progress, cancel)
    settings = {
        "dynamic": len(batches) > 1 if dynamic is None else dynamic,
        "keep": list(keep),
        **{name: arguments[name] for name in ROW_SETTINGS},
    }
    reporter.step("load", 0, len(sources))
    data_by_task = {task: str(path) for task, path in (data or {}).items()}

    def render(name: str, named: Mapping[str, str], **only: Any) -> str:
        return _render_command({**arguments, **only}, [name], named)

    inputs = ZooData(data_by_task, settings, embedded=data is None)
    failures: dict[str, TrtkitError] = {}
    jobs: list[RowJob] = []
    errors: dict[str, TrtkitError] = {}
    for source in sources:
        try:
            model = read_model(source)
            rows = [
                job
                for side in sides
                for job in make_jobs(model, side, precisions, chosen, batches, settings, inputs, render)
            ]
        except (ModelError, DataError) as error:
            # The data itself was checked: it does not fit this model.
            failures[str(getattr(source, "source", source))] = error
            continue
        jobs += rows
        errors |= {job.name: why for job in rows if (why := inputs.find_error(model, job)) is not None}
    if len(errors) == len(jobs):
        # Nothing is left to measure: that is bad input, not one model's failure.
        raise next(iter((*errors.values(), *failures.values())))
    check_names(jobs)
    slots = find_slots(device) if executor is None and any(job.is_engine for job in jobs) else ()
    start_work(
        Plan(
            verb="zoo",
            settings={
                "models": ", ".join(dict.fromkeys(job.stem for job in jobs)),
                "backends": ", ".join(chosen),
                "GPUs": ", ".join(slot.name for slot in slots) or None,
            },
            images={f"{task} evaluation": inputs.count(task) for task in dict.fromkeys(job.task for job in jobs)},
            steps=tuple(job.label for job in jobs),
            files=(*(row_folder(folder, job) / ROW_FILE for job in jobs), folder / "zoo.json", folder / "zoo.md"),
        ),
        reporter,
    )
    facts = {name: describe_error(error) for name, error in errors.items()}
    if not overwrite:
        facts |= {
            job.name: row for job in jobs if job.name not in errors and (row := load_row(folder, job)) is not None
        }
    pending = [job for job in jobs if job.name not in facts]
    done = len(jobs) - len(pending)
    reporter.count(done)
    reporter.step("zoo", done, len(jobs), f"{done} of {len(jobs)} rows are there already" if done else "")

    def on_done(job: RowJob, row: Facts) -> None:
        facts[job.name] = row
        reporter.count(len(facts))
        outcome = row.get("error", "done")
        reporter.step("zoo", len(facts), len(jobs), f"{job.label}: {outcome}")

    if executor is None:
        run_jobs(pending, folder, slots=slots, reporter=reporter, on_done=on_done)
    elif pending:
        run_on_executor(pending, folder, executor=executor, reporter=reporter, on_done=on_done)
    result = _join(jobs, facts, failures, folder, arguments, batches, data_by_task, is_guide=is_guide)
    result.save(folder)
    reporter.finish(f"wrote {folder}")
    return result


ROW_SETTINGS = (
    "split",
    "simplify",
    "workspace",
    "calibration_images",
    "fraction",
    "eval_images",
    "opt_level",
    "runs",
    "seconds",
    "seed",
)
"""Arguments that every row has as they are."""


def _render_command(arguments: Mapping[str, Any], models: Sequence[str], data: Mapping[str, str]) -> str:
    """The command line of some rows, quoted for a POSIX shell."""
    values = {**arguments, "data": dict(data) or None, "output": str(arguments["output"])}
    words = command_words(non_default_arguments(zoo, {**values, "models": None, "overwrite": False}))
    return shlex.join(["trtkit", "zoo", *models, *words])


def _join(
    jobs: Sequence[RowJob],
    facts: Mapping[str, Facts],
    failures: Mapping[str, TrtkitError],
    folder: Path,
    arguments: Mapping[str, Any],
    batches: tuple[int, ...],
    data: Mapping[str, str],
    *,
    is_guide: bool,
) -> Zoo:
    """The table of all rows."""
    intervals = _compute_intervals(jobs, facts, folder, arguments["resamples"], arguments["seed"])
    rows = [make_row(job, facts[job.name], intervals.get(job.name, {}), f"rows/{job.name}") for job in jobs]
    timings = [line for job, row in zip(jobs, rows, strict=True) for line in make_timings(row, facts[job.name])]
    failed = [
        {
            "model": Path(name).stem,
            "status": "failed",
            **describe_error(error),
            "command": _render_command(arguments, [name], data),
        }
        for name, error in failures.items()
    ]
    sources = arguments["models"]
    named = [] if is_guide else [str(getattr(one, "source", one)) for one in _flatten(sources)]
    gpus = list(dict.fromkeys(row["gpu"] for row in rows if row.get("gpu")))
    settings = {name: arguments[name] for name in arguments if name not in ("models", "output", "overwrite", "seed")}
    return Zoo(
        rows=rows_frame([*rows, *failed]),
        timings=timings_frame(timings),
        about={
            "split": arguments["split"],
            "seed": arguments["seed"],
            "resamples": arguments["resamples"],
            "batch": list(batches),
            "is_guide": is_guide,
            "notes": _make_notes(gpus, [facts[job.name] for job in jobs]),
            "command": _render_command(arguments, named, data),
        },
        provenance=Provenance(
            model_hash=hash_parts(*sorted({job.model_hash for job in jobs})),
            data_hash=hash_parts(*sorted({job.data_hash for job in jobs})),
            runner=", ".join(dict.fromkeys(row["runner"] for row in rows if row.get("runner"))),
            settings={**settings, "data": dict(data), "keep": list(arguments["keep"])},
            seed=arguments["seed"],
        ),
    )


def _flatten(models: Any) -> list[Any]:
    return [models] if isinstance(models, (str, Path)) or hasattr(models, "hash") else list(models)


def _make_notes(gpus: Sequence[str], facts: Sequence[Facts]) -> list[str]:
    """Remarks for the reader of the table."""
    notes = list(dict.fromkeys(note for row in facts for note in row.get("notes", ())))
    if len(gpus) > 1:
        notes.insert(
            0,
            f"engines ran on different GPUs ({', '.join(gpus)}): their latencies can't be compared, and stand in "
            "tables of their own",
        )
    return notes


def _compute_intervals(
    jobs: Sequence[RowJob], facts: Mapping[str, Facts], folder: Path, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """The primary metric of each finished row, and its change against FP32, with 95 % confidence intervals."""
    from trtkit.comparison.tables import primary_metrics

    resampled: dict[str, ResampledMetric] = {}
    for job in jobs:
        if "error_code" not in facts[job.name]:
            metric = primary_metrics(facts[job.name]["metrics"])[0][0]
            resampled[job.name] = resample_metric(load_evaluation(folder, job), metric, resamples=resamples, seed=seed)
    intervals: dict[str, dict[str, float | None]] = {}
    for job in jobs:
        if job.name not in resampled:
            continue
        own = compute_interval(resampled[job.name])
        values: dict[str, float | None] = {"value": own.value, "low": own.low, "high": own.high}
        reference = resampled.get(dataclasses.replace(job, precision="fp32").name)
        if reference is not None and job.precision != "fp32":
            loss = compute_loss_interval(reference, resampled[job.name])
            # Not -0.0.
            values |= {"delta": 0.0 - loss.value, "delta_low": 0.0 - loss.high, "delta_high": 0.0 - loss.low}
        intervals[job.name] = values
    return intervals
