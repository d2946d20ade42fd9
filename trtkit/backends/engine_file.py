"""Engine files: `4-byte little-endian length + JSON + plan`, with Ultralytics' keys on top and our passport inside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trtkit.backends.capabilities import TITLES, Capabilities, same_release
from trtkit.backends.devices import Device, parse_device
from trtkit.errors import EngineError
from trtkit.files import atomic_write, hash_parts, write_bytes
from trtkit.models.model import DESCRIPTION_KEYS, ModelInfo
from trtkit.results import package_versions

if TYPE_CHECKING:
    from trtkit.backends.build_settings import BuildResult, BuildSettings

__all__ = [
    "EngineFile",
    "Mismatch",
    "Passport",
    "check_compatibility",
    "read_engine",
    "strip_engine",
    "wrap_engine",
    "write_engine",
]


# The passport of an engine: where it comes from, and whether it runs here.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passport:
    """Where an engine comes from and where it runs.

    Attributes:
        backend: "tensorrt" or "tensorrt_rtx".
        tensorrt: The version that built it, the one that can run it.
        sm: Compute capability it is for, such as "sm90".
        gpu: The GPU it was built on, "" where it was built with none.
        cuda: Newest CUDA of the driver it was built with, "" where unknown.
        driver: Driver it was built with, "" where unknown.
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch.
        imgsz: Height and width, pixels.
        dynamic: Whether batch and size may change.
        dla: The DLA core, or None.
        model_hash: SHA-256 of the model's architecture and weights.
        graph_hash: SHA-256 of the ONNX graph that was built.
        data_hash: SHA-256 of the calibration data, or None.
        calibration_hash: SHA-256 of the calibration, or None.
        plan_hash: SHA-256 of the plan.
        plan_size: Bytes of the plan.
        build_seconds: Wall time of the build, s.
        created: UTC time, ISO 8601.
        recipe: The export's settings.
        versions: Package versions by name, trtkit's own included.
        layers: The engine's layer table as rows, where the builder told it.
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
        """The passport of an engine that was just built.

        Args:
            built: From `build`.
            settings: What it was built with.
            backend: "tensorrt" or "tensorrt_rtx".
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
        """The inverse of `to_dict`; keys of later versions are left out.

        Raises:
            KeyError: `backend`, `tensorrt` or `sm` is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {key: item for key, item in value.items() if key in known}
        missing = {"backend", "tensorrt", "sm"} - set(kept)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        kept["imgsz"] = tuple(kept.get("imgsz", (640, 640)))
        kept["layers"] = tuple(kept.get("layers", ()))
        return cls(**kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Why an engine won't run here.

    Attributes:
        found: What differs.
        do: What to do about it.
    """

    found: str
    do: str

    def __str__(self) -> str:
        return f"{self.found}; {self.do}."


def check_compatibility(
    passport: Passport, capabilities: Capabilities, device: Device | None = None
) -> Mismatch | None:
    """Compare an engine's passport with this machine.

    Args:
        passport: The engine's.
        capabilities: What the backend that shall run it can do here.
        device: Where it shall run; None means the first GPU.

    Returns:
        What differs and what to do, or None where the engine fits. Another GPU of the same compute capability fits.
    """
    again = "export the model again on this machine"
    title = TITLES.get(passport.backend, passport.backend)
    built = f"it was built by {title} {passport.tensorrt} for {passport.gpu or passport.sm}"
    if passport.backend != capabilities.backend:
        return Mismatch(
            found=f"{built}, not for {TITLES[capabilities.backend]}",
            do=f"open it with backend={passport.backend!r}, or {again}",
        )
    if not same_release(passport.tensorrt, capabilities.version):
        return Mismatch(
            found=f"{built}, and {title} {capabilities.version} is installed",
            do=f"install {title} {passport.tensorrt}, or {again}",
        )
    index = device.gpu if device is not None else 0
    if index < len(capabilities.gpus) and capabilities.gpus[index].sm != passport.sm:
        gpu = capabilities.gpus[index]
        return Mismatch(found=f"{built} ({passport.sm}), and this GPU is {gpu.name} ({gpu.sm})", do=again)
    return None


METADATA_KEY = "trtkit"
# Plans start with a letter and "trt": "ptrt" and "ftrt" are TensorRT's, "vtrt" is TensorRT-RTX's.
PLAN_MAGIC, RTX_PLAN_MAGIC = b"trt", b"vtrt"
MAX_HEADER_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineFile:
    """An engine file that was read.

    Attributes:
        path: The file.
        metadata: Ultralytics' keys; empty for a bare plan.
        passport: Ours, or None for engines of others.
        plan: What TensorRT deserializes.
        backend: "tensorrt" or "tensorrt_rtx", by the passport or by the plan's first bytes.
    """

    path: Path
    metadata: Mapping[str, Any]
    passport: Passport | None
    plan: bytes = dataclasses.field(repr=False)
    backend: str

    def info(self, *, task: str | None = None, names: Mapping[int, str] | None = None) -> ModelInfo:
        """The model's description.

        Args:
            task: Overrides the file's; a bare plan needs it.
            names: Class names, where the file has none.

        Raises:
            EngineError: The task is unknown, or the metadata does not parse.
        """
        known = dict(self.metadata)
        if task is not None:
            known["task"] = task
        if names is not None:
            known["names"] = dict(names)
        if "task" not in known:
            raise EngineError(
                f"open {self.path}", "it is a bare plan and tells no task", "pass task=, such as task='detect'"
            )
        known.setdefault("names", {})
        try:
            return ModelInfo.from_metadata(known)
        except (KeyError, ValueError, TypeError) as error:
            raise EngineError(
                f"open {self.path}", f"its metadata does not parse ({error})", "export the model again"
            ) from error


def write_engine(
    path: str | Path,
    plan: bytes,
    metadata: Mapping[str, Any] | ModelInfo,
    passport: Passport | None,
    *,
    overwrite: bool = True,
) -> Path:
    """Write an engine file, whole or not at all.

    Args:
        path: The file.
        plan: From `BuildResult`.
        metadata: Ultralytics' keys (`ModelInfo.to_metadata`), or a card.
        passport: Where it comes from; None writes a file as Ultralytics does.
        overwrite: Replace the file if it exists.

    Raises:
        OutputError: The file can't be written, or exists.
    """
    header = dict(metadata.to_metadata() if isinstance(metadata, ModelInfo) else metadata)
    if passport is not None:
        header[METADATA_KEY] = {**header.get(METADATA_KEY, {}), **passport.to_dict()}
        if passport.dla is not None:
            # Ultralytics' loader picks the core by this key.
            header["dla"] = str(passport.dla)
    text = json.dumps(header, ensure_ascii=False, default=str).encode()
    with atomic_write(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(4, "little"))
        file.write(text)
        file.write(plan)
    return Path(path)


def read_engine(path: str | Path) -> EngineFile:
    """Read an engine of ours, of Ultralytics', or a bare plan, without TensorRT.

    Args:
        path: The file.

    Raises:
        EngineError: The file is missing, empty, cut short, changed, or no engine at all.
    """
    path = Path(path)
    asked = f"open {path}"
    if not path.is_file():
        raise EngineError(asked, "the file does not exist", "check the path")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        if start[1:] == PLAN_MAGIC:
            return EngineFile(
                path=path, metadata={}, passport=None, plan=start + file.read(), backend=_detect_backend(start)
            )
        metadata = _read_header(file, start, size, asked)
        plan = file.read()
    passport = None
    if METADATA_KEY in metadata and not _is_description(metadata[METADATA_KEY]):
        try:
            passport = Passport.from_dict(metadata[METADATA_KEY])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise EngineError(asked, f"its passport does not parse ({error})", "export the model again") from error
        if len(plan) != passport.plan_size:
            raise EngineError(
                asked,
                f"it is cut short: {len(plan):,} of {passport.plan_size:,} bytes of the plan are there",
                "copy it again",
            )
        if hash_parts(plan) != passport.plan_hash:
            raise EngineError(
                asked, "its plan is not the one its passport was made for", "copy it again, or export again"
            )
    elif not plan:
        raise EngineError(asked, "it is cut short: there is no plan behind the header", "copy it again")
    backend = passport.backend if passport is not None else _detect_backend(plan[:4])
    return EngineFile(path=path, metadata=metadata, passport=passport, plan=plan, backend=backend)


def strip_engine(path: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write an engine file's bare plan, as `trtexec` and Triton take it.

    Args:
        path: The engine.
        output: The plan.
        overwrite: Replace the output if it exists.

    Raises:
        EngineError: `path` is no engine.
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
    """Write a bare plan as an engine file with a description.

    Args:
        plan: A bare plan, or an engine whose header is replaced.
        output: The engine.
        info: What the model does.
        passport: Where it comes from, if known; its plan hash and size must be those of `plan`.
        overwrite: Replace the output if it exists.
        **args: Further keys of `ModelInfo.to_metadata`, such as batch=8.

    Raises:
        EngineError: `plan` is no engine.
        OutputError: The output can't be written.
    """
    return write_engine(output, read_engine(plan).plan, info.to_metadata(**args), passport, overwrite=overwrite)


def _detect_backend(mark: bytes) -> str:
    return "tensorrt_rtx" if mark == RTX_PLAN_MAGIC else "tensorrt"


def _read_header(file: BinaryIO, start: bytes, size: int, asked: str) -> dict[str, Any]:
    """The JSON behind the length that the file starts with."""
    length = int.from_bytes(start, "little")
    if len(start) < 4 or size == 0:
        raise EngineError(asked, f"it holds {size} bytes", "name an engine file")
    foreign = EngineError(
        asked, "it is no TensorRT engine", "name a .engine file that trtkit or Ultralytics wrote, or a plan"
    )
    if not 2 <= length <= MAX_HEADER_BYTES or file.read(1) != b"{":
        raise foreign
    if length > size - 4:
        raise EngineError(asked, "it is cut short inside its header", "copy it again")
    file.seek(-1, os.SEEK_CUR)
    with contextlib.suppress(ValueError):
        value = json.loads(file.read(length).decode("utf-8"))
        if isinstance(value, dict):
            return value
    raise foreign


def _is_description(value: Any) -> bool:
    """Whether a file's own key holds the model's description alone, without a passport."""
    return isinstance(value, dict) and set(value) <= DESCRIPTION_KEYS
