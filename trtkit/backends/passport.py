"""The passport of an engine: where it comes from, and whether it runs here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtkit.backends.gpus import Device, device_of
from trtkit.backends.surfaces import TITLES, Capabilities, same_release
from trtkit.files import hash_of
from trtkit.origin import versions

if TYPE_CHECKING:
    from trtkit.backends.base import BuildSettings, Built

__all__ = ["Mismatch", "Passport", "check"]


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
    def of(
        cls,
        built: Built,
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
        device = device_of(settings.device)
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
            plan_hash=hash_of(built.plan),
            plan_size=len(built.plan),
            build_seconds=round(built.seconds, 3),
            created=created,
            recipe=dict(recipe or {}),
            versions=versions(),
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


def check(passport: Passport, found: Capabilities, device: Device | None = None) -> Mismatch | None:
    """Compare an engine's passport with this machine.

    Args:
        passport: The engine's.
        found: What the backend that shall run it can do here.
        device: Where it shall run; None means the first GPU.

    Returns:
        What differs and what to do, or None where the engine fits. Another GPU of the same compute capability fits.
    """
    again = "export the model again on this machine"
    title = TITLES.get(passport.backend, passport.backend)
    built = f"it was built by {title} {passport.tensorrt} for {passport.gpu or passport.sm}"
    if passport.backend != found.backend:
        return Mismatch(
            found=f"{built}, not for {TITLES[found.backend]}",
            do=f"open it with backend={passport.backend!r}, or {again}",
        )
    if not same_release(passport.tensorrt, found.version):
        return Mismatch(
            found=f"{built}, and {title} {found.version} is installed",
            do=f"install {title} {passport.tensorrt}, or {again}",
        )
    index = device.gpu if device is not None else 0
    if index < len(found.gpus) and found.gpus[index].sm != passport.sm:
        gpu = found.gpus[index]
        return Mismatch(found=f"{built} ({passport.sm}), and this GPU is {gpu.name} ({gpu.sm})", do=again)
    return None
