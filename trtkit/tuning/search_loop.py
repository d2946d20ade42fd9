"""search(): find the fastest mixed-precision INT8/FP16 export within an accepted loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import polars as pl

from trtkit.calibration import DEFAULTS, Calibration, calibrate
from trtkit.calibration.algorithms import format_algorithm
from trtkit.calibration.calibration import load_calibration, resolve_imgsz
from trtkit.calibration.sampling import count_calibration_images
from trtkit.codegen import needs_end2end
from trtkit.errors import CalibrationError
from trtkit.evaluation.evaluation import prepare_evaluation
from trtkit.evaluation.significance import TUNING_RESAMPLES
from trtkit.executor import EngineWorkers, describe_executor
from trtkit.graph.analysis import block_of
from trtkit.graph.torch_export import check_trace, trace
from trtkit.models import Model, load
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, describe_machine
from trtkit.tasks import get_task
from trtkit.tuning.corrections import equalize
from trtkit.tuning.int8_evaluation import PrecisionAssignment, Trials
from trtkit.tuning.measurement import (
    CachedEvaluator,
    ResultCache,
    select_cost_backend,
    select_cost_model,
)
from trtkit.tuning.noise import LayerNoise
from trtkit.tuning.noise_probe import (
    REPAIRED_ASSIGNMENTS,
    NoiseProbe,
    measure_noise_shares,
    repair_ranges,
    select_probe_split,
)
from trtkit.tuning.search import Search
from trtkit.writing import temporary_folder

if TYPE_CHECKING:
    import torch
    from distributed import Client

    from trtkit.data import Dataset

__all__ = ["search"]

EXCLUSION_SHARES = (0.02, 0.05, 0.08, 0.11, 0.14, 0.2, 0.3, 0.45, 0.6)
"""Shares of the multiply-accumulates to exclude from INT8, tried in this order until the loss is accepted."""

EXTRA_SHARES = (0.05, 0.14)
"""Shares to exclude if full INT8 is accepted: they show what slower assignments gain."""


@verb
def search(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    max_drop: float = 0.005,
    *,
    split: str = "val",
    eval_images: int | None = None,
    calibration: Calibration | str | Path | None = None,
    calibration_images: int = DEFAULTS.calibration_images,
    probe_images: int = 8,
    trials: int = 16,
    keep: Sequence[str] = (),
    repair: bool = True,
    imgsz: int | tuple[int, int] | None = None,
    batch: int = 1,
    backend: str | None = None,
    resamples: int = TUNING_RESAMPLES,
    threads: int | None = None,
    seed: int = DEFAULTS.seed,
    cache_dir: str | Path | None = None,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Search:
    """Find the fastest assignment of INT8 and FP16 to layers that loses at most `max_drop` of the task's metric.

    INT8 is repaired before layers are excluded from it: cross-layer equalization where the graph allows it, per-tensor
    range selection, bias correction. The noise of each layer is measured on the probe images without labels; only the
    resulting precision assignments are evaluated on `split`. Layers are then excluded in the order of noise per
    multiply-accumulate, in growing numbers, until the loss is accepted.

    With few evaluation images a loss of 0.001 is not significant: see the confidence interval in `Search.trials`.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels; calibration and probe images come from its `train`.
        max_drop: The largest accepted loss of the metric, e.g. 0.005 of mAP50-95.
        split: The split to evaluate on.
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        calibration: A calibration of this model, or the folder of a saved one; None calibrates as `export` does. With
            `repair` it needs histograms.
        calibration_images: Maximum number of calibration images; not used with `calibration`.
        probe_images: Number of images that layer noise is measured on.
        trials: Maximum number of trials.
        keep: fnmatch patterns of ONNX node names that stay in FP16 in every trial.
        repair: Try equalization, range selection and bias correction before excluding layers from INT8.
        imgsz: Image side, or (height, width), pixels; None uses the calibration's, else the model's own.
        batch: Images per run, for evaluation and latency.
        backend: "tensorrt" or "tensorrt_rtx" for the latency of engines, "onnxruntime" for the cost model; None uses
            engines where they run, else the cost model.
        resamples: Number of bootstrap resamples.
        threads: Images processed in parallel in noise measurements; None uses one per core.
        seed: Seed of the image samples and the resamples.
        cache_dir: Cache directory; an interrupted search resumes from it.
        executor: A `distributed.Client` (see `open_executor`), whose workers run the images; accuracy is the same.
            Engines are built and timed on the workers with a GPU, one at a time on each, and `backend` means these.
        progress: Progress callback.
        cancel: Cancellation token.

    Returns:
        The trials, the chosen assignment and its calibration.

    Raises:
        RecipeError: A setting is out of range, or `keep` matches no node.
        CalibrationError: The calibration was measured on another model or holds no histograms.
        CapabilityError: `backend` can't build and run engines on this machine, or on the workers of `executor`; these
            are missing or lost, or their GPUs differ or are shared.
        DataError, ModelError: The data or the model can't be read.
        CancelledError: The caller cancelled; finished steps are in `cache_dir`.
    """
    keep = tuple(keep)
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    given = load_calibration(calibration, loaded)
    size = resolve_imgsz(imgsz, loaded, given)
    prepared = prepare_evaluation(loaded, data, split, eval_images=eval_images, seed=seed)
    dataset, images = prepared.dataset, {"evaluation": len(prepared.paths)}
    if given is None:
        images["calibration"] = count_calibration_images(dataset, loaded, calibration_images=calibration_images)
    elif repair and not given.histograms:
        raise CalibrationError(
            f"select ranges for {loaded.stem} from a given calibration",
            "it holds no histograms",
            "calibrate with histograms (histograms=True, --histograms), or search without repair "
            "(repair=False, --no-repair)",
            code="tuning-histograms-missing",
        )
    images["probe"] = min(probe_images, len(dataset.images(select_probe_split(dataset, given, split))))
    check_trace(loaded, keep, imgsz=size)
    workers = None if executor is None else EngineWorkers(executor, reporter, engines=backend != "onnxruntime")
    cost_backend = select_cost_backend(backend, workers)
    # FP16 and the assignments without excluded layers are tried in any case.
    most_trials = max(trials, 1 + (REPAIRED_ASSIGNMENTS if repair else 1))
    start_work(
        Plan(
            verb="search",
            settings={"model": loaded.stem, "imgsz": size, "batch": batch, "cost": cost_backend, "cache": cache_dir},
            images=images,
            steps=(
                *(["calibrate"] if given is None else []),
                *([REPAIR] if repair else []),
                "measure every layer",
                "evaluate fp32",
                *(f"trial {number}" for number in range(1, most_trials + 1)),
            ),
            costs={
                "calibrate": Cost(kind="calibrate", images=images.get("calibration", 0)),
                "evaluate fp32": Cost(kind="evaluate", images=images["evaluation"]),
                # A search ends early where a loss is accepted, so that its time is not known.
                **{step: Cost(kind=step) for step in (REPAIR, "measure every layer", f"trial {most_trials}")},
            },
        ),
        reporter,
    )
    cache = ResultCache(cache_dir)
    notes: list[str] = []
    float_graph = trace(loaded, imgsz=size, batch=1)
    searched, graph = loaded, float_graph
    if repair and given is None:
        searched, graph = _equalize_model(loaded, float_graph, notes)
    if given is None:
        reporter.begin("calibrate")
        given = calibrate(
            searched,
            dataset,
            calibration_images=calibration_images,
            histograms=True,
            imgsz=size,
            seed=seed,
            cache_dir=cache.calibrations,
            executor=executor,
            progress=reporter.progress,
            cancel=cancel,
        )
    layer_noise = LayerNoise(graph, len(loaded.names), keep, exact=False, executor=executor)
    probe = NoiseProbe(
        layer_noise,
        dataset,
        given,
        preprocess=loaded.preprocess,
        imgsz=size,
        split=split,
        probe_images=probe_images,
        seed=seed,
        threads=threads,
        reporter=reporter,
    )
    assignments = [PrecisionAssignment(label=format_algorithm(given.algorithm, given.percentile), calibration=given)]
    algorithms: Mapping[str, str] = {}
    if repair:
        reporter.begin(REPAIR)
        assignments, algorithms = repair_ranges(probe, given, cache)
    reporter.begin("measure every layer")
    sqnr = probe.measure_assignments(assignments)
    ranked = sorted(assignments, key=lambda assignment: -sqnr[assignment.label])
    shares = measure_noise_shares(probe, ranked[0], cache)
    order = sorted(shares, key=lambda name: -shares[name] / max(layer_noise.macs.get(name, 0), 1))
    with temporary_folder() as folder:
        trial_list = Trials(
            layer_noise=layer_noise,
            graph=graph if batch == 1 else trace(searched, imgsz=size, batch=batch),
            evaluator=CachedEvaluator(
                dataset=dataset,
                split=split,
                eval_images=eval_images,
                seed=seed,
                cache=cache,
                reporter=reporter,
                batch=batch,
                executor=executor,
            ),
            cost=select_cost_model(
                searched,
                layer_noise.macs,
                size,
                folder,
                batch=batch,
                backend=cost_backend,
                reporter=reporter,
                workers=workers,
            ),
            metric=get_task(loaded.task).metric,
            max_drop=max_drop,
            resamples=resamples,
            seed=seed,
        )
        trial_list.evaluate_references()
        for assignment in assignments:
            trial_list.evaluate_assignment(assignment, sqnr[assignment.label])
        _exclude_layers(trial_list, probe, ranked, order, trials)
    chosen = trial_list.choose()
    reporter.finish()
    return Search(
        trials=trial_list.frame(),
        layers=_build_layer_frame(layer_noise, shares, order, algorithms),
        keep=chosen.keep,
        calibration=given if chosen.assignment is None else chosen.assignment.calibration,
        reached=chosen.row["loss"] <= max_drop,
        max_drop=max_drop,
        metric=trial_list.metric,
        value_float=trial_list.reference.value,
        cost_source=trial_list.cost_source,
        notes=tuple(notes),
        equalized=None if graph is float_graph else bytes(graph.SerializeToString()),
        provenance=Provenance(
            model_hash=searched.hash,
            data_hash=trial_list.data_hash,
            runner=trial_list.runner,
            machine={**describe_machine(), **describe_executor(executor)},
            settings={
                "data": str(dataset.path),
                "max_drop": max_drop,
                "split": split,
                "eval_images": eval_images,
                "calibration": given.hash,
                "calibration_images": calibration_images,
                "probe_images": probe_images,
                "trials": trials,
                "keep": list(keep),
                "repair": repair,
                "imgsz": list(size),
                "batch": batch,
                "backend": backend,
                "end2end": needs_end2end(loaded),
                "resamples": resamples,
                "threads": threads,
            },
            seed=seed,
        ),
    )


REPAIR = "select ranges and correct biases"
"""The step that `repair` asks for."""


def _equalize_model(model: Model, graph: onnx.ModelProto, notes: list[str]) -> tuple[Model, onnx.ModelProto]:
    """The model and graph with equalized weights; as given if no pair of layers can be equalized."""
    equalization = equalize(graph)
    notes.append(str(equalization))
    if not equalization.pairs:
        return model, graph
    loaded = load(equalization.graph, task=model.task, names=dict(model.names), imgsz=model.imgsz)
    return loaded, equalization.graph


def _exclude_layers(
    trials: Trials,
    probe: NoiseProbe,
    ranked: Sequence[PrecisionAssignment],
    order: Sequence[str],
    max_trials: int,
) -> None:
    """Evaluate assignments with more and more layers excluded from INT8, until a loss is accepted.

    Args:
        trials: The trials so far.
        probe: Measures SQNR.
        ranked: Assignments to exclude layers from, the best SQNR first.
        order: Layers in the order of exclusion.
        max_trials: Maximum number of trials.
    """
    accepted_before = trials.is_any_int8_accepted()
    tried: set[int] = {0}
    for share in EXTRA_SHARES if accepted_before else EXCLUSION_SHARES:
        layers = _take_layers(probe.layer_noise, order, share)
        if len(layers) in tried:
            continue
        tried.add(len(layers))
        accepted = False
        # Near the limit, sampling error decides between two assignments of equal SQNR: both are evaluated.
        for base in ranked[:1] if accepted_before else ranked[:2]:
            if len(trials.rows) >= max_trials:
                return
            assignment = dataclasses.replace(
                base, label=f"{base.label}, {len(layers)} layers in fp16", kept_layers=tuple(layers)
            )
            sqnr = probe.measure_assignments([assignment])[assignment.label]
            accepted = trials.evaluate_assignment(assignment, sqnr) or accepted
        if accepted and not accepted_before:
            return


def _take_layers(layer_noise: LayerNoise, order: Sequence[str], share: float) -> list[str]:
    """The first layers of an order that have at most a share of the multiply-accumulates, and at least one layer."""
    total = sum(layer_noise.macs.values())
    macs, layers = 0, list[str]()
    for name in order:
        macs += layer_noise.macs.get(name, 0)
        if layers and macs > share * total:
            break
        layers.append(name)
    return layers


def _build_layer_frame(
    layer_noise: LayerNoise, shares: Mapping[str, float], order: Sequence[str], algorithms: Mapping[str, str]
) -> pl.DataFrame:
    """`Search.layers`."""
    placement = layer_noise.full_int8
    rows: list[dict[str, Any]] = []
    for name in placement.layers:
        group = placement.scale_groups.get(layer_noise.index.nodes[name].input[0], ())
        rows.append(
            {
                "node": name,
                "block": block_of(name),
                "macs": layer_noise.macs.get(name),
                "noise_share": shares[name],
                "algorithm": next((algorithms[tensor] for tensor in group if tensor in algorithms), None),
                "exclusion_rank": order.index(name) + 1,
            }
        )
    return pl.DataFrame(
        rows,
        schema={
            **dict.fromkeys(("node", "block"), pl.String),
            "macs": pl.Int64,
            "noise_share": pl.Float64,
            "algorithm": pl.String,
            "exclusion_rank": pl.Int64,
        },
    )
