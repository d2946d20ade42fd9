"""Hand-made machines for the wizard."""

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
    build_problems={"tensorrt": "it is not installed", "tensorrt_rtx": "it is not installed"},
    run_problems={"tensorrt": "it is not installed", "tensorrt_rtx": "it is not installed"},
)
"""No GPU and no engine builder."""

CROSS = Machine(
    titles={"tensorrt_rtx": RTX, "onnxruntime": RUNTIME},
    missing=NO_TENSORRT,
    best="tensorrt_rtx",
    build_problems={"tensorrt": "it is not installed", "tensorrt_rtx": NO_GPU},
    run_problems={"tensorrt": "it is not installed", "tensorrt_rtx": NO_GPU},
    cross_targets={"tensorrt_rtx": ("sm75", "sm86", "sm89")},
)
"""TensorRT-RTX without a GPU."""

OLD = Machine(
    titles={"tensorrt": "TensorRT 8.6.0", "onnxruntime": RUNTIME},
    missing=NO_RTX,
    gpus=(("NVIDIA H100", "sm90"), ("NVIDIA T4", "sm75")),
    best="tensorrt",
    build_problems={"tensorrt": "", "tensorrt_rtx": "it is not installed"},
    run_problems={"tensorrt": "", "tensorrt_rtx": "it is not installed"},
    calibrators=("tensorrt",),
)
"""Two GPUs and a TensorRT with an INT8 calibrator of its own."""

NEW = Machine(
    titles={"tensorrt": "TensorRT 11.4.0", "tensorrt_rtx": RTX, "onnxruntime": RUNTIME},
    gpus=(("NVIDIA GeForce RTX 4090", "sm89"),),
    best="tensorrt",
    build_problems={"tensorrt": "", "tensorrt_rtx": ""},
    run_problems={"tensorrt": "", "tensorrt_rtx": ""},
    cross_targets={"tensorrt_rtx": ("sm75", "sm86", "sm89")},
)
"""A GPU with current TensorRT and TensorRT-RTX."""

ALL = {"bare": BARE, "cross": CROSS, "old": OLD, "new": NEW}
