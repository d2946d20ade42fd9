"""examine(): check a calibration set for problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration import dataset_checks as checks
from trtkit.calibration.algorithms import DEFAULTS
from trtkit.calibration.dataset_checks import SEVERITIES, Finding
from trtkit.calibration.image_hashes import ImageFingerprints, fingerprint_images
from trtkit.calibration.sampling import sample_stratified
from trtkit.data.dataset import describe_images
from trtkit.errors import DataError, ModelError
from trtkit.models.model import ModelInfo
from trtkit.progress import CancelToken, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result, SavedResult, rename_version_1_keys

if TYPE_CHECKING:
    import onnx
    import plotly.graph_objects as go
    import torch

    from trtkit.data import Dataset, DataSource
    from trtkit.models import Model

__all__ = ["Diagnosis", "count_detections", "examine", "find_foreign_images"]

DETECTION_CONF = 0.25
"""Score threshold of the detections that are counted: the default of `Runner.predict`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Diagnosis(Result):
    """Findings about a calibration set.

    Attributes:
        findings: Findings, the most severe first.
        images: One row per image: `set` ("calibration", "validation"), path, brightness, contrast, aspect, objects.
        classes: One row per class: name, objects in the calibration set, in its split and in validation.
        split: Split of the calibration images.
        provenance: Data, settings and seed.
    """

    kind: ClassVar[str] = "diagnosis"

    findings: tuple[Finding, ...]
    images: pl.DataFrame
    classes: pl.DataFrame
    split: str
    provenance: Provenance

    @property
    def healthy(self) -> bool:
        """Whether nothing worse than a note was found."""
        return all(finding.severity == "note" for finding in self.findings)

    def frame(self) -> pl.DataFrame:
        """One row per finding: severity, code, evidence, remedy, images."""
        return pl.DataFrame(
            [dataclasses.asdict(finding) for finding in self.findings],
            schema={
                **dict.fromkeys(("severity", "code", "evidence", "remedy"), pl.String),
                "images": pl.List(pl.String),
            },
        )

    def plot(self) -> go.Figure:
        """Brightness, contrast and aspect ratio of calibration and validation images."""
        from trtkit.plotting.calibration import diagnosis_figure

        return diagnosis_figure(self.images)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Every frame."""
        return {"findings": self.frame(), "images": self.images, "classes": self.classes}

    def facts(self) -> Mapping[str, Any]:
        """The split and the verdict."""
        return {"split": self.split, "healthy": self.healthy}

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert format version 1: renames settings."""
        saved = super().upgrade(saved)
        renames = {"images": "calibration_images", "pictures": "image_paths"}
        saved.provenance["settings"] = rename_version_1_keys(saved.provenance["settings"], renames)
        return saved

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Diagnosis:
        """The inverse of `tables` and `facts`."""
        rows = tables["findings"].iter_rows(named=True)
        return cls(
            findings=tuple(Finding(**{**row, "images": tuple(row["images"])}) for row in rows),
            images=tables["images"],
            classes=tables["classes"],
            split=facts["split"],
            provenance=provenance,
        )

    def __repr__(self) -> str:
        count = self.images.filter(pl.col("set") == "calibration").height
        verdict = "healthy" if self.healthy else "not healthy"
        lines = [f"Diagnosis of {describe_images(count, self.split)}: {verdict}"]
        lines += [f"  {one.severity} {one.code}: {one.evidence}; {one.remedy}." for one in self.findings]
        return "\n".join(lines)


@verb
def examine(
    data: DataSource,
    *,
    model: Model | str | Path | torch.nn.Module | None = None,
    task: str = "detect",
    split: str | None = None,
    against: str | None = "val",
    image_paths: Sequence[str | Path] | None = None,
    calibration_images: int = DEFAULTS.calibration_images,
    fraction: float = DEFAULTS.fraction,
    seed: int = DEFAULTS.seed,
    stratify: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Diagnosis:
    """Check the images that `calibrate` samples with the same arguments, or given ones.

    Checks: too few images, duplicates and near-duplicates, missing classes and object sizes, dataset shift of
    brightness, contrast and aspect ratio against validation, validation images in the calibration set, whether the
    first n images of the split are biased, and with `model` whether the images look unlike the model's domain.

    Args:
        data: A data set's YAML file, or a folder of class folders for classify; or images without labels: a folder, a
            glob pattern, an image or a list of these, for which checks of labels are left out.
        model: From `load`, or what `load` takes; its FP32 detections are counted on up to 32 of the images. None leaves
            this check out.
        task: The task of the labels; with `model`, that of the model.
        split: Split of the calibration images; None takes `train`, or `val` if there is no `train`.
        against: Split of the evaluation; None, or a split that does not exist, omits the checks that need it.
        image_paths: Calibration images; None samples them from the split.
        calibration_images: Maximum number of sampled images.
        fraction: Share of the split that images are drawn from, in (0, 1].
        seed: Seed of the sample.
        stratify: Keep each class's share of the images in the sample.
        progress: Receives an event for each image.
        cancel: Checked before each image.

    Returns:
        The findings, each with evidence and remedy, and the frames they are based on.

    Raises:
        DataError: The data set or a label file can't be read.
        ModelError: The model can't be read.
        RecipeError: `calibration_images` or `fraction` is out of range.
        CancelledError: The caller cancelled.
    """
    from trtkit.data import open_dataset, sample_images

    reporter = Reporter(progress, cancel)
    loaded = None
    if model is not None:
        from trtkit.models import load

        loaded = load(model)
        task = loaded.task
    dataset = open_dataset(data, task=task, channels=None if loaded is None else loaded.channels, needs_labels=stratify)
    split = split or dataset.default_split
    pool_paths = dataset.images(split)
    if image_paths is not None:
        chosen = tuple(Path(image).absolute() for image in image_paths)
    else:
        chosen = sample_images(pool_paths, count=calibration_images, fraction=fraction, seed=seed)
        if stratify:
            chosen = sample_stratified(dataset, pool_paths, count=len(chosen), seed=seed)
    start_work(
        Plan(
            verb="examine",
            settings={
                "data": str(dataset.path),
                "split": split,
                "against": against if against in dataset.splits else None,
            },
            images={"calibration": len(chosen), "split": len(pool_paths)},
            steps=(
                POOL_STEP,
                *([AGAINST_STEP] if against is not None and against in dataset.splits else []),
                "check them",
            ),
        ),
        reporter,
    )
    reporter.begin(POOL_STEP)
    others = [path for path in chosen if path not in set(pool_paths)]
    fingerprints = fingerprint_images([*pool_paths, *others], dataset, reporter, POOL_STEP)
    pool, own = fingerprints.select(pool_paths), fingerprints.select(chosen)
    validation = None
    if against is not None and against in dataset.splits:
        reporter.begin(AGAINST_STEP)
        validation = fingerprint_images(dataset.images(against), dataset, reporter, AGAINST_STEP)
    reporter.begin("check them")
    names = list(dataset.names.values())
    findings = [*checks.check_count(own), *checks.check_duplicates(own)]
    findings += checks.check_class_shares(own, pool, validation, names)
    findings += checks.check_object_sizes(own, validation or pool)
    if validation is not None:
        findings += [*checks.check_leakage(own, validation), *checks.check_value_shifts(own, validation)]
    findings += checks.check_order(pool, own, names)
    if loaded is not None:
        findings += find_foreign_images(loaded, dataset, own.paths, reporter)
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    reporter.finish(f"{len(findings)} findings")
    return Diagnosis(
        findings=tuple(findings),
        images=_image_frame(own, validation),
        classes=pl.DataFrame(
            {
                "class": names,
                "calibration": own.counts.sum(axis=0),
                "pool": pool.counts.sum(axis=0),
                "validation": validation.counts.sum(axis=0) if validation is not None else None,
            },
            schema={"class": pl.String, "calibration": pl.Int64, "pool": pl.Int64, "validation": pl.Int64},
        ),
        split=split,
        provenance=Provenance(
            model_hash="" if loaded is None else loaded.hash,
            data_hash=dataset.hash_images([path for path in chosen if path.is_file()]),
            runner="trtkit examine",
            settings={
                "data": str(dataset.path),
                "task": task,
                "split": split,
                "against": against,
                "image_paths": None if image_paths is None else len(chosen),
                "calibration_images": calibration_images,
                "fraction": fraction,
                "stratify": stratify,
            },
            seed=seed,
        ),
    )


POOL_STEP, AGAINST_STEP = "examine the calibration images", "examine the validation images"


def find_foreign_images(
    model: Model | onnx.ModelProto,
    dataset: Dataset,
    paths: Sequence[Path],
    reporter: Reporter,
    *,
    imgsz: tuple[int, int] | None = None,
) -> list[Finding]:
    """Check on a sample of images whether they look unlike the model's domain.

    Of labeled images only those with objects count: images without any may be a part of the domain.

    Args:
        model: The model, or its FP32 graph with its description.
        dataset: The data set of the images.
        paths: The calibration images.
        reporter: Receives an event for each image.
        imgsz: Height and width at which a model is traced, pixels; None takes its own.

    Returns:
        One finding or none; none for a task without detections, such as classify.

    Raises:
        CancelledError: The caller cancelled.
    """
    from trtkit.data import sample_images

    sampled = sample_images(paths, count=checks.DOMAIN_IMAGES) if paths else ()
    if dataset.labeled:
        sampled = tuple(path for path in sampled if _may_hold_objects(dataset, path)) or sampled
    if len(sampled) < checks.MIN_DOMAIN_IMAGES:
        return []
    if isinstance(model, ModelInfo):
        from trtkit.calibration.collector import get_model_batch
        from trtkit.graph.torch_export import trace

        model = trace(model, imgsz=imgsz, batch=get_model_batch(model) or 1, dynamic_batch=True)
    detections = count_detections(model, sampled, reporter)
    return [] if detections is None else checks.check_domain(detections, DETECTION_CONF)


def _may_hold_objects(dataset: Dataset, path: Path) -> bool:
    """Whether an image has labels, or labels of another task: calibration needs none, so these are no error here."""
    try:
        return len(dataset.labels(path)) > 0
    except DataError:
        return True


def count_detections(graph: onnx.ModelProto, paths: Sequence[Path], reporter: Reporter) -> list[int] | None:
    """Count the detections of a graph in each image that can be read.

    Args:
        graph: The graph, with its description.
        paths: Image files.
        reporter: Receives an event for each image.

    Returns:
        The counts; None for a task without detections, or outputs that no decoder of trtkit reads.
    """
    from trtkit import backends
    from trtkit.tasks import Detections, get_task

    counts: list[int] = []
    stage = "count detections"
    with backends.open(graph, backend="onnxruntime") as runner:
        if not get_task(runner.info.task).kinds:
            return None
        for index, path in enumerate(paths):
            reporter.step(stage, index, len(paths))
            try:
                (prediction,) = runner.predict(path, conf=DETECTION_CONF)
            except DataError:
                # Unreadable images are reported by `check_count` and by `calibrate`.
                continue
            except ModelError:
                return None
            if not isinstance(prediction, Detections):
                return None
            counts.append(len(prediction))
    reporter.step(stage, len(paths), len(paths))
    return counts


def _image_frame(own: ImageFingerprints, validation: ImageFingerprints | None) -> pl.DataFrame:
    parts = []
    for name, group in (("calibration", own), ("validation", validation)):
        if group is None:
            continue
        parts.append(
            pl.DataFrame(
                {
                    "set": [name] * len(group),
                    "path": [str(path) for path in group.paths],
                    "brightness": group.brightness,
                    "contrast": group.contrast,
                    "aspect": group.aspect,
                    "objects": group.counts.sum(axis=1),
                },
                schema={
                    "set": pl.String,
                    "path": pl.String,
                    **dict.fromkeys(("brightness", "contrast", "aspect"), pl.Float64),
                    "objects": pl.Int64,
                },
            )
        )
    return pl.concat(parts)
