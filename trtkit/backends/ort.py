"""ONNX Runtime on the CPU: runs every graph anywhere, so it judges accuracy where there is no GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtkit.backends.base import Runner
from trtkit.errors import CapabilityError, EngineError
from trtkit.graph.fp16 import emulate_fp16
from trtkit.models.onnx_model import from_proto, read_onnx

__all__ = ["OrtRunner", "detect_precision"]

INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OrtRunner(Runner):
    """An ONNX graph in ONNX Runtime on the CPU.

    Args:
        source: An ONNX file, or a graph in memory.
        task: The task, where the file's metadata does not say.
        names: Class names, where the metadata does not say.
        threads: Threads of one run; None takes every core this process may use.

    Raises:
        OnnxError: The file is missing, is no ONNX graph, or tells no task and none was given.
        EngineError: ONNX Runtime refuses the graph.
    """

    engine = False
    passport = None

    def __init__(
        self,
        source: str | Path | onnx.ModelProto,
        *,
        task: str | None = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        path: Path | None = None
        if isinstance(source, onnx.ModelProto):
            model = from_proto(source, task=task, names=names)
        else:
            path = Path(source)
            model = read_onnx(path, task=task, names=names)
        proto = model.proto
        assert proto is not None
        told = model.notes.get("trtkit", {})
        self.path = path
        self.info = model.info
        self.imgsz = model.imgsz
        self.hash = str(told.get("model_hash") or model.hash)
        self.precision = str(told.get("precision") or detect_precision(proto))
        self.session, version = _create_session(proto, path, threads=threads)
        self.name = f"ONNX Runtime {version} CPU"
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.input_name = next(iter(self.inputs))
        open_sides = [not isinstance(side, int) for side in self.inputs[self.input_name].shape]
        self.fixed_batch: int | None = None if open_sides[0] else self.inputs[self.input_name].shape[0]
        self.batch = self.fixed_batch
        self.dynamic = any(open_sides)
        self._lock = threading.Lock()

    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch; see `Runner.infer`.

        Raises:
            EngineError: The batch or the size does not fit the graph, or the runner is closed.
        """
        if self.session is None:
            raise EngineError(f"run {self.name}", "the runner is closed", "open the model again")
        given = dict(feeds) if isinstance(feeds, Mapping) else {self.input_name: feeds}
        unknown = sorted(set(given) ^ set(self.inputs))
        if unknown:
            raise EngineError(
                f"run {self.name} with inputs {sorted(given)}",
                f"the graph takes {sorted(self.inputs)}",
                "feed exactly these",
            )
        images = len(given[self.input_name])
        self.check_batch(images)
        ready = {name: self._prepare_input(name, value) for name, value in given.items()}
        try:
            values = self.session.run(self.outputs, ready)
        except Exception as error:
            # ONNX Runtime raises its own family of exceptions, unrelated to one another, for any misfit.
            raise EngineError(
                f"run {self.name} on {given[self.input_name].shape}",
                _first_line(error),
                "feed the shape the graph takes",
            ) from error
        results = {}
        for name, value in zip(self.outputs, values, strict=True):
            rows = value[:images] if self.fixed_batch is not None and len(value) == self.fixed_batch else value
            results[name] = np.asarray(rows, dtype=np.float32)
        return results

    def close(self) -> None:
        """Free the session; closing twice is fine."""
        with self._lock:
            self.session = None

    def _prepare_input(self, name: str, value: np.ndarray) -> np.ndarray:
        """The input in the graph's type, padded with zeros to the batch of a static graph."""
        wanted = INPUT_TYPES.get(self.inputs[name].type, np.float32)
        value = np.ascontiguousarray(value, dtype=wanted)
        missing = (self.fixed_batch or 0) - len(value)
        if missing > 0:
            value = np.concatenate([value, np.zeros((missing, *value.shape[1:]), dtype=value.dtype)])
        return value


def detect_precision(proto: onnx.ModelProto) -> str:
    """The precision a graph is written in, judged by its nodes and weights: "fp32", "fp16" or "int8"."""
    if _has_qdq(proto):
        return "int8"
    halves = sum(
        np.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16
    )
    floats = sum(
        np.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    )
    return "fp16" if halves > floats else "fp32"


def _has_qdq(proto: onnx.ModelProto) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node)


def _create_session(proto: onnx.ModelProto, path: Path | None, *, threads: int | None) -> tuple[Any, str]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise CapabilityError("run an ONNX graph", "onnxruntime is not installed", "pip install onnxruntime") from error
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if _has_qdq(proto):
        # A Q/DQ graph is run by its own arithmetic: quantize, dequantize, float convolution. The integer kernels that
        # ONNX Runtime would fuse it into saturate in 16 bits on processors without VNNI (u8 x s8 on AVX2), and its
        # last optimization level reorders sums (NCHWc), which moves values across rounding steps. Measured on yolo11n
        # (2 cores, 640 px): these settings equal the unoptimized graph bit for bit at 71 ms; fused 73 ms; the
        # "session.x64quantprecision" way 73-144 ms; the full level without fusing moved scores by up to 0.10.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    exact = emulate_fp16(proto)
    try:
        # A path lets ONNX Runtime find weights stored beside the graph.
        model = str(path) if path is not None and exact is proto else exact.SerializeToString()
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), ort.__version__
    except Exception as error:
        # ONNX Runtime raises its own family of exceptions, unrelated to one another.
        raise EngineError(
            f"open {path or 'an ONNX graph'}",
            f"ONNX Runtime refuses it ({_first_line(error)})",
            "check it with onnx.checker",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
