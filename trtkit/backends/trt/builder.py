"""ONNX graph -> engine, with TensorRT 8.6, 10.x, 11.x or TensorRT-RTX: one API whose differences are capabilities."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtkit.backends.build_settings import BuildResult, BuildSettings, ImplicitCalibration
from trtkit.backends.capabilities import (
    Capabilities,
    get_build_target,
    import_bindings,
    require_build,
    require_torch_cuda,
)
from trtkit.backends.devices import Device, Gpu, parse_device, query_free_memory
from trtkit.backends.trt.callbacks import (
    PROGRESS_STEPS,
    BuildProgress,
    Messages,
    capture_messages,
    create_calibrator,
    create_monitor,
    get_logger,
    require_calibrator,
)
from trtkit.backends.trt.layer_info import parse_build_log, parse_inspector_json
from trtkit.backends.trt.network import (
    compute_profile_shapes,
    constrain_precisions,
    create_network,
    find_image_input,
    parse_onnx,
    use_strong_typing,
)
from trtkit.backends.trt.timing_cache import TimingCache
from trtkit.errors import BuildError, CapabilityError, EngineError, OnnxError, RecipeError
from trtkit.progress import Reporter

__all__ = ["build_engine", "read_graph"]

GIB = 2**30
TIMING_ITERATIONS = 8
"""Runs that each timing of a kernel averages, as `trtexec` does by default. With TensorRT's own 1 the same graph came
out at 0.95 to 1.02 ms a batch, with 8 at 0.903 and 0.907 (`benchmarks/results/placements.md`)."""


def read_graph(source: str | Path | bytes | onnx.ModelProto) -> tuple[bytes, onnx.ModelProto, str]:
    """Bytes, graph and path ("" for a graph in memory) of an ONNX model.

    Args:
        source: A file, its bytes, or the graph.

    Raises:
        OnnxError: It is missing or no ONNX graph.
    """
    if isinstance(source, onnx.ModelProto):
        return source.SerializeToString(), source, ""
    path = "" if isinstance(source, bytes) else str(source)
    asked = f"build {path or 'an ONNX graph'}"
    if not isinstance(source, bytes):
        if not Path(source).is_file():
            raise OnnxError(asked, "the file does not exist", "check the path")
        source = Path(source).read_bytes()
    try:
        proto = onnx.load_model_from_string(source)
    except Exception as error:
        # protobuf's error types differ between its versions.
        raise OnnxError(asked, "it is no ONNX graph", "give an ONNX file") from error
    if not proto.graph.node:
        raise OnnxError(asked, "there is no graph in it", "give an ONNX file")
    return source, proto, path


def build_engine(
    source: str | Path | bytes | onnx.ModelProto, settings: BuildSettings, *, backend: str | None, reporter: Reporter
) -> BuildResult:
    """Build an engine in this process.

    Args:
        source: The ONNX graph.
        settings: How to build it.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        reporter: Receives progress, and is asked whether to go on. TensorRT 8.6 reports none while it builds, and can then
            be stopped only with `isolate`.

    Raises:
        CapabilityError: This machine can't build what was asked.
        RecipeError: A setting does not fit the graph or the GPU.
        BuildError: TensorRT refused the graph or failed.
        CancelledError: The caller cancelled.
    """
    found = require_build(backend, device=settings.device)
    if settings.implicit is not None:
        require_calibrator(found.backend)
    device = parse_device(settings.device)
    gpu = found.gpus[device.gpu] if found.gpus and device.kind != "sm" else None
    _check_workspace(settings, gpu)
    data, proto, folder = read_graph(source)
    stage = f"build {settings.precision} engine"
    reporter.step(stage, 0, PROGRESS_STEPS)
    started = time.perf_counter()
    with capture_messages() as messages, _select_gpu(gpu):
        job = _EngineBuild(found, settings, device, gpu, proto, messages)
        plan = job.run(data, folder, BuildProgress(reporter, stage))
        layers = parse_build_log(messages.table) or job.inspect(plan)
    seconds = time.perf_counter() - started
    reporter.step(stage, PROGRESS_STEPS, PROGRESS_STEPS)
    facts = {
        "backend": found.backend,
        "tensorrt": found.version,
        "cuda": gpu.cuda if gpu is not None else "",
        "driver": gpu.driver if gpu is not None else "",
        "gpu": gpu.name if gpu is not None else "",
        "sm": get_build_target(found, device) if found.cross_build_targets else (gpu.sm if gpu is not None else ""),
        "built_without_gpu": gpu is None,
        "strongly_typed": job.strongly_typed,
        "timing_cache": str(job.cache.path) if job.cache is not None else None,
        "timing_cache_bytes": job.cache_bytes,
        "warnings": list(dict.fromkeys(messages.warnings))[:20],
    }
    return BuildResult(plan=plan, seconds=seconds, facts=facts, layers=layers)


class _EngineBuild:
    """One build, with what its steps share."""

    def __init__(
        self,
        found: Capabilities,
        settings: BuildSettings,
        device: Device,
        gpu: Gpu | None,
        proto: onnx.ModelProto,
        messages: Messages,
    ) -> None:
        self.found, self.settings, self.device, self.gpu = found, settings, device, gpu
        self.proto, self.messages = proto, messages
        self.trt: Any = import_bindings(found.backend)
        self.strongly_typed = use_strong_typing(found, settings, proto)
        self.cache: TimingCache | None = None
        self.cache_bytes = 0
        # TensorRT calls the calibrator (`own`) and the monitor while it builds, so both are held until then. A second
        # try uses the calibrator of the first.
        self.own: Any = None
        self.calibration_shape: tuple[int, ...] = ()
        self.monitor: Any = None
        if found.has_timing_cache and gpu is not None:
            self.cache = TimingCache.from_setting(settings.timing_cache, version=found.version, gpu=gpu.name, sm=gpu.sm)

    def run(self, data: bytes, folder: str, phases: BuildProgress) -> bytes:
        plan, config = self._try_build(data, folder, phases)
        first = ""
        if plan is None and self.cache is not None and self._is_cache_error() and self._can_retry(phases):
            first = self.messages.why()
            self.messages.errors.clear()
            plan, config = self._try_build(data, folder, phases, known=False)
            if plan is not None:
                # Only now is it known that the file was at fault; other builds go on using one that was not.
                self.cache.drop()
                warnings.warn(
                    f"The timing cache {self.cache.path} broke the build: it was dropped, and the build tried anew.",
                    stacklevel=4,
                )
        for failure in (phases.failure, getattr(self.own, "failure", None)):
            if failure is not None:
                raise failure
        if plan is None:
            raise self._error(first)
        if self.cache is not None:
            self.cache.keep(config)
        return bytes(plan)

    def _try_build(self, data: bytes, folder: str, phases: BuildProgress, *, known: bool = True) -> tuple[Any, Any]:
        """Build once, with objects of its own: what a failed build did to its network is not known.

        Args:
            data: The ONNX graph.
            folder: Where its weights' files lie.
            phases: Hears progress.
            known: Take what the timing cache's file holds.

        Returns:
            The plan, None where TensorRT failed, and its configuration.
        """
        builder = self._builder()
        network = create_network(builder, self.found, strongly_typed=self.strongly_typed)
        parser = self.trt.OnnxParser(network, get_logger(self.found.backend))
        parse_onnx(parser, data, self.proto, self.found, folder=folder)
        config = builder.create_builder_config()
        self._configure(builder, config, network)
        self._set_precision(config, network)
        if self.found.has_progress_monitor:
            self.monitor = create_monitor(self.found.backend, phases)
            config.progress_monitor = self.monitor
        if self.cache is not None and known:
            self.cache_bytes = self.cache.attach(config)
        elif self.cache is not None:
            self.cache.fresh(config)
        return builder.build_serialized_network(network, config), config

    def _can_retry(self, phases: BuildProgress) -> bool:
        """Whether a failed build may be tried again: it began from a cache's file, and no image of it is lost."""
        calibrated = self.own is None or bool(self.own.known)
        return bool(self.cache_bytes) and phases.failure is None and calibrated

    def inspect(self, plan: bytes) -> tuple[Any, ...]:
        """The layer table of an engine for the GPU that is here; empty where none is, or TensorRT tells none."""
        if self.gpu is None:
            return ()
        engine = self.trt.Runtime(get_logger(self.found.backend)).deserialize_cuda_engine(plan)
        if engine is None:
            return ()
        text = engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            return parse_inspector_json(text)
        except EngineError as error:
            # An engine without its table is an engine.
            warnings.warn(f"The engine was built, but its layer table can't be read: {error}", stacklevel=5)
            return ()

    def _builder(self) -> Any:
        try:
            return self.trt.Builder(get_logger(self.found.backend))
        except (TypeError, RuntimeError) as error:
            # pybind11 says "factory function returned nullptr"; the logger heard the reason.
            raise BuildError(
                f"start {self.found.title}",
                self.messages.why(str(error)),
                "check that the NVIDIA driver fits this TensorRT",
            ) from error

    def _configure(self, builder: Any, config: Any, network: Any) -> None:
        """Everything but precisions."""
        trt, settings, found = self.trt, self.settings, self.found
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.avg_timing_iterations = TIMING_ITERATIONS
        if settings.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace * GIB))
        if settings.opt_level is not None:
            config.builder_optimization_level = settings.opt_level
        if found.cross_build_targets:
            config.num_compute_capabilities = 1
            name = get_build_target(found, self.device).upper()
            config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
        if found.limit_tactics:
            config.set_tactic_sources(
                1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
            )
        if self.device.kind == "dla":
            self._use_dla(builder, config)
        tensor = find_image_input(network)
        shapes = compute_profile_shapes(settings, tuple(tensor.shape))
        if shapes is not None:
            _add_profile(builder, config, network, tensor.name, shapes)
        if settings.implicit is not None:
            self._calibrate(builder, config, tensor, settings.implicit, open_batch=shapes is not None)

    def _use_dla(self, builder: Any, config: Any) -> None:
        trt = self.trt
        cores = builder.num_DLA_cores
        if self.device.index >= cores:
            raise CapabilityError(
                f"build for DLA core {self.device.index}",
                f"this machine has {cores} DLA cores",
                "pass device=0 for the GPU",
            )
        if self.settings.precision == "fp32":
            raise RecipeError(
                f"device='dla:{self.device.index}'", "DLA runs FP16 and INT8 only", "pass half=True or int8=True"
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = self.device.index
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    def _set_precision(self, config: Any, network: Any) -> None:
        """Precision flags, where types do not come from the graph alone."""
        if self.strongly_typed:
            return
        flags = self.trt.BuilderFlag
        if self.settings.precision in ("fp16", "int8"):
            config.set_flag(flags.FP16)
        if self.settings.precision == "int8":
            config.set_flag(flags.INT8)
        if constrain_precisions(network, self.proto, self.found, calibrated=self.settings.implicit is not None):
            config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)

    def _calibrate(
        self, builder: Any, config: Any, tensor: Any, given: ImplicitCalibration, *, open_batch: bool
    ) -> None:
        if self.own is None:
            batches: Iterator[np.ndarray] = iter(given.batches)
            if not open_batch:
                # TensorRT calibrates a static network at its own batch and would read no further into a larger one.
                batches = _rebatch(batches, int(tensor.shape[0]))
            first = next(batches, None)
            whole: Iterable[np.ndarray] = batches if first is None else itertools.chain([first], batches)
            given = dataclasses.replace(given, batches=whole)
            self.own = create_calibrator(self.found.backend, given, device=self.device.gpu)
            self.calibration_shape = (
                first.shape if first is not None else (self.settings.batch, 3, *self.settings.imgsz)
            )
        config.int8_calibrator = self.own
        if open_batch:
            profile = builder.create_optimization_profile()
            profile.set_shape(tensor.name, *3 * (self.calibration_shape,))
            config.set_calibration_profile(profile)

    def _is_cache_error(self) -> bool:
        text = " ".join(self.messages.errors).lower()
        return "timing cache" in text or "myelin" in text

    def _error(self, first: str = "") -> Exception:
        """Why TensorRT built nothing; `first` is what it said of an earlier try with the timing cache."""
        why = self.messages.why()
        if first and first != why:
            why = f"{first}; anew, without the timing cache: {why}"
        low = why.lower()
        if "out of memory" in low or "outofmemory" in low or "insufficient memory" in low or "unsupported_state" in low:
            free = query_free_memory(self.gpu.index) if self.gpu is not None else None
            left = f", {free / GIB:.1f} of them free" if free is not None else ""
            has = f" (the GPU has {self.gpu.memory_gib:.1f} GiB{left})" if self.gpu is not None else ""
            do = "lower batch, imgsz or workspace, or free memory on the GPU"
            return BuildError(f"build an engine with {self.found.title}", f"not enough memory{has}: {why}", do)
        return BuildError(
            f"build an engine with {self.found.title}", why, "see the trtkit.tensorrt log for all it said"
        )


def _add_profile(builder: Any, config: Any, network: Any, name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *shapes)
    for index in range(network.num_inputs):
        other = network.get_input(index)
        if other.name != name and any(side < 0 for side in other.shape):
            raise BuildError(
                "build an engine", f"the second input {other.name!r} has an open shape", "give it a fixed one"
            )
    config.add_optimization_profile(profile)


def _check_workspace(settings: BuildSettings, gpu: Gpu | None) -> None:
    if settings.workspace is not None and gpu is not None and gpu.memory and settings.workspace > gpu.memory_gib:
        raise RecipeError(
            f"workspace={settings.workspace:g} GiB",
            f"{gpu.name} has {gpu.memory_gib:.1f} GiB",
            "pass less, or None to let TensorRT decide",
        )


def _rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images in batches of `size`; a rest that fills none is left out."""
    waiting: list[np.ndarray] = []
    for batch in batches:
        waiting.extend(batch)
        while len(waiting) >= size:
            yield np.stack(waiting[:size])
            del waiting[:size]


def _select_gpu(gpu: Gpu | None) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one; the first already is."""
    if gpu is None or gpu.index == 0:
        return contextlib.nullcontext()
    manager: contextlib.AbstractContextManager[Any] = require_torch_cuda(f"build on GPU {gpu.index}").cuda.device(
        gpu.index
    )
    return manager
