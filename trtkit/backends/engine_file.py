"""Engine files: `4-byte little-endian length + JSON + plan`, with Ultralytics' keys and a passport in the JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trtkit.backends.devices import parse_device
from trtkit.errors import EngineError
from trtkit.files import hash_parts
from trtkit.models.model import DESCRIPTION_KEYS, ModelInfo, PixelInput
from trtkit.results import package_versions
from trtkit.writing import atomic_write, write_bytes

if TYPE_CHECKING:
    from trtkit.backends.build_settings import BuildResult, BuildSettings

__all__ = [
    "EngineFile",
    "Passport",
    "add_engine_metadata",
    "detect_backend",
    "read_engine",
    "strip_engine",
    "wrap_engine",
    "write_engine",
]


METADATA_KEY = "trtkit"
# Plans start with a letter and "trt": "ptrt" and "ftrt" are TensorRT's, "vtrt" is TensorRT-RTX's.
PLAN_MAGIC, RTX_PLAN_MAGIC = b"trt", b"vtrt"
MAX_HEADER_BYTES = 16 * 2**20
"""Most bytes of the JSON: a layer table of 2,000 layers has 1 MB, and a byte of JSON takes up to 25 bytes of memory."""


# The passport: an engine's provenance.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passport:
    """The provenance of an engine and what it needs to run.

    Attributes:
        backend: The backend that built it and runs it, such as "tensorrt".
        tensorrt: The version that built it; the same release must run it.
        sm: Compute capability it was built for, such as "sm90".
        gpu: The GPU it was built on, "" for a build without one.
        cuda: Newest CUDA version of the driver at build time, "" where unknown.
        driver: The driver at build time, "" where unknown.
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch.
        imgsz: Height and width, pixels.
        dynamic: Whether batch and size may change.
        dla: The DLA core, or None.
        compatibility: The machines that run it besides those like its builder's, as in `export`; None for no others.
        weights: "refittable" or "stripped" as in `export`, or None.
        pixel_input: Its pixels in blocks (`export(space_to_depth=True)`), or None for an input of NCHW.
        model_hash: SHA-256 of the model's architecture and weights.
        graph_hash: SHA-256 of the ONNX graph that was built.
        data_hash: SHA-256 of the calibration data, or None.
        calibration_hash: SHA-256 of the calibration, or None.
        plan_hash: SHA-256 of the plan.
        plan_size: Size of the plan, bytes.
        build_seconds: Wall time of the build, s.
        created: UTC time, ISO 8601.
        recipe: The export's settings.
        versions: Package versions by name, trtkit's own included.
        layers: The engine's layer table as rows, where the builder reports it.
    """

    backend: str
    tensorrt: str
    sm: str
    gpu: str = ""
    cuda: str = ""
    driver: str = ""
    precision: str = "fp32"
    batch: int = 1
    imgsz: tuple[int, int] = (640, 640)
    dynamic: bool = False
    dla: int | None = None
    compatibility: str | None = None
    weights: str | None = None
    pixel_input: PixelInput | None = None
    model_hash: str = ""
    graph_hash: str | None = None
    data_hash: str | None = None
    calibration_hash: str | None = None
    plan_hash: str = ""
    plan_size: int = 0
    build_seconds: float = 0.0
    created: str = ""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def from_build(
        cls,
        built: BuildResult,
        settings: BuildSettings,
        *,
        backend: str,
        model_hash: str,
        recipe: Mapping[str, Any] | None = None,
        data_hash: str | None = None,
        calibration_hash: str | None = None,
        graph_hash: str | None = None,
        created: str = "",
    ) -> Passport:
        """Create the passport of an engine that was just built.

        Args:
            built: From `build`.
            settings: The settings of the build.
            backend: The backend's name.
            model_hash: SHA-256 of the model's architecture and weights.
            recipe: The export's settings.
            data_hash: SHA-256 of the calibration data.
            calibration_hash: SHA-256 of the calibration.
            graph_hash: SHA-256 of the ONNX graph.
            created: UTC time, ISO 8601.
        """
        device = parse_device(settings.device)
        return cls(
            backend=backend,
            tensorrt=str(built.facts.get("tensorrt", "")),
            sm=str(built.facts.get("sm", "")),
            gpu=str(built.facts.get("gpu") or ""),
            cuda=str(built.facts.get("cuda") or ""),
            driver=str(built.facts.get("driver") or ""),
            precision=settings.precision,
            batch=settings.batch,
            imgsz=settings.imgsz,
            dynamic=settings.dynamic,
            dla=device.index if device.kind == "dla" else None,
            compatibility=settings.compatibility,
            weights=settings.weights,
            pixel_input=PixelInput(**built.facts["pixel_input"]) if built.facts.get("pixel_input") else None,
            model_hash=model_hash,
            graph_hash=graph_hash,
            data_hash=data_hash,
            calibration_hash=calibration_hash,
            plan_hash=hash_parts(built.plan),
            plan_size=len(built.plan),
            build_seconds=round(built.seconds, 3),
            created=created,
            recipe=dict(recipe or {}),
            versions=package_versions(),
            layers=tuple(built.layers),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Passport:
        """The inverse of `to_dict`; keys of later versions are ignored.

        Raises:
            KeyError: `backend`, `tensorrt` or `sm` is missing.
            TypeError: A value is of another type than its field.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {key: item for key, item in value.items() if key in known}
        missing = {"backend", "tensorrt", "sm"} - set(kept)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        kept["imgsz"] = tuple(kept.get("imgsz", (640, 640)))
        kept["layers"] = tuple(kept.get("layers", ()))
        wrong = [name for name, item in kept.items() if not _fits_field(name, item)]
        if wrong:
            raise TypeError(f"{wrong[0]} is {str(kept[wrong[0]])[:40]!r}")
        if kept.get("pixel_input") is not None:
            kept["pixel_input"] = PixelInput(**kept["pixel_input"])
        return cls(**kept)


def _fits_field(name: str, value: Any) -> bool:
    """Whether a value of the JSON has the type of the passport's field."""
    if name in ("recipe", "versions"):
        return isinstance(value, Mapping)
    if name == "layers":
        return all(isinstance(row, Mapping) for row in value)
    if name == "pixel_input":
        return value is None or (
            isinstance(value, Mapping)
            and set(value) == {"side", "scale"}
            and type(value["side"]) is int
            and value["side"] in (2, 4)
            and (value["scale"] is None or (type(value["scale"]) is float and 0 < value["scale"] < math.inf))
        )
    if name == "imgsz":
        return len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    if name == "dynamic":
        return isinstance(value, bool)
    if name in ("batch", "plan_size", "dla"):
        return (value is None and name == "dla") or (type(value) is int and value >= 0)
    if name == "build_seconds":
        return type(value) in (int, float) and math.isfinite(value)
    may_be_absent = name in ("graph_hash", "data_hash", "calibration_hash", "compatibility", "weights")
    return isinstance(value, str) or (value is None and may_be_absent)


# The file.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineFile:
    """The contents of an engine file.

    Attributes:
        path: The file.
        metadata: Ultralytics' keys; empty for a bare plan.
        passport: The engine's provenance, or None for engines that trtkit did not write.
        plan: The serialized engine.
        backend: The backend that runs it, by the passport or by the plan's first bytes.
    """

    path: Path
    metadata: Mapping[str, Any]
    passport: Passport | None
    plan: bytes = dataclasses.field(repr=False)
    backend: str

    @property
    def dla(self) -> int | None:
        """The DLA core that it was built for, None for a GPU.

        Raises:
            EngineError: The file names no number.
        """
        core = self.passport.dla if self.passport is not None else self.metadata.get("dla")
        if core is not None and not str(core).isdecimal():
            raise EngineError(
                f"open {self.path}",
                f"its DLA core is {core!r}",
                "export the model again",
                code="engine-metadata-invalid",
                path=self.path,
            )
        return None if core is None else int(core)

    def info(self, *, task: str | None = None, names: Mapping[int, str] | None = None) -> ModelInfo:
        """The model's description.

        Args:
            task: Overrides the file's; a bare plan needs it.
            names: Class names, where the file has none.

        Raises:
            EngineError: The task is unknown, or the metadata does not parse.
        """
        metadata = dict(self.metadata)
        if task is not None:
            metadata["task"] = task
        if names is not None:
            metadata["names"] = dict(names)
        if "task" not in metadata:
            raise EngineError(
                f"open {self.path}",
                "it is a bare plan and names no task",
                "pass task=, such as task='detect'",
                code="engine-task-missing",
                path=self.path,
            )
        metadata.setdefault("names", {})
        try:
            return ModelInfo.from_metadata(metadata)
        except (LookupError, ValueError, TypeError) as error:
            raise EngineError(
                f"open {self.path}",
                f"its metadata does not parse ({error})",
                "export the model again",
                code="engine-metadata-invalid",
                path=self.path,
            ) from error


def write_engine(
    path: str | Path,
    plan: bytes,
    metadata: Mapping[str, Any] | ModelInfo,
    passport: Passport | None,
    *,
    overwrite: bool = True,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write an engine file, whole or not at all.

    Args:
        path: The file.
        plan: From `BuildResult`.
        metadata: Ultralytics' keys (`ModelInfo.to_metadata`), or a model's description.
        passport: The engine's provenance; None writes a file as Ultralytics does.
        overwrite: Replace the file if it exists.
        check: Called with the file under a temporary name; if it raises, nothing is written.

    Returns:
        The file's path.

    Raises:
        OutputError: The file can't be written, or exists.
    """
    header = dict(metadata.to_metadata() if isinstance(metadata, ModelInfo) else metadata)
    if passport is not None:
        header[METADATA_KEY] = {**header.get(METADATA_KEY, {}), **passport.to_dict()}
        if passport.dla is not None:
            # Ultralytics' loader picks the core by this key.
            header["dla"] = str(passport.dla)
    text = json.dumps(header, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
    with atomic_write(path, overwrite=overwrite) as temporary:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(4, "little"))
            file.write(text)
            file.write(plan)
        if check is not None:
            check(temporary)
    return Path(path)


def read_engine(path: str | Path) -> EngineFile:
    """Read an engine file or a bare plan; needs no TensorRT.

    Args:
        path: An engine of trtkit's or Ultralytics', or a bare plan.

    Raises:
        EngineError: The file is missing, unreadable, empty, truncated, changed, or not an engine.
    """
    path = Path(path)
    asked = f"open {path}"
    try:
        missing = not path.is_file()
    except (OSError, ValueError):  # such as a name of 300 letters, or one that holds a zero byte
        missing = True
    if missing:
        raise EngineError(asked, "the file does not exist", "check the path", code="engine-not-found", path=path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise EngineError(
            asked,
            f"it can't be read ({error.strerror or error})",
            "check its permissions",
            code="engine-unreadable",
            path=path,
        ) from error
    with file:
        start = file.read(4)
        if start[1:] == PLAN_MAGIC:
            plan = start + file.read()
            return EngineFile(path=path, metadata={}, passport=None, plan=plan, backend=_backend_of_plan(start))
        metadata = _read_header(file, start, path)
        plan = file.read()
    passport = None
    if METADATA_KEY in metadata and not _is_description(metadata[METADATA_KEY]):
        try:
            passport = Passport.from_dict(metadata[METADATA_KEY])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise EngineError(
                asked,
                f"its passport does not parse ({error})",
                "export the model again",
                code="engine-passport-invalid",
                path=path,
            ) from error
        if len(plan) != passport.plan_size:
            raise EngineError(
                asked,
                f"it is truncated: the plan has {len(plan):,} of {passport.plan_size:,} bytes",
                "copy it again",
                code="engine-truncated",
                path=path,
                size=len(plan),
                expected=passport.plan_size,
            )
        if hash_parts(plan) != passport.plan_hash:
            raise EngineError(
                asked,
                "the plan's hash differs from the passport's",
                "copy it again, or export again",
                code="engine-hash-mismatch",
                path=path,
            )
    elif not plan:
        raise EngineError(
            asked,
            "it is truncated: no plan follows the header",
            "copy it again",
            code="engine-truncated",
            path=path,
            size=0,
        )
    backend = passport.backend if passport is not None else _backend_of_plan(plan[:4])
    return EngineFile(path=path, metadata=metadata, passport=passport, plan=plan, backend=backend)


def detect_backend(path: str | Path) -> str | None:
    """The backend that runs an engine file, by its header alone.

    Args:
        path: Any file.

    Returns:
        The backend's name, or None where the file is missing or has no readable engine header.
    """
    path = Path(path)
    try:
        # Opening a FIFO would wait for its writer.
        if not path.is_file():
            return None
        with path.open("rb") as file:
            start = file.read(4)
            if start[1:] == PLAN_MAGIC:
                return _backend_of_plan(start)
            metadata = _read_header(file, start, path)
            if METADATA_KEY in metadata and not _is_description(metadata[METADATA_KEY]):
                return str(metadata[METADATA_KEY]["backend"])
            return _backend_of_plan(file.read(4))
    except (OSError, EngineError, KeyError, TypeError, ValueError):
        return None


def add_engine_metadata(path: Path, trtkit: Mapping[str, Any]) -> None:
    """Add keys to trtkit's own metadata in the header of an engine file, which is replaced; the plan stays as it is.

    Args:
        path: The file, from `write_engine` with a passport.
        trtkit: Keys and JSON-ready values; no field of `Passport`.

    Raises:
        EngineError: It is not an engine.
        OutputError: It can't be written.
    """
    file = read_engine(path)
    header = {**file.metadata, METADATA_KEY: {**file.metadata.get(METADATA_KEY, {}), **trtkit}}
    write_engine(path, file.plan, header, None)


def strip_engine(path: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write an engine file's bare plan, as `trtexec` and Triton take it.

    Args:
        path: The engine.
        output: The plan.
        overwrite: Replace the output if it exists.

    Returns:
        The plan's path.

    Raises:
        EngineError: `path` is not an engine.
        OutputError: The plan can't be written.
    """
    return write_bytes(output, read_engine(path).plan, overwrite=overwrite)


def wrap_engine(
    plan: str | Path,
    output: str | Path,
    info: ModelInfo,
    passport: Passport | None = None,
    *,
    overwrite: bool = False,
    **args: Any,
) -> Path:
    """Write a bare plan as an engine file with a header.

    Args:
        plan: A bare plan, or an engine whose header is replaced.
        output: The engine.
        info: The model's description.
        passport: The engine's provenance, if known; its plan hash and size must be those of `plan`.
        overwrite: Replace the output if it exists.
        **args: Further keys of `ModelInfo.to_metadata`, such as batch=8.

    Returns:
        The engine's path.

    Raises:
        EngineError: `plan` is not an engine.
        OutputError: The output can't be written.
    """
    return write_engine(output, read_engine(plan).plan, info.to_metadata(**args), passport, overwrite=overwrite)


def _backend_of_plan(magic: bytes) -> str:
    return "tensorrt_rtx" if magic == RTX_PLAN_MAGIC else "tensorrt"


def _read_header(file: BinaryIO, start: bytes, path: Path) -> dict[str, Any]:
    """The JSON that follows the length in the file's first four bytes."""
    asked = f"open {path}"
    length, size = int.from_bytes(start, "little"), path.stat().st_size
    if len(start) < 4:
        raise EngineError(
            asked, f"it has {size} bytes", "name an engine file", code="engine-empty", path=path, size=size
        )
    not_engine = EngineError(
        asked,
        "it is not a TensorRT engine",
        "name a .engine file that trtkit or Ultralytics wrote, or a plan",
        code="engine-invalid",
        path=path,
    )
    if not 2 <= length <= MAX_HEADER_BYTES or file.read(1) != b"{":
        raise not_engine
    if length > size - 4:
        raise EngineError(
            asked,
            "it is truncated inside its header",
            "copy it again",
            code="engine-truncated",
            path=path,
            size=size - 4,
            expected=length,
        )
    file.seek(-1, os.SEEK_CUR)
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(file.read(length).decode("utf-8"))
        if isinstance(value, dict):
            return value
    raise not_engine


def _is_description(value: Any) -> bool:
    """Whether the value of `METADATA_KEY` is the model's description alone, without a passport."""
    return isinstance(value, dict) and set(value) <= DESCRIPTION_KEYS
