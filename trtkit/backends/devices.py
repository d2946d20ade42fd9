"""The NVIDIA GPUs of this machine, and the names devices go by."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from trtkit.errors import RecipeError

__all__ = ["Device", "Gpu", "cuda_driver_version", "find_gpus", "parse_device", "query_free_memory"]

FIELDS = "index,uuid,name,compute_cap,memory.total,driver_version,clocks.sm,clocks.mem,clocks.max.sm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        index: As CUDA counts the visible ones.
        name: Such as "NVIDIA H100 80GB HBM3".
        sm: Compute capability, such as "sm90".
        memory: Bytes in all.
        driver: The driver's version, "" where unknown.
        cuda: The newest CUDA that the driver runs, such as "13.0", "" where unknown.
        clocks: MHz by name ("sm", "memory", "sm_max") when looked at; empty where unknown.
        uuid: The driver's name of the very device, "" where unknown.
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
        """GiB in all."""
        return self.memory / 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What a device name asks for.

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
        """The GPU it runs on: a DLA core shares the board's only one."""
        return self.index if self.kind == "cuda" else 0


def parse_device(device: str | int | None) -> Device:
    """Read a device name.

    Args:
        device: None, 0, "0", "cuda", "cuda:1", "cpu", "dla:0" or "sm89".

    Raises:
        RecipeError: No such name.
    """
    text = "" if device is None else str(device).strip().lower()
    if text == "":
        return Device(kind="any")
    if text == "cpu":
        return Device(kind="cpu")
    if match := re.fullmatch(r"sm_?(\d{2,3})", text):
        return Device(kind="sm", sm=f"sm{match[1]}")
    if match := re.fullmatch(r"(cuda|dla)(?::(\d+))?", text):
        return Device(kind=match[1], index=int(match[2] or 0))
    if text.isdigit():
        return Device(kind="cuda", index=int(text))
    raise RecipeError(f"device={device!r}", "no such device name", "pass 0, 'cuda:1', 'cpu', 'dla:0' or 'sm89'")


@functools.cache
def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process, looked at once; empty with no driver or no GPU."""
    listed = _by_driver()
    shown = _by_torch()
    if shown is None:
        return _visible(listed)
    by_uuid = {gpu.uuid: gpu for gpu in listed if gpu.uuid}
    merged: list[Gpu] = []
    for gpu in shown:
        other = by_uuid.get(gpu.uuid) or next((other for other in listed if other.name == gpu.name), None)
        driver, clocks = (other.driver, other.clocks) if other is not None else (_kernel_driver(), ())
        merged.append(dataclasses.replace(gpu, driver=driver, clocks=clocks))
    return tuple(merged)


def query_free_memory(index: int) -> int | None:
    """Bytes free on a GPU right now, or None where nothing can tell."""
    torch = _cuda_torch()
    return None if torch is None else int(torch.cuda.mem_get_info(index)[0])


def cuda_driver_version() -> str:
    """The newest CUDA that the installed driver runs, such as "13.0"; "" with no driver."""
    import ctypes

    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    version = ctypes.c_int(0)
    # It needs no cuInit, so it neither takes memory nor troubles a later fork.
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value <= 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cuda_torch() -> Any:
    """Torch where it is installed with CUDA and sees a GPU, else None."""
    # With no driver, importing torch would only cost seconds.
    if not cuda_driver_version():
        return None
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch if torch.cuda.is_available() else None


def _by_torch() -> list[Gpu] | None:
    torch = _cuda_torch()
    if torch is None:
        return None
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        uuid = str(getattr(facts, "uuid", ""))
        found.append(
            Gpu(
                index=index,
                name=facts.name,
                sm=f"sm{facts.major}{facts.minor}",
                memory=int(facts.total_memory),
                cuda=cuda_driver_version(),
                uuid=uuid if uuid.startswith("GPU-") or not uuid else f"GPU-{uuid}",
            )
        )
    return found


def _by_driver() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_driver_list(answer.stdout) if answer.returncode == 0 else []


def _kernel_driver() -> str:
    """The driver's version as Linux tells it, for containers without `nvidia-smi`."""
    try:
        match = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def parse_driver_list(text: str) -> list[Gpu]:
    """Read what `nvidia-smi --query-gpu --format=csv,noheader,nounits` prints for `FIELDS`.

    Args:
        text: One line for each GPU; values it does not know read "[N/A]".
    """
    found = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(FIELDS.split(",")) or not row[0].isdigit():
            continue
        index, uuid, name, capability, memory, driver, *clocks = (value.strip() for value in row)
        known = tuple(
            (label, int(value))
            for label, value in zip(("sm", "memory", "sm_max"), clocks, strict=True)
            if value.isdigit()
        )
        found.append(
            Gpu(
                index=int(index),
                name=name,
                sm=f"sm{capability.replace('.', '')}",
                memory=int(memory) * 2**20 if memory.isdigit() else 0,
                driver=driver,
                cuda=cuda_driver_version(),
                clocks=known,
                uuid=uuid,
            )
        )
    return found


def _visible(gpus: list[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, counted as CUDA counts them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(gpus)
    kept: list[Gpu] = []
    for mark in (part.strip() for part in chosen.split(",")):
        gpu = next((gpu for gpu in gpus if mark and (mark == str(gpu.index) or gpu.uuid.startswith(mark))), None)
        if gpu is None:
            break
        kept.append(dataclasses.replace(gpu, index=len(kept)))
    return tuple(kept)
