"""Options that each machine offers, and the reasons of those it does not."""

from __future__ import annotations

import sys

import machines
import pytest

from trtkit import backends
from trtkit.backends import requirements
from trtkit.backends.capabilities import Capabilities
from trtkit.backends.devices import Gpu
from trtkit.widgets.ui.controls import Option
from trtkit.widgets.wizard.options import (
    Machine,
    device_label,
    device_options,
    inspect_machine,
    nms_option,
    precision_options,
    target_options,
)

# The function of that name hides the module in the package.
capabilities = sys.modules["trtkit.backends.capabilities"]


def available(options: tuple[Option, ...]) -> list[str]:
    return [option.value for option in options if option.available]


def reason(options: tuple[Option, ...], value: str) -> str:
    return next(option.reason for option in options if option.value == value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bare", ["onnx"]),
        ("cross", ["best", "tensorrt_rtx", "onnx"]),
        ("old", ["best", "tensorrt", "onnx"]),
        ("new", ["best", "tensorrt", "tensorrt_rtx", "onnx"]),
    ],
)
def test_available_targets(name: str, expected: list[str]) -> None:
    options = target_options(machines.ALL[name])
    assert [option.value for option in options] == ["best", "tensorrt", "tensorrt_rtx", "onnx"]
    assert available(options) == expected
    # An unavailable target states how to install its backend.
    assert all(option.description for option in options)
    assert all("pip install" in option.reason for option in options if not option.available)


def test_the_best_engine_states_builder_and_device() -> None:
    assert (
        target_options(machines.CROSS)[0].description == "TensorRT-RTX 1.7.1, for sm89: GeForce RTX 40 series, L4, L40."
    )
    assert target_options(machines.OLD)[0].description == "TensorRT 8.6.0, for NVIDIA H100."


@pytest.mark.parametrize("name", list(machines.ALL))
@pytest.mark.parametrize("target", ["best", "tensorrt", "tensorrt_rtx", "onnx"])
def test_precisions_in_the_graph_are_always_available(name: str, target: str) -> None:
    assert available(precision_options(target, machines.ALL[name]))[:3] == ["fp32", "fp16", "int8"]


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("old", "tensorrt", ""),
        ("old", "best", ""),
        ("old", "onnx", "no builder calibrates"),
        ("new", "tensorrt", "TensorRT 11.4.0 has no calibrator"),
        ("cross", "best", "TensorRT-RTX 1.7.1 has no calibrator"),
        ("cross", "tensorrt", "not installed"),
    ],
)
def test_tensorrt_s_own_calibrator(name: str, target: str, why: str) -> None:
    stated = reason(precision_options(target, machines.ALL[name]), "implicit")
    assert why in stated
    assert bool(why) == bool(stated)


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("cross", "best", [None, "sm75", "sm86", "sm89"]),
        ("cross", "tensorrt_rtx", ["sm75", "sm86", "sm89", None]),
        ("old", "tensorrt", [None, 1]),
        ("new", "tensorrt_rtx", [None, "sm75", "sm86", "sm89"]),
        ("new", "onnx", [None]),
    ],
)
def test_devices_of_a_target(name: str, target: str, expected: list[object]) -> None:
    assert [device for _, device in device_options(target, machines.ALL[name])] == expected


def test_the_selected_device_is_listed() -> None:
    assert [value for _, value in device_options("tensorrt", machines.OLD, "dla:0")] == [None, 1, "dla:0"]
    assert [value for _, value in device_options("tensorrt", machines.OLD, "nonsense")][-1] == "nonsense"


@pytest.mark.parametrize(
    ("device", "machine", "label"),
    [
        (None, machines.OLD, "this machine's NVIDIA H100"),
        (None, machines.CROSS, "sm89: GeForce RTX 40 series, L4, L40"),
        (1, machines.OLD, "GPU 1: NVIDIA T4"),
        ("sm86", machines.CROSS, "sm86: GeForce RTX 30 series, A10, A40"),
        ("sm99", machines.CROSS, "sm99"),
        ("dla:0", machines.OLD, "dla:0"),
        ("?", machines.OLD, "?"),
    ],
)
def test_devices_have_product_names(device: int | str | None, machine: Machine, label: str) -> None:
    assert device_label(device, "best", machine) == label


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bare", ["no NVIDIA GPU", "TensorRT and TensorRT-RTX are missing", "ONNX Runtime 1.32.0"]),
        ("cross", ["no NVIDIA GPU", "sm75, sm86, sm89", "ONNX Runtime 1.32.0"]),
        ("old", ["NVIDIA H100 (sm90), NVIDIA T4 (sm75)", "TensorRT 8.6.0"]),
        ("new", ["TensorRT 11.4.0 and TensorRT-RTX 1.7.1"]),
    ],
)
def test_a_machine_s_summary(name: str, words: list[str]) -> None:
    summary = machines.ALL[name].summary
    assert all(word in summary for word in words), summary
    assert ("ONNX Runtime" in summary) == (name in ("bare", "cross"))


@pytest.mark.parametrize(
    ("task", "already", "why"),
    [
        (None, False, ""),
        ("detect", False, ""),
        ("obb", False, ""),
        ("classify", False, "no boxes"),
        ("detect", True, "already"),
    ],
)
def test_nms_in_the_graph(task: str | None, already: bool, why: str) -> None:
    option = nms_option(task, already)
    assert option.available == (not why)
    assert why in option.reason


H100 = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=80 * 2**30)


@pytest.mark.parametrize(
    ("gpus", "rtx", "tensorrt", "expected"),
    [
        ((), False, "", ("onnxruntime", (), [])),
        ((), True, "", ("tensorrt_rtx", ("sm89",), [])),
        ((H100,), False, "8.6.0", ("tensorrt", (), ["tensorrt"])),
        ((H100,), True, "11.4.0", ("tensorrt", ("sm89",), ["tensorrt"])),
        ((), False, "8.6.0", ("onnxruntime", (), [])),
    ],
)
def test_the_inspection_asks_every_backend(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], rtx: bool, tensorrt: str, expected: tuple[object, ...]
) -> None:
    def probe(name: str) -> Capabilities:
        absent = Capabilities(backend=name, missing="it is not installed", gpus=gpus)
        if name == "tensorrt_rtx" and rtx:
            return Capabilities(backend=name, present=True, version="1.7.1", cross_build_targets=("sm89",), gpus=gpus)
        if name == "tensorrt" and tensorrt:
            return Capabilities(
                backend=name, present=True, version=tensorrt, gpus=gpus, torch_cuda=True,
                has_int8_calibrator=tensorrt.startswith("8"),
            )  # fmt: skip
        return Capabilities(backend=name, present=True, version="1.32.0") if name == "onnxruntime" else absent

    for module in (capabilities, requirements):
        monkeypatch.setattr(module, "probe", probe)
    monkeypatch.setattr(capabilities, "find_gpus", lambda: gpus)
    machine = inspect_machine()
    best, cross, running = expected
    assert machine.best == best
    assert machine.cross_targets.get("tensorrt_rtx", ()) == cross
    assert [name for name, why in machine.run_problems.items() if not why] == running
    assert machine.gpus == tuple((gpu.name, gpu.sm) for gpu in gpus)
    assert machine.calibrators == (("tensorrt",) if tensorrt.startswith("8") else ())
    assert set(machine.titles) | set(machine.missing) == set(backends.list_backends())
    assert all("pip install" in why for why in machine.missing.values())
    if tensorrt and not gpus:
        assert "no NVIDIA driver" in reason(target_options(machine), "tensorrt")


def test_the_inspection_of_this_machine_finds_onnx_runtime() -> None:
    machine = inspect_machine()
    assert machine.titles["onnxruntime"].startswith("ONNX Runtime ")
    assert available(target_options(machine))[-1] == "onnx"
