"""The work behind evaluate(): pictures streamed through a runner into a judge."""

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

from trtkit.data import open_dataset, read_picture, sample, to_input
from trtkit.errors import DataError, EngineError, RecipeError
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.metrics import ClassJudge, ObjectJudge
from trtkit.progress import Cancel, Progress, Work
from trtkit.results import Origin
from trtkit.tasks import task as task_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trtkit.backends.base import Runner
    from trtkit.data import Dataset, Fit, Labels
    from trtkit.exporter import Artifact
    from trtkit.tasks import Task

__all__ = [
    "Ready",
    "Sample",
    "Settings",
    "evaluate",
    "run",
    "samples",
]


# Pictures read and prepared on a second thread while the model runs on those before.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A picture ready to run.

    Attributes:
        picture: The network's input, BGR uint8.
        fit: Where the picture lies in it.
        labels: In pixels of the original picture.
    """

    picture: NDArray[np.uint8]
    fit: Fit
    labels: Labels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One picture file.

    Attributes:
        path: The file.
        ready: None where it can't be read.
        read: Seconds spent reading picture and labels.
        prepared: Seconds spent fitting the picture to the input.
    """

    path: Path
    ready: Ready | None = None
    read: float = 0.0
    prepared: float = 0.0


def samples(
    paths: Sequence[Path],
    dataset: Dataset,
    prepare: Callable[..., tuple[Any, Fit]],
    size: tuple[int, int],
    *,
    ahead: int,
) -> Generator[Sample, None, None]:
    """Yield pictures in order, at most `ahead` of them read before they are wanted.

    Memory does not grow with the number of pictures. One thread reads, since more would take the processor from the
    model.

    Args:
        paths: What to read.
        dataset: Whose labels.
        prepare: The task's way from a BGR picture to (input, fit).
        size: (height, width) of the input.
        ahead: Pictures read in advance.

    Yields:
        A sample for each path.

    Raises:
        DataError: A label file contradicts the data set.
    """

    def load(path: Path) -> Sample:
        start = time.perf_counter()
        try:
            picture = read_picture(path)
        except DataError:
            return Sample(path=path, read=time.perf_counter() - start)
        labels = dataset.labels(path).scaled((picture.shape[0], picture.shape[1]))
        between = time.perf_counter()
        fitted, fit = prepare(picture, size)
        ready = Ready(picture=fitted, fit=fit, labels=labels)
        return Sample(path=path, ready=ready, read=between - start, prepared=time.perf_counter() - between)

    waiting: collections.deque[Future[Sample]] = collections.deque()
    with ThreadPoolExecutor(1, thread_name_prefix="trtkit-pictures") as pool:
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
class Settings:
    """The arguments of `evaluate` that shape its numbers; described there."""

    split: str = "val"
    batch: int | None = None
    imgsz: int | tuple[int, int] | None = None
    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    images: int | None = None
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
    runner: Runner | Artifact | str | Path, data: str | Path | Dataset, settings: Settings, work: Work
) -> Evaluation:
    """Judge a runner, or a file that is opened for it.

    Raises:
        TrtkitError: As `evaluate` says.
    """
    from trtkit import backends

    with contextlib.ExitStack() as stack:
        opened = runner if isinstance(runner, backends.Runner) else stack.enter_context(backends.open(runner))
        return _judged(opened, data, settings, work)


def _judged(runner: Runner, data: str | Path | Dataset, settings: Settings, work: Work) -> Evaluation:
    start = time.perf_counter()
    task = task_of(runner.card.task)
    dataset = open_dataset(data, task=task.name)
    notes = _agreement(runner, dataset)
    size = _size(runner, settings.imgsz, notes)
    batch = _batch(runner, settings.batch)
    paths = sample(dataset.pictures(settings.split), count=settings.images, seed=settings.seed)
    bare = dataset.require_labels(paths)
    if bare:
        notes.append(f"{bare} of {len(paths)} pictures have no label file and count as pictures without objects")
    data_hash = dataset.hash_of(paths)
    judge = ObjectJudge(task, dataset) if task.kinds else ClassJudge(task, dataset)
    clock, skipped = _streamed(runner, task, dataset, paths, judge, size, batch, settings, work)
    if len(skipped) == len(paths):
        raise DataError(
            f"judge on {settings.split!r} of {dataset.path}",
            f"none of {len(paths)} pictures can be read",
            "replace or remove them",
        )
    before = time.perf_counter()
    judged = judge.verdict()
    end = time.perf_counter()
    clock["judge"] += end - before
    clock["wall"] = end - start
    return Evaluation(
        task=task.name,
        **{field.name: getattr(judged, field.name) for field in dataclasses.fields(judged)},
        speed={stage: 1000 * seconds / len(judged.per_picture) for stage, seconds in clock.items()},
        skipped=tuple(skipped),
        notes=tuple(notes),
        origin=Origin(
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


def _streamed(
    runner: Runner,
    task: Task,
    dataset: Dataset,
    paths: Sequence[Path],
    judge: ObjectJudge | ClassJudge,
    size: tuple[int, int],
    batch: int,
    settings: Settings,
    work: Work,
) -> tuple[dict[str, float], list[str]]:
    """Run every picture and show it to the judge.

    Returns:
        Seconds by stage, and the paths that could not be read.
    """
    limits: dict[str, Any] = {"conf": settings.conf, "iou": settings.iou, "max_det": settings.max_det}
    clock = dict.fromkeys(STAGES, 0.0)
    skipped: list[str] = []
    done = 0
    stage = f"evaluate {runner.precision}"
    work.step(stage, 0, len(paths))
    with contextlib.closing(samples(paths, dataset, task.prepare, size, ahead=2 * batch)) as stream:
        for chunk in _chunks(stream, batch):
            skipped += [str(one.path) for one in chunk if one.ready is None]
            good = [(one.path, one.ready) for one in chunk if one.ready is not None]
            if good:
                begun = time.perf_counter()
                inputs = to_input([ready.picture for _, ready in good])
                filled = time.perf_counter()
                outputs = runner.infer(inputs)
                inferred = time.perf_counter()
                fits = [ready.fit for _, ready in good]
                found = task.decode(outputs, runner.card, fits, multi_label=True, **limits)
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
            work.step(stage, done, len(paths))
    return clock, skipped


def _chunks(stream: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(stream, size)):
        yield chunk


def _agreement(runner: Runner, dataset: Dataset) -> list[str]:
    """Make sure that model and data set speak of the same classes.

    Returns:
        What a reader of the numbers should know.

    Raises:
        DataError: The data set has more classes than the model, or other keypoints.
    """
    card = runner.card
    asked, do = f"judge by {dataset.path}", "use the data set the model was trained for"
    if len(dataset.names) > len(card.names):
        raise DataError(asked, f"it has {len(dataset.names)} classes and the model {len(card.names)}", do)
    points, known = dataset.kpt_shape, card.kpt_shape
    if dataset.task == "pose" and points is not None and known is not None and points[0] != known[0]:
        raise DataError(asked, f"it has {points[0]} keypoints and the model {known[0]}", do)
    notes = []
    other = next((number for number, name in dataset.names.items() if card.names.get(number) != name), None)
    if other is not None:
        ours, theirs = card.names.get(other), dataset.names[other]
        notes.append(f"class {other} is {ours!r} to the model and {theirs!r} in the data set")
    if card.nms:
        notes.append(
            "suppression is in the graph, at its own threshold and with one class a box: AP reads lower than that of "
            "the same model without it"
        )
    return notes


def _size(runner: Runner, imgsz: int | tuple[int, int] | None, notes: list[str]) -> tuple[int, int]:
    """The input's (height, width).

    Raises:
        EngineError: The runner has a size of its own and `imgsz` is another.
    """
    if imgsz is None:
        return runner.imgsz
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    stride = runner.card.stride
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


def _batch(runner: Runner, batch: int | None) -> int:
    """Pictures a run.

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
    images: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Evaluation:
    """Judge a runner on labelled pictures.

    Args:
        runner: From `open`, or an exported file.
        data: A data set's YAML file, or a folder of class folders for classify.
        split: The split that judges.
        batch: Pictures a run; None takes the largest the runner was made for, 1 where it has no limit.
        imgsz: Picture side, or (height, width), pixels; None takes the runner's own.
        conf: Smallest score of a detection, exclusive.
        iou: Overlap above which the weaker of two detections of a class goes.
        max_det: Most detections a picture.
        images: Most pictures, a seeded sample; None takes all.
        seed: Seed of that sample.
        progress: Receives events.
        cancel: Asked between batches.

    Returns:
        Metrics by both definitions, and what they were made from.

    Raises:
        DataError: The data set or its labels can't be used, or no picture could be read.
        EngineError: The runner does not take that batch or size.
        RecipeError: A setting is out of range.
        CancelledError: The caller cancelled.
    """
    from trtkit.evaluation.evaluator import Settings, run

    settings = Settings(
        split=split, batch=batch, imgsz=imgsz, conf=conf, iou=iou, max_det=max_det, images=images, seed=seed
    )
    return run(runner, data, settings, Work(progress, cancel))
