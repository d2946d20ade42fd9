"""Evaluation: metrics of a runner, with the matches behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trtkit.results import Provenance, Result, SavedResult, rename_version_1_keys

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl
    from typing_extensions import Self

__all__ = ["Evaluation"]

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
        per_class: One row per class with labels: class, name, images, instances, and the metrics of Ultralytics' rule.
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
        skipped: Paths of images that could not be read.
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
        """Fraction of the wall time in which the model did not run."""
        return 1 - self.speed["inference"] / self.speed["wall"]

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
        """Plot the accuracy of each class, and precision over recall."""
        from trtkit.plotting.evaluation import classification_figure, evaluation_figure

        title = f"{self.task} on {self.image_count} images, {self.provenance.runner}"
        if "top1" in self.metrics:
            return classification_figure(self.per_class, title=title)
        kinds = [name[len("mAP50-95(") : -1] for name in self.metrics if name.startswith("mAP50-95(")]
        return evaluation_figure(self.per_class, self.detections, self.labels, kinds=kinds, title=title)

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
            lines.append(f"  {len(self.skipped)} images could not be read and were skipped")
        return "\n".join((*lines, *(f"  {note}" for note in self.notes)))


def _rule(metric: str) -> str:
    if metric.startswith("pycocotools/"):
        return "pycocotools' rule"
    return "accuracy" if metric.startswith("top") else "Ultralytics' rule"
