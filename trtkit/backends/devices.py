"""The NVIDIA GPUs of this machine, and device names."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

from trtkit.arguments import DEVICE_NAME, check_argument

__all__ = [
    "INTEGRATED",
    "Device",
    "Gpu",
    "cuda_driver_version",
    "find_gpus",
    "is_ampere_plus",
    "parse_device",
    "query_free_memory",
]

AMPERE = 80
"""The lowest compute capability, times ten, of the Ampere architecture."""

INTEGRATED = frozenset(("sm53", "sm62", "sm72", "sm87", "sm101", "sm110"))
"""Jetson and DRIVE, which have no hardware compatibility (TensorRT documentation, "Engine Compatibility")."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        index: Its CUDA index among the visible GPUs.
        name: Such as "NVIDIA H100 80GB HBM3".
        sm: Compute capability, such as "sm90".
        memory: Total memory, bytes; 0 where unknown.
        driver: The driver's version, "" where unknown.
        cuda: The newest CUDA version the driver supports, such as "13.0", "" where unknown.
        clocks: Clocks by name ("sm", "memory", "sm_max") at the time of the query, MHz; empty where unknown.
        uuid: The GPU's UUID, "" where unknown.
    """

    index: int
    name: str
    sm: str
    memory: int
    driver: str = ""
    cuda: str = ""
    clocks: tuple[tuple[str, int], ...] = ()
    uuid: str = ""

    @property
    def memory_gib(self) -> float:
        """Total memory, GiB."""
        return self.memory / 2**30

    def visible_name(self) -> str:
        """How a child's `CUDA_VISIBLE_DEVICES` names it: by its UUID, which does not depend on the order of GPUs."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return self.uuid or (visible.split(",")[self.index].strip() if visible else str(self.index))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A parsed device name.

    Attributes:
        kind: "any" (None was given), "cpu", "cuda", "dla" or "sm".
        index: GPU for "cuda", core for "dla"; 0 otherwise.
        sm: "sm89" and the like for "sm", "" otherwise.
    """

    kind: str
    index: int = 0
    sm: str = ""

    @property
    def gpu(self) -> int:
        """The index of the GPU it runs on: a DLA core is on the board's only one."""
        return self.index if self.kind == "cuda" else 0


def parse_device(device: str | int | None) -> Device:
    """Parse a device name.

    Args:
        device: None, 0, "0", "cuda", "cuda:1", "cpu", "dla:0" or "sm89".

    Raises:
        RecipeError: No such name.
    """
    if device is None or device == "":
        return Device(kind="any")
    match = DEVICE_NAME.fullmatch(str(check_argument("run", "device", device)).lower())
    assert match is not None
    if match["sm"]:
        return Device(kind="sm", sm=f"sm{match['sm']}")
    if match["cpu"]:
        return Device(kind="cpu")
    return Device(kind=match["kind"] or "cuda", index=int(match["gpu"] or match["index"] or 0))


def is_ampere_plus(sm: str) -> bool:
    """Whether a GPU builds and runs engines of `compatibility="ampere_plus"`.

    Args:
        sm: Its compute capability, such as "sm86"; "" where unknown.
    """
    return int(re.sub(r"\D", "", sm) or 0) >= AMPERE and sm not in INTEGRATED


@functools.cache
def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process, queried once; empty without a driver or a GPU.

    Torch gives CUDA's own list and order where it is installed with CUDA; NVML adds driver and clocks, and stands in
    for torch elsewhere.
    """
    by_nvml = _query_nvml()
    by_torch = _query_torch()
    if by_torch is None:
        return _filter_visible(by_nvml)
    by_uuid = {gpu.uuid: gpu for gpu in by_nvml if gpu.uuid}
    merged: list[Gpu] = []
    for gpu in by_torch:
        same = by_uuid.get(gpu.uuid) or next((other for other in by_nvml if other.name == gpu.name), None)
        driver, clocks = (same.driver, same.clocks) if same is not None else (_kernel_driver_version(), ())
        merged.append(dataclasses.replace(gpu, driver=driver, clocks=clocks))
    return tuple(merged)


def query_free_memory(index: int) -> int | None:
    """Free memory of a GPU right now, bytes; None without CUDA in torch.

    Args:
        index: Its CUDA index.
    """
    torch = _import_cuda_torch()
    return None if torch is None else int(torch.cuda.mem_get_info(index)[0])


def cuda_driver_version() -> str:
    """The newest CUDA version the installed driver supports, such as "13.0"; "" without a driver.

    It asks libcuda, not NVML: a Jetson has a driver and may have no NVML.
    """
    import ctypes

    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    version = ctypes.c_int(0)
    # It needs no cuInit, so it neither takes GPU memory nor breaks a later fork.
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value <= 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _import_cuda_torch() -> Any:
    """Torch where it is installed with CUDA and sees a GPU, else None."""
    # Without a driver, importing torch would only cost seconds.
    if not cuda_driver_version():
        return None
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch if torch.cuda.is_available() else None


def _query_torch() -> list[Gpu] | None:
    torch = _import_cuda_torch()
    if torch is None:
        return None
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = str(getattr(properties, "uuid", ""))
        gpus.append(
            Gpu(
                index=index,
                name=properties.name,
                sm=f"sm{properties.major}{properties.minor}",
                memory=int(properties.total_memory),
                cuda=cuda_driver_version(),
                uuid=uuid if uuid.startswith("GPU-") or not uuid else f"GPU-{uuid}",
            )
        )
    return gpus


def _query_nvml() -> list[Gpu]:
    """Every GPU that NVML lists, visible or not; empty without the library or a driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver, cuda = str(pynvml.nvmlSystemGetDriverVersion()), cuda_driver_version()
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            gpus.append(
                Gpu(
                    index=index,
                    name=str(pynvml.nvmlDeviceGetName(handle)),
                    sm=f"sm{major}{minor}",
                    memory=_query_nvml_memory(pynvml, handle),
                    driver=driver,
                    cuda=cuda,
                    clocks=_query_nvml_clocks(pynvml, handle),
                    uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
                )
            )
        return gpus
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _query_nvml_memory(pynvml: Any, handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        # Boards whose memory is the host's do not report it.
        return 0


def _query_nvml_clocks(pynvml: Any, handle: Any) -> tuple[tuple[str, int], ...]:
    clocks = []
    for name, query, kind in (
        ("sm", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
        ("memory", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
        ("sm_max", pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
    ):
        try:
            clocks.append((name, int(query(handle, kind))))
        except pynvml.NVMLError:
            continue
    return tuple(clocks)


def _kernel_driver_version() -> str:
    """The driver's version as Linux states it, for containers without NVML."""
    try:
        match = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def _filter_visible(gpus: list[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, with the indices that CUDA gives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpus)
    kept: list[Gpu] = []
    for mark in (part.strip() for part in visible.split(",")):
        gpu = next((gpu for gpu in gpus if mark and (mark == str(gpu.index) or gpu.uuid.startswith(mark))), None)
        if gpu is None:
            break
        kept.append(dataclasses.replace(gpu, index=len(kept)))
    return tuple(kept)
