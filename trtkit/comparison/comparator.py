"""compare(): every precision of one model, judged and timed by the same images, code and clock."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.codegen import render_command, render_python
from trtkit.comparison.comparison import Comparison
from trtkit.comparison.tables import comparison_facts, comparison_frame, concat_by_precision
from trtkit.errors import CapabilityError, OutputExistsError, RecipeError
from trtkit.evaluation.latency import Timing, benchmark
from trtkit.evaluation.significance import compute_all_differences
from trtkit.files import write_json
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import round_imgsz

if TYPE_CHECKING:
    from trtkit.backends import Capabilities
    from trtkit.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = ["PRECISIONS", "compare", "join_comparison"]

PRECISIONS = ("fp32", "fp16", "int8")


def compare(
    model: Model | str | Path,
    data: str | Path | Dataset,
    precisions: Sequence[str] = PRECISIONS,
    *,
    split: str = "val",
    imgsz: int | tuple[int, int] | None = None,
    batch: int | Sequence[int] = 1,
    dynamic: bool | None = None,
    simplify: bool = True,
    workspace: float | None = None,
    keep: Sequence[str] = (),
    calibration: Calibration | str | Path | None = None,
    calibration_images: int = 512,
    fraction: float = 1.0,
    eval_images: int | None = None,
    build: bool | None = None,
    backend: str | None = None,
    device: int | str | None = None,
    runs: int = 100,
    seconds: float = 5.0,
    seed: int = 0,
    output: str | Path = "runs/compare",
    overwrite: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Export a model in several precisions, judge and time each alike, and write down what each costs and buys.

    Engines run where they can; where none can, ONNX Runtime judges the same graphs, and says so beside every time.

    Args:
        model: From `load`, or a file it takes.
        data: A data set's YAML file, with labels.
        precisions: Any of "fp32", "fp16", "int8"; changes are told against "fp32", or the first without it.
        split: The split that judges.
        imgsz: Image side, or (height, width), pixels; None takes the model's own.
        batch: Batch sizes to time; the largest is what engines are built for.
        dynamic: Leave batch, height and width open in all precisions; None does so where several batches are timed.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        keep: fnmatch patterns of ONNX node names that stay in high precision.
        calibration: For INT8, or the folder of a saved one; None calibrates on `data`'s `train`.
        calibration_images: Most images to calibrate on.
        fraction: Share of the split to calibrate on, (0, 1].
        eval_images: Most images to judge on, a seeded sample; None takes all.
        build: Build engines; None does so where a backend can, True fails where none can, False never does.
        backend: "tensorrt", "tensorrt_rtx", or "onnxruntime" to build nothing; None takes the best present.
        device: GPU index or name, or "sm89" to build for a GPU that is not here.
        runs: Most runs timed for each precision and batch.
        seconds: Most seconds timed for each precision and batch.
        seed: Seed of samples and of the images that are timed.
        output: Folder for the files, `report.html`, `comparison.parquet` and `recipe.json`.
        overwrite: Replace a comparison that is already there.
        progress: Receives events.
        cancel: Asked between steps.

    Returns:
        The comparison, already saved in `output`.

    Raises:
        RecipeError: A setting is out of range.
        OutputExistsError: `output` holds a comparison and `overwrite` is false; nothing was computed.
        CapabilityError: `build=True` and no engine can be built here.
        ModelError, DataError, CalibrationError, BuildError: From the steps.
        CancelledError: The caller cancelled; finished files stay, no comparison was written.
    """
    from trtkit import backends
    from trtkit.evaluation.evaluator import evaluate
    from trtkit.models import Model, load

    settings = {name: value for name, value in locals().items() if name in inspect.signature(compare).parameters}
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    precisions = (precisions,) if isinstance(precisions, str) else tuple(precisions)
    if not precisions or not set(precisions) <= set(PRECISIONS) or len(set(precisions)) < len(precisions):
        raise RecipeError(
            f"compare {precisions}", "that is no list of precisions", f"choose from {', '.join(PRECISIONS)}"
        )
    folder = Path(output)
    if (folder / "comparison.json").exists() and not overwrite:
        raise OutputExistsError(
            f"write {folder}", "it holds a comparison, which was kept", "pass overwrite=True or another output"
        )
    reporter = Reporter(progress, cancel)
    watch: dict[str, Any] = {"progress": progress, "cancel": cancel}
    builder, why_not = _resolve_builder(build, backend, device)
    reporter.step("load", 0, 1)
    loaded = model if isinstance(model, Model) else load(model)
    size = round_imgsz(loaded.imgsz if imgsz is None else imgsz, loaded.stride)
    ranges = None
    if "int8" in precisions:
        ranges = _resolve_calibration(
            loaded, data, calibration, calibration_images, fraction, max(batches), seed, size, watch
        )
    graph = {
        "imgsz": size, "dynamic": len(batches) > 1 if dynamic is None else dynamic, "simplify": simplify,
        "batch": max(batches), "keep": keep, "overwrite": True,
    }  # fmt: skip
    reporter.step("trace", 0, 1)
    once = _trace_once(loaded, graph)
    made = {
        label: _export_precision(once, label, folder, graph, ranges, builder, device, workspace, watch)
        for label in precisions
    }
    on_gpu, where, why_not_run = _check_run(builder, device)
    with contextlib.ExitStack() as stack:
        # Engines for all or for none: a comparison across runners would compare the runners.
        opened = {
            label: stack.enter_context(backends.open(files["engine" if on_gpu else "onnx"].path, device=where))
            for label, files in made.items()
        }
        judged = {
            label: evaluate(runner, data, split, eval_images=eval_images, seed=seed, **watch)
            for label, runner in opened.items()
        }
        timing = benchmark(opened, batch=batches, runs=runs, seconds=seconds, seed=seed, **watch)
    plain = _plain_arguments(loaded, settings)
    comparison = join_comparison(
        loaded,
        made,
        judged,
        timing,
        settings=plain,
        calibration=ranges,
        builder=builder.title if builder else None,
        why_not_built=why_not,
        why_not_run=why_not_run,
        python=render_python("compare", compare, plain),
        command=render_command("compare", compare, plain),
    )
    _write_files(comparison, folder)
    reporter.step("done", 1, 1, f"wrote {folder}")
    return comparison


def _resolve_builder(
    build: bool | None, backend: str | None, device: int | str | None
) -> tuple[Capabilities | None, str]:
    """The backend that builds, or None and the reason."""
    from trtkit import backends

    if build is False or backend == "onnxruntime":
        return None, "none was asked for"
    try:
        return backends.require_build(backend, device=device), ""
    except CapabilityError as error:
        if build or backend:
            raise
        return None, error.found


def _gpu_matches(builder: Capabilities, sm: str) -> bool:
    """Whether the first GPU is of a compute capability that engines were built for."""
    return builder.gpu is not None and builder.gpu.sm == sm


def _resolve_calibration(
    model: Model,
    data: str | Path | Dataset,
    given: Calibration | str | Path | None,
    calibration_images: int,
    fraction: float,
    batch: int,
    seed: int,
    imgsz: tuple[int, int],
    watch: Mapping[str, Any],
) -> Calibration:
    from trtkit.calibration import Calibration, calibrate

    if given is None:
        return calibrate(
            model,
            data,
            calibration_images=calibration_images,
            fraction=fraction,
            batch=2 * batch,
            seed=seed,
            imgsz=imgsz,
            **watch,
        )
    return given if isinstance(given, Calibration) else Calibration.load(given)


def _trace_once(model: Model, graph: Mapping[str, Any]) -> Model:
    """The model as its FP32 graph: tracing is slow, and all precisions are to be made from one graph."""
    from trtkit.graph.torch_export import trace

    if model.proto is not None:
        return model
    names = ("imgsz", "batch", "dynamic", "simplify")
    return dataclasses.replace(model, module=None, proto=trace(model, **{name: graph[name] for name in names}))


def _export_precision(
    model: Model,
    precision: str,
    folder: Path,
    graph: Mapping[str, Any],
    ranges: Calibration | None,
    builder: Capabilities | None,
    device: int | str | None,
    workspace: float | None,
    watch: Mapping[str, Any],
) -> dict[str, Artifact]:
    """The files of one precision by format."""
    from trtkit.exporter import export

    shared: dict[str, Any] = {
        **graph, "half": precision == "fp16", "int8": precision == "int8", **watch,
        "calibration": ranges if precision == "int8" else None,
    }  # fmt: skip
    stem = folder / f"{model.stem}-{precision}"
    made = {"onnx": export(model, format="onnx", output=stem.with_suffix(".onnx"), **shared)}
    if builder is not None:
        made["engine"] = export(
            model, format="engine", output=stem.with_suffix(".engine"),
            backend=builder.backend, device=device, workspace=workspace, **shared,
        )  # fmt: skip
    return made


def _check_run(builder: Capabilities | None, device: int | str | None) -> tuple[bool, int | str | None, str]:
    """Whether the built engines run here, on which device, and why not."""
    from trtkit import backends
    from trtkit.backends.devices import parse_device

    if builder is None:
        return False, None, "there is none"
    wanted = parse_device(device)
    if wanted.kind == "sm" and not _gpu_matches(builder, wanted.sm):
        return False, None, f"no GPU of {wanted.sm} was found"
    device = None if wanted.kind == "sm" else device
    try:
        backends.require_run(builder.backend, device=device)
    except CapabilityError as error:
        return False, None, error.found
    return True, device, ""


def join_comparison(
    model: Model,
    artifacts: Mapping[str, Mapping[str, Artifact]],
    evaluations: Mapping[str, Evaluation],
    timing: Timing,
    *,
    settings: Mapping[str, Any],
    calibration: Calibration | None = None,
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
        timing: Latency, labelled by precision.
        settings: The arguments behind the numbers, JSON-ready, with "data", "split", "imgsz" and "seed".
        calibration: The calibration of INT8, if there is one.
        builder: Name and version of the engine builder; None where no engine was built.
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
        runners=timing.runners,
        about=about,
        provenance=dataclasses.replace(
            timing.provenance,
            model_hash=model.hash,
            data_hash=evaluations[reference].provenance.data_hash,
            settings={name: value for name, value in settings.items() if name not in ("model", "data", "seed")},
        ),
    )


def _plain_arguments(model: Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain data, without what only watched."""
    plain = {name: value for name, value in settings.items() if name not in ("progress", "cancel")}
    plain["model"] = str(model.source or model.stem)
    plain["data"] = str(getattr(plain["data"], "path", plain["data"]))
    plain["output"] = str(plain["output"])
    if plain["calibration"] is not None and not isinstance(plain["calibration"], (str, Path)):
        plain["calibration"] = None
    for name in ("precisions", "batch", "keep", "imgsz"):
        plain[name] = list(plain[name]) if isinstance(plain[name], (list, tuple)) else plain[name]
    return plain


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
    comparison.save(folder)
