"""What a GPU does while something is timed: clocks, power, energy, temperature, throttling and other processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from trtkit.backends.devices import Gpu

__all__ = ["THROTTLING", "GpuState", "watch_gpu"]

THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
"""NVML's reasons for clocks below those asked for that make a GPU slower than it is at rest (`nvmlClocksEventReasons`).
Idleness, clocks that an application or a display has set, and boards that boost together are none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuState:
    """A GPU at one moment; what NVML does not report is None.

    Attributes:
        sm_mhz: Clock of the multiprocessors, MHz.
        watts: Power of the board, W.
        celsius: Temperature, degrees Celsius.
        throttling: Why it is slower than its clocks asked for, as in `THROTTLING`.
        other_processes: Processes besides this one that compute on it.
        joules: Energy that the board has used since its driver was loaded, J.
    """

    sm_mhz: int | None = None
    watts: float | None = None
    celsius: int | None = None
    throttling: tuple[str, ...] = ()
    other_processes: int | None = None
    joules: float | None = None


@contextlib.contextmanager
def watch_gpu(gpu: Gpu | None) -> Iterator[Callable[[], GpuState]]:
    """Yield a function that reads the state of a GPU; where NVML does not know it, every state is empty.

    Args:
        gpu: From `find_gpus`; None for no GPU.
    """
    with contextlib.ExitStack() as stack:
        pynvml, handle = _open_nvml(gpu, stack)
        yield GpuState if handle is None else lambda: _read_state(pynvml, handle)


def _open_nvml(gpu: Gpu | None, stack: contextlib.ExitStack) -> tuple[Any, Any]:
    """NVML and the GPU's handle; None for what is not there."""
    if gpu is None:
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    # There may be no driver; and the GPU may be lost, or one that NVML does not let this user see.
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        stack.callback(pynvml.nvmlShutdown)
        # Not by its index: those of CUDA and NVML differ where a process sees some of the GPUs.
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    return pynvml, None


def _read_state(pynvml: Any, handle: Any) -> GpuState:
    def read(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except pynvml.NVMLError:
            return None

    watts = read(pynvml.nvmlDeviceGetPowerUsage)
    reasons = read(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    processes = read(pynvml.nvmlDeviceGetComputeRunningProcesses)
    millijoules = read(pynvml.nvmlDeviceGetTotalEnergyConsumption)
    return GpuState(
        sm_mhz=read(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
        watts=None if watts is None else watts / 1000,
        celsius=read(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        throttling=tuple(name for bit, name in THROTTLING.items() if reasons & bit),
        # Containers number processes otherwise, so this one is not looked for by its number.
        other_processes=None if processes is None else max(0, len(processes) - 1),
        joules=None if millijoules is None else millijoules / 1000,
    )
