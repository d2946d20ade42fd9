"""Work that a later run takes up again: what was judged, by exactly what was judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from trtkit.errors import TrtkitError
from trtkit.evaluation.evaluation import Evaluation
from trtkit.evaluation.evaluator import evaluate
from trtkit.files import hash_parts, read_json, write_json
from trtkit.progress import Reporter

if TYPE_CHECKING:
    from trtkit.data import Dataset

__all__ = ["CachedEvaluator", "ResultCache", "measurement_versions"]

_VERSIONED_PACKAGES = ("trtkit", "onnxruntime", "numpy", "opencv-python")


class ResultCache:
    """A folder of finished steps, each under the hash of what it was made from.

    Args:
        folder: Where; None remembers nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def entry_path(self, kind: str, key: str) -> Path | None:
        """The folder of one step, None where nothing is remembered."""
        return None if self.folder is None else self.folder / kind / key[:24]

    def read(self, kind: str, key: str) -> Any:
        """A step's JSON value; None where there is none."""
        place = self.entry_path(kind, key)
        if place is None or not place.with_suffix(".json").is_file():
            return None
        return read_json(place.with_suffix(".json"))

    def write(self, kind: str, key: str, value: Any) -> None:
        """Keep a step's JSON value, where anything is kept."""
        place = self.entry_path(kind, key)
        if place is not None:
            write_json(place.with_suffix(".json"), value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedEvaluator:
    """Judges graphs on the same images, each graph once.

    Attributes:
        dataset: The labeled images.
        split: Which of them.
        images: At most so many, None for all.
        seed: Of their sample.
        batch: Images a run.
        state: Where evaluations are remembered.
        reporter: Receives events and says when to stop.
    """

    dataset: Dataset
    split: str
    images: int | None
    seed: int
    state: ResultCache
    reporter: Reporter
    batch: int = 1

    def __call__(self, graph: onnx.ModelProto, stage: str) -> Evaluation:
        """Judge a graph on ONNX Runtime, or remember what it got.

        Args:
            graph: With `metadata_props` that tell its task.
            stage: What to say is being judged.

        Raises:
            CancelledError: The caller cancelled.
        """
        from trtkit import backends

        images = self.dataset.hash(self.split)
        key = hash_parts(
            _serialize_computation(graph), images, f"{self.split} {self.images} {self.seed} {measurement_versions()}"
        )
        place = self.state.entry_path("evaluations", key)
        if place is not None and (place / f"{Evaluation.kind}.json").is_file():
            try:
                return Evaluation.load(place)
            except (OSError, ValueError, KeyError, TypeError, TrtkitError):
                self.reporter.log(stage, f"{place} can't be read and is judged anew")
        with backends.open(graph) as runner:
            found = evaluate(
                runner,
                self.dataset,
                self.split,
                batch=self.batch,
                eval_images=self.images,
                seed=self.seed,
                progress=None if self.reporter.progress is None else _rename_stage(self.reporter, stage),
                cancel=self.reporter.cancel,
            )
        if place is not None:
            found.save(place)
        return found


def _rename_stage(reporter: Reporter, stage: str) -> Any:
    """A progress that tells which graph is being judged."""

    def progress(event: Any) -> None:
        if reporter.progress is not None:
            reporter.progress(dataclasses.replace(event, stage=stage))

    return progress


def _serialize_computation(graph: onnx.ModelProto) -> bytes:
    """What a graph computes: its nodes and weights, without what was written about it."""
    plain = onnx.ModelProto()
    plain.CopyFrom(graph)
    del plain.metadata_props[:]
    return bytes(plain.SerializeToString(deterministic=True))


def measurement_versions() -> str:
    """Versions of what decides a measurement: a step of another one is done again."""
    from trtkit.results import package_versions

    found: Mapping[str, str] = package_versions()
    return " ".join(f"{name} {found[name]}" for name in _VERSIONED_PACKAGES if name in found)
