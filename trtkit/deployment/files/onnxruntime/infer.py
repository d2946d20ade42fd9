"""Run the model with ONNX Runtime: `python infer.py IMAGE ... [--provider cpu|cuda|tensorrt|tensorrt_rtx]`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yolo import Processor, read_image

# ONNX Runtime reports its use to its maker otherwise; it reads this at its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

HERE = Path(__file__).resolve().parent
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}


def provider_options(provider: str, folder: Path) -> dict[str, Any]:
    """The options of a provider for this model."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    source, (height, width) = model["input"], model["input"]["imgsz"]
    channels, name = model["preprocess"]["channels"], source["name"]
    shapes = {
        kind: f"{name}:{count}x{channels}x{height}x{width}"
        for kind, count in (("min", 1), ("opt", source["batch"] or 1), ("max", source["batch"] or 8))
    }
    if provider == "tensorrt":
        options: dict[str, Any] = {
            # The engine is built at the first run, and kept.
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder / "engines"),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(folder / "engines"),
            "trt_fp16_enable": model["precision"] != "fp32",
            "trt_int8_enable": model["precision"] == "int8",
        }
        if source["dynamic"]:
            options |= {f"trt_profile_{kind}_shapes": shape for kind, shape in shapes.items()}
        return options
    if provider == "tensorrt_rtx":
        options = {"nv_runtime_cache_path": str(folder / "engines")}
        if source["dynamic"]:
            options |= {f"nv_profile_{kind}_shapes": shape for kind, shape in shapes.items()}
        return options
    if provider == "cuda":
        return {"cudnn_conv_algo_search": "EXHAUSTIVE", "do_copy_in_default_stream": True}
    return {}


def session_options(provider: str, model: dict[str, Any]) -> ort.SessionOptions:
    """The options of a session for this model."""
    options = ort.SessionOptions()
    if provider == "cpu" and model["precision"] == "int8":
        # The graph runs as written: quantize, dequantize, float convolution. The integer kernels that ONNX Runtime
        # would fuse it into saturate in 16 bits on processors without VNNI, and its last optimization level reorders
        # sums, which moves values across quantization steps.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def open_model(folder: Path, provider: str = "cpu") -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function from input to outputs by name."""
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise SystemExit(
            f"this ONNX Runtime {ort.__version__} has no {wanted}; it has {', '.join(ort.get_available_providers())}"
        )
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    providers: list[Any] = [(wanted, provider_options(provider, folder))]
    if provider != "cpu":
        providers.append("CPUExecutionProvider")
    session = ort.InferenceSession(str(folder / model["file"]["name"]), session_options(provider, model), providers)
    if session.get_providers()[0] != wanted:
        raise SystemExit(f"{wanted} did not start; ONNX Runtime fell back to {session.get_providers()[0]}")
    entry = session.get_inputs()[0]
    dtype = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(entry.type, np.float32)
    names = [output.name for output in session.get_outputs()]

    def run(values: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {entry.name: values.astype(dtype, copy=False)}), strict=True))

    return run


def open_predictor(folder: Path) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from images (BGR uint8) to their detections."""
    processor, model = Processor(folder), open_model(folder)
    return lambda images: processor.predict(images, model)


def main() -> None:
    """Print the detections on the images named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--conf", type=float, default=None, help="minimum score")
    arguments = parser.parse_args()
    processor, model = Processor(HERE), open_model(HERE, arguments.provider)
    limits = {} if arguments.conf is None else {"conf": arguments.conf}
    images = [read_image(path) for path in arguments.images]
    for path, found in zip(arguments.images, processor.predict(images, model, **limits), strict=True):
        print(path)
        print(processor.describe(found))


if __name__ == "__main__":
    main()
