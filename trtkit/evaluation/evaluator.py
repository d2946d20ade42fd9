"""The work behind evaluate(): images streamed through a runner into a judge."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.data import open_dataset, read_image, sample_images, to_input
from trtkit.errors import DataError, EngineError, RecipeError
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.metrics import ClassificationEvaluator, DetectionEvaluator
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.results import Provenance
from trtkit.tasks import PostprocessSettings, get_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trtkit.backends.base import Runner
    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.exporter import Artifact
    from trtkit.tasks import Task

__all__ = [
    "EvaluationSettings",
    "LoadedImage",
    "PreparedImage",
    "evaluate",
    "load_images",
    "run",
]


# Images read and prepared on a second thread while the model runs on those before.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """An image ready to run.

    Attributes:
        image: The network's input, BGR uint8.
        fit: Where the image lies in it.
        labels: In pixels of the original image.
    """

    image: NDArray[np.uint8]
    fit: ImageTransform
    labels: Labels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage:
    """One image file.

    Attributes:
        path: The file.
        ready: None where it can't be read.
        read: Seconds spent reading image and labels.
        prepared: Seconds spent fitting the image to the input.
    """

    path: Path
    ready: PreparedImage | None = None
    read: float = 0.0
    prepared: float = 0.0


def load_images(
    paths: Sequence[Path],
    dataset: Dataset,
    prepare: Callable[..., tuple[Any, ImageTransform]],
    size: tuple[int, int],
    *,
    ahead: int,
) -> Generator[LoadedImage, None, None]:
    """Yield images in order, at most `ahead` of them read before they are wanted.

    Memory does not grow with the number of images. One thread reads, since more would take the processor from the
    model.

    Args:
        paths: What to read.
        dataset: Whose labels.
        prepare: The task's way from a BGR image to (input, fit).
        size: (height, width) of the input.
        ahead: Images read in advance.

    Yields:
        A sample for each path.

    Raises:
        DataError: A label file contradicts the data set.
    """

    def load(path: Path) -> LoadedImage:
        start = time.perf_counter()
        try:
            image = read_image(path)
        except DataError:
            return LoadedImage(path=path, read=time.perf_counter() - start)
        labels = dataset.labels(path).to_pixels((image.shape[0], image.shape[1]))
        between = time.perf_counter()
        fitted, fit = prepare(image, size)
        ready = PreparedImage(image=fitted, fit=fit, labels=labels)
        return LoadedImage(path=path, ready=ready, read=between - start, prepared=time.perf_counter() - between)

    waiting: collections.deque[Future[LoadedImage]] = collections.deque()
    with ThreadPoolExecutor(1, thread_name_prefix="trtkit-images") as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(load, path))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


STAGES = ("read", "prepare", "infer", "decode", "judge")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The arguments of `evaluate` that shape its numbers; described there."""

    split: str = "val"
    batch: int | None = None
    imgsz: int | tuple[int, int] | None = None
    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    eval_images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise RecipeError(f"evaluate with {name}={value}", "it is not in 0..1", f"pass {name} between 0 and 1")
        for name in ("max_det", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"evaluate with {name}={value}", "it is less than 1", f"pass {name}=1 or more")


def run(
    runner: Runner | Artifact | str | Path, data: str | Path | Dataset, settings: EvaluationSettings, reporter: Reporter
) -> Evaluation:
    """Judge a runner, or a file that is opened for it.

    Raises:
        TrtkitError: As `evaluate` says.
    """
    from trtkit import backends

    with contextlib.ExitStack() as stack:
        opened = runner if isinstance(runner, backends.Runner) else stack.enter_context(backends.open(runner))
        return _evaluate_runner(opened, data, settings, reporter)


def _evaluate_runner(
    runner: Runner, data: str | Path | Dataset, settings: EvaluationSettings, reporter: Reporter
) -> Evaluation:
    start = time.perf_counter()
    task = get_task(runner.info.task)
    dataset = open_dataset(data, task=task.name)
    notes = _check_agreement(runner, dataset)
    size = _resolve_imgsz(runner, settings.imgsz, notes)
    batch = _resolve_batch(runner, settings.batch)
    paths = sample_images(dataset.images(settings.split), count=settings.eval_images, seed=settings.seed)
    bare = dataset.require_labels(paths)
    if bare:
        notes.append(f"{bare} of {len(paths)} images have no label file and count as images without objects")
    data_hash = dataset.hash_images(paths)
    judge = DetectionEvaluator(task, dataset) if task.kinds else ClassificationEvaluator(task, dataset)
    clock, skipped = _run_batches(runner, task, dataset, paths, judge, size, batch, settings, reporter)
    if len(skipped) == len(paths):
        raise DataError(
            f"judge on {settings.split!r} of {dataset.path}",
            f"none of {len(paths)} images can be read",
            "replace or remove them",
        )
    before = time.perf_counter()
    judged = judge.compute_scores()
    end = time.perf_counter()
    clock["judge"] += end - before
    clock["wall"] = end - start
    return Evaluation(
        task=task.name,
        **{field.name: getattr(judged, field.name) for field in dataclasses.fields(judged)},
        speed={stage: 1000 * seconds / len(judged.per_image) for stage, seconds in clock.items()},
        skipped=tuple(skipped),
        notes=tuple(notes),
        provenance=Provenance(
            model_hash=runner.hash,
            data_hash=data_hash,
            runner=runner.name,
            settings={
                **dataclasses.asdict(settings),
                "data": str(dataset.path),
                "precision": runner.precision,
                "batch": batch,
                "imgsz": list(size),
            },
            seed=settings.seed,
        ),
    )


def _run_batches(
    runner: Runner,
    task: Task,
    dataset: Dataset,
    paths: Sequence[Path],
    judge: DetectionEvaluator | ClassificationEvaluator,
    size: tuple[int, int],
    batch: int,
    settings: EvaluationSettings,
    reporter: Reporter,
) -> tuple[dict[str, float], list[str]]:
    """Run every image and show it to the judge.

    Returns:
        Seconds by stage, and the paths that could not be read.
    """
    thresholds = PostprocessSettings(conf=settings.conf, iou=settings.iou, max_det=settings.max_det, multi_label=True)
    clock = dict.fromkeys(STAGES, 0.0)
    skipped: list[str] = []
    done = 0
    stage = f"evaluate {runner.precision}"
    reporter.step(stage, 0, len(paths))
    with contextlib.closing(load_images(paths, dataset, task.preprocess, size, ahead=2 * batch)) as stream:
        for chunk in _batched(stream, batch):
            skipped += [str(one.path) for one in chunk if one.ready is None]
            good = [(one.path, one.ready) for one in chunk if one.ready is not None]
            if good:
                begun = time.perf_counter()
                inputs = to_input([ready.image for _, ready in good])
                filled = time.perf_counter()
                outputs = runner.infer(inputs)
                inferred = time.perf_counter()
                fits = [ready.fit for _, ready in good]
                found = task.postprocess(outputs, runner.info, fits, thresholds)
                decoded = time.perf_counter()
                for (path, ready), prediction in zip(good, found, strict=True):
                    judge.add(path, ready.labels, prediction)
                clock["prepare"] += filled - begun
                clock["infer"] += inferred - filled
                clock["decode"] += decoded - inferred
                clock["judge"] += time.perf_counter() - decoded
            clock["read"] += sum(one.read for one in chunk)
            clock["prepare"] += sum(one.prepared for one in chunk)
            done += len(chunk)
            reporter.step(stage, done, len(paths))
    return clock, skipped


def _batched(stream: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(stream, size)):
        yield chunk


def _check_agreement(runner: Runner, dataset: Dataset) -> list[str]:
    """Make sure that model and data set speak of the same classes.

    Returns:
        What a reader of the numbers should know.

    Raises:
        DataError: The data set has more classes than the model, or other keypoints.
    """
    info = runner.info
    asked, do = f"judge by {dataset.path}", "use the data set the model was trained for"
    if len(dataset.names) > len(info.names):
        raise DataError(asked, f"it has {len(dataset.names)} classes and the model {len(info.names)}", do)
    points, known = dataset.kpt_shape, info.kpt_shape
    if dataset.task == "pose" and points is not None and known is not None and points[0] != known[0]:
        raise DataError(asked, f"it has {points[0]} keypoints and the model {known[0]}", do)
    notes = []
    other = next((number for number, name in dataset.names.items() if info.names.get(number) != name), None)
    if other is not None:
        ours, theirs = info.names.get(other), dataset.names[other]
        notes.append(f"class {other} is {ours!r} to the model and {theirs!r} in the data set")
    if info.nms:
        notes.append(
            "suppression is in the graph, at its own threshold and with one class a box: AP reads lower than that of "
            "the same model without it"
        )
    return notes


def _resolve_imgsz(runner: Runner, imgsz: int | tuple[int, int] | None, notes: list[str]) -> tuple[int, int]:
    """The input's (height, width).

    Raises:
        EngineError: The runner has a size of its own and `imgsz` is another.
    """
    if imgsz is None:
        return runner.imgsz
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    stride = runner.info.stride
    size = (math.ceil(height / stride) * stride, math.ceil(width / stride) * stride)
    if size != (height, width):
        notes.append(f"imgsz {height}x{width} was rounded up to {size[0]}x{size[1]}, a multiple of the stride {stride}")
    if size != tuple(runner.imgsz) and not runner.dynamic:
        raise EngineError(
            f"evaluate at {size[0]}x{size[1]}",
            f"the runner was made for {runner.imgsz[0]}x{runner.imgsz[1]} only",
            "leave imgsz out, or export with dynamic=True",
        )
    return size


def _resolve_batch(runner: Runner, batch: int | None) -> int:
    """Images a run.

    Raises:
        EngineError: The runner takes fewer.
    """
    if batch is None:
        return runner.batch or 1
    if runner.batch is not None and batch > runner.batch:
        limit = runner.batch
        raise EngineError(f"evaluate with batch={batch}", f"the runner takes at most {limit}", f"pass batch={limit}")
    return batch


def evaluate(
    runner: Runner | Artifact | str | Path,
    data: str | Path | Dataset,
    split: str = "val",
    *,
    batch: int | None = None,
    imgsz: int | tuple[int, int] | None = None,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    eval_images: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Evaluation:
    """Judge a runner on labeled images.

    Args:
        runner: From `open`, or an exported file.
        data: A data set's YAML file, or a folder of class folders for classify.
        split: The split that judges.
        batch: Images a run; None takes the largest the runner was made for, 1 where it has no limit.
        imgsz: Image side, or (height, width), pixels; None takes the runner's own.
        conf: Smallest score of a detection, exclusive.
        iou: Overlap above which the weaker of two detections of a class goes.
        max_det: Most detections an image.
        eval_images: Most images, a seeded sample; None takes all.
        seed: Seed of that sample.
        progress: Receives events.
        cancel: Asked between batches.

    Returns:
        Metrics by both definitions, and what they were made from.

    Raises:
        DataError: The data set or its labels can't be used, or no image could be read.
        EngineError: The runner does not take that batch or size.
        RecipeError: A setting is out of range.
        CancelledError: The caller cancelled.
    """
    from trtkit.evaluation.evaluator import EvaluationSettings, run

    settings = EvaluationSettings(
        split=split, batch=batch, imgsz=imgsz, conf=conf, iou=iou, max_det=max_det, eval_images=eval_images, seed=seed
    )
    return run(runner, data, settings, Reporter(progress, cancel))
