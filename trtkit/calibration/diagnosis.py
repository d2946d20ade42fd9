"""examine(): is this calibration set fit to calibrate with?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration import dataset_checks as checks
from trtkit.calibration.dataset_checks import SEVERITIES, Finding
from trtkit.calibration.image_hashes import ImageFingerprints, fingerprint_images
from trtkit.calibration.sampling import sample_stratified
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.results import Provenance, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.data import Dataset

__all__ = ["Diagnosis", "examine"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Diagnosis(Result):
    """What the doctor found.

    Attributes:
        findings: The worst first.
        images: One row an image: `set` ("calibration", "validation"), path, brightness, contrast, aspect, objects.
        classes: One row a class: name, objects in the calibration set, in its pool and in validation.
        split: Where the calibration images come from.
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
        """One row a finding: severity, code, evidence, remedy, images."""
        return pl.DataFrame(
            [dataclasses.asdict(finding) for finding in self.findings],
            schema={
                **dict.fromkeys(("severity", "code", "evidence", "remedy"), pl.String),
                "images": pl.List(pl.String),
            },
        )

    def plot(self) -> go.Figure:
        """Brightness, contrast and aspect of the calibration set beside validation's."""
        from trtkit.plotting.calibration import diagnosis_figure

        return diagnosis_figure(self.images)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Every frame."""
        return {"findings": self.frame(), "images": self.images, "classes": self.classes}

    def facts(self) -> Mapping[str, Any]:
        """The split and the verdict."""
        return {"split": self.split, "healthy": self.healthy}

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
        lines = [f"Diagnosis of {count} images of {self.split}: {verdict}"]
        lines += [f"  {one.severity} {one.code}: {one.evidence}; {one.remedy}." for one in self.findings]
        return "\n".join(lines)


def examine(
    data: str | Path | Dataset,
    *,
    task: str = "detect",
    split: str | None = None,
    against: str | None = "val",
    image_paths: Sequence[str | Path] | None = None,
    calibration_images: int = 512,
    fraction: float = 1.0,
    seed: int = 0,
    stratify: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Diagnosis:
    """Examine the images that `calibrate` would take with the same arguments, or any others.

    It looks for: too few images, duplicates and near-duplicates, classes and object sizes that the data set has and
    these images lack, brightness, contrast or shape other than validation's, images of validation among them, and
    whether the first n of the split would have been a biased choice.

    Args:
        data: A data set's YAML file, or a folder of class folders for classify.
        task: What the labels are read for.
        split: The split to draw from; None takes `train`, or `val` where there is no `train`.
        against: The split that judges the model; None, or one that is not there, leaves out what needs it.
        image_paths: The calibration images themselves; None draws them.
        calibration_images: The largest number of images drawn.
        fraction: The share of the split to draw from, (0, 1].
        seed: Seed of the sample.
        stratify: Draw so that every class keeps its share.
        progress: Receives an event for each image.
        cancel: Asked at each image.

    Returns:
        The findings, each with evidence and remedy, and the frames they rest on.

    Raises:
        DataError: The data set or a label file can't be read.
        RecipeError: `images` or `fraction` is out of range.
        CancelledError: The caller cancelled.
    """
    from trtkit.data import open_dataset, sample_images

    reporter = Reporter(progress, cancel)
    dataset = open_dataset(data, task=task)
    split = split or ("train" if "train" in dataset.splits else "val")
    pool_paths = dataset.images(split)
    if image_paths is not None:
        chosen = tuple(Path(image).absolute() for image in image_paths)
    else:
        chosen = sample_images(pool_paths, count=calibration_images, fraction=fraction, seed=seed)
        if stratify:
            chosen = sample_stratified(dataset, pool_paths, count=len(chosen), seed=seed)
    others = [path for path in chosen if path not in set(pool_paths)]
    everything = fingerprint_images([*pool_paths, *others], dataset, reporter, "examine the calibration images")
    pool, own = everything.select(pool_paths), everything.select(chosen)
    judged = None
    if against is not None and against in dataset.splits:
        judged = fingerprint_images(dataset.images(against), dataset, reporter, "examine the validation images")
    names = list(dataset.names.values())
    found = [*checks.number(own), *checks.duplicates(own)]
    found += [*checks.classes(own, pool, judged, names), *checks.sizes(own, judged or pool)]
    if judged is not None:
        found += [*checks.leakage(own, judged), *checks.drift(own, judged)]
    found += checks.order(pool, own, names)
    found.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    reporter.step("examine", 1, 1, f"{len(found)} findings")
    return Diagnosis(
        findings=tuple(found),
        images=_image_frame(own, judged),
        classes=pl.DataFrame(
            {
                "class": names,
                "calibration": own.counts.sum(axis=0),
                "pool": pool.counts.sum(axis=0),
                "validation": judged.counts.sum(axis=0) if judged is not None else None,
            },
            schema={"class": pl.String, "calibration": pl.Int64, "pool": pl.Int64, "validation": pl.Int64},
        ),
        split=split,
        provenance=Provenance(
            model_hash="",
            data_hash=dataset.hash_images([path for path in chosen if path.is_file()]),
            runner="trtkit doctor",
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


def _image_frame(own: ImageFingerprints, judged: ImageFingerprints | None) -> pl.DataFrame:
    parts = []
    for name, group in (("calibration", own), ("validation", judged)):
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
