"""Where an engine runs: its passport against a machine, this one or one that is only named."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from trtkit.backends.capabilities import Capabilities, same_release
from trtkit.backends.devices import Device, Gpu, is_ampere_plus
from trtkit.backends.engine_file import EngineFile, Passport
from trtkit.backends.registry import get_title
from trtkit.errors import EngineError, RecipeError
from trtkit.files import hash_parts

__all__ = [
    "Mismatch",
    "check_compatibility",
    "check_contents",
    "describe_machine_elsewhere",
    "find_capability",
    "is_trusted",
    "trust_plan",
]

NEXT_MAJOR = {8: 10, 9: 10, 10: 11}
"""The newest TensorRT that runs a version-compatible engine of an older one (same page); a later one: its own."""

GPUS = {
    "sm53": ("jetson nano", "jetson tx1"),
    "sm61": ("gtx 10", "p4", "p40"),
    "sm62": ("jetson tx2",),
    "sm70": ("v100",),
    "sm72": ("xavier",),
    "sm75": ("t4", "t1000", "rtx 20", "gtx 16", "quadro rtx", "titan rtx"),
    "sm80": ("a100", "a30", "a800"),
    "sm86": (
        *("a2", "a10", "a10g", "a16", "a40", "rtx a", "rtx 30", "rtx 2050"),
        *("a1000", "a3000", "a4000", "a4500", "a5000", "a5500", "a6000"),
    ),
    "sm87": ("orin",),
    "sm89": ("l4", "l20", "l40", "l40s", "rtx 40", "ada"),
    "sm90": ("h20", "h100", "h200", "h800", "gh200"),
    "sm100": ("b100", "b200", "gb200"),
    "sm103": ("b300", "gb300"),
    "sm110": ("thor",),
    "sm120": ("rtx 50", "rtx pro"),
    "sm121": ("gb10", "dgx spark"),
}
"""Words in GPUs' names by compute capability (developer.nvidia.com/cuda-gpus); "rtx 30" stands for 3050 to 3090. An
"RTX 4000" is of Turing as a Quadro and of Ada as an Ada Generation: alone it is neither."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Why an engine does not run on a machine.

    Attributes:
        code: "engine-backend-mismatch", "engine-version-mismatch" or "engine-gpu-mismatch".
        found: What differs.
        do: What to do about it.
    """

    code: str
    found: str
    do: str

    def __str__(self) -> str:
        return f"{self.found}; {self.do}."

    def error(self, asked: str, path: str | Path) -> EngineError:
        """The error of what it prevents.

        Args:
            asked: Such as "open yolo11n.engine".
            path: The engine.
        """
        return EngineError(asked, self.found, self.do, code=self.code, path=path)


def check_compatibility(
    passport: Passport, capabilities: Capabilities, device: Device | None = None
) -> Mismatch | None:
    """Compare an engine's passport with a machine.

    Args:
        passport: The engine's.
        capabilities: Of the backend that is to run it: this machine's from `probe`, or another's from
            `describe_machine_elsewhere`.
        device: The device that is to run it; None takes the first GPU.

    Returns:
        What differs and what to do, or None where the engine runs. Another GPU of the same compute capability runs it;
        `export(compatibility=)` widens that.
    """
    again = "export the model again on the machine that runs it"
    title = get_title(passport.backend)
    built = f"it was built by {title} {passport.tensorrt} for {passport.gpu or passport.sm}"
    if passport.backend != capabilities.backend:
        return Mismatch(
            code="engine-backend-mismatch",
            found=f"{built}, not for {get_title(capabilities.backend)}",
            do=f"open it with backend={passport.backend!r}, or {again}",
        )
    if not _runs_on_version(passport, capabilities.version):
        later = ", with compatibility='version' for later versions too" if passport.backend == "tensorrt" else ""
        return Mismatch(
            code="engine-version-mismatch",
            found=f"{built}, and the machine has {title} {capabilities.version}",
            do=f"install {title} {passport.tensorrt}, or {again}{later}",
        )
    index = device.gpu if device is not None else 0
    if index < len(capabilities.gpus) and not _runs_on_gpu(passport, capabilities.gpus[index].sm):
        gpu = capabilities.gpus[index]
        could = is_ampere_plus(gpu.sm) and is_ampere_plus(passport.sm)
        return Mismatch(
            code="engine-gpu-mismatch",
            found=f"{built} ({passport.sm}), and the GPU is {gpu.name} ({gpu.sm})",
            do=f"{again}{', or with compatibility=' + repr('ampere_plus') if could else ''}",
        )
    return None


def describe_machine_elsewhere(
    passport: Passport, *, gpu: str | None = None, tensorrt: str | None = None
) -> Capabilities:
    """A machine that is only named, for `check_compatibility`.

    Args:
        passport: The engine's: what is not named is taken as the engine needs it.
        gpu: "sm86", "8.6", or a GPU's name such as "RTX 3090", "T4" or "Jetson Orin".
        tensorrt: The version there, such as "10.3.0".

    Raises:
        RecipeError: The GPU is unknown, or the version is none.
    """
    if tensorrt is not None and re.fullmatch(r"\d+(\.\d+)*", tensorrt) is None:
        raise RecipeError(
            f"check for TensorRT {tensorrt!r}",
            "it is no version",
            "pass one such as 10.3.0",
            code="engine-check-version",
            value=tensorrt,
        )
    sm = passport.sm if gpu is None else find_capability(gpu)
    named = Gpu(index=0, name=gpu or passport.gpu or sm, sm=sm, memory=0)
    return Capabilities(
        backend=passport.backend, present=True, version=tensorrt or passport.tensorrt, gpus=(named,), torch_cuda=True
    )


def find_capability(gpu: str) -> str:
    """The compute capability of a GPU, such as "sm86".

    Args:
        gpu: "sm86", "8.6", or a name such as "NVIDIA GeForce RTX 3090".

    Raises:
        RecipeError: No such GPU is known here.
    """
    text = gpu.strip().lower()
    match = re.fullmatch(r"sm_?(\d{1,2})(\d)|(\d{1,2})\.(\d)", text)
    if match is not None:
        return f"sm{match[1] or match[3]}{match[2] or match[4]}"
    for sm, words in reversed(GPUS.items()):
        # "a10" must not be found in "a100", nor "rtx 50" in "rtx 5000", but "rtx 30" in "rtx 3090".
        if any(re.search(rf"\b{word}(?:[1-9]0)?\b" if word[-1] == "0" else rf"\b{word}", text) for word in words):
            return sm
    raise RecipeError(
        f"check for the GPU {gpu!r}",
        "its compute capability is not known here",
        "pass the compute capability, such as sm86 (developer.nvidia.com/cuda-gpus lists them)",
        code="engine-check-gpu",
        value=gpu,
    )


def check_contents(file: EngineFile, asked: str, *, needs_weights: bool = True) -> None:
    """Check that an engine has what a run needs, and brings no code that nobody trusts.

    Args:
        file: The engine.
        asked: What was asked for, for the errors.
        needs_weights: Whether a weight-stripped engine won't do.

    Raises:
        EngineError: It does not, or it does.
    """
    passport = file.passport
    if passport is None:
        return
    if needs_weights and passport.weights == "stripped":
        raise EngineError(
            asked,
            "it was exported without weights",
            "put them in: trtkit engine refit ENGINE ONNX OUTPUT, or backends.refit_engine",
            code="engine-weights-stripped",
            path=file.path,
        )
    if passport.compatibility == "version" and not is_trusted(file.plan):
        raise EngineError(
            asked,
            "it brings a TensorRT runtime of its own, whose code would run in this process",
            "set the environment variable TRTKIT_HOST_CODE=1 if you trust the file",
            code="engine-host-code",
            path=file.path,
        )


_TRUSTED: set[str] = set()


def trust_plan(plan: bytes) -> None:
    """Let a plan that this process built bring its own runtime."""
    _TRUSTED.add(hash_parts(plan))


def is_trusted(plan: bytes) -> bool:
    """Whether a plan may run host code: this process built it, or TRTKIT_HOST_CODE=1 is set."""
    return os.environ.get("TRTKIT_HOST_CODE") == "1" or hash_parts(plan) in _TRUSTED


def _runs_on_version(passport: Passport, version: str) -> bool:
    if same_release(passport.tensorrt, version):
        return True
    if passport.compatibility != "version":
        return False
    built, there = (tuple(int(part) for part in re.findall(r"\d+", text)) for text in (passport.tensorrt, version))
    return bool(built and there) and built <= there and there[0] <= NEXT_MAJOR.get(built[0], built[0])


def _runs_on_gpu(passport: Passport, sm: str) -> bool:
    if sm == passport.sm:
        return True
    return passport.compatibility == "ampere_plus" and is_ampere_plus(sm)
