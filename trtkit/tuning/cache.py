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
from trtkit.files import hash_of, read_json, write_json
from trtkit.progress import Work

if TYPE_CHECKING:
    from trtkit.data import Dataset

__all__ = ["Judge", "State", "deciding_versions"]

_DECIDING = ("trtkit", "onnxruntime", "numpy", "opencv-python")


class State:
    """A folder of finished steps, each under the hash of what it was made from.

    Args:
        folder: Where; None remembers nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def place(self, kind: str, key: str) -> Path | None:
        """The folder of one step, None where nothing is remembered."""
        return None if self.folder is None else self.folder / kind / key[:24]

    def read(self, kind: str, key: str) -> Any:
        """A step's JSON value; None where there is none."""
        place = self.place(kind, key)
        if place is None or not place.with_suffix(".json").is_file():
            return None
        return read_json(place.with_suffix(".json"))

    def write(self, kind: str, key: str, value: Any) -> None:
        """Keep a step's JSON value, where anything is kept."""
        place = self.place(kind, key)
        if place is not None:
            write_json(place.with_suffix(".json"), value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Judges graphs on the same pictures, each graph once.

    Attributes:
        dataset: The labelled pictures.
        split: Which of them.
        images: At most so many, None for all.
        seed: Of their sample.
        batch: Pictures a run.
        state: Where evaluations are remembered.
        work: Receives events and says when to stop.
    """

    dataset: Dataset
    split: str
    images: int | None
    seed: int
    state: State
    work: Work
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

        pictures = self.dataset.hash(self.split)
        key = hash_of(_content(graph), pictures, f"{self.split} {self.images} {self.seed} {deciding_versions()}")
        place = self.state.place("evaluations", key)
        if place is not None and (place / f"{Evaluation.kind}.json").is_file():
            try:
                return Evaluation.load(place)
            except (OSError, ValueError, KeyError, TypeError, TrtkitError):
                self.work.say(stage, f"{place} can't be read and is judged anew")
        with backends.open(graph) as runner:
            found = evaluate(
                runner,
                self.dataset,
                self.split,
                batch=self.batch,
                images=self.images,
                seed=self.seed,
                progress=None if self.work.progress is None else _renamed(self.work, stage),
                cancel=self.work.cancel,
            )
        if place is not None:
            found.save(place)
        return found


def _renamed(work: Work, stage: str) -> Any:
    """A progress that tells which graph is being judged."""

    def progress(event: Any) -> None:
        if work.progress is not None:
            work.progress(dataclasses.replace(event, stage=stage))

    return progress


def _content(graph: onnx.ModelProto) -> bytes:
    """What a graph computes: its nodes and weights, without what was written about it."""
    plain = onnx.ModelProto()
    plain.CopyFrom(graph)
    del plain.metadata_props[:]
    return bytes(plain.SerializeToString(deterministic=True))


def deciding_versions() -> str:
    """Versions of what decides a measurement: a step of another one is done again."""
    from trtkit.results import versions

    found: Mapping[str, str] = versions()
    return " ".join(f"{name} {found[name]}" for name in _DECIDING if name in found)
