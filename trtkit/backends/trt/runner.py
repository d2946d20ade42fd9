"""The runner of TensorRT and TensorRT-RTX engines: preprocessing, inference and postprocessing on the GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.arguments import PRECISIONS
from trtkit.backends.capabilities import Capabilities
from trtkit.backends.compatibility import check_compatibility, check_contents
from trtkit.backends.devices import Device, parse_device
from trtkit.backends.engine_file import EngineFile, Passport, read_engine
from trtkit.backends.requirements import require_run
from trtkit.backends.runner import Runner
from trtkit.backends.stages import StageClock, enter_stage
from trtkit.backends.trt.copying import Copier
from trtkit.backends.trt.execution import EventClock, Execution, trim_rows
from trtkit.backends.trt.layer_info import add_times, layer_frame, parse_inspector_json
from trtkit.errors import EngineError, ModelError
from trtkit.files import hash_parts
from trtkit.models.model import ModelInfo

if TYPE_CHECKING:
    import polars as pl

    from trtkit.backends.trt.batch_predictor import BatchPredictor
    from trtkit.backends.trt.pixel_blocks import PixelBlocks
    from trtkit.tasks import Prediction

__all__ = ["TensorRTRunner", "open_engine", "time_layers"]


def time_layers(execution: Execution, shapes: Mapping[str, tuple[int, ...]], runs: int) -> dict[str, float]:
    """Time each layer with TensorRT's profiler, in a temporary context: a profiled context stays slower.

    Args:
        execution: The engine; its input and output memory is used.
        shapes: The shape of every input.
        runs: Number of runs to average.

    Returns:
        Mean time of one run by layer name, ms. Profiled layers run in sequence: their sum exceeds the latency of a run
        that overlaps them.

    Raises:
        EngineError: TensorRT reports an error, or memory is short.
    """
    trt = execution.trt
    totals: dict[str, float] = {}

    class Profiler(trt.IProfiler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    profiler = Profiler()
    execution.recreate_context()
    try:
        execution.set_shapes(shapes)
        # The first run allocates and loads kernels.
        execution.launch()
        execution.stream.synchronize()
        execution.context.profiler = profiler
        for _ in range(runs):
            execution.launch()
            execution.stream.synchronize()
    finally:
        execution.recreate_context()
    return {name: total / runs for name, total in totals.items()}


def open_engine(
    path: str | Path, *, task: str | None = None, device: str | int | None = None, backend: str | None = None
) -> TensorRTRunner:
    """Open an engine file; see `trtkit.open`.

    Args:
        path: An engine of trtkit's or Ultralytics', or a bare plan.
        task: For a bare plan, or to override the file's.
        device: None, 0, "cuda:1" or "dla:0".
        backend: "tensorrt" or "tensorrt_rtx"; None takes the file's.

    Raises:
        EngineError: It is not an engine, is truncated, was built for another machine, has no weights, or brings its
            own runtime and is not trusted.
        CapabilityError: The backend, the GPU or torch with CUDA is missing.
    """
    file = read_engine(path)
    target = parse_device(f"dla:{file.dla}" if device is None and file.dla is not None else device)
    capabilities = require_run(backend or file.backend, device=device)
    if file.passport is not None:
        mismatch = check_compatibility(file.passport, capabilities, target)
        if mismatch is not None:
            raise mismatch.error(f"open {path}", path)
        check_contents(file, f"open {path}")
    runner = TensorRTRunner(file, file.info(task=task), capabilities, target)
    # Without the device: another process has GPUs of its own.
    runner.opener = functools.partial(open_engine, file.path.absolute(), task=task, backend=backend)
    return runner


class TensorRTRunner(Runner):
    """An engine on a GPU. Thread-safe: calls are serialized.

    Args:
        file: The engine.
        info: The model's description; missing class names are numbered from the output's shape.
        capabilities: Of the backend that runs it.
        device: A GPU or a DLA core.

    Raises:
        EngineError: TensorRT rejects the plan.
    """

    engine = True

    def __init__(self, file: EngineFile, info: ModelInfo, capabilities: Capabilities, device: Device) -> None:
        self.path = file.path
        self.passport = file.passport
        gpu = self.gpu = capabilities.gpus[device.gpu]
        where = f"DLA {device.index} of {gpu.name}" if device.kind == "dla" else gpu.name
        self.name = f"{capabilities.title} {where}"
        self._lock = threading.RLock()
        host_code = file.passport is not None and file.passport.compatibility == "version"
        self._execution = Execution(
            file.plan,
            capabilities.backend,
            device,
            asked=f"open {file.path}",
            host_code=host_code,
            blocks=_read_layout(file.passport, info),
        )
        self._execution.asked = f"run {self.name}"
        self._staged: dict[str, Any] = {}
        self._predictor: BatchPredictor | None = None
        self._copier = Copier()
        try:
            self._read_engine(file, info)
        except BaseException:
            self.close()
            raise

    def _read_engine(self, file: EngineFile, info: ModelInfo) -> None:
        """Read what the engine takes, returns and computes in."""
        image_inputs = [name for name in self._execution.input_names if len(self._execution.ranges[name][0]) == 4]
        if len(image_inputs) != 1:
            raise EngineError(
                f"open {file.path}",
                f"it has {len(image_inputs)} image inputs",
                "open an engine with one",
                code="engine-image-inputs",
                count=len(image_inputs),
            )
        self.input_name = image_inputs[0]
        self._min_shape, opt_shape, self._max_shape = self._execution.ranges[self.input_name]
        self._opt_batch = int(opt_shape[0])
        self.dynamic = self._execution.dynamic
        self.batch = self._max_shape[0]
        imgsz = info.imgsz if self.dynamic and "imgsz" in file.metadata else opt_shape[2:]
        self.imgsz = (int(imgsz[0]), int(imgsz[1]))
        self.info = self._fit_info(info, file.metadata)
        self.hash = file.passport.model_hash if file.passport is not None else hash_parts(file.plan)
        self.precision = _read_precision(file) or self._lowest_precision()

    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch from and to host memory; see `Runner.infer`.

        Raises:
            EngineError: The batch or size does not fit the engine, the runner is closed, or the run failed.
        """
        arrays = self._name_feeds(feeds, self.input_name, self._execution.input_names)
        count = self._check_shape(arrays[self.input_name].shape)
        torch = self._execution.torch
        types = {name: torch.from_numpy(np.empty(0, value.dtype)).dtype for name, value in arrays.items()}
        with self._lock, self._execution.use_stream():
            shapes = {name: self._pad_batch(name, value.shape) for name, value in arrays.items()}
            enter_stage("upload")
            for name, value in arrays.items():
                host = self._stage(name, value.shape, types[name])
                target = host.numpy()
                self._copier.copy(list(zip(target, value, strict=True)) if value.ndim > 1 else [(target, value)])
                self._execution.write_input(name, host)
            enter_stage("engine")
            self._execution.run(shapes)
            enter_stage("download")
            return self._fetch_outputs(count, shapes[self.input_name][0])

    def infer_device(self, tensor: Any) -> dict[str, Any]:
        """Run one batch that is on the GPU already.

        Args:
            tensor: NCHW on the engine's GPU. `input_tensor` avoids the copy.

        Returns:
            Outputs by name: views of the engine's memory, valid on the caller's current stream until the next run.

        Raises:
            EngineError: The batch or size does not fit the engine, or the run failed.
        """
        count = self._check_shape(tuple(tensor.shape))
        with self._lock:
            current = self._execution.torch.cuda.current_stream(self._execution.device)
            with self._execution.use_stream():
                self._execution.stream.wait_stream(current)
                if self._execution.input(self.input_name, tuple(tensor.shape)).data_ptr() != tensor.data_ptr():
                    self._execution.write_input(self.input_name, tensor)
                    tensor.record_stream(self._execution.stream)
                shape = self._pad_batch(self.input_name, tuple(tensor.shape))
                self._execution.run({self.input_name: shape})
                outputs = self._execution.outputs()
            current.wait_stream(self._execution.stream)
        return {name: trim_rows(value, count, shape[0]) for name, value in outputs.items()}

    def input_tensor(self, batch: int) -> Any:
        """The engine's input memory, to be written in place before `infer_device`.

        Args:
            batch: Number of images.

        Returns:
            A CUDA tensor (batch, channels, *imgsz) of the engine's type. One that reads pixels in blocks has no memory
            of this shape: a new float32 tensor, which `infer_device` converts.
        """
        self.check_batch(batch)
        shape = (batch, self._max_shape[1], *self.imgsz)
        if self._execution.blocks is not None:
            return self._execution.torch.empty(shape, device=self._execution.device)
        return self._execution.input(self.input_name, shape)

    def predict(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> list[Prediction]:
        """Preprocess images, run them and postprocess the outputs; see `Runner.predict`.

        Letterbox, stretch, and boxes that are dense, raw maps or final (of NMS in the graph or a one-to-one head) are
        processed on the GPU. Masks, keypoints, oriented boxes and other formats are decoded by the CPU while the GPU
        runs the next batch, of dense outputs the candidates alone. A center crop goes through the CPU.
        """
        from trtkit.backends.trt.batch_predictor import BatchPredictor
        from trtkit.backends.trt.gpu_preprocess import GPU_KINDS

        if self.info.preprocess.kind not in GPU_KINDS:
            return super().predict(images, conf=conf, iou=iou, max_det=max_det)
        settings = self._read_settings(conf=conf, iou=iou, max_det=max_det)
        with self._lock:
            if self._predictor is None:
                self._predictor = BatchPredictor(
                    self._execution,
                    self.info,
                    input_name=self.input_name,
                    lock=self._lock,
                    copier=self._copier,
                    shapes=self._plan_shapes,
                )
            # Another thread may close the runner meanwhile.
            predictor = self._predictor
        with contextlib.closing(self.read_batches(images)) as batches:
            return list(predictor.predict(batches, settings))

    def _plan_shapes(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The input's shape of so many images, and the shape to run."""
        shape = (count, self._max_shape[1], *self.imgsz)
        self._check_shape(shape)
        return shape, self._pad_batch(self.input_name, shape)

    def stage_clock(self) -> StageClock:
        """CUDA events on the engine's stream, so that work which the GPU does later counts where it belongs."""
        return EventClock(self._execution)

    def measure_gpu_times(self, feeds: np.ndarray, runs: int) -> list[float]:
        """Time the engine alone by CUDA events, without transfers and preprocessing.

        Args:
            feeds: One batch, float32 NCHW.
            runs: Number of runs.

        Returns:
            Latency of each run of the whole batch, ms.

        Raises:
            EngineError: The batch or size does not fit the engine, or a run failed.
        """
        with self._lock:
            for _ in range(3):
                self.infer(feeds)
            with self._execution.use_stream():
                return self._execution.time_runs(runs)

    def measure_throughput(self, feeds: np.ndarray, seconds: float) -> tuple[int, float]:
        """Run the engine back to back, without transfers and preprocessing.

        Args:
            feeds: One batch, float32 NCHW.
            seconds: For how long, s.

        Returns:
            Number of runs, and the seconds they took.

        Raises:
            EngineError: As `measure_gpu_times`.
        """
        with self._lock:
            for _ in range(3):
                self.infer(feeds)
            with self._execution.use_stream():
                return self._execution.run_for(seconds)

    @property
    def profile_batches(self) -> tuple[int, ...]:
        """As the engine's optimization profile has them; see `Runner.profile_batches`."""
        return tuple(sorted({int(self._min_shape[0]), self._opt_batch, int(self._max_shape[0])}))

    @property
    def device_memory(self) -> int:
        """GPU memory for activations, inputs and outputs, bytes; the weights come on top."""
        return self._execution.memory

    @property
    def cuda_graph(self) -> str:
        """State of the CUDA graph: "replayed", "not yet" (before a shape's third run), or why the capture failed."""
        return "replayed" if self._execution.graph is not None else self._execution.graph_error or "not yet"

    def layers(self, *, runs: int = 0, batch: int | None = None) -> pl.DataFrame:
        """The engine's layer table.

        Args:
            runs: Number of timed runs per layer; 0 leaves times out.
            batch: Batch of the timed runs; None takes the largest.

        Returns:
            See `trtkit.backends.layer_frame`.
        """
        with self._lock, self._execution.use_stream():
            rows = self._read_layers()
            if runs > 0:
                shape = self._pad_batch(self.input_name, (batch or self._max_shape[0], self._max_shape[1], *self.imgsz))
                rows = add_times(rows, time_layers(self._execution, {self.input_name: shape}, runs))
        return layer_frame(rows)

    def close(self) -> None:
        """Free all of the engine's GPU memory; closing twice is fine."""
        with self._lock:
            if self._predictor is not None:
                self._predictor.free()
                self._predictor = None
            self._staged.clear()
            self._copier.free()
            self._execution.close()

    def _check_shape(self, shape: tuple[int, ...]) -> int:
        """Check that the engine accepts a shape; returns its batch."""
        if len(shape) != 4:
            raise EngineError(
                f"run {self.name} on shape {shape}",
                "its input is (batch, channels, height, width)",
                "add the batch dimension",
                code="run-shape",
                shape=shape,
            )
        self.check_batch(shape[0])
        for low, side, high in zip(self._min_shape[1:], shape[1:], self._max_shape[1:], strict=True):
            if not low <= side <= high:
                limits = zip(self._min_shape[1:], self._max_shape[1:], strict=True)
                accepted = " x ".join(str(least) if least == most else f"{least}-{most}" for least, most in limits)
                raise EngineError(
                    f"run {self.name} on images of shape {shape[1:]}",
                    f"the engine accepts {accepted}",
                    "pass such a shape",
                    code="run-shape",
                    shape=shape,
                    accepted=accepted,
                )
        return shape[0]

    def _pad_batch(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape to run: a batch below the engine's smallest is padded with what the memory contains."""
        return (max(shape[0], self._execution.ranges[name][0][0]), *shape[1:])

    def _stage(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Pinned host memory of a shape, kept between runs."""
        count = int(np.prod(shape))
        buffer = self._staged.get(name)
        if buffer is None or buffer.numel() < count or buffer.dtype != dtype:
            buffer = self._execution.torch.empty(count, dtype=dtype, pin_memory=True)
            self._staged[name] = buffer
        return buffer[:count].view(shape)

    def _fetch_outputs(self, count: int, padded: int) -> dict[str, np.ndarray]:
        """Copy the outputs to new float32 arrays on the host."""
        torch = self._execution.torch
        hosts = {}
        for name, value in self._execution.outputs().items():
            kept = trim_rows(value, count, padded)
            hosts[name] = self._stage(name, tuple(kept.shape), torch.float32)
            hosts[name].copy_(kept, non_blocking=True)
        self._execution.stream.synchronize()
        return {name: host.numpy().copy() for name, host in hosts.items()}

    def _fit_info(self, info: ModelInfo, metadata: Mapping[str, Any]) -> ModelInfo:
        """The description with what the file does not state, checked against the shapes of the engine's outputs."""
        from trtkit.models.output_shapes import (
            check_outputs,
            fit_output_format,
            infer_classes,
            infer_output_format,
            order_outputs,
        )

        asked = f"open {self.path}"
        outputs: dict[str, list[int | None]] = {
            name: [None if side < 0 else int(side) for side in self._execution.engine.get_tensor_shape(name)]
            for name in self._execution.output_names
        }
        shapes = order_outputs(outputs, info.task)
        if info.names:
            info = fit_output_format(info, shapes, metadata)
        else:
            output_format = infer_output_format(info.task, shapes)
            classes, kpt_shape = infer_classes(info.task, output_format, shapes, None, asked, ModelError)
            names = {index: f"class{index}" for index in range(classes)}
            info = dataclasses.replace(info, names=names, kpt_shape=kpt_shape, output_format=output_format)
        check_outputs(info, shapes, asked, ModelError)
        return info

    def _read_layers(self) -> tuple[dict[str, Any], ...]:
        return parse_inspector_json(self._inspect())

    def _inspect(self) -> str:
        inspector = self._execution.engine.create_engine_inspector()
        inspector.execution_context = self._execution.context
        return str(inspector.get_engine_information(self._execution.trt.LayerInformationFormat.JSON))

    def _lowest_precision(self) -> str:
        """The lowest precision of any layer, for engines whose file does not state it; "fp32" without layer types."""
        precisions: set[str] = set()
        with self._execution.use_stream(), contextlib.suppress(EngineError):
            precisions = {row["precision"] for row in self._read_layers()}
        return next((name for name in reversed(PRECISIONS) if name in precisions), PRECISIONS[0])


def _read_layout(passport: Passport | None, info: ModelInfo) -> PixelBlocks | None:
    if passport is None or passport.pixel_input is None:
        return None
    from trtkit.backends.trt.pixel_blocks import PixelBlocks

    return PixelBlocks(pixels=passport.pixel_input, channels=info.channels)


def _read_precision(file: EngineFile) -> str | None:
    if file.passport is not None:
        return file.passport.precision
    args = file.metadata.get("args")
    if isinstance(args, Mapping) and ("int8" in args or "half" in args):
        return "int8" if args.get("int8") else "fp16" if args.get("half") else "fp32"
    return None
