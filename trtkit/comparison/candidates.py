"""Candidates of a comparison: models and files of other makers, measured beside the precisions of trtkit's exports."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import CapabilityError, OnnxError, RecipeError
from trtkit.recipe import PRECISIONS, Recipe

if TYPE_CHECKING:
    from trtkit.backends.runner import HasPath, Runner
    from trtkit.exporter import Artifact
    from trtkit.models import Model, ModelInfo

__all__ = ["Candidate", "load_candidates"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


if TYPE_CHECKING:
    # A model, an ONNX file, a checkpoint, an engine or the address of a served model.
    CandidateSource = Model | HasPath | str | Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate, read and checked.

    Attributes:
        name: Its label in the comparison.
        source: The file, or the model's name.
        precision: "fp32", "fp16" or "int8": that of an ONNX file or an engine; "fp32" for a checkpoint or a module.
        info: Task, classes, input and output.
        model: The model, with its graph at the comparison's size and batch if it is an ONNX file; None for an engine.
        placement: What does not suit TensorRT in the Q/DQ of an ONNX file, in sentences.
        engine: The engine file, or the address of a served model, as an artifact; None for a model.
        is_served: Whether a server runs it: its size and device are not known here.
    """

    name: str
    source: str
    precision: str
    info: ModelInfo
    model: Model | None = None
    placement: tuple[str, ...] = ()
    engine: Artifact | None = None
    is_served: bool = False

    def facts(self) -> dict[str, Any]:
        """The candidate as JSON-ready data."""
        return {
            "source": self.source,
            "precision": self.precision,
            "output_format": self.info.output_format.name,
            "placement": list(self.placement),
        }


def load_candidates(
    candidates: Mapping[str, CandidateSource],
    reference: Model,
    *,
    settings: Mapping[str, Any],
    written: Iterable[Path] = (),
    builds: bool,
    why_no_engines: str,
    device: int | str | None,
    open_file: Callable[..., Runner] | None = None,
) -> dict[str, Candidate]:
    """Read candidates and check them against the compared model, before any slow work.

    Args:
        candidates: Models or files by name.
        reference: The compared model.
        settings: `imgsz` (height, width), `batch`, `dynamic` and `simplify` of the comparison's graphs.
        written: Files that the comparison writes.
        builds: Whether engines are built.
        why_no_engines: Why the precisions do not run as engines here; "" if they do.
        device: The device that engines run on.
        open_file: Opens engines instead of `trtkit.open`.

    Returns:
        The candidates by name.

    Raises:
        RecipeError: A name can't be used, a candidate has another task, other classes or another size, or its file
            would be overwritten.
        CapabilityError: A candidate is an engine and the precisions do not run as engines here.
        ModelError, OnnxError, EngineError, BuildError: A candidate can't be read, opened or built.
    """
    loaded: dict[str, Candidate] = {}
    targets = {path.resolve() for path in written}
    for name, source in candidates.items():
        if not _NAME.fullmatch(name) or name.lower() in PRECISIONS:
            raise RecipeError(
                f"compare the candidate {name!r}",
                "the name is a precision's, or no file can have it",
                "use letters, digits, '-', '_' and '.'",
                code="candidate-name-invalid",
                name=name,
            )
        value: Any = getattr(source, "path", source)
        file = value if isinstance(value, (str, Path)) else getattr(value, "source", None)
        if file is not None and Path(file).resolve() in targets:
            raise RecipeError(
                f"compare the candidate {name!r}",
                f"the comparison writes a file of its own to {file}, which would replace it",
                "use another output folder, or name it differently",
                code="candidate-file-overwritten",
                name=name,
                path=str(file),
            )
        if isinstance(value, (str, Path)) and Path(value).suffix.lower() not in (".onnx", ".pt", ".pth"):
            candidate = _open_engine(name, value, reference, settings, why_no_engines, device, open_file)
        else:
            candidate = _load_model(name, value, reference, settings, builds=builds)
        loaded[name] = candidate
    return loaded


def _load_model(name: str, source: Any, reference: Model, settings: Mapping[str, Any], *, builds: bool) -> Candidate:
    from trtkit.graph.fp16 import has_fp16
    from trtkit.graph.prequantized import check_placement, is_quantized
    from trtkit.graph.torch_export import trace
    from trtkit.models import load

    try:
        model = load(source)
    except OnnxError as error:
        if error.code not in ("model-task-missing", "model-names-missing"):
            raise
        # ModelOpt and other tools drop the metadata; the file is to do what the compared model does.
        model = load(source, task=reference.task, names=reference.names)
    _check_fits(name, model, reference)
    quantized = is_quantized(model.proto)
    precision = "int8" if quantized else "fp16" if model.proto is not None and has_fp16(model.proto) else "fp32"
    if model.proto is not None:
        # A file's graph may not have this shape; a checkpoint is traced when it is exported.
        model = dataclasses.replace(model, proto=trace(model, **settings))
    placement: tuple[str, ...] = ()
    if quantized:
        assert model.proto is not None
        placement = tuple(map(str, check_placement(model.proto, model.stem, build=builds)))
    return Candidate(
        name=name,
        source=str(model.source or model.stem),
        precision=precision,
        info=model.info,
        model=model,
        placement=placement,
    )


def _open_engine(
    name: str,
    source: str | Path,
    reference: Model,
    settings: Mapping[str, Any],
    why_no_engines: str,
    device: int | str | None,
    open_file: Callable[..., Runner] | None,
) -> Candidate:
    from trtkit import backends
    from trtkit.backends.triton import is_address
    from trtkit.exporter import Artifact

    path, is_served = Path(source), is_address(source)
    # Opening it tells whether it runs here; it is opened again for its evaluation, and holds no memory meanwhile.
    with (open_file or backends.open)(source, device=None if is_served else device) as runner:
        _check_fits(name, runner.info, reference)
        _check_engine(name, runner, settings)
        if why_no_engines and runner.engine:
            raise CapabilityError(
                f"compare the engine {path} as {name!r}",
                f"the precisions run in ONNX Runtime here ({why_no_engines}), which is not comparable with an engine",
                "build engines too (build=True), or compare ONNX files",
                code="candidate-engine-alone",
                name=name,
                path=path,
            )
        precision = runner.precision
        artifact = Artifact(
            path=path,
            # A served model stands beside what the precisions run as.
            format="onnx" if is_served and why_no_engines else "engine",
            precision=precision,
            info=runner.info,
            recipe=Recipe(
                model=str(path),
                imgsz=runner.imgsz,
                batch=runner.batch or 1,
                dynamic=runner.dynamic,
                half=precision == "fp16",
                int8=precision == "int8",
            ),
            model_hash=runner.hash,
            passport=runner.passport,
            seconds=0.0,
            build_seconds=getattr(runner.passport, "build_seconds", None),
            size=0 if is_served else path.stat().st_size,
        )
    return Candidate(
        name=name,
        source=str(source),
        precision=precision,
        info=artifact.info,
        engine=artifact,
        is_served=is_served,
    )


def _check_fits(name: str, info: ModelInfo, reference: ModelInfo) -> None:
    asked = f"compare the candidate {name!r}"
    if info.task != reference.task:
        raise RecipeError(
            asked,
            f"its task is {info.task}, the model's is {reference.task}",
            "compare models of one task",
            code="candidate-task-mismatch",
            name=name,
            value=info.task,
            expected=reference.task,
        )
    if dict(info.names) != dict(reference.names):
        raise RecipeError(
            asked,
            f"its {len(info.names)} class names are not the model's {len(reference.names)}",
            "compare models of the same classes; load(names=...) replaces names",
            code="candidate-names-mismatch",
            name=name,
            names=len(info.names),
            expected=len(reference.names),
        )


def _check_engine(name: str, runner: Runner, settings: Mapping[str, Any]) -> None:
    size, batch = tuple(settings["imgsz"]), settings["batch"]
    if tuple(runner.imgsz) != size or (runner.batch is not None and runner.batch < batch):
        raise RecipeError(
            f"compare the candidate {name!r}",
            f"the engine takes batches of up to {runner.batch or 'any'} at {runner.imgsz[0]}x{runner.imgsz[1]}, "
            f"the comparison needs {batch} at {size[0]}x{size[1]}",
            "pass the engine's imgsz= and batch=, or build it for these",
            code="candidate-shape-mismatch",
            name=name,
            imgsz=tuple(runner.imgsz),
            batch=runner.batch,
            expected=(size, batch),
        )
