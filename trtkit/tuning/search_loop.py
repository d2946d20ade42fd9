"""The work behind search(): repair, rank, judge."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import polars as pl
from numpy.typing import NDArray

from trtkit.calibration import calibrate
from trtkit.calibration.calibration import Calibration
from trtkit.calibration.sampling import load_input_batches
from trtkit.data import open_dataset, sample_images
from trtkit.errors import CalibrationError, RecipeError
from trtkit.files import hash_parts
from trtkit.graph.analysis import block_of
from trtkit.graph.torch_export import trace
from trtkit.models import Model, load
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import round_imgsz
from trtkit.results import Provenance
from trtkit.tasks import get_task
from trtkit.tuning.cache import CachedEvaluator, ResultCache, measurement_versions
from trtkit.tuning.corrections import choose_ranges, compute_bias_corrections
from trtkit.tuning.cost_model import select_cost_model
from trtkit.tuning.equalization import equalize
from trtkit.tuning.noise import InputSource, LayerNoise
from trtkit.tuning.search import Search
from trtkit.tuning.trials import PrecisionAssignment, Trials

if TYPE_CHECKING:
    import torch

    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = [
    "NoiseProbe",
    "Settings",
    "find",
    "how",
    "measure_noise_shares",
    "repair_ranges",
    "search",
]


# The search's measurements: what repairs gain and what each layer disturbs, on a few images and without labels.


CORRECTION_IMAGES = 64
"""Images that biases are corrected on: a mean needs more of them than a comparison does."""


class NoiseProbe:
    """A lab with its probe images: a sample of those that calibrate."""

    def __init__(
        self,
        lab: LayerNoise,
        dataset: Dataset,
        calibration: Calibration,
        task: str,
        size: tuple[int, int],
        *,
        split: str,
        probe: int,
        seed: int,
        keep: tuple[str, ...],
        threads: int | None,
        reporter: Reporter,
    ) -> None:
        self.layer_noise = lab
        self.settings_key = f"{probe} {seed} {keep} {measurement_versions()}"
        self.threads = threads
        self.reporter = reporter
        self.task = task
        self.size = size
        pool = dataset.images(calibration.split or ("train" if "train" in dataset.splits else split))
        self.probe_paths = sample_images(pool, count=probe, seed=seed)
        self.correction_paths = sample_images(pool, count=CORRECTION_IMAGES, seed=seed)
        self.data = dataset.hash_images(self.correction_paths)

    def images(self, paths: Sequence[Path]) -> InputSource:
        """Gives the images of these files."""

        def inputs() -> Iterable[NDArray[np.float32]]:
            return load_input_batches(paths, task=self.task, size=self.size, batch=1, skipped=[])

        return inputs

    def key(self, calibration: Calibration) -> str:
        """What a measurement on this bench depends on."""
        return hash_parts(calibration.hash, self.data, self.settings_key)

    def measure_assignments(self, mixes: Sequence[PrecisionAssignment]) -> dict[str, float]:
        """SQNR of each mix with nothing excluded, dB."""
        variants = {
            mix.label: self.layer_noise.prepare_variant(
                self.layer_noise.full_int8, mix.calibration.ranges, mix.calibration.corrections
            )
            for mix in mixes
        }
        return self.layer_noise.measure_sqnr(
            variants,
            self.images(self.probe_paths),
            len(self.probe_paths),
            stage="measure the whole",
            reporter=self.reporter,
            threads=self.threads,
        )

    def measure_without(self, mix: PrecisionAssignment, layers: Sequence[str]) -> float:
        """SQNR of a mix without some layers, dB."""
        variant = self.layer_noise.prepare_variant(
            self.layer_noise.plan_without(layers), mix.calibration.ranges, mix.calibration.corrections
        )
        found = self.layer_noise.measure_sqnr(
            {"one": variant},
            self.images(self.probe_paths),
            len(self.probe_paths),
            stage="measure a mix",
            reporter=self.reporter,
            threads=self.threads,
        )
        return found["one"]


def repair_ranges(
    bench: NoiseProbe, calibration: Calibration, cache: ResultCache
) -> tuple[list[PrecisionAssignment], Mapping[str, str]]:
    """The calibration as it is usually read, with chosen ranges, and with corrected biases on top."""
    plain = [calibration.with_algorithm("minmax"), calibration.with_algorithm("percentile")]
    key = bench.key(calibration)
    place, algorithms = cache.entry_path("ranges", key), cache.read("ranges", key)
    if place is not None and algorithms is not None:
        mixed = Calibration.load(place)
    else:
        chosen = choose_ranges(
            bench.layer_noise,
            calibration,
            bench.images(bench.probe_paths),
            len(bench.probe_paths),
            bench.reporter,
            threads=bench.threads,
        )
        corrections = compute_bias_corrections(
            bench.layer_noise.graph,
            bench.layer_noise.full_int8,
            chosen.calibration.ranges,
            bench.images(bench.correction_paths)(),
            len(bench.correction_paths),
            bench.reporter,
            threads=bench.threads,
        )
        mixed = dataclasses.replace(chosen.calibration, corrections=corrections)
        algorithms = dict(chosen.algorithms)
        if place is not None:
            mixed.save(place)
            cache.write("ranges", key, algorithms)
    mixes = [PrecisionAssignment(label=how(one), calibration=one) for one in plain]
    mixes.append(PrecisionAssignment(label="best ranges", calibration=dataclasses.replace(mixed, corrections={})))
    mixes.append(PrecisionAssignment(label="best ranges, biases corrected", calibration=mixed))
    return mixes, algorithms


def measure_noise_shares(bench: NoiseProbe, base: PrecisionAssignment, cache: ResultCache) -> dict[str, float]:
    """Each layer's share of the noise when only it is INT8."""
    key = hash_parts(bench.key(base.calibration), "shares")
    found = cache.read("noise", key)
    if found is not None:
        return {str(name): float(value) for name, value in found.items()}
    lab, calibration = bench.layer_noise, base.calibration
    variants = {
        name: lab.prepare_variant(lab.plan_only([name]), calibration.ranges, calibration.corrections)
        for name in lab.full_int8.layers
    }
    noise = lab.measure_sqnr(
        variants,
        bench.images(bench.probe_paths),
        len(bench.probe_paths),
        stage="measure every layer",
        reporter=bench.reporter,
        threads=bench.threads,
        pin=0,
    )
    powers = {name: 10 ** (-value / 10) for name, value in noise.items()}
    total = sum(powers.values()) or 1.0
    shares = {name: power / total for name, power in powers.items()}
    cache.write("noise", key, shares)
    return shares


def how(calibration: Calibration) -> str:
    """The algorithm of a calibration, with its percentile where it has one."""
    if calibration.percentile is None:
        return calibration.algorithm
    return f"{calibration.algorithm} {calibration.percentile:g}"


EXCLUSION_SHARES = (0.02, 0.05, 0.08, 0.11, 0.14, 0.2, 0.3, 0.45, 0.6)
"""Shares of the arithmetic that leave INT8, tried one after the other until the loss is allowed."""

EXTRA_SHARES = (0.05, 0.14)
"""Shares tried where INT8 throughout is allowed already, to show what slower mixes would gain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `search` that shape its result; described there."""

    max_drop: float = 0.005
    split: str = "val"
    images: int | None = None
    calibration_images: int = 128
    probe: int = 8
    trials: int = 16
    keep: tuple[str, ...] = ()
    repair: bool = True
    imgsz: int | tuple[int, int] | None = None
    batch: int = 1
    backend: str | None = None
    draws: int = 500
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            raise RecipeError(
                f"search with max_drop={self.max_drop}", "it is no loss of a metric", "use e.g. 0.005 of mAP50-95"
            )
        if min(self.calibration_images, self.probe, self.trials, self.batch, self.draws) < 1:
            raise RecipeError(
                f"search with calibration_images={self.calibration_images}, probe={self.probe}, "
                f"trials={self.trials}, batch={self.batch}, draws={self.draws}",
                "there would be nothing to search",
                "use numbers from 1 on",
            )


def find(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    settings: Settings,
    calibration: Calibration | str | Path | None,
    state: str | Path | None,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> Search:
    """As `search` says."""
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    size = round_imgsz(settings.imgsz if settings.imgsz is not None else loaded.imgsz, loaded.stride)
    dataset = open_dataset(data, task=loaded.task)
    kept = ResultCache(state)
    notes: list[str] = []
    exact = trace(loaded, imgsz=size, batch=1)
    tuned, graph = loaded, exact
    if settings.repair and calibration is None:
        tuned, graph = _equalize_model(loaded, exact, notes)
    measured = _calibrate(tuned, dataset, calibration, settings, size, kept, reporter)
    lab = LayerNoise(graph, len(loaded.names), settings.keep, exact=False)
    bench = NoiseProbe(
        lab,
        dataset,
        measured,
        loaded.task,
        size,
        split=settings.split,
        probe=settings.probe,
        seed=settings.seed,
        keep=settings.keep,
        threads=settings.threads,
        reporter=reporter,
    )
    mixes = [PrecisionAssignment(label=how(measured), calibration=measured)]
    algorithms: Mapping[str, str] = {}
    if settings.repair:
        mixes, algorithms = repair_ranges(bench, measured, kept)
    noise = bench.measure_assignments(mixes)
    bases = sorted(mixes, key=lambda mix: -noise[mix.label])
    shares = measure_noise_shares(bench, bases[0], kept)
    order = sorted(shares, key=lambda name: -shares[name] / max(lab.macs.get(name, 0), 1))
    judge = CachedEvaluator(
        dataset=dataset,
        split=settings.split,
        images=settings.images,
        seed=settings.seed,
        state=kept,
        reporter=reporter,
        batch=settings.batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        cost = select_cost_model(
            tuned, lab, size, Path(folder), batch=settings.batch, backend=settings.backend, reporter=reporter
        )
        wide = graph if settings.batch == 1 else trace(tuned, imgsz=size, batch=settings.batch)
        trials = Trials(
            layer_noise=lab,
            graph=wide,
            evaluator=judge,
            cost=cost,
            metric=get_task(loaded.task).metric,
            max_drop=settings.max_drop,
            draws=settings.draws,
            seed=settings.seed,
        )
        trials.evaluate_references()
        for mix in mixes:
            trials.evaluate_assignment(mix, (), noise[mix.label])
        _exclude_layers(trials, bench, bases, order, settings.trials)
    chosen = trials.choose()
    return Search(
        trials=trials.frame(),
        layers=_build_layer_frame(lab, shares, order, algorithms),
        keep=chosen.keep,
        calibration=chosen.assignment.calibration if chosen.assignment is not None else measured,
        reached=chosen.row["loss"] <= settings.max_drop,
        max_drop=settings.max_drop,
        metric=trials.metric,
        value_float=trials.reference.value,
        cost_source=trials.cost_source,
        notes=tuple(notes),
        equalized=bytes(graph.SerializeToString()) if graph is not exact else None,
        provenance=Provenance(
            model_hash=tuned.hash,
            data_hash=trials.data_hash,
            runner=trials.runner,
            settings={
                **{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
                "keep": list(settings.keep),
                "imgsz": list(size),
                "data": str(dataset.path),
                "calibration": measured.hash,
            },
            seed=settings.seed,
        ),
    )


def _equalize_model(model: Model, graph: onnx.ModelProto, notes: list[str]) -> tuple[Model, onnx.ModelProto]:
    """The model with equalized weights where any pair of layers allows it."""
    found = equalize(graph)
    notes.append(str(found))
    if not found.pairs:
        return model, graph
    return load(found.graph, task=model.task, names=dict(model.names), imgsz=model.imgsz), found.graph


def _calibrate(
    model: Model,
    dataset: Dataset,
    given: Calibration | str | Path | None,
    settings: Settings,
    size: tuple[int, int],
    state: ResultCache,
    reporter: Reporter,
) -> Calibration:
    """The given calibration, checked, or a new one with histograms."""
    if given is None:
        return calibrate(
            model,
            dataset,
            calibration_images=settings.calibration_images,
            histograms=True,
            imgsz=size,
            seed=settings.seed,
            cache=None if state.folder is None else state.folder / "calibrations",
            progress=reporter.progress,
            cancel=reporter.cancel,
        )
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    if found.provenance.model_hash != model.hash:
        raise CalibrationError(
            f"search {model.stem} with a given calibration",
            f"it was measured on another model ({found.provenance.model_hash[:12]}, not {model.hash[:12]})",
            "calibrate this model",
        )
    if settings.repair and not found.histograms:
        raise CalibrationError(
            f"repair {model.stem} with a given calibration",
            "it holds no histograms to read other ranges from",
            "calibrate with histograms=True, or search with repair=False",
        )
    return found


def _exclude_layers(
    trials: Trials, bench: NoiseProbe, bases: Sequence[PrecisionAssignment], order: Sequence[str], most: int
) -> None:
    """Judge mixes with more and more layers kept high, until one is allowed.

    Args:
        trials: Judges.
        bench: Measures.
        bases: What layers are taken out of, the quietest first.
        order: Layers in the order in which they go.
        most: The largest number of trials.
    """
    done = trials.any_int8_allowed()
    seen: set[int] = {0}
    for share in EXTRA_SHARES if done else EXCLUSION_SHARES:
        layers = _take_layers(bench.layer_noise, order, share)
        if len(layers) in seen:
            continue
        seen.add(len(layers))
        allowed = False
        # Close to the limit chance decides between two mixes that are equally quiet: both get theirs.
        for base in bases[:1] if done else bases[:2]:
            if len(trials.rows) >= most:
                return
            mix = dataclasses.replace(base, label=f"{base.label}, {len(layers)} layers kept")
            allowed = trials.evaluate_assignment(mix, layers, bench.measure_without(base, layers)) or allowed
        if allowed and not done:
            return


def _take_layers(lab: LayerNoise, order: Sequence[str], share: float) -> list[str]:
    """The first layers of an order that make up at most a share of the arithmetic, and at least one."""
    total, sum_, taken = sum(lab.macs.values()), 0, list[str]()
    for name in order:
        sum_ += lab.macs.get(name, 0)
        if taken and sum_ > share * total:
            break
        taken.append(name)
    return taken


def _build_layer_frame(
    lab: LayerNoise, shares: Mapping[str, float], order: Sequence[str], algorithms: Mapping[str, str]
) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for name in lab.full_int8.layers:
        group = lab.full_int8.scale_groups.get(lab.index.nodes[name].input[0], ())
        rows.append(
            {
                "node": name,
                "block": block_of(name),
                "macs": lab.macs.get(name),
                "noise": shares[name],
                "ranges": next((algorithms[tensor] for tensor in group if tensor in algorithms), None),
                "exclusion_rank": order.index(name) + 1,
            }
        )
    return pl.DataFrame(
        rows,
        schema={
            **dict.fromkeys(("node", "block"), pl.String),
            "macs": pl.Int64,
            "noise": pl.Float64,
            "ranges": pl.String,
            "exclusion_rank": pl.Int64,
        },
    )


def search(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    max_drop: float = 0.005,
    *,
    split: str = "val",
    eval_images: int | None = None,
    calibration: Calibration | str | Path | None = None,
    calibration_images: int = 128,
    probe_images: int = 8,
    trials: int = 16,
    keep: Sequence[str] = (),
    repair: bool = True,
    imgsz: int | tuple[int, int] | None = None,
    batch: int = 1,
    backend: str | None = None,
    resamples: int = 500,
    threads: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Search:
    """Find the fastest mix of INT8 and FP16 that loses no more than `max_drop` of the metric that decides.

    Layers are repaired before any is given up: equalized with their neighbor where the maths allows it, each scale by
    the algorithm that disturbs the model least, biases corrected. Which layers disturb most is measured on `probe`
    images of `train` without looking at a label; only the mixes that come out of it are judged on `split`. Then
    layers leave INT8 in the order of noise for each unit of arithmetic, more and more, until the loss is allowed.

    With few images to judge by, a loss of a thousandth is within chance: the interval beside it says so.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels; calibration and probe images come from its `train`.
        max_drop: The largest loss of the metric, e.g. 0.005 of mAP50-95.
        split: The split that judges.
        eval_images: At most so many images judge; None takes all.
        calibration: With histograms, or the folder of a saved one; None calibrates.
        calibration_images: Images to calibrate on.
        probe_images: Images on which noise is measured.
        trials: The largest number of mixes judged.
        keep: fnmatch patterns of node names that stay high in every mix.
        repair: False gives layers up without trying to repair them.
        imgsz: Height and width, pixels; None takes the model's.
        batch: Images a run, while judging and timing.
        backend: "tensorrt" or "tensorrt_rtx" for times of engines, "onnxruntime" for the cost model; None takes engines
            where they run here, else the cost model.
        resamples: How often images are drawn anew for the intervals.
        threads: Images that run beside each other while noise is measured; None takes one for each core.
        seed: Seed of samples and draws.
        cache_dir: A folder that remembers finished steps, so that a stopped search goes on; None remembers nothing.
        progress: Receives events.
        cancel: Asked at every image.

    Returns:
        Every mix that was judged, the one that was found and what to export it with.

    Raises:
        RecipeError: A number is out of range, or `keep` matches no node.
        CalibrationError: The calibration is of another model or holds no histograms.
        DataError, ModelError: From reading.
        CancelledError: The caller cancelled; what was finished is in `state`.
    """
    from trtkit.tuning.search_loop import Settings, find

    settings = Settings(
        max_drop=max_drop,
        split=split,
        images=eval_images,
        calibration_images=calibration_images,
        probe=probe_images,
        trials=trials,
        keep=tuple(keep) if not isinstance(keep, str) else (keep,),
        repair=repair,
        imgsz=imgsz,
        batch=batch,
        backend=backend,
        draws=resamples,
        threads=threads,
        seed=seed,
    )
    return find(model, data, settings, calibration, cache_dir, progress, cancel)
