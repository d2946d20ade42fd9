"""Where an engine runs, by its passport: this machine, and machines that are only named."""

from __future__ import annotations

import dataclasses

import pytest
from raising import raises

from trtkit.backends import Capabilities, Passport, check_compatibility, describe_machine_elsewhere
from trtkit.backends.compatibility import GPUS, find_capability
from trtkit.backends.devices import Device, Gpu
from trtkit.errors import RecipeError

H100 = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=2**36)
PASSPORT = Passport(backend="tensorrt", tensorrt="8.6.0", sm="sm90", gpu="NVIDIA H100")


def machine(version: str = "8.6.0", gpu: Gpu | None = H100, backend: str = "tensorrt") -> Capabilities:
    return Capabilities(backend=backend, present=True, version=version, gpus=(gpu,) if gpu else ())


def test_a_compatible_engine() -> None:
    assert check_compatibility(PASSPORT, machine()) is None
    assert check_compatibility(PASSPORT, machine(gpu=dataclasses.replace(H100, name="NVIDIA H200"))) is None
    assert check_compatibility(PASSPORT, machine(gpu=None)) is None


@pytest.mark.parametrize(
    ("capabilities", "code", "terms"),
    [
        (machine("10.13.0"), "engine-version-mismatch", ("TensorRT 10.13.0", "TensorRT 8.6.0", "NVIDIA H100")),
        (machine(backend="tensorrt_rtx"), "engine-backend-mismatch", ("TensorRT-RTX", "backend='tensorrt'")),
        (
            machine(gpu=Gpu(index=0, name="NVIDIA L4", sm="sm89", memory=1)),
            "engine-gpu-mismatch",
            ("sm90", "NVIDIA L4", "sm89"),
        ),
    ],
)
def test_an_incompatible_engine(capabilities: Capabilities, code: str, terms: tuple[str, ...]) -> None:
    mismatch = check_compatibility(PASSPORT, capabilities)
    assert mismatch is not None
    assert mismatch.code == code
    assert [term for term in terms if term not in str(mismatch)] == []


def test_the_requested_gpu_is_checked() -> None:
    two_gpus = Capabilities(
        backend="tensorrt", version="8.6.0", gpus=(H100, Gpu(index=1, name="NVIDIA L4", sm="sm89", memory=1))
    )
    assert check_compatibility(PASSPORT, two_gpus, Device(kind="cuda", index=0)) is None
    assert check_compatibility(PASSPORT, two_gpus, Device(kind="cuda", index=1)) is not None
    # That there is no such GPU is for `require_run` to say.
    assert check_compatibility(PASSPORT, two_gpus, Device(kind="cuda", index=2)) is None


@pytest.mark.parametrize(
    ("gpu", "built", "advised"), [("A100", "sm90", True), ("T4", "sm90", False), ("A100", "sm75", False)]
)
def test_hardware_compatibility_is_advised_where_it_helps(gpu: str, built: str, advised: bool) -> None:
    passport = dataclasses.replace(PASSPORT, sm=built)
    mismatch = check_compatibility(passport, describe_machine_elsewhere(passport, gpu=gpu))
    assert mismatch is not None
    assert ("ampere_plus" in mismatch.do) is advised


@pytest.mark.parametrize(
    ("compatibility", "gpu", "tensorrt", "code"),
    [
        (None, None, None, None),
        (None, "H200", None, None),
        (None, "A100", None, "engine-gpu-mismatch"),
        (None, None, "8.6.1", "engine-version-mismatch"),
        ("same_compute_capability", "H200", None, None),
        ("same_compute_capability", "L4", None, "engine-gpu-mismatch"),
        ("ampere_plus", "A100", None, None),
        ("ampere_plus", "RTX 5090", None, None),
        ("ampere_plus", "T4", None, "engine-gpu-mismatch"),
        ("ampere_plus", "Jetson AGX Orin", None, "engine-gpu-mismatch"),
        ("ampere_plus", "A100", "10.0.1", "engine-version-mismatch"),
        ("version", None, "8.6.1", None),
        ("version", None, "10.13", None),
        ("version", None, "8.5.3", "engine-version-mismatch"),
        ("version", None, "11.0", "engine-version-mismatch"),
        ("version", "A100", "10.13", "engine-gpu-mismatch"),
    ],
)
def test_another_machine(compatibility: str | None, gpu: str | None, tensorrt: str | None, code: str | None) -> None:
    passport = dataclasses.replace(PASSPORT, compatibility=compatibility)
    there = describe_machine_elsewhere(passport, gpu=gpu, tensorrt=tensorrt)
    mismatch = check_compatibility(passport, there)
    assert (mismatch.code if mismatch is not None else None) == code


def test_a_version_compatible_engine_of_the_newest_major_runs_within_it() -> None:
    passport = dataclasses.replace(PASSPORT, tensorrt="11.4.0.106", compatibility="version")
    for version, runs in (("11.5", True), ("11.4.0.106", True), ("11.3", False), ("12.0", False)):
        there = describe_machine_elsewhere(passport, tensorrt=version)
        assert (check_compatibility(passport, there) is None) is runs


@pytest.mark.parametrize(
    ("gpu", "sm"),
    [
        ("sm86", "sm86"),
        ("8.6", "sm86"),
        ("12.0", "sm120"),
        ("NVIDIA GeForce RTX 3090", "sm86"),
        ("NVIDIA A10", "sm86"),
        ("NVIDIA A100-SXM4-80GB", "sm80"),
        ("rtx a6000", "sm86"),
        ("RTX 6000 Ada Generation", "sm89"),
        ("L4", "sm89"),
        ("L40S", "sm89"),
        ("Tesla T4", "sm75"),
        ("Quadro RTX 6000", "sm75"),
        ("Jetson Orin Nano", "sm87"),
        ("GeForce GTX 1660 Ti", "sm75"),
        ("NVIDIA GH200 480GB", "sm90"),
        ("Quadro RTX 4000", "sm75"),
        ("Quadro RTX 5000", "sm75"),
        ("NVIDIA RTX 5000 Ada Generation", "sm89"),
        ("RTX 4000 Ada", "sm89"),
        ("A3000", "sm86"),
        ("NVIDIA GeForce RTX 2050", "sm86"),
        ("NVIDIA GeForce RTX 2060", "sm75"),
    ],
)
def test_capabilities_by_name(gpu: str, sm: str) -> None:
    assert find_capability(gpu) == sm


def test_every_listed_name_is_found() -> None:
    for sm, words in GPUS.items():
        for word in words:
            assert find_capability(f"NVIDIA {word}") == sm, word


@pytest.mark.parametrize("gpu", ["", "Radeon", "sm", "3090", "RTX 4000", "RTX 5000"])
def test_an_unknown_gpu(gpu: str) -> None:
    with raises(RecipeError, "engine-check-gpu", value=gpu):
        find_capability(gpu)


@pytest.mark.parametrize("tensorrt", ["", "ten", "10.x", "10.3\n"])
def test_an_unreadable_version(tensorrt: str) -> None:
    with raises(RecipeError, "engine-check-version", value=tensorrt):
        describe_machine_elsewhere(PASSPORT, tensorrt=tensorrt)
