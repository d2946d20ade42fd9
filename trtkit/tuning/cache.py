"""Cache of finished evaluations and measurements, keyed by the hash of everything that decides them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from trtkit.errors import TrtkitError
from trtkit.evaluation.evaluation import EVAL_CONF, Evaluation, evaluate
from trtkit.files import hash_parts, read_json, write_json
from trtkit.progress import Event, Progress, Reporter
from trtkit.results import package_versions

if TYPE_CHECKING:
    from trtkit.data import Dataset

__all__ = ["CachedEvaluator", "ResultCache", "measurement_versions"]

_VERSIONED_PACKAGES = ("trtkit", "onnxruntime", "numpy", "opencv-python")
"""Packages whose version decides a measurement."""


class ResultCache:
    """A folder of finished steps, each stored under the hash of its inputs.

    Args:
        folder: The cache directory; None disables caching.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    @property
    def calibrations(self) -> Path | None:
        """The folder of calibrations, as `calibrate(cache_dir=)` takes it; None without a cache."""
        return None if self.folder is None else self.folder / "calibrations"

    def entry_path(self, kind: str, key: str) -> Path | None:
        """The path of one step without suffix; None without a cache."""
        return None if self.folder is None else self.folder / kind / key[:24]

    def read(self, kind: str, key: str) -> Any:
        """The JSON value of a step; None if it is not cached."""
        path = self.entry_path(kind, key)
        if path is None or not path.with_suffix(".json").is_file():
            return None
        return read_json(path.with_suffix(".json"))

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
    """

    dataset: Dataset
    split: str
    eval_images: int | None
    seed: int
    cache: ResultCache
    reporter: Reporter
    batch: int = 1

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
