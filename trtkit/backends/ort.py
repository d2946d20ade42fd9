"""ONNX Runtime on the CPU: the reference runtime, which runs FP32, FP16 and Q/DQ graphs on any machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtkit.backends.capabilities import import_bindings, probe_onnxruntime
from trtkit.backends.devices import parse_device
from trtkit.backends.registry import Backend
from trtkit.backends.runner import Runner, closed_error
from trtkit.errors import CapabilityError, EngineError, RecipeError
from trtkit.graph.fp16 import emulate_fp16
from trtkit.graph.ort_session import run_qdq_as_written
from trtkit.models.model import NMS_ROWS
from trtkit.models.onnx_model import from_proto, read_onnx, refuse_damaged_graph
from trtkit.progress import available_cores

__all__ = ["ONNXRUNTIME", "OrtRunner", "detect_precision"]

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
        task: The task, where the file's metadata does not name it.
        names: Class names, where the metadata does not list them.
        threads: Intra-op threads; None takes every core this process may use.
        spinning: Whether idle threads wait actively, which is faster where no other process needs the cores.

    Attributes:
        graph_hash: SHA-256 of the graph itself; `hash` is that of the model which it was exported from, where it says.
        calibration_hash: SHA-256 of the calibration of its Q/DQ, where it says.

    Raises:
        OnnxError: The file is missing, is not an ONNX graph, or names no task and none was given.
        EngineError: ONNX Runtime rejects the graph.
        CapabilityError: ONNX Runtime is missing.
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
        spinning: bool = True,
    ) -> None:
        path: Path | None = None
        threads = threads or available_cores()
        # The number of threads is fixed: it may decide the order of sums.
        again = source if isinstance(source, onnx.ModelProto) else Path(source).absolute()
        self.opener = functools.partial(OrtRunner, again, task=task, names=names, threads=threads, spinning=False)
        if isinstance(source, onnx.ModelProto):
            model = from_proto(source, task=task, names=names)
        else:
            path = Path(source)
            model = read_onnx(path, task=task, names=names)
        proto = model.proto
        assert proto is not None
        notes = model.notes.get("trtkit", {})
        self.path = path
        self.info = model.info
        self.imgsz = model.imgsz
        self.hash = str(notes.get("model_hash") or model.hash)
        self.graph_hash = model.hash
        self.calibration_hash: str | None = notes.get("calibration_hash")
        self.precision = str(notes.get("precision") or detect_precision(proto))
        self.session, version = _create_session(proto, path, threads=threads, spinning=spinning)
        self.name = f"ONNX Runtime {version} CPU"
        with refuse_damaged_graph(f"open {path or 'an ONNX graph'}"):
            self.inputs = {value.name: value for value in self.session.get_inputs()}
            self.outputs = [value.name for value in self.session.get_outputs()]
        self.input_name = next(iter(self.inputs))
        is_open = [not isinstance(side, int) for side in self.inputs[self.input_name].shape]
        self.fixed_batch: int | None = None if is_open[0] else self.inputs[self.input_name].shape[0]
        self.batch = self.fixed_batch
        if self.batch is None and model.output_format == NMS_ROWS and "trtkit" not in model.notes:
            # Ultralytics unrolls NMS over the batch it exported with, whatever the open axis says: images after it get
            # no detections.
            self.batch = max(1, model.notes["batch"]) if "batch" in model.notes else None
        self.dynamic = any(is_open)

    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch; see `Runner.infer`.

        Raises:
            EngineError: The batch or the size does not fit the graph, or the runner is closed.
        """
        # Another thread may close the runner meanwhile.
        session = self.session
        if session is None:
            raise closed_error(f"run {self.name}")
        arrays = self._name_feeds(feeds, self.input_name, self.inputs)
        count = len(arrays[self.input_name])
        self.check_batch(count)
        ready = {name: self._prepare_input(name, value) for name, value in arrays.items()}
        try:
            values = session.run(self.outputs, ready)
        except Exception as error:
            # ONNX Runtime raises its own family of exceptions, unrelated to one another, for any mismatch.
            shape = arrays[self.input_name].shape
            raise EngineError(
                f"run {self.name} on {shape}",
                _first_line(error),
                "feed the shape of the graph's input",
                code="run-failed",
                shape=shape,
            ) from error
        results = {}
        for name, value in zip(self.outputs, values, strict=True):
            array = np.asarray(value, dtype=np.float32)
            results[name] = array[:count] if array.ndim and len(array) == self.fixed_batch else array
        return results

    def close(self) -> None:
        """Free the session; closing twice is fine."""
        self.session = None

    def _prepare_input(self, name: str, value: np.ndarray) -> np.ndarray:
        """The input in the graph's type, padded with zeros to the batch of a static graph."""
        dtype = INPUT_TYPES.get(self.inputs[name].type, np.float32)
        value = np.ascontiguousarray(value, dtype=dtype)
        missing = (self.fixed_batch or 0) - len(value)
        if missing > 0:
            value = np.concatenate([value, np.zeros((missing, *value.shape[1:]), dtype=value.dtype)])
        return value


def detect_precision(proto: onnx.ModelProto) -> str:
    """Read the precision of a graph off its nodes and weights.

    Args:
        proto: The graph.

    Returns:
        "fp32", "fp16" or "int8".
    """
    if _has_qdq(proto):
        return "int8"
    sizes = {onnx.TensorProto.FLOAT16: 0, onnx.TensorProto.FLOAT: 0}
    for tensor in proto.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    return "fp16" if sizes[onnx.TensorProto.FLOAT16] > sizes[onnx.TensorProto.FLOAT] else "fp32"


def _has_qdq(proto: onnx.ModelProto) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node)


def _create_session(proto: onnx.ModelProto, path: Path | None, *, threads: int, spinning: bool) -> tuple[Any, str]:
    ort: Any = import_bindings("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if _has_qdq(proto):
        run_qdq_as_written(options)
    with refuse_damaged_graph(f"open {path or 'an ONNX graph'}"):
        emulated = emulate_fp16(proto)
    try:
        # A file need not be serialized again, which protobuf refuses above 2 GB.
        model = str(path) if path is not None and emulated is proto else emulated.SerializeToString()
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), ort.__version__
    except Exception as error:
        # ONNX Runtime raises its own family of exceptions, unrelated to one another.
        raise EngineError(
            f"open {path or 'an ONNX graph'}",
            f"ONNX Runtime rejects it ({_first_line(error)})",
            "check it with onnx.checker",
            code="onnx-rejected",
            path=path,
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _accepts(source: Any) -> bool:
    if isinstance(source, (str, Path)):
        return Path(source).suffix.lower() == ".onnx"
    return isinstance(source, onnx.ModelProto)


def _open(source: Any, *, task: str | None, device: str | int | None) -> OrtRunner:
    if not _accepts(source):
        raise RecipeError(
            f"open {source} with backend='onnxruntime'",
            "it is not an ONNX file",
            "open the ONNX file, or leave backend out",
            code="open-engine-as-onnx",
            path=source,
        )
    if parse_device(device).kind not in ("any", "cpu"):
        raise CapabilityError(
            f"open an ONNX graph on {device!r}",
            "ONNX Runtime runs on the CPU here",
            "export an engine for the GPU",
            code="device-not-cpu",
            device=device,
        )
    return OrtRunner(source, task=task)


ONNXRUNTIME = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    install_hint="run pip install onnxruntime",
    probe=probe_onnxruntime,
    accepts=_accepts,
    open=_open,
    models="ONNX files of every precision, on the CPU",
)
