"""What a zoo measures: its models, backends, data and rows, checked before any slow work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.codegen import needs_end2end
from trtkit.errors import RecipeError, TrtkitError, warn
from trtkit.files import escape_surrogates
from trtkit.model_zoo.rows import FILES, RowJob
from trtkit.recipe import round_imgsz

if TYPE_CHECKING:
    from trtkit.models import Model

    ZooModel = str | Path | Model

__all__ = [
    "GUIDE_MODELS",
    "ZooData",
    "as_tuple",
    "check_names",
    "choose_backends",
    "list_models",
    "make_jobs",
    "read_model",
]

GUIDE_MODELS: Mapping[str, str] = {
    "detect": "yolov8n.pt",
    "segment": "yolov8n-seg.pt",
    "classify": "yolov8n-cls.pt",
    "pose": "yolov8n-pose.pt",
    "obb": "yolov8n-obb.pt",
}
"""The models of the tables in Ultralytics' TensorRT export guide, by task."""

SUFFIXES = (".pt", ".pth", ".onnx")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A value as a tuple; None is empty."""
    return () if value is None else (value,) if isinstance(value, (int, str)) else tuple(value)


def list_models(models: Any, data: Mapping[str, Any] | None) -> list[ZooModel]:
    """The models, folders expanded.

    Raises:
        RecipeError: There are none, or a model has no file.
    """
    if models is None:
        known = [name for task, name in GUIDE_MODELS.items() if task in (data or {})]
        if not known:
            raise RecipeError(
                "measure the models of the guide",
                "neither models nor the data of a task was given",
                "pass models, or data={'detect': 'coco.yaml'} for the guide's YOLOv8n",
                code="zoo-models-missing",
            )
        return list(known)
    given = [models] if isinstance(models, (str, Path)) or hasattr(models, "hash") else list(models)
    listed: list[ZooModel] = []
    for one in given:
        # `os.path` takes a name of 300 letters for a missing file, where pathlib raises.
        if isinstance(one, (str, Path)) and os.path.isdir(one):  # noqa: PTH112
            files = sorted(path for path in Path(one).iterdir() if path.suffix.lower() in SUFFIXES)
            if not files:
                raise RecipeError(
                    f"measure the models in {one}",
                    "the folder has none",
                    f"name files that end in {', '.join(SUFFIXES)}, or their folder",
                    code="zoo-folder-empty",
                    path=str(one),
                )
            listed += files
        elif isinstance(one, (str, Path)):
            listed.append(one)
        elif getattr(one, "source", None) is None:
            raise RecipeError(
                f"measure {getattr(one, 'stem', type(one).__name__)}",
                "it has no file, and each row reads its model from one",
                "export it to ONNX first, and pass the file",
                code="zoo-model-without-file",
            )
        else:
            listed.append(one)
    if not listed:
        raise RecipeError("measure a zoo", "the list of models is empty", "pass one or more", code="zoo-models-missing")
    return listed


def read_model(source: ZooModel) -> Model:
    """Read a model.

    Raises:
        RecipeError: There is no such file, or its name is not UTF-8; a file that is there and can't be read is a
            ModelError, one row of the zoo.
    """
    from trtkit.downloads import describe_download, locate
    from trtkit.models import load

    if not isinstance(source, (str, Path)):
        return source
    try:
        path = locate(Path(source))
        exists = path.exists()
    except (OSError, ValueError):  # such as a name of 300 letters, or one that holds a zero byte
        exists = False
    if not exists:
        raise RecipeError(
            f"measure {source}",
            "there is no such file",
            describe_download(source) or "check the path",
            code="zoo-model-missing",
            path=str(source),
        )
    if escape_surrogates(str(source)) != str(source):
        raise RecipeError(
            f"measure {escape_surrogates(str(source))}",
            "its name is not UTF-8, and neither ONNX files nor tables hold such names",
            "rename it",
            code="zoo-model-name-invalid",
            path=str(source),
        )
    return load(source)


def choose_backends(names: Any, device: int | str | None, *, elsewhere: bool = False) -> tuple[str, ...]:
    """The backends, each of which works here.

    Args:
        names: As in `zoo`.
        device: As in `zoo`.
        elsewhere: Engines are built and run by workers, which say themselves what they can do.

    Raises:
        RecipeError: There is no such backend.
        CapabilityError: It can't build or run engines here.
    """
    from trtkit import backends
    from trtkit.errors import CapabilityError

    chosen = as_tuple(names)
    if not chosen:
        try:
            built = backends.require_build(None, device=device).backend
            return (backends.require_run(built, device=device).backend,)
        except CapabilityError:
            return ("onnxruntime",)
    for name in chosen:
        backends.get_backend(name)
        if name not in FILES and not elsewhere:
            backends.require_build(name, device=device)
            backends.require_run(name, device=device)
    return chosen


class ZooData:
    """The data of each task, checked once, and what each row asks of it."""

    def __init__(self, data: Mapping[str, str], settings: Mapping[str, Any], *, embedded: bool) -> None:
        from trtkit.data import open_dataset

        self.data = dict(data)
        self.settings = settings
        self.embedded = embedded
        self.hashes: dict[tuple[str, int, str], str] = {}
        self.counts: dict[str, int] = {}
        self.errors: dict[tuple[str, bool, str], TrtkitError | None] = {}
        for task, path in data.items():
            open_dataset(path, task=task).images(settings["split"])

    def find_data(self, model: Model) -> str:
        """The data of a model's task.

        Raises:
            RecipeError: None was given.
        """
        from trtkit import demo

        if self.embedded and model.task not in self.data and model.task in demo.EMBEDDED_TASKS:
            self.data[model.task] = str(demo.data_path(model.task))
            warn(
                f"No data was given: {model.task} is measured on the embedded images of digits; pass "
                f"data={{'{model.task}': 'your.yaml'}} for your own"
            )
        if model.task not in self.data:
            raise RecipeError(
                f"measure {model.stem}",
                f"no data was given for its task, {model.task}",
                f"pass data={{'{model.task}': 'your.yaml'}} too",
                code="zoo-data-missing",
                task=model.task,
                names=tuple(self.data),
            )
        return self.data[model.task]

    def hash(self, model: Model, *, calibration: bool) -> str:
        """SHA-256 of the eval images with labels, or of the calibration images.

        Raises:
            DataError: The data can't be used.
        """
        from trtkit.calibration.sampling import select_calibration_images
        from trtkit.data import open_dataset, sample_images

        key = (model.task, model.channels, "calibration" if calibration else "evaluation")
        if key not in self.hashes:
            path, settings = self.find_data(model), self.settings
            if calibration:
                names = ("calibration_images", "fraction", "seed")
                dataset, _, paths = select_calibration_images(
                    path,
                    task=model.task,
                    channels=model.channels,
                    split=None,
                    **{name: settings[name] for name in names},
                )
            else:
                dataset = open_dataset(path, task=model.task, channels=model.channels)
                images = dataset.images(settings["split"])
                paths = sample_images(images, count=settings["eval_images"], seed=settings["seed"])
                self.counts[model.task] = len(paths)
            self.hashes[key] = dataset.hash_images(paths)
        return self.hashes[key]

    def count(self, task: str) -> int:
        """Number of eval images of a task."""
        return self.counts[task]

    def find_error(self, model: Model, job: RowJob) -> TrtkitError | None:
        """Why a row can't be measured, found before any slow work."""
        key = (job.model, job.end2end, job.size)
        if key not in self.errors:
            self.errors[key] = self._check(model, job)
        return self.errors[key]

    def _check(self, model: Model, job: RowJob) -> TrtkitError | None:
        from trtkit.evaluation.evaluation import prepare_evaluation
        from trtkit.graph.torch_export import check_trace

        settings = self.settings
        try:
            prepare_evaluation(
                model.info, job.data, settings["split"], eval_images=settings["eval_images"], seed=settings["seed"]
            )
            check_trace(model, settings["keep"], imgsz=job.imgsz, batch=max(job.batch), dynamic=settings["dynamic"])
        except TrtkitError as error:
            return error
        return None


def make_jobs(
    model: Model,
    side: int | None,
    precisions: Sequence[str],
    backends: Sequence[str],
    batches: tuple[int, ...],
    settings: Mapping[str, Any],
    inputs: ZooData,
    render_command: Callable[..., str],
) -> list[RowJob]:
    """The rows of a model at one size.

    Args:
        model: The model.
        side: Image side, pixels; None takes the model's own size.
        precisions: As in `zoo`.
        backends: From `choose_backends`.
        batches: Batch sizes to time.
        settings: `RowJob.settings`.
        inputs: The data of each task.
        render_command: The command line of a row, from its model, the data by task, and the arguments that differ.

    Raises:
        RecipeError: The model's task has no data.
        DataError: The data does not fit the model.
    """
    from trtkit.graph.prequantized import is_quantized

    end2end = needs_end2end(model)
    data = inputs.find_data(model)
    common: dict[str, Any] = {
        "model": str(model.source), "end2end": end2end, "model_hash": model.hash, "task": model.task, "data": data,
        "data_hash": inputs.hash(model, calibration=False), "batch": batches, "settings": settings,
        "imgsz": round_imgsz(model.imgsz if side is None else side, model.stride),
    }  # fmt: skip
    jobs = []
    for precision in ("int8",) if is_quantized(model.proto) else precisions:
        calibrated = precision == "int8" and not is_quantized(model.proto)
        for backend in backends:
            only = {"precisions": [precision], "backends": [backend], "batch": list(batches)}
            if side is not None:
                only["sizes"] = [side]
            named = {} if inputs.embedded else {model.task: data}
            jobs.append(
                RowJob(
                    **common,
                    precision=precision,
                    backend=backend,
                    calibration_hash=inputs.hash(model, calibration=True) if calibrated else "",
                    command=render_command(str(model.source), named, **only),
                )
            )
    return jobs


def check_names(jobs: Sequence[RowJob]) -> None:
    """Refuse rows that the table can't tell apart."""
    seen: dict[tuple[str, ...], str] = {}
    for job in jobs:
        key = (job.stem, job.size, job.precision, job.backend)
        if key in seen:
            same = seen[key] == job.model
            raise RecipeError(
                f"measure {job.label}",
                "it is listed twice" if same else f"{seen[key]} and {job.model} have the same name",
                "list each model, size and backend once" if same else "rename one of the files",
                code="zoo-rows-collide",
                name=job.stem,
                paths=(seen[key], job.model),
            )
        seen[key] = job.model
