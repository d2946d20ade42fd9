"""sensitivity(): what INT8 costs each layer and each block."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trtkit.backends.runner import Runner
from trtkit.calibration import DEFAULTS, Calibration, calibrate
from trtkit.calibration.calibration import load_calibration, resolve_imgsz
from trtkit.calibration.sampling import InputSource, count_calibration_images, make_input_source
from trtkit.data import open_dataset, sample_images
from trtkit.data.dataset import UNLABELED_SPLIT
from trtkit.errors import EngineError
from trtkit.evaluation.evaluation import evaluate, prepare_evaluation
from trtkit.executor import describe_executor
from trtkit.graph.analysis import block_of, block_types, escape_pattern
from trtkit.graph.qdq import QDQPlacement
from trtkit.graph.torch_export import check_trace, trace
from trtkit.models import Model, load
from trtkit.models.model import ModelInfo
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result, SavedResult, describe_machine, rename_version_1_keys
from trtkit.tasks import get_task
from trtkit.tuning.measurement import ResultCache
from trtkit.tuning.noise import LayerNoise, MeasuredNoise, prepare_variants, runner_name
from trtkit.tuning.partial_inference import Variant, VariantSettings

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch
    from distributed import Client

    from trtkit.data import DataSource

__all__ = ["CachedOutputsRunner", "Sensitivity", "sensitivity"]

_LAYER_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("node", "block", "operator"), pl.String),
    "macs": pl.Int64,
    **dict.fromkeys(("sqnr_only", "sqnr_without", "gain", "metric_only", "metric_without"), pl.Float64),
    **dict.fromkeys(("images_only", "images_without"), pl.Int64),
}
_BLOCK_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("block", "type"), pl.String),
    **dict.fromkeys(("layers", "macs"), pl.Int64),
    **dict.fromkeys(("sqnr_only", "sqnr_without", "gain"), pl.Float64),
    **dict.fromkeys(("images_only", "images_without"), pl.Int64),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sensitivity(Result):
    """The cost of INT8 by layer and by block.

    The signal-to-quantization-noise ratio (SQNR, dB, higher is better) compares the outputs of the head's last layers
    with FP32: -10 log10 of the noise-to-signal ratio, averaged over these layers, with half of it weighted equally over
    the grid and half weighted by the FP32 confidence.

    Attributes:
        layers: One row per layer, in graph order: `node`, `block`, `operator`, `macs` (multiply-accumulates per image),
            `sqnr_only` (only this layer in INT8), `sqnr_without` (all other layers in INT8), `gain` (`sqnr_without`
            minus the SQNR of full INT8, dB), `images_only` and `images_without` (the images that these were measured
            on), and for the worst layers `metric_only` and `metric_without`.
        blocks: The same by block; `layers` is its number of INT8 layers, `type` its module class.
        metric: The metric, e.g. "mAP50-95(B)" by Ultralytics' rule; "" if none was measured.
        sqnr: SQNR of full INT8, dB.
        metric_float: The metric in FP32, or None.
        metric_int8: The metric of full INT8, or None.
        kept: Layers excluded from INT8 in every variant, with the reason.
        image_count: Number of images measured on.
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
    image_count: int
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """`layers`."""
        return self.layers

    def worst(self, count: int = 5) -> pl.DataFrame:
        """The layers with the lowest SQNR when only they run in INT8, the lowest first.

        Args:
            count: Number of layers.
        """
        return self.layers.sort("sqnr_only").head(count)

    def keep(self, count: int) -> tuple[str, ...]:
        """`keep=` patterns of the layers with the largest gain.

        Args:
            count: Number of layers.
        """
        return tuple(escape_pattern(name) for name in self.layers.sort("gain", descending=True).head(count)["node"])

    def plot(self) -> go.Figure:
        """SQNR with only one layer in INT8, and the gain of keeping it in FP16, for every layer in graph order."""
        from trtkit.plotting.tuning import sensitivity_figure

        return sensitivity_figure(self.layers)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Layers and blocks."""
        return {"layers": self.layers, "blocks": self.blocks}

    def facts(self) -> Mapping[str, Any]:
        """The attributes beside the tables."""
        names = ("metric", "sqnr", "metric_float", "metric_int8", "image_count")
        return {**{name: getattr(self, name) for name in names}, "kept": dict(self.kept)}

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Sensitivity:
        """The inverse of `tables` and `facts`."""
        return cls(**{**tables, **facts}, provenance=provenance)

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert a sensitivity of format version 1."""
        saved = super().upgrade(saved)
        saved.facts = rename_version_1_keys(saved.facts, {"images": "image_count"})
        return saved

    def __repr__(self) -> str:
        lines = [f"Sensitivity of {len(self.layers)} layers on {self.image_count} images: full INT8 {self.sqnr:.1f} dB"]
        if self.metric_float is not None and self.metric_int8 is not None:
            lines[0] += f", {self.metric} {self.metric_int8:.4f}, FP32 {self.metric_float:.4f}"
        lines += [
            f"  {row['node']} ({row['block']}): {row['sqnr_only']:.1f} dB alone, FP16 gains {row['gain']:+.2f} dB"
            for row in self.worst(3).iter_rows(named=True)
        ]
        return "\n".join(lines)


@verb
def sensitivity(
    model: Model | str | Path | torch.nn.Module,
    data: DataSource,
    split: str = "val",
    *,
    probe_images: int = 32,
    calibration: Calibration | str | Path | None = None,
    calibration_images: int = DEFAULTS.calibration_images,
    worst: int = 3,
    protect: bool = True,
    imgsz: int | tuple[int, int] | None = None,
    threads: int | None = None,
    seed: int = DEFAULTS.seed,
    cache_dir: str | Path | None = None,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Sensitivity:
    """Measure what INT8 costs each layer and block: with only it in INT8, and with everything else in INT8.

    A layer or block is measured on as many probe images as it takes to know its noise to 10 % of the noise of full INT8
    (3 standard errors), which is 0.4 dB of `gain`; layers that matter little need six. The columns `images_only` and
    `images_without` say how many it took.

    All variants run on ONNX Runtime's CPU kernels, with the Q/DQ arithmetic that every backend gets.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file; or, with `worst=0`, images without labels: a folder, a glob pattern, an image or a
            list of these. Labels are read for the metric only.
        split: The split of the probe images; images without labels have none.
        probe_images: Maximum number of images that layer noise is measured on, a seeded sample.
        calibration: A calibration of this model, or the folder of a saved one; None calibrates as `export` does.
        calibration_images: Maximum number of calibration images; not used with `calibration`.
        worst: Number of layers, those with the lowest SQNR, to measure the metric for; 0 measures none.
        protect: Exclude the layers that are excluded from INT8 by default (DFL, attention); False measures them too.
        imgsz: Image side, or (height, width), pixels; None uses the calibration's, else the model's own.
        threads: Images processed in parallel; None uses one per core.
        seed: Seed of the image samples.
        cache_dir: Cache directory; its calibrations are reused.
        executor: A `distributed.Client` (see `open_executor`), whose workers run the images; results are the same.
        progress: Progress callback.
        cancel: Cancellation token.

    Returns:
        SQNR of every layer and block, and the metric of the worst layers.

    Raises:
        RecipeError: A setting is out of range.
        CalibrationError: The calibration was measured on another model.
        DataError: The data set can't be read.
        CancelledError: The caller cancelled.
    """
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    given = load_calibration(calibration, loaded)
    size = resolve_imgsz(imgsz, loaded, given)
    if worst:
        dataset = prepare_evaluation(loaded, data, split, eval_images=probe_images, seed=seed).dataset
    else:
        dataset = open_dataset(data, task=loaded.task, channels=loaded.channels, needs_labels=False)
        split = split if dataset.labeled else UNLABELED_SPLIT
    paths = sample_images(dataset.images(split), count=probe_images, seed=seed)
    counts = {"probe": len(paths)}
    if given is None:
        counts["calibration"] = count_calibration_images(dataset, loaded, calibration_images=calibration_images)
    check_trace(loaded, imgsz=size)
    start_work(
        Plan(
            verb="sensitivity",
            settings={"model": loaded.stem, "imgsz": size, "cache": cache_dir},
            images=counts,
            steps=(
                *(["calibrate"] if given is None else []),
                "measure every layer",
                *(["run the worst layers", f"evaluate the {worst} worst layers"] if worst else []),
            ),
            costs={
                "calibrate": Cost(kind="calibrate", images=counts.get("calibration", 0)),
                **{step: Cost(kind=step) for step in ("measure every layer", "run the worst layers")},
            },
        ),
        reporter,
    )
    if given is None:
        reporter.begin("calibrate")
        given = calibrate(
            loaded,
            dataset,
            calibration_images=calibration_images,
            imgsz=size,
            seed=seed,
            cache_dir=ResultCache(cache_dir).calibrations,
            executor=executor,
            progress=reporter.progress,
            cancel=cancel,
        )
    reporter.begin("measure every layer")
    graph, classes = trace(loaded, imgsz=size, batch=1), len(loaded.names)
    layer_noise = LayerNoise(graph, classes, protect=protect, exact=False, executor=executor)
    placements = _plan_placements(layer_noise)
    variants = {
        label: layer_noise.prepare_variant(placement, given.ranges, given.corrections)
        for label, placement in placements.items()
    }
    skipped: list[str] = []
    images = make_input_source(paths, preprocess=loaded.preprocess, imgsz=size, skipped=skipped)
    noise = layer_noise.measure_until_known(
        variants, images, reference="int8", stage="measure every layer", reporter=reporter, threads=threads
    )
    rows = [_layer_row(layer_noise, name, noise) for name in layer_noise.full_int8.layers]
    blocks = _block_rows(layer_noise, noise, block_types(loaded.module))
    metric, metrics = "", dict[str, float]()
    if worst:
        reporter.begin("run the worst layers")
        metric = get_task(loaded.task).metric
        nodes = [row["node"] for row in sorted(rows, key=lambda row: row["sqnr_only"])[:worst]]
        labels = ["int8", *(f"{way} {node}" for node in nodes for way in ("only", "without"))]
        del variants
        # Metrics are measured with the arithmetic of the ONNX Runtime backend.
        layer_noise = LayerNoise(graph, classes, protect=protect, executor=executor)
        chosen = {
            "float": layer_noise.float_variant,
            **{
                label: layer_noise.prepare_variant(placements[label], given.ranges, given.corrections)
                for label in labels
            },
        }
        info = dataclasses.replace(loaded.info, imgsz=size)
        runners: Mapping[str, Runner]
        if executor is None:
            runners = _run_variants(
                layer_noise, chosen, images, len(paths), info=info, hash=loaded.hash, threads=threads, reporter=reporter
            )
        else:
            runners = {
                label: VariantRunner(layer_noise, one, info, precision=_precision_of(label), hash=loaded.hash)
                for label, one in chosen.items()
            }
        step = f"evaluate the {worst} worst layers"
        reporter.begin(step)
        for done, (label, runner) in enumerate(runners.items()):
            reporter.step(step, done, len(runners))
            evaluation = evaluate(
                runner,
                dataset,
                split,
                eval_images=probe_images,
                seed=seed,
                executor=executor,
                cancel=reporter.cancel,
            )
            metrics[label] = float(evaluation.metrics[metric])
        for row in rows:
            for way in ("only", "without"):
                row[f"metric_{way}"] = metrics.get(f"{way} {row['node']}")
    reporter.finish()
    return Sensitivity(
        layers=pl.DataFrame(rows, schema=_LAYER_COLUMNS),
        blocks=pl.DataFrame(blocks, schema=_BLOCK_COLUMNS),
        metric=metric,
        sqnr=noise.sqnr["int8"],
        metric_float=metrics.get("float"),
        metric_int8=metrics.get("int8"),
        kept=dict(layer_noise.full_int8.excluded),
        image_count=len(paths) - len(skipped),
        provenance=Provenance(
            model_hash=loaded.hash,
            data_hash=dataset.hash_images(paths),
            runner=runner_name(),
            machine={**describe_machine(), **describe_executor(executor)},
            settings={
                "data": str(dataset.path),
                "split": split,
                "probe_images": probe_images,
                "calibration": given.hash,
                "calibration_images": calibration_images,
                "algorithm": given.algorithm,
                "worst": worst,
                "protect": protect,
                "imgsz": list(size),
                "threads": threads,
            },
            seed=seed,
        ),
    )


def _plan_placements(layer_noise: LayerNoise) -> dict[str, QDQPlacement]:
    """Placements by label: "int8", "only <layer or block>", "without <layer or block>"; one-layer blocks are layers."""
    groups = {name: [name] for name in layer_noise.full_int8.layers}
    groups.update({name: layers for name, layers in layer_noise.blocks.items() if len(layers) > 1})
    placements = {"int8": layer_noise.full_int8}
    placements.update({f"only {name}": layer_noise.plan_only(layers) for name, layers in groups.items()})
    placements.update({f"without {name}": layer_noise.plan_without(layers) for name, layers in groups.items()})
    return placements


def _layer_row(layer_noise: LayerNoise, name: str, noise: MeasuredNoise) -> dict[str, Any]:
    """A row of `Sensitivity.layers`."""
    return {
        "node": name,
        "block": block_of(name),
        "operator": layer_noise.index.nodes[name].op_type,
        "macs": layer_noise.macs.get(name),
        **_noise_values(name, noise),
    }


def _block_rows(layer_noise: LayerNoise, noise: MeasuredNoise, types: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of `Sensitivity.blocks`."""
    return [
        {
            "block": block,
            "type": types.get(block, ""),
            "layers": len(layers),
            "macs": sum(layer_noise.macs.get(name, 0) for name in layers),
            **_noise_values(block if len(layers) > 1 else layers[0], noise),
        }
        for block, layers in layer_noise.blocks.items()
    ]


def _noise_values(name: str, noise: MeasuredNoise) -> dict[str, float]:
    only, without = f"only {name}", f"without {name}"
    return {
        "sqnr_only": noise.sqnr[only],
        "sqnr_without": noise.sqnr[without],
        "gain": noise.sqnr[without] - noise.sqnr["int8"],
        "images_only": noise.image_counts[only],
        "images_without": noise.image_counts[without],
    }


# The metric of the worst layers: outputs of partial inference, evaluated through a runner.


class CachedOutputsRunner(Runner):
    """A runner that returns stored outputs.

    Args:
        info: The model's description.
        name: The name of what computed the outputs.
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
        self._outputs: dict[bytes, dict[str, NDArray[np.float32]]] = {}

    def store(self, image: NDArray[np.float32], outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Store the outputs of an input (1, C, H, W)."""
        self._outputs[_hash_image(image)] = {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    def infer(self, feeds: NDArray[np.float32] | Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The stored outputs of these inputs (N, C, H, W).

        Raises:
            EngineError: An input has no stored outputs.
        """
        images = next(iter(feeds.values())) if isinstance(feeds, Mapping) else feeds
        self.check_batch(len(images))
        outputs = [self._outputs[key] for key in (_hash_image(image[None]) for image in images) if key in self._outputs]
        if len(outputs) < len(images):
            raise EngineError(
                "return stored outputs",
                f"{len(images) - len(outputs)} of {len(images)} inputs have none",
                "store the outputs of every input first",
                code="tuning-outputs-missing",
                value=len(images) - len(outputs),
            )
        return {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}

    def close(self) -> None:
        """Drop the stored outputs."""
        self._outputs.clear()


def _hash_image(image: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def _precision_of(label: str) -> str:
    return "fp32" if label == "float" else "int8"


class VariantRunner(Runner):
    """A runner of one variant, for workers, which create its sessions.

    Args:
        layer_noise: The graph.
        variant: The variant.
        info: The model's description, with the size of the inputs.
        precision: "fp32" or "int8".
        hash: SHA-256 of the model.
    """

    engine = False
    passport = None
    path = None
    batch = 1
    dynamic = False

    def __init__(
        self, layer_noise: LayerNoise, variant: Variant, info: ModelInfo, *, precision: str, hash: str
    ) -> None:
        self.layer_noise = layer_noise
        self.variant = variant
        self.info = info
        self.name = runner_name()
        self.precision = precision
        self.imgsz = info.imgsz
        self.hash = hash
        self.opener = functools.partial(
            _open_variant, layer_noise.arguments, variant.settings, info, precision=precision, hash=hash
        )

    def infer(self, feeds: NDArray[np.float32] | Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Run one image (1, C, H, W)."""
        images = next(iter(feeds.values())) if isinstance(feeds, Mapping) else feeds
        self.check_batch(len(images))
        (outputs,) = self.layer_noise.segments.run(images, [self.variant])
        return {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    def close(self) -> None:
        """Nothing is held that others do not use."""


def _open_variant(
    arguments: Mapping[str, Any], settings: VariantSettings, info: ModelInfo, *, precision: str, hash: str
) -> VariantRunner:
    prepared = prepare_variants(arguments, [settings])
    return VariantRunner(prepared.layer_noise, prepared.variants[0], info, precision=precision, hash=hash)


def _run_variants(
    layer_noise: LayerNoise,
    variants: Mapping[str, Variant],
    images: InputSource,
    count: int,
    *,
    info: ModelInfo,
    hash: str,
    threads: int | None,
    reporter: Reporter,
) -> dict[str, CachedOutputsRunner]:
    """Run variants on all images, and return a runner with the outputs of each variant."""
    runners = {
        label: CachedOutputsRunner(
            info,
            name=runner_name(),
            precision=_precision_of(label),
            imgsz=info.imgsz,
            hash=hash,
        )
        for label in variants
    }
    stage = "run the worst layers"
    reporter.step(stage, 0, count)
    outputs: Sequence[dict[str, NDArray[np.float32]]]
    for done, (image, outputs) in enumerate(layer_noise.run_variants(list(variants.values()), images, threads), 1):
        for runner, named in zip(runners.values(), outputs, strict=True):
            runner.store(image, named)
        reporter.step(stage, done, count)
    return runners
