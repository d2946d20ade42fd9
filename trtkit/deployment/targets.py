"""The package's own deployment targets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trtkit.backends.registry import get_title
from trtkit.deployment.bundle import FILES, Bundle
from trtkit.deployment.target import Target, register_target

__all__ = ["write_onnxruntime", "write_python"]


def write_onnxruntime(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write a session with options for ONNX Runtime's CPU, CUDA, TensorRT and TensorRT-RTX providers."""
    shutil.copyfile(FILES / "onnxruntime" / "infer.py", folder / "infer.py")
    return (
        "Needs `pip install onnxruntime numpy opencv-python-headless` (or `onnxruntime-gpu`; Pillow instead of OpenCV "
        "does too).",
        "",
        "`python infer.py IMAGE --provider tensorrt` builds an engine at the first run and keeps it in `engines/`; the "
        "other providers are `cpu`, `cuda` and `tensorrt_rtx`.",
    )


def write_python(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write a runner with TensorRT and NumPy alone."""
    shutil.copyfile(FILES / "python" / "infer.py", folder / "infer.py")
    passport = bundle.passport
    title = get_title(passport.backend) if passport else "TensorRT"
    needs = f" {passport.tensorrt} and a GPU of compute capability {passport.sm}" if passport else " and a GPU"
    return (f"Needs {title}{needs}, NumPy, and OpenCV or Pillow to read images.",)


register_target(Target(name="onnxruntime", formats=("onnx",), write=write_onnxruntime))
register_target(Target(name="python", formats=("engine",), write=write_python))
