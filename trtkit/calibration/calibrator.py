"""calibrate(): images in, ranges out."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.calibration.algorithms import ALGORITHMS, DEFAULTS, get_algorithm, resolve_percentile
from trtkit.calibration.calibration import Calibration, check_fits, compute_ranges
from trtkit.calibration.sampling import hash_preprocessing, load_input_batches, select_calibration_images
from trtkit.errors import CalibrationError
from trtkit.files import hash_parts
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import Recipe, round_imgsz
from trtkit.results import Provenance

if TYPE_CHECKING:
    import torch

    from trtkit.backends import ImplicitCalibration
    from trtkit.calibration.calibration import Calibration
    from trtkit.calibration.collector import MinMaxCollector
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = [
    "ALGORITHMS",
    "INT8_ALGORITHM",
    "calibrate",
    "check_fp16_overflow",
    "load_input_batches",
    "prepare_implicit_calibration",
    "resolve_calibration",
    "select_calibration_images",
]

IMAGES_PER_PASS = 4
"""Images that are handed over together where histograms are kept: two run at a time, and none waits for long."""


def calibrate(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset | None = None,
    split: str | None = None,
    algorithm: str = DEFAULTS.algorithm,
    calibration_images: int = DEFAULTS.calibration_images,
    fraction: float = DEFAULTS.fraction,
    batch: int | None = None,
    seed: int = DEFAULTS.seed,
    *,
    percentile: float | None = None,
    histograms: bool | None = None,
    stratify: bool = False,
    imgsz: int | tuple[int, int] | None = None,
    device: int | str | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Calibration:
    """Measure the range of every tensor that INT8 may carry, over a sample of images.

    Images stream through ONNX Runtime in FP32 once; peak memory does not depend on their number, nor do the ranges
    depend on how they were batched. With histograms kept, `Calibration.using` reads any other algorithm off the same
    pass.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file (or folder, for classify). None takes the small embedded set and warns.
        split: The split to draw from; None takes `train`, or `val` with a warning where there is no `train`.
        algorithm: "minmax", "moving_average", "entropy", "percentile" or "mse".
        calibration_images: The largest number of images.
        fraction: The share of the split to draw from, (0, 1].
        batch: Images a run; None takes 2, twice the default export's, as TensorRT's own calibration does. Where
            histograms are kept, images run one by one, two beside each other, whatever this says.
        seed: Seed of the sample.
        percentile: For "percentile": the share of values not clipped, percent; None takes 99.999.
        histograms: Keep histograms; None keeps them where the algorithm needs them. "minmax" alone is faster without.
        stratify: Draw so that every class keeps its share of the images.
        imgsz: Height and width, pixels; None takes the model's.
        device: "cpu", or a GPU that ONNX Runtime offers; None takes the first GPU there, else the processor.
        cache: A folder of earlier calibrations; one is used again only if model, images, preprocessing and every
            setting are the same. None keeps none.
        progress: Receives an event for each batch.
        cancel: Asked at each batch.

    Returns:
        The calibration.

    Raises:
        CalibrationError: Settings at odds, no readable image, or a tensor with NaN or infinities.
        CapabilityError: A GPU was named and there is none.
        DataError: The data set can't be read.
        CancelledError: The caller cancelled.
    """
    from trtkit.models import load

    reporter = Reporter(progress, cancel)
    percentile = _checked(algorithm, percentile, histograms, calibration_images, fraction, batch)
    counting = get_algorithm(algorithm).needs_histogram if histograms is None else histograms
    loaded = load(model)
    size = round_imgsz(imgsz if imgsz is not None else loaded.imgsz, loaded.stride)
    count = batch or DEFAULTS.batch
    dataset, chosen, paths = select_calibration_images(
        data,
        task=loaded.task,
        split=split,
        calibration_images=calibration_images,
        fraction=fraction,
        seed=seed,
        stratify=stratify,
    )
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "percentile": percentile,
        "histograms": counting,
        "split": chosen,
        "calibration_images": calibration_images,
        "fraction": fraction,
        "stratify": stratify,
        "batch": count,
        "imgsz": list(size),
        "preprocessing": hash_preprocessing(loaded.task, size),
        "data": str(dataset.path),
    }
    provenance = Provenance(
        model_hash=loaded.hash,
        data_hash=dataset.hash_images(paths),
        runner=_runner(device),
        settings=settings,
        seed=seed,
    )
    stage = f"calibrate ({algorithm})"
    notes: list[str] = []
    if cache is not None:
        from trtkit.calibration.storage import CalibrationKey, find_calibration

        found, reason = find_calibration(cache, CalibrationKey.from_provenance(provenance))
        if found is not None:
            reporter.step(stage, len(paths), len(paths), f"taken from the cache in {cache}")
            return found
        notes.append(f"not taken from the cache in {cache}: {reason}")
        reporter.log(stage, notes[-1])
    extremes = _collector(loaded, size, count, device, counting)
    skipped: list[str] = []
    reporter.step(stage, 0, len(paths))
    for images in load_input_batches(paths, task=loaded.task, size=size, batch=_pass(extremes, count), skipped=skipped):
        extremes.add(images)
        reporter.step(stage, extremes.image_count, len(paths))
    if extremes.image_count == 0:
        raise CalibrationError(
            f"calibrate on {chosen!r} of {dataset.path}",
            f"none of its {len(paths)} images could be read",
            "check them",
        )
    seen = extremes.stats()
    calibration = Calibration(
        ranges=compute_ranges(seen, extremes.sources, extremes.names, algorithm, percentile),
        algorithm=algorithm,
        percentile=percentile,
        images=extremes.image_count,
        split=chosen,
        skipped=tuple(skipped),
        stats=seen,
        sources=extremes.sources,
        notes=tuple(notes),
        provenance=dataclasses.replace(provenance, runner=extremes.runner),
    )
    if cache is not None:
        from trtkit.calibration.storage import store_calibration

        store_calibration(cache, calibration)
    return calibration


def _checked(
    algorithm: str, percentile: float | None, histograms: bool | None, images: int, fraction: float, batch: int | None
) -> float | None:
    """The percentile in use, None for an algorithm without one.

    Raises:
        CalibrationError: The settings are out of range or at odds.
    """
    entry = get_algorithm(algorithm)
    if images < 1 or not 0 < fraction <= 1 or (batch is not None and batch < 1):
        raise CalibrationError(
            f"calibrate with images={images}, fraction={fraction}, batch={batch}",
            "there would be nothing to measure",
            "use images >= 1, 0 < fraction <= 1 and batch >= 1",
        )
    if histograms is False and entry.needs_histogram:
        names = tuple(name for name, other in ALGORITHMS.items() if not other.needs_histogram)
        raise CalibrationError(
            f"calibrate with algorithm={algorithm!r} and histograms=False",
            f"{algorithm} needs histograms",
            f"omit histograms, or use one of {', '.join(names)}",
            code="calibration-histograms-needed",
            value=algorithm,
            names=names,
        )
    return resolve_percentile(algorithm, percentile)


def _collector(
    model: Model, size: tuple[int, int], batch: int, device: int | str | None, counting: bool
) -> MinMaxCollector:
    from trtkit.calibration.collector import HistogramCollector, MinMaxCollector, get_fixed_batch
    from trtkit.graph.torch_export import trace

    # An ONNX file's batch may be fixed; fewer images are filled up, more would be refused.
    fixed = get_fixed_batch(model.proto) if model.proto is not None else None
    graph = trace(model, imgsz=size, batch=fixed or batch, dynamic_batch=True)
    return (HistogramCollector if counting else MinMaxCollector)(graph, device=device)


def _pass(extremes: MinMaxCollector, batch: int) -> int:
    """Images that go through the graph together; the ranges do not depend on it, memory does."""
    if extremes.collects_histograms:
        return IMAGES_PER_PASS * (extremes.batch or 1)
    return extremes.batch or batch


def _runner(device: int | str | None) -> str:
    """What the pass will run on, known before the graph is there; as `MinMaxCollector.runner` says it."""
    import onnxruntime

    from trtkit.calibration.collector import select_providers

    first = select_providers(device)[0]
    name = first if isinstance(first, str) else first[0]
    return f"ONNX Runtime {onnxruntime.__version__} {name.removesuffix('ExecutionProvider')}"


# What an export measures on images: INT8's ranges, FP16's overflow, and what TensorRT's own calibrator is fed.


INT8_ALGORITHM = DEFAULTS.algorithm
"""How an export calibrates by itself: of all algorithms, percentile 99.999 lost least where it lost most, over the five
tasks' checkpoints (0.0013 to 0.0028 of the main metric, where min-max lost 0.0027 to 0.0218; benchmarks/results)."""

OVERFLOW_IMAGES = 32
"""Images that an FP16 export is checked on for overflow."""


def resolve_calibration(
    model: Model,
    recipe: Recipe,
    given: Calibration | str | Path | None,
    data: str | Path | Dataset | None,
    size: tuple[int, int],
    reporter: Reporter,
) -> Calibration:
    """The calibration of an INT8 export: the given one if it fits the model, else one measured on `data`.

    Raises:
        CalibrationError: The given one was measured on another model.
    """

    if given is None:
        return calibrate(
            model,
            data,
            fraction=recipe.fraction,
            batch=2 * recipe.batch,
            imgsz=size,
            progress=reporter.progress,
            cancel=reporter.cancel,
        )
    if isinstance(given, Calibration):
        found = given
    elif Path(given).is_file():
        found = Calibration.from_tensorrt_cache(given, model)
        warnings.warn(f"{given}: {'; '.join(found.notes)}", stacklevel=3)
    else:
        found = Calibration.load(given)
    check_fits(found, model)
    return found


def check_fp16_overflow(
    model: Model, recipe: Recipe, data: str | Path | Dataset | None, size: tuple[int, int], reporter: Reporter
) -> dict[str, float]:
    """Nodes of an FP16 export that would overflow on the images of `data`; each is named in a warning."""
    from trtkit.calibration.graph_outputs import find_fp16_overflows
    from trtkit.graph.torch_export import trace

    reporter.step("check FP16's range", 0, 1)
    _, _, paths = select_calibration_images(
        data, task=model.task, split=None, calibration_images=OVERFLOW_IMAGES, fraction=recipe.fraction, seed=0
    )
    graph = trace(model, imgsz=size, batch=2, dynamic_batch=True, simplify=recipe.simplify)
    found = find_fp16_overflows(graph, load_input_batches(paths, task=model.task, size=size, batch=2, skipped=[]))
    if found:
        worst = max(found, key=lambda name: found[name])
        warnings.warn(
            f"{len(found)} nodes come near or over FP16's largest value on these images and stay in FP32, such as "
            f"{worst} ({found[worst]:.3g}).",
            stacklevel=3,
        )
    return found


def prepare_implicit_calibration(
    model: Model,
    recipe: Recipe,
    data: str | Path | Dataset | None,
    size: tuple[int, int],
    folder: Path,
    builder: str,
) -> ImplicitCalibration:
    """Images for TensorRT's own calibrator, at twice the batch, and a cache that only the same ones can hit."""
    from trtkit import backends

    dataset, split, paths = select_calibration_images(
        data,
        task=model.task,
        split=None,
        calibration_images=DEFAULTS.calibration_images,
        fraction=recipe.fraction,
        seed=DEFAULTS.seed,
    )
    batch = 2 * recipe.batch
    version = backends.probe(builder).version
    key = hash_parts(model.hash, dataset.hash(split), *map(str, paths), f"{size} {batch} {version}")
    return backends.ImplicitCalibration(
        batches=load_input_batches(paths, task=model.task, size=size, batch=batch, skipped=[]),
        cache=folder / f"{model.stem}-{key[:16]}.cache",
    )
