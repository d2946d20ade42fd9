"""sensitivity(): what each layer and each block costs in INT8."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trtkit.backends.base import Runner
from trtkit.calibration.sampling import load_input_batches
from trtkit.data import open_dataset, sample_images
from trtkit.errors import EngineError, RecipeError
from trtkit.evaluation.evaluator import evaluate
from trtkit.graph.analysis import block_of, block_types
from trtkit.graph.qdq import QDQPlacement
from trtkit.graph.torch_export import trace
from trtkit.models import Model, load
from trtkit.models.model import ModelInfo
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import round_imgsz
from trtkit.results import Provenance, Result
from trtkit.tasks import get_task
from trtkit.tuning.noise import InputSource, LayerNoise, load_or_calibrate, runner_name
from trtkit.tuning.partial_inference import Variant

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

    from trtkit.calibration.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = ["CachedOutputsRunner", "Sensitivity", "Settings", "measure", "sensitivity"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sensitivity(Result):
    """What INT8 costs, layer by layer and block by block.

    Signal-to-noise ratios (SQNR, dB, higher is better) compare what the head's last layers give with what they give in
    FP32: minus ten times the logarithm of the error's share of the energy, averaged over these layers, half of it over
    all places alike, half over each by the confidence FP32 has there.

    Attributes:
        layers: One row a layer, in graph order: `node`, `block`, `operator`, `macs` (multiply-accumulates an image),
            `sqnr_only` (only it is INT8), `sqnr_without` (all but it are), `gain` (what keeping it high gains over INT8
            throughout, dB), and for the worst `metric_only`, `metric_without`.
        blocks: The same by block; `layers` counts those of it that run in INT8, `type` is the module's.
        metric: The metric that judges, e.g. "mAP50-95(B)" by Ultralytics' rule; "" where none was asked for.
        sqnr: Of INT8 throughout, dB.
        metric_float: The metric in FP32, or None.
        metric_int8: The metric of INT8 throughout, or None.
        kept: Layers that no variant put in INT8, with the reason.
        images: Images that ran.
        provenance: Model, data, settings and seed.
    """

    kind: ClassVar[str] = "sensitivity"

    layers: pl.DataFrame
    blocks: pl.DataFrame
    metric: str
    sqnr: float
    metric_float: float | None
    metric_int8: float | None
    kept: Mapping[str, str]
    images: int
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """`layers`."""
        return self.layers

    def worst(self, count: int = 5) -> pl.DataFrame:
        """The layers that cost most when only they are INT8, the worst first."""
        return self.layers.sort("sqnr_only").head(count)

    def keep(self, count: int) -> tuple[str, ...]:
        """`keep=` patterns for the layers whose staying high gains most.

        Args:
            count: How many layers.
        """
        from trtkit.graph.analysis import escape_pattern

        return tuple(escape_pattern(name) for name in self.layers.sort("gain", descending=True).head(count)["node"])

    def plot(self) -> go.Figure:
        """Each layer in graph order: its SQNR when only it is INT8, and what keeping it high gains."""
        from trtkit.plotting.tuning import sensitivity_figure

        return sensitivity_figure(self)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Both frames."""
        return {"layers": self.layers, "blocks": self.blocks}

    def facts(self) -> Mapping[str, Any]:
        """What no frame holds."""
        names = ("metric", "sqnr", "metric_float", "metric_int8", "images")
        return {**{name: getattr(self, name) for name in names}, "kept": dict(self.kept)}

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Sensitivity:
        """The inverse of `tables` and `facts`."""
        return cls(**{**tables, **facts}, provenance=provenance)

    def __repr__(self) -> str:
        lines = [
            f"Sensitivity of {len(self.layers)} layers over {self.images} images: INT8 throughout {self.sqnr:.1f} dB"
        ]
        if self.metric_float is not None and self.metric_int8 is not None:
            lines[0] += f", {self.metric} {self.metric_int8:.4f} against {self.metric_float:.4f} in FP32"
        lines += [
            f"  {row['node']} ({row['block']}): {row['sqnr_only']:.1f} dB alone, keeping it gains {row['gain']:+.2f} dB"
            for row in self.worst(3).iter_rows(named=True)
        ]
        return "\n".join(lines)


def sensitivity(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    split: str = "val",
    *,
    probe_images: int = 32,
    calibration: Calibration | str | Path | None = None,
    worst: int = 3,
    protect: bool = True,
    imgsz: int | tuple[int, int] | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Sensitivity:
    """Measure what each layer and each block costs when only it is INT8, and when all but it are.

    Everything runs on ONNX Runtime's processor kernels, with the arithmetic of the Q/DQ graph that every backend gets.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file; its labels are read for the metric only.
        split: The split whose images run.
        probe_images: How many of them, a seeded sample.
        calibration: Ranges, or the folder of a saved calibration; None calibrates by min-max on `images` images of
            `train`.
        worst: The metric is measured for so many of the worst layers; 0 measures none.
        protect: Leave layers alone that stay high by default (`View.costly`: DFL, attention); False
            measures them like the others.
        imgsz: Height and width, pixels; None takes the model's.
        threads: Images that run beside each other; None takes one for each core.
        seed: Seed of the sample.
        progress: Receives an event for each image.
        cancel: Asked at each image.

    Returns:
        SQNR of every layer and block, the metric of the worst layers.

    Raises:
        CalibrationError: The calibration is of another model.
        DataError: The data set can't be read.
        CancelledError: The caller cancelled.
    """

    settings = Settings(
        split=split,
        images=probe_images,
        worst=worst,
        protect=protect,
        imgsz=imgsz,
        threads=threads,
        seed=seed,
    )
    return measure(model, data, settings, calibration, progress, cancel)


# Outputs computed elsewhere, judged as if a runner had just computed them.


class CachedOutputsRunner(Runner):
    """A runner that looks up what came out for an image.

    Args:
        info: The model's description.
        name: What computed the outputs.
        precision: "fp32" or "int8".
        imgsz: Height and width of the inputs, pixels.
        hash: SHA-256 of the model.
    """

    engine = False
    passport = None
    path = None
    batch = 1
    dynamic = False

    def __init__(self, info: ModelInfo, *, name: str, precision: str, imgsz: tuple[int, int], hash: str) -> None:
        self.info = info
        self.name = name
        self.precision = precision
        self.imgsz = imgsz
        self.hash = hash
        self.known: dict[bytes, dict[str, NDArray[np.float32]]] = {}

    def store(self, image: NDArray[np.float32], outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep what came out for an input (1, C, H, W)."""
        self.known[_hash_image(image)] = {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    def infer(self, feeds: NDArray[np.float32] | Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What came out for these images.

        Raises:
            EngineError: One of them was never seen.
        """
        images = next(iter(feeds.values())) if isinstance(feeds, Mapping) else feeds
        self.check_batch(len(images))
        found = [self.known.get(_hash_image(image[None])) for image in images]
        if any(one is None for one in found):
            raise EngineError("look up an image's outputs", "this image never ran", "remember it first")
        known = [one for one in found if one is not None]
        return {name: np.concatenate([one[name] for one in known]) for name in known[0]}

    def close(self) -> None:
        """Forget everything."""
        self.known.clear()


def _hash_image(image: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


# The work behind sensitivity(): every layer and block alone in INT8, and every one kept out of it.


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
    cancel: CancelToken | None,
) -> Sensitivity:
    """As `sensitivity` says."""
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    size = round_imgsz(settings.imgsz if settings.imgsz is not None else loaded.imgsz, loaded.stride)
    found = load_or_calibrate(
        loaded, data, calibration, images=settings.images, imgsz=size, seed=settings.seed, reporter=reporter
    )
    dataset = open_dataset(data, task=loaded.task)
    paths = sample_images(dataset.images(settings.split), count=settings.images, seed=settings.seed)
    graph, classes = trace(loaded, imgsz=size, batch=1), len(loaded.names)
    lab = LayerNoise(graph, classes, protect=settings.protect, exact=False)
    variants = {
        label: lab.prepare_variant(placement, found.ranges, found.corrections, shared=label == "int8")
        for label, placement in _plan_placements(lab).items()
    }
    skipped: list[str] = []

    def images() -> Iterable[NDArray[np.float32]]:
        skipped.clear()
        return load_input_batches(paths, task=loaded.task, size=size, batch=1, skipped=skipped)

    noise = lab.measure_sqnr(
        variants, images, len(paths), stage="measure every layer", reporter=reporter, threads=settings.threads
    )
    rows = [_layer_row(lab, name, noise) for name in lab.full_int8.layers]
    metric, metrics = "", dict[str, float]()
    if settings.worst:
        metric = get_task(loaded.task).metric
        chosen = sorted(rows, key=lambda row: row["sqnr_only"])[: settings.worst]
        asked = ["int8", *(f"{way} {row['node']}" for row in chosen for way in ("only", "without"))]
        del variants
        # What is judged runs by the arithmetic that every backend's graph has in ONNX Runtime.
        lab = LayerNoise(graph, classes, protect=settings.protect)
        placements = _plan_placements(lab)
        judged = {label: lab.prepare_variant(placements[label], found.ranges, found.corrections) for label in asked}
        runners = _run_variants(
            lab, {"float": lab.float_variant, **judged}, images, len(paths), loaded, size, settings.threads, reporter
        )
        for label, runner in runners.items():
            evaluation = evaluate(
                runner, dataset, settings.split, eval_images=settings.images, seed=settings.seed, cancel=reporter.cancel
            )
            metrics[label] = float(evaluation.metrics[metric])
        for row in rows:
            for way in ("only", "without"):
                row[f"metric_{way}"] = metrics.get(f"{way} {row['node']}")
    return Sensitivity(
        layers=pl.DataFrame(rows, schema=_LAYER_COLUMNS),
        blocks=pl.DataFrame(_block_rows(lab, noise, block_types(loaded.module)), schema=_BLOCK_COLUMNS),
        metric=metric,
        sqnr=noise["int8"],
        metric_float=metrics.get("float"),
        metric_int8=metrics.get("int8"),
        kept=dict(lab.full_int8.excluded),
        images=len(paths) - len(skipped),
        provenance=Provenance(
            model_hash=loaded.hash,
            data_hash=dataset.hash_images(paths),
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


def _plan_placements(lab: LayerNoise) -> dict[str, QDQPlacement]:
    """By label: "int8", "only <layer or block>", "without <layer or block>"; a block of one layer is that layer."""
    groups = {name: [name] for name in lab.full_int8.layers}
    groups.update({name: layers for name, layers in lab.blocks.items() if len(layers) > 1})
    placements = {"int8": lab.full_int8}
    placements.update({f"only {name}": lab.plan_only(layers) for name, layers in groups.items()})
    placements.update({f"without {name}": lab.plan_without(layers) for name, layers in groups.items()})
    return placements


def _layer_row(lab: LayerNoise, name: str, noise: Mapping[str, float]) -> dict[str, Any]:
    """A row of `Sensitivity.layers`."""
    return {
        "node": name,
        "block": block_of(name),
        "operator": lab.index.nodes[name].op_type,
        "macs": lab.macs.get(name),
        **_sqnr_values(name, noise),
    }


def _block_rows(lab: LayerNoise, noise: Mapping[str, float], types: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of `Sensitivity.blocks`."""
    return [
        {
            "block": block,
            "type": types.get(block, ""),
            "layers": len(layers),
            "macs": sum(lab.macs.get(name, 0) for name in layers),
            **_sqnr_values(block if len(layers) > 1 else layers[0], noise),
        }
        for block, layers in lab.blocks.items()
    ]


def _sqnr_values(name: str, noise: Mapping[str, float]) -> dict[str, float]:
    only, without = noise[f"only {name}"], noise[f"without {name}"]
    return {"sqnr_only": only, "sqnr_without": without, "gain": without - noise["int8"]}


def _run_variants(
    lab: LayerNoise,
    variants: Mapping[str, Variant],
    images: InputSource,
    count: int,
    model: Model,
    size: tuple[int, int],
    threads: int | None,
    reporter: Reporter,
) -> dict[str, CachedOutputsRunner]:
    """Runners that know what each variant gives, so that `evaluate` judges them like any other."""
    info = dataclasses.replace(model.info, imgsz=size)
    runners = {
        label: CachedOutputsRunner(
            info,
            name=runner_name(),
            precision="fp32" if label == "float" else "int8",
            imgsz=size,
            hash=model.hash,
        )
        for label in variants
    }
    stage = "run the worst layers"
    reporter.step(stage, 0, count)
    found: Sequence[dict[str, NDArray[np.float32]]]
    for done, (image, found) in enumerate(lab.outputs(list(variants.values()), images, threads), 1):
        for runner, outputs in zip(runners.values(), found, strict=True):
            runner.store(image, outputs)
        reporter.step(stage, done, count)
    return runners
