"""The work behind sensitivity(): every layer and block alone in INT8, and every one kept out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trtkit.calibration.selection import input_batches
from trtkit.data import open_dataset, sample
from trtkit.errors import RecipeError
from trtkit.graph.quantized import Placement
from trtkit.graph.tracing import trace
from trtkit.judgement.evaluation import evaluate
from trtkit.origin import Origin
from trtkit.progress import Cancel, Progress, Work
from trtkit.recipe import rounded_imgsz
from trtkit.sources import Model, load
from trtkit.tasks import task as task_of
from trtkit.tuning.blocks import block_of, block_types
from trtkit.tuning.lab import Lab, Pictures, calibrated, runner_name
from trtkit.tuning.remembered import Remembered
from trtkit.tuning.segments import Variant
from trtkit.tuning.sensitivity import Sensitivity

if TYPE_CHECKING:
    import torch

    from trtkit.calibration import Calibration
    from trtkit.data import Dataset

__all__ = ["Settings", "measure"]

_LAYER_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("node", "block", "operator"), pl.String),
    "macs": pl.Int64,
    **dict.fromkeys(("sqnr_only", "sqnr_without", "gain", "metric_only", "metric_without"), pl.Float64),
}
_BLOCK_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("block", "type"), pl.String),
    **dict.fromkeys(("layers", "macs"), pl.Int64),
    **dict.fromkeys(("sqnr_only", "sqnr_without", "gain"), pl.Float64),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `sensitivity` that shape its numbers; described there."""

    split: str = "val"
    images: int = 32
    worst: int = 3
    protect: bool = True
    imgsz: int | tuple[int, int] | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.worst < 0 or (self.threads is not None and self.threads < 1):
            raise RecipeError(
                f"measure sensitivity with images={self.images}, worst={self.worst}, threads={self.threads}",
                "there would be nothing to measure",
                "use images >= 1, worst >= 0 and threads >= 1",
            )


def measure(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    settings: Settings,
    calibration: Calibration | str | Path | None,
    progress: Progress | None,
    cancel: Cancel | None,
) -> Sensitivity:
    """As `sensitivity` says."""
    work = Work(progress, cancel)
    loaded = load(model)
    size = rounded_imgsz(settings.imgsz if settings.imgsz is not None else loaded.imgsz, loaded.stride)
    found = calibrated(loaded, data, calibration, images=settings.images, imgsz=size, seed=settings.seed, work=work)
    dataset = open_dataset(data, task=loaded.task)
    paths = sample(dataset.pictures(settings.split), count=settings.images, seed=settings.seed)
    graph, classes = trace(loaded, imgsz=size, batch=1), len(loaded.names)
    lab = Lab(graph, classes, protect=settings.protect, exact=False)
    variants = {
        label: lab.variant(placement, found.ranges, found.corrections, often=label == "int8")
        for label, placement in _placements(lab).items()
    }
    skipped: list[str] = []

    def pictures() -> Iterable[NDArray[np.float32]]:
        skipped.clear()
        return input_batches(paths, task=loaded.task, size=size, batch=1, skipped=skipped)

    noise = lab.noise(variants, pictures, len(paths), stage="measure every layer", work=work, threads=settings.threads)
    rows = [_layer(lab, name, noise) for name in lab.whole.layers]
    metric, metrics = "", dict[str, float]()
    if settings.worst:
        metric = task_of(loaded.task).metric
        chosen = sorted(rows, key=lambda row: row["sqnr_only"])[: settings.worst]
        asked = ["int8", *(f"{way} {row['node']}" for row in chosen for way in ("only", "without"))]
        del variants
        # What is judged runs by the arithmetic that every backend's graph has in ONNX Runtime.
        lab = Lab(graph, classes, protect=settings.protect)
        placements = _placements(lab)
        judged = {label: lab.variant(placements[label], found.ranges, found.corrections) for label in asked}
        runners = _remembered(
            lab, {"float": lab.float, **judged}, pictures, len(paths), loaded, size, settings.threads, work
        )
        for label, runner in runners.items():
            evaluation = evaluate(
                runner, dataset, settings.split, images=settings.images, seed=settings.seed, cancel=work.cancel
            )
            metrics[label] = float(evaluation.metrics[metric])
        for row in rows:
            for way in ("only", "without"):
                row[f"metric_{way}"] = metrics.get(f"{way} {row['node']}")
    return Sensitivity(
        layers=pl.DataFrame(rows, schema=_LAYER_COLUMNS),
        blocks=pl.DataFrame(_blocks(lab, noise, block_types(loaded.module)), schema=_BLOCK_COLUMNS),
        metric=metric,
        sqnr=noise["int8"],
        metric_float=metrics.get("float"),
        metric_int8=metrics.get("int8"),
        kept=dict(lab.whole.kept),
        images=len(paths) - len(skipped),
        origin=Origin(
            model_hash=loaded.hash,
            data_hash=dataset.hash_of(paths),
            runner=runner_name(),
            settings={
                **{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
                "imgsz": list(size),
                "data": str(dataset.path),
                "calibration": found.hash,
                "algorithm": found.algorithm,
            },
            seed=settings.seed,
        ),
    )


def _placements(lab: Lab) -> dict[str, Placement]:
    """By label: "int8", "only <layer or block>", "without <layer or block>"; a block of one layer is that layer."""
    groups = {name: [name] for name in lab.whole.layers}
    groups.update({name: layers for name, layers in lab.blocks.items() if len(layers) > 1})
    placements = {"int8": lab.whole}
    placements.update({f"only {name}": lab.only(layers) for name, layers in groups.items()})
    placements.update({f"without {name}": lab.without(layers) for name, layers in groups.items()})
    return placements


def _layer(lab: Lab, name: str, noise: Mapping[str, float]) -> dict[str, Any]:
    """A row of `Sensitivity.layers`."""
    return {
        "node": name,
        "block": block_of(name),
        "operator": lab.view.nodes[name].op_type,
        "macs": lab.macs.get(name),
        **_ratios(name, noise),
    }


def _blocks(lab: Lab, noise: Mapping[str, float], types: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of `Sensitivity.blocks`."""
    return [
        {
            "block": block,
            "type": types.get(block, ""),
            "layers": len(layers),
            "macs": sum(lab.macs.get(name, 0) for name in layers),
            **_ratios(block if len(layers) > 1 else layers[0], noise),
        }
        for block, layers in lab.blocks.items()
    ]


def _ratios(name: str, noise: Mapping[str, float]) -> dict[str, float]:
    only, without = noise[f"only {name}"], noise[f"without {name}"]
    return {"sqnr_only": only, "sqnr_without": without, "gain": without - noise["int8"]}


def _remembered(
    lab: Lab,
    variants: Mapping[str, Variant],
    pictures: Pictures,
    count: int,
    model: Model,
    size: tuple[int, int],
    threads: int | None,
    work: Work,
) -> dict[str, Remembered]:
    """Runners that know what each variant gives, so that `evaluate` judges them like any other."""
    card = dataclasses.replace(model.card, imgsz=size)
    runners = {
        label: Remembered(
            card,
            name=runner_name(),
            precision="fp32" if label == "float" else "int8",
            imgsz=size,
            hash=model.hash,
        )
        for label in variants
    }
    stage = "run the worst layers"
    work.step(stage, 0, count)
    found: Sequence[dict[str, NDArray[np.float32]]]
    for done, (picture, found) in enumerate(lab.outputs(list(variants.values()), pictures, threads), 1):
        for runner, outputs in zip(runners.values(), found, strict=True):
            runner.remember(picture, outputs)
        work.step(stage, done, count)
    return runners
