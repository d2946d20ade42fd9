"""Images through a runner into an evaluator: in this process, or in shards on the workers of a Dask scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.data import read_image, resize_to_input, to_input
from trtkit.data.dataset import is_label_error
from trtkit.errors import DataError, EngineError
from trtkit.evaluation.metrics import ClassificationEvaluator, DetectionEvaluator, ImageRows
from trtkit.executor import StopToken, Workers, split_into_shards
from trtkit.progress import Reporter, parallel_map
from trtkit.tasks import PostprocessSettings, get_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trtkit.backends.runner import Runner
    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import Preprocess
    from trtkit.tasks import Task

__all__ = [
    "LoadedImage",
    "PreparedImage",
    "evaluate_shard",
    "get_opener",
    "is_skipped",
    "load_images",
    "make_evaluator",
    "run_images",
    "run_images_on_workers",
]

STAGES = ("read", "preprocess", "inference", "postprocess", "match")
"""Keys of `Evaluation.speed`, which adds "wall"."""


def make_evaluator(task: Task, dataset: Dataset) -> DetectionEvaluator | ClassificationEvaluator:
    """The evaluator of a task's predictions.

    Args:
        task: The task.
        dataset: The data set of the labels.
    """
    return DetectionEvaluator(task, dataset) if task.kinds else ClassificationEvaluator(task, dataset)


def run_images(
    runner: Runner,
    evaluator: DetectionEvaluator | ClassificationEvaluator,
    paths: Sequence[Path],
    size: tuple[int, int],
    batch: int,
    settings: PostprocessSettings,
    reporter: Reporter,
) -> tuple[dict[str, float], dict[str, DataError]]:
    """Run all images and add their predictions to the evaluator.

    Args:
        runner: The runner.
        evaluator: Receives the predictions.
        paths: Image files.
        size: (height, width) of the input.
        batch: Paths per run; images that can't be read leave a run smaller.
        settings: Thresholds of the postprocessing.
        reporter: Progress and cancellation.

    Returns:
        Seconds by stage, and why images were skipped, by path.
    """
    info = runner.info
    seconds = dict.fromkeys(STAGES, 0.0)
    skipped: dict[str, DataError] = {}
    done = 0
    step = f"evaluate {runner.precision}"
    reporter.step(step, 0, len(paths))
    images = load_images(
        paths, evaluator.dataset, info.preprocess, size, threads=runner.decode_threads, max_pending=2 * batch
    )
    with contextlib.closing(images):
        for chunk in _batched(images, batch):
            skipped.update({str(loaded.path): loaded.error for loaded in chunk if loaded.error is not None})
            prepared = [(loaded.path, loaded.prepared) for loaded in chunk if loaded.prepared is not None]
            if prepared:
                start = time.perf_counter()
                inputs = to_input([one.image for _, one in prepared], info.preprocess)
                stacked = time.perf_counter()
                outputs = runner.infer(inputs)
                inferred = time.perf_counter()
                transforms = [one.transform for _, one in prepared]
                predictions = evaluator.task.postprocess(outputs, info, transforms, settings)
                postprocessed = time.perf_counter()
                for (path, one), prediction in zip(prepared, predictions, strict=True):
                    evaluator.add(path, one.labels, prediction)
                seconds["preprocess"] += stacked - start
                seconds["inference"] += inferred - stacked
                seconds["postprocess"] += postprocessed - inferred
                seconds["match"] += time.perf_counter() - postprocessed
            seconds["read"] += sum(loaded.read_seconds for loaded in chunk)
            seconds["preprocess"] += sum(loaded.preprocess_seconds for loaded in chunk)
            done += len(chunk)
            reporter.step(step, done, len(paths))
    return seconds, skipped


def _batched(images: Iterator[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    while chunk := list(itertools.islice(images, size)):
        yield chunk


# Images are read and preprocessed on other threads while the model runs.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """An image with its labels, ready to run.

    Attributes:
        image: Resized to the model input, uint8 (height, width, channels).
        transform: Where the image lies in the input.
        labels: In pixels of the original image.
    """

    image: NDArray[np.uint8]
    transform: ImageTransform
    labels: Labels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage:
    """The result of loading one image file.

    Attributes:
        path: The file.
        prepared: None if the image can't be read.
        read_seconds: Time to read image and labels.
        preprocess_seconds: Time to resize the image.
    """

    path: Path
    prepared: PreparedImage | None = None
    error: DataError | None = None
    read_seconds: float = 0.0
    preprocess_seconds: float = 0.0


def load_images(
    paths: Sequence[Path],
    dataset: Dataset,
    preprocess: Preprocess,
    size: tuple[int, int],
    *,
    threads: int,
    max_pending: int,
) -> Generator[LoadedImage, None, None]:
    """Load images in order, a bounded number of them ahead of use.

    Memory does not grow with the number of images.

    Args:
        paths: Image files.
        dataset: The data set of the labels.
        preprocess: The model's preprocessing.
        size: (height, width) of the input.
        threads: `Runner.decode_threads`.
        max_pending: Maximum number of images loaded ahead.

    Yields:
        One `LoadedImage` per path.

    Raises:
        DataError: An image has no class in the data set.
    """

    def load(path: Path) -> LoadedImage:
        start = time.perf_counter()
        try:
            image = read_image(path, preprocess.channels)
            labels = dataset.labels(path).to_pixels((image.shape[0], image.shape[1]))
        except DataError as error:
            if not is_skipped(error):
                raise
            return LoadedImage(path=path, error=error, read_seconds=time.perf_counter() - start)
        read = time.perf_counter()
        resized, transform = resize_to_input(image, size, preprocess)
        return LoadedImage(
            path=path,
            prepared=PreparedImage(image=resized, transform=transform, labels=labels),
            read_seconds=read - start,
            preprocess_seconds=time.perf_counter() - read,
        )

    return parallel_map(load, paths, threads, max_pending=max_pending)


def is_skipped(error: DataError) -> bool:
    """Whether an error concerns one image or its labels, which an evaluation skips and names.

    Args:
        error: From reading an image or its labels.
    """
    return error.code.startswith("image-") or is_label_error(error)


# Shards on workers: the same batches of paths, in whichever process.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What one shard of an evaluation gives.

    Attributes:
        rows: The evaluator's columns of its images.
        seconds: By stage.
        skipped: Why images were skipped, by path.
    """

    rows: ImageRows
    seconds: dict[str, float]
    skipped: dict[str, DataError]


def run_images_on_workers(
    workers: Workers,
    runner: Runner,
    evaluator: DetectionEvaluator | ClassificationEvaluator,
    paths: Sequence[Path],
    size: tuple[int, int],
    batch: int,
    settings: PostprocessSettings,
) -> tuple[dict[str, float], dict[str, DataError]]:
    """As `run_images`, on workers, which open the runner again; the evaluator is the same bit for bit.

    Batches are those of one process: shards are whole batches, and ONNX Runtime has as many threads as here.

    Args:
        workers: The workers.
        runner: The runner.
        evaluator: Receives the predictions, in the order of the paths.
        paths: Image files, which the workers read at the same paths.
        size: (height, width) of the input.
        batch: Paths per run.
        settings: Thresholds of the postprocessing.

    Returns:
        Seconds of all workers by stage, and why images were skipped, by path.

    Raises:
        EngineError: The runner can't be opened in another process, or opens as another there.
    """
    shards = split_into_shards(len(paths), multiple=batch, slots=workers.slots)
    seconds = dict.fromkeys(STAGES, 0.0)
    skipped: dict[str, DataError] = {}
    results = workers.map(
        evaluate_shard,
        [[paths[index] for index in shard] for shard in shards],
        stage=f"evaluate {runner.precision}",
        prepare=_ShardWork.prepare,
        common=(get_opener(runner), runner.hash, evaluator.task.name, evaluator.dataset, size, batch, settings),
        sizes=[len(shard) for shard in shards],
    )
    with contextlib.closing(results):
        for result in results:
            evaluator.extend(result.rows)
            skipped.update(result.skipped)
            for stage, value in result.seconds.items():
                seconds[stage] += value
    return seconds, skipped


def get_opener(runner: Runner) -> Callable[[], Runner]:
    """What opens a runner in another process.

    Args:
        runner: The runner.

    Raises:
        EngineError: Nothing does.
    """
    if runner.opener is None:
        raise EngineError(
            f"run {runner.name} on workers",
            "it can't be opened in another process",
            "pass the file, or leave executor out",
            code="executor-runner-local",
            value=runner.name,
        )
    return runner.opener


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardWork:
    """What all shards of one evaluation share in a worker."""

    runner: Runner
    task: Task
    dataset: Dataset
    size: tuple[int, int]
    batch: int
    settings: PostprocessSettings

    @classmethod
    def prepare(
        cls,
        opener: Callable[[], Runner],
        expected_hash: str,
        task: str,
        dataset: Dataset,
        size: tuple[int, int],
        batch: int,
        settings: PostprocessSettings,
    ) -> _ShardWork:
        runner = opener()
        if runner.hash != expected_hash:
            raise EngineError(
                f"run {runner.path or runner.name} on a worker",
                "the file there is another one than here (its SHA-256 differs)",
                "put it on a disk that all machines share",
                code="executor-file-differs",
                path=runner.path,
            )
        return cls(runner=runner, task=get_task(task), dataset=dataset, size=size, batch=batch, settings=settings)


def evaluate_shard(work: _ShardWork, paths: Sequence[Path]) -> ShardResult:
    """Run one shard, in a worker.

    Args:
        work: The runner and what belongs to it.
        paths: Image files, whole batches.
    """
    evaluator = make_evaluator(work.task, work.dataset)
    reporter = Reporter(None, StopToken())
    seconds, skipped = run_images(work.runner, evaluator, paths, work.size, work.batch, work.settings, reporter)
    return ShardResult(rows=evaluator.rows(), seconds=seconds, skipped=skipped)
