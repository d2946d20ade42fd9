"""One row of the zoo: its job, the run of the verbs behind it, and the folder that keeps it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import ResultError
from trtkit.files import hash_file, hash_parts, read_json
from trtkit.progress import CancelToken, Progress
from trtkit.recipe import Recipe
from trtkit.results import package_versions
from trtkit.writing import atomic_folder, publish_interrupted, write_json

if TYPE_CHECKING:
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.evaluation.latency import Timing
    from trtkit.exporter import Artifact
    from trtkit.models import Model

__all__ = ["FILES", "ROW_FILE", "RowJob", "load_evaluation", "load_row", "row_folder", "run_row"]

ROW_FILE = "row.json"
"""The file of a row's facts; it names and hashes the others, and is published together with them."""

ROW_VERSION = 1
"""Version of `ROW_FILE`; a row of another version is measured again."""

MAY_DIFFER = ("model", "data", "device", "command")
"""What a row does not depend on: the hashes of model and data stand for their paths."""

FILES = {"onnxruntime": "onnx"}
"""Format of the file that a backend runs; "engine" for all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowJob:
    """What one row measures, JSON-ready.

    Attributes:
        model: The model's file.
        end2end: Whether its one-to-one head is taken.
        model_hash: SHA-256 of its weights and architecture.
        task: Its task.
        data: The data set of the task.
        data_hash: SHA-256 of the eval images and their labels.
        calibration_hash: SHA-256 of the calibration images of INT8; "" for other precisions.
        imgsz: Height and width, pixels.
        precision: "fp32", "fp16" or "int8".
        backend: The backend that runs the file.
        batch: Batch sizes that are timed; the file is built for the largest.
        settings: Arguments of `zoo` that all rows share: split, dynamic, simplify, keep, calibration_images, fraction,
            eval_images, workspace, opt_level, runs, seconds, seed.
        command: The command line that repeats the row.
        device: The device of an engine; None takes the first GPU that the process sees.
    """

    model: str
    end2end: bool
    model_hash: str
    task: str
    data: str
    data_hash: str
    calibration_hash: str
    imgsz: tuple[int, int]
    precision: str
    backend: str
    batch: tuple[int, ...]
    settings: Mapping[str, Any]
    command: str = ""
    device: int | str | None = None

    @property
    def stem(self) -> str:
        """The model's name in the table: the stem of its file."""
        return Path(self.model).stem + ("-end2end" if self.end2end else "")

    @property
    def size(self) -> str:
        """ "640x640": height and width."""
        return f"{self.imgsz[0]}x{self.imgsz[1]}"

    @property
    def label(self) -> str:
        """The row's name in progress and logs."""
        return f"{self.stem} {self.size} {self.precision} {self.backend}"

    @property
    def is_engine(self) -> bool:
        """Whether an engine runs, which is timed on a GPU."""
        return self.backend not in FILES

    @property
    def name(self) -> str:
        """The name of the row's folder: what stays if weights, data or settings change."""
        parts = (self.stem, self.size, self.precision, self.backend)
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))[:120]
        return f"{readable}-{hash_parts(*parts)[:8]}"

    def request(self) -> dict[str, Any]:
        """All that a finished row must agree with, to be kept; device, command and paths may differ."""
        values = {name: value for name, value in self.to_dict().items() if name not in MAY_DIFFER}
        # As it comes back from a file.
        plain: dict[str, Any] = json.loads(
            json.dumps({**values, "versions": package_versions(), "row_version": ROW_VERSION})
        )
        return plain

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RowJob:
        """The inverse of `to_dict`, after a way through JSON too."""
        return cls(**{**value, "imgsz": tuple(value["imgsz"]), "batch": tuple(value["batch"])})


def row_folder(output: str | Path, job: RowJob) -> Path:
    """The folder of a row.

    Args:
        output: The folder of the zoo.
        job: The row.
    """
    return Path(output) / "rows" / job.name


def run_row(
    job: RowJob, output: str | Path, *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> dict[str, Any]:
    """Calibrate, export, evaluate and, for an engine, time one row; all its files appear together.

    Args:
        job: The row.
        output: The folder of the zoo.
        progress: Receives events.
        cancel: Checked between steps.

    Returns:
        The facts of the row, as `load_row` returns them.

    Raises:
        TrtkitError: As the verbs do; nothing was written.
    """
    from trtkit import backends
    from trtkit.calibration import calibrate
    from trtkit.evaluation.evaluation import evaluate
    from trtkit.evaluation.latency import benchmark
    from trtkit.exporter import export_with_graph
    from trtkit.graph.prequantized import is_quantized
    from trtkit.models import load

    settings, watch = job.settings, {"progress": progress, "cancel": cancel}
    model = load(job.model, end2end=job.end2end)
    calibration = None
    if job.precision == "int8" and not is_quantized(model.proto):
        # The rows of other backends find the calibration in the cache.
        calibration = calibrate(
            model,
            job.data,
            calibration_images=settings["calibration_images"],
            fraction=settings["fraction"],
            batch=2 * max(job.batch),
            seed=settings["seed"],
            imgsz=job.imgsz,
            cache_dir=Path(output) / "calibrations",
            **watch,  # type: ignore[arg-type]
        )
    recipe = Recipe(
        # Without its folder, so that the file is the same wherever the zoo runs.
        model=Path(job.model).name,
        format=FILES.get(job.backend, "engine"),
        imgsz=job.imgsz,
        half=job.precision == "fp16",
        int8=job.precision == "int8",
        dynamic=settings["dynamic"],
        simplify=settings["simplify"],
        batch=max(job.batch),
        end2end=model.end2end is True,
        keep=tuple(settings["keep"]),
        **(
            {"backend": job.backend, "device": job.device, **_pick(settings, "workspace", "opt_level")}
            if job.is_engine
            else {}
        ),
    )
    folder = row_folder(output, job)
    publish_interrupted(folder)
    with atomic_folder(folder, remove=_list_files(folder)) as staging:
        file = staging / f"{Path(job.model).stem}-{job.precision}.{recipe.format}"
        # Accuracy is measured next, on more images than `verify` takes.
        artifact, _ = export_with_graph(model, recipe, calibration=calibration, verify=False, path=file, **watch)  # type: ignore[arg-type]
        with backends.open(file, device=job.device, backend=job.backend) as runner:
            evaluation = evaluate(
                runner,
                job.data,
                settings["split"],
                eval_images=settings["eval_images"],
                seed=settings["seed"],
                **watch,  # type: ignore[arg-type]
            )
        timing = None
        if job.is_engine:
            timing = benchmark(
                {job.precision: file},
                batch=job.batch,
                runs=settings["runs"],
                seconds=settings["seconds"],
                stage_runs=0,
                device=job.device,
                backend=job.backend,
                seed=settings["seed"],
                **watch,  # type: ignore[arg-type]
            )
        facts = {
            **_describe_model(model, job, artifact, evaluation),
            "calibration_hash": None if calibration is None else calibration.hash,
            "file": file.name,
            "file_hash": hash_file(file),
            "timings": [] if timing is None else timing.frame().drop("label", "precision").to_dicts(),
            "timed_sm": [] if timing is None else _clock_range(timing),
            "machine": dict((evaluation if timing is None else timing).provenance.machine),
        }
        evaluation.write_files(staging)
        content = {"request": job.request(), "facts": facts}
        write_json(staging / ROW_FILE, {**content, "hash": _hash(content)})
    return facts


def _clock_range(timing: Timing) -> list[int]:
    """The lowest and the highest clock of the multiprocessors while a row was timed, MHz; [] where it is not known."""
    clocks = timing.rounds["sm_mhz"].drop_nulls().to_list()
    return [min(clocks), max(clocks)] if clocks else []


def _pick(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: settings[name] for name in names}


def _describe_model(model: Model, job: RowJob, artifact: Artifact, evaluation: Evaluation) -> dict[str, Any]:
    """The facts of a row that do not depend on the machine."""
    from trtkit.graph.prequantized import is_quantized
    from trtkit.graph.qdq import plan_qdq
    from trtkit.graph.torch_export import trace

    kept: Mapping[str, str] = {}
    if job.precision == "int8" and not is_quantized(model.proto):
        # Traced already by the export: this is a copy.
        graph = trace(
            model,
            imgsz=job.imgsz,
            batch=max(job.batch),
            dynamic=artifact.recipe.is_dynamic,
            simplify=artifact.recipe.simplify,
        )
        kept = plan_qdq(graph, job.settings["keep"]).excluded
    return {
        "parameters": model.parameters,
        "runner": evaluation.provenance.runner,
        "metrics": dict(evaluation.metrics),
        "eval_images": evaluation.image_count,
        "skipped": len(evaluation.skipped),
        "notes": list(evaluation.notes),
        "bytes": artifact.size,
        "build_s": artifact.build_seconds,
        "kept": dict(kept),
        "data_hash": evaluation.provenance.data_hash,
        "versions": dict(evaluation.provenance.versions),
        "created": evaluation.provenance.created,
    }


def load_row(output: str | Path, job: RowJob) -> dict[str, Any] | None:
    """The facts of a finished row; None if it is not there, damaged, or was measured on another model, data or setting.

    Args:
        output: The folder of the zoo.
        job: The row.
    """
    folder = row_folder(output, job)
    publish_interrupted(folder)
    try:
        content = read_json(folder / ROW_FILE)
        saved = content.pop("hash")
        facts: dict[str, Any] = content["facts"]
        if saved != _hash(content) or content["request"] != job.request():
            return None
        if hash_file(folder / facts["file"]) != facts["file_hash"]:
            return None
        load_evaluation(output, job)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ResultError):
        return None
    return facts


def load_evaluation(output: str | Path, job: RowJob) -> Evaluation:
    """The evaluation of a finished row.

    Raises:
        ResultError: It is missing or damaged.
    """
    from trtkit.evaluation.evaluation import Evaluation

    return Evaluation.load(row_folder(output, job))


def _list_files(folder: Path) -> list[str]:
    """Names of the files of an earlier row in a folder."""
    from trtkit.evaluation.evaluation import Evaluation

    names = [*Evaluation.list_files(folder)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names.append(str(read_json(folder / ROW_FILE)["facts"]["file"]))
    return names


def _hash(content: Mapping[str, Any]) -> str:
    return hash_parts(json.dumps(content, sort_keys=True))
