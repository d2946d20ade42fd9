"""Machines as the wizard sees them, made by hand."""

from __future__ import annotations

from trtkit.widgets.wizard.options import Machine

RUNTIME = "ONNX Runtime 1.32.0"
RTX = "TensorRT-RTX 1.7.1"
NO_TENSORRT = {"tensorrt": "it is not installed; run pip install 'trtkit[tensorrt]'"}
NO_RTX = {"tensorrt_rtx": "it is not installed; run pip install 'trtkit[rtx]'"}
NO_GPU = "no NVIDIA driver with a GPU was found"

BARE = Machine(
    titles={"onnxruntime": RUNTIME},
    missing={**NO_TENSORRT, **NO_RTX},
    builds={"tensorrt": "it is not installed", "tensorrt_rtx": "it is not installed"},
    runs={"tensorrt": "it is not installed", "tensorrt_rtx": "it is not installed"},
)
"""Neither a GPU nor anything that builds."""

CROSS = Machine(
    titles={"tensorrt_rtx": RTX, "onnxruntime": RUNTIME},
    missing=NO_TENSORRT,
    best="tensorrt_rtx",
    builds={"tensorrt": "it is not installed", "tensorrt_rtx": NO_GPU},
    runs={"tensorrt": "it is not installed", "tensorrt_rtx": NO_GPU},
    cross={"tensorrt_rtx": ("sm75", "sm86", "sm89")},
)
"""TensorRT-RTX and no GPU."""

OLD = Machine(
    titles={"tensorrt": "TensorRT 8.6.0", "onnxruntime": RUNTIME},
    missing=NO_RTX,
    gpus=(("NVIDIA H100", "sm90"), ("NVIDIA T4", "sm75")),
    best="tensorrt",
    builds={"tensorrt": "", "tensorrt_rtx": "it is not installed"},
    runs={"tensorrt": "", "tensorrt_rtx": "it is not installed"},
    calibrates=("tensorrt",),
)
"""Two GPUs and a TensorRT that still calibrates by itself."""

NEW = Machine(
    titles={"tensorrt": "TensorRT 11.4.0", "tensorrt_rtx": RTX, "onnxruntime": RUNTIME},
    gpus=(("NVIDIA GeForce RTX 4090", "sm89"),),
    best="tensorrt",
    builds={"tensorrt": "", "tensorrt_rtx": ""},
    runs={"tensorrt": "", "tensorrt_rtx": ""},
    cross={"tensorrt_rtx": ("sm75", "sm86", "sm89")},
)
"""A GPU with everything new."""

ALL = {"bare": BARE, "cross": CROSS, "old": OLD, "new": NEW}
