"""Device names, and GPUs from a fake NVML with and without torch."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raising import raises

from trtkit.backends import devices
from trtkit.backends.devices import Device, find_gpus, parse_device
from trtkit.backends.gpu_state import THROTTLING, GpuState, watch_gpu
from trtkit.errors import RecipeError

H100 = {
    "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-5d", "capability": (9, 0), "memory": 80 * 2**30,
    "clocks": {"sm": 1980, "memory": 2619, "sm_max": 1980},
}  # fmt: skip
L4 = {
    "name": "NVIDIA L4", "uuid": "GPU-7f", "capability": (8, 9), "memory": 24 * 2**30,
    "clocks": {"sm": 210, "memory": 405, "sm_max": 2040},
}  # fmt: skip
ORIN = {"name": "Orin (nvgpu)", "uuid": "GPU-9a", "capability": (8, 7), "memory": None, "clocks": {}}


def fake_pynvml(*boards: dict[str, Any], driver: bool = True) -> Any:
    """A module with the functions of `pynvml` that trtkit calls; names and arguments are the real ones."""
    nvml: Any = types.ModuleType("pynvml")
    nvml.open = 0
    nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def supported(value: Any) -> Any:
        if value is None:
            raise NVMLError("Not Supported")
        return value

    def init() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")
        nvml.open += 1

    def shutdown() -> None:
        nvml.open -= 1

    nvml.NVMLError = NVMLError
    nvml.nvmlInit, nvml.nvmlShutdown = init, shutdown
    nvml.nvmlSystemGetDriverVersion = lambda: "580.65.06"
    nvml.nvmlDeviceGetCount = lambda: len(boards)
    nvml.nvmlDeviceGetHandleByIndex = lambda index: supported(boards[index])
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: supported(
        next((board for board in boards if board and board["uuid"] == uuid), None)
    )
    nvml.nvmlDeviceGetName = lambda board: board["name"]
    nvml.nvmlDeviceGetUUID = lambda board: board["uuid"]
    nvml.nvmlDeviceGetCudaComputeCapability = lambda board: board["capability"]
    nvml.nvmlDeviceGetMemoryInfo = lambda board: types.SimpleNamespace(total=supported(board["memory"]))
    nvml.nvmlDeviceGetClockInfo = lambda board, kind: supported(
        board["clocks"].get("sm" if kind == nvml.NVML_CLOCK_SM else "memory")
    )
    nvml.nvmlDeviceGetMaxClockInfo = lambda board, kind: supported(board["clocks"].get("sm_max"))
    nvml.NVML_TEMPERATURE_GPU = 0
    nvml.nvmlDeviceGetPowerUsage = lambda board: supported(board.get("milliwatts"))
    nvml.nvmlDeviceGetTemperature = lambda board, sensor: supported(board.get("celsius"))
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda board: supported(board.get("reasons"))
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda board: supported(board.get("millijoules"))
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda board: supported(board.get("processes"))
    return nvml


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that simulates boards of a machine whose torch has no CUDA."""

    def simulate(*boards: dict[str, Any], **settings: Any) -> Any:
        module = fake_pynvml(*boards, **settings)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        find_gpus.cache_clear()
        return module

    monkeypatch.setattr(devices, "_import_cuda_torch", lambda: None)
    monkeypatch.setattr(devices, "cuda_driver_version", lambda: "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield simulate
    find_gpus.cache_clear()


def test_gpus_of_nvml(nvml: Any) -> None:
    module = nvml(H100, ORIN)
    one, two = find_gpus()
    assert (one.index, one.name, one.sm, one.memory) == (0, "NVIDIA H100 80GB HBM3", "sm90", 80 * 2**30)
    assert (one.driver, one.cuda, one.uuid) == ("580.65.06", "13.0", "GPU-5d")
    assert one.clocks == (("sm", 1980), ("memory", 2619), ("sm_max", 1980))
    # A board that does not report memory or clocks.
    assert (two.sm, two.memory, two.clocks) == ("sm87", 0, ())
    assert module.open == 0


def test_gpus_of_one_name_are_told_apart_by_their_uuids(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA may list them in another order than NVML, and torch may leave out the prefix."""
    idle = H100 | {"uuid": "GPU-77", "clocks": {"sm": 345}}
    nvml(H100, idle)
    properties = [
        types.SimpleNamespace(name=H100["name"], major=9, minor=0, total_memory=80 * 2**30, uuid=uuid)
        for uuid in ("77", "GPU-5d")
    ]
    cuda = types.SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda index: properties[index])
    monkeypatch.setattr(devices, "_import_cuda_torch", lambda: types.SimpleNamespace(cuda=cuda))
    one, two = find_gpus()
    assert (one.index, one.uuid, one.clocks) == (0, "GPU-77", (("sm", 345),))
    assert (two.index, two.uuid, dict(two.clocks)["sm"]) == (1, "GPU-5d", 1980)
    # A torch that gives no UUID: by the name.
    find_gpus.cache_clear()
    for each in properties:
        each.uuid = ""
    assert [(gpu.uuid, gpu.driver) for gpu in find_gpus()] == [("", "580.65.06")] * 2


@pytest.mark.parametrize(
    ("status", "number", "version"),
    [(0, 12080, "12.8"), (0, 13000, "13.0"), (0, 12100, "12.10"), (1, 0, ""), (0, 0, "")],
)
def test_the_version_of_the_driver(monkeypatch: pytest.MonkeyPatch, status: int, number: int, version: str) -> None:
    def query(pointer: Any) -> int:
        pointer._obj.value = number
        return status

    monkeypatch.setattr("ctypes.CDLL", lambda name: types.SimpleNamespace(cuDriverGetVersion=query))
    assert devices.cuda_driver_version() == version


def test_the_real_pynvml_has_these_names() -> None:
    real = pytest.importorskip("pynvml")
    assert [name for name in vars(fake_pynvml()) if name.startswith(("nvml", "NVML")) and not hasattr(real, name)] == []


def test_the_state_of_a_gpu(nvml: Any) -> None:
    busy = H100 | {"milliwatts": 692_500, "celsius": 71, "reasons": 0x4 | 0x40 | 0x1 | 0x2, "processes": [1, 2, 3]}
    busy["millijoules"] = 8_250
    module = nvml(L4, busy, ORIN)
    with watch_gpu(find_gpus()[1]) as read:
        assert read() == GpuState(
            sm_mhz=1980,
            watts=692.5,
            celsius=71,
            throttling=("power cap", "temperature (hardware)"),
            other_processes=2,
            joules=8.25,
        )
        assert module.open == 1
    with watch_gpu(find_gpus()[2]) as read:
        assert read() == GpuState()
    with watch_gpu(dataclasses.replace(find_gpus()[0], uuid="GPU-of-elsewhere")) as read:
        assert read() == GpuState()
    assert module.open == 0


def test_reasons_of_throttling_are_those_of_nvml() -> None:
    real = pytest.importorskip("pynvml")
    names = {
        "SwPowerCap": "power cap", "HwSlowdown": "hardware slowdown", "SwThermalSlowdown": "temperature (software)",
        "HwThermalSlowdown": "temperature (hardware)", "HwPowerBrakeSlowdown": "power brake",
    }  # fmt: skip
    assert {getattr(real, f"nvmlClocksThrottleReason{name}"): text for name, text in names.items()} == THROTTLING


def test_a_gpu_that_is_lost_does_not_hide_the_state_of_others(nvml: Any) -> None:
    """A board fell off the bus: NVML counts it and gives no handle."""
    nvml(H100, L4)
    gone, other = find_gpus()
    module = nvml(None, L4)
    with watch_gpu(gone) as read:
        assert read() == GpuState()
    with watch_gpu(other) as read:
        assert read().sm_mhz == 210
    assert module.open == 0


def test_no_state_without_gpu_library_or_driver(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(H100)
    gpu = find_gpus()[0]
    nvml(H100, driver=False)
    for given in (None, gpu):
        with watch_gpu(given) as read:
            assert read() == GpuState()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watch_gpu(gpu) as read:
        assert read() == GpuState()


def test_no_gpu_without_library_or_driver(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(H100, driver=False)
    assert find_gpus() == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    find_gpus.cache_clear()
    assert find_gpus() == ()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]),
        ("1,0", ["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
        ("GPU-7", ["NVIDIA L4"]),
        # CUDA ignores everything from the first unknown name on.
        ("1,7,0", ["NVIDIA L4"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices(
    nvml: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    nvml(H100, L4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = find_gpus()
    assert [gpu.name for gpu in gpus] == names
    assert [gpu.index for gpu in gpus] == list(range(len(names)))


def test_torch_gives_the_order_and_nvml_driver_and_clocks(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(L4, H100)
    properties = types.SimpleNamespace(name=H100["name"], major=9, minor=0, total_memory=79 * 2**30, uuid="5d")
    cuda = types.SimpleNamespace(device_count=lambda: 1, get_device_properties=lambda index: properties)
    monkeypatch.setattr(devices, "_import_cuda_torch", lambda: types.SimpleNamespace(cuda=cuda))
    (gpu,) = find_gpus()
    assert (gpu.index, gpu.uuid, gpu.memory, gpu.driver) == (0, "GPU-5d", 79 * 2**30, "580.65.06")
    assert dict(gpu.clocks)["memory"] == 2619


def test_unknown_device_name() -> None:
    with raises(RecipeError, "argument-invalid", name="device", value="gpu0"):
        parse_device("gpu0")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        (None, Device(kind="any")),
        (1, Device(kind="cuda", index=1)),
        ("0", Device(kind="cuda")),
        ("cuda", Device(kind="cuda")),
        ("CUDA:2", Device(kind="cuda", index=2)),
        ("dla:1", Device(kind="dla", index=1)),
        ("cpu", Device(kind="cpu")),
        ("sm_120", Device(kind="sm", sm="sm120")),
    ],
)
def test_device_names(name: Any, device: Device) -> None:
    assert parse_device(name) == device
    assert device.gpu == (device.index if device.kind == "cuda" else 0)
