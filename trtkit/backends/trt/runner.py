"""Running engines of TensorRT and TensorRT-RTX: images in, predictions out, all of it on the GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.backends.base import Runner
from trtkit.backends.build_settings import PRECISIONS
from trtkit.backends.capabilities import Capabilities, require_run
from trtkit.backends.devices import Device, parse_device
from trtkit.backends.engine_file import EngineFile, check_compatibility, read_engine
from trtkit.backends.trt.execution import Execution
from trtkit.backends.trt.layer_info import add_times, layer_frame, parse_inspector_json
from trtkit.errors import EngineError, ModelError
from trtkit.files import hash_parts
from trtkit.models.model import DENSE, ModelInfo, Preprocess

if TYPE_CHECKING:
    import polars as pl

    from trtkit.backends.trt.execution import Execution
    from trtkit.tasks import Prediction

__all__ = ["TensorRTRunner", "open_engine", "time_layers"]


# Where an engine's time goes: TensorRT's own profiler, layer by layer.


def time_layers(execution: Execution, shapes: Mapping[str, tuple[int, ...]], runs: int) -> dict[str, float]:
    """Time each layer, in a context of its own that is thrown away: a profiled one is slower for good.

    Args:
        execution: The engine; its input and output memory is used.
        shapes: Of every input.
        runs: Runs to average over.

    Returns:
        Mean milliseconds of one run by layer name. Layers in sequence: their sum exceeds a run that overlaps them.

    Raises:
        EngineError: TensorRT refuses, or memory is short.
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
        path: Ours, Ultralytics' or a bare plan.
        task: For a bare plan, or to override the file's.
        device: None, 0, "cuda:1" or "dla:0".
        backend: None goes by the file.

    Raises:
        EngineError: It is no engine, is cut short, or does not fit this machine.
        CapabilityError: What is missing to run it.
    """
    file = read_engine(path)
    core = file.passport.dla if file.passport is not None else file.metadata.get("dla")
    wanted = parse_device(f"dla:{core}" if device is None and core is not None else device)
    found = require_run(backend or file.backend, device=device)
    if file.passport is not None:
        mismatch = check_compatibility(file.passport, found, wanted)
        if mismatch is not None:
            raise EngineError(f"open {path}", mismatch.found, mismatch.do)
    return TensorRTRunner(file, file.info(task=task), found, wanted)


class TensorRTRunner(Runner):
    """An engine on a GPU, safe to call from several threads; calls take turns.

    Args:
        file: The engine.
        info: What the model does; names missing from it are counted from the output.
        found: What the backend can do here.
        device: A GPU or a DLA core.

    Raises:
        EngineError: TensorRT does not take the plan.
    """

    engine = True

    def __init__(self, file: EngineFile, info: ModelInfo, found: Capabilities, device: Device) -> None:
        self.path = file.path
        self.passport = file.passport
        gpu = found.gpus[device.gpu]
        where = f"DLA {device.index} of {gpu.name}" if device.kind == "dla" else gpu.name
        self.name = f"{found.title} {where}"
        self._lock = threading.RLock()
        self._execution = Execution(file.plan, found.backend, device, asked=f"open {file.path}")
        self._execution.asked = f"run {self.name}"
        images = [name for name in self._execution.input_names if len(self._execution.ranges[name][0]) == 4]
        if len(images) != 1:
            self._execution.close()
            raise EngineError(f"open {file.path}", f"it has {len(images)} inputs for images", "open an engine with one")
        self.input_name = images[0]
        self._low, best, self._high = self._execution.ranges[self.input_name]
        self.dynamic = self._execution.dynamic
        self.batch = self._high[0]
        told = info.imgsz if self.dynamic and "imgsz" in file.metadata else (best[2], best[3])
        self.imgsz = (int(told[0]), int(told[1]))
        self.info = info if info.names else self._add_class_names(info)
        self.hash = file.passport.model_hash if file.passport is not None else hash_parts(file.plan)
        self.precision = _read_precision(file) or self._lowest_precision()
        self._staged: dict[str, Any] = {}
        self._uploader: Any = None

    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch from and to host memory; see `Runner.infer`.

        Raises:
            EngineError: The batch or size does not fit the engine, the runner is closed, or the run failed.
        """
        given = dict(feeds) if isinstance(feeds, Mapping) else {self.input_name: feeds}
        if set(given) != set(self._execution.input_names):
            raise EngineError(
                f"run {self.name} with inputs {sorted(given)}", f"it takes {self._execution.input_names}", "feed these"
            )
        images = self._check_shape(given[self.input_name].shape)
        torch = self._execution.torch
        ready = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in given.items()}
        with self._lock, self._execution.use_stream():
            shapes = {name: self._pad_batch(name, tuple(value.shape)) for name, value in ready.items()}
            for name, value in ready.items():
                host = self._stage(name, tuple(value.shape), value.dtype)
                host.copy_(value)
                self._execution.input(name, tuple(value.shape)).copy_(host, non_blocking=True)
            self._execution.run(shapes)
            return self._fetch_outputs(images, shapes[self.input_name][0])

    def infer_device(self, tensor: Any) -> dict[str, Any]:
        """Run one batch that is on the GPU already.

        Args:
            tensor: NCHW on the engine's GPU. `input_tensor` avoids the copy.

        Returns:
            Outputs by name: views of the engine's memory, ready for the caller's current stream until the next run.

        Raises:
            EngineError: The batch or size does not fit the engine, or the run failed.
        """
        images = self._check_shape(tuple(tensor.shape))
        with self._lock:
            current = self._execution.torch.cuda.current_stream(self._execution.device)
            with self._execution.use_stream():
                self._execution.stream.wait_stream(current)
                there = self._execution.input(self.input_name, tuple(tensor.shape))
                if there.data_ptr() != tensor.data_ptr():
                    there.copy_(tensor)
                    tensor.record_stream(self._execution.stream)
                shape = self._pad_batch(self.input_name, tuple(tensor.shape))
                self._execution.run({self.input_name: shape})
                found = {name: _trim_rows(value, images, shape[0]) for name, value in self._execution.outputs().items()}
            current.wait_stream(self._execution.stream)
        return found

    def input_tensor(self, batch: int) -> Any:
        """The engine's own input memory, to be written in place before `infer_device`.

        Args:
            batch: Images.

        Returns:
            A CUDA tensor (batch, channels, *imgsz) of the engine's type.
        """
        self.check_batch(batch)
        return self._execution.input(self.input_name, (batch, self._high[1], *self.imgsz))

    def predict(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> list[Prediction]:
        """Find objects in images, with letterbox, colors, scaling, decoding and suppression on the GPU.

        See `Runner.predict`. Preprocessing other than an RGB letterbox runs on the CPU; so does the postprocessing of
        masks, keypoints, oriented boxes and output formats other than the dense one.
        """
        if self.info.preprocess != Preprocess(channels=self.info.channels):
            return super().predict(images, conf=conf, iou=iou, max_det=max_det)
        from trtkit.backends.trt import gpu_pipeline as cuda_images
        from trtkit.tasks import PostprocessSettings, get_task

        settings = PostprocessSettings(conf=conf, iou=iou, max_det=max_det)
        judge = get_task(self.info.task)
        found: list[Prediction] = []
        for batch in self.read_batches(images):
            count = len(batch)
            with self._lock, self._execution.use_stream():
                if self._uploader is None:
                    self._uploader = cuda_images.Uploader(self._execution.device)
                shape = (count, self._high[1], *self.imgsz)
                self._check_shape(shape)
                padded = self._pad_batch(self.input_name, shape)
                fits = cuda_images.letterbox_into(
                    self._uploader.upload(batch), self._execution.input(self.input_name, shape)
                )
                self._execution.run({self.input_name: padded})
                if judge.kinds == ("B",) and self.info.output_format == DENSE:
                    raw = self._main_output()
                    found += cuda_images.postprocess(raw, len(self.info.names), fits, settings)
                    continue
                outputs = self._fetch_outputs(count, padded[0])
            found += judge.postprocess(outputs, self.info, fits, settings)
        return found

    def measure_gpu_times(self, feeds: np.ndarray, runs: int) -> list[float]:
        """Time the engine alone, on the GPU's own clock: no transfers, no preparation.

        Args:
            feeds: One batch, float32 NCHW.
            runs: How many runs.

        Returns:
            Milliseconds of each run of the whole batch.

        Raises:
            EngineError: The batch or size does not fit the engine, or a run failed.
        """
        with self._lock:
            for _ in range(3):
                self.infer(feeds)
            with self._execution.use_stream():
                return self._execution.times(runs)

    @property
    def device_memory(self) -> int:
        """Bytes on the GPU for activations, inputs and outputs; the weights come on top."""
        return self._execution.memory

    @property
    def cuda_graph(self) -> str:
        """How runs are queued: "replayed", "not yet" (before a shape's third run), or why a graph can't be had."""
        return "replayed" if self._execution.graph is not None else self._execution.graph_error or "not yet"

    def layers(self, *, runs: int = 0, batch: int | None = None) -> pl.DataFrame:
        """What TensorRT made of the graph: one row a layer.

        Args:
            runs: Time each layer over so many runs; 0 leaves the times out.
            batch: Images of a timed run; None takes the largest.

        Returns:
            See `trtkit.backends.layer_frame`.
        """
        with self._lock, self._execution.use_stream():
            rows = self._rows()
            if runs > 0:
                shape = self._pad_batch(self.input_name, (batch or self._high[0], self._high[1], *self.imgsz))
                rows = add_times(rows, time_layers(self._execution, {self.input_name: shape}, runs))
        return layer_frame(rows)

    def close(self) -> None:
        """Free all of the engine's GPU memory; closing twice is fine."""
        with self._lock:
            if self._uploader is not None:
                self._uploader.free()
                self._uploader = None
            self._staged.clear()
            self._execution.close()

    def _check_shape(self, shape: tuple[int, ...]) -> int:
        """Refuse a shape outside the engine's; returns the images in it."""
        if len(shape) != 4:
            raise EngineError(
                f"run {self.name} on shape {shape}", "images come as (batch, channels, height, width)", "add a batch"
            )
        self.check_batch(shape[0])
        for low, side, high in zip(self._low[1:], shape[1:], self._high[1:], strict=True):
            if not low <= side <= high:
                limits = zip(self._low[1:], self._high[1:], strict=True)
                takes = " x ".join(str(least) if least == most else f"{least}-{most}" for least, most in limits)
                raise EngineError(f"run {self.name} on images of {shape[1:]}", f"it takes {takes}", "pass that size")
        return shape[0]

    def _pad_batch(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape to run: a batch below the engine's smallest is filled up with whatever its memory holds."""
        return (max(shape[0], self._execution.ranges[name][0][0]), *shape[1:])

    def _stage(self, name: str, shape: tuple[int, ...], kind: Any) -> Any:
        """Pinned host memory of a shape, kept between runs."""
        count = int(np.prod(shape))
        held = self._staged.get(name)
        if held is None or held.numel() < count or held.dtype != kind:
            held = self._execution.torch.empty(count, dtype=kind, pin_memory=True)
            self._staged[name] = held
        return held[:count].view(shape)

    def _fetch_outputs(self, images: int, ran: int) -> dict[str, np.ndarray]:
        """The outputs as float32 arrays of the caller's own."""
        torch = self._execution.torch
        hosts = {}
        for name, value in self._execution.outputs().items():
            kept = _trim_rows(value, images, ran)
            hosts[name] = self._stage(name, tuple(kept.shape), torch.float32)
            hosts[name].copy_(kept, non_blocking=True)
        self._execution.stream.synchronize()
        return {name: host.numpy().copy() for name, host in hosts.items()}

    def _main_output(self) -> Any:
        outputs = self._execution.outputs()
        raw = outputs.get("output0", next(iter(outputs.values())))
        # Checked by the CPU's decoder on an empty batch, so that both say the same.
        from trtkit.tasks.detect import get_main_output

        get_main_output(
            {"output0": np.empty((0, *raw.shape[1:]), np.float32)}, self.info, axis=1, columns=4 + len(self.info.names)
        )
        return raw

    def _add_class_names(self, info: ModelInfo) -> ModelInfo:
        from trtkit.models.model import count_classes

        asked = f"open {self.path}"
        shapes: list[list[int | None]] = [
            [None if side < 0 else int(side) for side in self._execution.engine.get_tensor_shape(name)]
            for name in self._execution.output_names
        ]
        classes, kpt_shape = count_classes(info.task, shapes, None, asked, ModelError)
        return dataclasses.replace(
            info, names={index: f"class{index}" for index in range(classes)}, kpt_shape=kpt_shape
        )

    def _rows(self) -> tuple[dict[str, Any], ...]:
        inspector = self._execution.engine.create_engine_inspector()
        inspector.execution_context = self._execution.context
        return parse_inspector_json(inspector.get_engine_information(self._execution.trt.LayerInformationFormat.JSON))

    def _lowest_precision(self) -> str:
        """The lowest precision any layer computes in, for engines that don't tell theirs; fp32 where no layer tells."""
        met: set[str] = set()
        with self._execution.use_stream(), contextlib.suppress(EngineError):
            met = {row["precision"] for row in self._rows()}
        return next((name for name in reversed(PRECISIONS) if name in met), PRECISIONS[0])


def _trim_rows(value: Any, images: int, ran: int) -> Any:
    """The rows that belong to the caller's images, without those that filled the batch up."""
    return value[:images] if value.ndim and value.shape[0] == ran else value


def _read_precision(file: EngineFile) -> str | None:
    if file.passport is not None:
        return file.passport.precision
    told = file.metadata.get("args")
    if isinstance(told, Mapping) and ("int8" in told or "half" in told):
        return "int8" if told.get("int8") else "fp16" if told.get("half") else "fp32"
    return None
