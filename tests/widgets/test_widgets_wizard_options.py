"""What can be chosen on which machine, and why the rest can't."""

from __future__ import annotations

import sys

import machines
import pytest

from trtkit import backends
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


def possible(choices: tuple[Option, ...]) -> list[str]:
    return [choice.value for choice in choices if choice.possible]


def reason(choices: tuple[Option, ...], value: str) -> str:
    return next(choice.reason for choice in choices if choice.value == value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bare", ["onnx"]),
        ("cross", ["best", "tensorrt_rtx", "onnx"]),
        ("old", ["best", "tensorrt", "onnx"]),
        ("new", ["best", "tensorrt", "tensorrt_rtx", "onnx"]),
    ],
)
def test_targets_that_can_be_chosen(name: str, expected: list[str]) -> None:
    found = target_options(machines.ALL[name])
    assert [choice.value for choice in found] == ["best", "tensorrt", "tensorrt_rtx", "onnx"]
    assert possible(found) == expected
    # What can't be chosen says what brings it; what can says what it is.
    assert all(choice.told for choice in found)
    assert all("pip install" in choice.reason for choice in found if not choice.possible)


def test_the_best_engine_is_named_with_what_it_is_for() -> None:
    assert target_options(machines.CROSS)[0].told == "TensorRT-RTX 1.7.1, for sm89: GeForce RTX 40 series, L4, L40."
    assert target_options(machines.OLD)[0].told == "TensorRT 8.6.0, for NVIDIA H100."


@pytest.mark.parametrize("name", list(machines.ALL))
@pytest.mark.parametrize("target", ["best", "tensorrt", "tensorrt_rtx", "onnx"])
def test_precisions_of_the_graph_go_everywhere(name: str, target: str) -> None:
    assert possible(precision_options(target, machines.ALL[name]))[:3] == ["fp32", "fp16", "int8"]


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("old", "tensorrt", ""),
        ("old", "best", ""),
        ("old", "onnx", "an ONNX file has no builder that could calibrate"),
        ("new", "tensorrt", "TensorRT 11.4.0 has no calibrator of its own (TensorRT up to 10 has)"),
        ("cross", "best", "TensorRT-RTX 1.7.1 has no calibrator of its own (TensorRT up to 10 has)"),
        ("cross", "tensorrt", "TensorRT up to 10 has it, and there is none here"),
    ],
)
def test_tensorrt_s_own_calibrator(name: str, target: str, why: str) -> None:
    assert reason(precision_options(target, machines.ALL[name]), "implicit") == why


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


def test_a_device_that_a_recipe_asks_for_is_among_them() -> None:
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
def test_devices_have_names_that_people_know(device: int | str | None, machine: Machine, label: str) -> None:
    assert device_label(device, "best", machine) == label


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bare", ["no NVIDIA GPU", "builds no engines", "ONNX Runtime 1.32.0 runs the same graphs"]),
        ("cross", ["no NVIDIA GPU", "builds engines here for sm75, sm86, sm89", "Engines don't run here"]),
        ("old", ["NVIDIA H100 (sm90), NVIDIA T4 (sm75)", "TensorRT 8.6.0 build engines for it"]),
        ("new", ["TensorRT 11.4.0 and TensorRT-RTX 1.7.1 build engines for it"]),
    ],
)
def test_a_machine_says_what_it_can_do(name: str, words: list[str]) -> None:
    told = machines.ALL[name].told
    assert all(word in told for word in words), told
    assert ("don't run here" in told) == (name in ("bare", "cross"))


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
def test_suppression(task: str | None, already: bool, why: str) -> None:
    found = nms_option(task, already)
    assert found.possible == (not why)
    assert why in found.reason


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
def test_looking_asks_the_backends(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], rtx: bool, tensorrt: str, expected: tuple[object, ...]
) -> None:
    def describe(name: str) -> Capabilities:
        absent = Capabilities(backend=name, missing="it is not installed", gpus=gpus)
        if name == "tensorrt_rtx" and rtx:
            return Capabilities(backend=name, present=True, version="1.7.1", cross_build_targets=("sm89",), gpus=gpus)
        if name == "tensorrt" and tensorrt:
            return Capabilities(
                backend=name, present=True, version=tensorrt, gpus=gpus, torch_cuda=True,
                has_int8_calibrator=tensorrt.startswith("8"),
            )  # fmt: skip
        return Capabilities(backend=name, present=True, version="1.32.0") if name == "onnxruntime" else absent

    monkeypatch.setattr(capabilities, "probe", describe)
    monkeypatch.setattr(capabilities, "find_gpus", lambda: gpus)
    found = inspect_machine()
    best, cross, running = expected
    assert found.best == best
    assert found.cross.get("tensorrt_rtx", ()) == cross
    assert [name for name, why in found.runs.items() if not why] == running
    assert found.gpus == tuple((gpu.name, gpu.sm) for gpu in gpus)
    assert found.calibrates == (("tensorrt",) if tensorrt.startswith("8") else ())
    assert set(found.titles) | set(found.missing) == set(backends.list_backends())
    assert all("pip install" in why for why in found.missing.values())
    if tensorrt and not gpus:
        assert "no NVIDIA driver" in reason(target_options(found), "tensorrt")


def test_looking_at_this_machine_finds_onnx_runtime() -> None:
    found = inspect_machine()
    assert found.titles["onnxruntime"].startswith("ONNX Runtime ")
    assert possible(target_options(found))[-1] == "onnx"
