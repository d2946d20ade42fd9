"""Measurement of precision assignments: accuracy and cost, and a cache of what was measured.

Accuracy is evaluated with ONNX Runtime, once per graph. Cost is the measured latency of an engine on a GPU, or a cost
model without one. The cache is keyed by the hash of everything that decides a measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx

from trtkit.errors import CapabilityError, TrtkitError
from trtkit.evaluation.evaluation import EVAL_CONF, Evaluation, evaluate
from trtkit.executor import EngineWorkers
from trtkit.files import hash_parts, read_json
from trtkit.graph.qdq import QDQPlacement
from trtkit.progress import Event, Progress, Reporter
from trtkit.results import package_versions
from trtkit.writing import check_output_folder, temporary_folder, write_json

if TYPE_CHECKING:
    from distributed import Client

    from trtkit.calibration.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = [
    "ArithmeticCost",
    "CachedEvaluator",
    "Cost",
    "CostModel",
    "EngineCost",
    "ResultCache",
    "measurement_versions",
    "select_cost_model",
]

_VERSIONED_PACKAGES = ("trtkit", "onnxruntime", "numpy", "opencv-python")
"""Packages whose version decides a measurement."""

INT8_COST = 0.5
"""Time of an INT8 multiply-accumulate relative to FP16: the ratio of the tensor cores' peak rates since Turing."""


class ResultCache:
    """A folder of finished steps, each stored under the hash of its inputs.

    Args:
        folder: The cache directory; None disables caching.

    Raises:
        OutputError: The folder can't be written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else check_output_folder(folder)

    @property
    def calibrations(self) -> Path | None:
        """The folder of calibrations, as `calibrate(cache_dir=)` takes it; None without a cache."""
        return None if self.folder is None else self.folder / "calibrations"

    def entry_path(self, kind: str, key: str) -> Path | None:
        """The path of one step without suffix; None without a cache."""
        return None if self.folder is None else self.folder / kind / key[:24]

    def read(self, kind: str, key: str) -> Any:
        """The JSON value of a step; None if it is not cached, or the entry is damaged."""
        path = self.entry_path(kind, key)
        if path is None:
            return None
        try:
            return read_json(path.with_suffix(".json"))
        except (OSError, ValueError):
            return None

    def write(self, kind: str, key: str, value: Any) -> None:
        """Store the JSON value of a step; does nothing without a cache."""
        path = self.entry_path(kind, key)
        if path is not None:
            write_json(path.with_suffix(".json"), value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedEvaluator:
    """Evaluates graphs on the same images with ONNX Runtime, each graph once.

    Attributes:
        dataset: The labeled images.
        split: The split to evaluate on.
        eval_images: Maximum number of images; None uses the whole split.
        seed: Seed of the image sample.
        batch: Images per run.
        cache: Stores finished evaluations.
        reporter: Progress and cancellation.
        executor: Its workers run the images; None runs them here.
    """

    dataset: Dataset
    split: str
    eval_images: int | None
    seed: int
    cache: ResultCache
    reporter: Reporter
    batch: int = 1
    executor: Client | None = None

    def __call__(self, graph: onnx.ModelProto, stage: str) -> Evaluation:
        """Evaluate a graph, or load its cached evaluation.

        Args:
            graph: A graph whose `metadata_props` name its task.
            stage: Name of the progress stage.

        Raises:
            CancelledError: The caller cancelled.
        """
        from trtkit import backends

        key = hash_parts(
            _serialize_computation(graph),
            self.dataset.hash(self.split),
            f"{self.split} {self.eval_images} {self.seed} {sorted(EVAL_CONF.items())} {measurement_versions()}",
        )
        path = self.cache.entry_path("evaluations", key)
        if path is not None and (path / f"{Evaluation.kind}.json").is_file():
            try:
                return Evaluation.load(path)
            except (OSError, ValueError, KeyError, TypeError, TrtkitError):
                self.reporter.log(stage, f"cached evaluation {path} can't be read; evaluating again")
        with backends.open(graph) as runner:
            evaluation = evaluate(
                runner,
                self.dataset,
                self.split,
                batch=self.batch,
                eval_images=self.eval_images,
                seed=self.seed,
                executor=self.executor,
                progress=None if self.reporter.progress is None else _rename_stage(self.reporter.progress, stage),
                cancel=self.reporter.cancel,
            )
        if path is not None:
            evaluation.save(path)
        return evaluation


def _rename_stage(progress: Progress, stage: str) -> Progress:
    """A progress callback that passes events on under another stage name."""

    def renamed(event: Event) -> None:
        progress(dataclasses.replace(event, stage=stage))

    return renamed


def _serialize_computation(graph: onnx.ModelProto) -> bytes:
    """The nodes and weights of a graph as bytes, without its metadata."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.metadata_props[:]
    return bytes(copy.SerializeToString(deterministic=True))


def measurement_versions() -> str:
    """Versions of the packages that decide a measurement; a step measured with other versions is not reused."""
    versions: Mapping[str, str] = package_versions()
    return " ".join(f"{name} {versions[name]}" for name in _VERSIONED_PACKAGES if name in versions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a precision assignment.

    Attributes:
        value: Latency or relative cost; lower is faster.
        unit: "ms" if an engine ran, else "relative".
        source: How the value was obtained.
    """

    value: float
    unit: str
    source: str


class CostModel(Protocol):
    """Computes the cost of a precision assignment."""

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The cost of a Q/DQ placement, given its `keep=` patterns and calibration (None: everything in FP16)."""


class ArithmeticCost:
    """A cost model for machines without a GPU: multiply-accumulates, with INT8 ones counted half.

    It ignores memory traffic, kernel launches and reformats, which matter more in smaller models. It ranks precision
    assignments of one model; it is not a latency.

    Args:
        macs: Multiply-accumulates per image, by layer.
    """

    source = "cost model: multiply-accumulates relative to FP16, INT8 counted half; not a latency"

    def __init__(self, macs: Mapping[str, int]) -> None:
        self.macs = macs

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The cost relative to FP16, 1 at most."""
        total = sum(self.macs.values())
        saved = sum(self.macs.get(name, 0) for name in placement.layers) * (1 - INT8_COST)
        return Cost(value=1 - saved / total if total else 1.0, unit="relative", source=self.source)


class EngineCost:
    """Builds an engine of each precision assignment and times it, on this machine's GPU or on that of a worker.

    Args:
        model: The model to export.
        imgsz: Height and width, pixels.
        folder: The folder of the engine file; each engine replaces the previous one.
        batch: Images per run.
        backend: "tensorrt" or "tensorrt_rtx"; None uses the best one that runs on this machine.
        reporter: Progress and cancellation.
        export_settings: Further arguments of `export`, such as `opt_level`.
        workers: One of them builds and times each engine, with no other work on its GPU; None does it here.
    """

    def __init__(
        self,
        model: Model,
        imgsz: tuple[int, int],
        folder: Path,
        *,
        batch: int = 1,
        backend: str | None = None,
        reporter: Reporter,
        export_settings: Mapping[str, Any] | None = None,
        workers: EngineWorkers | None = None,
    ) -> None:
        # A module may be of a class that no worker can import.
        self.model = model if workers is None else _as_graph(model, imgsz, batch)
        self.workers = workers
        self.imgsz = imgsz
        self.folder = folder
        self.batch = batch
        self.backend = backend
        self.reporter = reporter
        self.export_settings = dict(export_settings or {})

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The median latency of a run, ms."""
        if self.workers is None:
            return self._measure(keep, calibration)
        settings = {
            "batch": self.batch,
            "backend": self.backend,
            # TensorRT holds the interpreter while it builds: the worker answers, and cancels, all the same.
            "export_settings": {**self.export_settings, "isolate": True},
        }
        return self.workers.run(
            _measure_on_worker, self.model, self.imgsz, settings, tuple(keep), calibration,
            stage="build and time on a worker",
        )  # fmt: skip

    def _measure(self, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        from trtkit.evaluation.latency import benchmark
        from trtkit.exporter import export

        artifact = export(
            self.model,
            format="engine",
            imgsz=self.imgsz,
            int8=calibration is not None,
            half=calibration is None,
            dynamic=False,
            batch=self.batch,
            backend=self.backend,
            calibration=calibration,
            keep=tuple(keep) if calibration is not None else (),
            verify=False,
            output=self.folder / "trial.engine",
            overwrite=True,
            progress=self.reporter.progress,
            cancel=self.reporter.cancel,
            **self.export_settings,
        )
        timing = benchmark(
            {"trial": artifact},
            batch=self.batch,
            stage_runs=0,
            progress=self.reporter.progress,
            cancel=self.reporter.cancel,
        )
        row = timing.frame().row(0, named=True)
        return Cost(
            value=float(np.median(timing.samples["ms"].to_numpy())),
            unit="ms",
            source=f"median of {row['runs']} runs at batch {self.batch}, {row['runner']}, {row['clock']} clock",
        )


def _as_graph(model: Model, imgsz: tuple[int, int], batch: int) -> Model:
    """The model as the graph that `export` would trace from it."""
    from trtkit.graph.torch_export import trace

    if model.proto is not None:
        return model
    return dataclasses.replace(model, module=None, proto=trace(model, imgsz=imgsz, batch=batch))


def _measure_on_worker(
    reporter: Reporter,
    model: Model,
    imgsz: tuple[int, int],
    settings: Mapping[str, Any],
    keep: Sequence[str],
    calibration: Calibration | None,
) -> Cost:
    with temporary_folder() as folder:
        return EngineCost(model, imgsz, folder, reporter=reporter, **settings)._measure(keep, calibration)


def select_cost_model(
    model: Model,
    macs: Mapping[str, int],
    imgsz: tuple[int, int],
    folder: Path,
    *,
    batch: int,
    backend: str,
    reporter: Reporter,
    workers: EngineWorkers | None = None,
) -> CostModel:
    """Engine latency, or the cost model.

    Args:
        model: The model to export.
        macs: Multiply-accumulates per image, by layer.
        imgsz: Height and width, pixels.
        folder: The folder of the engine file.
        batch: Images per run.
        backend: From `select_cost_backend`.
        reporter: Progress and cancellation.
        workers: Those that build and time engines; None does it here.
    """
    if backend == "onnxruntime":
        return ArithmeticCost(macs)
    return EngineCost(model, imgsz, folder, batch=batch, backend=backend, reporter=reporter, workers=workers)


def select_cost_backend(backend: str | None, workers: EngineWorkers | None = None) -> str:
    """The backend whose engines are timed, if they can be built and run, or "onnxruntime" for the cost model.

    Args:
        backend: A backend to require, "onnxruntime" for the cost model, None for the best one that works.
        workers: Those that build and run engines; None asks this machine.

    Raises:
        CapabilityError: Engines were required and can't be built or run on this machine, or on the workers.
        RecipeError: There is no such backend.
    """
    if workers is None or backend == "onnxruntime":
        return _select_here(Reporter(), backend)
    name = workers.run(_select_here, backend, stage="load")
    if name != "onnxruntime":
        try:
            workers.require_gpu(name)
        except CapabilityError:
            if backend is not None:
                raise
            return "onnxruntime"
    return name


def _select_here(reporter: Reporter, backend: str | None) -> str:
    from trtkit import backends

    name = backend or backends.best("run")
    if name != "onnxruntime":
        try:
            backends.require_build(name)
            backends.require_run(name)
        except CapabilityError:
            if backend is not None:
                raise
            return "onnxruntime"
    return name
