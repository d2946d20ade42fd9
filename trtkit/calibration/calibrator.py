"""calibrate(): run images through a model and compute the range of every tensor; and what an export measures."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtkit.calibration.algorithms import ALGORITHMS, DEFAULTS, get_algorithm, resolve_percentile
from trtkit.calibration.calibration import Calibration, check_fits, compute_ranges
from trtkit.calibration.collector import get_model_batch, select_providers
from trtkit.calibration.diagnosis import find_foreign_images
from trtkit.calibration.range_refinement import (
    CHECK_IMAGES,
    RANGE_IMAGES,
    check_image_count,
    check_refinable,
    choose_ranges_by_noise,
)
from trtkit.calibration.sampling import hash_preprocessing, load_input_batches, select_calibration_images
from trtkit.errors import CalibrationError, warn
from trtkit.files import hash_parts
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import FP16_MAX
from trtkit.graph.prequantized import is_quantized
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.recipe import Recipe, round_imgsz
from trtkit.results import Provenance, describe_machine

if TYPE_CHECKING:
    import torch
    from distributed import Client

    from trtkit.backends import ImplicitCalibration
    from trtkit.data import Dataset, DataSource
    from trtkit.models import Model

__all__ = [
    "ALGORITHMS",
    "OVERFLOW_MARGIN",
    "calibrate",
    "check_fp16_overflow",
    "find_fp16_overflows",
    "load_input_batches",
    "prepare_implicit_calibration",
    "resolve_calibration",
    "select_calibration_images",
]

CALIBRATE = "calibrate"
"""The step, and the stage of its events."""

REFINE_RANGES = "refine ranges"
"""The step of `refine="ranges"`, and the stage of its events."""

OVERFLOW_IMAGES = 32
"""Images for the overflow check of an FP16 export."""


@verb
def calibrate(
    model: Model | str | Path | torch.nn.Module,
    data: DataSource | None = None,
    split: str | None = None,
    algorithm: str = DEFAULTS.algorithm,
    calibration_images: int = DEFAULTS.calibration_images,
    fraction: float = DEFAULTS.fraction,
    batch: int | None = None,
    seed: int = DEFAULTS.seed,
    *,
    percentile: float | None = None,
    histograms: bool | None = None,
    refine: str | None = None,
    stratify: bool = False,
    imgsz: int | tuple[int, int] | None = None,
    device: int | str | None = None,
    cache_dir: str | Path | None = None,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Calibration:
    """Measure the range of every tensor that INT8 can quantize, on a sample of images.

    Images run through ONNX Runtime in FP32 once. Peak memory does not depend on their number, and the ranges do not
    depend on the batches. With histograms, `Calibration.with_algorithm` computes the ranges of any other algorithm
    without another pass.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file (or folder, for classify); or images without labels: a folder, a glob pattern, an
            image or a list of these. None takes the small embedded set and warns.
        split: Split of the calibration images; None takes `train`, or `val` with a warning if there is no `train`.
            Images without labels have no splits.
        algorithm: Calibration algorithm, one of `trtkit.calibration.ALGORITHMS`: "minmax", "moving_average",
            "entropy", "percentile", "mse" or a registered one.
        calibration_images: Maximum number of calibration images.
        fraction: Share of the split that images are drawn from, in (0, 1]; applied before `calibration_images`.
        batch: Images per run; None takes 2. With histograms, images run one by one, two in parallel.
        seed: Seed of the sample.
        percentile: For an algorithm that takes one: the share of values that are not clipped, percent; None takes
            99.999.
        histograms: Collect histograms; None collects them if the algorithm needs them.
        refine: "ranges" then chooses a factor for the range of each scale, from 0.25 to 2, by the noise that the scale
            alone makes at the outputs, on eight of the images in this process, and keeps them if they make less noise
            on up to 24 others (`Calibration.notes` says it); that takes a minute on two cores. Less noise need not be
            more accuracy: evaluate both. None keeps the algorithm's ranges.
        stratify: Keep each class's share of the images in the sample.
        imgsz: Height and width, pixels; None takes the model's.
        device: "cpu", or a GPU that ONNX Runtime offers; None takes the first GPU, else the CPU.
        cache_dir: Cache directory; a calibration in it is reused only if model, images, preprocessing and settings are
            the same. None caches nothing.
        executor: A `distributed.Client` (see `open_executor`): its workers run the images and read them at the same
            paths. Ranges and histograms equal, bit for bit, those of this process on the same type of processor.
        progress: Receives an event for each batch.
        cancel: Checked before each batch.

    Returns:
        The calibration.

    Raises:
        RecipeError: A setting is out of range.
        CalibrationError: Settings contradict each other, the model holds Q/DQ, no image can be read, or a tensor holds
            NaN or infinity.
        CapabilityError: A GPU is named and there is none; or workers are missing, lost, or other than this process.
        DataError: The data set can't be read.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration.image_pass import ImagePass, create_collector, images_per_call
    from trtkit.executor import Workers
    from trtkit.graph.torch_export import check_trace, trace
    from trtkit.models import load

    reporter = Reporter(progress, cancel)
    percentile = _check_settings(algorithm, percentile, histograms)
    with_histograms = get_algorithm(algorithm).needs_histogram if histograms is None else histograms
    loaded = load(model)
    if is_quantized(loaded.proto):
        raise CalibrationError(
            f"calibrate {loaded.stem}",
            "it holds Q/DQ with scales of its own",
            "export it with int8=True as it is, or calibrate the float model it was made from",
            code="calibration-model-quantized",
            model=loaded.stem,
        )
    if refine is not None:
        check_refinable(loaded.output_format)
    size = round_imgsz(imgsz if imgsz is not None else loaded.imgsz, loaded.stride)
    batch = batch or DEFAULTS.batch
    dataset, split, paths = select_calibration_images(
        data,
        task=loaded.task,
        channels=loaded.channels,
        split=split,
        calibration_images=calibration_images,
        fraction=fraction,
        seed=seed,
        stratify=stratify,
    )
    if refine is not None:
        check_image_count(len(paths))
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "percentile": percentile,
        "histograms": with_histograms,
        "split": split,
        "calibration_images": calibration_images,
        "fraction": fraction,
        "stratify": stratify,
        "batch": batch,
        "imgsz": list(size),
        "preprocessing": hash_preprocessing(loaded.preprocess, size),
        "data": str(dataset.path),
    }
    runner = _runner(device)
    check_trace(loaded, imgsz=size, batch=get_model_batch(loaded) or batch)
    start_work(
        Plan(
            verb="calibrate",
            settings={"model": loaded.stem, "imgsz": size, "batch": batch, "runner": runner, "cache": cache_dir},
            images={"calibration": len(paths)},
            steps=(
                CALIBRATE,
                f"compute ranges by {algorithm}",
                *([REFINE_RANGES] if refine is not None else []),
            ),
            costs={CALIBRATE: Cost(kind="calibrate", images=len(paths))},
        ),
        reporter,
    )
    reporter.begin(CALIBRATE)
    provenance = Provenance(
        model_hash=loaded.hash,
        data_hash=dataset.hash_images(paths),
        runner=runner,
        settings=settings,
        seed=seed,
    )
    notes: list[str] = []
    if refine is not None:
        settings["refine"] = refine
        provenance = dataclasses.replace(provenance, settings=settings)
    if cache_dir is not None:
        from trtkit.calibration.storage import CalibrationKey, find_calibration

        cached, reason = find_calibration(cache_dir, CalibrationKey.from_provenance(provenance))
        if cached is not None:
            reporter.finish(f"loaded from the cache {cache_dir}")
            return cached
        notes.append(f"not in the cache {cache_dir}: {reason}")
        reporter.log(CALIBRATE, notes[-1])
    graph = trace(loaded, imgsz=size, batch=get_model_batch(loaded) or batch, dynamic_batch=True)
    collector = create_collector(graph, device=device, histograms=with_histograms)
    notes += _warn_of_foreign_images(collector.proto, dataset, paths, reporter)
    skipped: list[str] = []
    machine = describe_machine()
    images = ImagePass(preprocess=loaded.preprocess, size=size, batch=images_per_call(collector, batch))
    if executor is None:
        images.run(collector, paths, skipped, CALIBRATE, reporter)
    else:
        workers = Workers(executor, reporter, gpu=not collector.runner.endswith("CPU"))
        images.run_on_workers(workers, collector, paths, skipped, CALIBRATE, device=device)
        machine |= workers.describe()
    if collector.image_count == 0:
        raise CalibrationError(
            f"calibrate on split {split!r} of {dataset.path}",
            f"none of its {len(paths)} images can be read, the first is {paths[0]}",
            "check the image files",
            code="calibration-images-unreadable",
            path=str(dataset.path),
            split=split,
            count=len(paths),
            images=tuple(skipped),
        )
    if skipped:
        warn(f"{len(skipped)} of {len(paths)} calibration images can't be read and were skipped, such as {skipped[0]}.")
    reporter.begin(f"compute ranges by {algorithm}")
    stats = collector.stats()
    ranges = compute_ranges(stats, collector.sources, collector.names, algorithm, percentile)
    if refine is not None:
        reporter.begin(REFINE_RANGES)
        readable = [path for path in paths if str(path) not in set(skipped)][: RANGE_IMAGES + CHECK_IMAGES]
        inputs = load_input_batches(readable, preprocess=loaded.preprocess, size=size, batch=1, skipped=[])
        refined = choose_ranges_by_noise(
            graph,
            ranges,
            loaded.output_format,
            len(loaded.names),
            [collector.pad_batch(image) for image in inputs],
            stage=REFINE_RANGES,
            reporter=reporter,
        )
        ranges = refined.ranges
        notes.append(refined.describe())
        reporter.log(REFINE_RANGES, notes[-1])
    calibration = Calibration(
        ranges=ranges,
        algorithm=algorithm,
        percentile=percentile,
        image_count=collector.image_count,
        split=split,
        skipped=tuple(skipped),
        stats=stats,
        sources=collector.sources,
        preprocess=loaded.preprocess,
        output_format=loaded.output_format,
        notes=tuple(notes),
        provenance=dataclasses.replace(provenance, runner=collector.runner, machine=machine),
    )
    if cache_dir is not None:
        from trtkit.calibration.storage import store_calibration

        store_calibration(cache_dir, calibration)
    reporter.finish()
    return calibration


def _check_settings(algorithm: str, percentile: float | None, histograms: bool | None) -> float | None:
    """The percentile in use, None for an algorithm without one.

    Raises:
        CalibrationError: There is no such algorithm, or settings contradict each other.
    """
    entry = get_algorithm(algorithm)
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


def _warn_of_foreign_images(
    model: Model | onnx.ModelProto,
    dataset: Dataset,
    paths: Sequence[Path],
    reporter: Reporter,
    *,
    imgsz: tuple[int, int] | None = None,
) -> list[str]:
    """Warn in one sentence of images that look unlike the model's domain, before they are run; returns it."""
    sentences = [
        f"Calibration images of {dataset.path}: {finding.evidence}; {finding.remedy}."
        for finding in find_foreign_images(model, dataset, paths, reporter, imgsz=imgsz)
    ]
    for sentence in sentences:
        warn(sentence)
    return sentences


def _runner(device: int | str | None) -> str:
    """`MinMaxCollector.runner`, before there is a collector."""
    import onnxruntime

    first = select_providers(device)[0]
    name = first if isinstance(first, str) else first[0]
    return f"ONNX Runtime {onnxruntime.__version__} {name.removesuffix('ExecutionProvider')}"


# What an export measures on images: INT8 ranges, FP16 overflow, input of TensorRT's own calibrator.


def resolve_calibration(
    model: Model,
    recipe: Recipe,
    given: Calibration | str | Path | None,
    data: DataSource | None,
    size: tuple[int, int],
    reporter: Reporter,
) -> Calibration:
    """The calibration of an INT8 export: the given one if it fits the model, else a new one on `data`.

    Args:
        model: The model.
        recipe: The export's settings.
        given: A calibration, its folder, a TensorRT calibration cache, or None.
        data: Data set of a new calibration.
        size: Height and width, pixels.
        reporter: Receives progress.

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
        calibration = given
    elif Path(given).is_file():
        calibration = Calibration.from_tensorrt_cache(given, model)
        warn(f"{given}: {'; '.join(calibration.notes)}")
    else:
        calibration = Calibration.load(given)
    check_fits(calibration, model)
    return calibration


def check_fp16_overflow(
    model: Model, recipe: Recipe, data: DataSource | None, size: tuple[int, int], reporter: Reporter
) -> dict[str, float]:
    """Find the nodes of an FP16 export that overflow on images of `data`, and warn of them.

    Args:
        model: The model.
        recipe: The export's settings.
        data: Data set; its first `OVERFLOW_IMAGES` sampled images are used.
        size: Height and width, pixels.
        reporter: Receives progress.

    Returns:
        Largest magnitude by node name.
    """

    from trtkit.graph.torch_export import trace

    reporter.step("check FP16 overflow", 0, 1)
    _, _, paths = select_calibration_images(
        data,
        task=model.task,
        channels=model.channels,
        split=None,
        calibration_images=OVERFLOW_IMAGES,
        fraction=recipe.fraction,
        seed=0,
    )
    batch = get_model_batch(model) or 2
    graph = trace(model, imgsz=size, batch=batch, dynamic_batch=True, simplify=recipe.simplify)
    batches = load_input_batches(paths, preprocess=model.preprocess, size=size, batch=batch, skipped=[])
    # A fixed batch must be full; a repeated image changes no peak.
    full = (np.concatenate([images, *[images[-1:]] * (batch - len(images))]) for images in batches)
    peaks = find_fp16_overflows(graph, full)
    if peaks:
        worst = max(peaks, key=lambda name: peaks[name])
        warn(
            f"{len(peaks)} nodes come close to or exceed the range of FP16 on these images and stay in FP32, such as "
            f"{worst} (peak {peaks[worst]:.3g})."
        )
    return peaks


def prepare_implicit_calibration(
    model: Model,
    recipe: Recipe,
    data: DataSource | None,
    size: tuple[int, int],
    folder: Path,
    builder: str,
) -> ImplicitCalibration:
    """Input of TensorRT's own calibrator, and the path of its cache, which has a hash of everything it depends on.

    Args:
        model: The model.
        recipe: The export's settings; the calibration batch is twice the export's.
        data: Data set of the calibration images.
        size: Height and width, pixels.
        folder: Folder of the cache.
        builder: Backend that builds the engine.
    """
    from trtkit import backends

    dataset, split, paths = select_calibration_images(
        data,
        task=model.task,
        channels=model.channels,
        split=None,
        calibration_images=DEFAULTS.calibration_images,
        fraction=recipe.fraction,
        seed=DEFAULTS.seed,
    )
    _warn_of_foreign_images(model, dataset, paths, Reporter(), imgsz=size)
    batch = 2 * recipe.batch
    version = backends.probe(builder).version
    key = hash_parts(model.hash, dataset.hash(split), *map(str, paths), f"{size} {batch} {version}")
    return backends.ImplicitCalibration(
        batches=load_input_batches(paths, preprocess=model.preprocess, size=size, batch=batch, skipped=[]),
        cache=folder / f"{model.stem}-{key[:16]}.cache",
    )


PEAKS = ("ReduceMin", "ReduceMax", "ReduceSum")

OVERFLOW_MARGIN = 4.0
"""Safety margin: unseen images may exceed the measured peak, so peaks above 65504 / 4 count as overflow."""


def find_fp16_overflows(
    proto: onnx.ModelProto, batches: Iterable[np.ndarray], *, margin: float = OVERFLOW_MARGIN
) -> dict[str, float]:
    """Run an FP32 graph over images and find nodes with outputs that exceed the range of FP16.

    Args:
        proto: FP32 graph with unique node names and a dynamic batch.
        batches: (N, C, H, W) float32 in [0, 1].
        margin: Safety margin on the measured peak.

    Returns:
        Largest magnitude by node name, for nodes above `65504 / margin`, in graph order.
    """
    import onnxruntime as ort

    index = GraphIndex(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    # Decode nodes always stay in FP32.
    decode_nodes = index.decode_nodes()
    names = [
        name for node in proto.graph.node if node.name not in decode_nodes for name in node.output if name in floats
    ]
    monitored = copy.deepcopy(proto)
    targets: list[str] = []
    for number, name in enumerate(names):
        # ONNX Runtime's ReduceMin and ReduceMax ignore NaN; ReduceSum does not.
        for operator in PEAKS:
            targets.append(f"trtkit_peak_{operator}_{number}")
            monitored.graph.node.append(helper.make_node(operator, [name], [targets[-1]], targets[-1], keepdims=0))
            monitored.graph.output.append(helper.make_tensor_value_info(targets[-1], TensorProto.FLOAT, []))
    session = ort.InferenceSession(monitored.SerializeToString(), providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name
    peaks = np.zeros(len(names))
    for images in batches:
        extremes = np.array(session.run(targets, {input_name: images}), np.float64)
        low, high, total = np.abs(extremes).reshape(-1, len(PEAKS)).T
        # NaN and infinity in FP32 count as overflow in FP16.
        peaks = np.maximum(peaks, np.where(np.isfinite(total), np.maximum(low, high), np.inf))
    return {
        index.producer[name].name: float(peak)
        for name, peak in zip(names, peaks, strict=True)
        if peak > FP16_MAX / margin
    }
