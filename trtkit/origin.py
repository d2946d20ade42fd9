"""Where a number comes from: the model, the data, the machine, the versions and the settings behind it."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtkit.version import __version__

__all__ = ["Origin", "versions"]

PACKAGES = ("tensorrt", "tensorrt-rtx", "torch", "onnx", "onnxruntime", "onnxslim", "numpy", "opencv-python", "polars")


def versions() -> dict[str, str]:
    """Versions of trtkit, Python and the packages that shape a result, by package name; absent ones are left out."""
    found = {"trtkit": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a result was made from.

    Attributes:
        model_hash: SHA-256 of the weights and architecture, or of the file that ran.
        data_hash: SHA-256 of the pictures and labels, or None where no data was used.
        runner: The name of what ran, e.g. "ONNX Runtime 1.32.0 CPU" or "TensorRT 8.6.0 NVIDIA H100".
        versions: Package versions by name.
        machine: CPU, cores, GPU, driver and clocks as far as they are known.
        settings: Every argument that shaped the result.
        seed: The seed of whatever was random, or None.
        created: UTC time, ISO 8601.
    """

    model_hash: str
    data_hash: str | None = None
    runner: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=lambda: machine())
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Origin:
        """The inverse of `to_dict`."""
        return cls(**value)


def machine() -> dict[str, Any]:
    """This machine's processor and cores; a runner on a GPU adds the GPU's name, driver and clocks."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def processor() -> str:
    """The processor's model name where the system tells it, its architecture otherwise."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
