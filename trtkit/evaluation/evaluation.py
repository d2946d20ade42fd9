"""evaluate(): run a runner over a labeled split and compute its metrics, with the matches behind them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtkit.data import open_dataset, read_image, sample_images
from trtkit.data.dataset import describe_skipped, warn_of_skipped
from trtkit.errors import DataError, EngineError
from trtkit.evaluation.image_pass import is_skipped, make_evaluator, run_images, run_images_on_workers
from trtkit.executor import Workers
from trtkit.models.model import TASKS
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result, SavedResult, describe_machine, rename_version_1_keys
from trtkit.tasks import PostprocessSettings, get_task

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl
    from distributed import Client
    from typing_extensions import Self

    from trtkit.backends.runner import Runner
    from trtkit.data import Dataset, DataSource
    from trtkit.exporter import Artifact
    from trtkit.models.model import ModelInfo


__all__ = [
    "EVAL_CONF",
    "Evaluation",
    "EvaluationData",
    "evaluate",
    "prepare_evaluation",
]

_VERSION_1_STAGES = {"prepare": "preprocess", "infer": "inference", "decode": "postprocess", "judge": "match"}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Evaluation(Result):
    """Accuracy of a runner on labeled images.

    Attributes:
        task: The task.
        metrics: By name. `mAP50(B)`, `mAP50-95(B)`, `precision(B)` and `recall(B)` follow Ultralytics' rule, precision
            and recall at the confidence of the best mean F1; with (M) for masks, (P) for keypoints, and (R) for the
            exact IoU of oriented boxes, where (B) is ProbIoU. `pycocotools/...` follow pycocotools' rule. `top1` and
            `top5` are accuracies of classify.
        per_class: One row per class with labels: class, name (with the class's number where several have one name),
            images, instances, and the metrics of Ultralytics' rule.
        per_image: One row per image: image (its number), path, height, width, labels, detections, and tp, fp, fn at
            `confidence` and similarity 0.5.
        detections: One row per detection: image, class, score, x1, y1, x2, y2 (pixels of the original image);
            `matched(B)`, a bit for each of the thresholds 0.50 to 0.95 at which it matched a label (bit 0 for 0.50);
            `object(B)`, the index of that label within the image, or -1; with `mask` (COCO RLE), `keypoints`, or x, y,
            width, height and angle. For classify the top-5 classes with rank and `correct`.
        labels: One row per label: image, class, x1, y1, x2, y2, area (pixels), `matched(B)` as above, and `score(B)` of
            the detection that matched it at 0.50, or null; for obb x, y, width, height and angle too. A bootstrap over
            images needs `detections` and `labels` only.
        speed: Milliseconds per image by stage: read, preprocess, inference, postprocess, match; and wall, less than
            their sum because images are read while the model runs.
        skipped: Paths of images that were left out, because they or their labels could not be read.
        confidence: The confidence of the best mean F1 over the classes.
        notes: Remarks for the reader of the metrics.
        provenance: Model, data, machine, versions, settings.
    """

    kind: ClassVar[str] = "evaluation"

    task: str
    metrics: Mapping[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame
    speed: Mapping[str, float]
    skipped: tuple[str, ...] = ()
    confidence: float = 0.0
    notes: tuple[str, ...] = ()
    provenance: Provenance

    @property
    def image_count(self) -> int:
        """Number of evaluated images."""
        return len(self.per_image)

    @property
    def overhead(self) -> float:
        """Fraction of the wall time in which the model did not run; 0 where workers ran it at the same time."""
        return max(0.0, 1 - self.speed["inference"] / self.speed["wall"])

    def frame(self) -> pl.DataFrame:
        """Return one row per metric: metric, value, and the rule it follows."""
        import polars as pl

        return pl.DataFrame(
            {
                "metric": list(self.metrics),
                "value": list(self.metrics.values()),
                "rule": [_rule(name) for name in self.metrics],
            }
        )

    def plot(self) -> go.Figure:
        """Plot the accuracy of each class with its 95 % confidence interval, and precision over recall."""
        from trtkit.evaluation.significance import compute_class_intervals
        from trtkit.plotting.evaluation import classification_figure, evaluation_figure

        title = f"{self.task} on {self.image_count} images, {self.provenance.runner}"
        per_class = compute_class_intervals(self)
        if "top1" in self.metrics:
            return classification_figure(per_class, title=title)
        kinds = [name[len("mAP50-95(") : -1] for name in self.metrics if name.startswith("mAP50-95(")]
        return evaluation_figure(per_class, self.detections, self.labels, kinds=kinds, title=title)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Return all frames by name."""
        return {name: getattr(self, name) for name in ("per_class", "per_image", "detections", "labels")}

    def facts(self) -> Mapping[str, Any]:
        """Return the JSON-ready facts that no frame has."""
        names = ("task", "metrics", "speed", "skipped", "confidence", "notes")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """Invert `tables` and `facts`."""
        lists = {name: tuple(facts[name]) for name in ("skipped", "notes")}
        values: dict[str, Any] = {**tables, **facts, **lists}
        return cls(**values, provenance=provenance)

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert an evaluation of format version 1."""
        saved = super().upgrade(saved)
        saved.facts["speed"] = rename_version_1_keys(saved.facts["speed"], _VERSION_1_STAGES)
        settings = rename_version_1_keys(saved.provenance["settings"], {"images": "eval_images"})
        saved.provenance = {**saved.provenance, "settings": settings}
        return saved

    def __repr__(self) -> str:
        split = self.provenance.settings.get("split")
        lines = [f"Evaluation: {self.task} on {self.image_count} images of {split}, by {self.provenance.runner}"]
        for rule in dict.fromkeys(_rule(name) for name in self.metrics):
            values = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items() if _rule(name) == rule)
            lines.append(f"  by {rule}: {values}")
        if self.skipped:
            lines.append(f"  {len(self.skipped)} {'image was' if len(self.skipped) == 1 else 'images were'} skipped")
        return "\n".join((*lines, *(f"  {note}" for note in self.notes)))


def _rule(metric: str) -> str:
    if metric.startswith("pycocotools/"):
        return "pycocotools' rule"
    return "accuracy" if metric.startswith("top") else "Ultralytics' rule"


EVAL_CONF: Mapping[str, float] = {**dict.fromkeys(TASKS, 0.001), "obb": 0.01}
"""`conf` of `evaluate` by task, that of Ultralytics' `val`; other tasks take that of detect."""


@verb
def evaluate(
    runner: Runner | Artifact | str | Path,
    data: str | Path | Dataset,
    split: str = "val",
    *,
    batch: int | None = None,
    imgsz: int | tuple[int, int] | None = None,
    conf: float | None = None,
    iou: float = 0.7,
    max_det: int = 300,
    eval_images: int | None = None,
    seed: int = 0,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Evaluation:
    """Evaluate a runner on labeled images.

    Args:
        runner: From `open`, or an exported file.
        data: A data set's YAML file, or a folder of class folders for classify.
        split: Split to evaluate on.
        batch: Images per run; None takes the runner's largest batch, 1 if it has no limit.
        imgsz: Image side or (height, width), pixels; None takes the runner's own.
        conf: Smallest score of a detection, exclusive; None takes that of Ultralytics' `val`, 0.01 for obb and 0.001
            for other tasks (`EVAL_CONF`).
        iou: IoU above which class-wise NMS drops the lower-scoring of two detections.
        max_det: Maximum number of detections per image.
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        seed: Seed of that sample.
        executor: A `distributed.Client` (see `open_executor`): its workers run the images and read them at the same
            paths. Everything but `speed` equals, bit for bit, what this process would compute on the same type of
            processor; `speed` adds up the workers' times, and `wall` is what passed.
        progress: Receives progress events.
        cancel: Cancellation token, checked between batches.

    Returns:
        Metrics by Ultralytics' and pycocotools' rules, with the matches behind them.

    Raises:
        DataError: The data set or its labels can't be used, or no image could be read.
        EngineError: The runner does not accept that batch or size, or can't be opened by workers.
        CapabilityError: Workers are missing, lost, or other than this process.
        RecipeError: A setting is out of range.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends

    with contextlib.ExitStack() as stack:
        if not isinstance(runner, backends.Runner):
            runner = stack.enter_context(backends.open(runner))
        start = time.perf_counter()
        prepared = prepare_evaluation(runner.info, data, split, eval_images=eval_images, seed=seed)
        dataset, paths, notes = prepared.dataset, prepared.paths, list(prepared.notes)
        size = _resolve_imgsz(runner, imgsz, notes)
        batch = _resolve_batch(runner, batch)
        reporter, stage = Reporter(progress, cancel), f"evaluate {runner.precision}"
        start_work(
            Plan(
                verb="evaluate",
                settings={
                    "data": str(dataset.path),
                    "split": split,
                    "imgsz": size,
                    "batch": batch,
                    "runner": runner.name,
                },
                images={"evaluation": len(paths)},
                steps=(stage, "compute metrics"),
                costs={stage: Cost(kind="evaluate", images=len(paths))},
            ),
            reporter,
        )
        reporter.begin(stage)
        data_hash = dataset.hash_images(paths)
        task = get_task(runner.info.task)
        if conf is None:
            conf = EVAL_CONF.get(task.name, EVAL_CONF["detect"])
        settings = PostprocessSettings(conf=conf, iou=iou, max_det=max_det, multi_label=True)
        evaluator, machine = make_evaluator(task, dataset), describe_machine()
        if executor is None:
            seconds, unread = run_images(runner, evaluator, paths, size, batch, settings, reporter)
        else:
            workers = Workers(executor, reporter, gpu=runner.engine)
            seconds, unread = run_images_on_workers(workers, runner, evaluator, paths, size, batch, settings)
            machine |= workers.describe()
    warn_of_skipped(list(unread.values()))
    if unread:
        notes.append(f"skipped: {describe_skipped(list(unread.values()))}")
    reporter.begin("compute metrics")
    before = time.perf_counter()
    scores = evaluator.compute_scores()
    end = time.perf_counter()
    seconds["match"] += end - before
    seconds["wall"] = end - start
    reporter.finish()
    return Evaluation(
        task=task.name,
        **{field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)},
        speed={stage: 1000 * value / len(scores.per_image) for stage, value in seconds.items()},
        skipped=tuple(unread),
        notes=tuple(notes),
        provenance=Provenance(
            model_hash=runner.hash,
            data_hash=data_hash,
            runner=runner.name,
            machine=machine,
            settings={
                "data": str(dataset.path),
                "split": split,
                "precision": runner.precision,
                "batch": batch,
                "imgsz": list(size),
                "conf": conf,
                "iou": iou,
                "max_det": max_det,
                "eval_images": eval_images,
                "seed": seed,
            },
            seed=seed,
        ),
    )


# Checks of the arguments against model and data set


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The images of an evaluation, checked against the model.

    Attributes:
        dataset: The data set.
        paths: The images to evaluate on.
        notes: Notes for the reader of the metrics.
    """

    dataset: Dataset
    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def prepare_evaluation(
    info: ModelInfo, data: DataSource, split: str, *, eval_images: int | None, seed: int
) -> EvaluationData:
    """Open the data of an evaluation and check it against a model, before any slow work.

    Every verb that evaluates calls this before it traces, calibrates or builds.

    Args:
        info: The model.
        data: A data set's YAML file, or a folder of class folders for classify.
        split: Split to evaluate on.
        eval_images: Maximum number of images, a seeded sample; None takes the whole split.
        seed: Seed of that sample.

    Returns:
        The data set and its images.

    Raises:
        DataError: The data set can't be used, has no such split, no labels, more classes than the model or other
            keypoints, or none of the images and labels can be read.
    """
    dataset = open_dataset(data, task=info.task, channels=info.channels)
    notes = _check_agreement(info, dataset)
    paths = sample_images(dataset.images(split), count=eval_images, seed=seed)
    unlabeled = dataset.require_labels(paths)
    if unlabeled:
        notes.append(f"{unlabeled} of {len(paths)} images have no label file and count as images without objects")
    _require_usable(dataset, split, paths)
    return EvaluationData(dataset=dataset, paths=paths, notes=tuple(notes))


def _require_usable(dataset: Dataset, split: str, paths: Sequence[Path]) -> None:
    """Check that an image can be read with its labels; the others are skipped and named by the evaluation.

    Raises:
        DataError: None can be read, such as where all labels are of another task; or an image has no class.
    """
    first: DataError | None = None
    for path in paths:
        try:
            dataset.labels(path)
            read_image(path, dataset.channels)
        except DataError as error:
            if not is_skipped(error):
                raise
            first = first or error
            continue
        return
    assert first is not None
    raise DataError(
        f"evaluate on {split!r} of {dataset.path}",
        f"none of {len(paths)} images can be used; the first: {first.asked}: {first.found}",
        "correct or remove them",
        code="evaluate-images-unreadable",
        path=dataset.path,
        split=split,
        count=len(paths),
        reason=first.code,
    ) from first


def _check_agreement(info: ModelInfo, dataset: Dataset) -> list[str]:
    """Check that model and data set have the same classes and keypoints.

    Returns:
        Notes for the reader of the metrics.

    Raises:
        DataError: The data set has more classes than the model, or other keypoints.
    """
    asked, do = f"evaluate on {dataset.path}", "use the data set the model was trained for"
    if len(dataset.names) > len(info.names):
        raise DataError(
            asked,
            f"it has {len(dataset.names)} classes and the model {len(info.names)}",
            do,
            code="evaluate-classes-mismatch",
            dataset=len(dataset.names),
            model=len(info.names),
        )
    data_shape, model_shape = dataset.kpt_shape, info.kpt_shape
    if data_shape is not None and model_shape is not None and data_shape[0] != model_shape[0]:
        raise DataError(
            asked,
            f"it has {data_shape[0]} keypoints and the model {model_shape[0]}",
            do,
            code="evaluate-keypoints-mismatch",
            dataset=data_shape[0],
            model=model_shape[0],
        )
    notes = []
    other = next((number for number, name in dataset.names.items() if info.names.get(number) != name), None)
    if other is not None:
        notes.append(
            f"class {other} is {info.names.get(other)!r} in the model and {dataset.names[other]!r} in the data set"
        )
    if info.nms:
        notes.append(
            "NMS is in the graph, with its own threshold and one class per box: AP is lower than with NMS outside the "
            "graph"
        )
    return notes


def _resolve_imgsz(runner: Runner, imgsz: int | tuple[int, int] | None, notes: list[str]) -> tuple[int, int]:
    """Return the input's (height, width), rounded up to the stride.

    Raises:
        EngineError: The runner has a fixed size and `imgsz` is another.
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
            f"the runner has the fixed size {runner.imgsz[0]}x{runner.imgsz[1]}",
            "leave imgsz out, or export with dynamic=True",
            code="evaluate-imgsz-fixed",
            imgsz=size,
            limit=tuple(runner.imgsz),
        )
    return size


def _resolve_batch(runner: Runner, batch: int | None) -> int:
    """Return the images per run.

    Raises:
        EngineError: The batch is larger than the runner's.
    """
    if batch is None:
        return runner.batch or 1
    if runner.batch is not None and batch > runner.batch:
        raise EngineError(
            f"evaluate with batch={batch}",
            f"the runner's largest batch is {runner.batch}",
            f"pass batch={runner.batch}",
            code="evaluate-batch-too-large",
            batch=batch,
            limit=runner.batch,
        )
    return batch
